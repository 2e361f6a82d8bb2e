"""A trunk of the values' own: policy and values are two networks that do not disturb each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from hugging_face import LLAMA, OURS, ROW, SCANNED, transformers_model
from safetensors.numpy import load_file, save_file
from short_training import ILQL
from small_networks import outputs

from ilql_jax import Trajectory, decode, losses, make_batches, packing_for
from ilql_jax.checkpoint import CheckpointError, restore_params
from ilql_jax.decode import sample
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.methods import METHODS, MethodError
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.models import (
    DecoderConfig,
    ModelConfig,
    abstract_params,
    copy_for_values,
    init_params,
)
from ilql_jax.models.hugging_face.read import PretrainedError, start_params
from ilql_jax.models.hugging_face.write import VALUE_HEADS, load_network, save_pretrained
from ilql_jax.models.kv_cache import KVCache
from ilql_jax.plan.__main__ import planned_training
from ilql_jax.policy import Policy
from ilql_jax.scoring import score
from ilql_jax.train import train
from ilql_jax.train_step import TrainConfig, init_state, make_optimizer, make_train_step

VOCAB, STOP, LONGEST = 31, 3, 6
SHARED = ModelConfig(
    DecoderConfig(VOCAB, 8, 1, 2, 16, 96, initializer_range=0.3, tied_output=False), 12
)
MODEL = dataclasses.replace(SHARED, value_trunk="separate")
TIED = dataclasses.replace(MODEL, value_heads="tied")
TRAIN = TrainConfig(
    steps=6, learning_rate=1e-2, optimizer="adamw", warmup_steps=0, polyak_rate=0.25
)


def apart(config):
    return dataclasses.replace(config, value_trunk="separate")


def random_params(config, seed=0):
    return small_networks.random_params(config, 0.2, seed)


DATA = small_networks.random_dialogues(VOCAB)
PACKING = packing_for(DATA, batch_rows=2, row_length=24)
BATCH = next(make_batches(DATA, PACKING, 0))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def loss_of(config, method, params, target, progress):
    of_batch = jnp.float32(progress), normalizers_of(BATCH)
    return small_networks.loss_of(config, method, params, target, BATCH, *of_batch)


# --- the network --------------------------------------------------------------------------------


def test_it_starts_as_the_policys_trunk_without_its_output_matrix():
    shared, params = init_params(SHARED, 4), init_params(MODEL, 4)
    assert_equal({name: params[name] for name in shared}, shared)
    without = {name: each for name, each in shared["trunk"].items() if name != "output_embedding"}
    assert_equal(params["value_trunk"], without)
    assert len(without) == len(shared["trunk"]) - 1


@pytest.mark.parametrize("config", [pytest.param(MODEL, marks=pytest.mark.slow), TIED])
def test_as_a_copy_it_computes_what_the_shared_one_does(config):
    shared = dataclasses.replace(config, value_trunk="shared")
    params = random_params(shared)
    copied = params | {"value_trunk": copy_for_values(config, params["trunk"])}
    row = BATCH.tokens, BATCH.segment_ids, BATCH.positions
    assert_equal(outputs(config, copied, row), outputs(shared, params, row))
    found, expected = (loss_of(c, ILQL, p, p, 0.0) for c, p in ((config, copied), (shared, params)))
    # Two programs may add up in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_a_trunk_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="value_trunk is 'both', but must be shared or separate"):
        dataclasses.replace(MODEL, value_trunk="both")


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [pytest.param(MODEL, marks=pytest.mark.slow), TIED])
@pytest.mark.parametrize("method", ["ilql", pytest.param("mc", marks=pytest.mark.slow)])
def test_no_gradient_crosses_between_policy_and_values(config, method):
    params = random_params(config)
    learned = {"ilql": ILQL, "mc": METHODS["mc"].configured(cql_weight=0.1)}[method]

    def losses(moved):
        loss, metrics = loss_of(config, learned, moved, params, 0.5)
        return metrics["policy_loss"], loss - metrics["policy_loss"]

    of_policy, of_values = jax.jit(jax.jacrev(losses))(params)
    policy, values = {"trunk"}, {"value_trunk", "q", "v"}
    for gradient, moves, leaves_alone in (
        (of_policy, policy, values),
        (of_values, values, policy),
    ):
        assert all(np.any(jax.tree.leaves(gradient[name])[0]) for name in moves)
        assert not any(np.any(x) for name in leaves_alone for x in jax.tree.leaves(gradient[name]))


@pytest.fixture(scope="module", params=["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def trained(request):
    """Before and after six steps: bc, and ilql with plain cloning and values that pull hard."""
    config = dataclasses.replace(TRAIN, optimizer=request.param, weight_decay=0.0)
    pulling = METHODS["ilql"].configured(
        cql_weight=0.1, value_loss_weight=1000.0, trace_fade=(0.0, 0.0), awac_temperature=0.0
    )
    found = {}
    for model, method in ((SHARED, METHODS["bc"]), (MODEL, pulling)):
        state = init_state(model, method, config, 0)
        before = jax.device_get(state.params)
        step = make_train_step(model, method, config)
        batches = make_batches(DATA, PACKING, 0)
        for _ in range(config.steps):
            state, _ = step(state, next(batches))
        found[method.name] = before, jax.device_get(state.params)
    return found


def test_beside_values_the_policy_learns_what_it_learns_alone(trained):
    (before, alone), (_, beside) = trained["bc"], trained["ilql"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone["trunk"], beside["trunk"]
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before["trunk"], alone["trunk"])
    assert min(jax.tree.leaves(moved["blocks"])) > 1e-3


def test_muon_moves_its_matrices_too():
    config = dataclasses.replace(TRAIN, optimizer="muon", weight_decay=0.0, muon_learning_rate=0.02)
    params = init_params(MODEL, 0)
    gradients = random_params(MODEL, 1)
    optimizer = make_optimizer(config)
    updates, _ = jax.jit(lambda: optimizer.update(gradients, optimizer.init(params), params))()
    for trunk in ("trunk", "value_trunk"):
        kernel = updates[trunk]["blocks"][0]["mlp_in"]["kernel"]
        # Newton and Schulz's five steps bring singular values near one, times √(out/in).
        spread = np.linalg.svd(kernel, compute_uv=False) / 0.02 / 2**0.5
        assert spread[-1] > 0.3 and spread[0] < 1.5, trunk
    embedding = updates["value_trunk"]["token_embedding"]["embedding"]
    np.testing.assert_allclose(np.abs(embedding), 0.01, rtol=1e-3)  # AdamW's first step


def test_with_a_frozen_policy_the_values_learn_with_their_trunk(tmp_path):
    config = dataclasses.replace(TRAIN, freeze_trunk=True)
    before = jax.device_get(jax.jit(lambda: init_params(MODEL, 0))())
    after = train(DATA, MODEL, ILQL, config, PACKING, 0, tmp_path)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(after))
    assert not any(jax.tree.leaves(moved["trunk"]))
    assert all(jax.tree.leaves(moved["value_trunk"]["blocks"]))
    state = jax.eval_shape(lambda: init_state(MODEL, ILQL, config, 0))
    assert set(state.params) == {"value_trunk", "q", "v"}
    kept, learned = (
        sum(x.size for x in jax.tree.leaves(t)) for t in (state.optimizer, state.params)
    )
    assert kept <= 2 * learned + 16
    # The checkpoint is told from one of a network whose values share the policy's trunk.
    assert_equal(restore_params(tmp_path, MODEL), after)
    with pytest.raises(CheckpointError, match="value_trunk was 'separate', now 'shared'"):
        restore_params(tmp_path, SHARED)


def test_the_target_copies_the_q_heads_alone():
    state = jax.eval_shape(lambda: init_state(MODEL, ILQL, TRAIN, 0))
    assert set(state.targets) == {"q"}
    assert jax.tree.structure(state.targets["q"]) == jax.tree.structure(state.params["q"])


@pytest.mark.parametrize("method", ["bc", "fbc", "dpo"])
def test_a_method_that_learns_no_values_has_no_trunk_for_them(method):
    learned = METHODS[method]
    with pytest.raises(MethodError, match=f"value_trunk is 'separate', but {method} learns no val"):
        make_train_step(MODEL, learned, TRAIN)
    assert learned.network_for(MODEL) == SHARED and METHODS["mc"].network_for(MODEL) == MODEL
    make_train_step(SHARED, learned, TRAIN)


def test_a_plan_counts_it():
    from experiments.config import base_config

    config = base_config()
    sizes = {}
    for config.model.value_trunk in ("shared", "separate"):
        for method in ("bc", "ilql"):
            model = planned_training(config, method, 0.5, 16).model
            leaves = jax.tree.leaves(abstract_params(model))
            sizes[config.model.value_trunk, method] = sum(leaf.size for leaf in leaves)
    trunk = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)["value_trunk"]))
    assert sizes["separate", "bc"] == sizes["shared", "bc"] == sizes["shared", "ilql"]
    assert sizes["separate", "ilql"] == sizes["shared", "ilql"] + trunk


# --- decoding -----------------------------------------------------------------------------------


def words(seed, count):
    return np.random.default_rng(seed).integers(4, VOCAB, count).astype(np.int32)


def make_policy(config, params, decoding):
    allowed = np.ones(VOCAB, bool)
    how = DecodingConfig.parse(decoding)
    return Policy(config, params, how, STOP, allowed, max_utterance=LONGEST, batch_size=4)


def read_back(config, params, context, utterance):
    """Values and log-probability of an utterance, from one pass over all of it."""
    tokens = np.concatenate([context, utterance]).astype(np.int32)
    is_action = np.arange(len(tokens)) >= len(context)
    trajectory = Trajectory(tokens, is_action, np.zeros(len(tokens)))
    (found,) = score([trajectory], config, params, packing_for([trajectory], 1, 96))
    return found


SCANNED_LAYERS = dataclasses.replace(
    MODEL, decoder=dataclasses.replace(MODEL.decoder, scan_layers=True), utterance_q="last"
)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MODEL, marks=pytest.mark.slow),
        pytest.param(TIED, marks=pytest.mark.slow),
        SCANNED_LAYERS,
    ],
    ids=["list", "tied", "scanned"],
)
def test_what_is_written_is_valued_as_when_it_is_read_back(config):
    params = random_params(config)
    agent = make_policy(config, params, "sampled, best of 3")
    contexts = [words(i, 5 + 3 * i) for i in range(3)]
    for turn in range(2):  # from the second on, what was said before is in the store
        answers = agent.respond(contexts, range(3))
        for context, answer in zip(contexts, answers, strict=True):
            expected = read_back(config, params, context, answer.tokens)
            assert answer.q == pytest.approx(expected.q[0], abs=1e-4)
            assert answer.v == pytest.approx(expected.v[0], abs=1e-4)
            assert answer.log_prob == pytest.approx(expected.log_prob.sum(), abs=1e-4)
            for tokens, q, _ in answer.candidates:
                assert q == pytest.approx(read_back(config, params, context, tokens).q[0], abs=1e-4)
        contexts = [np.append(c, words(10 * turn + i, 6)) for i, c in enumerate(contexts)]


def test_greedy_steering_takes_the_best_of_both_networks_in_a_pass_over_all():
    params, strength = random_params(MODEL), 3.0
    last = dataclasses.replace(MODEL, utterance_q="last")
    context = words(0, 7)
    (answer,) = make_policy(last, params, f"greedy, steered by {strength}").respond([context], [0])
    plain = make_policy(MODEL, params, "greedy").respond([context], [0])[0]
    tokens = np.concatenate([context, answer.tokens])[None]
    logits, q, v = outputs(
        MODEL, params, (tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None])
    )
    steered = jax.nn.log_softmax(logits[0]) + strength * (q.min(axis=0)[0] - v[0][:, None])
    written = len(answer.tokens) - (len(answer.tokens) == LONGEST)  # the last is forced to stop
    states = slice(len(context) - 1, len(context) - 1 + written)
    np.testing.assert_array_equal(np.argmax(steered[states], axis=-1), answer.tokens[:written])
    assert not np.array_equal(plain.tokens, answer.tokens)


@pytest.mark.parametrize(
    "decoding", [pytest.param("greedy", marks=pytest.mark.slow), "sampled at 0.7"]
)
def test_the_plain_policy_does_without_the_values_trunk(decoding):
    params = random_params(MODEL)
    poisoned = jax.tree.map(lambda x: x * jnp.nan, params["value_trunk"])
    contexts = [words(i, 5 + i) for i in range(5)]
    shared = {name: each for name, each in params.items() if name != "value_trunk"}
    agent = make_policy(MODEL, params | {"value_trunk": poisoned}, decoding)
    answers = agent.respond(contexts, range(5))
    expected = make_policy(SHARED, shared, decoding).respond(contexts, range(5))
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.tokens, other.tokens)
        assert answer.log_prob == other.log_prob
        assert answer.q is None and answer.v is None and other.q is not None
    assert len(agent._cache.keys) == MODEL.decoder.num_layers


def test_slots_of_the_policy_alone_cannot_be_steered():
    slots = decode.Slots.empty(MODEL, 2, 1, LONGEST, 16, trunks=1)
    with pytest.raises(ValueError, match="steering reads the values, but the slots have 1 trunk"):
        decode.generate(
            MODEL,
            random_params(MODEL),
            slots,
            2,
            jnp.ones(VOCAB, bool),
            jnp.float32(0),
            jnp.float32(1),
            stop_token=STOP,
            steer=losses.steer_logits,
        )


def test_a_batch_from_the_start_is_valued_too():
    params = random_params(MODEL)
    context = words(0, 4)
    samples = sample(
        MODEL,
        params,
        context[None],
        np.int32([4]),
        jax.random.key(0)[None],
        jnp.ones(VOCAB, bool),
        jnp.float32(1.0),
        jnp.float32(0.5),
        num_samples=2,
        max_length=LONGEST,
        stop_token=STOP,
        steer=losses.steer_logits,
    )
    for n in range(2):
        written = np.asarray(samples.tokens[0, n, : samples.length[0, n]])
        expected = read_back(MODEL, params, context, written)
        np.testing.assert_allclose(samples.q[0, n], expected.q[0], atol=1e-4)
        np.testing.assert_allclose(samples.v, expected.v, atol=1e-4)


def test_caches_of_several_trunks_come_apart_as_they_were():
    decoder = DecoderConfig(VOCAB, 8, 3, 2, 16, 96)
    both = KVCache(*(tuple(i + jnp.zeros((1, 2, 3, 4)) for i in range(6)) for _ in "kv"))
    parts = both.by_trunk(decoder)
    assert [[int(x[0, 0, 0, 0]) for x in part.values] for part in parts] == [[0, 1, 2], [3, 4, 5]]
    assert_equal(KVCache.of_trunks(parts), both)
    assert KVCache.zeros(decoder, (1,), 3, trunks=2).by_trunk(decoder)[1].columns == 3


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in (OURS, SCANNED)), LLAMA],
    ids=["ours", "scanned", "llama"],
)
def test_an_export_loads_back_to_the_same_outputs(config, tmp_path):
    config = apart(config)
    params = random_params(config)
    save_pretrained(tmp_path, config, params, card="")
    found, loaded, _ = load_network(tmp_path, scan_layers=config.decoder.scan_layers)
    assert found.value_trunk == "separate"
    expected = outputs(config, params, ROW)
    for a, b in zip(outputs(found, loaded, ROW), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # The other layout is read from the same files.
    other = load_network(tmp_path, scan_layers=not config.decoder.scan_layers)[:2]
    for a, b in zip(outputs(*other, ROW), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_transformers_loads_the_policy_beside_it(tmp_path):
    config = apart(LLAMA)
    params = random_params(config)
    save_pretrained(tmp_path, config, params, card="", dtype="bfloat16")
    transformers_model(tmp_path)  # nothing missing, nothing unknown
    tensors = load_file(tmp_path / VALUE_HEADS)
    kinds = {name.startswith("value_trunk/"): str(x.dtype) for name, x in tensors.items()}
    assert kinds == {True: "bfloat16", False: "float32"}
    assert "value_trunk/model.layers.1.mlp.up_proj.weight" in tensors
    assert not any("lm_head" in name for name in tensors)


def test_what_its_file_lacks_is_said(tmp_path):
    from safetensors import safe_open

    config = apart(LLAMA)
    save_pretrained(tmp_path, config, random_params(config), card="")
    path = tmp_path / VALUE_HEADS
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["value_trunk/model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(PretrainedError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        load_network(tmp_path)


def test_a_checkpoint_is_read_once_for_both(tmp_path, monkeypatch):
    from ilql_jax.models.hugging_face import read

    save_pretrained(tmp_path, LLAMA, init_params(LLAMA, 3), card="")
    sizes = []

    def watched(tensor, index):
        part = tensor._in_file[index]
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(read._Tensor, "__getitem__", watched)
    started = start_params(tmp_path, apart(LLAMA), seed=11)
    assert sum(sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(started["trunk"]))
    assert_equal(started["value_trunk"], copy_for_values(LLAMA, started["trunk"]))
    assert_equal({n: started[n] for n in ("q", "v")}, {n: init_params(LLAMA, 11)[n] for n in "qv"})
    # Two sets of arrays: training takes both over without one giving the other's away.
    state = init_state(apart(LLAMA), ILQL, TRAIN, 0, started, donate_start=True)
    assert_equal(state.params["value_trunk"], copy_for_values(LLAMA, state.params["trunk"]))
