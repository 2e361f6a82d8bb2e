"""Judging on dialogues that were set apart: values, and which turns replies are set beside."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from experiments.evaluation.heldout import _ended, by_turn, choose_moments, value_prediction
from experiments.evaluation.returns import Discount, returns_by_turn
from experiments.run_folder import Unit
from ilql_jax.scoring import Scores
from imagination.dialogue import Dialogue, Turn


def dialogue(name: str, speakers: str) -> Dialogue:
    """Turns of the human (h) and the agent (a)."""
    turns = tuple(Turn("human" if each == "h" else "agent", each) for each in speakers)
    return Dialogue(name, "task", turns, 1.0)


def test_moments_are_answers_spread_over_dialogues_and_their_course():
    dialogues = [dialogue(str(number), "ahahahah") for number in range(10)]
    chosen = choose_moments(dialogues, 3)
    assert [(each.id, turn) for each, turn in chosen] == [("0", 2), ("3", 4), ("6", 6)]
    assert choose_moments(dialogues, 0) == []


def test_turns_that_answer_nobody_are_no_moments():
    dialogues = [dialogue("opens", "ah"), dialogue("twice", "haa"), dialogue("answers", "hha")]
    chosen = choose_moments(dialogues, 5)
    assert [(each.id, turn) for each, turn in chosen] == [("twice", 1), ("answers", 2)]
    assert choose_moments(dialogues[:1], 5) == []


def rated(length: int, reward: float) -> Dialogue:
    turns = (Turn("human", "Hi."), Turn("agent", "Yes.")) * length
    return Dialogue(f"{length}, {reward}", "task", turns, reward)


def judged(hopes: dict[int, float]):
    """Values of trainings that hope for so much more than what then comes, discounted by 0.9."""
    rng = np.random.default_rng(0)
    dialogues = [rated(int(rng.integers(3, 12)), float(rng.random())) for _ in range(80)]
    lengths = [len(each.agent_turns) for each in dialogues]
    values = [
        each.reward * 0.9 ** np.arange(length)[::-1]
        for each, length in zip(dialogues, lengths, strict=True)
    ]
    nothing = np.zeros(0)
    scores = {
        Unit("ilql", seed): [Scores(nothing, -own, own + hope) for own in values]
        for seed, hope in hopes.items()
    }
    scores[Unit("mc", 0)] = [Scores(nothing, own + 9, own + 9) for own in values]
    returns = returns_by_turn(dialogues, Discount(0.9, by_token=False))
    turns = by_turn(scores, "ilql", dialogues, returns)
    return turns, value_prediction(scores, "ilql", dialogues, returns, 0.5, seed=0)


def test_values_are_not_held_against_dialogues_that_were_cut_off():
    dialogues = [rated(length, 0.5) for length in (3, 4, 5)]
    dialogues[1] = dataclasses.replace(dialogues[1], terminal=False)
    none = np.zeros(0)
    scores = {Unit("ilql", 0): [Scores(none, none, np.full(length, 1.0)) for length in (3, 4, 5)]}
    console = Console(file=io.StringIO(), width=200)
    ended, of_ended = _ended(dialogues, scores, console)
    assert ended == [dialogues[0], dialogues[2]]
    assert [len(each.q) for each in of_ended[Unit("ilql", 0)]] == [3, 5]
    assert console.file.getvalue().startswith("1 of these were cut off (terminal: false)")
    assert _ended(dialogues[:1], {}, console) == (dialogues[:1], {})


def test_perfect_values_of_held_out_dialogues_do_not_err():
    turns, points = judged({0: 0.0})
    assert [(each.turn, each.and_later) for each in turns] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    for each in turns:
        assert each.error.value == pytest.approx(0, abs=1e-9)
        assert each.q.value == pytest.approx(1) and each.v.value == pytest.approx(-1)
    assert turns[0].dialogues == 80 > turns[3].dialogues
    for point in points:
        for each in point.calibration:
            assert each.predicted == pytest.approx(each.observed)
    first, last = (points[place].calibration[-1].observed for place in (0, -1))
    assert first < 0.8 * last  # of the same rewards, farther away


def test_turns_of_held_out_dialogues_have_intervals_over_trainings():
    (alone, *_), _ = judged({0: 0.1})
    (first, *_), _ = judged({0: 0.0, 1: 0.2})
    assert (alone.error.value, first.error.value) == pytest.approx((0.1, 0.1))
    assert alone.error.ci95 == pytest.approx((0.1, 0.1))
    assert first.error.ci95[0] < 0 and first.error.ci95[1] > 0.2
    assert first.dialogues == 80
