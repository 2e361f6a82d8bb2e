"""ESConv: somebody in distress (the seeker) talks with a supporter, in a chat.

The reward is how far the seeker's emotion intensity fell, from 1 to 5 by their own account before
and after: (before - after) / 4, so 1 is from 5 to 1 and each point counts the same. Where the
feeling grew stronger the reward is 0, as where it stayed: with rewards that begin at 0, a longer
conversation is worth no less for being longer. Both intensities stay in `source`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilql_jax.errors import shown
from imagination.checks import require, without_surrogates
from imagination.corpora.corpus import (
    Corpus,
    CorpusError,
    Reading,
    ReadOptions,
    decode,
    join_utterances,
    tells_unreadable,
)
from imagination.dialogue import Dialogue, Speaker, Turn
from imagination.task import Task

LICENCE = "CC BY-NC 4.0: for research, not for commercial use"
HOMEPAGE = "https://github.com/thu-coai/Emotional-Support-Conversation"
ESCONV_HELP = f"""\
ESConv (Liu et al., ACL 2021, arXiv 2106.01144; {LICENCE}) is published at
{HOMEPAGE}: ESConv.json, and FailedESConv.json with
conversations that its authors left out. Download either and name it, or both into one folder and
name that: --config.data.path=ESConv.json"""

FILES = ("ESConv.json", "FailedESConv.json")
STRONGEST, WEAKEST = 5, 1  # emotion intensity, and every other score of the survey

_INITIAL, _FINAL = "initial_emotion_intensity", "final_emotion_intensity"
# FailedESConv.json calls the seeker `speaker` and the supporter `listener`.
_SIDES: dict[str, Speaker] = {
    **{"seeker": "human", "speaker": "human"},
    **{"supporter": "agent", "listener": "agent"},
}
# Earlier names, in a few dialogues, of the eight strategies.
_RENAMED_STRATEGIES = {
    "Questions": "Question",
    "Others": "Other",
    "Restatement": "Restatement or Paraphrasing",
    "Approval and Reassurance": "Affirmation and Reassurance",
    "Direct Guidance": "Providing Suggestions",
}
_PERSONA = ("problem_type", "emotion_type", "experience_type")


def read_esconv(path: str | os.PathLike[str]) -> list[Dialogue]:
    """Reads ESConv (arXiv 2106.01144).

    The supporter is the agent, the seeker the human. What one side says in several utterances
    without a reply becomes one turn.

    Args:
        path: `ESConv.json` or `FailedESConv.json` as published, or a folder that holds one of them
            or both.

    Returns:
        The dialogues in the order of the files; `reward` is None where one of the two intensities
        is not known. A turn of the agent is annotated with the `strategies` of its utterances.
        `persona` has the problem, the emotion, whether the experience is current, and the
        intensity beforehand; `source` what the seeker wrote of their `situation`, the `survey`
        afterwards, and `feedback`: the scores that the seeker gave on the way, at which turn.

    Raises:
        CorpusError: A file that is missing or not of this format, a dialogue in which one side
            never speaks or whose sides are swapped, a score that is not a whole number from 1 to 5.
    """
    path = Path(path)
    files = [path / name for name in FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise CorpusError(f"Neither {' nor '.join(FILES)} in {path}.\n{ESCONV_HELP}")
    if not files[0].is_file():
        raise CorpusError(f"No such file: {path}.\n{ESCONV_HELP}")
    return [dialogue for file in files for dialogue in _read_file(file)]


def reward(initial: int, final: int) -> float:
    """Fall of the intensity, from 0 (not at all, or it rose) to 1 (from 5 to 1)."""
    return max(0, initial - final) / (STRONGEST - WEAKEST)


def _read_file(path: Path) -> list[Dialogue]:
    try:
        records = json.loads(decode(path.read_bytes()))
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}).\n"
            f"{ESCONV_HELP}"
        ) from None
    except (ValueError, RecursionError):
        raise CorpusError(
            f"{path}: lists in lists without end, or a number of thousands of digits.\n"
            f"{ESCONV_HELP}"
        ) from None
    if not isinstance(records, list) or not records:
        raise CorpusError(
            f"{path}: expected a list of dialogues, got {shown(records)!r}.\n{ESCONV_HELP}"
        )
    return [_dialogue(record, path, index) for index, record in enumerate(records)]


def _dialogue(record: Any, path: Path, index: int) -> Dialogue:
    where = f"{path}, dialogue {index} (the first is 0)"
    record = _typed(record, dict, where, "", "an object")
    turns = _turns(record.get("dialog"), where)
    survey = _survey(record, where)
    seeker = survey.get("seeker", {})
    persona = {name: _label(record, name, where) for name in _PERSONA}
    persona["initial_intensity"] = str(seeker.get(_INITIAL, ""))
    source = {
        "kind": "human",
        "corpus": "ESConv",
        "file": path.name,
        "situation": _label(record, "situation", where),
        "survey": survey,
        "feedback": [
            {"turn": number, "score": score}
            for number, turn in enumerate(turns)
            for score in turn.annotations.get("feedback", ())
        ],
    }
    known = _INITIAL in seeker and _FINAL in seeker
    return Dialogue(
        id=f"{path.stem}-{index}",
        task="counseling",
        turns=tuple(
            turn if turn.speaker == "agent" else dataclasses.replace(turn, annotations={})
            for turn in turns
        ),
        reward=reward(seeker[_INITIAL], seeker[_FINAL]) if known else None,
        persona={axis: value for axis, value in persona.items() if value},
        source=source,
    )


def _turns(utterances: Any, where: str) -> tuple[Turn, ...]:
    utterances = _typed(utterances, list, where, "dialog", "a list of utterances")
    all_turns = [
        _utterance(each, where, f"dialog[{index}]") for index, each in enumerate(utterances)
    ]
    turns = join_utterances(turn for turn in all_turns if turn.text)
    silent = {"agent", "human"} - {turn.speaker for turn in turns}
    if silent:
        who = {"agent": "supporter", "human": "seeker"}[min(silent)]
        raise CorpusError(f"{where}: the {who} never speaks. Complete or delete the dialogue.")
    return turns


def _utterance(record: Any, where: str, field: str) -> Turn:
    """One utterance, with what was annotated of it: `strategies`, or the seeker's `feedback`."""
    record = _typed(record, dict, where, field, "an object")
    side = record.get("speaker")
    expected = "seeker or supporter (in FailedESConv.json: speaker or listener)"
    known = isinstance(side, str) and side in _SIDES
    _require(known, where, f"{field}.speaker", side, expected)
    words = _typed(record.get("content"), str, where, f"{field}.content", "text")
    notes = record.get("annotation") or {}
    notes = _typed(notes, dict, where, f"{field}.annotation", "an object")
    speaker = _SIDES[side]
    foreign, owner = ("strategy", "supporter") if speaker == "human" else ("feedback", "seeker")
    _require(
        not notes.get(foreign),
        where,
        f"{field}.annotation.{foreign}",
        notes.get(foreign),
        f"none on an utterance of {side!r}, since only the {owner}'s have one (are the sides "
        "swapped?)",
    )
    annotations: dict[str, Any] = {}
    if speaker == "agent" and (strategy := _label(notes, "strategy", where, f"{field}.annotation")):
        annotations["strategies"] = _RENAMED_STRATEGIES.get(strategy, strategy)
    if speaker == "human":
        score = _score(notes.get("feedback"), where, f"{field}.annotation.feedback")
        if score is not None:
            annotations["feedback"] = score
    return Turn(speaker, _clean(words), annotations=annotations)


