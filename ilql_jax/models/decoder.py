"""One decoder-only transformer for GPT-2, Llama, Qwen, SmolLM and what is like them (Flax NNX).

What a family does differently is a field of `DecoderConfig`; `blocks.py` reads it.

Two ways through the same weights: `Decoder.__call__` over packed rows (training, reading a
context), and `Decoder.decode_step` for one more token of many continuations that share the keys
and values of their context (sampling).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import attend_one, packed_causal_mask
from ilql_jax.models.blocks import Block, dtype_of, norm
from ilql_jax.models.decoder_config import DecoderConfig
from ilql_jax.models.rotary import Rotation, rotation

__all__ = ["Decoder", "DecoderConfig", "KeyValues", "packed_causal_mask"]


class KeyValues(nnx.Pytree):
    """Keys and values of every layer, [layers, ..., time, kv_heads, head_size]."""

    def __init__(self, keys: Array, values: Array):
        self.keys = nnx.data(keys)
        self.values = nnx.data(values)


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to logits over the next token."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = _embedding(config, config.vocab_size, rngs)
        if config.position_encoding == "learned":
            self.position_embedding = _embedding(config, config.max_positions, rngs)
        if config.scan_layers:
            self.blocks = _stacked_blocks(config, rngs)
        else:
            self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = norm(config, config.hidden_size, rngs)
        if not config.tied_output:
            self.output_embedding = _embedding(config, config.vocab_size, rngs)

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
        """Like calling it, and keys and values [layers, B, T, kv_heads, head_size] for decoding."""
        x = self.embed(tokens, positions)
        mask = packed_causal_mask(segment_ids)
        turn = self._rotation(positions)

        def apply(block: Block, x: Array, per_layer: Any) -> tuple[Array, tuple[Array, Array]]:
            x, k, v = block(x, _for_layer(turn, per_layer), mask)
            return x, (k, v)

        x, (keys, values) = self._through_blocks(apply, x, self._uses_rotary())
        return self.final_norm(x), KeyValues(keys, values)

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
            context: From `read`, [layers, B, P, kv_heads, head_size].
            context_length: How many of the P columns are real.
            written: What this function wrote so far, [layers, B, N, S, kv_heads, head_size].
            step: How many tokens were written before this one.

        Returns:
            Hidden states [B, N, width], and `written` with this token's added at column `step`.
        """
        see_context = jnp.arange(context.keys.shape[2])[None] < context_length[:, None]
        see_written = jnp.arange(written.keys.shape[3]) <= step
        turn = self._rotation(positions)

        def apply(block: Block, x: Array, per_layer: Any) -> tuple[Array, tuple[Array, Array]]:
            uses_rotary, context, written = per_layer
            q, k, v = block.attention.project(
                block.attention_norm(x), _for_layer(turn, uses_rotary)
            )
            keys = written.keys.at[:, :, step].set(k)
            values = written.values.at[:, :, step].set(v)
            heads = attend_one(
                q, context.keys, context.values, keys, values, see_context, see_written
            )
            x = x + block.attention.merge(heads)
            return x + block.mlp(x), (k, v)

        x = self.embed(tokens, positions)
        x, (k, v) = self._through_blocks(apply, x, (self._uses_rotary(), context, written))
        keys = written.keys.at[:, :, :, step].set(k)
        values = written.values.at[:, :, :, step].set(v)
        return self.final_norm(x), KeyValues(keys, values)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Scores of the next token, float32."""
        matrix = self.output_matrix().astype(hidden.dtype)
        return jnp.dot(hidden, matrix.T, preferred_element_type=jnp.float32)

    def output_matrix(self) -> Float[Array, "vocab width"]:
        """What `logits` multiplies by, a row a token: the embedding, or a matrix of its own."""
        tied = self.config.tied_output
        return (self.token_embedding if tied else self.output_embedding).embedding[...]

    def _through_blocks(self, apply, x: Array, per_layer: Any) -> tuple[Array, Any]:
        """`apply(block, x, per_layer[i])` -> x, outputs; block after block, outputs stacked.

        Args:
            apply: What is done with a block.
            x: What goes into the first.
            per_layer: Arrays [layers, ...], in any pytree.
        """
        if self.config.scan_layers:
            graph, params = nnx.split(self.blocks)

            def scanned(x, each):
                return apply(nnx.merge(graph, each[0]), x, each[1])

            return jax.lax.scan(self._rematerialized(scanned), x, (params, per_layer))
        outputs = []
        for layer, block in enumerate(self.blocks):
            graph, params = nnx.split(block)

            def once(x, params, of_layer, graph=graph):
                return apply(nnx.merge(graph, params), x, of_layer)

            of_layer = jax.tree.map(lambda each, i=layer: each[i], per_layer)
            x, output = self._rematerialized(once)(x, params, of_layer)
            outputs.append(output)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    def _rematerialized(self, function):
        return jax.checkpoint(function) if self.config.remat else function

    def _rotation(self, positions: Int[Array, "..."]) -> Rotation | None:
        config = self.config
        if config.position_encoding != "rotary":
            return None
        return rotation(positions, config.head_size, config.rotary_base, config.rotary_scaling)

    def _uses_rotary(self) -> Bool[np.ndarray, "layers"] | None:
        """Which layers do, or None: all that can."""
        config = self.config
        if not config.layers_without_rotary:
            return None
        return ~np.isin(np.arange(config.num_layers), config.layers_without_rotary)


def _for_layer(by: Rotation | None, uses_rotary: Bool[Array, ""] | None) -> Rotation | None:
    """The rotation, or none at all in a layer without."""
    if by is None or uses_rotary is None:
        return by
    return Rotation(jnp.where(uses_rotary, by.sin, 0.0), jnp.where(uses_rotary, by.cos, 1.0))


def _embedding(config: DecoderConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Embed(
        rows, config.hidden_size, embedding_init=init, dtype=dtype_of(config), rngs=rngs
    )


def _stacked_blocks(config: DecoderConfig, rngs: nnx.Rngs) -> Block:
    """One block whose parameters are [layers, ...]."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
