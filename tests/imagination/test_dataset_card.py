"""The dataset card's figures of the dialogues."""

import collections
import dataclasses
import types

import numpy as np
import pytest
from imagination_client import TASK, FakeClient, failing_first_time, imagine

from imagination import dataset_card
from imagination.criteria import CLOSING, GRADUAL
from imagination.dialogue import Dialogue, Turn
from imagination.prompts import load_prompt


def split(text):
    return text.split()


def dialogue(id, *texts, **fields):
    turns = [Turn("human" if i % 2 == 0 else "agent", text) for i, text in enumerate(texts)]
    return Dialogue(id=id, task="t", turns=tuple(turns), **fields)


def test_distinct_by_hand():
    texts = [split("a b a b"), split("a b")]
    assert dataset_card.distinct(texts, 1) == 2 / 6
    assert dataset_card.distinct(texts, 2) == 2 / 4
    assert dataset_card.distinct(texts, 5) == 0


def test_self_bleu_by_hand():
    # Either way: unigrams 3/4; bigrams (1+1)/(3+1), trigrams (0+1)/(2+1), four-grams (0+1)/(1+1).
    expected = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    texts = [split("a b x c"), split("a b c d")]
    assert dataset_card.self_bleu(texts) == pytest.approx(expected)
    assert dataset_card.self_bleu([split("a b"), split("c d")]) == 0
    # The short one is penalized by its length, the long one by its n-grams.
    short, long = np.exp(1 - 8 / 4), (4 / 8 * 4 / 8 * 3 / 7 * 2 / 6) ** 0.25
    texts = [split("a b c d"), split("a b c d e f g h")]
    assert dataset_card.self_bleu(texts) == pytest.approx((short + long) / 2)


def bleu(words, references):
    """BLEU-4 as in the textbook: counts clipped by the most that one reference has."""
    score = 1.0
    for n in range(1, 5):
        counts, most = dataset_card.ngrams(words, n), collections.Counter()
        for reference in references:
            most |= dataset_card.ngrams(reference, n)
        smoothing = int(n > 1)
        score *= (sum((counts & most).values()) + smoothing) / (counts.total() + smoothing)
    closest = min((len(r) for r in references), key=lambda k: (abs(k - len(words)), k))
    return score**0.25 * min(1.0, np.exp(1 - closest / len(words)))


def test_self_bleu_is_the_mean_of_each_against_the_others():
    dice = np.random.default_rng(0)
    texts = [list(map(str, dice.integers(0, 6, size=dice.integers(5, 15)))) for _ in range(12)]
    each = [bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
    assert dataset_card.self_bleu(texts) == pytest.approx(np.mean(each))
    assert dataset_card.self_bleu([["a", "b", "c", "d"]] * 3) == pytest.approx(1)
    assert dataset_card.self_bleu([["a"]]) == 0


def test_the_most_alike_come_first():
    dialogues = [
        dialogue("a", "I would like a red bicycle."),
        dialogue("b", "Something else altogether, thank you."),
        dialogue("c", "I would like a red tricycle."),
    ]
    (score, first, second), *_ = dataset_card.nearest_pairs(dialogues)
    assert {first.id, second.id} == {"a", "c"} and 0.4 < score < 1


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
