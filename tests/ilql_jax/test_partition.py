"""Frozen parameters (beside adapters, or a trunk) stay as they were; nobody keeps them.

Adapters on meshes are in test_sharding.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face import pack
from sharded_training import VOCAB, dataset, pairs

import ilql_jax.train as training
from ilql_jax import PackingConfig, make_batches, packing_for
from ilql_jax.checkpoint import CheckpointError, restore_params
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models.hugging_face.read import flat, start_params
from ilql_jax.models.hugging_face.write import load_network, save_pretrained
from ilql_jax.models.kv_cache import KVCache, prefill
from ilql_jax.models.lora import merge_adapters
from ilql_jax.partition import combine, fingerprint, partition
from ilql_jax.plan.compile import PlannedTraining, make_plan
from ilql_jax.plan.text import describe
from ilql_jax.preferences import Preferences, packing_for_pairs
from ilql_jax.sharding import MeshConfig, make_mesh
from ilql_jax.train import train
from ilql_jax.train_step import (
    TrainConfig,
    abstract_frozen,
    init_state,
    make_train_step,
    make_train_steps,
    stack_batches,
)

GPT2 = DecoderConfig(VOCAB, 16, 1, 4, 32, 32, initializer_range=0.1)
LLAMA = dataclasses.replace(
    GPT2,
    num_layers=2,
    position_encoding="rotary",
    num_kv_heads=2,
    norm="rms_norm",
    mlp="swiglu",
    fused_qkv=False,
    qkv_bias=False,
    attention_bias=False,
    mlp_bias=False,
)
DECODERS = {"gpt2": GPT2, "llama": LLAMA, "scan": dataclasses.replace(LLAMA, scan_layers=True)}
DATA = dataset()
PACKING = packing_for(DATA, batch_rows=2, row_length=32)
SHORT = TrainConfig(
    4, 1e-2, optimizer="muon", warmup_steps=1, checkpoint_every=2, log_every=1, weight_decay=0.1
)
MC = METHODS["mc"].configured(value_loss_weight=1.0, awac_temperature=0.0)


def with_adapters(decoder, rank=3, **changes):
    return ModelConfig(dataclasses.replace(decoder, lora_rank=rank, **changes), 8)


ADAPTED = with_adapters(GPT2, lora_scale=2.0)


@functools.cache
def _start(base, model, seed):
    return start_params(base, model, seed)


def start_of(base, model, seed=0):
    """A copy, since a training gives up what it starts from."""
    return jax.tree.map(jnp.copy, _start(base, model, seed))


_compiled_step = functools.cache(make_train_step)


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """Compiling is most of what these tests cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", _compiled_step)
        yield


def noisy(params, seed=0):
    """Random everywhere: adapters and value heads start at zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)


@functools.partial(jax.jit, static_argnames="config")
def computed(config, params):
    """Logits of packed rows, and of the same words read into a cache, and the values."""
    words = np.arange(17) * 3 % VOCAB
    model = with_params(config, params)
    hidden, of_values = model.hidden_states(*pack([words, words[:9]], 28))
    cache = KVCache.zeros(config.decoder, (1,), 20)
    cached, _ = prefill(model.trunk, cache, jnp.asarray(words[None]), jnp.zeros(1, jnp.int32))
    return model.trunk.logits(hidden), model.trunk.logits(cached), model.q(of_values)


def outputs(config, params):
    return [np.asarray(each) for each in computed(config, params)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Pretrained folders, by name of a decoder."""
    folders = {}
    for name in ("gpt2", "llama"):
        config = ModelConfig(DECODERS[name], 8)
        folders[name] = tmp_path_factory.mktemp(name)
        save_pretrained(folders[name], config, noisy(init_params(config, 7)), card="")
    return folders | {"scan": folders["llama"]}


# --- adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "scan"))]
)
def test_a_network_with_fresh_adapters_computes_what_the_one_without_does(bases, name):
    plain, adapted = ModelConfig(DECODERS[name], 8), with_adapters(DECODERS[name])
    without, params = (start_of(bases[name], each) for each in (plain, adapted))
    for a, b in zip(outputs(adapted, params), outputs(plain, without), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.std(x) > 0.1 for path, x in flat(params).items() if path.endswith("lora_a"))
    adapters = {path.rsplit("/", 2)[0] for path in flat(params) if "/lora/" in path}
    assert adapters == {
        path.removesuffix("/kernel") for path in flat(params) if path.endswith("/kernel")
    } - {"v/inner", "v/out"}


