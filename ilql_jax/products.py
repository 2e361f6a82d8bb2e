"""`product`: products of arrays in 16 bits, summed up in 32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ilql_jax.sharding import platform


def product(indices: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `einsum(indices, a, b)` in float32, whatever the factors' dtype.

    Args:
        indices: Of the factors and the result, "ij,jk->ik".
        a: Factor, of 16 or 32 bits.
        b: Factor, likewise.
    """
    if platform() == "cpu" and jnp.float32 not in (a.dtype, b.dtype):
        # XLA:CPU has no such product for every size, and where it has one it widens them, too.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)
