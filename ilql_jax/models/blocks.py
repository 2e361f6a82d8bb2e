"""A block of the decoder: attention and MLP, each behind a norm.

Differences between families are fields of `DecoderConfig`, read where the layer is built. A block
does not know where keys and values come from: its caller hands in `attend`, which closes over a
mask (`decoder.py`, training) or a cache (`kv_cache.py`, decoding).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ilql_jax.models.config import GATED_MLPS, DecoderConfig
from ilql_jax.models.cpu_matmul import TransposedLinear
from ilql_jax.models.lora import LoRALinear
from ilql_jax.models.rotary import Rotation, rotate

# Queries [..., heads, head_size], keys and values [..., kv_heads, head_size] -> what each query
# attends to, [..., heads, head_size].
Attend = Callable[[Array, Array, Array], Array]


class Attention(nnx.Module):
    """Projections into and out of attention."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, size = config.hidden_size, config.head_size
        self.config = config
        if config.fused_qkv:
            self.qkv = _linear(config, width, 3 * config.num_heads * size, config.qkv_bias, rngs)
        else:
            self.q = _linear(config, width, config.num_heads * size, config.qkv_bias, rngs)
            self.k = _linear(config, width, config.kv_heads * size, config.qkv_bias, rngs)
            self.v = _linear(config, width, config.kv_heads * size, config.qkv_bias, rngs)
        if config.qk_norm:
            self.q_norm = norm(config, size, rngs)
            self.k_norm = norm(config, size, rngs)
        self.out = _linear_out(config, config.num_heads * size, width, config.attention_bias, rngs)

    def project(
        self, x: Float[Array, "... width"], rotation: Rotation | None
    ) -> tuple[
        Float[Array, "... heads head_size"],
        Float[Array, "... kv_heads head_size"],
        Float[Array, "... kv_heads head_size"],
    ]:
        """Returns queries, keys and values; queries and keys are rotated where there is one."""
        config = self.config
        if config.fused_qkv:
            qkv = self.qkv(x).reshape(*x.shape[:-1], 3, config.num_heads, config.head_size)
            q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        else:
            heads = (*x.shape[:-1], -1, config.head_size)
            q, k, v = (linear(x).reshape(heads) for linear in (self.q, self.k, self.v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if config.query_pre_attn_scalar not in (0, config.head_size):
            # Whoever attends divides by the root of the head's width.
            q = q * (config.head_size / config.query_pre_attn_scalar) ** 0.5
        return q, k, v

    def merge(self, heads: Float[Array, "... heads head_size"]) -> Float[Array, "... width"]:
        """Projects the heads' outputs back to the width of the residual stream."""
        return self.out(heads.reshape(*heads.shape[:-2], -1))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm, or between two."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.mlp_size
        self.config = config
        self.attention_norm = norm(config, width, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = norm(config, width, rngs)
        if config.post_norms:
            self.attention_post_norm = norm(config, width, rngs)
            self.mlp_post_norm = norm(config, width, rngs)
        if config.mlp in GATED_MLPS:
            self.mlp_gate = _linear(config, width, inner, config.mlp_bias, rngs)
        self.mlp_in = _linear(config, width, inner, config.mlp_bias, rngs)
        self.mlp_out = _linear_out(config, inner, width, config.mlp_bias, rngs)

    def __call__(
        self, x: Float[Array, "... width"], rotation: Rotation | None, attend: Attend
    ) -> Float[Array, "... width"]:
        """Returns the residual stream after this block.

        Args:
            x: The residual stream before it.
            rotation: Rotation of its queries and keys; None = it sees no rotary positions.
            attend: The attention itself.
        """
        q, k, v = self.attention.project(self.attention_norm(x), rotation)
        attended = self.attention.merge(attend(q, k, v))
        x = x + (self.attention_post_norm(attended) if self.config.post_norms else attended)
        inner = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_post_norm(inner) if self.config.post_norms else inner)

    def mlp(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Applies the MLP, without its norms."""
        if self.config.mlp == "swiglu":
            return self.mlp_out(jax.nn.silu(self.mlp_gate(x)) * self.mlp_in(x))
        if self.config.mlp == "geglu":
            gate = jax.nn.gelu(self.mlp_gate(x), approximate=True)
            return self.mlp_out(gate * self.mlp_in(x))
        return self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=True))


def norm(config: DecoderConfig, width: int, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    """Builds the norm that the family uses."""
    kind = nnx.LayerNorm if config.norm == "layer_norm" else nnx.RMSNorm
    return kind(width, epsilon=config.norm_epsilon, dtype=compute_dtype(config), rngs=rngs)


def compute_dtype(config: DecoderConfig) -> jnp.dtype:
    """Dtype of the layers' arithmetic."""
    return jnp.dtype(config.compute_dtype)


def param_dtype(config: DecoderConfig) -> jnp.dtype:
    """Dtype of the parameters: float32, so that small updates are not rounded away.

    Beside adapters matrices are frozen, and have the dtype that they are computed with.
    """
    return compute_dtype(config) if config.lora_rank else jnp.dtype("float32")


def _linear(
    config: DecoderConfig,
    size_in: int,
    size_out: int,
    use_bias: bool,
    rngs: nnx.Rngs,
    initializer_range: float | None = None,
) -> nnx.Linear:
    options = {
        "use_bias": use_bias,
        "kernel_init": nnx.initializers.normal(initializer_range or config.initializer_range),
        "dtype": compute_dtype(config),
        "param_dtype": param_dtype(config),
        "rngs": rngs,
    }
    if config.transposed_kernels:
        return TransposedLinear(size_in, size_out, **options)
    if not config.lora_rank:
        return nnx.Linear(size_in, size_out, **options)
    return LoRALinear(size_in, size_out, rank=config.lora_rank, scale=config.lora_scale, **options)


def _linear_out(
    config: DecoderConfig, size_in: int, size_out: int, use_bias: bool, rngs: nnx.Rngs
) -> nnx.Linear:
    """Builds a layer into the residual stream; GPT-2 scales these by their number."""
    smaller = config.initializer_range / (2 * config.num_layers) ** 0.5
    return _linear(config, size_in, size_out, use_bias, rngs, smaller)
