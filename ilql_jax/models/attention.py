"""Attention over packed rows, with a backward pass of its own on CPU.

XLA:CPU fuses the softmax's backward pass into loops that read the [T, T] scores many times over;
written out with barriers between the passes it is faster (`experiments/benchmarks/attention.py`
prints by how much). Accelerators get `jax.nn.dot_product_attention`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ilql_jax.sharding import platform

NEGATIVE = -1e9  # a masked score; finite, so that a row with nothing to attend to gives no NaN


def attend(
    q: Float[Array, "batch time heads head_size"],
    k: Float[Array, "batch time heads head_size"],
    v: Float[Array, "batch time heads head_size"],
    mask: Bool[Array, "batch time time"],
) -> Float[Array, "batch time heads head_size"]:
    """`softmax(q kᵀ / sqrt(head_size)) v` where the mask is true."""
    if platform() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(_attend_on_cpu(*heads_first, mask), 1, 2)


@jax.custom_vjp
def _attend_on_cpu(q: Array, k: Array, v: Array, mask: Array) -> Array:
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    barrier = lax.optimization_barrier
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
    scores = barrier(jnp.where(mask[:, None], scores, NEGATIVE))
    largest = barrier(scores.max(-1, keepdims=True))
    weights = barrier(jnp.exp(scores - largest))
    weights = barrier(weights / barrier(weights.sum(-1, keepdims=True)))
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    return out, (q, k, v, weights, out)


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
    barrier = lax.optimization_barrier
    q, k, v, weights, out = saved
    to_v = jnp.einsum("bhqk,bhqd->bhkd", weights, gradient)
    to_weights = barrier(jnp.einsum("bhqd,bhkd->bhqk", gradient, v))
    # Σ_k weights · to_weights, without another pass over [T, T].
    shared = barrier((gradient * out).sum(-1, keepdims=True))
    to_scores = barrier(weights * (to_weights - shared))
    scale = q.shape[-1] ** -0.5
    to_q = jnp.einsum("bhqk,bhkd->bhqd", to_scores, k * scale)
    to_k = jnp.einsum("bhqk,bhqd->bhkd", to_scores, q * scale)
    return to_q, to_k, to_v, None


_attend_on_cpu.defvjp(_forward, _backward)
