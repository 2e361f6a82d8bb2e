"""Values against outcomes by turn: correlations, errors, and the report's table of them."""

from __future__ import annotations

import evaluations
import numpy as np
import pytest
import scipy

from experiments.evaluation.statistics import rank_correlation
from experiments.evaluation.values_by_turn import FEWEST, values_by_turn
from experiments.report import tables
from imagination.dialogue import Dialogue, Turn
from imagination.simulation import (
    OptimalAgent,
    Planner,
    SimulatedHuman,
    load_world,
    sample_conversations,
)
from imagination.simulation.course import follow
from imagination.speakers import converse

HUMANS = 60


def talk(episode: int, reward: float | None, values, seed: int = 0) -> Dialogue:
    """A conversation of as many turns of the agent's as there are pairs of V and Q."""
    turns = [Turn("human", "Hi.")]
    for v, q in values:
        turns += [Turn("agent", "Yes.", annotations={"v": v, "q": q}), Turn("human", "Ok.")]
    source = {"method": "ilql", "population": "average", "seed": seed, "episode": episode}
    return Dialogue("x", "task", tuple(turns), reward, source=source)


def talks(seed: int = 0, noise: float = 0.0) -> list[Dialogue]:
    """Values that know nothing at the first turn, and at the second all but the noise."""
    rng = np.random.default_rng(seed)
    found = []
    for episode in range(HUMANS):
        reward = float(rng.random())
        known = reward + noise * float(rng.normal())
        guess = float(rng.random())
        values = [(guess, reward - 0.2), (known, known - 0.1)]
        found.append(talk(episode, reward, values[: 1 + (episode % 3 > 0)], seed))
    return found


def test_values_that_come_to_know_rise_and_their_errors_have_a_sign():
    first, second = values_by_turn(talks())
    assert (first.turn, first.conversations) == (1, HUMANS)
    assert (second.turn, second.conversations) == (2, 40)
    assert first.v.low < 0 < first.v.high and first.q.mean == 1  # V and Q are not mixed up
    assert second.v.mean == second.q.mean == 1 and second.error == pytest.approx(-0.1)
    assert first.error == pytest.approx(-0.2)
    assert first.spread == pytest.approx(np.std([each.reward for each in talks()]))


def test_trainings_are_averaged_and_their_humans_counted_once():
    (_, one), (_, other), (_, both) = (
        values_by_turn(each)
        for each in (talks(1, 0.3), talks(2, 0.3), [*talks(1, 0.3), *talks(2, 0.3)])
    )
    assert one.q.mean < 0.9  # of Q, not of the reward
    assert both.q.mean == pytest.approx((one.q.mean + other.q.mean) / 2)
    assert both.conversations == 80
    assert both.q.high - both.q.low == pytest.approx(one.q.high - one.q.low, rel=0.3)


def test_turns_that_few_reach_and_turns_without_values_are_left_out():
    assert values_by_turn([]) == []
    assert values_by_turn(talks()[: FEWEST - 1]) == []
    assert [found.turn for found in values_by_turn(talks()[:FEWEST])] == [1]
    assert values_by_turn([talk(k, 1.0, [(0.1, None)]) for k in range(HUMANS)]) == []
    assert values_by_turn([talk(k, 1.0, [(None, None)]) for k in range(HUMANS)]) == []
    assert values_by_turn([talk(k, None, [(0.1, 0.2)]) for k in range(HUMANS)]) == []
    (alike,) = values_by_turn([talk(k, 1.0, [(0.1, 0.2)]) for k in range(HUMANS)])
    assert np.isnan(alike.v.mean) and alike.error == pytest.approx(-0.8)


def test_the_correlations_interval_covers_what_it_should():
    """Pairs of normal values of a known correlation, drawn again and again."""
    rng = np.random.default_rng(0)
    rho = 0.6
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of a bivariate normal distribution
    draws = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (400, HUMANS))
    found = [rank_correlation([pairs], HUMANS) for pairs in draws]
    assert 0.92 < np.mean([each.low < truth < each.high for each in found]) < 0.98
    (z, half), (falling, low, high) = (
        (1.959964, 57**-0.5),
        rank_correlation([-draws[0] * [1, -1]], 60),
    )
    assert falling == pytest.approx(-found[0].mean) and low < falling < high < 0
    width = z * half * (1 + falling**2 / 2) ** 0.5
    assert (low, high) == pytest.approx(
        np.tanh([np.arctanh(falling) + sign * width for sign in (-1, 1)])
    )
    by_scipy = scipy.stats.spearmanr(draws[0, :, 0], draws[0, :, 1]).statistic
    assert found[0].mean == pytest.approx(by_scipy)


def test_no_correlation_where_nothing_varies():
    constant = np.column_stack([np.ones(9), np.arange(9.0)])
    assert np.isnan(rank_correlation([constant], 9).mean)
    varying = np.column_stack([np.arange(9.0), -np.arange(9.0)])
    assert rank_correlation([constant, varying], 9).mean == -1
    assert np.isnan(rank_correlation([varying], 3).low)


@pytest.mark.slow
@pytest.mark.parametrize(("population", "first"), [("average", 0.63), ("difficult", 0.42)])
def test_exact_values_of_the_optimum_know_something_at_once_and_do_not_err(population, first):
    """Teaching: what right values can tell, whose rewards hardly spread."""
    world = load_world("teaching")
    planner = Planner(world, population)
    conversations = sample_conversations(world, population, 400, 77, population)
    agent = OptimalAgent(world, population)
    dialogues = converse(agent, SimulatedHuman(world), conversations, world.task)
    for episode, dialogue in enumerate(dialogues):
        dialogue.source.update(seed=0, episode=episode)
        for decision in follow(planner, dialogue.turns).decisions:
            place = decision.turns_left, decision.state, decision.belief
            noted = dialogue.turns[decision.turn].annotations
            noted["v"] = planner.state_value(*place)
            noted["q"] = planner.act_value(*place, decision.act)
    found = values_by_turn(dialogues)
    assert found[0].q.mean == pytest.approx(first, abs=0.01)
    assert found[2].q.mean > found[0].q.mean
    assert all(abs(each.error) < 0.002 and each.spread < 0.03 for each in found)


def test_the_report_has_a_row_for_each_turn_of_methods_that_learn_values():
    population = evaluations.population({"bc": 1.0, "ilql": 3.0})
    conversations = [
        evaluations.conversation(name, episode, 3 + 0.1 * (episode % 7))
        for name in ("bc", "ilql", "gone")
        for episode in range(30)
    ]
    for each in conversations[:30]:  # cloning learns none
        for turn in each.agent_turns:
            turn.annotations.clear()
    (table,) = tables.values_tables(conversations, evaluations.evaluation(population))
    assert [(row.key, str(row.cells[1])) for row in table.rows] == [
        ("ilql", "1"),
        ("ilql", "2"),
        ("ilql", "3"),
    ]
    spread = np.std([3 + 0.1 * (episode % 7) for episode in range(30)])
    assert str(table.rows[2].cells[5]) == f"{spread:.2f}" and len(table.headers) == 7
    assert tables.values_tables([], evaluations.evaluation(population)) == []