@pytest.mark.parametrize(
    ("name", "value_trunk"),
    [
        pytest.param("gpt2", "shared", marks=pytest.mark.slow),
        ("llama", "shared"),
        pytest.param("scan", "shared", marks=pytest.mark.slow),
        pytest.param("llama", "separate", marks=pytest.mark.slow),
    ],
)
def test_merged_adapters_and_their_export_compute_the_same(tmp_path, name, value_trunk):
    config = with_adapters(DECODERS[name], lora_scale=0.5)
    config = dataclasses.replace(config, value_trunk=value_trunk)
    params = noisy(init_params(config, 0))
    expected = outputs(config, params)
    unscaled = dataclasses.replace(config.decoder, lora_scale=1.0)
    other = outputs(dataclasses.replace(config, decoder=unscaled), params)
    assert np.abs(expected[0] - other[0]).max() > 0.01  # they do something
    plain, merged = merge_adapters(config, params)
    assert plain.decoder.lora_rank == 0 and not any("lora" in path for path in flat(merged))
    save_pretrained(tmp_path, config, params, card="")
    read, loaded, _ = load_network(tmp_path)
    for shape, found in ((plain, merged), (read, loaded)):
        for a, b in zip(outputs(shape, found), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_is_frozen_is_kept_as_what_it_is_computed_with(bases):
    small, large = (
        flat(start_of(bases["scan"], with_adapters(DECODERS["scan"], compute_dtype=dtype)))
        for dtype in ("bfloat16", "float32")
    )
    halved = {path for path, x in small.items() if x.dtype == jnp.bfloat16}
    assert halved == {
        path for path in small if path.startswith("trunk/") and path.endswith(("kernel", "bedding"))
    }
    for path, x in small.items():  # the same numbers, rounded once
        np.testing.assert_array_equal(x, large[path].astype(x.dtype))
    assert all(x.dtype == jnp.float32 for x in large.values())
    config = with_adapters(DECODERS["scan"], compute_dtype="bfloat16")
    _, merged = merge_adapters(config, start_of(bases["scan"], config))
    assert all(x.dtype == jnp.float32 for x in flat(merged).values())


def test_what_was_split_is_joined_again():
    for config, learned_paths in (
        (ADAPTED, lambda path: "/lora/" in path or path[0] in "qv"),
        (ModelConfig(GPT2, 8), lambda path: path[0] in "qv"),
    ):
        params = init_params(config, 0)
        frozen, learned = partition(config, params)
        assert set(flat(learned)) == {path for path in flat(params) if learned_paths(path)}
        assert jax.tree.structure(combine(frozen, learned)) == jax.tree.structure(params)
        assert len(jax.tree.leaves(frozen)) + len(jax.tree.leaves(learned)) == len(flat(params))


# --- training -----------------------------------------------------------------------------------


class Killed(Exception):
    pass


def run(folder, base, config=SHORT, model=ADAPTED, stop_at=None, seed=0):
    losses = {}

    def on_metrics(step, metrics):
        losses[step] = metrics["loss"]
        if step == stop_at:
            raise Killed

    params = train(
        DATA,
        model,
        MC,
        config,
        PACKING,
        seed,
        folder,
        on_metrics=on_metrics,
        start_from=(lambda: start_of(base, model, seed)) if base else None,
    )
    return jax.device_get(params), losses


ALL_AT_ONCE = with_adapters(DECODERS["scan"], remat=True, compute_dtype="bfloat16")
KINDS = {
    "adapters": (ADAPTED, SHORT, "gpt2"),
    "adapters, all at once": (
        ALL_AT_ONCE,
        dataclasses.replace(SHORT, gradient_accumulation=2),
        "scan",
    ),
    "adapters, a trunk for values": (
        dataclasses.replace(with_adapters(LLAMA), value_trunk="separate", value_heads="tied"),
        SHORT,
        "llama",
    ),
    "frozen trunk": (ModelConfig(GPT2, 8), dataclasses.replace(SHORT, freeze_trunk=True), "gpt2"),
}


LONG_KINDS = ("adapters, all at once", "adapters, a trunk for values")


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k in LONG_KINDS)) for k in KINDS],
)
def trained(request, bases, tmp_path_factory):
    """Shape, settings, pretrained folder, run's folder, and what came of it."""
    model, config, name = KINDS[request.param]
    folder, base = tmp_path_factory.mktemp("run"), bases[name]
    return model, config, base, folder, *run(folder, base, config, model)


