"""`Dialogue`: one finished conversation, and JSON Lines in the chat format.

Everything above the token level speaks in dialogues: worlds and engines write them, corpora are
read into them, `tokenization.py` turns them into trajectories. On disk a dialogue is one JSON
object a line that `datasets.load_dataset("json")` and TRL read as is (see `Dialogue.to_json`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ilql_jax.errors import UserError

Speaker = Literal["human", "agent"]

ROLE_OF_SPEAKER = {"human": "user", "agent": "assistant"}
SPEAKER_OF_ROLE = {role: speaker for speaker, role in ROLE_OF_SPEAKER.items()}


class DialogueError(UserError, ValueError):
    """A dialogue that cannot be used. The message names the place, the value and the way out."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side said in one go.

    Attributes:
        speaker: `"human"` or `"agent"`.
        text: The utterance.
        reward: Reward received on this agent turn, beside the dialogue's rating at its end.
        annotations: What the speaker wants to be remembered of the turn and nobody in the
            conversation sees (e.g. values of the policy). Plain JSON values.
    """

    speaker: Speaker
    text: str
    reward: float = 0.0
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation between a human and an agent, with its outcome.

    Attributes:
        id: Unique within its file.
        task: Name of the task.
        turns: Who said what, in order.
        reward: Rating of the finished dialogue on the task's scale; None where nobody rated it.
        persona: What is hidden about the human, axis -> value; empty where unknown.
        source: Where it came from: `kind` (imagined, critiqued, regenerated, simulated, human)
            and whatever else is known (behaviour, parent, seed, ...). Plain JSON values.
        system: The task description that a chat model would be given, if any.
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
        """The dialogue in the chat format: `messages` (role, content) plus what we know of it."""
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
        _require(
            isinstance(messages, list) and bool(messages),
            where,
            "messages",
            messages,
            'a non-empty list of {"role", "content"}',
        )
        system, turns = None, []
        for index, message in enumerate(messages):
            field = f"messages[{index}]"
            _require(isinstance(message, dict), where, field, message, "an object")
            role, content = message.get("role"), message.get("content")
            _require(isinstance(content, str), where, f"{field}.content", content, "a string")
            if role == "system":
                _require(index == 0, where, f"{field}.role", role, "system only as first message")
                system = content
                continue
            _require(
                role in SPEAKER_OF_ROLE, where, f"{field}.role", role, "system, user or assistant"
            )
            reward = message.get("reward") or 0.0
            _require(_is_finite(reward), where, f"{field}.reward", reward, "a finite number")
            turns.append(
                Turn(
                    SPEAKER_OF_ROLE[role], content, float(reward), message.get("annotations") or {}
                )
            )
        reward = record.get("reward")
        _require(
            reward is None or _is_finite(reward),
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


def write_dialogues(path: str | os.PathLike[str], dialogues: Iterable[Dialogue]) -> None:
    """Writes JSON Lines, whole or not at all: a killed writer leaves the old file in place.

    In the order given, but for a dialogue that comes late and is the first with some field
    (regenerated ones behind their originals): that one goes to the front, since `datasets` learns
    the fields of a file from its beginning and fails on one that turns up later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(_fields_first(dialogues))
    partial.replace(path)


# `datasets` reads 10 MiB at first; what moves to the front needs some of it.
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
    """Like `read_dialogues`, one at a time."""
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


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _require(condition: bool, where: str, field: str, value: Any, expected: str) -> None:
    if not condition:
        place = f"{where}, field {field!r}" if field else where
        raise DialogueError(f"{place}: expected {expected}, got {str(value)[:80]!r}.")
