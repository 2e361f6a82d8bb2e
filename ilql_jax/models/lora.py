"""Adapters: a frozen matrix W learns as W + scale · A B, with A and B thin (LoRA; Hu et al., 2021).

`partition.py` tells the frozen parameters apart from the adapters.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ilql_jax.models.config import ModelConfig, Params

ADAPTER = "lora"  # an adapter's name, beside the kernel that it belongs to


class LoRALinear(nnx.Linear):
    """Computes `x W + b + scale · x A B`; B starts at zero, and so does the adapter's part."""

    def __init__(self, size_in: int, size_out: int, *, rank: int, scale: float, **linear):
        super().__init__(size_in, size_out, **linear)
        self.scale = scale
        self.lora = nnx.LoRA(size_in, rank, size_out, dtype=self.dtype, rngs=linear["rngs"])

    def __call__(self, x: Float[Array, "... size_in"]) -> Float[Array, "... size_out"]:
        return super().__call__(x) + self.scale * self.lora(x)


def merge_adapters(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Adds adapters to the matrices they belong to; returns the network without adapters.

    Arrays without an adapter are shared with `params`, but for those in a smaller dtype (see
    `blocks.param_dtype`): the result is float32.
    """
    scale = config.decoder.lora_scale

    def merged(subtree):
        if not isinstance(subtree, dict):
            return subtree.astype(jnp.float32)
        rest = {name: merged(part) for name, part in subtree.items() if name != ADAPTER}
        if adapter := subtree.get(ADAPTER):
            # By default a TPU multiplies float32 in bfloat16.
            product = jnp.matmul(adapter["lora_a"], adapter["lora_b"], precision="highest")
            rest["kernel"] += scale * product
        return rest

    if not config.decoder.lora_rank:
        return config, params
    plain = dataclasses.replace(config.decoder, lora_rank=0)
    return dataclasses.replace(config, decoder=plain), merged(params)
