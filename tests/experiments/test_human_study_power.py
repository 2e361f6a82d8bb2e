"""Simulated studies: equal agents are seldom found different, others the more often the larger."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from experiments.human_study.analysis import compare_agents
from experiments.human_study.power import simulate_power, simulated_ratings
from experiments.human_study.report import print_power


def test_equal_agents_come_out_different_in_at_most_5_percent_of_200_studies():
    rng, different = np.random.default_rng(1), 0
    for study in range(200):
        tables = {name: simulated_ratings(rng, (3.2, 3.2), 20, 1.0) for name in "abcd"}
        found = compare_agents(tables, ["x", "y"], study, resamples=499)
        different += any(test.p_holm < 0.05 for test in found)
    assert different <= 10


def test_power_grows_with_participants_and_with_the_effect():
    small = simulate_power(0.5, 1.0, 3, seed=0, sizes=(10, 40, 160), studies=60)
    large = simulate_power(1.5, 1.0, 3, seed=0, sizes=(10, 40, 160), studies=60)
    shares = list(small.shares.values())
    assert shares == sorted(shares) and shares[0] < 0.3 < shares[-1]
    assert large.needed == 40 and 160 not in large.shares, "it ends where it is certain"
    output = io.StringIO()
    print_power(small, Console(file=output, width=100))
    assert "difference of 0.5" in output.getvalue() and "160" in output.getvalue()
