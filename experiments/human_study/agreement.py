"""Agreement of raters (Krippendorff's alpha) and strengths out of rankings (Bradley and Terry)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Num

_PRIOR = 0.5  # wins of each agent over each other that are added, so that no strength is infinite
_ROUNDS, _CLOSE = 2000, 1e-9


def ordinal_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for ordinal ratings; any number of raters a unit, none a must.

    1 = all agree, 0 = as if ratings were given by chance, below 0 = worse than that. After
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).

    Args:
        units: The ratings of each unit; units with fewer than two say nothing and are passed over.

    Returns:
        Alpha; None where no unit has two ratings, or all ratings are the same.
    """
    paired = [unit for unit in units if len(unit) >= 2]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return None
    place = {value: index for index, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in paired:
        for first, second in combinations(unit, 2):
            share = 1 / (len(unit) - 1)
            coincidences[place[first], place[second]] += share
            coincidences[place[second], place[first]] += share
    counts = coincidences.sum(0)
    # Ranks between two values: all ratings from one to the other, the ends counted half.
    upto = np.cumsum(counts) - counts / 2
    distance = (upto[:, None] - upto[None, :]) ** 2
    expected = (counts[:, None] * counts[None, :] * distance).sum()
    observed = (coincidences * distance).sum()
    return float(1 - (counts.sum() - 1) * observed / expected)


def wins_of(rankings: Sequence[Sequence[str]], agents: Sequence[str]) -> Num[np.ndarray, "k k"]:
    """Number of rankings in which the agent of the row stands above that of the column."""
    place = {agent: index for index, agent in enumerate(agents)}
    wins = np.zeros((len(agents), len(agents)))
    for ranking in rankings:
        for better, worse in combinations(ranking, 2):
            wins[place[better], place[worse]] += 1
    return wins


def bradley_terry(wins: Num[np.ndarray, "*batch k k"]) -> Float[np.ndarray, "*batch k"]:
    """Chance of each agent to be preferred to an average one, by Bradley and Terry's model.

    The strengths are those of maximum likelihood with half a win and half a loss added for each
    pair (Hunter's MM algorithm, 2004), so that an agent that always wins has a finite one.

    Args:
        wins: Number of times that the agent of the row was preferred to that of the column; many
            such tables at once, if need be.

    Returns:
        Chances in (0, 1); 0.5 = average.
    """
    number = wins.shape[-1]
    wins = wins + _PRIOR * (1 - np.eye(number))
    games, won = wins + np.swapaxes(wins, -1, -2), wins.sum(-1)
    strength = np.ones(won.shape)
    for _ in range(_ROUNDS):
        new = won / (games / (strength[..., :, None] + strength[..., None, :])).sum(-1)
        new /= np.exp(np.log(new).mean(-1, keepdims=True))
        done = np.abs(new / strength - 1).max() < _CLOSE
        strength = new
        if done:
            break
    return strength / (1 + strength)


def ranked_strengths(
    rankings: Sequence[Sequence[str]], agents: Sequence[str], seed: int, resamples: int = 500
) -> Mapping[str, tuple[float, float, float]]:
    """`bradley_terry` of rankings, each with a 95 % bootstrap interval over participants.

    Args:
        rankings: Ranking of each participant, best first; agents that are missing were not met.
        agents: All agents.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        Agent -> strength, low, high; empty without rankings.
    """
    if not rankings or len(agents) < 2:
        return {}
    each = np.stack([wins_of([ranking], agents) for ranking in rankings])
    rng = np.random.default_rng(seed)
    # How often each participant is drawn, [resamples, participants].
    drawn = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=resamples)
    low, high = np.quantile(
        bradley_terry(np.tensordot(drawn, each, axes=1)), (0.025, 0.975), axis=0
    )
    strength = bradley_terry(each.sum(0))
    return {
        agent: (float(strength[i]), float(low[i]), float(high[i])) for i, agent in enumerate(agents)
    }
