"""What the readers of human corpora share."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from imagination.dialogue import Dialogue, Turn


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names file, line and value, and the way out."""


def join_utterances(utterances: Iterable[Turn]) -> tuple[Turn, ...]:
    """What one side says in several utterances without a reply becomes one turn.

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
    """Text of a file in whatever encoding it was saved."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # What spreadsheet programs save on Windows.
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
