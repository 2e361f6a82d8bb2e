"""Pairs of utterances, one better than the other in the same state -> packed batches.

The halves of a pair are packed as one unit, so they always stand in the same row, each a segment
of its own. `methods/dpo.py` learns from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Array, Float

from ilql_jax import batching
from ilql_jax.batching import Batch, PackingConfig, packing_for
from ilql_jax.models import Params
from ilql_jax.trajectory import Trajectory, TrajectoryError


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two utterances of the agent in the same state, one better; rewards are not read.

    Attributes:
        chosen: Dialogue up to and with the better utterance, the only one marked by `is_action`.
        rejected: The same tokens before it, then the worse one.
    """

    chosen: Trajectory
    rejected: Trajectory

    def validate(self) -> PreferencePair:
        """Returns itself, or raises `TrajectoryError` if the two do not make a pair."""
        before = []
        for half in (self.chosen, self.rejected):
            if half.clone is not None or half.credit is not None or half.weight != 1:
                raise TrajectoryError(
                    f"{half.name}: clone, credit or weight is given, but a pair is learned from as "
                    "a whole, and counts once; leave them as they are by default."
                )
            at = np.flatnonzero(half.validate().is_action)
            if at[-1] - at[0] >= len(at):
                raise TrajectoryError(
                    f"{half.name}: is_action marks more than one utterance (tokens {at[0]} to "
                    f"{at[-1]}, with gaps), but a pair contests one; mark that alone."
                )
            before.append(half.tokens[: at[0]])
        names = f"{self.chosen.name} and {self.rejected.name}"
        if not np.array_equal(*before):
            raise TrajectoryError(
                f"{names}: the tokens before the utterances differ ({len(before[0])} and "
                f"{len(before[1])} of them), but a pair shares them."
            )
        if self.says_the_same:
            raise TrajectoryError(
                f"{names}: both utterances have the same tokens, so neither can be preferred; "
                "drop the pair."
            )
        return self

    @property
    def says_the_same(self) -> bool:
        """True if the utterances do not differ in their tokens."""
        chosen, rejected = (t.tokens[t.is_action] for t in (self.chosen, self.rejected))
        return np.array_equal(chosen, rejected)

    def joined(self) -> Trajectory:
        """Concatenates the better half and the worse, to be packed as a unit."""
        tokens, is_action = (
            np.concatenate([getattr(self.chosen, name), getattr(self.rejected, name)])
            for name in ("tokens", "is_action")
        )
        name = f"{self.chosen.name} with {self.rejected.name}"
        return Trajectory(tokens, is_action, np.zeros(len(tokens), np.float32), name=name)


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Data of a method that learns from pairs.

    The reference's log-probabilities of the utterances are computed once, before the first step,
    and travel in the batches: a step reads every token once, and the training state holds no
    second network. A resumed run computes them again, so it has to be given the same reference.

    Attributes:
        pairs: Pairs of utterances.
        reference: Parameters of the frozen reference policy, from which the training starts too
            (see `checkpoint.restore_params`), laid out on the mesh if there is one. They are
            copied, not donated.
    """

    pairs: Sequence[PreferencePair]
    reference: Params


def check_pairs(pairs: Sequence[PreferencePair], context: int) -> None:
    """Raises `TrajectoryError` on the first pair that is none, or of which a half is too long."""
    batching.check_trajectories([half for p in pairs for half in (p.chosen, p.rejected)], context)
    for pair in pairs:
        pair.validate()


class PreferenceBatch(NamedTuple):
    """Batch of a jitted step; every shape is fixed over a run.

    Attributes:
        dialogues: The halves of pairs as dialogues. Slots 2i and 2i + 1 of `by_utterance` are the
            better and the worse utterance of a row's pair i.
        reference_log_prob: float32 [B, U], of each utterance under the reference policy.
    """

    dialogues: Batch
    reference_log_prob: Float[Array, "batch utterances"]


def split_pairs(
    of_utterances: Float[Array, "batch utterances"],
) -> tuple[Float[Array, "batch pairs"], Float[Array, "batch pairs"]]:
    """Splits values of a batch's utterances into those of the better and of the worse ones."""
    return of_utterances[:, 0::2], of_utterances[:, 1::2]


