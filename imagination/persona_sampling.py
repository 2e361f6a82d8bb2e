"""`PersonaSampling`: whom dialogues are imagined with, which need not be who will come.

Rare people are learned from little where personas are drawn from their prior. Data may be imagined
with other shares; each dialogue keeps the prior probability of its persona, so that whatever is
computed from the data can be weighted back to the prior (`importance_weights`). Evaluation draws
from the prior itself.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from ilql_jax.settings import SettingError, Settings, setting
from imagination.dialogue import Dialogue

PERSONAS = ("prior", "balanced", "uniform")
PRIOR_PROBABILITY = "prior_probability"  # field of a dialogue's source

AnyPersona = TypeVar("AnyPersona", bound=Hashable)


def persona_key(persona: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The persona as a hashable key."""
    return tuple(persona.items())


@dataclasses.dataclass(frozen=True)
class PersonaSampling(Settings):
    """Distribution of the personas that dialogues are imagined with.

    Raises:
        SettingError: A value out of bounds; its message names the field and its bounds.
    """

    personas: str = setting(
        "Personas of the dialogues: prior (as they come), balanced (difficult personas with "
        "difficult_share, each kind by its prior), or uniform (each that can come as often). "
        "Evaluation keeps to the prior.",
        "prior",
        choices=PERSONAS,
    )
    difficult_share: float = setting(
        "Share of dialogues with difficult personas, where these are balanced.",
        0.5,
        least=0,
        most=1,
    )

    def distribution(
        self, prior: Mapping[AnyPersona, float], is_difficult: Callable[[AnyPersona], bool]
    ) -> dict[AnyPersona, float]:
        """Probability of each persona in the data.

        Args:
            prior: Persona -> prior probability, positive; they sum to 1.
            is_difficult: Tells the difficult personas.

        Raises:
            SettingError: Balanced, and no persona is of a kind that is to take part.
        """
        if self.personas == "prior":
            return dict(prior)
        if self.personas == "uniform":
            return dict.fromkeys(prior, 1 / len(prior))
        kind = {persona: bool(is_difficult(persona)) for persona in prior}
        self.check_kinds(kind.values())
        totals = Counter()
        for persona, probability in prior.items():
            totals[kind[persona]] += probability
        shares = {True: self.difficult_share, False: 1 - self.difficult_share}
        return {
            persona: shares[kind[persona]] * probability / totals[kind[persona]]
            for persona, probability in prior.items()
        }

    def check_kinds(self, kinds: Collection[bool]) -> None:
        """Checks that personas of each kind that is to take part are among these.

        Args:
            kinds: True for each difficult persona, False for each other.

        Raises:
            SettingError: Balanced, and there is none of a kind.
        """
        if self.personas != "balanced":
            return
        wanted = {True: self.difficult_share > 0, False: self.difficult_share < 1}
        for kind, name in ((True, "is"), (False, "is not")):
            if wanted[kind] and kind not in kinds:
                raise SettingError(
                    "personas",
                    self.personas,
                    f"none of the {len(kinds):,} personas {name} difficult, so prior and uniform "
                    "are what there is to choose from",
                )


def importance_weights(dialogues: Sequence[Dialogue]) -> Float[np.ndarray, " dialogues"] | None:
    """Weights that turn means over dialogues into means under the prior of their personas.

    A dialogue's weight is the prior probability of its persona over that persona's share of these
    dialogues; the weights are scaled to a mean of 1. They speak for the personas that occur: what
    the prior gives to others is spread over these.

    Returns:
        The weights, or None where a dialogue does not say how probable its persona is.
    """
    prior = [dialogue.source.get(PRIOR_PROBABILITY) for dialogue in dialogues]
    if not all(prior) or min(prior, default=0.0) < 0:
        return None
    counts = Counter(persona_key(dialogue.persona) for dialogue in dialogues)
    shares = [counts[persona_key(dialogue.persona)] for dialogue in dialogues]
    weights = np.array(prior, float) / np.array(shares, float)
    return weights / weights.mean()
