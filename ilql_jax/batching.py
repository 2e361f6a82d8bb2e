"""Trajectories -> packed batches of transitions, through a grain pipeline that can be resumed.

Several dialogues share a row (first-fit packing), told apart by `segment_ids`. Each dialogue's
decisions are laid out twice: token by token, and utterance by utterance, both as `Transitions`
whose indices point into the row. The losses in `methods/` use one or the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.losses import CUT, END, NEXT_UTTERANCE, SAME_UTTERANCE, Transitions
from ilql_jax.settings import Settings, setting
from ilql_jax.trajectory import Trajectory, TrajectoryError, validate_all


class Batch(NamedTuple):
    """Input of a jitted step; every shape is fixed over a run.

    Attributes:
        tokens: int32 [B, T].
        segment_ids: int32 [B, T], counted from 1 in each row; 0 = padding.
        positions: int32 [B, T], counted from 0 in each dialogue.
        by_token: Transitions [B, A], one per agent token.
        by_utterance: Transitions [B, U], one per agent utterance.
        clone_weight: float32 [B, A], weight of each agent token's cloning loss, with that
            of its dialogue; 0 = padding.
    """

    tokens: Int[Array, "batch time"]
    segment_ids: Int[Array, "batch time"]
    positions: Int[Array, "batch time"]
    by_token: Transitions
    by_utterance: Transitions
    clone_weight: Float[Array, "batch actions"]


@dataclasses.dataclass(frozen=True)
class PackingConfig(Settings):
    """Shape of the batches, and discounts of what they hold."""

    batch_rows: int = setting("Rows in a batch (B).", least=1)
    row_length: int = setting("Tokens in a row (T); the longest trajectory must fit.", least=2)
    actions_per_row: int = setting("Most agent tokens in a row (A).", least=1)
    utterances_per_row: int = setting("Most agent utterances in a row (U).", least=1)
    token_discount: float = setting("γ from one agent token to the next.", 0.99, least=0, most=1)
    utterance_discount: float = setting(
        "γ from one agent utterance to the next.", 0.99, least=0, most=1
    )
    baseline: float = setting(
        "Value that value heads of zero stand for, in the rewards' unit: values are learned as "
        "differences from it. What was never tried looks this good at first.",
        0.0,
    )


def packing_for(
    trajectories: Sequence[Trajectory],
    batch_rows: int,
    row_length: int,
    token_discount: float = 0.99,
    utterance_discount: float = 0.99,
    baseline: float = 0.0,
) -> PackingConfig:
    """Chooses A and U so that a row fills up with tokens and agent tokens at about the same time.

    Slots for decisions cost vocabulary work whether filled or not, so A follows the data's share
    of agent tokens, plus a tenth; a row that has no slot left takes no further dialogue.
    """
    check_trajectories(trajectories, row_length)
    tokens = sum(len(t.tokens) for t in trajectories)
    actions = sum(int(t.is_action.sum()) for t in trajectories)
    utterances = [_count_utterances(t) for t in trajectories]

    def slots(total: int, most: int) -> int:
        usual = row_length * total / tokens
        return max(most, -(-int(usual * 1.1) // 8) * 8)

    return PackingConfig(
        batch_rows=batch_rows,
        row_length=row_length,
        actions_per_row=slots(actions, max(int(t.is_action.sum()) for t in trajectories)),
        utterances_per_row=slots(sum(utterances), max(utterances)),
        token_discount=token_discount,
        utterance_discount=utterance_discount,
        baseline=baseline,
    )


def lowest_return(trajectories: Sequence[Trajectory], by_token: bool, discount: float) -> float:
    """The lowest discounted sum of rewards from any decision on, a token or an utterance.

    As `PackingConfig.baseline` it keeps values from being highest where nothing was learned.
    """
    transitions_of = token_transitions if by_token else utterance_transitions
    lowest = math.inf
    for trajectory in trajectories:
        following = 0.0
        for reward in transitions_of(trajectory, discount).reward[::-1].tolist():
            following = reward + discount * following
            lowest = min(lowest, following)
    return lowest


def check_trajectories(trajectories: Sequence[Trajectory], row_length: int) -> None:
    """Raises `TrajectoryError` on the first that breaks the contract or doesn't fit in a row."""
    if not trajectories:
        raise TrajectoryError("no trajectories to train on.")
    validate_all(trajectories)
    for trajectory in trajectories:
        if len(trajectory.tokens) > row_length:
            raise TrajectoryError(
                f"{trajectory.name}: {len(trajectory.tokens)} tokens do not fit in the context of "
                f"{row_length}. Raise the context length, or shorten or drop the dialogue."
            )


