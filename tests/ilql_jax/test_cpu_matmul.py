"""Networks laid out for decoding: the same results from matrices that lie otherwise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from ilql_jax import losses
from ilql_jax.decode import sample
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models import cpu_matmul as module
from ilql_jax.models.config import VALUE_HEAD_KINDS
from ilql_jax.models.cpu_matmul import FEW, decoding_layout, matmul_t

VOCAB, STOP = 31, 3
LLAMA = DecoderConfig(
    VOCAB, 8, 3, 2, 16, 40, position_encoding="rotary", norm="rms_norm", mlp="swiglu",
    fused_qkv=False, num_kv_heads=1, mlp_bias=False, initializer_range=0.3, tied_output=False,
)  # fmt: skip
GPT2 = DecoderConfig(VOCAB, 8, 3, 2, 16, 40, initializer_range=0.3)


@pytest.fixture
def every_matrix_is_large(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 0)


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
@pytest.mark.parametrize("heads", [(), (2,)])
def test_a_product_is_the_same_for_few_rows_and_many(rows, heads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*heads, rows, 1, 5)).astype(np.float32)
    matrix = rng.normal(size=(*heads, 7, 5)).astype(np.float32)
    expected = x @ np.swapaxes(matrix, -1, -2)[..., None, :, :]
    for function in (matmul_t, jax.jit(matmul_t)):
        np.testing.assert_allclose(function(x, matrix), expected, atol=1e-5)


def written(config, params, steered):
    context = np.random.default_rng(0).integers(4, VOCAB, (3, 9)).astype(np.int32)
    return sample(
        config,
        params,
        context,
        np.array([9, 4, 7]),
        jax.vmap(jax.random.key)(np.arange(3)),
        jnp.ones(VOCAB, bool),
        jnp.float32(1.0),
        jnp.float32(0.7),
        num_samples=2,
        max_length=8,
        stop_token=STOP,
        steer=losses.steer_logits if steered else None,
    )


@pytest.mark.usefixtures("every_matrix_is_large")
@pytest.mark.parametrize(
    ("decoder", "scan_layers", "value_trunk"),
    [
        pytest.param(GPT2, False, "shared", marks=pytest.mark.slow),
        pytest.param(GPT2, True, "separate", marks=pytest.mark.slow),
        (LLAMA, True, "shared"),
    ],
    ids=["gpt2", "gpt2, stacked and separate", "llama, stacked"],
)
def test_a_network_laid_out_for_decoding_writes_the_same(decoder, scan_layers, value_trunk):
    decoder = dataclasses.replace(decoder, scan_layers=scan_layers)
    config = ModelConfig(decoder, 12, value_trunk=value_trunk)
    params = small_networks.random_params(config, 0.2)
    laid_out, turned = decoding_layout(config, params)
    assert laid_out.decoder.transposed_kernels and not laid_out.decoder.scan_layers
    inner = turned["trunk"]["blocks"][0]["mlp_in"]["kernel"]
    assert inner.shape == (decoder.mlp_size, decoder.hidden_size)
    assert turned["q"] is params["q"]  # what lies well is not copied
    before, after = written(config, params, True), written(laid_out, turned, True)
    np.testing.assert_array_equal(after.tokens, before.tokens)
    for name in ("q", "v", "log_prob"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-4)


def test_a_small_network_stays_as_it_is():
    config = ModelConfig(GPT2, 12)
    params = init_params(config, 0)
    assert decoding_layout(config, params) == (config, params)


@pytest.mark.parametrize("kind", VALUE_HEAD_KINDS)
def test_policy_and_values_together_are_what_they_are_apart(kind):
    config = ModelConfig(GPT2, 12, value_heads=kind)
    model = with_params(config, small_networks.random_params(config, 0.2))
    policy, values = jax.random.normal(jax.random.key(0), (2, 3, 4, GPT2.hidden_size))
    logits, q = model.logits_and_q(policy, values)
    np.testing.assert_allclose(logits, model.trunk.logits(policy), atol=1e-5)
    np.testing.assert_allclose(q, model.q(values), atol=1e-5)
