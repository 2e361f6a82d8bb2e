"""Values against outcomes, turn by turn: how well an agent can tell how its conversation will end.

A critic is judged by how fast the rank correlation rises with what is said, and by its error, which
should be near zero at every turn. Where an agent does almost equally well with everybody, rewards
hardly spread, and errors much smaller than the scale hide a correlation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.evaluation.statistics import Interval, rank_correlation
from imagination.checks import is_finite
from imagination.dialogue import Dialogue

FEWEST = 20  # conversations of a turn, below which a correlation says nothing


@dataclasses.dataclass(frozen=True)
class TurnValues:
    """Values at one of the agent's turns, over the conversations that reach it.

    Attributes:
        turn: Counted from 1.
        conversations: That reach it, with values and a reward.
        v: Rank correlation of V, before the agent spoke, with the reward.
        q: Rank correlation of Q, of what it said, with the reward.
        error: Mean of Q minus the reward; above 0 it hoped for too much.
        spread: Standard deviation of the rewards.
    """

    turn: int
    conversations: int
    v: Interval
    q: Interval
    error: float
    spread: float


def values_by_turn(conversations: Sequence[Dialogue]) -> list[TurnValues]:
    """Compares the values of a method with what came of its conversations.

    Args:
        conversations: Those of one method with one population; `q` and `v` among the annotations of
            the agent's turns, `seed` and `episode` in the source.

    Returns:
        Every turn that enough conversations reach; none for a method that learns no values.
        Correlations are means over trainings. Their intervals count each human once, with however
        many trainings it talked.
    """
    found = []
    longest = max((len(dialogue.agent_turns) for dialogue in conversations), default=0)
    for turn in range(longest):
        rows = [
            (dialogue.source.get("seed"), dialogue.source.get("episode"), *values, dialogue.reward)
            for dialogue in conversations
            if (values := _values(dialogue, turn)) is not None and dialogue.reward is not None
        ]
        humans = len({episode for _, episode, *_ in rows})
        if humans >= FEWEST:
            v, q = (_correlation(rows, column, humans) for column in (2, 3))
            error = float(np.mean([row[3] - row[4] for row in rows]))
            spread = float(np.std([row[4] for row in rows]))
            found.append(TurnValues(turn + 1, len(rows), v, q, error, spread))
    return found


def _values(dialogue: Dialogue, turn: int) -> tuple[float, float] | None:
    """V and Q that the agent noted at its turn; None where it did not."""
    if turn >= len(dialogue.agent_turns):
        return None
    noted = dialogue.agent_turns[turn].annotations
    values = noted.get("v"), noted.get("q")
    return values if all(map(is_finite, values)) else None


def _correlation(rows: Sequence[tuple], column: int, humans: int) -> Interval:
    """Mean over trainings of the rank correlation of a column with the reward."""
    trainings: dict[object, list[tuple]] = {}
    for row in rows:
        trainings.setdefault(row[0], []).append(row)
    each = [np.array([(row[column], row[4]) for row in group]) for group in trainings.values()]
    return rank_correlation(each, humans)
