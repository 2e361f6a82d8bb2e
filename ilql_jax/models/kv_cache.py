"""The decoder with its keys and values kept: reading on, and writing many continuations.

`extend` reads more of each conversation, from where its cache ends; `decode_step` one more token of
several continuations of each, which share the cache of their conversation. Both take the weights
of the same `Decoder` that training does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import NEGATIVE
from ilql_jax.models.blocks import Block, compute_dtype
from ilql_jax.models.config import DecoderConfig
from ilql_jax.models.decoder import Decoder


class KVCache(NamedTuple):
    """Keys and values, an array [..., heads, columns, head_size] for each layer.

    Where a second trunk reads along, its layers follow those of the first. They are arrays of
    their own, since taking a layer out of a larger one copies it, in every step. Heads stand before
    columns, so that the products of attention read them in order.
    """

    keys: tuple[Float[Array, "... heads columns head_size"], ...]
    values: tuple[Float[Array, "... heads columns head_size"], ...]

    @property
    def columns(self) -> int:
        return self.keys[0].shape[-2]

    @classmethod
    def zeros(
        cls, config: DecoderConfig, rows: tuple[int, ...], columns: int, trunks: int = 1
    ) -> KVCache:
        """Empty, for `rows` conversations or continuations of up to `columns` tokens."""
        shape = (*rows, config.kv_heads, columns, config.head_size)
        layers, dtype = range(trunks * config.num_layers), compute_dtype(config)
        return cls(*(tuple(jnp.zeros(shape, dtype) for _ in layers) for _ in cls._fields))

    def by_trunk(self, config: DecoderConfig) -> list[KVCache]:
        """Those of each trunk that reads."""
        size = config.num_layers
        starts = range(0, len(self.keys), size)
        return [KVCache(self.keys[i : i + size], self.values[i : i + size]) for i in starts]

    @classmethod
    def of_trunks(cls, each: Sequence[KVCache]) -> KVCache:
        """Those of several trunks, behind one another."""
        return cls(*(tuple(itertools.chain(*layers)) for layers in zip(*each, strict=True)))


def extend(
    decoder: Decoder,
    cache: KVCache,
    tokens: Int[Array, "rows new"],
    start: Int[Array, "rows"],
) -> tuple[Float[Array, "rows new width"], KVCache]:
    """Reads `tokens` behind the first `start` columns of each row.

    Args:
        decoder: The network.
        cache: [rows, heads, columns, head_size] each; columns from `start` on are overwritten, and
            must be enough for all new tokens.
        tokens: To be read; padded on the right as needed, since nothing looks ahead.
        start: How many tokens of each row are in the cache.

    Returns:
        Hidden states of the new tokens, and the longer cache.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    # Padding may stand past the longest context; a position that does not exist would give NaN,
    # which no mask keeps out.
    known_positions = jnp.minimum(positions, decoder.config.max_positions - 1)
    # [rows, 1, new, columns]: itself and what is before it.
    visible = (jnp.arange(cache.columns) <= positions[..., None])[:, None]
    insert = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (0, at, 0)))
    x = decoder.embed(tokens, known_positions)
    turn = decoder.rotation(known_positions)
    keys, values = [], []
    for layer, (block, uses_rotary) in enumerate(decoder.layers()):
        q, k, v = block.attention.project(block.attention_norm(x), turn if uses_rotary else None)
        keys.append(insert(cache.keys[layer], jnp.swapaxes(k, 1, 2), start))
        values.append(insert(cache.values[layer], jnp.swapaxes(v, 1, 2), start))
        q = _grouped(q, k.shape[-2])
        scores = _product("rnhgd,rhcd->rhgnc", q, keys[-1])
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, NEGATIVE), axis=-1)
        heads = _product("rhgnc,rhcd->rnhgd", weights.astype(v.dtype), values[-1])
        x = _rest_of_block(block, x, heads)
    return decoder.final_norm(x), KVCache(tuple(keys), tuple(values))