def test_what_is_frozen_stays_to_the_bit_and_all_else_moves(trained):
    model, _, base, _, params, losses = trained
    frozen, learned = partition(model, start_of(base, model))
    now_frozen, now_learned = partition(model, params)
    jax.tree.map(np.testing.assert_array_equal, now_frozen, frozen)
    for path, before in flat(learned).items():
        if not path.startswith("v/inner"):  # reads values that are zero at first
            assert (flat(now_learned)[path] != before).any(), path
    assert list(losses) == [1, 2, 3, 4] and losses[4] < losses[1]


def test_neither_optimizer_nor_checkpoint_holds_anything_of_it(trained):
    model, config, _, folder, params, _ = trained
    frozen, learned = partition(model, params)
    state = jax.eval_shape(lambda: init_state(model, MC, config, 0))
    of_optimizer = sum(x.size for x in jax.tree.leaves(state.optimizer))
    count = sum(x.size for x in jax.tree.leaves(learned))
    assert of_optimizer <= 2 * count + 16  # AdamW's two moments, and counters

    [description] = (folder / "4").glob("state/_METADATA")
    saved = [
        "/".join(key["key"] for key in entry["key_metadata"])
        for entry in json.loads(description.read_text())["tree_metadata"].values()
    ]
    assert {name for name in saved if name.startswith("params/")} == {
        f"params/{path}" for path in flat(learned)
    }
    assert not [name for name in saved if name.endswith(tuple(flat(frozen)))]


def test_an_interrupted_run_ends_with_the_same_bits(trained, tmp_path):
    model, config, base, _, params, losses = trained
    with pytest.raises(Killed):
        run(tmp_path, base, config, model, stop_at=3)
    resumed, again = run(tmp_path, base, config, model)
    assert again == {step: losses[step] for step in (3, 4)}
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_a_checkpoint_is_put_together_with_what_it_was_made_beside(trained):
    model, _, base, folder, params, _ = trained
    found = restore_params(folder, model, start_from=lambda: start_of(base, model))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_base_that_has_changed_is_noticed(trained):
    model, config, base, folder, *_ = trained

    def changed():
        params = start_of(base, model)
        scale = params["trunk"]["final_norm"]["scale"]
        params["trunk"]["final_norm"]["scale"] = scale.at[3].add(1e-6)
        return params

    with pytest.raises(CheckpointError, match="the pretrained model has changed since"):
        restore_params(folder, model, start_from=changed)
    with pytest.raises(CheckpointError, match=r"frozen was '\w{16}', now '\w{16}'"):
        train(DATA, model, MC, config, PACKING, 0, folder, start_from=changed)


def test_a_frozen_trunk_that_nobody_gave_is_made_again_from_the_seed(tmp_path):
    model, config = ModelConfig(GPT2, 8), dataclasses.replace(SHORT, freeze_trunk=True)
    params, _ = run(tmp_path, None, config, model, seed=5)
    fresh = jax.jit(lambda: init_params(model, 5))()
    jax.tree.map(np.testing.assert_array_equal, params["trunk"], fresh["trunk"])
    assert (params["q"]["out_kernel"] != fresh["q"]["out_kernel"]).any()
    found = restore_params(tmp_path, model)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_dpo_goes_on_from_what_adapters_have_learned(bases, tmp_path):
    reference = noisy(start_of(bases["gpt2"], ADAPTED))
    data = Preferences(pairs(), reference)
    packing = packing_for_pairs(data.pairs, 2, 32)
    losses = {}
    found = train(
        data,
        ADAPTED,
        METHODS["dpo"],
        dataclasses.replace(SHORT, weight_decay=0.0),
        packing,
        0,
        tmp_path,
        on_metrics=lambda step, metrics: losses.update({step: metrics["loss"]}),
    )
    assert losses[1] == pytest.approx(np.log(2), abs=1e-4) and losses[4] < losses[1]
    (frozen, learned), (now_frozen, now_learned) = (
        partition(ADAPTED, each) for each in (reference, found)
    )
    jax.tree.map(np.testing.assert_array_equal, now_frozen, frozen)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), now_learned["trunk"], learned["trunk"])
    assert min(jax.tree.leaves(gap)) > 1e-4


