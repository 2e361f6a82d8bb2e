"""Adapters: a frozen matrix W learns as W + scale · A B, with A and B thin (LoRA; Hu et al., 2021).

Flax has the layer. qwix would put it into a finished network by watching the products of modules
that are called as a whole; here blocks are called method by method, and rebuilt inside scans.
What is frozen then, and where it comes from again, is in `frozen.py`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ilql_jax.models.config import ModelConfig, Params

ADAPTER = "lora"  # an adapter's name, beside the kernel that it belongs to


class LoRALinear(nnx.Linear):
    """`x W + b + scale · x A B`; B starts at zero, so that an adapter changes nothing at first."""

    def __init__(self, size_in: int, size_out: int, *, rank: int, scale: float, **linear):
        super().__init__(size_in, size_out, **linear)
        self.scale = scale
        self.lora = nnx.LoRA(size_in, rank, size_out, dtype=self.dtype, rngs=linear["rngs"])

    def __call__(self, x: Float[Array, "... size_in"]) -> Float[Array, "... size_out"]:
        return super().__call__(x) + self.scale * self.lora(x)


def merge_adapters(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The same network without adapters: they are added to the matrices they belong to.

    So it computes what a network that never had any does. All that has no adapter is shared with
    `params`, unless it is kept in a smaller dtype beside adapters: the result is float32.
    """
    scale = config.decoder.lora_scale

    def merged(part):
        if not isinstance(part, dict):
            return part.astype(jnp.float32)
        kept = {name: merged(each) for name, each in part.items() if name != ADAPTER}
        if thin := part.get(ADAPTER):
            # A TPU would multiply in bfloat16 if not told otherwise.
            product = jnp.matmul(thin["lora_a"], thin["lora_b"], precision="highest")
            kept["kernel"] += scale * product
        return kept

    if not config.decoder.lora_rank:
        return config, params
    plain = dataclasses.replace(config.decoder, lora_rank=0)
    return dataclasses.replace(config, decoder=plain), merged(params)
