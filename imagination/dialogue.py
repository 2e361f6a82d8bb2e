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
from imagination.checks import is_finite, require, without_surrogates

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
            _require(isinstance(content, str), where, f"{field}.content", content, "a string")
            if role == "system":
                _require(index == 0, where, f"{field}.role", role, "system only as first message")
                system = without_surrogates(content)
                continue
            known = role in SPEAKER_OF_ROLE
            _require(known, where, f"{field}.role", role, "system, user or assistant")
            turns.append(_turn(message, where, field))
        reward = record.get("reward")
        _require(
            reward is None or is_finite(reward),
            where,
            "reward",
            reward,
            "a finite number, or null where nobody rated the dialogue",
        )
        terminal = record.get("terminal", True)
        _require(isinstance(terminal, bool), where, "terminal", terminal, "true or false")
        persona, source = record.get("persona") or {}, record.get("source") or {}
        _require(isinstance(persona, dict), where, "persona", persona, "an object axis -> value")
        _require(isinstance(source, dict), where, "source", source, "an object")
        return cls(
            id=str(record.get("id", where)),
            task=str(record.get("task", "")),
            turns=tuple(turns),
            reward=None if reward is None else float(reward),
            persona=persona,
            source=source,
            system=system,
            terminal=terminal,
        )


def _turn(message: Mapping[str, Any], where: str, field: str) -> Turn:
    """The turn of a message whose role and content are known to be right."""
    reward = message.get("reward") or 0.0
    _require(is_finite(reward), where, f"{field}.reward", reward, "a finite number")
    marks = {name: message.get(name) for name in ("learn", "clone", "credit")}
    for name, value in marks.items():
        known = value is None or isinstance(value, bool)
        _require(known, where, f"{field}.{name}", value, "true or false")
    return Turn(
        SPEAKER_OF_ROLE[message["role"]],
        without_surrogates(message["content"]),
        float(reward),
        message.get("annotations") or {},
        learn=bool(marks["learn"]),
        clone=marks["clone"],
        credit=marks["credit"],
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
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8")
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise DialogueError(
                    f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}). Repair or "
                    "delete this line."
                ) from None
            except json.JSONDecodeError as error:
                raise DialogueError(
                    f"{where}: not valid JSON ({error.msg} at column {error.colno}): "
                    f"{line.strip()[:80]!r}. Repair or delete this line."
                ) from None
            yield Dialogue.from_json(record, where)


def _require(condition: bool, where: str, field: str, value: Any, expected: str) -> None:
    require(condition, DialogueError, where, field, value, expected)