def check_fit(trajectories: Sequence[Trajectory], packing: PackingConfig) -> None:
    """`check_trajectories`, and that each one's decisions fit in a row's slots."""
    check_trajectories(trajectories, packing.row_length)
    for trajectory in trajectories:
        for what, count, slots in (
            ("tokens", int(trajectory.is_action.sum()), packing.actions_per_row),
            ("utterances", _count_utterances(trajectory), packing.utterances_per_row),
        ):
            if count > slots:
                raise TrajectoryError(
                    f"{trajectory.name}: {count} agent {what} do not fit in a row's {slots} slots. "
                    "Use `packing_for`, which makes room for the longest dialogue."
                )


def make_batches(
    trajectories: Sequence[Trajectory], packing: PackingConfig, seed: int
) -> grain.DatasetIterator:
    """An endless iterator of `Batch`es (numpy), reshuffled every epoch.

    The iterator's `get_state()` and `set_state()` hold its position, so that a resumed run sees
    the batches that an uninterrupted one would have seen.
    """
    check_fit(trajectories, packing)
    elements = [to_element(t, packing) for t in trajectories]
    rows = pack_rows(elements, element_lengths(packing), packing.batch_rows, seed)
    return iter(rows.map(assemble_row).batch(packing.batch_rows).map(assemble_batch))


def pack_rows(
    elements: Sequence[dict[str, np.ndarray]],
    lengths: dict[str, int],
    batch_rows: int,
    seed: int,
) -> grain.IterDataset:
    """An endless stream of rows, each filled with whole elements; reshuffled every epoch.

    Args:
        elements: Name -> array, whose first axis is what fills up.
        lengths: Name -> room for it in a row.
        batch_rows: Rows that go into a batch afterwards.
        seed: Seed of the order.
    """
    rows = grain.MapDataset.source(elements).seed(seed).shuffle().repeat(None)
    return grain.experimental.FirstFitPackIterDataset(
        rows.to_iter_dataset(_IN_MEMORY),
        length_struct=lengths,
        # More bins than a batch needs pack tighter; few enough that an epoch hardly leaks.
        num_packing_bins=2 * batch_rows,
        seed=seed,
    )


def one_per_row(trajectories: Sequence[Trajectory], packing: PackingConfig) -> Iterator[Batch]:
    """Every trajectory once, in order, each in a row of its own; empty rows fill the last batch."""
    check_fit(trajectories, packing)
    lengths = element_lengths(packing)
    for start in range(0, len(trajectories), packing.batch_rows):
        rows = {
            name: np.zeros((packing.batch_rows, length, *_EXTRA_AXES[name]), np.float64)
            for name, length in lengths.items()
        }
        segments = np.zeros((packing.batch_rows, packing.row_length), np.int32)
        for row, trajectory in enumerate(trajectories[start : start + packing.batch_rows]):
            segments[row, : len(trajectory.tokens)] = 1
            for name, array in to_element(trajectory, packing).items():
                rows[name][row, : len(array)] = array
        positions = np.arange(packing.row_length) * segments
        yield assemble_batch({**rows, "segment_ids": segments, "positions": positions})


# The elements are already in memory: reading them ahead in threads only costs time.
_IN_MEMORY = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

# Transitions travel through the packer as one integer and one real matrix per level of decision.
_INDICES = ("state", "value_state", "next_state")
_INTEGERS = (*_INDICES, "action", "boundary")
_REALS = ("reward", "discount", "weight", "tail")
_EXTRA_AXES = {
    "tokens": (),
    "clone_weight": (),
    "token_integers": (len(_INTEGERS),),
    "token_reals": (len(_REALS),),
    "utterance_integers": (len(_INTEGERS),),
    "utterance_reals": (len(_REALS),),
}


