"""Values against outcomes by turn: correlations, errors, and the report's table of them."""

from __future__ import annotations

import dataclasses

import evaluations
import numpy as np
import pytest
import scipy

from experiments.config import BatchConfig
from experiments.evaluation.returns import Discount, discount_of, returns_by_turn
from experiments.evaluation.statistics import rank_correlation
from experiments.evaluation.values_by_turn import FEWEST, TurnValues, values_by_turn
from experiments.report import tables
from experiments.report.run import Run, Trained
from ilql_jax.methods import METHODS
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
from imagination.tokenization import DialogueTokenizer

HUMANS = 60
UNDISCOUNTED, UTTERANCES = Discount(1.0, by_token=False), Discount(0.9, by_token=False)


def compared(dialogues: list[Dialogue], discount=UNDISCOUNTED, **more) -> list[TurnValues]:
    """Values against the returns of those that were rated."""
    rated = [each for each in dialogues if each.reward is not None]
    returns = returns_by_turn(rated, discount)
    by_id = {each.id: own for each, own in zip(rated, returns, strict=True)}
    return values_by_turn(dialogues, by_id, **more)


def talk(episode: int, reward: float | None, values, seed: int = 0) -> Dialogue:
    """A conversation of as many turns of the agent's as there are pairs of V and Q."""
    turns = [Turn("human", "Hi.")]
    for v, q in values:
        turns += [Turn("agent", "Yes.", annotations={"v": v, "q": q}), Turn("human", "Ok.")]
    source = {"method": "ilql", "population": "average", "seed": seed, "episode": episode}
    return Dialogue(f"{seed}-{episode}", "task", tuple(turns), reward, source=source)


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
    first, second = compared(talks())
    assert (first.turn, first.conversations) == (1, HUMANS)
    assert (second.turn, second.conversations) == (2, 40)
    assert first.v.low < 0 < first.v.high and first.q.mean == 1  # V and Q are not mixed up
    assert second.v.mean == second.q.mean == 1 and second.error.mean == pytest.approx(-0.1)
    assert first.error.mean == pytest.approx(-0.2)
    assert first.spread == pytest.approx(np.std([each.reward for each in talks()]))


def test_trainings_are_averaged_and_their_humans_counted_once():
    (_, one), (_, other), (_, both) = (
        compared(each) for each in (talks(1, 0.3), talks(2, 0.3), [*talks(1, 0.3), *talks(2, 0.3)])
    )
    assert one.q.mean < 0.9  # of Q, not of the reward
    assert both.q.mean == pytest.approx((one.q.mean + other.q.mean) / 2)
    assert both.conversations == 80
    assert both.q.high - both.q.low == pytest.approx(one.q.high - one.q.low, rel=0.3)


@pytest.mark.parametrize("of_turns", [0.0, 0.3])
def test_perfect_values_of_discounted_returns_do_not_err(of_turns):
    """Ratings at the end, with and without rewards of turns on the way to them."""
    rng = np.random.default_rng(0)
    dialogues = []
    for episode in range(2 * HUMANS):
        length, rating = int(rng.integers(3, 21)), float(rng.random())
        rewards = of_turns * rng.random(length)
        end = rewards + rating * (np.arange(length) == length - 1)
        right = [float(end[k:] @ 0.9 ** np.arange(length - k)) for k in range(length)]
        plain = talk(episode, rating, [(q, q) for q in right])
        turns = iter(rewards.tolist())
        rewarded = [
            dataclasses.replace(t, reward=next(turns)) if t.speaker == "agent" else t
            for t in plain.turns
        ]
        dialogues.append(dataclasses.replace(plain, turns=tuple(rewarded)))
    found = compared(dialogues, UTTERANCES)
    assert len(found) > 10
    for each in found:
        assert each.error == pytest.approx((0, 0, 0), abs=1e-9)
        assert each.q.mean == pytest.approx(1)
    undiscounted = compared(dialogues)
    assert undiscounted[0].error.mean < -0.3 and undiscounted[0].q.mean < 0.9


def test_values_by_token_are_discounted_by_the_tokens_of_later_turns():
    texts = [("Hello there.", "Yes."), ("No.", "I see, go on.", "Ah.")]
    dialogues = [
        Dialogue(
            str(number),
            "task",
            tuple(t for text in own for t in (Turn("human", "Hi."), Turn("agent", text))),
            2.0,
        )
        for number, own in enumerate(texts)
    ]
    tokenizer = DialogueTokenizer.train(dialogues, 300)
    found = returns_by_turn(dialogues, Discount(0.9, by_token=True), tokenizer)
    for dialogue, returns in zip(dialogues, found, strict=True):
        [trajectory] = tokenizer.trajectories([dialogue])
        at = np.flatnonzero(trajectory.is_action)
        last = at[np.append(np.diff(at) > 1, True)]  # token of each turn
        left = [int((at > place).sum()) for place in last]
        assert len(set(left)) == len(dialogue.agent_turns) and max(left) > 2
        assert returns == pytest.approx(2.0 * 0.9 ** np.array(left))


