"""The decoder with its keys and values kept: reading on, and writing many continuations.

`extend` reads more of each conversation, from where its cache ends; `write_step` one more token of
several continuations of each, which share the cache of their conversation. Both take the weights
of the same `Decoder` that training does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ilql_jax.models.attention import NEGATIVE
from ilql_jax.models.decoder import Decoder, DecoderConfig


class KeyValues(NamedTuple):
    """Keys and values, an array [..., heads, columns, head_size] for each layer.

    Arrays of their own, since taking a layer out of a larger one copies it, in every step. Heads
    stand before columns, so that the products of attention read them in order.
    """

    keys: tuple[Float[Array, "... heads columns head_size"], ...]
    values: tuple[Float[Array, "... heads columns head_size"], ...]

    @property
    def columns(self) -> int:
        return self.keys[0].shape[-2]

    @classmethod
    def zeros(cls, config: DecoderConfig, rows: tuple[int, ...], columns: int) -> KeyValues:
        """Empty, for `rows` conversations or continuations of up to `columns` tokens."""
        shape = (*rows, config.num_heads, columns, config.head_size)
        layers = range(config.num_layers)
        return cls(*(tuple(jnp.zeros(shape) for _ in layers) for _ in cls._fields))


def extend(
    decoder: Decoder,
    cache: KeyValues,
    tokens: Int[Array, "rows new"],
    start: Int[Array, "rows"],
) -> tuple[Float[Array, "rows new width"], KeyValues]:
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
    keys, values = [], []
    for layer, block in enumerate(decoder.blocks):
        q, k, v = (
            jnp.swapaxes(each, 1, 2)
            for each in block.attention.project(block.attention_norm(x), known_positions)
        )
        keys.append(insert(cache.keys[layer], k, start))
        values.append(insert(cache.values[layer], v, start))
        scores = jnp.einsum("rhnd,rhcd->rhnc", q, keys[-1]) * decoder.config.head_size**-0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, NEGATIVE), axis=-1)
        heads = jnp.einsum("rhnc,rhcd->rhnd", weights, values[-1])
        x = x + block.attention.merge(jnp.swapaxes(heads, 1, 2))
        x = x + block.mlp(x)
    return decoder.final_norm(x), KeyValues(tuple(keys), tuple(values))


def write_step(
    decoder: Decoder,
    tokens: Int[Array, "rows samples"],
    positions: Int[Array, "rows samples"],
    context: KeyValues,
    context_length: Int[Array, "rows"],
    written: KeyValues,
    column: Int[Array, ""],
    visible: Bool[Array, "rows written"],
) -> tuple[Float[Array, "rows samples width"], KeyValues]:
    """Reads one more token of each continuation.

    Args:
        decoder: The network.
        tokens: The token of each continuation.
        positions: Its position in the conversation.
        context: Of the conversations, [rows, heads, columns, head_size] each.
        context_length: How many of those columns are real.
        written: Of the continuations, [rows, samples, heads, written, head_size] each.
        column: Where the token goes in `written`.
        visible: Which columns of `written` belong to the row's continuations, `column` included.

    Returns:
        Hidden states, and `written` with the token in it.
    """
    columns = context.columns
    in_context = jnp.arange(columns) < context_length[:, None]
    # [rows, samples, heads, columns]: what is far comes before what is near.
    mask = jnp.concatenate([in_context, visible], axis=-1)[:, None, None]

    def insert(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice(old, new[..., None, :], (0, 0, 0, column, 0))

    # What goes on past the longest context is finished and waits to be replaced.
    positions = jnp.minimum(positions, decoder.config.max_positions - 1)
    x = decoder.embed(tokens, positions)
    keys, values = [], []
    for layer, block in enumerate(decoder.blocks):
        q, k, v = block.attention.project(block.attention_norm(x), positions)
        keys.append(insert(written.keys[layer], k))
        values.append(insert(written.values[layer], v))
        q = q * decoder.config.head_size**-0.5
        far = jnp.einsum("rshd,rhcd->rshc", q, context.keys[layer])
        near = jnp.einsum("rshd,rshcd->rshc", q, keys[-1])
        scores = jnp.where(mask, jnp.concatenate([far, near], axis=-1), NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1)
        heads = jnp.einsum("rshc,rhcd->rshd", weights[..., :columns], context.values[layer])
        heads += jnp.einsum("rshc,rshcd->rshd", weights[..., columns:], values[-1])
        x = x + block.attention.merge(heads)
        x = x + block.mlp(x)
    return decoder.final_norm(x), KeyValues(tuple(keys), tuple(values))
