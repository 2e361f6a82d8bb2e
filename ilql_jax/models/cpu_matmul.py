"""Products of few rows with large matrices, the bulk of decoding on a CPU.

Such a product is bound by reading the matrix. XLA:CPU repacks the right factor of a product each
time; as the left one, [out, in], a matrix is read as it lies, nearly twice as fast
(`experiments/benchmarks/decoding.py`). Output matrices lie so anyway; `decoding_layout` transposes
the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ilql_jax.models.config import ModelConfig, Params
from ilql_jax.products import even_rows, product
from ilql_jax.sharding import platform

FEW = 64  # rows; with more, arithmetic is the bound, on CPUs
LARGE = 2**20  # bytes of a matrix that does not stay in a core's cache


def matmul_t(
    x: Float[Array, "*heads rows size_in"], matrix: Float[Array, "*heads size_out size_in"]
) -> Float[Array, "*heads rows size_out"]:
    """Computes `x matrixᵀ`, float32, for each head of the matrix.

    Args:
        x: Between heads and width there may be any number of axes of rows.
        matrix: [size_out, size_in] for each head.
    """
    *heads, size_out, size_in = matrix.shape
    leading = x.shape[:-1]
    rows = x.reshape(*heads, -1, size_in)
    if platform() == "cpu" and rows.shape[-2] <= FEW:
        result = product("...oi,...ri->...or", matrix, rows)
        # Without the barrier XLA turns it into the other product.
        return jnp.swapaxes(lax.optimization_barrier(result), -1, -2).reshape(*leading, -1)
    result = product("...ri,...oi->...ro", rows, even_rows(matrix))
    return result[..., :size_out].reshape(*leading, -1)


class TransposedLinear(nnx.Linear):
    """Computes `x W + b` with W stored as [size_out, size_in]."""

    def __init__(self, size_in: int, size_out: int, **linear):
        super().__init__(size_in, size_out, **linear)
        self.kernel = nnx.Param(self.kernel[...].T)

    def __call__(self, x: Float[Array, "... size_in"]) -> Float[Array, "... size_out"]:
        y = matmul_t(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return (y if self.bias is None else y + self.bias[...]).astype(self.dtype)


def decoding_layout(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Lays out parameters for decoding: layers apart, on CPUs large matrices transposed.

    Arrays that lie so already are shared with `params`, the others copied: once, not in every call.

    Args:
        config: Shape of the network. One with adapters is returned as it is (`lora.merge_adapters`
            gives one without).
        params: Its parameters.

    Returns:
        Shape and parameters of the same network.
    """
    shape = config.decoder
    transposes = platform() == "cpu" and 4 * shape.hidden_size * shape.mlp_size >= LARGE
    if shape.lora_rank or not (shape.scan_layers or (transposes and not shape.transposed_kernels)):
        return config, params

    def lay_out(trunk: Params) -> Params:
        blocks = trunk["blocks"]
        if shape.scan_layers:
            layers = range(shape.num_layers)
            blocks = {i: jax.tree.map(lambda x, i=i: x[i], blocks) for i in layers}
        if transposes:
            blocks = jax.tree_util.tree_map_with_path(_transposed, blocks)
        return trunk | {"blocks": blocks}

    decoder = dataclasses.replace(shape, scan_layers=False, transposed_kernels=transposes)
    trunks = {name: lay_out(params[name]) for name in ("trunk", "value_trunk") if name in params}
    return dataclasses.replace(config, decoder=decoder), params | trunks


def _transposed(path: tuple[Any, ...], leaf: Array) -> Array:
    return jnp.array(leaf.T) if path[-1].key == "kernel" else leaf
