"""The decoder with a cache of keys and values: `prefill` and `decode_step`.

`prefill` reads more of each conversation, from where its cache ends; `decode_step` one more token
of several continuations of each, which share the cache of their conversation. Both run the blocks
of the same `Decoder` that is trained; `decode.py` puts them together.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import NEGATIVE
from ilql_jax.models.blocks import compute_dtype
from ilql_jax.models.config import DecoderConfig
from ilql_jax.models.decoder import Decoder
from ilql_jax.products import product


class KVCache(NamedTuple):
    """Keys and values, an array [..., kv_heads, columns, head_size] for each layer.

    A column is the place of a token. Where a second trunk reads along, its layers follow those of
    the first. Layers are arrays of their own, since taking one out of a larger array copies it, in
    every step. Heads stand before columns, so that attention's products read them in order.
    """

    keys: tuple[Float[Array, "... kv_heads columns head_size"], ...]
    values: tuple[Float[Array, "... kv_heads columns head_size"], ...]

    @property
    def columns(self) -> int:
        """Number of tokens that there is room for."""
        return self.keys[0].shape[-2]

    @classmethod
    def zeros(
        cls, config: DecoderConfig, leading: tuple[int, ...], columns: int, trunks: int = 1
    ) -> KVCache:
        """Makes an empty cache.

        Args:
            config: Shape of the decoder.
            leading: Leading axes, e.g. (conversations,).
            columns: Room for tokens in each.
            trunks: Number of trunks that read.
        """
        shape = (*leading, config.kv_heads, columns, config.head_size)
        layers, dtype = range(trunks * config.num_layers), compute_dtype(config)
        return cls(*(tuple(jnp.zeros(shape, dtype) for _ in layers) for _ in cls._fields))

    def by_trunk(self, config: DecoderConfig) -> list[KVCache]:
        """Splits the layers into those of each trunk."""
        size = config.num_layers
        starts = range(0, len(self.keys), size)
        return [KVCache(self.keys[i : i + size], self.values[i : i + size]) for i in starts]

    @classmethod
    def of_trunks(cls, caches: Sequence[KVCache]) -> KVCache:
        """Concatenates the layers of several trunks; the inverse of `by_trunk`."""
        return cls(*(tuple(itertools.chain(*layers)) for layers in zip(*caches, strict=True)))


def prefill(
    decoder: Decoder,
    cache: KVCache,
    tokens: Int[Array, "batch new"],
    start: Int[Array, " batch"],
) -> tuple[Float[Array, "batch new width"], KVCache]:
    """Reads `tokens` after the first `start` columns of each conversation's cache.

    Args:
        decoder: The network.
        cache: [batch, kv_heads, columns, head_size] each; columns from `start` on are overwritten,
            and must be enough for all new tokens.
        tokens: New tokens; padded on the right as needed, since nothing looks ahead.
        start: Number of tokens in the cache of each conversation.

    Returns:
        Hidden states of the new tokens, and the longer cache.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    # Padding may stand past the longest context; a position that does not exist would give NaN,
    # which no mask keeps out.
    known_positions = jnp.minimum(positions, decoder.config.max_positions - 1)
    # [batch, 1, new, columns]: itself and what is before it.
    columns = jnp.arange(cache.columns)
    all_before = (columns <= positions[..., None])[:, None]
    near = (columns > positions[..., None] - decoder.config.sliding_window)[:, None] & all_before
    insert = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (0, at, 0)))
    keys, values = [], []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys.append(insert(cache.keys[layer], jnp.swapaxes(k, 1, 2), start))
        values.append(insert(cache.values[layer], jnp.swapaxes(v, 1, 2), start))
        q = _scaled_by_group(q, k.shape[-2])
        scores = product("bnhgd,bhcd->bhgnc", q, keys[layer])
        visible = decoder.in_layer(layer, all_before, near)
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, NEGATIVE), axis=-1)
        heads = product("bhgnc,bhcd->bnhgd", weights.astype(v.dtype), values[layer])
        return _merged_groups(heads).astype(q.dtype)

    x = decoder.embed(tokens, known_positions)
    for layer, (block, rotation) in enumerate(decoder.layers(decoder.rotations(known_positions))):
        x = block(x, rotation, functools.partial(attend, layer))
    return decoder.final_norm(x), KVCache(tuple(keys), tuple(values))