def packing_for_pairs(
    pairs: Sequence[PreferencePair], batch_rows: int, row_length: int
) -> PackingConfig:
    """`packing_for`, where both halves of a pair have to fit in a row."""
    packing = packing_for(_joined(pairs, row_length), batch_rows, row_length)
    even = packing.utterances_per_row + packing.utterances_per_row % 2
    return dataclasses.replace(packing, utterances_per_row=even)


def make_preference_batches(
    pairs: Sequence[PreferencePair],
    reference_log_prob: Float[np.ndarray, "pairs 2"],
    packing: PackingConfig,
    seed: int,
) -> grain.DatasetIterator:
    """An endless iterator of `PreferenceBatch`es (numpy), reshuffled every epoch.

    Its position can be saved and set, as that of `batching.make_batches`.

    Args:
        pairs: Pairs of utterances.
        reference_log_prob: log π_ref of the better and the worse utterance of each pair, summed
            over its tokens.
        packing: Shape of the batches (see `packing_for_pairs`).
        seed: Seed of the order.

    Raises:
        TrajectoryError: Two trajectories that do not make a pair or do not fit in a row.
        ValueError: An odd number of slots for utterances, or reference log-probabilities that do
            not belong to the pairs.
    """
    joined = _joined(pairs, packing.row_length)
    batching.check_fit(joined, packing)
    if packing.utterances_per_row % 2:
        raise ValueError(
            f"utterances_per_row is {packing.utterances_per_row}, but must be even for pairs; "
            "use `packing_for_pairs`."
        )
    if np.shape(reference_log_prob) != (len(pairs), 2):
        raise ValueError(
            f"reference_log_prob has shape {np.shape(reference_log_prob)}, but must be "
            f"({len(pairs)}, 2): two utterances a pair."
        )
    elements = [
        {
            **batching.to_element(both, packing),
            "is_rejected": np.arange(len(both.tokens)) >= len(pair.chosen.tokens),
            "reference_log_prob": np.asarray(log_prob, np.float32),
        }
        for pair, both, log_prob in zip(pairs, joined, reference_log_prob, strict=True)
    ]
    lengths = {
        **batching.element_lengths(packing),
        "is_rejected": packing.row_length,
        "reference_log_prob": packing.utterances_per_row,
    }
    rows = batching.pack_rows(elements, lengths, packing.batch_rows, seed).map(_assemble_row)
    return iter(rows.batch(packing.batch_rows).map(_assemble_batch))


def _joined(pairs: Sequence[PreferencePair], row_length: int) -> list[Trajectory]:
    """Concatenates each pair; raises `TrajectoryError` if it does not fit in a row."""
    joined = [pair.validate().joined() for pair in pairs]
    for both in joined:
        if len(both.tokens) > row_length:
            raise TrajectoryError(
                f"{both.name}: {len(both.tokens)} tokens together do not fit in a row of "
                f"{row_length}. Rows of twice the network's context hold any pair."
            )
    return joined


def _assemble_row(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`batching.assemble_row`, with each half a segment of its own."""
    row: dict[str, Any] = batching.assemble_row(packed)
    units, is_rejected = row["segment_ids"], np.asarray(packed["is_rejected"], bool)
    segments = np.where(units > 0, 2 * units - 1 + is_rejected, 0)
    columns = np.arange(len(segments))
    is_first = np.diff(segments, prepend=0) != 0
    starts = np.maximum.accumulate(np.where(is_first, columns, 0))
    return {
        **row,
        "segment_ids": segments,
        "positions": np.where(units > 0, columns - starts, 0),
        "reference_log_prob": np.asarray(packed["reference_log_prob"]),
    }


def _assemble_batch(rows: dict[str, np.ndarray]) -> PreferenceBatch:
    reference = rows["reference_log_prob"].astype(np.float32)
    return PreferenceBatch(batching.assemble_batch(rows), reference)