def _survey(record: Mapping[str, Any], where: str) -> dict[str, dict[str, int]]:
    """Side -> question -> score, as far as they were answered."""
    answers = _typed(record.get("survey_score") or {}, dict, where, "survey_score", "an object")
    survey = {}
    for side, side_answers in answers.items():
        field = f"survey_score.{side}"
        by_name = _typed(side_answers or {}, dict, where, field, "an object")
        scores = {name: _score(value, where, f"{field}.{name}") for name, value in by_name.items()}
        survey[side] = {name: score for name, score in scores.items() if score is not None}
    return survey


def _score(value: Any, where: str, field: str) -> int | None:
    """A score from 1 to 5, which the files hold as text; None where it was not given."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    _require(
        number in range(WEAKEST, STRONGEST + 1),
        where,
        field,
        value,
        f"a whole number from {WEAKEST} to {STRONGEST}, or nothing where it is not known",
    )
    return int(number)


def _label(record: Mapping[str, Any], name: str, where: str, field: str = "") -> str:
    """A text that may be missing."""
    place = f"{field}.{name}" if field else name
    return _clean(_typed(record.get(name) or "", str, where, place, "text"))


def _clean(text: str) -> str:
    """Whitespace as single spaces; halves of signs, which JSON can hold and UTF-8 cannot, as ?."""
    return " ".join(without_surrogates(text).split())


def _typed(value: Any, kind: type, where: str, field: str, expected: str) -> Any:
    _require(isinstance(value, kind), where, field, value, expected)
    return value


def _require(condition: bool, where: str, field: str, value: Any, expected: str) -> None:
    way_out = "Correct it, or delete the dialogue."
    require(condition, CorpusError, where, field, value, expected, way_out)


def _task(_: ReadOptions) -> Task:
    return Task(
        name="counseling",
        description=(
            "A person in distress (the seeker) writes to a supporter, whom they do not know, in a "
            "chat. The supporter finds out what the matter is, listens, comforts, and helps the "
            "seeker to cope. Before and after, the seeker says how strong the feeling is, from 1 "
            "(hardly there) to 5 (overwhelming); what counts is how far it fell."
        ),
        agent_role="supporter",
        human_role="seeker",
        persona_axes={},
        reward_range=(0.0, 1.0),
        success_reward=reward(2, 1),
        max_turns=20,
        success=(
            "The seeker's feeling, from 1 to 5 by their own account, is weaker than before by at "
            "least one point; each point counts 0.25."
        ),
    )


@tells_unreadable
def _read(path: Path, options: ReadOptions) -> Reading:
    everything = read_esconv(path)
    dialogues = with_outcome(everything, options.missing_outcome)
    if not dialogues:
        raise CorpusError(
            f"{path}: none of {len(everything):,} dialogues has both intensities in its survey, so "
            "nothing is known of how they ended. missing_outcome=unchanged keeps them."
        )
    return Reading(dialogues, _notes(everything, options.missing_outcome))


def with_outcome(dialogues: list[Dialogue], missing_outcome: str) -> list[Dialogue]:
    """Leaves out the dialogues without reward, or gives them that of an unchanged feeling."""
    if missing_outcome == "drop":
        return [dialogue for dialogue in dialogues if dialogue.reward is not None]
    return [
        dialogue if dialogue.reward is not None else dataclasses.replace(dialogue, reward=0.0)
        for dialogue in dialogues
    ]


def _notes(dialogues: list[Dialogue], missing_outcome: str) -> tuple[str, ...]:
    unknown = sum(dialogue.reward is None for dialogue in dialogues)
    seekers = [d.source["survey"]["seeker"] for d in dialogues if d.reward is not None]
    stronger = sum(seeker[_FINAL] > seeker[_INITIAL] for seeker in seekers)
    done = {"drop": "they are left out", "unchanged": "it is taken as not weaker, reward 0"}
    notes = []
    if unknown:
        notes.append(
            f"{unknown} of {len(dialogues):,} dialogues do not tell how strong the feeling was "
            f"before or after; {done[missing_outcome]} (missing_outcome={missing_outcome})."
        )
    if stronger:
        notes.append(
            f"In {stronger} of {len(seekers):,} rated dialogues the feeling grew stronger; their "
            "reward is 0, as where it stayed."
        )
    return tuple(notes)


ESCONV = Corpus(
    name="esconv",
    title="ESConv",
    licence=LICENCE,
    homepage=HOMEPAGE,
    task=_task,
    read=_read,
)
