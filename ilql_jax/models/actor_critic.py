"""`ActorCritic`: one trunk, the language-model head, twin Q heads and a V head (ILQL, sec. 4)."""

from __future__ import annotations

import dataclasses

from flax import nnx

from ilql_jax.models.decoder import Decoder, DecoderConfig
from ilql_jax.models.heads import QHeads, VHead


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of an `ActorCritic`.

    Attributes:
        decoder: Shape of the trunk.
        value_inner_size: Width of the hidden layer of the value heads.
    """

    decoder: DecoderConfig
    value_inner_size: int


class ActorCritic(nnx.Module):
    """The network of every method; behaviour cloning leaves the value heads untouched."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width = config.decoder.hidden_size
        self.config = config
        self.trunk = Decoder(config.decoder, rngs)
        self.q = QHeads(width, config.value_inner_size, config.decoder.vocab_size, rngs)
        self.v = VHead(width, config.value_inner_size, rngs)
