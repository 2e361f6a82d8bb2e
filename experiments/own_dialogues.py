"""Dialogues of a user's own: chat-format JSON Lines, a folder of them, or a `datasets` name.

    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}],
     "reward": 1.0, "id": "d1", "split": "train"}

`messages` are required, and a reward: of the dialogue, or of messages of the assistant. `id`,
`split` (train or test), `persona`, `source` and `terminal` may be there. Everything that cannot be
learned from is told with file, line and field.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import DataConfig, TaskConfig
from ilql_jax.errors import UserError, shown
from imagination.dialogue import Dialogue, DialogueError
from imagination.plain_data import json_lines
from imagination.task import Task

PARTS = ("train", "test")
FIELDS = ("messages", "reward", "split", "terminal", "id", "persona", "source", "task")
FIELDS_OF_MESSAGES = ("role", "content", "reward", "learn", "clone", "credit", "annotations")
_MOST_NAMED = 5  # fields that are not read


class OwnDataError(UserError, ValueError):
    """Dialogues that cannot be used. The message names place and field, and the way out."""


def read(data: DataConfig) -> tuple[list[Dialogue], list[str]]:
    """Reads all dialogues; each is marked with its part, train or test.

    Returns:
        The dialogues, and facts about them, a sentence each.

    Raises:
        OwnDataError: Nothing there, or dialogues that cannot be learned from or split.
        DialogueError: A record that is no dialogue.
    """
    places: dict[str, str] = {}
    dialogues = []
    unread: Counter[str] = Counter()
    for where, record, part in _records(data.path):
        dialogue = _dialogue(record, where)
        unread.update(_unread(record))
        if dialogue.id in places:
            raise OwnDataError(
                f"{where}, field 'id': {dialogue.id!r} is the id of {places[dialogue.id]} too. Ids "
                "decide which dialogues are set apart: give each its own, or leave them out."
            )
        places[dialogue.id] = where
        part = _part(record, where, part) or _hashed_part(dialogue.id, data.test_share)
        source = {"kind": "human", **dialogue.source, "part": part}
        dialogues.append(dataclasses.replace(dialogue, source=source))
    if not dialogues:
        raise OwnDataError(
            f"{data.path} holds no dialogue. Give a file with one JSON object a line."
        )
    counts = {part: sum(d.source["part"] == part for d in dialogues) for part in PARTS}
    for part, way_out in (
        ("train", 'Lower config.data.test_share, or mark some with "split": "train"'),
        ("test", 'Raise config.data.test_share, or mark some with "split": "test"'),
    ):
        if not counts[part]:
            raise OwnDataError(
                f"{data.path}: none of the {len(dialogues):,} dialogues is in the part {part!r}. "
                f"{way_out}."
            )
    facts = [
        f"Dialogues of {data.path}: {counts['train']:,} to learn from, {counts['test']:,} set "
        "apart for evaluation."
    ]
    return dialogues, facts + _told_of(unread)


def task_of(dialogues: list[Dialogue], given: TaskConfig, name: str) -> Task:
    """The task of the dialogues: as set in config.task, the rest by what the dialogues show.

    A dialogue counts as a success in the upper half of the rewards' range; `task.yaml`, which may
    be edited, says where that begins.
    """
    rewards = [dialogue.total_reward for dialogue in dialogues]
    least, most = min(rewards), max(rewards)
    low, high = given.reward_range or (least, most)
    if not low <= least <= most <= high:
        raise OwnDataError(
            f"config.task.reward_range is {low:g} to {high:g}, but the rewards of the dialogues go "
            f"from {least:g} to {most:g}. Widen it, or leave it out."
        )
    high = high if high > low else low + max(1.0, abs(low))
    middle = given.success_reward is None
    turns = max(len(dialogue.agent_turns) for dialogue in dialogues)
    return Task(
        name=name or "own_data",
        description=given.description or "Dialogues between a user and an assistant.",
        agent_role=given.agent_role or "assistant",
        human_role=given.human_role or "user",
        persona_axes=dict(given.persona_axes or {}),
        reward_range=(low, high),
        success_reward=(low + high) / 2 if middle else given.success_reward,
        max_turns=given.max_turns or turns,
        criteria=given.criteria,
        success=given.success or ("a reward in the upper half of its range" if middle else ""),
        reward_unit=given.reward_unit,
    )


# --- one dialogue -------------------------------------------------------------------------------


def _dialogue(record: Any, where: str) -> Dialogue:
    """Raises `DialogueError` or `OwnDataError` for a record that cannot be learned from."""
    dialogue = Dialogue.from_json(record, where)
    if dialogue.id == where:
        dialogue = dataclasses.replace(dialogue, id=_short(where))
    if not dialogue.agent_turns:
        raise OwnDataError(
            f"{where}, field 'messages': no message has the role assistant, so there is nothing to "
            "learn from it. Leave this dialogue out."
        )
    if dialogue.reward is not None:
        return dialogue
    messages = record["messages"]
    rated = [m for m in messages if m.get("role") == "assistant" and m.get("reward") is not None]
    if not rated:
        raise OwnDataError(
            f"{where}: no reward. Give the dialogue a field 'reward', or messages of the assistant."
        )
    return dataclasses.replace(dialogue, reward=0.0)


def _unread(record: Mapping[str, Any]) -> set[str]:
    """Fields of a dialogue, and of its messages, that nothing reads."""
    of_messages = {name for message in record["messages"] for name in message}
    own = record.keys() - set(FIELDS)
    return own | {f"messages[].{name}" for name in of_messages - set(FIELDS_OF_MESSAGES)}


def _told_of(unread: Counter[str]) -> list[str]:
    """A sentence on fields that nothing reads, with what was probably meant."""
    if not unread:
        return []
    told = []
    for field, count in unread.most_common(_MOST_NAMED):
        of_messages = field.startswith("messages[].")
        known = [f"messages[].{name}" for name in FIELDS_OF_MESSAGES] if of_messages else FIELDS
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.8)
        meant = f" (did you mean {close[0]}?)" if close else ""
        told.append(f"{shown(field, 60)} in {count:,}{meant}")
    others = len(unread) - len(told)
    more = f" and {others} others" if others else ""
    return [f"Fields that are not read, and in how many dialogues: {', '.join(told)}{more}."]


def _part(record: Mapping[str, Any], where: str, of_dataset: str | None) -> str | None:
    """The part that a record names, or its dataset; None = neither does."""
    part = of_dataset if record.get("split") is None else record["split"]
    if part is not None and part not in PARTS:
        raise OwnDataError(
            f"{where}, field 'split': {shown(part)!r}, but must be train or test, or be left out."
        )
    return part


def _hashed_part(identifier: str, test_share: float) -> str:
    """The part by the id alone: it stays when other dialogues are added."""
    digest = hashlib.sha256(identifier.encode()).digest()
    return "test" if int.from_bytes(digest[:8]) / 2**64 < test_share else "train"


def _short(where: str) -> str:
    """`some/folder/file.jsonl, line 3` -> `file.jsonl:3`, an id that moves with the file."""
    place, _, line = where.rpartition(", line ")
    return f"{Path(place).name}:{line}" if line else where


# --- files --------------------------------------------------------------------------------------


def _records(path: str) -> Iterator[tuple[str, Any, str | None]]:
    """(place, record, part of its dataset) of everything that `config.data.path` names."""
    if not path:
        raise OwnDataError(
            "config.data.path is empty. Give a .jsonl file, a folder of them, or a name that "
            "`datasets` loads."
        )
    try:
        place = Path(path).expanduser()
        place.exists()
    except (OSError, ValueError, RuntimeError) as error:
        # A name too long for a file, with a NUL, or of a user that is not there.
        reason = getattr(error, "strerror", None) or error
        raise OwnDataError(f"config.data.path: {shown(path)!r} is no path ({reason}).") from None
    if place.is_dir():
        files = sorted(place.glob("*.jsonl"))
        if not files:
            raise OwnDataError(f"{path}: a folder without a .jsonl file. Give another.")
    elif place.exists():
        files = [place]
    elif place.suffix in (".jsonl", ".json") or place.is_absolute() or path.startswith((".", "~")):
        raise OwnDataError(f"config.data.path: there is no file {shown(path)!r}. Give another.")
    else:
        yield from _of_dataset(path)
        return
    for file in files:
        yield from ((where, record, None) for where, record in json_lines(file, DialogueError))


def _of_dataset(name: str) -> Iterator[tuple[str, Any, str | None]]:
    """Records of a Hugging Face dataset, whose splits train and test are the parts."""
    try:
        import datasets
    except ImportError:
        raise OwnDataError(
            f"config.data.path: there is no file or folder {name!r}; to load it with `datasets`, "
            "install that (pip install 'ilql-jax[datasets]')."
        ) from None
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # datasets raises of many kinds; all say that it cannot be loaded
        raise OwnDataError(
            f"config.data.path: {name!r} is no file, and `datasets` cannot load it: {error}"
        ) from None
    for split, rows in loaded.items():
        part = split if split in PARTS else None
        for number, row in enumerate(rows):
            yield f"{name}, split {split}, row {number}", _plain(row), part


def _plain(value: Any) -> Any:
    """Values of a row as JSON has them; fields that are null are left out."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value
