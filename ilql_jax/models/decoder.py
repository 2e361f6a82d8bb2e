"""One decoder-only transformer for GPT-2, Llama, Qwen, SmolLM and similar families (Flax NNX).

Differences between families are fields of `DecoderConfig`; `blocks.py` reads most of them.
Differences between the layers of one network are in `Decoder.rotation_in` alone.

`Decoder.__call__` reads packed rows, as in training; `kv_cache.py` decodes with the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ilql_jax.models.attention import ATTENTION, attend, packed_causal_mask
from ilql_jax.models.blocks import Block, compute_dtype, norm, param_dtype
from ilql_jax.models.config import DecoderConfig
from ilql_jax.models.cpu_matmul import matmul_t
from ilql_jax.models.rotary import Rotation, rotation
from ilql_jax.sharding import embedding_lookup, platform, shard_batch


class Decoder(nnx.Module):
    """Maps tokens to hidden states, and hidden states to logits over the next token."""

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

    def embed(
        self, tokens: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Float[Array, "... width"]:
        """Embeds tokens, with learned positions where the network has them."""
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
        """Returns hidden states of packed rows; no attention across segments (0 = padding)."""
        config = self.config
        rotation = self.rotation(positions)
        attend_in_segment = functools.partial(
            attend, mask=packed_causal_mask(segment_ids), implementation=config.attention
        )

        def apply(graph: Any, layer: int | Array, x: Array, params: Any) -> Array:
            block = nnx.merge(graph, params)
            return shard_batch(block(x, self.rotation_in(layer, rotation), attend_in_segment))

        x = shard_batch(self.embed(tokens, positions))
        if config.scan_layers:
            graph, params = nnx.split(self.blocks)

            def scanned(x: Array, inputs: Any) -> tuple[Array, None]:
                layer, params = inputs
                return apply(graph, layer, x, params), None

            stacked = jnp.arange(config.num_layers), params
            x, _ = jax.lax.scan(self._rematerialized(scanned), x, stacked)
        else:
            for layer, block in enumerate(self.blocks):
                graph, params = nnx.split(block)
                x = self._rematerialized(functools.partial(apply, graph, layer))(x, params)
        return self.final_norm(x)

    def layers(self, rotation: Rotation | None) -> Iterator[tuple[Block, Rotation | None]]:
        """Yields each block with its rotation; stacked blocks are taken apart.

        Args:
            rotation: That of the positions (see `rotation`).
        """
        config = self.config
        for layer in range(config.num_layers):
            block = self.blocks if config.scan_layers else self.blocks[layer]
            if config.scan_layers:
                graph, params = nnx.split(block)
                block = nnx.merge(graph, jax.tree.map(lambda x, i=layer: x[i], params))
            yield block, self.rotation_in(layer, rotation)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Returns the logits of the next token, float32."""
        return matmul_t(hidden, self.output_matrix().astype(hidden.dtype))

    def output_matrix(self) -> Float[Array, "vocab width"]:
        """Returns the matrix of `logits`, a row a token: the embedding, or a matrix of its own."""
        tied = self.config.tied_output
        return (self.token_embedding if tied else self.output_embedding).embedding[...]

    def rotation(self, positions: Int[Array, "..."]) -> Rotation | None:
        """Computes the rotation at these positions; None without rotary positions."""
        config = self.config
        if config.position_encoding != "rotary":
            return None
        at = rotation(positions, config.head_size, config.rotary_base, config.rotary_scaling)
        # Otherwise XLA:CPU computes sines and cosines again in every layer that uses them.
        return jax.lax.optimization_barrier(at)

    def rotation_in(
        self, layer: int | Int[Array, ""], rotation: Rotation | None
    ) -> Rotation | None:
        """Selects a layer's rotation: that of the positions, or none.

        The one place that tells layers apart. A family whose layers differ in window or rotary base
        selects that here too, for training (stacked or not) and decoding at once.

        Args:
            layer: Index of the layer; traced in a scan over stacked blocks.
            rotation: That of the positions.
        """
        without = self.config.layers_without_rotary
        if rotation is None or not without:
            return rotation
        if isinstance(layer, int):
            return None if layer in without else rotation
        rotates = jnp.asarray(~np.isin(np.arange(self.config.num_layers), without))[layer]
        sin, cos = rotation
        return Rotation(jnp.where(rotates, sin, 0.0), jnp.where(rotates, cos, 1.0))

    def _rematerialized(self, function):
        """Computes a block again in the backward pass: all of it, or what is cheap.

        What a scan keeps goes through memory once more, stacked over the layers. Of layers apart,
        XLA itself computes again what is cheap.
        """
        if self.config.remat:
            return jax.checkpoint(function)
        if not self.config.scan_layers or platform() == "cpu":
            return function
        kept = jax.checkpoint_policies.save_from_both_policies(
            functools.partial(_is_product, compute_dtype(self.config)),
            jax.checkpoint_policies.save_only_these_names(ATTENTION),
        )
        return jax.checkpoint(function, policy=kept, prevent_cse=False)


def _is_product(dtype: jnp.dtype, primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Selects what blocks keep for the backward pass: products, and cuDNN's attention.

    Norms, activations and rotations are computed again: in float32 they are as large as two
    products. So are attention's scores, which alone are float32 in another dtype's place.
    """
    if primitive.name == "dot_general":
        return (parameters["preferred_element_type"] or inputs[0].dtype) == dtype
    return primitive.name.startswith("dot_product_attention_fwd")


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
    """Builds one block whose parameters are [layers, ...]."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
