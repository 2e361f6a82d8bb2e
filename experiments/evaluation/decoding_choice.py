"""Choice of a network's decoding, in validation conversations with the same humans for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.evaluation.statistics import SIGNIFICANT, compare
from ilql_jax.decoding_config import DecodingConfig


class Choice(NamedTuple):
    """A chosen decoding.

    Attributes:
        decoding: The chosen one.
        validation: Each that was tried, as text -> its mean reward; None where no conversation was
            rated.
    """

    decoding: DecodingConfig
    validation: dict[str, float | None]


def tried(choices: Sequence[DecodingConfig]) -> int:
    """Number of decodings that `choose` has judged."""
    if len(choices) < 2:
        return 0
    return len(choices) + all(each.reads_values for each in choices)


def choose(
    choices: Sequence[DecodingConfig], judge: Callable[[DecodingConfig], Sequence[float | None]]
) -> Choice:
    """Chooses the decoding of highest mean reward; the policy alone where its values do harm.

    Where all choices read the values, the policy alone is judged at the best one's temperature,
    too, and taken if it is better by more than chance (`compare`, p < 0.05). It is not simply one
    choice more: values that choose as well with these humans may be needed with others.

    Args:
        choices: Decodings to choose from; a single one is not judged.
        judge: Rewards of a decoding, one for each human, in the same order each time; None where
            a conversation was not rated.
    """
    if not tried(choices):
        return Choice(choices[0], {})
    rewards = {choice: judge(choice) for choice in choices}
    means = {choice: _mean(own) for choice, own in rewards.items()}
    best = max(choices, key=lambda choice: -math.inf if means[choice] is None else means[choice])
    if all(each.reads_values for each in choices):
        alone = best.without_values
        without_values = judge(alone)
        means[alone] = _mean(without_values)
        if _is_surely_better(without_values, rewards[best]):
            best = alone
    return Choice(best, {str(choice): mean for choice, mean in means.items()})


def _mean(rewards: Sequence[float | None]) -> float | None:
    rated = [reward for reward in rewards if reward is not None]
    return float(np.mean(rated)) if rated else None


def _is_surely_better(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    pairs = [pair for pair in zip(first, second, strict=True) if None not in pair]
    if not pairs:
        return False
    a, b = np.array(pairs, float).T[:, None]
    difference, p = compare(a, b, seed=0)
    return difference > 0 and p < SIGNIFICANT
