"""`Dialogue`: one finished conversation, and JSON Lines in the chat format.

Worlds and the imagination engine write dialogues, corpora are read into them, `tokenization.py`
turns them into trajectories. On disk a dialogue is one JSON object a line that
`datasets.load_dataset("json")` and TRL read as is (see `Dialogue.to_json`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ilql_jax.errors import UserError
from imagination.checks import (
    MOST_REWARD,
    is_finite,
    is_reward,
    is_whole,
    require,
    without_surrogates,
)
from imagination.plain_data import json_lines, plain

Speaker = Literal["human", "agent"]

ROLE_OF_SPEAKER = {"human": "user", "agent": "assistant"}
SPEAKER_OF_ROLE = {role: speaker for speaker, role in ROLE_OF_SPEAKER.items()}


class DialogueError(UserError, ValueError):
    """A dialogue that cannot be used. The message names the place, the value and the way out."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: `"human"` or `"agent"`.
        text: The utterance.
        reward: Reward received on this agent turn, beside the dialogue's rating at its end.
        annotations: Notes of the speaker that nobody in the conversation sees (e.g. values of the
            policy). Plain JSON values.
        learn: Marks an agent turn for training with `loss_on="marked"`.
        clone: True where the policy imitates this agent turn; None = as `loss_on` says.
        credit: True where the values learn from this agent turn; None = as `loss_on` says.
    """

    speaker: Speaker
    text: str
    reward: float = 0.0
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learn: bool = False
    clone: bool | None = None
    credit: bool | None = None


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation between a human and an agent, with its outcome.

    Attributes:
        id: Unique within its file.
        task: Name of the task.
        turns: The utterances in order.
        reward: Rating of the finished dialogue on the task's scale; None where nobody rated it.
        persona: Hidden traits of the human, axis -> value; empty where unknown.
        source: Origin: `kind` (imagined, critiqued, regenerated, simulated, human) and further
            facts (behaviour, parent, seed, ...). Plain JSON values.
        system: System message before the turns, if any; agents are trained with it.
        terminal: False where the dialogue was cut off and would have gone on.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    reward: float | None = None
    persona: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    system: str | None = None
    terminal: bool = True

    @property
    def total_reward(self) -> float:
        """The undiscounted return: rewards of the turns plus the rating at the end."""
        return sum(turn.reward for turn in self.turns) + (self.reward or 0.0)

    @property
    def agent_turns(self) -> tuple[Turn, ...]:
        return tuple(turn for turn in self.turns if turn.speaker == "agent")

    def to_json(self) -> dict[str, Any]:
        """The dialogue in the chat format: `messages` (role, content) and further fields."""
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            message: dict[str, Any] = {
                "role": ROLE_OF_SPEAKER[turn.speaker],
                "content": turn.text,
            }
            if turn.reward:
                message["reward"] = turn.reward
            if turn.annotations:
                message["annotations"] = dict(turn.annotations)
            if turn.learn:
                message["learn"] = True
            for name in ("clone", "credit"):
                if (value := getattr(turn, name)) is not None:
                    message[name] = value
            messages.append(message)
        return {
            "id": self.id,
            "task": self.task,
            "messages": messages,
            "reward": self.reward,
            "persona": dict(self.persona),
            "source": dict(self.source),
            "terminal": self.terminal,
        }

    @classmethod
    def from_json(cls, record: Any, where: str = "dialogue") -> Dialogue:
        """Inverse of `to_json`. Raises `DialogueError` naming `where` and the field at fault."""
        _require(isinstance(record, dict), where, "", record, "a JSON object")
        messages = record.get("messages")
        is_list = isinstance(messages, list) and bool(messages)
        expected = 'a non-empty list of {"role", "content"}'
        _require(is_list, where, "messages", messages, expected)
        system, turns = None, []
        for index, message in enumerate(messages):
            field = f"messages[{index}]"
            _require(isinstance(message, dict), where, field, message, "an object")
            role, content = message.get("role"), message.get("content")
            if not isinstance(content, str):  # asked first: the field's name takes longer to make
                _require(False, where, f"{field}.content", content, "a string")
            if role == "system":
                _require(index == 0, where, f"{field}.role", role, "system only as first message")
                _check_of_assistant(message, where, field)
                system = without_surrogates(content)
                continue
            if not isinstance(role, str) or role not in SPEAKER_OF_ROLE:
                _require(False, where, f"{field}.role", role, "system, user or assistant")
            turns.append(_turn(message, where, field))
        reward = record.get("reward")
        _require(
            reward is None or is_reward(reward),
            where,
            "reward",
            reward,
            f"{_REWARD}, or null where nobody rated the dialogue",
        )
        terminal = _given(record, "terminal", True)
        _require(isinstance(terminal, bool), where, "terminal", terminal, "true or false")
        return cls(
            id=_identifier(record, where),
            task=_text(record, "task", where),
            turns=tuple(turns),
            reward=None if reward is None else float(reward),
            persona=_persona(record, where),
            source=_source(record, where),
            system=system,
            terminal=terminal,
        )


def _given(record: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field that may be missing, which null says too."""
    value = record.get(name)
    return default if value is None else value


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    text = _given(record, name, "")
    _require(isinstance(text, str), where, name, text, "text")
    return without_surrogates(text)


