"""`network_config`: the shape of a network from plain settings, fresh or pretrained.

Experiments and the machine plan (`ilql_jax.plan`) build theirs with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ilql_jax.models.config import NOT_IN_CONFIG_JSON, DecoderConfig, ModelConfig
from ilql_jax.models.hugging_face.read import shape_for
from ilql_jax.settings import SettingError

_HEADS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name != "decoder")
_TRUNK = tuple(f.name for f in dataclasses.fields(DecoderConfig) if f.name != "vocab_size")
# Settings that a pretrained network's own config gives instead.
SHAPE_OF_FRESH = tuple(n for n in _TRUNK if n not in (*NOT_IN_CONFIG_JSON, "max_positions"))

# A fresh network that learns on a laptop: GPT-2's blocks, but for rotary positions, whose
# wavelengths go from 6 to some 470 tokens.
SMALL_NETWORK: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_size": 256,
    "position_encoding": "rotary",
    "rotary_base": 100.0,
    "initializer_range": 0.08,
}


def network_config(settings: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """Builds the shape of a network.

    Args:
        settings: Fields of `DecoderConfig` and `ModelConfig` by name; those left out have their
            defaults. Where `pretrained` is not empty (a folder, or a name on the Hugging Face hub),
            the trunk is the checkpoint's, of which `config.json` alone is read: of the trunk's
            fields those of `NOT_IN_CONFIG_JSON` are taken, and `max_positions` is the length that
            it has to be able to read.
        vocab_size: Tokens of the tokenizer. A checkpoint with room for more keeps that room; one
            with fewer grows.

    Raises:
        PretrainedError: No such checkpoint, one that is not supported, or of a shorter context.
        SettingError: An unknown setting, or a value that cannot be.
    """
    for name, value in settings.items():
        if name not in (*_HEADS, *_TRUNK, "pretrained"):
            raise SettingError(name, value, "there is no setting of this name in a network's shape")
    heads = {name: settings[name] for name in _HEADS if name in settings}
    trunk = {name: settings[name] for name in _TRUNK if name in settings}
    pretrained = settings.get("pretrained")
    if not pretrained:
        return ModelConfig(DecoderConfig(vocab_size=vocab_size, **trunk), **heads)
    decoder = shape_for(pretrained, trunk.get("max_positions", 0))
    chosen = {name: trunk[name] for name in NOT_IN_CONFIG_JSON if name in trunk}
    vocab_size = max(vocab_size, decoder.vocab_size)
    return ModelConfig(dataclasses.replace(decoder, vocab_size=vocab_size, **chosen), **heads)
