"""One decoder-only transformer whose config covers the shapes we train (Flax NNX).

Today GPT-2's (learned positions, LayerNorm in front, GELU, biases, tied output), with rotary
positions as a choice. What a family does differently is a field of `DecoderConfig` read in one
place, so that the Llama and Qwen families fit in beside it.

Two ways through the same weights: `Decoder.__call__` over packed rows (training, reading a
context), and `Decoder.decode_step` for one more token of many continuations that share the keys
and values of their context (sampling).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import NEGATIVE, attend
from ilql_jax.sharding import split_rows


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of the transformer; the names are Hugging Face's where it has one.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream; a multiple of `num_heads`.
        num_layers: Blocks.
        num_heads: Attention heads.
        mlp_size: Width inside a block's MLP.
        max_positions: Longest context.
        norm_epsilon: Of the layer norms.
        position_encoding: "learned" (GPT-2) or "rotary".
        rotary_base: Rotary wavelengths go from 2π to nearly 2π times this, in tokens.
        initializer_range: Standard deviation of the initial weights.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    max_positions: int
    norm_epsilon: float = 1e-5
    position_encoding: str = "learned"
    rotary_base: float = 10_000.0
    initializer_range: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "mlp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name, bound in (("max_positions", 1), ("rotary_base", 1), ("initializer_range", 0)):
            if not getattr(self, name) > bound:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above {bound}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}."
            )
        if self.position_encoding not in ("learned", "rotary"):
            raise ValueError(
                f"position_encoding is {self.position_encoding!r}, but must be learned or rotary."
            )
        if self.position_encoding == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_size}.")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


class KeyValues(nnx.Pytree):
    """Keys and values of every layer, [layers, ..., time, heads, head_size]."""

    def __init__(self, keys: Array, values: Array):
        self.keys = nnx.data(keys)
        self.values = nnx.data(values)


class Attention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, init = config.hidden_size, nnx.initializers.normal(config.initializer_range)
        # GPT-2 scales the projections into the residual stream by the number of them.
        out_init = nnx.initializers.normal(
            config.initializer_range / (2 * config.num_layers) ** 0.5
        )
        self.config = config
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=init, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=out_init, rngs=rngs)

    def project(
        self, x: Float[Array, "... width"], positions: Int[Array, "..."]
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each [..., heads, head_size]."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.config.num_heads, self.config.head_size)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        if self.config.position_encoding == "rotary":
            q, k = (rotate(each, positions, self.config.rotary_base) for each in (q, k))
        return q, k, v

    def merge(self, heads: Float[Array, "... heads head_size"]) -> Float[Array, "... width"]:
        return self.out(heads.reshape(*heads.shape[:-2], self.config.hidden_size))


class Block(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, init = config.hidden_size, nnx.initializers.normal(config.initializer_range)
        out_init = nnx.initializers.normal(
            config.initializer_range / (2 * config.num_layers) ** 0.5
        )
        self.attention_norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, rngs=rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, rngs=rngs)
        self.mlp_in = nnx.Linear(width, config.mlp_size, kernel_init=init, rngs=rngs)
        self.mlp_out = nnx.Linear(config.mlp_size, width, kernel_init=out_init, rngs=rngs)

    def mlp(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=True))


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to logits over the next token."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        self.config = config
        self.token_embedding = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=init, rngs=rngs
        )
        if config.position_encoding == "learned":
            self.position_embedding = nnx.Embed(
                config.max_positions, config.hidden_size, embedding_init=init, rngs=rngs
            )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = nnx.LayerNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)

    def embed(self, tokens: Int[Array, "..."], positions: Int[Array, "..."]) -> Array:
        x = self.token_embedding(tokens)
        if self.config.position_encoding == "learned":
            x = x + self.position_embedding(positions)
        return x

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
    ) -> Float[Array, "batch time width"]:
        """Hidden states of packed rows; no attention across segments (0 = padding)."""
        return self.read(tokens, segment_ids, positions)[0]

    def read(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
    ) -> tuple[Float[Array, "batch time width"], KeyValues]:
        """Like calling it, and keys and values [layers, B, T, heads, head_size] for decoding."""
        x = split_rows(self.embed(tokens, positions))
        mask = packed_causal_mask(segment_ids)
        keys, values = [], []
        for block in self.blocks:
            q, k, v = block.attention.project(block.attention_norm(x), positions)
            x = x + block.attention.merge(attend(q, k, v, mask))
            x = split_rows(x + block.mlp(x))
            keys.append(k)
            values.append(v)
        return self.final_norm(x), KeyValues(jnp.stack(keys), jnp.stack(values))

    def decode_step(
        self,
        tokens: Int[Array, "batch samples"],
        positions: Int[Array, "batch samples"],
        context: KeyValues,
        context_length: Int[Array, "batch"],
        written: KeyValues,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, "batch samples width"], KeyValues]:
        """Hidden state of one more token in each of several continuations of each context.

        The context's keys and values are kept once per conversation, not once per sample.

        Args:
            tokens: Token to read, for each sample of each conversation.
            positions: Its position in the dialogue.
            context: From `read`, [layers, B, P, heads, head_size].
            context_length: How many of the P columns are real.
            written: What this function wrote so far, [layers, B, N, S, heads, head_size].
            step: How many tokens were written before this one.

        Returns:
            Hidden states [B, N, width], and `written` with this token's added at column `step`.
        """
        x = self.embed(tokens, positions)
        columns = context.keys.shape[2]
        see_context = jnp.arange(columns)[None] < context_length[:, None]
        see_written = jnp.arange(written.keys.shape[3]) <= step
        keys, values = written.keys, written.values
        scale = self.config.head_size**-0.5
        for layer, block in enumerate(self.blocks):
            q, k, v = block.attention.project(block.attention_norm(x), positions)
            keys = keys.at[layer, :, :, step].set(k)
            values = values.at[layer, :, :, step].set(v)
            far = jnp.einsum("bnhd,bphd->bnhp", q, context.keys[layer]) * scale
            near = jnp.einsum("bnhd,bnshd->bnhs", q, keys[layer]) * scale
            far = jnp.where(see_context[:, None, None], far, NEGATIVE)
            near = jnp.where(see_written, near, NEGATIVE)
            weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1)
            heads = jnp.einsum("bnhp,bphd->bnhd", weights[..., :columns], context.values[layer])
            heads += jnp.einsum("bnhs,bnshd->bnhd", weights[..., columns:], values[layer])
            x = x + block.attention.merge(heads)
            x = x + block.mlp(x)
        return self.final_norm(x), KeyValues(keys, values)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Scores of the next token (output weights tied to the embedding)."""
        return self.token_embedding.attend(hidden)


def rotate(
    x: Float[Array, "... heads head_size"], positions: Int[Array, "..."], base: float
) -> Float[Array, "... heads head_size"]:
    """Rotary position embedding (Su et al. 2021), halves paired as in Llama."""
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half) / half)
    angles = positions[..., None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def packed_causal_mask(
    segment_ids: Int[Array, "batch time"],
) -> Bool[Array, "batch time time"]:
    """bool [B, T, T], true where a query may see a key: earlier or itself, same segment."""
    time = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((time, time), bool))
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