def abstract_batch(packing: PackingConfig, sharding: Any = None) -> Batch:
    """Shapes and dtypes of a batch (`jax.ShapeDtypeStruct`), laid out by `sharding` if given."""

    def array(columns: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((packing.batch_rows, columns), dtype, sharding=sharding)

    def transitions(slots: int) -> Transitions:
        integers = {name: array(slots, np.int32) for name in _INTEGERS}
        return Transitions(**integers, **{name: array(slots, np.float32) for name in _REALS})

    tokens = array(packing.row_length, np.int32)
    return Batch(
        tokens=tokens,
        segment_ids=tokens,
        positions=tokens,
        by_token=transitions(packing.actions_per_row),
        by_utterance=transitions(packing.utterances_per_row),
        clone_weight=array(packing.actions_per_row, np.float32),
    )


def to_element(trajectory: Trajectory, packing: PackingConfig) -> dict[str, np.ndarray]:
    """A trajectory as the packer takes it: named arrays, indices counted from its start."""
    element = {
        "tokens": np.asarray(trajectory.tokens, np.int32),
        "clone_weight": trajectory.weight * trajectory.clone_weight[trajectory.is_action],
    }
    by_token = token_transitions(trajectory, packing.token_discount, packing.baseline)
    by_utterance = utterance_transitions(trajectory, packing.utterance_discount, packing.baseline)
    for level, transitions in (("token", by_token), ("utterance", by_utterance)):
        columns = transitions._asdict()
        element[f"{level}_integers"] = np.stack([columns[name] for name in _INTEGERS], axis=1)
        element[f"{level}_reals"] = np.stack([columns[name] for name in _REALS], axis=1)
    return element


def element_lengths(packing: PackingConfig) -> dict[str, int]:
    """Room in a row for each array of an element."""
    return {
        "tokens": packing.row_length,
        "clone_weight": packing.actions_per_row,
        "token_integers": packing.actions_per_row,
        "token_reals": packing.actions_per_row,
        "utterance_integers": packing.utterances_per_row,
        "utterance_reals": packing.utterances_per_row,
    }


def token_transitions(
    trajectory: Trajectory, discount: float, baseline: float = 0.0
) -> Transitions:
    """One transition per agent token, vectors [A], indices counted from the trajectory's start."""
    at = np.flatnonzero(trajectory.is_action)
    state = at - 1
    following = np.append(state[1:], len(trajectory.tokens) - 1)
    return _transitions(
        trajectory,
        discount=discount,
        baseline=baseline,
        later_rewards=_later(trajectory)[1],
        state=state,
        value_state=state,
        action=trajectory.tokens[at],
        reward=trajectory.rewards[at],
        next_state=following,
        boundary=np.where(following == at, SAME_UTTERANCE, NEXT_UTTERANCE),
        weight=trajectory.weight * trajectory.credited[at],
    )


def utterance_transitions(
    trajectory: Trajectory, discount: float, baseline: float = 0.0
) -> Transitions:
    """One transition per agent utterance: V before its first token, Q at its last (vectors [U])."""
    first, last = utterance_bounds(trajectory.is_action)
    start = first - 1
    later_first, later_rewards = _later(trajectory)
    return _transitions(
        trajectory,
        discount=discount,
        baseline=baseline,
        later_rewards=np.add.reduceat(later_rewards, later_first) if len(later_first) else [],
        state=last - 1,
        value_state=start,
        action=trajectory.tokens[last],
        reward=np.add.reduceat(trajectory.rewards, first),
        next_state=np.append(start[1:], len(trajectory.tokens) - 1),
        boundary=np.full(len(first), NEXT_UTTERANCE),
        weight=trajectory.weight * np.logical_or.reduceat(trajectory.credited, first),
    )


def _later(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Utterance starts and rewards of the agent tokens behind a window's end.

    Both are empty where the window reaches the episode's last decision, and where the episode was
    cut off itself: its return is not known then, so the window's values bootstrap at its own end.
    """
    episode, later = trajectory.episode, trajectory.later
    if later is None or not episode.terminal:
        return np.zeros(0, int), np.zeros(0)
    is_action = episode.is_action[later]
    first, _ = utterance_bounds(is_action)
    return np.cumsum(is_action)[first] - 1, episode.rewards[later][is_action].astype(np.float64)


def _transitions(
    trajectory: Trajectory,
    *,
    discount: float,
    baseline: float,
    later_rewards: Sequence[float],
    **columns: Any,
) -> Transitions:
    """Adds what both levels share: discounts, zero at a terminal end, and what lies behind it.

    Rewards become r + (γ − 1) · baseline: then Q − baseline and V − baseline solve the same
    equations as Q and V, with 0 at a terminal end (shaping by a constant potential; Ng et al.,
    1999). Which action is best does not change.
    """
    count = len(columns["state"])
    discounts, tail = np.full(count, discount, np.float32), np.zeros(count, np.float32)
    columns["boundary"][-1] = CUT if len(later_rewards) else END
    tail[-1] = np.dot(later_rewards, discount ** np.arange(len(later_rewards)))
    if trajectory.terminal:
        discounts[-1] = 0.0
    rewards = np.asarray(columns["reward"], np.float32)
    if baseline:
        rewards = rewards + (discounts - 1) * np.float32(baseline)
        tail[-1] -= baseline if len(later_rewards) else 0.0
    integers = {name: np.asarray(columns[name], np.int32) for name in _INTEGERS}
    return Transitions(
        **integers,
        reward=rewards,
        discount=discounts,
        weight=np.asarray(columns["weight"], np.float32),
        tail=tail,
    )


def utterance_bounds(
    is_action: Bool[np.ndarray, " time"],
) -> tuple[Int[np.ndarray, " utterances"], Int[np.ndarray, " utterances"]]:
    """First and last token of each run of agent tokens."""
    padded = np.concatenate([[False], is_action, [False]])
    change = np.flatnonzero(padded[1:] != padded[:-1])
    return change[::2], change[1::2] - 1


def _count_utterances(trajectory: Trajectory) -> int:
    return len(utterance_bounds(trajectory.is_action)[0])


def assemble_row(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the packer's bookkeeping and moves indices from the dialogue's start to the row's."""
    segments, positions = packed["tokens_segment_ids"], packed["tokens_positions"]
    # Of segments 0, 1, 2, ...: segment 0 is the row's unused end, whose indices stay as they are.
    starts = np.concatenate([[0], np.flatnonzero(positions == 0)])
    row = {
        "tokens": packed["tokens"],
        "segment_ids": segments,
        "positions": positions,
        "clone_weight": packed["clone_weight"],
    }
    for level in ("token", "utterance"):
        integers = packed[f"{level}_integers"].copy()
        owner = packed[f"{level}_integers_segment_ids"]
        integers[:, : len(_INDICES)] += starts[owner][:, None]
        integers[owner == 0, _INTEGERS.index("boundary")] = END
        row[f"{level}_integers"] = integers
        row[f"{level}_reals"] = packed[f"{level}_reals"]
    return {name: np.asarray(array) for name, array in row.items()}


def assemble_batch(rows: dict[str, np.ndarray]) -> Batch:
    """Stacked rows to a batch."""

    def transitions(level: str) -> Transitions:
        integers, reals = rows[f"{level}_integers"], rows[f"{level}_reals"]
        columns = {n: integers[..., i].astype(np.int32) for i, n in enumerate(_INTEGERS)}
        columns |= {n: reals[..., i].astype(np.float32) for i, n in enumerate(_REALS)}
        return Transitions(**columns)

    return Batch(
        tokens=rows["tokens"].astype(np.int32),
        segment_ids=rows["segment_ids"].astype(np.int32),
        positions=rows["positions"].astype(np.int32),
        by_token=transitions("token"),
        by_utterance=transitions("utterance"),
        clone_weight=rows["clone_weight"].astype(np.float32),
    )
