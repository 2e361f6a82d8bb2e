"""The design: every agent in every place and after every other, cells filled evenly."""

from __future__ import annotations

import collections
import itertools
import random

import pytest

from experiments.human_study.assignment import Cell, alias, emptiest, williams


@pytest.mark.parametrize("agents", range(1, 10))
def test_places_and_predecessors_are_balanced(agents: int):
    rows = williams(agents)
    assert len(rows) == (agents if agents % 2 == 0 or agents == 1 else 2 * agents)
    for place in range(agents):
        counts = collections.Counter(row[place] for row in rows)
        assert set(counts.values()) == {len(rows) // agents} and len(counts) == agents
    if agents > 1:
        pairs = collections.Counter(p for row in rows for p in itertools.pairwise(row))
        assert len(pairs) == agents * (agents - 1) and len(set(pairs.values())) == 1


def test_cells_fill_evenly_though_people_drop_out():
    rng, cells = random.Random(0), [[0, 0] for _ in range(6)]
    for number in range(300):
        row = emptiest([Cell(*cell) for cell in cells], number, seed=1)
        cells[row][1] += 1
        cells[row][0] += rng.random() < 0.6  # the others drop out at once
    kept = [kept for kept, _ in cells]
    assert max(kept) - min(kept) <= 1


def test_who_comes_first_depends_on_the_seed():
    rows = {emptiest([Cell(0, 0)] * 6, 1, seed) for seed in range(40)}
    assert rows == set(range(6))


def test_aliases_say_nothing_but_the_place():
    assert [alias(i) for i in (0, 1, 25, 26)] == ["A", "B", "Z", "AA"]
