"""Steps on accelerators, by the programs that are traced for them."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from accelerators import for_gpu, products
from jax.ad_checkpoint import print_saved_residuals

from ilql_jax import METHODS
from ilql_jax.batching import make_batches, packing_for
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models.attention import attend, packed_causal_mask
from ilql_jax.train_step import TrainConfig, init_state, make_train_step

HALF = DecoderConfig(61, 16, 1, 2, 32, 32, compute_dtype="bfloat16")
MODELS = {
    "mlp": ("ilql", ModelConfig(HALF, 12, "last")),
    "tied": ("ilql", ModelConfig(HALF, 12, "last", "tied")),
    "linear": ("rwft", ModelConfig(HALF, 12, value_heads="linear")),
    "probabilities": ("qsft", ModelConfig(HALF, 12, "last", "probabilities", "separate")),
}
TRAIN = TrainConfig(4, 1e-3, optimizer="adamw")


@pytest.mark.parametrize("name", MODELS)
def test_every_product_of_a_bfloat16_step_has_two_factors_of_bfloat16(name):
    method_name, model = MODELS[name]
    method = METHODS[method_name]
    if method_name == "ilql":
        method = method.configured(credit="token", cql_weight=0.3)
    dialogues = small_networks.random_dialogues(61)
    packing = packing_for(dialogues, batch_rows=2, row_length=32)
    batch = next(make_batches(dialogues, packing, 0))
    state = jax.eval_shape(lambda: init_state(model, method, TRAIN, 0))
    found = products(make_train_step(model, method, TRAIN), state, batch)
    assert len(found) > 20
    assert not [each for each in found if {x.dtype for x in each[:2]} != {jnp.dtype("bfloat16")}]


def test_cudnn_is_told_that_attention_is_causal_beside_the_mask_of_packed_rows(monkeypatch):
    """With XLA's implementation in the place of cuDNN's, which needs a GPU."""
    asked = []
    of_jax = jax.nn.dot_product_attention

    def recorded(*arrays, implementation, **options):
        asked.append((implementation, options["is_causal"]))
        return of_jax(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 9, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    mask = packed_causal_mask(jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 8 + [0]]))

    def value_and_gradients(implementation):
        def weighted(q, k, v):
            return jnp.sum(jnp.sin(attend(q, k, v, mask, implementation)))

        return jax.jit(jax.value_and_grad(weighted, (0, 1, 2)))(q, k, v)

    with for_gpu():
        found = value_and_gradients("cudnn")
    assert asked == [("cudnn", True)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, value_and_gradients("xla")
    )


def trunk_of(config):
    """The sum of a trunk's states as a function of its parameters, and packed rows."""
    tokens = np.arange(24, dtype=np.int32).reshape(1, 24)
    segments = np.where(tokens < 10, 1, 2).astype(np.int32)
    positions = np.where(tokens < 10, tokens, tokens - 10)

    def total(params):
        trunk = with_params(ModelConfig(config, 8), params).trunk
        return jnp.sum(jnp.sin(trunk(tokens, segments, positions)).astype(jnp.float32))

    return total


def kept_for_the_backward_pass(config, capsys):
    """Kinds and sizes of what is stacked over the layers, but for the parameters."""
    shapes = jax.eval_shape(lambda: init_params(ModelConfig(config, 8), 0))
    with for_gpu():
        print_saved_residuals(trunk_of(config), shapes)
    lines = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    found = [re.match(rf"(\w+)\[{config.num_layers},([\d,]+)\]", line) for line in lines]
    return [(each[1], math.prod(map(int, each[2].split(",")))) for each in found if each]


def test_scanned_layers_keep_products_in_the_compute_dtype_alone(capsys):
    scanned = dataclasses.replace(HALF, num_layers=5, scan_layers=True)
    kept = kept_for_the_backward_pass(scanned, capsys)
    # Queries, keys and values; attention's weights, its result, and that projected; before the
    # activation; and the residual stream between the blocks.
    states = 24 * 16
    assert sorted(kept) == sorted(
        ("bf16", size) for size in (3 * states, 2 * 24 * 24, states, states, 2 * states, states)
    )


def test_layers_that_compute_again_what_is_cheap_have_the_same_gradients():
    config = dataclasses.replace(HALF, num_layers=2, compute_dtype="float32")
    scanned = dataclasses.replace(config, scan_layers=True)
    params = small_networks.random_params(ModelConfig(scanned, 8), 0.3)
    gradient = jax.jit(jax.grad(trunk_of(scanned)))
    with for_gpu():
        found = gradient(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, gradient(params)
    )
