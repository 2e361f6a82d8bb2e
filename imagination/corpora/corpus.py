"""Pieces that the readers of human corpora share."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ilql_jax.errors import UserError, shown
from imagination.dialogue import Dialogue, Turn
from imagination.task import Task

MISSING_OUTCOME = ("drop", "unchanged")


class CorpusError(UserError, ValueError):
    """A corpus that cannot be read. The message names file, place and value, and the way out."""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Choices that a corpus leaves open; each reader takes those of its corpus.

    Attributes:
        max_reward: PersuasionForGood: the reward of whoever gave more than this, in dollars.
        missing_outcome: ESConv: what becomes of dialogues whose seeker did not say how strong the
            feeling was before or after. `drop` leaves them out; `unchanged` takes the feeling as
            not weaker, reward 0. In FailedESConv.json their dialogues are half as long as others:
            many left early, and leaving them out leaves out the least helpful.

    Raises:
        CorpusError: A value that cannot be.
    """

    max_reward: float = 2.0
    missing_outcome: str = "drop"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_reward) and self.max_reward > 0):
            raise CorpusError(
                f"max_reward is {self.max_reward}, but must be a positive number of dollars."
            )
        if self.missing_outcome not in MISSING_OUTCOME:
            raise CorpusError(
                f"missing_outcome is {self.missing_outcome!r}, but must be one of "
                f"{', '.join(MISSING_OUTCOME)}."
            )


@dataclasses.dataclass(frozen=True)
class Reading:
    """A corpus as read.

    Attributes:
        dialogues: All of them rated.
        notes: Changes made while reading that affect its use, a sentence each, with counts.
    """

    dialogues: list[Dialogue]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A published corpus.

    Attributes:
        name: As settings call it.
        title: As its authors call it.
        licence: And what it does not allow.
        homepage: Address at which its authors publish it.
        task: Subject of its dialogues, the two roles, and the scale of their rating.
        read: Its dialogues, from a path. Raises `CorpusError`.
    """

    name: str
    title: str
    licence: str
    homepage: str
    task: Callable[[ReadOptions], Task]
    read: Callable[[Path, ReadOptions], Reading]


def tells_unreadable(
    read: Callable[[Path, ReadOptions], Reading],
) -> Callable[[Path, ReadOptions], Reading]:
    """Makes a `CorpusError` of a path that cannot be read (a name too long, no permission)."""

    @functools.wraps(read)
    def told(path: Path, options: ReadOptions) -> Reading:
        try:
            return read(path, options)
        except OSError as error:
            reason = error.strerror or error
            raise CorpusError(
                f"{shown(path, 300)} cannot be read ({reason}). Give another config.data.path."
            ) from None

    return told


def join_utterances(utterances: Iterable[Turn]) -> tuple[Turn, ...]:
    """Joins utterances of one side without a reply between them into one turn.

    Texts are joined with a space; annotations become lists, with what each utterance had.
    """
    turns = []
    for speaker, group in itertools.groupby(utterances, key=lambda turn: turn.speaker):
        texts, annotations = [], {}
        for utterance in group:
            texts.append(utterance.text)
            for name, value in utterance.annotations.items():
                annotations.setdefault(name, []).append(value)
        turns.append(Turn(speaker, " ".join(texts), annotations=annotations))
    return tuple(turns)


def decode(content: bytes) -> str:
    """The text of a file: UTF-8, UTF-16 with its mark, or what Windows programs save."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def split_dialogues(
    dialogues: Sequence[Dialogue], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Dialogue]]:
    """Splits a corpus into named parts, whole dialogues at a time.

    Which part a dialogue falls into depends on the ids and the seed, not on the order in which the
    dialogues come. Dialogues with and without a reward above zero are split apart, so that every
    part has its share of both.

    Args:
        dialogues: With unique ids.
        fractions: Part -> share, e.g. `{"train": 0.8, "validation": 0.1, "test": 0.1}`.
        seed: Another seed gives another split.

    Returns:
        Part -> its dialogues, ordered by id. A size differs from its share by at most two.

    Raises:
        ValueError: Shares that are negative or don't sum to 1, or an id that occurs twice.
    """
    shares = list(fractions.values())
    if not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions must be shares from 0 up that sum to 1, got {dict(fractions)} "
            f"(sum {sum(shares):g})."
        )
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    if len(by_id) < len(dialogues):
        ids = sorted(dialogue.id for dialogue in dialogues)
        repeated = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise ValueError(f"Dialogue id {repeated!r} occurs more than once; ids must be unique.")
    parts: dict[str, list[Dialogue]] = {name: [] for name in fractions}
    for rewarded in (False, True):
        stratum = [name for name in by_id if (by_id[name].total_reward > 0) == rewarded]
        stratum.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        start, cumulated = 0, 0.0
        for name, share in fractions.items():
            cumulated += share
            stop = round(cumulated * len(stratum))
            parts[name].extend(by_id[key] for key in stratum[start:stop])
            start = stop
    return {name: sorted(part, key=lambda dialogue: dialogue.id) for name, part in parts.items()}
