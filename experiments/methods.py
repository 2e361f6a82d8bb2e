"""What a name in `config.methods` stands for: what is learned, and from which dialogues.

| name | learns | from |
| --- | --- | --- |
| `bc`, `fbc`, `mc`, `ilql` | see `ilql_jax/methods/` | the original dialogues |
| `ilql_hindsight2` (any of these) | the same | the originals and two rounds of hindsight |
| `dpo` | the policy of `bc`, moved towards what is better | the pairs of the first round |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from ilql_jax.methods import METHODS

ON_DIALOGUES = ("bc", "fbc", "mc", "ilql")
ON_PAIRS = "dpo"
PAIRS_START_FROM = "bc"  # whose training of the same seed goes before

_WITH_HINDSIGHT = re.compile(rf"({'|'.join(ON_DIALOGUES)})_hindsight([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class Method:
    """How the networks of a method are trained.

    Attributes:
        objective: What they learn.
        rounds: Rounds of hindsight they learn from, beside the original dialogues.
    """

    objective: str
    rounds: int = 0

    @property
    def on_pairs(self) -> bool:
        """Whether it learns from pairs of utterances instead of whole dialogues."""
        return self.objective == ON_PAIRS

    @property
    def learns_values(self) -> bool:
        return METHODS[self.objective].learns_values


def parse_method(name: str) -> Method:
    """The method of this name. Raises `ValueError` for a name that means nothing."""
    if name in ON_DIALOGUES:
        return Method(name)
    if name == ON_PAIRS:
        return Method(name, rounds=1)
    if found := _WITH_HINDSIGHT.fullmatch(name):
        return Method(found[1], rounds=int(found[2]))
    raise ValueError(
        f"there is no method {name!r}; there are {', '.join(ON_DIALOGUES)}, each of them with "
        f"rounds of hindsight as in ilql_hindsight1, and {ON_PAIRS}."
    )


def rounds_of(names: Iterable[str]) -> int:
    """Rounds of hindsight that these methods need; 0 = nobody looks back."""
    return max((parse_method(name).rounds for name in names), default=0)
