"""Diversity of texts: distinct n-grams, self-BLEU, and the pairs that are most alike."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from imagination.dialogue import Dialogue
from imagination.languages import spaced_words


def words_of(dialogue: Dialogue) -> list[str]:
    """The dialogue's words, lower case, without punctuation at their ends."""
    text = " ".join(turn.text for turn in dialogue.turns).lower()
    return [word for word in (raw.strip(".,;:!?\"'()…") for raw in spaced_words(text)) if word]


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Counts of each run of n words."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Different n-grams as a fraction of all (distinct-n, arXiv 1510.03055); 0 without any."""
    different: set[tuple[str, ...]] = set()
    total = 0
    for words in texts:
        different.update(zip(*(words[i:] for i in range(n)), strict=False))
        total += max(0, len(words) - n + 1)
    return len(different) / total if total else 0.0


def _bleu(words: Sequence[str], most: Sequence[Counter], lengths: Sequence[int]) -> float:
    """BLEU of one text against references, in [0, 1].

    Orders above 1 are smoothed by one count more (Lin & Och 2004), so that a short text without a
    common 4-gram is not 0 altogether.

    Args:
        words: The text.
        most: For each order, the highest count of each n-gram in a reference.
        lengths: Lengths of the references.
    """
    if not words or not lengths:
        return 0.0
    log_precision = 0.0
    for n, reference in enumerate(most, start=1):
        counts = ngrams(words, n)
        matches = sum(min(count, reference[gram]) for gram, count in counts.items())
        smoothing = 0 if n == 1 else 1
        total = counts.total() + smoothing
        if matches + smoothing == 0:
            return 0.0
        log_precision += math.log((matches + smoothing) / total) / len(most)
    closest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    brevity = min(0.0, 1 - closest / len(words))
    return math.exp(brevity + log_precision)


def self_bleu(texts: Sequence[Sequence[str]], order: int = 4) -> float:
    """Mean BLEU of each text against all others (arXiv 1802.01886): 1 = all alike.

    The two highest counts of every n-gram are kept; so the highest count among the references of a
    text needs no second pass over them.
    """
    if len(texts) < 2:
        return 0.0
    counts = [[ngrams(words, n) for words in texts] for n in range(1, order + 1)]
    highest: list[Counter] = [Counter() for _ in counts]
    second: list[Counter] = [Counter() for _ in counts]
    for best, runner_up, own in zip(highest, second, counts, strict=True):
        for counter in own:
            for gram, count in counter.items():
                if count > best[gram]:
                    best[gram], runner_up[gram] = count, best[gram]
                elif count > runner_up[gram]:
                    runner_up[gram] = count
    scores = []
    for index, words in enumerate(texts):
        most = [
            Counter(
                {
                    # Without one's own count the highest is the second, if it was one's own.
                    gram: runner_up[gram] if best[gram] == count else best[gram]
                    for gram, count in own[index].items()
                }
            )
            for best, runner_up, own in zip(highest, second, counts, strict=True)
        ]
        lengths = [len(other) for i, other in enumerate(texts) if i != index]
        scores.append(_bleu(words, most, lengths))
    return sum(scores) / len(scores)


def nearest_pairs(
    dialogues: Sequence[Dialogue], pairs: int = 5, n: int = 5
) -> list[tuple[float, Dialogue, Dialogue]]:
    """The most alike pairs, by Jaccard similarity of their character n-grams, best first."""
    grams = []
    for dialogue in dialogues:
        text = " ".join(words_of(dialogue))
        grams.append({text[i : i + n] for i in range(max(1, len(text) - n + 1))})
    scored = []
    for i, j in itertools.combinations(range(len(dialogues)), 2):
        common = len(grams[i] & grams[j])
        scored.append((common / (len(grams[i]) + len(grams[j]) - common), i, j))
    scored.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [(score, dialogues[i], dialogues[j]) for score, i, j in scored[:pairs]]
