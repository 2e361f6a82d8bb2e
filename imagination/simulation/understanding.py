"""Loose understanding of free text: which act (or reply) do these words come closest to?

A text is compared with samples of every act's phrasings by TF-IDF over single words and pairs of
neighbours. The nearest phrasing decides, unless nothing is near enough, the second-best act is
almost as near, or the text does not hold together: words that only other acts use, and pairs
that the act never has, are the marks of a mix of two things. Then it is not understood.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sparse

from imagination.simulation import grammar
from imagination.simulation.grammar import Phrasing

_WORD = re.compile(r"[a-z0-9_']+")
# Fillers say nothing about what is meant; without them polite and plain texts come out alike.
_FILLERS = frozenset(
    word
    for words in ("sure okay alright great hello hi hey", "please just really well so oh yes")
    for word in words.split()
)
_PAIR_WEIGHT = 0.6
_SAMPLES_PER_TEMPLATE = 250
_CHUNK = 512
# What is understood is kept, as the same phrasings come again and again; people in front of a
# server say ever new things.
_MOST_KEPT, _LONGEST_KEPT = 200_000, 500


class Understanding:
    """Nearest phrasing by cosine, with a threshold, a margin, and a demand for coherence.

    Args:
        phrasings: Name of the act -> its phrasings.
        slots: Slot name -> values; a value in a text counts as the slot, whichever it is.
        threshold: Least cosine to the nearest phrasing.
        margin: Least lead over the nearest phrasing of any other act.
        coherence: Least share of words not foreign to the act, times share of familiar pairs.
    """

    def __init__(
        self,
        phrasings: Mapping[str, Phrasing],
        slots: Mapping[str, Sequence[str]],
        threshold: float = 0.45,
        margin: float = 0.04,
        coherence: float = 0.45,
    ):
        self.threshold, self.margin, self.least_coherence = threshold, margin, coherence
        self.names = tuple(phrasings)
        # Samples keep their slots open, "{topic}", and so hold the word that masks a value.
        self._masks = [(_any_of(values), f" {slot} ") for slot, values in slots.items()]
        self._cache: dict[str, str | None] = {}
        texts, owners = [], []
        for owner, name in enumerate(self.names):
            for template in (*phrasings[name].templates, *phrasings[name].also):
                samples = grammar.sample_forms(template, _SAMPLES_PER_TEMPLATE)
                texts += samples
                owners += [owner] * len(samples)
        bags = [self._features(text) for text in texts]
        self._own: list[set[str]] = [set() for _ in self.names]
        for owner, bag in zip(owners, bags, strict=True):
            self._own[owner].update(bag)
        counts = Counter(feature for bag in bags for feature in bag)
        self._index = {feature: column for column, feature in enumerate(counts)}
        frequencies = np.array(list(counts.values()), dtype=np.float32)
        self._idf = 1.0 + np.log((1.0 + len(bags)) / (1.0 + frequencies))
        self._unknown_weight = float(self._idf.max()) * 0.6
        self._phrases = self._matrix(bags).T.tocsr()
        # Owners are sorted, so the best phrasing of each act is a segment-wise maximum.
        self._starts = np.flatnonzero(np.diff([-1, *owners]))

    def understand(self, texts: Sequence[str]) -> list[str | None]:
        """The act of each text; None where it is not understood."""
        found = {text: self._cache[text] for text in texts if text in self._cache}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            found.update(zip(chunk, self._decide(chunk), strict=True))
        if len(self._cache) > _MOST_KEPT:
            self._cache.clear()
        self._cache.update((text, found[text]) for text in new if len(text) <= _LONGEST_KEPT)
        return [found[text] for text in texts]

    def similarities(self, texts: Sequence[str]) -> np.ndarray:
        """Cosine of each text to the nearest phrasing of each act, [texts, acts]."""
        if not texts:
            return np.zeros((0, len(self.names)), np.float32)
        scores = (self._matrix([self._features(text) for text in texts]) @ self._phrases).toarray()
        return np.maximum.reduceat(scores, self._starts, axis=1)

    def nearest(self, text: str) -> str:
        """The act that comes closest, however far."""
        return self.names[int(self.similarities([text])[0].argmax())]

    def coherence(self, text: str, name: str) -> float:
        """Share of the words not foreign to the act, times share of the pairs that it has.

        Words that no act has are not foreign: people use them.
        """
        own = self._own[self.names.index(name)]
        words = foreign = 0.0
        pairs = familiar = 0
        for feature in self._features(text):
            if " " in feature:
                pairs += 1
                familiar += feature in own
            else:
                weight = self._weight(feature) ** 2
                words += weight
                foreign += weight * (feature in self._index and feature not in own)
        return (1.0 - foreign / words if words else 0.0) * (familiar / pairs if pairs else 1.0)

    def _decide(self, texts: Sequence[str]) -> list[str | None]:
        similarities = self.similarities(texts)
        order = np.sort(similarities, axis=1)
        clear = order[:, -1] >= self.threshold
        if similarities.shape[1] > 1:
            clear &= order[:, -1] - order[:, -2] >= self.margin
        best = [self.names[index] for index in similarities.argmax(axis=1)]
        return [
            name if is_clear and self.coherence(text, name) >= self.least_coherence else None
            for text, name, is_clear in zip(texts, best, clear, strict=True)
        ]

    def _weight(self, feature: str) -> float:
        column = self._index.get(feature)
        return self._unknown_weight if column is None else float(self._idf[column])

    def _features(self, text: str) -> Counter[str]:
        text = text.lower()
        for pattern, mask in self._masks:
            text = pattern.sub(mask, text)
        words = [word for word in _WORD.findall(text) if word not in _FILLERS]
        pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
        return Counter([*words, *pairs])

    def _matrix(self, bags: Sequence[Mapping[str, int]]) -> sparse.csr_matrix:
        """Rows of unit length; unknown words lengthen a row without matching anything."""
        rows, columns, values = [], [], []
        for row, bag in enumerate(bags):
            squared, entries = 0.0, []
            for feature, count in bag.items():
                is_pair = " " in feature
                column = self._index.get(feature)
                weight = (
                    self._weight(feature)
                    * (1.0 + np.log(count))
                    * (_PAIR_WEIGHT if is_pair else 1.0)
                )
                if column is not None:
                    entries.append((column, weight))
                elif is_pair:
                    weight *= 0.5
                squared += weight * weight
            for column, weight in entries:
                rows.append(row)
                columns.append(column)
                values.append(weight / squared**0.5)
        shape = (len(bags), len(self._index))
        return sparse.csr_matrix((np.array(values, np.float32), (rows, columns)), shape=shape)


def _any_of(values: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(values, key=len, reverse=True)
    words = "|".join(re.escape(value.lower()) for value in longest_first)
    return re.compile(rf"\b(?:{words})\b")
