"""`ActorCritic`: one trunk, the language-model head, twin Q heads and a V head (ILQL, sec. 4).

Outside of the networks parameters are plain nested dicts of arrays: functions over them need no
Flax, and passing them through a jitted step costs less Python than a tree of Flax variables.
`with_params` puts them back into a network where its methods are called.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from ilql_jax.models.decoder import Decoder, DecoderConfig
from ilql_jax.models.heads import QHeads, VHead


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of an `ActorCritic`.

    Attributes:
        decoder: Shape of the trunk.
        value_inner_size: Width of the hidden layer of the value heads.
        utterance_q: How the value of an utterance is read from the Q heads. "sum": each token
            adds a share, Q(s, u) = Σ_t q(h_t, a_t), so that the word that matters is judged where
            it is chosen, by a row of its own. "last": Q of the last token, which has to remember
            all of it (the value of a token's own decision; needed for credit "token").
    """

    decoder: DecoderConfig
    value_inner_size: int
    utterance_q: str = "sum"

    def __post_init__(self):
        if self.utterance_q not in ("sum", "last"):
            raise ValueError(f"utterance_q is {self.utterance_q!r}, but must be sum or last.")
        if self.value_inner_size < 1:
            raise ValueError(
                f"value_inner_size is {self.value_inner_size}, but must be at least 1."
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """What `dataclasses.asdict` made of one, also by way of JSON; new fields have defaults."""
        return cls(**fields | {"decoder": DecoderConfig.from_dict(fields["decoder"])})


class ActorCritic(nnx.Module):
    """The network of every method; behaviour cloning leaves the value heads untouched."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width = config.decoder.hidden_size
        self.config = config
        self.trunk = Decoder(config.decoder, rngs)
        self.q = QHeads(width, config.value_inner_size, config.decoder.vocab_size, rngs)
        self.v = VHead(width, config.value_inner_size, rngs)


Params = dict[str, Any]


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters."""
    return nnx.to_pure_dict(nnx.state(ActorCritic(config, nnx.Rngs(seed))))


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(lambda: init_params(config, 0))


def with_params(config: ModelConfig, params: Params) -> ActorCritic:
    """The network of this shape with these parameters."""
    return _fill(lambda: ActorCritic(config, nnx.Rngs(0)), params)


def q_heads_with_params(config: ModelConfig, params: Params) -> QHeads:
    """The Q heads alone with these parameters: the target network."""
    return _fill(lambda: ActorCritic(config, nnx.Rngs(0)).q, params)


def _fill(create, params: Params):
    module = nnx.eval_shape(create)
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
