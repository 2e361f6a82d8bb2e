"""Agreement and rankings against values that are known."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.human_study.agreement import (
    bradley_terry,
    ordinal_alpha,
    ranked_strengths,
    wins_of,
)

# Four observers, twelve units: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def units_of(lines) -> list[list[int]]:
    columns = zip(*(line.split() for line in lines), strict=True)
    return [[int(value) for value in column if value != "."] for column in columns]


def test_alpha_is_that_of_the_textbook():
    assert ordinal_alpha(units_of(OBSERVERS)) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_agreement_chance_and_nothing():
    assert ordinal_alpha([[1, 1], [5, 5], [3, 3, 3]]) == 1.0
    rng = np.random.default_rng(0)
    assert abs(ordinal_alpha(rng.integers(1, 6, (3000, 2)).tolist())) < 0.05
    assert ordinal_alpha([[1, 5], [5, 1]]) < 0
    assert ordinal_alpha([[1], [2], []]) is None and ordinal_alpha([[3, 3]]) is None


def test_strengths_are_those_that_made_the_games():
    truth = np.array([0.8, 0.5, 0.25])
    odds = truth / (1 - truth)
    odds /= np.exp(np.log(odds).mean())
    wins = 1e6 * odds[:, None] / (odds[:, None] + odds[None, :])
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins) == pytest.approx(odds / (1 + odds), abs=1e-4)


def test_an_agent_that_always_wins_has_a_finite_strength_and_an_interval_holds_it():
    rankings = [("a", "b", "c")] * 9 + [("a", "c")]  # one did not meet b
    assert wins_of(rankings, "abc")[0].tolist() == [0, 9, 10]
    found = ranked_strengths(rankings, "abc", seed=0, resamples=50)
    assert 1 > found["a"][0] > found["b"][0] > found["c"][0] > 0
    assert all(low - 1e-6 <= value <= high + 1e-6 for value, low, high in found.values())
    assert ranked_strengths([], "abc", 0) == {}
