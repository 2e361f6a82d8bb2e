"""Number of processes that share the units of a stage."""

from __future__ import annotations

import os

import pytest

from experiments.parallel import workers_for


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are counted otherwise")
@pytest.mark.parametrize(
    ("units", "workers"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (5, 2), (40, 2)],
)
def test_units_are_shared_evenly_by_two_cores_with_no_more_processes_than_that_takes(
    units, workers, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert workers_for(0, units) == workers


def test_a_number_that_is_asked_for_counts_and_one_needs_no_other_process():
    assert (workers_for(3, 40), workers_for(3, 2), workers_for(1, 40)) == (3, 2, 0)
