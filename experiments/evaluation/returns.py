"""Returns from a turn of the agent's on, discounted as in the training of what foretells them.

Values are of discounted returns. Held against the reward itself, those of an early turn seem to
hope for too little, however right they are: γ = 0.99 an utterance leaves 0.82 of a rating that is
twenty utterances away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from experiments.config import BatchConfig
from ilql_jax.batching import utterance_bounds
from ilql_jax.methods import Method
from imagination.dialogue import Dialogue
from imagination.tokenization import DialogueTokenizer


@dataclasses.dataclass(frozen=True)
class Discount:
    """Discount of a method's values.

    Attributes:
        factor: γ from one decision to the next.
        by_token: True where each of the agent's tokens is a decision, else each utterance is one.
    """

    factor: float
    by_token: bool

    def __str__(self) -> str:
        return f"{self.factor:g} {'a token' if self.by_token else 'an utterance'}"


def discount_of(method: Method, batches: BatchConfig) -> Discount | None:
    """The discount that a method's values are learned with; None where it learns none."""
    if not method.learns_values:
        return None
    by_token = method.values_every_token
    return Discount(batches.token_discount if by_token else batches.utterance_discount, by_token)


def returns_by_turn(
    dialogues: Sequence[Dialogue], discount: Discount, tokenizer: DialogueTokenizer | None = None
) -> list[Float[np.ndarray, " turns"]]:
    """Discounted sums of the rewards from each of the agent's turns on, with the rating at the end.

    Args:
        dialogues: Rated dialogues.
        discount: A value by token is read at the last token of a turn: what the tokens of later
            turns take off is counted from there.
        tokenizer: That of the training; needed where values are by token.

    Returns:
        For each dialogue an array over the agent's turns.
    """
    steps = [np.ones(len(dialogue.agent_turns), int) for dialogue in dialogues]
    if discount.by_token:
        steps = [_lengths(each.is_action) for each in tokenizer.trajectories(dialogues)]
    return [
        _returns(dialogue, discount.factor**own)
        for dialogue, own in zip(dialogues, steps, strict=True)
    ]


def _lengths(is_action: np.ndarray) -> Int[np.ndarray, " turns"]:
    first, last = utterance_bounds(is_action)
    return last - first + 1


def _returns(
    dialogue: Dialogue, factors: Float[np.ndarray, " turns"]
) -> Float[np.ndarray, " turns"]:
    """`factors`: what each turn takes off the return that comes with it, seen from before it."""
    found, following = [], dialogue.reward
    for turn, factor in zip(dialogue.agent_turns[::-1], factors[::-1], strict=True):
        found.append(turn.reward + following)
        following = factor * found[-1]
    return np.array(found[::-1])
