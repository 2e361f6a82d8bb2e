"""The networks: one decoder, the value heads, and the two together."""

from ilql_jax.models.actor_critic import ActorCritic, ModelConfig
from ilql_jax.models.decoder import Decoder, DecoderConfig
from ilql_jax.models.heads import QHeads, VHead

__all__ = ["ActorCritic", "Decoder", "DecoderConfig", "ModelConfig", "QHeads", "VHead"]
