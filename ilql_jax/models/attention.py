"""Attention over packed rows, with a backward pass of its own.

On accelerators that makes each product one of two factors in the compute dtype, which
`jax.nn.dot_product_attention` does not in its backward pass, and what is kept for it is in that
dtype too. XLA:CPU fuses the softmax's backward pass into loops that read the [T, T] scores many
times over; with barriers between the passes it is faster (`experiments/benchmarks/attention.py`
measures it).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.products import product, unfused
from ilql_jax.sharding import platform

ATTENTION = "attention"  # name of what a policy of `jax.checkpoint` should keep of it
NEGATIVE = -1e9  # a masked score; finite, so that a row with nothing to attend to gives no NaN


def attend(
    q: Float[Array, "batch time heads head_size"],
    k: Float[Array, "batch time kv_heads head_size"],
    v: Float[Array, "batch time kv_heads head_size"],
    mask: Bool[Array, "batch time time"],
    implementation: str = "xla",
) -> Float[Array, "batch time heads head_size"]:
    """Computes `softmax(q kᵀ / sqrt(head_size)) v` where the mask is true; softmax in float32.

    Args:
        q: Queries; with fewer heads of keys than of queries, neighbours share a head (Ainslie et
            al., 2023).
        k: Keys.
        v: Values.
        mask: True where a query may see a key, none that is later.
        implementation: On accelerators: "xla", or "cudnn" for flash attention on GPUs.
    """
    if implementation == "cudnn" and platform() != "cpu":
        # The mask says it already, but is added to scores, of which this leaves half out.
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], is_causal=True, implementation=implementation
        )
    batch, time, heads, head_size = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # Queries that share keys stand one after the other along time.
    q = q.reshape(batch, time, kv_heads, group, head_size).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, group * time, head_size)
    out = _attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), _repeat(mask, group))
    out = out.reshape(batch, kv_heads, group, time, head_size).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, time, heads, head_size)


def packed_causal_mask(
    segment_ids: Int[Array, "batch time"], window: int = 0
) -> Bool[Array, "batch time time"]:
    """Returns a mask, true where a query may see a key: not later, and of the same segment.

    Args:
        segment_ids: Segments of packed rows.
        window: Tokens that a query sees, its own included; 0 = all of them.
    """
    time = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((time, time), bool))
    if window:
        causal &= ~jnp.tril(causal, -window)
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])


def _repeat(mask: Array, group: int) -> Array:
    return mask if group == 1 else jnp.tile(mask, (1, group, 1))


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attends; q [B, heads, queries, size], k and v [B, heads, keys, size], mask without heads."""
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    scores = product("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
    scores = unfused(jnp.where(mask[:, None], scores, NEGATIVE))
    largest = unfused(scores.max(-1, keepdims=True))
    weights = unfused(jnp.exp(scores - largest))
    weights = unfused(weights / unfused(weights.sum(-1, keepdims=True)))
    weights = checkpoint_name(weights.astype(v.dtype), ATTENTION)
    out = product("bhqk,bhkd->bhqd", weights, v).astype(q.dtype)
    out = checkpoint_name(out, ATTENTION)
    return out, (q, k, v, weights, out)


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
    q, k, v, weights, out = saved
    to_v = product("bhqk,bhqd->bhkd", weights, gradient)
    to_weights = unfused(product("bhqd,bhkd->bhqk", gradient, v))
    # Σ_k weights · to_weights, without another pass over [T, T].
    shared = gradient.astype(jnp.float32) * out.astype(jnp.float32)
    shared = unfused(shared.sum(-1, keepdims=True))
    to_scores = unfused(weights * (to_weights - shared)).astype(q.dtype)
    scale = q.shape[-1] ** -0.5
    to_q = product("bhqk,bhkd->bhqd", to_scores, k * scale)
    to_k = product("bhqk,bhqd->bhkd", to_scores, q * scale)
    return to_q.astype(q.dtype), to_k.astype(k.dtype), to_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