def decode_step(
    decoder: Decoder,
    tokens: Int[Array, "batch samples"],
    positions: Int[Array, "batch 1"],
    context: KVCache,
    context_length: Int[Array, " batch"],
    written: KVCache,
    column: Int[Array, ""],
    visible: Bool[Array, "batch written"],
) -> tuple[Float[Array, "batch samples width"], KVCache]:
    """Reads one more token of each continuation.

    Args:
        decoder: The network.
        tokens: The token of each continuation.
        positions: Its position in the conversation, the same for all continuations of one.
        context: Cache of the conversations, [batch, kv_heads, columns, head_size] each.
        context_length: Number of tokens in it.
        written: Cache of the continuations, [batch · samples, kv_heads, written, head_size] each.
            (As one axis: with one of size 1, XLA:CPU would insert into them twice, and copy them
            for it.)
        column: Place of the token in `written`.
        visible: Columns of `written` that belong to the conversation's continuations, `column`
            included.

    Returns:
        Hidden states, and `written` with the token in it.
    """
    columns, room = jnp.arange(context.columns), visible.shape[-1]
    in_context = (columns < context_length[:, None])[:, None, None, None]
    visible = visible[:, None, None, None]
    # What sliding layers see of both, by the distance from the token that is read.
    window = decoder.config.sliding_window
    in_context_near = in_context & (columns > positions - window)[:, None, None, None]
    visible_near = visible & ((column - jnp.arange(room)) % room < window)
    batch, samples = tokens.shape
    keys, values = [], []

    def insert(old: Array, new: Array) -> Array:
        new = new.reshape(batch * samples, -1, 1, new.shape[-1])
        return lax.dynamic_update_slice(old, new, (0, 0, column, 0))

    def near_product(indices: str, a: Array, b: Array) -> Array:
        result = product(indices, a.reshape(batch * samples, *a.shape[2:]), b)
        return result.reshape(batch, samples, *result.shape[1:])

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys.append(insert(written.keys[layer], k))
        values.append(insert(written.values[layer], v))
        q = _scaled_by_group(q, k.shape[-2])
        # One softmax over what is far (the context), [batch, heads, samples, group, columns], and
        # near (written), [batch, samples, heads, group, written]: brought together only where they
        # are small.
        far = product("bhsgd,bhcd->bhsgc", jnp.swapaxes(q, 1, 2), context.keys[layer])
        near = near_product("nhgd,nhwd->nhgw", q, keys[layer])
        far_seen, near_seen = decoder.in_layer(
            layer, (in_context, visible), (in_context_near, visible_near)
        )
        far, near = jnp.where(far_seen, far, NEGATIVE), jnp.where(near_seen, near, NEGATIVE)
        largest = jnp.maximum(near.max(axis=-1), jnp.swapaxes(far.max(axis=-1), 1, 2))[..., None]
        far, near = jnp.exp(far - jnp.swapaxes(largest, 1, 2)), jnp.exp(near - largest)
        total = near.sum(axis=-1) + jnp.swapaxes(far.sum(axis=-1), 1, 2)
        heads = product("bhsgc,bhcd->bhsgd", far.astype(v.dtype), context.values[layer])
        heads = jnp.swapaxes(heads, 1, 2)
        heads += near_product("nhgw,nhwd->nhgd", near.astype(v.dtype), values[layer])
        return _merged_groups(heads / total[..., None]).astype(q.dtype)

    # Continuations past the longest context are finished; their slot waits to be refilled.
    positions = jnp.minimum(positions, decoder.config.max_positions - 1)
    x = decoder.embed(tokens, positions)
    for layer, (block, rotation) in enumerate(decoder.layers(decoder.rotations(positions))):
        x = block(x, rotation, functools.partial(attend, layer))
    return decoder.final_norm(x), KVCache(tuple(keys), tuple(values))


def _scaled_by_group(
    q: Float[Array, "... heads head_size"], kv_heads: int
) -> Float[Array, "... kv_heads group head_size"]:
    """Scales queries, and groups those that share keys."""
    *leading, heads, size = q.shape
    return q.reshape(*leading, kv_heads, heads // kv_heads, size) * size**-0.5


def _merged_groups(
    heads: Float[Array, "... kv_heads group head_size"],
) -> Float[Array, "... heads head_size"]:
    *leading, kv_heads, group, size = heads.shape
    return heads.reshape(*leading, kv_heads * group, size)
