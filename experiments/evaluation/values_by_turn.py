"""Values against outcomes, turn by turn: how well an agent can tell how its conversation will end.

A critic is judged by how fast the rank correlation rises with what is said, and by its error, which
should be near zero at every turn. Where an agent does almost equally well with everybody, returns
hardly spread, and errors much smaller than the scale hide a correlation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.evaluation.statistics import Interval, crossed_mean, rank_correlation
from imagination.checks import is_finite
from imagination.dialogue import Dialogue

FEWEST = 20  # conversations of a turn, below which a correlation says nothing


@dataclasses.dataclass(frozen=True)
class TurnValues:
    """Values at one of the agent's turns, over the conversations that reach it.

    Attributes:
        turn: Counted from 1.
        and_later: True for this turn and all later ones together.
        conversations: That reach it, with values and a reward.
        humans: In them.
        v: Rank correlation of V, before the agent spoke, with the return from the turn on.
        q: Rank correlation of Q, of what it said, with that.
        error: Mean of Q minus the return; above 0 it hoped for too much.
        spread: Standard deviation of the returns.
    """

    turn: int
    and_later: bool
    conversations: int
    humans: int
    v: Interval
    q: Interval
    error: Interval
    spread: float


def values_by_turn(
    conversations: Sequence[Dialogue],
    returns: Mapping[str, Float[np.ndarray, " turns"]],
    together_from: int | None = None,
) -> list[TurnValues]:
    """Compares the values of a method with what came of its conversations.

    Args:
        conversations: Those of one method with one population; `q` and `v` among the annotations of
            the agent's turns, `seed` and `episode` in the source.
        returns: Id of a conversation -> discounted return from each of the agent's turns on
            (`returns_by_turn`). Conversations that are not there are left out.
        together_from: Turns from this one on, counted from 1, are taken together.

    Returns:
        Every turn that enough conversations reach; none for a method that learns no values.
        Correlations are means over trainings. Intervals are over humans and, if there are several,
        trainings; each human counts once, with however many trainings it talked.
    """
    turns: dict[int, list[_Noted]] = {}
    for dialogue in conversations:
        for turn, noted in _noted(dialogue, returns):
            turns.setdefault(min(turn, together_from or turn), []).append(noted)
    found = []
    for turn, rows in sorted(turns.items()):
        trainings, humans, v, q, outcome = zip(*rows, strict=True)
        count = len(set(humans))
        if count >= FEWEST:
            found.append(
                TurnValues(
                    turn,
                    turn == together_from,
                    len({(row.training, row.human) for row in rows}),
                    count,
                    _correlation(trainings, v, outcome, count),
                    _correlation(trainings, q, outcome, count),
                    crossed_mean(np.subtract(q, outcome), trainings, humans),
                    float(np.std(outcome)),
                )
            )
    return found


class _Noted(NamedTuple):
    """Values that the agent noted at a turn, and the return from there on."""

    training: Hashable
    human: Hashable
    v: float
    q: float
    outcome: float


def _noted(
    dialogue: Dialogue, returns: Mapping[str, Float[np.ndarray, " turns"]]
) -> Iterator[tuple[int, _Noted]]:
    """Turns, counted from 1, with their values; those without are passed over."""
    source, outcomes = dialogue.source, returns.get(dialogue.id, ())
    for number, (turn, outcome) in enumerate(zip(dialogue.agent_turns, outcomes, strict=False), 1):
        v, q = turn.annotations.get("v"), turn.annotations.get("q")
        if is_finite(v) and is_finite(q):
            yield number, _Noted(source.get("seed"), source.get("episode"), v, q, float(outcome))


def _correlation(
    trainings: Sequence[Hashable], values: Sequence[float], outcome: Sequence[float], humans: int
) -> Interval:
    """Mean over trainings of the rank correlation of values with the outcome."""
    pairs: dict[Hashable, list[tuple[float, float]]] = {}
    for training, *pair in zip(trainings, values, outcome, strict=True):
        pairs.setdefault(training, []).append(tuple(pair))
    return rank_correlation([np.array(own) for own in pairs.values()], humans)