def decode_step(
    decoder: Decoder,
    tokens: Int[Array, "rows samples"],
    positions: Int[Array, "rows 1"],
    context: KVCache,
    context_length: Int[Array, "rows"],
    written: KVCache,
    column: Int[Array, ""],
    visible: Bool[Array, "rows written"],
) -> tuple[Float[Array, "rows samples width"], KVCache]:
    """Reads one more token of each continuation.

    Args:
        decoder: The network.
        tokens: The token of each continuation.
        positions: Its position in the conversation, the same for all of a row.
        context: Of the conversations, [rows, heads, columns, head_size] each.
        context_length: How many of those columns are real.
        written: Of the continuations, [rows · samples, heads, written, head_size] each. (As one
            axis: with one of size 1, XLA:CPU would insert into them twice, and copy them for it.)
        column: Where the token goes in `written`.
        visible: Which columns of `written` belong to the row's continuations, `column` included.

    Returns:
        Hidden states, and `written` with the token in it.
    """
    in_context = (jnp.arange(context.columns) < context_length[:, None])[:, None, None, None]
    visible = visible[:, None, None, None]

    rows, samples = tokens.shape

    def insert(old: Array, new: Array) -> Array:
        new = new.reshape(rows * samples, -1, 1, new.shape[-1])
        return lax.dynamic_update_slice(old, new, (0, 0, column, 0))

    def near_product(indices: str, a: Array, b: Array) -> Array:
        product = _product(indices, a.reshape(rows * samples, *a.shape[2:]), b)
        return product.reshape(rows, samples, *product.shape[1:])

    # What goes on past the longest context is finished and waits to be replaced.
    positions = jnp.minimum(positions, decoder.config.max_positions - 1)
    x = decoder.embed(tokens, positions)
    turn = decoder.rotation(positions)
    keys, values = [], []
    for layer, (block, uses_rotary) in enumerate(decoder.layers()):
        q, k, v = block.attention.project(block.attention_norm(x), turn if uses_rotary else None)
        keys.append(insert(written.keys[layer], k))
        values.append(insert(written.values[layer], v))
        q = _grouped(q, k.shape[-2])
        # One softmax over what is far, [rows, heads, samples, group, columns], and what is near,
        # [rows, samples, heads, group, written]: brought together only where they are small.
        far = _product("rhsgd,rhcd->rhsgc", jnp.swapaxes(q, 1, 2), context.keys[layer])
        near = near_product("nhgd,nhwd->nhgw", q, keys[-1])
        far, near = jnp.where(in_context, far, NEGATIVE), jnp.where(visible, near, NEGATIVE)
        largest = jnp.maximum(near.max(axis=-1), jnp.swapaxes(far.max(axis=-1), 1, 2))[..., None]
        far, near = jnp.exp(far - jnp.swapaxes(largest, 1, 2)), jnp.exp(near - largest)
        total = near.sum(axis=-1) + jnp.swapaxes(far.sum(axis=-1), 1, 2)
        heads = _product("rhsgc,rhcd->rhsgd", far.astype(v.dtype), context.values[layer])
        heads = jnp.swapaxes(heads, 1, 2)
        heads += near_product("nhgw,nhwd->nhgd", near.astype(v.dtype), values[-1])
        heads /= total[..., None]
        x = _rest_of_block(block, x, heads)
    return decoder.final_norm(x), KVCache(tuple(keys), tuple(values))


def _grouped(q: Float[Array, "... heads head_size"], kv_heads: int) -> Array:
    """Scaled, as [..., kv_heads, group, head_size]: each group shares its keys."""
    *leading, heads, size = q.shape
    return q.reshape(*leading, kv_heads, heads // kv_heads, size) * size**-0.5


def _rest_of_block(block: Block, x: Array, heads: Float[Array, "... kv_heads group head_size"]):
    *leading, kv_heads, group, size = heads.shape
    merged = block.attention.merge(heads.reshape(*leading, kv_heads * group, size).astype(x.dtype))
    x = x + merged
    return x + block.mlp(x)


def _product(indices: str, a: Array, b: Array) -> Array:
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)