def test_a_fingerprint_sees_every_bit_and_every_place():
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.ones(4)}
    kernel = params["a"]["kernel"]
    others = [
        {"a": {"kernel": kernel.at[1, 2].set(np.nextafter(np.float32(5), 6))}, "b": jnp.ones(4)},
        {"a": {"kernel": kernel[::-1]}, "b": jnp.ones(4)},
        {"a": {"kernel": kernel.T}, "b": jnp.ones(4)},
        {"a": {"kernel": kernel}, "c": jnp.ones(4)},
    ]
    assert fingerprint(jax.tree.map(jnp.copy, params)) == fingerprint(params)
    assert len({fingerprint(each) for each in (params, *others)}) == 5


def test_a_plan_counts_what_is_frozen_apart_from_what_is_learned():
    packing = PackingConfig(batch_rows=2, row_length=16, actions_per_row=8, utterances_per_row=2)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    training = PlannedTraining(
        ADAPTED, METHODS["bc"], TrainConfig(4, 1e-3, optimizer="adamw"), packing
    )
    found = make_plan(training, mesh)
    frozen, learned = partition(ADAPTED, init_params(ADAPTED, 0))
    memory = found.step.memory
    assert memory.frozen == sum(x.nbytes for x in jax.tree.leaves(frozen))
    of_learned = sum(x.nbytes for x in jax.tree.leaves(learned))
    assert memory.parameters == of_learned  # bc has no target network
    assert 2 * of_learned <= memory.optimizer < 2 * of_learned + 64
    text = describe(found, "local")
    whole = (memory.frozen + of_learned) // 4
    assert f"{whole:,} parameters, {of_learned // 4:,} of them learned;" in text
    assert "parameters that are not learned" in text


# --- what goes wrong ----------------------------------------------------------------------------


def test_adapters_on_nothing_or_beside_a_frozen_trunk_are_refused(tmp_path, bases):
    with pytest.raises(ValueError, match="lora_rank is 3, but adapters need a network that"):
        run(tmp_path, None)
    both = dataclasses.replace(SHORT, freeze_trunk=True)
    with pytest.raises(ValueError, match="freeze_trunk is True, but lora_rank is 3"):
        run(tmp_path, bases["gpt2"], both)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="lora_rank is -1"):
        dataclasses.replace(GPT2, lora_rank=-1)
    with pytest.raises(ValueError, match=r"lora_scale is 0\.0"):
        dataclasses.replace(GPT2, lora_scale=0.0)


def test_a_step_without_what_is_frozen_is_refused():
    state = jax.eval_shape(lambda: init_state(ADAPTED, MC, SHORT, 0))
    with pytest.raises(ValueError, match="takes frozen parameters exactly where there are any"):
        jax.eval_shape(make_train_step(ADAPTED, MC, SHORT), state, None)


def test_several_steps_beside_what_is_frozen_are_one_program():
    config = dataclasses.replace(SHORT, gradient_accumulation=2)
    state = jax.eval_shape(lambda: init_state(ADAPTED, MC, config, 0))
    frozen = abstract_frozen(ADAPTED, config)
    batches = make_batches(DATA, PACKING, 0)
    steps = make_train_steps(ADAPTED, MC, config)
    stacked = stack_batches([next(batches), next(batches)])
    after, metrics = jax.eval_shape(steps, state, stacked, frozen)
    assert after == state and {each.shape for each in metrics.values()} == {(2,)}
