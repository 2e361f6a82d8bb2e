"""One decoder-only transformer for GPT-2, Llama, Qwen, Gemma and similar families (Flax NNX).

Differences between families are fields of `DecoderConfig`; `blocks.py` reads most of them.
Differences between the layers of one network are in `Decoder.rotation_in` and `Decoder.in_layer`.

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
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import ATTENTION, attend, packed_causal_mask
from ilql_jax.models.blocks import Block, compute_dtype, norm, param_dtype
from ilql_jax.models.config import DecoderConfig
from ilql_jax.models.cpu_matmul import matmul_t
from ilql_jax.models.rotary import Rotation, rotation
from ilql_jax.sharding import embedding_lookup, platform, shard_batch

Rotations = tuple[Rotation, ...]  # that of layers that see all; that of sliding ones, if there are


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
            self.blocks = nnx.List(_separate_blocks(config, rngs))
        self.final_norm = norm(config, config.hidden_size, rngs)
        if not config.tied_output:
            self.output_embedding = _embedding(config, config.vocab_size, rngs)

    def embed(
        self, tokens: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Float[Array, "... width"]:
        """Embeds tokens, with learned positions where the network has them."""
        x = embedding_lookup(self.token_embedding.embedding[...], tokens)
        if self.config.scaled_embedding:
            x = x * jnp.asarray(self.config.hidden_size**0.5, compute_dtype(self.config))
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
        rotations = self.rotations(positions)
        mask = near = packed_causal_mask(segment_ids)
        if config.sliding_window:
            near = packed_causal_mask(segment_ids, config.sliding_window)

        def apply(graph: Any, layer: int | Array, x: Array, params: Any) -> Array:
            block = nnx.merge(graph, params)
            visible = self.in_layer(layer, mask, near)
            attend_here = functools.partial(attend, mask=visible, implementation=config.attention)
            return shard_batch(block(x, self.rotation_in(layer, rotations), attend_here))

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

    def layers(self, rotations: Rotations | None) -> Iterator[tuple[Block, Rotation | None]]:
        """Yields each block with its rotation; stacked blocks are taken apart.

        Args:
            rotations: Those of the positions (see `rotations`).
        """
        config = self.config
        for layer in range(config.num_layers):
            block = self.blocks if config.scan_layers else self.blocks[layer]
            if config.scan_layers:
                graph, params = nnx.split(block)
                block = nnx.merge(graph, jax.tree.map(lambda x, i=layer: x[i], params))
            yield block, self.rotation_in(layer, rotations)

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """Returns the logits of the next token, float32."""
        return matmul_t(hidden, self.output_matrix().astype(hidden.dtype))

    def output_matrix(self) -> Float[Array, "vocab width"]:
        """Returns the matrix of `logits`, a row a token: the embedding, or a matrix of its own."""
        tied = self.config.tied_output
        return (self.token_embedding if tied else self.output_embedding).embedding[...]

    def rotations(self, positions: Int[Array, "..."]) -> Rotations | None:
        """Computes the rotations at these positions; None without rotary positions."""
        config = self.config
        if config.position_encoding != "rotary":
            return None
        size = config.head_size
        at = (rotation(positions, size, config.rotary_base, config.rotary_scaling),)
        if config.sliding_window:
            at += (rotation(positions, size, config.sliding_rotary_base, None),)
        # Otherwise XLA:CPU computes sines and cosines again in every layer that uses them.
        return jax.lax.optimization_barrier(at)

    def rotation_in(
        self, layer: int | Int[Array, ""], rotations: Rotations | None
    ) -> Rotation | None:
        """Selects a layer's rotation, or none, for training (stacked or not) and decoding.

        Args:
            layer: Index of the layer; traced in a scan over stacked blocks.
            rotations: Those of the positions.
        """
        without = self.config.layers_without_rotary
        if rotations is None:
            return None
        chosen = self.in_layer(layer, rotations[0], rotations[-1])
        if not without:
            return chosen
        if isinstance(layer, int):
            return None if layer in without else chosen
        sin, cos = chosen
        is_without = self._is_one_of(without, layer)
        return Rotation(jnp.where(is_without, 0.0, sin), jnp.where(is_without, 1.0, cos))

    def in_layer(self, layer: int | Int[Array, ""], in_all: Any, in_sliding: Any) -> Any:
        """Selects what is a layer's: arrays of layers that see all, or those of sliding ones.

        Args:
            layer: Index of the layer; traced in a scan over stacked blocks.
            in_all: Arrays.
            in_sliding: Arrays of the same shapes.
        """
        sliding = self.config.sliding_layers
        if not sliding:
            return in_all
        if isinstance(layer, int):
            return in_sliding if layer in sliding else in_all
        slides = self._is_one_of(sliding, layer)
        return jax.tree.map(lambda a, b: jnp.where(slides, b, a), in_all, in_sliding)

    def _is_one_of(self, layers: tuple[int, ...], layer: Int[Array, ""]) -> Bool[Array, ""]:
        return jnp.asarray(np.isin(np.arange(self.config.num_layers), layers))[layer]

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


def _separate_blocks(config: DecoderConfig, rngs: nnx.Rngs) -> list[Block]:
    """Builds the blocks of an unrolled network: parameters as if drawn one block after the other.

    They are drawn in a scan, so that a block's initialization is compiled once for all layers.
    """
    stream = rngs.default
    key = stream.key[...]

    def create(drawn: Array, _: None) -> tuple[Array, Any]:
        of_layer = nnx.Rngs(key)
        of_layer.default.count[...] = drawn
        params = nnx.state(Block(config, of_layer))
        return of_layer.default.count[...], params

    drawn, stacked = jax.lax.scan(create, stream.count[...], None, length=config.num_layers)
    stream.count[...] = drawn
    graph = nnx.graphdef(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
    layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(config.num_layers)]
    return [nnx.merge(graph, params) for params in layers]
