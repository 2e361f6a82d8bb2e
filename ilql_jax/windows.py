"""Long episodes as windows that fit in a network's context.

A window holds whole turns (an observation, then an utterance of the agent). It begins with turns of
context, whose decisions are neither cloned nor credited: the window before it learns from those. It
ends right in front of the next decision, so that V of the next state is read in the window itself.
What follows in the episode is not lost: the window keeps its episode, so Monte-Carlo returns and
λ-returns reach across the cut (`losses.returns_of`), and `total_reward` is the episode's.

In play, `context_start` shortens an episode that has become too long in the same way.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from ilql_jax.batching import utterance_bounds
from ilql_jax.trajectory import Trajectory, TrajectoryError


def cut_into_windows(
    trajectory: Trajectory, length: int, context: int | None = None
) -> list[Trajectory]:
    """Windows of at most `length` tokens, in which every decision is learned from exactly once.

    Windows without anything to learn from are left out.

    Args:
        trajectory: A whole episode. One that fits is returned as it is.
        length: Most tokens of a window, usually the network's `max_positions`.
        context: Most tokens that a window shows before its first own decision, the observation in
            front of it included; half of the length by default. Always as many whole turns as fit;
            fewer where the decision would not fit behind them, and at least its own observation.

    Raises:
        TrajectoryError: A turn that does not fit in a window with the observation after it; or a
            trajectory that is a window already.
        ValueError: The context is negative or leaves no room.
    """
    context = length // 2 if context is None else context
    if not 0 <= context < length:
        raise ValueError(f"context is {context}, but must lie in [0, {length}), the length.")
    trajectory.validate()
    if trajectory.episode is not None:
        raise TrajectoryError(
            f"{trajectory.name} is a window of {trajectory.episode.name}; cut the episode instead."
        )
    if len(trajectory.tokens) <= length:
        return [trajectory]
    first, last = utterance_bounds(trajectory.is_action)
    turn_starts = np.append(0, last[:-1] + 1)
    # Behind the last decision an episode that was cut off bootstraps; a terminal one is over.
    turn_ends = np.append(
        first[1:], last[-1] + 1 if trajectory.terminal else len(trajectory.tokens)
    )
    windows, turn = [], 0
    while turn < len(first):
        begun = turn_starts[: turn + 1]
        if turn_ends[turn] - begun[-1] > length:
            raise TrajectoryError(
                f"{trajectory.name}: turn {turn} with the observation after it takes "
                f"{turn_ends[turn] - begun[-1]} tokens (from token {begun[-1]} on), but a window "
                f"holds {length}. Raise the length (max_positions), or shorten observations."
            )
        start = max(
            context_start(begun, first[turn], context),
            context_start(begun, turn_ends[turn], length),
        )
        stop = int(np.searchsorted(turn_ends, start + length, side="right"))
        windows.append(_window(trajectory, start, int(turn_ends[stop - 1]), int(first[turn])))
        turn = stop
    return [each for each in windows if each.clone_weight.any() or each.credited.any()]


def context_start(turn_starts: Int[np.ndarray, " turns"], end: int, room: int) -> int:
    """The earliest turn's start from which at most `room` tokens reach to `end`.

    The start of the last turn where none is close enough.
    """
    close = turn_starts[end - turn_starts <= room]
    return int(close[0] if len(close) else turn_starts[-1])


def _window(trajectory: Trajectory, start: int, end: int, first_own: int) -> Trajectory:
    """Tokens [start, end) of an episode, learned from at `first_own` and behind it."""
    part = slice(start, end)
    is_own = np.arange(start, end) >= first_own
    return Trajectory(
        tokens=trajectory.tokens[part],
        is_action=trajectory.is_action[part],
        rewards=trajectory.rewards[part],
        terminal=trajectory.terminal and not trajectory.is_action[end:].any(),
        name=f"{trajectory.name}[{start}:{end}]",
        clone=trajectory.clone_weight[part] * is_own,
        credit=trajectory.credited[part] & is_own,
        weight=trajectory.weight,
        episode=trajectory,
        start=start,
    )
