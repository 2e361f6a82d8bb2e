"""Measures of diversity, by hand."""

import collections

import numpy as np
import pytest

from imagination.dialogue import Dialogue, Turn
from imagination.diversity import distinct, nearest_pairs, ngrams, self_bleu, words_of


def split(text):
    return text.split()


def dialogue(id, *texts, **fields):
    turns = [Turn("human" if i % 2 == 0 else "agent", text) for i, text in enumerate(texts)]
    return Dialogue(id=id, task="t", turns=tuple(turns), **fields)


def test_distinct_by_hand():
    texts = [split("a b a b"), split("a b")]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4
    assert distinct(texts, 5) == 0


def test_self_bleu_by_hand():
    # Either way: unigrams 3/4; bigrams (1+1)/(3+1), trigrams (0+1)/(2+1), four-grams (0+1)/(1+1).
    expected = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    texts = [split("a b x c"), split("a b c d")]
    assert self_bleu(texts) == pytest.approx(expected)
    assert self_bleu([split("a b"), split("c d")]) == 0
    # The short one is penalized by its length, the long one by its n-grams.
    short, long = np.exp(1 - 8 / 4), (4 / 8 * 4 / 8 * 3 / 7 * 2 / 6) ** 0.25
    texts = [split("a b c d"), split("a b c d e f g h")]
    assert self_bleu(texts) == pytest.approx((short + long) / 2)


def bleu(words, references):
    """BLEU-4 as in the textbook: counts clipped by the most that one reference has."""
    score = 1.0
    for n in range(1, 5):
        counts, most = ngrams(words, n), collections.Counter()
        for reference in references:
            most |= ngrams(reference, n)
        smoothing = int(n > 1)
        score *= (sum((counts & most).values()) + smoothing) / (counts.total() + smoothing)
    closest = min((len(r) for r in references), key=lambda k: (abs(k - len(words)), k))
    return score**0.25 * min(1.0, np.exp(1 - closest / len(words)))


def test_self_bleu_is_the_mean_of_each_against_the_others():
    dice = np.random.default_rng(0)
    texts = [list(map(str, dice.integers(0, 6, size=dice.integers(5, 15)))) for _ in range(12)]
    each = [bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(np.mean(each))
    assert self_bleu([["a", "b", "c", "d"]] * 3) == pytest.approx(1)
    assert self_bleu([["a"]]) == 0


def test_the_most_alike_come_first():
    dialogues = [
        dialogue("a", "I would like a red bicycle."),
        dialogue("b", "Something else altogether, thank you."),
        dialogue("c", "I would like a red tricycle."),
    ]
    (score, first, second), *_ = nearest_pairs(dialogues)
    assert {first.id, second.id} == {"a", "c"} and 0.4 < score < 1


def test_words_without_spaces_between_them_are_told():
    assert words_of(dialogue("a", "I'm Ann, (really)...", "我想买AI书。")) == [
        *("i'm", "ann", "really"),
        *("我想", "买", "ai", "书"),
    ]
