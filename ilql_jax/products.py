"""Products that are fast: factors of 16 bits summed up in 32, even sizes, passes kept apart."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ilql_jax.sharding import over_tensor, platform, tensor_parts

WIDE, EVEN = 8192, 128  # on GPUs, matrices of so many rows get a multiple of so many


def product(indices: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `einsum(indices, a, b)` in float32, whatever the factors' dtype.

    On accelerators the gradient of a product of two factors of 16 bits is one of 16 bits too: what
    comes in is rounded, and sums are float32. Otherwise each would have a factor of 32 bits, and
    be much slower.

    Args:
        indices: Indices of the factors and the result, "ij,jk->ik"; each is in two of the three.
        a: Factor, of 16 or 32 bits.
        b: Factor, likewise.
    """
    if jnp.float32 in (a.dtype, b.dtype):
        return _einsum(indices, a, b)
    if platform() == "cpu":
        # XLA:CPU has no such product for every size, and where it has one it widens them, too.
        return _einsum(indices, a.astype(jnp.float32), b.astype(jnp.float32))
    return _product_of_short(indices, a, b)


def _einsum(indices: str, a: Array, b: Array) -> Array:
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_of_short(indices: str, a: Array, b: Array) -> Array:
    return _einsum(indices, a, b)


def _forward(indices, a, b):
    return _einsum(indices, a, b), (a, b)


def _backward(indices, factors, gradient):
    a, b = factors
    left, right, result = indices.replace("->", ",").split(",")
    to_a = _einsum(f"{result},{right}->{left}", gradient.astype(b.dtype), b)
    to_b = _einsum(f"{left},{result}->{right}", a, gradient.astype(a.dtype))
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


_product_of_short.defvjp(_forward, _backward)


def times_kernel(
    x: Float[Array, "*heads rows size_in"], kernel: Float[Array, "*heads size_in size_out"]
) -> Float[Array, "*heads rows size_out"]:
    """Computes `x kernel` for each head, float32, with the kernel rounded to the dtype of `x`.

    Args:
        x: Between heads and width there may be any number of axes of rows.
        kernel: A parameter; in float32 beside an `x` of 16 bits, the product would be of 32.
    """
    *heads, size_in, _ = kernel.shape
    rows = x.reshape(*heads, -1, size_in)
    result = product("...ri,...io->...ro", rows, kernel.astype(x.dtype))
    return result.reshape(*x.shape[:-1], -1)


def even_rows(matrix: Float[Array, "... rows width"]) -> Float[Array, "... rows_or_more width"]:
    """Appends zeros to a matrix with a row a token, so that products with it are fast.

    On a GPU a product with 50,257 columns takes three times as long as one with 50,304. And where
    matrices are split over the mesh axis `tensor`, the product is, whatever the vocabulary.

    Parameters keep their size: to compute in bfloat16 a matrix is copied anyway, and the zeros are
    written in the same pass; the gradient is cut in the pass that reads it.
    """
    rows = matrix.shape[-2]
    parts = tensor_parts()
    even = math.lcm(parts, EVEN if platform() == "gpu" and rows >= WIDE else 1)
    if rows % even == 0:
        return matrix
    padding = [(0, 0)] * (matrix.ndim - 2) + [(0, -rows % even), (0, 0)]
    return over_tensor(jnp.pad(matrix, padding), -2)


def unfused(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the same; XLA:CPU would fuse a softmax into something slow, others fuse it well."""
    return lax.optimization_barrier(x) if platform() == "cpu" else x
