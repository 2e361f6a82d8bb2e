"""Settings of a study: flags of `experiments/study.py`."""

from __future__ import annotations

import dataclasses

from ilql_jax.settings import SettingError, Settings, setting


@dataclasses.dataclass(frozen=True)
class StudyConfig(Settings):
    """Settings of a study, its server, its pilot and its report."""

    runs: str = setting(
        "Agents of the study, with commas between: FOLDER (all methods of a run), FOLDER:METHOD, "
        "FOLDER:METHOD:DECODING, world:NAME:BEHAVIOUR, prompted:FOLDER:AGENT, chat:URL#MODEL.",
        "",
    )
    folder: str = setting(
        'Folder of the study, with all that is kept; "" = `study` in the first run\'s folder.', ""
    )
    questionnaire: str = setting(
        'YAML file with all that participants read and are asked; "" = that of the task.', ""
    )
    task: str = setting(
        'Name of the task, or world; "" = of the first agent. Tasks that could do harm '
        "(counseling, persuasion) have a notice that is always shown.",
        "",
    )
    notice: str = setting("Further notice, shown with the consent.", "")
    behind_tls: bool = setting(
        "Cookies are sent over https alone, and a proxy on this machine says who asks.", False
    )
    seed: int = setting("Seed of orders, personas and conversations.", 0, least=0)
    participants: int = setting("No more than so many take part.", 1000, least=1, most=100_000)
    answer_floor: float = setting(
        "Seconds that every answer takes at least, so that agents are not told by their speed.",
        1.5,
        least=0,
        most=60,
    )
    dropout_minutes: float = setting(
        "A participant who does nothing for so long is replaced by another in the design.",
        60.0,
        above=0,
    )
    transcripts: int = setting(
        "Conversations of others that a rater is given (second phase, at /judge).", 5, least=1
    )
    raters: int = setting("Raters of each conversation in the second phase.", 2, least=1)
    return_url: str = setting(
        "Address of the platform to which participants go back at the end; {code} in it becomes "
        "the completion code.",
        "",
    )
    code: str = setting(
        'Completion code that all participants get; "" = one of their own for each.', ""
    )
    requests_per_second: float = setting(
        "Requests from one address, in the long run; ten times as many at once.", 20.0, above=0
    )
    reward: str = setting(
        'Question whose rating is the reward in conversations.jsonl; "" = as the questionnaire '
        "says.",
        "",
    )
    keep_inattentive: bool = setting(
        "The report counts also those who fail the attention check.", False
    )
    pilot: int = setting(
        "So many simulated participants go through the real pages, in a folder of their own, and "
        "then comes the report.",
        0,
        least=0,
        most=10_000,
    )
    pilot_noise: float = setting(
        "Standard deviation of a simulated participant's ratings, on a scale of 1 to 5.",
        0.7,
        least=0,
    )
    report: bool = setting("Write the report and the data of a study, and serve nothing.", False)
    judge: bool = setting(
        "The report also asks an LLM to rate the conversations: that of the run's evaluation "
        "(--config.evaluation.prompted=plain --config.llm.model=...), with its limit on cost.",
        False,
    )
    power: bool = setting(
        "Say how many participants would show a difference of `effect`, and serve nothing.", False
    )
    effect: float = setting("Difference of two agents that --power looks for.", 0.5, above=0)
    spread: float = setting(
        "Standard deviation of a participant's rating of an agent, about the participant's own "
        "mean; for --power.",
        1.0,
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.return_url and not self.return_url.startswith(("https://", "http://")):
            raise SettingError("return_url", self.return_url, "must begin with https://")
