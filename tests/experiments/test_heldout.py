"""Judging on dialogues that were set apart: which turns replies are set beside."""

from __future__ import annotations

from experiments.evaluation.heldout import choose_moments
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
