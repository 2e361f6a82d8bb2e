"""`EngineConfig`: number and kind of the imagined dialogues, and who rates them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ilql_jax.errors import UserError
from ilql_jax.settings import SettingError, Settings, setting
from imagination.llm.play import WAYS
from imagination.persona_sampling import PersonaSampling
from imagination.task import MOST_TURNS, Task

REWARDS = ("outcome", "judge", "human")
ON_FLAWS = ("count", "drop", "rewrite")
ON_FAILED_CRITIQUE = ("apart", "keep")
AT_LIMIT = ("stop", "use")
# Steps that may have a model of their own -> what for.
PURPOSE_OF_STEP = {
    "engine/critique": "critic",
    "judge/rating": "judge",
    "engine/human": "human",
    "engine/rating": "human",
}
PURPOSES = tuple(dict.fromkeys(PURPOSE_OF_STEP.values()))


class EngineError(UserError, RuntimeError):
    """The engine cannot go on. The message says what happened and the way out."""


@dataclasses.dataclass(frozen=True)
class EngineConfig(Settings):
    """Settings of the imagination engine.

    Raises:
        SettingError: A value out of bounds; its message names the field and its bounds.
    """

    dialogues: int = setting(
        "Dialogues imagined. A larger number later keeps those that are there.",
        least=1,
        most=10_000_000,
    )
    way: str = setting(
        "script: a whole dialogue in one call, towards an outcome fixed beforehand; rollout: agent "
        "and human played in turn.",
        "rollout",
        choices=WAYS,
    )
    rewards: str = setting(
        "Source of a dialogue's reward: outcome (the one a script was written for), judge or "
        "human.",
        "human",
        choices=REWARDS,
    )
    also_rewards: tuple[str, ...] = setting(
        "Ratings computed beside it, for the dataset card's table of agreement.",
        (),
        choices=REWARDS,
    )
    outcomes: int = setting(
        "Levels of reward that scripts are written for, evenly spaced over the task's range; 2 = "
        "failure and success, as in the paper.",
        2,
        least=2,
        most=1000,
    )
    personas_per_call: int = setting("Personas described in one call.", 8, least=1, most=1000)
    details: bool = setting(
        "Each human has a name, an age, a home, a day, a way to begin and a way of talking, drawn "
        "from lists by seed and number, so that dialogues with one persona differ.",
        True,
    )
    language: str = setting(
        "Language of the dialogues, by its English name; empty = not said (that of the task's "
        "description, as a rule).",
        "",
    )
    style: str = setting("Style of speaking of both sides.", "everyday spoken language")
    length: str = setting("Length of what they say in a turn.", "one to three sentences")
    examples: tuple[str, ...] = setting(
        "Example utterances, from which an LLM takes the tone and not the words.", ()
    )
    critique_rounds: int = setting(
        "A dialogue is rewritten at most this often; 0 = no critique.", 1, least=0, most=100
    )
    failed_critique: str = setting(
        "Dialogues that fail a criterion after the last rewriting are kept apart in rejected.jsonl "
        "and not learned from (apart), or learned from like the others (keep).",
        "apart",
        choices=ON_FAILED_CRITIQUE,
    )
    flaws: str = setting(
        "Dialogues with flaws that the words alone show (said twice, spoken for the other side, "
        "the prompt recited, traits named outright, another language, no end) are counted in the "
        "dataset card (count), kept apart too (drop), or rewritten like those that the critique "
        "fails, and kept apart if they still have one (rewrite).",
        "count",
        choices=ON_FLAWS,
    )
    judge_votes: int = setting("Ratings of which the judge's is the mean.", 3, least=1, most=1000)
    max_turns: int = setting(
        "Agent turns of a dialogue at most; 0 = the task's.", 0, least=0, most=MOST_TURNS
    )
    conversations: int = setting(
        "Dialogues under way at the same time (all of them in batches).",
        256,
        least=1,
        shapes_result=False,
    )
    at_limit: str = setting(
        "When config.llm.max_cost is reached: stop, with all answers kept, or go on with the "
        "dialogues that are finished (use).",
        "stop",
        choices=AT_LIMIT,
        shapes_result=False,
    )
    seed: int = setting("Seed of personas, outcomes and behaviours.", 0, least=0)
    sampling: PersonaSampling = setting(
        "Choice of personas; a task has no prior but an even one, and prior is uniform.",
        PersonaSampling(),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.way == "rollout" and "outcome" in self.reward_sources:
            field = "rewards" if self.rewards == "outcome" else "also_rewards"
            raise SettingError(
                field,
                getattr(self, field),
                "must be judge or human with way='rollout', where no outcome is fixed beforehand "
                "(way='script' fixes one)",
            )

        for name in ("style", "length"):
            if not getattr(self, name).strip():
                raise SettingError(name, getattr(self, name), "must say how, in words")
        if self.flaws == "rewrite" and not self.critique_rounds:
            problem = "must be count or drop where critique_rounds is 0, as nothing is rewritten"
            raise SettingError("flaws", self.flaws, problem)

    @property
    def speech(self) -> dict[str, Any]:
        """Manner of speaking of both sides, for the templates."""
        fields = ("language", "style", "length", "examples")
        return {field: getattr(self, field) for field in fields}

    @property
    def reward_sources(self) -> tuple[str, ...]:
        """All ratings that are computed, the dialogue's reward first."""
        return tuple(dict.fromkeys((self.rewards, *self.also_rewards)))

    def turn_limit(self, task: Task) -> int:
        """Agent turns of a dialogue at most."""
        return self.max_turns or task.max_turns
