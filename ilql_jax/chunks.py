"""Work that is as wide as the vocabulary, done for a chunk of the decisions at a time.

An array over decisions and vocabulary is by far the largest that training would hold. Here each
lives only as long as its chunk, so memory grows with decisions *plus* vocabulary, not with their
product.

`weighted_sum` is for losses that are summed up: a sum knows what gradient it will hand down, up to
a factor, so each chunk's gradient is taken at once, from scores that are still there: three
vocabulary-wide products instead of the four that computing them again would take. `each` is for
losses that something else is made of: it computes the scores again in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# Hidden states and actions of some decisions to a number for each.
PerDecision = Callable[
    [Float[Array, "batch chunk width"], Int[Array, "batch chunk"]], Float[Array, "batch chunk"]
]


def weighted_sum(
    loss: PerDecision,
    states: Float[Array, "batch decisions width"],
    actions: Int[Array, "batch decisions"],
    weight: Float[Array, "batch decisions"],
    size: int,
) -> Float[Array, ""]:
    """`Σ weight · loss(states, actions)`, with no gradient into the weight.

    Differentiable once, in reverse mode, in the states and in whatever the loss closes over.

    Args:
        loss: Elementwise over decisions, e.g. the cross-entropy of a network's logits.
        states: Hidden states at the decisions.
        actions: Of the decisions.
        weight: 0 for padding.
        size: Most decisions that are looked at together (`ObjectiveConfig.action_chunk`).
    """
    parts = _split((states, actions, lax.stop_gradient(weight)), size)

    def of_part(states, actions, weight):
        return jnp.sum(weight * loss(states, actions))

    of_part, closed = jax.closure_convert(of_part, *(x[0] for x in parts))
    return _sum(of_part, closed, *parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(of_part: Callable, closed: list[Array], *parts: Array) -> Array:
    """Σ over the parts, which are the arrays' first axis."""
    return _add_up(lambda part: of_part(*part, *closed), parts)


def _sum_forward(of_part: Callable, closed: list[Array], *parts: Array):
    def with_gradient(part):
        states, actions, weight = part
        value, (to_closed, to_states) = jax.value_and_grad(
            lambda closed, states: of_part(states, actions, weight, *closed), (0, 1)
        )(closed, states)
        return (value, to_closed), to_states

    if len(parts[0]) == 1:
        (value, to_closed), to_states = with_gradient([x[0] for x in parts])
        return value, (to_closed, to_states[None])

    def add(total, part):
        new, to_states = with_gradient(part)
        return jax.tree.map(jnp.add, total, new), to_states

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), closed))
    (value, to_closed), to_states = lax.scan(add, zeros, parts)
    return value, (to_closed, to_states)


def _sum_backward(of_part: Callable, saved, gradient: Array):
    to_closed, to_states = jax.tree.map(lambda x: (gradient * x).astype(x.dtype), saved)
    return to_closed, to_states, None, None


_sum.defvjp(_sum_forward, _sum_backward)


def each(
    function: PerDecision,
    states: Float[Array, "batch decisions width"],
    actions: Int[Array, "batch decisions"],
    size: int,
) -> Float[Array, "batch decisions"]:
    """`function(states, actions)`; the arguments are those of `weighted_sum`."""
    parts = _split((states, actions), size)
    values = lax.map(lambda part: jax.checkpoint(function)(*part), parts)
    return jnp.moveaxis(values, 0, 1).reshape(len(states), -1)[:, : states.shape[1]]


def _split(arrays: tuple[Array, ...], size: int) -> tuple[Array, ...]:
    """[batch, decisions, ...] to [parts, batch, chunk, ...], the last chunk filled up with zeros.

    Each part takes a slice of every row, so that rows on different devices stay there.
    """
    rows, columns = arrays[0].shape[:2]
    count = -(-columns // max(1, size // rows))
    chunk = -(-columns // count)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - columns), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(split, arrays))


def _add_up(function: Callable, parts: tuple[Array, ...]) -> Array:
    if len(parts[0]) == 1:
        return function([x[0] for x in parts])
    return lax.scan(lambda total, part: (total + function(part), None), jnp.zeros(()), parts)[0]
