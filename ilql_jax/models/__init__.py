"""Networks: one decoder for many families, the value heads, and the two together."""

from ilql_jax.models.actor_critic import (
    ActorCritic,
    abstract_params,
    copy_for_values,
    init_params,
    with_params,
)
from ilql_jax.models.config import DecoderConfig, ModelConfig, Params
from ilql_jax.models.decoder import Decoder
from ilql_jax.models.heads import QHeads, VHead

__all__ = [
    "ActorCritic",
    "Decoder",
    "DecoderConfig",
    "ModelConfig",
    "Params",
    "QHeads",
    "VHead",
    "abstract_params",
    "copy_for_values",
    "init_params",
    "with_params",
]
