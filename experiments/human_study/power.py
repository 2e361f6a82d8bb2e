"""Simulated studies: how often a difference would be found, and one that is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.evaluation.statistics import compare

SIZES = (6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200)
ENOUGH = 0.8
STUDIES, RESAMPLES = 200, 999


@dataclasses.dataclass(frozen=True)
class Power:
    """Share of simulated studies that find a difference, by number of participants.

    Attributes:
        effect: The difference, in points of the scale.
        spread: Standard deviation of a participant's rating of an agent.
        agents: Agents of the study; the level is divided by their pairs.
        shares: Participants -> share; ends with the first that is certain.
        needed: Fewest participants with a share of `ENOUGH`; None = more than were tried.
    """

    effect: float
    spread: float
    agents: int
    shares: dict[int, float]
    needed: int | None


def simulated_ratings(
    rng: np.random.Generator,
    means: Sequence[float],
    participants: int,
    spread: float,
    scale: tuple[int, int] = (1, 5),
) -> Float[np.ndarray, "agents participants"]:
    """Whole ratings on a scale: the agent's mean, the participant's mood, and chance.

    Args:
        rng: Source of chance.
        means: Mean of each agent, before rounding and the ends of the scale.
        participants: Number of them.
        spread: Standard deviation of chance, and of the moods.
        scale: Lowest and highest rating.
    """
    mood = rng.normal(0, spread, participants)
    felt = np.array(means)[:, None] + mood + rng.normal(0, spread, (len(means), participants))
    return np.clip(np.rint(felt), *scale)


def simulate_power(
    effect: float,
    spread: float,
    agents: int,
    seed: int,
    scale: tuple[int, int] = (1, 5),
    sizes: Sequence[int] = SIZES,
    studies: int = STUDIES,
) -> Power:
    """Tries studies of growing size, on one question, until nearly all find the difference.

    Two agents whose ratings differ by `effect` about the middle of the scale are compared with the
    paired permutation test, at a level of 0.05 divided by the number of pairs of agents: at least
    as strict as Holm's correction over them.

    Args:
        effect: Difference, in points of the scale.
        spread: Standard deviation of a participant's rating of an agent.
        agents: Agents of the study.
        seed: Seed of the simulation.
        scale: Lowest and highest rating.
        sizes: Numbers of participants, rising.
        studies: Simulated studies of each size.
    """
    level = 0.05 / max(1, agents * (agents - 1) // 2)
    middle = sum(scale) / 2
    means = (middle + effect / 2, middle - effect / 2)
    rng = np.random.default_rng(seed)
    shares: dict[int, float] = {}
    for size in sizes:
        found = 0
        for _ in range(studies):
            first, second = simulated_ratings(rng, means, size, spread, scale)
            difference, p = compare(first[None], second[None], seed, RESAMPLES)
            found += p < level and difference > 0
        shares[size] = found / studies
        if shares[size] >= 0.99:
            break
    needed = next((size for size, share in shares.items() if share >= ENOUGH), None)
    return Power(effect, spread, agents, shares, needed)