def _identifier(record: Mapping[str, Any], where: str) -> str:
    """The id, or the place of a dialogue that has none."""
    identifier = _given(record, "id", "")
    known = isinstance(identifier, str) or is_whole(identifier)
    _require(known, where, "id", identifier, "text or a whole number")
    return without_surrogates(str(identifier)).strip() or where


def _object(record: Mapping[str, Any], name: str, where: str, outer: str = "") -> dict[str, Any]:
    """An object of plain values, which can be written again as they are."""
    found = record.get(name)
    if found is None:
        return {}
    field = f"{outer}.{name}" if outer else name
    _require(isinstance(found, Mapping), where, field, found, "an object name -> value")
    return plain(found, where, field, DialogueError)


def _persona(record: Mapping[str, Any], where: str) -> dict[str, str]:
    """Traits as text; those that are null are not known."""
    persona = {}
    for axis, value in _object(record, "persona", where).items():
        scalar = value is None or isinstance(value, str | int | float)
        _require(scalar, where, f"persona.{axis}", value, "text, a number, true or false")
        if value is not None:
            persona[axis] = str(value).lower() if isinstance(value, bool) else str(value)
    return persona


# Fields of a source that cards, tables and evaluation read; others may hold what they like.
_SOURCE: dict[str, Any] = {
    **dict.fromkeys(("kind", "way", "behaviour", "part", "ended_by"), str),
    **dict.fromkeys(("method", "population", "parent", "reason"), str),
    **dict.fromkeys(("turn", "round", "episode"), int),
    "difficult": bool,
    "outcome": float,
    "prior_probability": float,
    "models": {str: str},
    "prompts": {str: str},
    "critique": {
        "rounds": int,
        "verdicts": [[{"criterion": str, "fulfilled": bool}]],
        "changed": [[str]],
    },
    "rewards": dict.fromkeys(("outcome", "judge", "human", "judge_spread"), float),
}
_SHAPES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def _source(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    source = _object(record, "source", where)
    for name, value in source.items():
        if name in _SOURCE and value is not None:
            _require_shape(value, _SOURCE[name], where, f"source.{name}")
    return source


def _require_shape(value: Any, shape: Any, where: str, field: str) -> None:
    """Raises unless a value is of a type, or holds such: a list of one shape, or names -> shapes.

    Anything in an object may be null or missing, but for what stands in a list.
    """
    if isinstance(shape, list):
        _require(isinstance(value, list), where, field, value, "a list")
        for index, each in enumerate(value):
            _require_shape(each, shape[0], where, f"{field}[{index}]")
            if isinstance(shape[0], dict):
                missing = [name for name in shape[0] if each.get(name) is None]
                _require(not missing, where, f"{field}[{index}]", each, f"a field {missing[:1]}")
    elif isinstance(shape, dict):
        _require(isinstance(value, dict), where, field, value, "an object name -> value")
        for name, each in value.items():
            inner = shape.get(name, shape.get(str))
            if inner is not None and each is not None:
                _require_shape(each, inner, where, f"{field}.{name}")
    else:
        fits = {float: is_finite, int: is_whole}.get(shape, lambda each: isinstance(each, shape))
        _require(fits(value), where, field, value, _SHAPES[shape])


_OF_ASSISTANT = {
    "reward": "rewarded",
    **dict.fromkeys(("learn", "clone", "credit"), "learned from"),
}
_REWARD = f"a finite number, at most {MOST_REWARD:g} up or down"


def _check_of_assistant(message: Mapping[str, Any], where: str, field: str) -> None:
    """Raises for a message that is not the assistant's, but has what such messages alone have."""
    for name, done in _OF_ASSISTANT.items():
        if value := message.get(name):
            expected = f"none on a message of the {message['role']}: only those of the assistant"
            _require(False, where, f"{field}.{name}", value, f"{expected} are {done}")


def _turn(message: Mapping[str, Any], where: str, field: str) -> Turn:
    """The turn of a message whose role and content are known to be right."""
    reward = message.get("reward") or 0.0
    if reward:
        _require(is_reward(reward), where, f"{field}.reward", reward, _REWARD)
    if message["role"] != "assistant":
        _check_of_assistant(message, where, field)
    for name in ("learn", "clone", "credit"):
        value = message.get(name)
        if value is not None:
            known = isinstance(value, bool)
            _require(known, where, f"{field}.{name}", value, "true or false")
    return Turn(
        SPEAKER_OF_ROLE[message["role"]],
        without_surrogates(message["content"]),
        float(reward),
        _object(message, "annotations", where, field),
        learn=bool(message.get("learn")),
        clone=message.get("clone"),
        credit=message.get("credit"),
    )


def usual_system(dialogues: Iterable[Dialogue]) -> str | None:
    """The most frequent system message, None counted too; for agents trained on these dialogues."""
    counts = Counter(dialogue.system for dialogue in dialogues)
    return counts.most_common(1)[0][0] if counts else None


def write_dialogues(path: str | os.PathLike[str], dialogues: Iterable[Dialogue]) -> None:
    """Writes JSON Lines, whole or not at all: a killed writer leaves the old file in place.

    The order is kept, but for a dialogue that comes late and is the first with some field
    (regenerated ones behind their originals): that one goes to the front, since `datasets` learns
    the fields of a file from its beginning and fails on one that turns up later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(_fields_first(dialogues))
    partial.replace(path)


# `datasets` reads 10 MiB at first; lines that move to the front need some of it.
_READ_AT_FIRST = 8_000_000


def _fields_first(dialogues: Iterable[Dialogue]) -> list[bytes]:
    """The lines of a file, those that show a field for the first time among the first ones."""
    moved, rest, known, size = [], [], set(), 0
    for dialogue in dialogues:
        line, fields = json_line(dialogue).encode(), set(_typed_fields(dialogue.to_json()))
        is_late = size > _READ_AT_FIRST and not fields <= known
        (moved if is_late else rest).append(line)
        known |= fields
        size += len(line)
    return moved + rest


def _typed_fields(value: Any, place: str = "") -> Iterator[tuple[str, type]]:
    """(place, type) of everything in a record; null has no type."""
    if value is None:
        return
    yield place, type(value)
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _typed_fields(each, f"{place}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from _typed_fields(each, f"{place}[]")


def json_line(dialogue: Dialogue) -> str:
    """One line of a dialogues file, newline included."""
    return json.dumps(dialogue.to_json(), ensure_ascii=False, allow_nan=False) + "\n"


def read_dialogues(path: str | os.PathLike[str]) -> list[Dialogue]:
    """Reads a dialogues file.

    Raises:
        FileNotFoundError: No such file.
        DialogueError: A line that is not a dialogue; the message names file, line and field.
    """
    dialogues = list(iterate_dialogues(path))
    if not dialogues:
        raise DialogueError(f"{path} holds no dialogue. Delete it, and it is made again.")
    return dialogues


def iterate_dialogues(path: str | os.PathLike[str]) -> Iterator[Dialogue]:
    """Reads a dialogues file one dialogue at a time; errors as of `read_dialogues`."""
    for where, record in json_lines(path, DialogueError):
        yield Dialogue.from_json(record, where)


def place_of(path: str | os.PathLike[str], index: int) -> str:
    """Place of a dialogue of a file, "file, line 3"; the first has the index 0."""
    records = json_lines(path, DialogueError)
    return next(where for number, (where, _) in enumerate(records) if number == index)


def _require(condition: bool, where: str, field: str, value: Any, expected: str) -> None:
    require(condition, DialogueError, where, field, value, expected)