def test_a_methods_discount_is_that_of_its_decisions():
    batches = BatchConfig(token_discount=0.8, utterance_discount=0.9)
    ilql = METHODS["ilql"]
    assert discount_of(ilql, batches) == UTTERANCES
    assert discount_of(ilql.configured(credit="token"), batches) == Discount(0.8, by_token=True)
    assert discount_of(METHODS["bc"], batches) is None
    assert list(map(str, (UTTERANCES, Discount(0.99, True)))) == [
        "0.9 an utterance",
        "0.99 a token",
    ]


def test_late_turns_can_be_taken_together():
    dialogues = [talk(k, float(k), [(k, k + turn) for turn in range(5)]) for k in range(FEWEST)]
    (*_, third), alone = compared(dialogues, together_from=3), compared(dialogues)
    assert [each.turn for each in alone] == [1, 2, 3, 4, 5]
    assert (third.turn, third.and_later, third.conversations) == (3, True, FEWEST)
    assert third.error.mean == pytest.approx(3.0) and not any(e.and_later for e in alone)


def test_the_intervals_are_over_trainings_too():
    both = [*talks(1, 0.3), *talks(2, 0.3)]
    raised = [
        talk(
            each.source["episode"],
            each.reward,
            [
                (t.annotations["v"], t.annotations["q"] + each.source["seed"])
                for t in each.agent_turns
            ],
            each.source["seed"],
        )
        for each in both
    ]
    (_, plain), (_, found) = compared(both), compared(raised)
    assert found.error.mean == pytest.approx(plain.error.mean + 40 * 1.5 / 40)
    assert found.error.high - found.error.low > 5 * (plain.error.high - plain.error.low)
    assert found.q == plain.q  # ranks within a training are the same


def test_a_correlations_interval_is_that_over_trainings_where_these_differ():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 400))
    groups = [np.column_stack([x, x + scale * noise]) for scale in (0.3, 1.0, 3.0)]
    each = [rank_correlation([group], 10**9).mean for group in groups]
    found = rank_correlation(groups, 10**9)
    z = np.arctanh(each)
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(z)
    center = np.arctanh(np.mean(each))
    assert found == pytest.approx((np.mean(each), *np.tanh([center - half, center + half])))


def test_turns_that_few_reach_and_turns_without_values_are_left_out():
    assert compared([]) == []
    assert compared(talks()[: FEWEST - 1]) == []
    assert [found.turn for found in compared(talks()[:FEWEST])] == [1]
    assert compared([talk(k, 1.0, [(0.1, None)]) for k in range(HUMANS)]) == []
    assert compared([talk(k, 1.0, [(None, 0.2)]) for k in range(HUMANS)]) == []
    assert compared([talk(k, 1.0, [(None, None)]) for k in range(HUMANS)]) == []
    assert compared([talk(k, None, [(0.1, 0.2)]) for k in range(HUMANS)]) == []
    (alike,) = compared([talk(k, 1.0, [(0.1, 0.2)]) for k in range(HUMANS)])
    assert np.isnan(alike.v.mean) and alike.error == pytest.approx((-0.8, -0.8, -0.8))


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
    found = compared(dialogues)
    assert found[0].q.mean == pytest.approx(first, abs=0.01)
    assert found[2].q.mean > found[0].q.mean
    assert all(abs(each.error.mean) < 0.002 and each.spread < 0.03 for each in found)


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
    discount = Discount(0.5, by_token=False)
    returns = returns_by_turn(conversations, discount)
    run = Run(
        evaluations.evaluation(population),
        *(None, conversations, [], {}, ""),
        trained={"ilql": Trained(discount)},
        returns={each.id: own for each, own in zip(conversations, returns, strict=True)},
    )
    (table,) = tables.values_tables(run)
    assert [(row.key, str(row.cells[1])) for row in table.rows] == [
        ("ilql", "1"),
        ("ilql", "2"),
        ("ilql", "3"),
    ]
    spread = np.std([3 + 0.1 * (episode % 7) for episode in range(30)])
    spreads = [str(row.cells[5]) for row in table.rows]
    assert spreads == [f"{spread * factor:.2f}" for factor in (0.25, 0.5, 1)]
    assert len(table.headers) == 7
    assert "Returns are discounted as in the training, by 0.5 an utterance." in table.notes[0]
    assert tables.values_tables(dataclasses.replace(run, returns={})) == []
