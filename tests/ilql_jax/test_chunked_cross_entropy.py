"""Vocabulary-wide losses in chunks are those of all decisions at once, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilql_jax import chunked_cross_entropy, losses


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


ROWS, SLOTS, WIDTH, WORDS = 2, 7, 3, 11
# Of two rows with seven slots each, one, two, three and all slots at a time.
CHUNKS = pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 4, 6, 1000])


def chunk_arguments():
    rng = np.random.default_rng(0)
    actions = jnp.asarray(rng.integers(WORDS, size=(ROWS, SLOTS)))
    weight = jnp.asarray(rng.random((ROWS, SLOTS)) * (rng.random((ROWS, SLOTS)) < 0.7))
    matrices = normal(1, WORDS, WIDTH), normal(2, 2, WORDS, WIDTH), normal(3, 2, WORDS)
    return normal(0, ROWS, SLOTS, WIDTH), tuple(map(jnp.asarray, matrices)), actions, weight


def per_decision(matrices):
    """A policy's cross-entropy and the conservative term of twin heads."""
    output, heads, bias = matrices

    def loss(states, actions):
        q = jnp.einsum("bad,kvd->kbav", states, heads) + bias[:, None, None]
        policy = losses.policy_loss(states @ output.T, actions)
        return policy + 0.5 * losses.cql_loss(q, actions).sum(axis=0)

    return loss


@CHUNKS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", ["a matrix each", "one matrix"])
def test_cross_entropy_in_chunks_is_that_of_all_in_value_and_gradient(size, heads, bias):
    _, (_, matrix, offset), actions, weight = chunk_arguments()
    features = jnp.asarray(normal(0, 2, ROWS, SLOTS, WIDTH))
    layer = (matrix if heads == "a matrix each" else matrix[:1],)
    layer += (offset[: len(layer[0])],) if bias else ()

    def plain(features, matrix, bias=None):
        scores = features @ jnp.swapaxes(matrix, 1, 2)[:, None]
        scores = scores if bias is None else scores + bias[:, None, None]
        return jnp.sum(weight * losses.cql_loss(scores, actions)) ** 2

    def in_chunks(features, matrix, bias=None):
        return (
            chunked_cross_entropy.chunked_cross_entropy(
                features, matrix, bias, actions, weight, size
            )
            ** 2
        )

    (value, gradients), (expected, expected_gradients) = (
        jax.jit(jax.value_and_grad(function, range(1 + len(layer))))(features, *layer)
        for function in (in_chunks, plain)
    )
    close(value, expected, 1e-4)
    jax.tree.map(lambda a, b: close(a, b, 1e-3), gradients, expected_gradients)


def test_cross_entropy_in_bfloat16_is_near_that_in_float32():
    _, (_, matrix, bias), actions, weight = chunk_arguments()
    features = jnp.asarray(normal(0, 2, ROWS, SLOTS, WIDTH))

    def gradients(dtype):
        def loss(*layer):
            return chunked_cross_entropy.chunked_cross_entropy(*layer, actions, weight, 4, dtype)

        return jax.value_and_grad(loss, (0, 1, 2))(features, matrix, bias)

    rounded, exact = gradients(jnp.bfloat16), gradients(jnp.float32)
    jax.tree.map(lambda a, b: close(a, b, 0.1), rounded, exact)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(rounded))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (rounded, exact)), strict=True))


@CHUNKS
def test_each_in_chunks_is_each_in_value_and_gradient(size):
    states, matrices, actions, weight = chunk_arguments()

    def plain(states, matrices):
        return per_decision(matrices)(states, actions)

    def in_chunks(states, matrices):
        return chunked_cross_entropy.map_in_chunks(per_decision(matrices), states, actions, size)

    def total(function):
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x)) * weight), (0, 1)))

    close(*(jax.jit(function)(states, matrices) for function in (in_chunks, plain)))
    expected = total(plain)(states, matrices)
    jax.tree.map(close, total(in_chunks)(states, matrices), expected)


def cross_entropy_of_policy(size, actions, weight):
    def loss(states, output):
        return chunked_cross_entropy.chunked_cross_entropy(
            states[None], output[None], None, actions, weight, size
        )

    return loss


def test_the_weight_of_a_sum_in_chunks_gets_no_gradient():
    states, (output, _, _), actions, weight = chunk_arguments()
    gradient = jax.grad(lambda w: cross_entropy_of_policy(4, actions, w)(states, output))(weight)
    close(gradient, np.zeros(weight.shape), 0)


@pytest.mark.parametrize("size", [2, 1000])
@pytest.mark.parametrize(("learned", "products"), [((0, 1), 3), ((0,), 2)])
def test_cross_entropy_takes_no_more_products_than_its_gradients_need(size, learned, products):
    states, (output, _, _), actions, weight = chunk_arguments()
    gradient = jax.grad(cross_entropy_of_policy(size, actions, weight), learned)
    assert str(jax.make_jaxpr(gradient)(states, output)).count("dot_general") == products


@pytest.mark.parametrize(
    ("size", "parts", "chunk"),
    [(1, 7, 1), (2, 7, 1), (3, 7, 1), (4, 4, 2), (6, 3, 3), (13, 2, 4), (14, 1, 7), (1000, 1, 7)],
)
def test_as_many_decisions_as_fit_are_looked_at_together(size, parts, chunk):
    """At least one of each row; the parts are of one size, and the last is filled with zeros."""
    numbers = jnp.arange(1.0, 1 + ROWS * SLOTS).reshape(ROWS, SLOTS)
    wide = jnp.stack([numbers, -numbers], axis=-1)
    found, found_wide = chunked_cross_entropy._split((numbers, wide), size)
    assert found.shape == (parts, ROWS, chunk) and found_wide.shape == (parts, ROWS, chunk, 2)
    in_order = np.moveaxis(np.asarray(found), 0, 1).reshape(ROWS, -1)
    np.testing.assert_array_equal(in_order[:, :SLOTS], numbers)
    assert not in_order[:, SLOTS:].any()
    np.testing.assert_array_equal(found_wide[..., 1], -found)


@pytest.mark.parametrize("size", [1, 4])
def test_no_more_scores_than_those_of_a_chunk_are_in_memory(size):
    states, (output, _, _), actions, weight = chunk_arguments()
    gradient = jax.grad(cross_entropy_of_policy(size, actions, weight), (0, 1))
    text = str(jax.make_jaxpr(gradient)(states, output))
    assert f"f32[1,{ROWS * max(1, size // ROWS)},{WORDS}]" in text
    for more in range(max(1, size // ROWS) + 1, SLOTS + 1):
        assert f"f32[1,{ROWS * more},{WORDS}]" not in text


def test_what_is_masked_out_may_be_nan():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 2, 3, 5)).astype(np.float32)
    matrix = jnp.asarray(rng.normal(size=(1, 7, 5)), jnp.float32)
    actions, weight = jnp.array([[0, 1, 2], [3, 4, 0]]), jnp.array([[1.0, 1, 0], [0, 1, 0]])

    def loss(features, matrix):
        return chunked_cross_entropy.chunked_cross_entropy(
            features, matrix, None, actions, weight, 2
        )

    compute = jax.value_and_grad(loss, (0, 1))
    plain = compute(jnp.asarray(features), matrix)
    features[:, np.asarray(weight) == 0] = np.nan
    jax.tree.map(np.testing.assert_array_equal, compute(jnp.asarray(features), matrix), plain)
