"""`Dice`: every random choice of a conversation, from its seed and nothing else.

A conversation's words must not depend on who else is in its batch, so each choice has its own
small generator, keyed by the conversation's seed, the purpose and the turn. SplitMix64 costs a
microsecond, where a numpy generator costs twenty to construct.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Option = TypeVar("Option", bound=Hashable)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# Purposes: the second key of a `Dice`, so that two choices in one turn are independent.
PERSONA, SLOTS, HUMAN, AGENT, BEHAVIOUR, SEED, CONTROLLER, FLAW = range(1, 9)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Dice:
    """A tiny random generator that is a function of its integer keys."""

    __slots__ = ("_state",)

    def __init__(self, *keys: int):
        state = 0
        for key in keys:
            state = _mix(((state ^ (key & _MASK)) + _GOLDEN) & _MASK)
        self._state = state

    def integer(self) -> int:
        """A uniform 64-bit integer."""
        self._state = (self._state + _GOLDEN) & _MASK
        return _mix(self._state)

    def uniform(self) -> float:
        """A uniform number in [0, 1)."""
        return (self.integer() >> 11) / (1 << 53)

    def below(self, count: int) -> int:
        """A uniform integer in [0, count)."""
        return self.integer() % count

    def choose(self, probabilities: Mapping[Option, float]) -> Option:
        """One of the keys, with the probability that is its value (they sum to 1)."""
        threshold = self.uniform()
        chosen = None
        for option, probability in probabilities.items():
            if probability <= 0.0:
                continue
            chosen = option
            threshold -= probability
            if threshold < 0.0:
                break
        if chosen is None:
            raise ValueError(f"nothing to choose from: no positive probability in {probabilities}")
        return chosen
