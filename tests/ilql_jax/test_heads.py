"""Value heads of each kind: the same uses, different parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from ilql_jax import Trajectory, losses, make_batches, packing_for
from ilql_jax.checkpoint import CheckpointError, restore_params
from ilql_jax.decode import sample
from ilql_jax.methods import METHODS
from ilql_jax.models import (
    DecoderConfig,
    ModelConfig,
    QHeads,
    init_params,
    with_params,
)
from ilql_jax.models.config import VALUE_HEAD_KINDS
from ilql_jax.scoring import score
from ilql_jax.train import train
from ilql_jax.train_step import TrainConfig, init_state, make_train_step

VOCAB, WIDTH, INNER, STOP = 31, 8, 12, 3
BASE = ModelConfig(DecoderConfig(VOCAB, WIDTH, 1, 2, 16, 24, initializer_range=0.3), INNER)
MODELS = {kind: dataclasses.replace(BASE, value_heads=kind) for kind in VALUE_HEAD_KINDS}
EACH_KIND = pytest.mark.parametrize("kind", VALUE_HEAD_KINDS)
TRAIN = TrainConfig(
    steps=4, learning_rate=1e-2, optimizer="adamw", warmup_steps=0, polyak_rate=0.25
)
ILQL = METHODS["ilql"].configured(
    cql_weight=0.1, value_loss_weight=1.0, trace_fade=(0.0, 0.0), awac_temperature=0.0
)


def random_params(kind, seed=0):
    return small_networks.random_params(MODELS[kind], 0.3, seed)


DATA = small_networks.random_dialogues(VOCAB)
PACKING = packing_for(DATA, batch_rows=2, row_length=24)


@EACH_KIND
def test_q_of_the_action_taken_is_its_entry_of_all_q(kind):
    heads = with_params(MODELS[kind], random_params(kind)).q
    hidden = jax.random.normal(jax.random.key(0), (3, 5, WIDTH))
    action = jax.random.randint(jax.random.key(1), (3, 5), 0, VOCAB)
    every, found = jax.jit(lambda x, y: (losses.take_action(heads(x), y), heads.at_actions(x, y)))(
        hidden, action
    )
    assert every.shape == (2, 3, 5) and every.std() > 0.1
    np.testing.assert_allclose(found, every, atol=1e-5)
    assert not np.allclose(every[0], every[1])  # twins, not copies


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k != "mlp")) for k in VALUE_HEAD_KINDS],
)
def test_fresh_values_are_zero_and_learn(kind):
    model = with_params(MODELS[kind], init_params(MODELS[kind], 0))
    hidden = jax.random.normal(jax.random.key(0), (3, WIDTH))
    assert not np.any(model.v(hidden)) and not np.any(model.q(hidden))
    longer = dataclasses.replace(TRAIN, steps=100)
    state = init_state(MODELS[kind], ILQL, longer, 0)
    step = make_train_step(MODELS[kind], ILQL, longer)
    batch = next(make_batches(DATA, PACKING, 0))
    found = []
    for _ in range(20):
        state, metrics = step(state, batch)
        found.append(float(metrics["q_loss"]))
    assert found[-1] < 0.8 * found[0]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_are_what_the_table_says():
    sizes = {kind: init_params(model, 0)["q"] for kind, model in MODELS.items()}
    matrices = {
        kind: sum(
            leaf.size for name, leaf in q.items() if name.endswith("kernel") and leaf.ndim > 2
        )
        for kind, q in sizes.items()
    }
    assert matrices == {
        "mlp": 2 * (WIDTH + VOCAB) * INNER,
        "linear": 2 * VOCAB * WIDTH,
        "tied": 4 * WIDTH * INNER,
    }
    assert not any(VOCAB in leaf.shape for leaf in jax.tree.leaves(sizes["tied"]))


def test_tied_heads_learn_nothing_into_the_policys_embedding_but_into_what_it_reads():
    params = random_params("tied")
    tokens = jnp.asarray([[5, 6, 7, 8]])
    later = jnp.asarray([[9, 10]])  # words that are valued, and not read

    def value(params):
        model = with_params(MODELS["tied"], params)
        hidden = model.trunk(tokens, jnp.ones_like(tokens), jnp.arange(4)[None])[:, :2]
        return (
            model.q.at_actions(hidden, later).sum() + losses.cql_loss(model.q(hidden), later).sum()
        )

    gradient = jax.jit(jax.grad(value))(params)
    to_embedding = gradient["trunk"]["token_embedding"]["embedding"]
    assert not np.any(to_embedding[9:]) and np.any(to_embedding[5])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["q"]))


def test_the_target_of_tied_heads_copies_the_map_and_reads_the_current_embedding():
    params = random_params("tied")
    config = MODELS["tied"]
    state = init_state(config, ILQL, TRAIN, 0, start=params)
    assert jax.tree.structure(state.targets["q"]) == jax.tree.structure(params["q"])
    hidden = jax.random.normal(jax.random.key(0), (4, WIDTH))
    moved = jax.tree.map(jnp.copy, params)
    moved["trunk"]["token_embedding"]["embedding"] *= 2
    bias = params["q"]["shared_kernel"] * 0
    without = state.targets["q"] | {"shared_kernel": bias, "shared_bias": jnp.zeros(2)}
    before, after = (with_params(config, p | {"q": without}).q(hidden) for p in (params, moved))
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


def test_tied_heads_without_their_matrix_say_where_to_get_it():
    from flax import nnx

    heads = QHeads(WIDTH, INNER, VOCAB, nnx.Rngs(0), "tied")
    with pytest.raises(ValueError, match="get them from `with_params`"):
        heads(jnp.zeros((1, WIDTH)))


def test_a_kind_that_there_is_not_is_named():
    with pytest.raises(
        ValueError, match="value_heads is 'deep', but must be mlp, linear, tied or prob"
    ):
        dataclasses.replace(BASE, value_heads="deep")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k == "linear")) for k in VALUE_HEAD_KINDS],
)
def test_values_while_decoding_are_those_of_reading_it_back(kind):
    params, config = random_params(kind), MODELS[kind]
    context = np.int32([[5, 6, 7, 8]])
    samples = sample(
        config,
        params,
        context,
        np.int32([4]),
        jax.random.key(0)[None],
        jnp.ones(VOCAB, bool),
        jnp.float32(1.0),
        jnp.float32(0.5),
        num_samples=3,
        max_length=5,
        stop_token=STOP,
        steer=losses.steer_logits,
    )
    for n in range(3):
        written = np.asarray(samples.tokens[0, n, : samples.length[0, n]])
        tokens = np.concatenate([context[0], written]).astype(np.int32)
        trajectory = Trajectory(tokens, np.arange(len(tokens)) >= 4, np.zeros(len(tokens)))
        (scores,) = score([trajectory], config, params, packing_for([trajectory], 1, 24))
        np.testing.assert_allclose(scores.q, samples.q[0, n], atol=1e-4)
        np.testing.assert_allclose(scores.v, samples.v, atol=1e-4)
        np.testing.assert_allclose(scores.log_prob.sum(), samples.log_prob[0, n], atol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param("linear", marks=pytest.mark.slow), "tied"])
def test_checkpoints_hold_the_kind(kind, tmp_path):
    params = train(DATA, MODELS[kind], ILQL, TRAIN, PACKING, 0, tmp_path)
    saved = restore_params(tmp_path, MODELS[kind])
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    with pytest.raises(CheckpointError, match=f"value_heads was '{kind}', now 'mlp'"):
        restore_params(tmp_path, BASE)


@pytest.mark.parametrize("kind", VALUE_HEAD_KINDS)
def test_the_last_layer_gives_the_values_up_to_what_all_tokens_have_in_common(kind):
    model = with_params(MODELS[kind], random_params(kind))
    hidden = jax.random.normal(jax.random.key(0), (2, 3, WIDTH))
    features, matrix, bias = model.q.last_layer(hidden)
    scores = features @ jnp.swapaxes(matrix, 1, 2)[:, None]
    scores = scores if bias is None else scores + bias[:, None, None]
    difference = np.asarray(model.q(hidden) - scores)
    np.testing.assert_allclose(difference, difference[..., :1] + 0 * difference, atol=1e-5)
    assert kind == "tied" or np.allclose(difference, 0, atol=1e-5)
