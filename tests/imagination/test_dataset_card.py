"""The dataset card's figures of the dialogues."""

import dataclasses
import types

import numpy as np
import pytest
from imagination_client import TASK, FakeClient, failing_first_time, imagine

from imagination import dataset_card
from imagination.criteria import CLOSING, GRADUAL
from imagination.dialogue import Dialogue, Turn
from imagination.prompts import load_prompt


def dialogue(id, *texts, **fields):
    turns = [Turn("human" if i % 2 == 0 else "agent", text) for i, text in enumerate(texts)]
    return Dialogue(id=id, task="t", turns=tuple(turns), **fields)


def test_agreement_of_reward_sources_by_hand():
    pairs = [(0.0, 0.1), (0.0, 0.3), (1.0, 0.9), (1.0, 0.5)]
    dialogues = [
        dialogue(str(i), "x", source={"rewards": {"outcome": a, "judge": None, "human": b}})
        for i, (a, b) in enumerate(pairs)
    ]
    (found,) = dataset_card.agreements(dialogues)
    assert (found.first, found.second, found.dialogues) == ("outcome", "human", 4)
    assert found.pearson == pytest.approx(np.corrcoef(*zip(*pairs, strict=True))[0, 1])
    assert found.mean_difference == pytest.approx((0.1 + 0.3 + 0.1 + 0.5) / 4)
    same = [dataclasses.replace(d, source=dialogues[0].source) for d in dialogues]
    assert dataset_card.agreements(same)[0].pearson is None


def test_the_card_says_all_of_it():
    client = FakeClient(failing_first_time(1))
    settings = {"way": "script", "also_rewards": ("judge", "outcome"), "dialogues": 18}
    imagined = imagine(client, **settings)
    meter = [{"step": "imagine", "calls": 18, "input_tokens": 1200, "cost": 0.25}]
    dropped = [types.SimpleNamespace(step="imagine", reason="refused")]
    card = dataset_card.dataset_card(imagined.dialogues, TASK, meter=meter, dropped=dropped)
    assert "18 of 18 combinations occur, 1 to 1 times each." in card
    assert f"| {GRADUAL} | 18 | 100.0% | 0.0% |" in card
    assert f"| {CLOSING} | 18 | 0.0% | 0.0% |" in card
    assert "18 of 18 dialogues were rewritten" in card
    assert "distinct-2" in card and "self-BLEU-4" in card and "Most alike" in card
    assert (
        "| outcome, judge | 18 |" in card
        and load_prompt("engine/script").version in card
        and "fake-1" in card
    )
    sections = [line for line in card.splitlines() if line.startswith("#")]
    assert len(set(sections)) == len(sections) == 12 and sections[0] == "# advice: 18 dialogues"
    assert card.count("| axis | value |") == 1 and "| drifts |" in card
    assert "1 of 19 could not be finished." in card and "| all | 18 | 1,200 | 0.2500 |" in card


def test_the_card_of_dialogues_from_elsewhere_leaves_out_what_is_not_known():
    dialogues = [dialogue("a", "Hello there.", "Hi."), dialogue("b", "Hello.", "Hi there.")]
    card = dataset_card.dataset_card(dialogues, TASK)
    assert "Nobody rated" in card and "## Critique" not in card and "## Tokens" not in card
