"""Wide products are padded to an even size on GPUs: faster, and nothing of it is seen outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from accelerators import for_gpu, products

from ilql_jax import METHODS, sharding
from ilql_jax import products as products_module
from ilql_jax.batching import make_batches, packing_for
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.models import DecoderConfig, ModelConfig, with_params
from ilql_jax.products import even_rows
from ilql_jax.sharding import partition_spec

VOCAB = 61  # becomes 64
DECODER = DecoderConfig(VOCAB, 16, 1, 2, 32, 32)
LAST = {"utterance_q": "last", "value_trunk": "separate"}
TRAININGS = {
    "mlp": ("ilql", ModelConfig(DECODER, 12, "last")),
    "tied": ("ilql", ModelConfig(DECODER, 12, "last", "tied")),
    "probabilities": ("qsft", ModelConfig(DECODER, 12, value_heads="probabilities", **LAST)),
}


@pytest.fixture(autouse=True)
def small_is_wide(monkeypatch):
    monkeypatch.setattr(products_module, "WIDE", 32)
    monkeypatch.setattr(products_module, "EVEN", 16)


def setting_of(name):
    """Function of the parameters that gives loss and gradient, and the parameters."""
    method_name, config = TRAININGS[name]
    method = METHODS[method_name]
    if name in ("mlp", "tied"):
        method = method.configured(credit="token", cql_weight=0.3, action_chunk=16)
    dialogues = small_networks.random_dialogues(VOCAB)
    if method.select:
        dialogues = method.select(dialogues, method.config)
    packing = packing_for(dialogues, batch_rows=2, row_length=32)
    batch = next(make_batches(dialogues, packing, 0))
    target = with_params(config, small_networks.random_params(config, 0.3, seed=1))

    def loss(params):
        return method.loss(
            with_params(config, params),
            target,
            batch,
            method.config,
            progress=jnp.ones(()),
            normalizers=normalizers_of(batch),
        )[0]

    return jax.value_and_grad(loss), small_networks.random_params(config, 0.3)


@pytest.mark.parametrize("name", ["mlp", pytest.param("tied", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_without_padding(name, monkeypatch):
    function, params = setting_of(name)
    with for_gpu():
        padded = jax.jit(function)(params)
        monkeypatch.setattr(products_module, "WIDE", 10**6)
        plain = jax.jit(lambda params: function(params))(params)
    assert np.isfinite(plain[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), padded, plain)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_vocabulary_wide_product_of_a_step_is_even(name):
    function, params = setting_of(name)
    sizes = {size for each in products(function, params) for x in each for size in x.shape}
    assert sizes & {64, 80} and not sizes & {VOCAB, VOCAB + 1}


def test_small_vocabularies_and_cpus_have_no_padding(monkeypatch):
    matrix = jnp.ones((VOCAB, 4))
    assert even_rows(matrix) is matrix
    monkeypatch.setattr(products_module, "WIDE", VOCAB + 1)
    with for_gpu():
        assert even_rows(matrix) is matrix


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("name", TRAININGS)
def test_scores_have_no_padding_and_are_the_same(name, rows):
    config = TRAININGS[name][1]
    model = with_params(config, small_networks.random_params(config, 0.3))
    states = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 16)), jnp.float32)
    alone = model.logits_and_q(states, states)
    with for_gpu():
        padded = model.logits_and_q(states, states)
    found = products(model.logits_and_q, states, states)
    sizes = {size for each in found for x in each for size in x.shape}
    assert 64 in sizes and VOCAB not in sizes  # of few rows, too, as in decoding
    assert alone[0].shape == (rows, VOCAB) and alone[1].shape[1:] == (rows, VOCAB)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), padded, alone)


def test_the_padding_of_a_cast_matrix_is_written_in_the_pass_that_casts():
    with for_gpu():
        cast = jax.jit(lambda x: even_rows(x).astype(jnp.bfloat16) * 1)
        program = cast.lower(jnp.ones((VOCAB, 8))).compile().as_text()
    entry = program[program.index("ENTRY") :]
    assert entry.count(" fusion(") == 1 and " pad(" not in entry and " copy(" not in entry


def test_a_vocabulary_that_tensor_does_not_divide_is_whole_on_each_device_and_its_product_split():
    mesh = jax.sharding.AbstractMesh((1, 2, 4), sharding.AXES)
    assert tuple(partition_spec("trunk/token_embedding/embedding", (VOCAB, 32), mesh)) == (
        None,
        "fsdp",
    )
    assert tuple(partition_spec("q/out_kernel", (2, VOCAB, 32), mesh)) == (None, None, "fsdp")
    assert tuple(partition_spec("q/out_bias", (2, VOCAB), mesh)) == (None, None)
    assert tuple(partition_spec("q/out_bias", (2, 64), mesh)) == (None, "tensor")
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(even_rows)(jnp.ones((VOCAB, 32)))
    assert program.out_avals[0].shape == (64, 32) and "tensor" in str(program)
