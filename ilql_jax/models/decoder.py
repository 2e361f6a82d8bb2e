"""One decoder-only transformer for GPT-2, Llama, Qwen, SmolLM and what is like them (Flax NNX).

What a family does differently is a field of `DecoderConfig`; `blocks.py` reads it.

`Decoder.__call__` goes over packed rows, as in training; `cached.py` takes the same weights with
keys and values kept, for writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import packed_causal_mask
from ilql_jax.models.blocks import Block, compute_dtype, norm, param_dtype
from ilql_jax.models.config import DecoderConfig
from ilql_jax.models.cpu_matmul import matmul_t
from ilql_jax.models.rotary import Rotation, rotation
from ilql_jax.sharding import embedding_lookup, shard_batch

__all__ = ["Decoder", "DecoderConfig", "packed_causal_mask"]


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
        x = embedding_lookup(self.token_embedding.embedding[...], tokens)
        if self.config.position_encoding == "learned":
            x = x + embedding_lookup(self.position_embedding.embedding[...], positions)
        return x.astype(compute_dtype(self.config))

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
    ) -> Float[Array, "batch time width"]:
        """Hidden states of packed rows; no attention across segments (0 = padding)."""
        mask = packed_causal_mask(segment_ids)
        turn = self.rotation(positions)
        x = shard_batch(self.embed(tokens, positions))
        if self.config.scan_layers:
            graph, params = nnx.split(self.blocks)

            def scanned(x: Array, layer: Any) -> tuple[Array, None]:
                params, uses_rotary = layer
                x = nnx.merge(graph, params)(x, _for_layer(turn, uses_rotary), mask)
                return shard_batch(x), None

            per_layer = params, self._uses_rotary()
            x, _ = jax.lax.scan(self._rematerialized(scanned), x, per_layer)
        else:
            for block, uses_rotary in self.layers():
                graph, params = nnx.split(block)

                def once(x: Array, params: Any, graph=graph, rotary=uses_rotary) -> Array:
                    return shard_batch(nnx.merge(graph, params)(x, turn if rotary else None, mask))

                x = self._rematerialized(once)(x, params)
        return self.final_norm(x)

    def layers(self) -> Iterator[tuple[Block, bool]]:
        """Each block, and whether its attention sees positions; stacked ones are taken apart."""
        config = self.config
        for layer in range(config.num_layers):
            block = self.blocks if config.scan_layers else self.blocks[layer]
            if config.scan_layers:
                graph, params = nnx.split(block)
                block = nnx.merge(graph, jax.tree.map(lambda x, i=layer: x[i], params))
            yield block, layer not in config.layers_without_rotary

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Scores of the next token, float32."""
        return matmul_t(hidden, self.output_matrix().astype(hidden.dtype))

    def output_matrix(self) -> Float[Array, "vocab width"]:
        """What `logits` multiplies by, a row a token: the embedding, or a matrix of its own."""
        tied = self.config.tied_output
        return (self.token_embedding if tied else self.output_embedding).embedding[...]

    def _rematerialized(self, function):
        return jax.checkpoint(function) if self.config.remat else function

    def rotation(self, positions: Int[Array, "..."]) -> Rotation | None:
        """What queries and keys at these positions are turned by, where they are."""
        config = self.config
        if config.position_encoding != "rotary":
            return None
        turn = rotation(positions, config.head_size, config.rotary_base, config.rotary_scaling)
        # Or XLA:CPU works sines and cosines out again wherever something is turned by them.
        return jax.lax.optimization_barrier(turn)

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
        rows,
        config.hidden_size,
        embedding_init=init,
        param_dtype=param_dtype(config),
        rngs=rngs,
    )


def _stacked_blocks(config: DecoderConfig, rngs: nnx.Rngs) -> Block:
    """One block whose parameters are [layers, ...]."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
