"""Products of 16-bit factors: the same at every size, on CPUs too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from ilql_jax import DecodingConfig, Policy
from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.products import product

HALF = ModelConfig(DecoderConfig(300, 64, 1, 2, 128, 32, compute_dtype="bfloat16"), 32)


@pytest.mark.parametrize("rows", [1, 7, 8, 64, 300])
def test_factors_of_16_bits_are_summed_in_32(rows):
    rng = np.random.default_rng(rows)
    a, b = (jnp.asarray(rng.normal(size=(2, n, 96)), jnp.bfloat16) for n in (rows, 40))
    expected = np.einsum("hri,hoi->hro", *(np.asarray(x, np.float32) for x in (a, b)))
    for function in (product, jax.jit(product, static_argnums=0)):
        found = function("hri,hoi->hro", a, b)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# XLA:CPU has no product of two bfloat16 factors into float32 for eight rows and more.
def test_a_policy_in_bfloat16_speaks_with_many_at_a_time():
    params = small_networks.random_params(HALF, 0.1)
    contexts = [np.int32([3, 4, 5 + i % 7]) for i in range(16)]
    best = answers(HALF, params, "sampled, best of 4", contexts)
    assert len(best) == 16 and np.isfinite([each.q for each in best]).all()


@pytest.mark.slow
def test_a_policy_in_bfloat16_says_what_one_in_float32_says():
    params = small_networks.random_params(HALF, 0.1)
    decoder = dataclasses.replace(HALF.decoder, compute_dtype="float32")
    contexts = [np.int32([3, 4, 5 + i % 7]) for i in range(8)]
    half, full = (
        [each.tokens[0] for each in answers(shape, params, "greedy", contexts)]
        for shape in (HALF, dataclasses.replace(HALF, decoder=decoder))
    )
    assert np.mean(np.equal(half, full)) > 0.8  # rounding turns few choices


def answers(shape, params, decoding, contexts):
    decoding = DecodingConfig.parse(decoding)
    policy = Policy(shape, params, decoding, 2, np.ones(300, bool), 4, len(contexts))
    return policy.respond(contexts, range(len(contexts)))
