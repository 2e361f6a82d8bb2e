"""Vocabulary-wide losses, computed for a chunk of the decisions at a time.

An array over decisions and vocabulary is by far the largest that training would hold. Here each
lives only as long as its chunk, so memory grows with decisions *plus* vocabulary, not with their
product.

`chunked_cross_entropy` is for losses that are summed up: the gradient of a sum is known up to a
factor, so each chunk's is taken together with its value, from scores that are still in memory:
three vocabulary-wide products instead of the four that computing them again would take.
`map_in_chunks` is for values per decision that enter another loss: it computes the scores again in
the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int

from ilql_jax.products import even_rows, product, unfused
from ilql_jax.sharding import row_parts


def chunked_cross_entropy(
    features: Float[Array, "heads batch decisions width"],
    matrix: Float[Array, "heads vocab width"],
    bias: Float[Array, "heads vocab"] | None,
    actions: Int[Array, "batch decisions"],
    weight: Float[Array, "batch decisions"],
    size: int,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, ""]:
    """`Σ weight · (logsumexp_a' z(a') − z(a))` with `z = features matrixᵀ + bias`.

    Summed over heads and decisions. For the logits of a policy this is −log π_β (`policy_loss`),
    for values the conservative term (`cql_loss`). Differentiable once, in reverse mode, in
    features, matrix and bias, not in the weight. The gradient is cheapest where the sum is added
    to the loss as it is: a factor belongs into the weight, since a later one goes over the matrix
    once more.

    Args:
        features: Input of the last layer at the decisions.
        matrix: Last layer, a row a token; for each head, or one for all ([1, vocab, width]).
        bias: Last layer's, or None.
        actions: Tokens written at the decisions.
        weight: 0 for padding, whose features may be anything, NaN too.
        size: Most decisions in memory together on a device (`MethodConfig.action_chunk`).
        dtype: The products' factors are rounded to it; they are summed up in float32.
    """
    if len(matrix) < len(features):
        # One matrix for all heads: the same decisions once more for each.
        heads = len(features)
        features = jnp.concatenate(features, axis=1)[None]
        actions, weight = (jnp.tile(x, (1, heads)) for x in (actions, weight))
    vocab, matrix = matrix.shape[1], even_rows(matrix)
    if added := matrix.shape[1] - vocab:  # nobody says these
        bias = jnp.zeros((1, vocab)) if bias is None else bias
        bias = jnp.pad(bias, ((0, 0), (0, added)), constant_values=-jnp.inf)
    features = jnp.where(weight[..., None] == 0, 0, features)  # what is masked out may be NaN
    features, actions, weight = _split((jnp.moveaxis(features, 0, 2), actions, weight), size)
    parts, heads, width = len(features), features.shape[3], features.shape[4]
    features = jnp.moveaxis(features, 3, 1).reshape(parts, heads, -1, width)
    actions, weight = (x.reshape(parts, -1) for x in (actions, weight))
    return _weighted_sum(jnp.dtype(dtype), matrix, bias, features, actions, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(dtype, matrix, bias, features, actions, weight):
    """`Σ weight · cross-entropy` over parts, the first axis of features, actions and weight."""

    def add(total, part):
        features, actions, weight = part
        scores = _scores(features.astype(dtype), matrix.astype(dtype), bias)
        cross_entropy = jax.nn.logsumexp(scores, axis=-1) - _at_actions(scores, actions)
        return total + jnp.sum(weight * cross_entropy), None

    return lax.scan(add, jnp.zeros(()), (features, actions, weight))[0]


def _weighted_sum_forward(dtype, *inputs):
    """The sum, with its gradient as residuals."""
    matrix, bias, features, actions, weight = (
        None if argument is None else argument.value for argument in inputs
    )
    # False for tied heads: the shared matrix gets no gradient; and for a bias that is no parameter.
    learns, bias_learns = inputs[0].perturbed, bias is not None and inputs[1].perturbed
    rounded_matrix = matrix.astype(dtype)

    def of_part(part):
        features, actions, weight = part
        rounded = features.astype(dtype)
        scores = _scores(rounded, rounded_matrix, bias)
        largest = unfused(scores.max(-1, keepdims=True))
        exponential = unfused(jnp.exp(scores - largest))
        normalizer = unfused(exponential.sum(-1, keepdims=True))
        value = (jnp.log(normalizer) + largest)[..., 0] - _at_actions(scores, actions)
        is_taken = lax.broadcasted_iota(actions.dtype, (1, scores.shape[-1]), 1)
        is_taken = is_taken == actions[..., None]
        to_scores = unfused(weight[..., None] * (exponential / normalizer - is_taken))
        to_scores = to_scores.astype(dtype)
        to_features = product("knv,kvm->knm", to_scores, rounded_matrix)
        sums = {"value": jnp.sum(weight * value)}
        if learns:
            sums["matrix"] = product("knv,knm->kvm", to_scores, rounded)
        if bias_learns:
            # A product with ones: on XLA:CPU a sum over columns is several times slower.
            ones = jnp.ones_like(to_scores[..., 0])
            sums["bias"] = product("kn,knv->kv", ones, to_scores)
        return sums, to_features.astype(features.dtype)

    def add(total, part):
        sums, to_features = of_part(part)
        return jax.tree.map(jnp.add, total, sums), to_features

    parts = features, actions, weight
    first = jax.tree.map(lambda x: x[0], parts)
    if len(features) == 1:  # the usual case: adding to zeros would go over the matrix once more
        sums, to_features = of_part(first)
        to_features = to_features[None]
    else:
        shapes = jax.eval_shape(of_part, first)[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, to_features = lax.scan(add, zeros, parts)
    return sums.pop("value"), (sums, to_features)


def _weighted_sum_backward(dtype, saved, gradient):
    sums, to_features = jax.tree.map(lambda x: (gradient * x).astype(x.dtype), saved)
    return sums.get("matrix"), sums.get("bias"), to_features, None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward, symbolic_zeros=True)


def _scores(features: Array, matrix: Array, bias: Array | None) -> Array:
    """[heads, decisions, vocab] of features [heads, decisions, width], float32."""
    scores = product("knm,kvm->knv", features, matrix)
    return scores if bias is None else scores + bias[:, None]


def _at_actions(scores: Array, actions: Array) -> Array:
    actions = jnp.broadcast_to(actions, scores.shape[:-1])
    return jnp.take_along_axis(scores, actions[..., None], axis=-1)[..., 0]


def map_in_chunks(
    function: Callable[
        [Float[Array, "batch chunk width"], Int[Array, "batch chunk"]], Float[Array, "batch chunk"]
    ],
    states: Float[Array, "batch decisions width"],
    actions: Int[Array, "batch decisions"],
    size: int,
) -> Float[Array, "batch decisions"]:
    """`function(states, actions)`, `size` decisions at a time.

    Args:
        function: Elementwise over decisions.
        states: Hidden states at the decisions.
        actions: Tokens written at the decisions.
        size: Most decisions in memory together on a device (`MethodConfig.action_chunk`).
    """
    parts = _split((states, actions), size)
    values = lax.map(lambda part: jax.checkpoint(function)(*part), parts)
    return jnp.moveaxis(values, 0, 1).reshape(len(states), -1)[:, : states.shape[1]]


def _split(arrays: tuple[Array, ...], size: int) -> tuple[Array, ...]:
    """[batch, decisions, ...] to [parts, batch, chunk, ...], the last chunk filled up with zeros.

    Each part takes a slice of every row, so that rows on different devices stay there; the size is
    that of a device.
    """
    rows, columns = arrays[0].shape[:2]
    count = -(-columns // max(1, size * row_parts() // rows))
    chunk = -(-columns // count)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - columns), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(split, arrays))
