"""Checkpoints in: sharded files, meshes, new words, training from them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import compiling
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small_networks
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ilql_jax.batching import packing_for
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.models.hugging_face.read import (
    PretrainedError,
    check_tensors,
    find,
    load_trunk,
    read_config,
    start_params,
)
from ilql_jax.models.hugging_face.write import save_pretrained
from ilql_jax.settings import SettingError
from ilql_jax.train import train
from ilql_jax.train_step import TrainConfig
from ilql_jax.trajectory import Trajectory

ROOT = Path(__file__).parents[2]
QWEN = DecoderConfig(
    30,
    16,
    3,
    4,
    24,
    32,
    position_encoding="rotary",
    num_kv_heads=2,
    head_dim=4,
    norm="rms_norm",
    norm_epsilon=1e-6,
    mlp="swiglu",
    fused_qkv=False,
    attention_bias=False,
    mlp_bias=False,
    tied_output=False,
    initializer_range=0.1,
)
CONFIG = ModelConfig(QWEN, 8)
SCANNED = dataclasses.replace(QWEN, scan_layers=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Qwen 2 in several files, and its parameters."""
    folder = tmp_path_factory.mktemp("qwen")
    params = init_params(CONFIG, 3)
    save_pretrained(folder, CONFIG, params, card="", max_file_bytes=4000)
    return folder, params


@pytest.fixture
def copy(checkpoint, tmp_path):
    """The checkpoint in one file, to be spoiled: its tensors, and what writes them back."""
    folder, _ = checkpoint
    tensors = {}
    for file in folder.glob("model-*.safetensors"):
        tensors |= load_file(file)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())

    def write(**changes):
        kept = {name: x for name, x in (tensors | changes).items() if x is not None}
        save_file(kept, tmp_path / "model.safetensors")
        return tmp_path

    return tensors, write


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_several_files_are_read_as_one(checkpoint):
    folder, params = checkpoint
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    assert read_config(folder) == QWEN
    check_tensors(folder)
    assert_equal(load_trunk(folder, QWEN), params["trunk"])


def test_stacked_layers_are_read_from_the_same_files(checkpoint):
    folder, params = checkpoint
    stacked = load_trunk(folder, SCANNED)["blocks"]
    for layer in range(3):
        one = jax.tree.map(lambda each, i=layer: each[i], stacked)
        assert_equal(one, params["trunk"]["blocks"][layer])


def test_bfloat16_files_become_float32_masters(copy):
    tensors, write = copy
    small = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    found = load_trunk(write(**small), QWEN)["token_embedding"]["embedding"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, small["model.embed_tokens.weight"].astype(np.float32))


ON_A_MESH = """
import sys, jax, numpy as np, dataclasses
from jax.sharding import NamedSharding, PartitionSpec
from ilql_jax.models.hugging_face.read import load_trunk, read_config
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"))
config = dataclasses.replace(read_config(sys.argv[1]), scan_layers=sys.argv[2] == "scan")
def sharding(leaf):
    axes = {3: (None, "fsdp", "tensor"), 2: (None, "fsdp")}.get(leaf.ndim, ())
    return NamedSharding(mesh, PartitionSpec(*axes))
whole = load_trunk(sys.argv[1], config)
split = load_trunk(sys.argv[1], config, jax.tree.map(sharding, whole))
jax.tree.map(np.testing.assert_array_equal, whole, split)
kernel = split["token_embedding"]["embedding"]
assert {each.data.shape for each in kernel.addressable_shards} == {(30, 8)}
print("same on", len(jax.devices()))
"""


@pytest.mark.parametrize("layers", ["scan", pytest.param("list", marks=pytest.mark.slow)])
def test_a_mesh_gets_the_same_parameters_each_device_its_part(checkpoint, layers):
    flags = compiling.flags(devices=4)
    result = subprocess.run(
        [sys.executable, "-c", ON_A_MESH, str(checkpoint[0]), layers],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "same on 4", result.stderr


def test_a_device_reads_no_more_of_a_file_than_its_part(checkpoint, monkeypatch):
    """Slices of the files, over all tensors, are the model once and never whole."""
    from ilql_jax.models.hugging_face import read

    folder, params = checkpoint
    sizes = []

    def watched(tensor, index):
        part = tensor._in_file[index]
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(read._Tensor, "__getitem__", watched)
    load_trunk(folder, SCANNED)
    leaves = jax.tree.leaves(params["trunk"])
    assert sum(sizes) == sum(leaf.nbytes for leaf in leaves)
    assert max(sizes) == max(leaf.nbytes for leaf in leaves)


def test_new_words_leave_the_known_ones_as_they_are(checkpoint):
    folder, params = checkpoint
    grown = dataclasses.replace(QWEN, vocab_size=37)
    found = load_trunk(folder, grown, seed=5)
    for name in ("token_embedding", "output_embedding"):
        old, new = params["trunk"][name]["embedding"], found[name]["embedding"]
        np.testing.assert_array_equal(new[:30], old)
        distance = np.abs(new[30:] - np.mean(old, axis=0))
        assert 0.05 < distance.mean() < 0.12  # 0.1 · sqrt(2 / π)
        assert len(np.unique(new[30:], axis=0)) == 7
    assert_equal(load_trunk(folder, grown, seed=5), found)
    row = (np.arange(8)[None], np.ones((1, 8), np.int32), np.arange(8)[None])

    def logits(config, trunk):
        whole = init_params(ModelConfig(config, 8), 0) | {"trunk": trunk}
        return small_networks.logits(ModelConfig(config, 8), whole, row)

    np.testing.assert_allclose(
        logits(grown, found)[..., :30], logits(QWEN, params["trunk"]), atol=1e-5
    )


def test_value_heads_are_fresh_and_the_trunk_is_that_of_the_checkpoint(checkpoint):
    folder, params = checkpoint
    started = start_params(folder, CONFIG, seed=11)
    assert_equal(started, init_params(CONFIG, 11) | {"trunk": params["trunk"]})


# --- training -----------------------------------------------------------------------------------


def dialogues():
    rng = np.random.default_rng(0)
    for number in range(12):
        rewards = np.zeros(10, np.float32)
        rewards[-1] = rng.random()
        yield Trajectory(
            tokens=rng.integers(30, size=10).astype(np.int32),
            is_action=np.arange(10) > 4,
            rewards=rewards,
            terminal=True,
            name=f"dialogue {number}",
        )


@pytest.mark.parametrize(
    "decoder", [pytest.param(QWEN, marks=pytest.mark.slow), SCANNED], ids=["list", "scan"]
)
def test_training_starts_from_a_checkpoint_and_goes_on_without_it(checkpoint, tmp_path, decoder):
    folder, _ = checkpoint
    data, config = list(dialogues()), ModelConfig(decoder, 8)
    expected = jax.tree.map(np.asarray, start_params(folder, config, seed=0))

    def run(learning_rate, start_from, where):
        return train(
            data,
            config,
            METHODS["ilql"],
            TrainConfig(2, learning_rate, optimizer="muon", muon_learning_rate=learning_rate),
            packing_for(data, 2, 32),
            seed=0,
            folder=tmp_path / where,
            start_from=start_from,
        )

    still = run(1e-12, lambda: start_params(folder, config, seed=0), "still")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), still, expected)

    moved = run(1e-2, lambda: start_params(folder, config, seed=0), "moved")
    gap = jnp.abs(moved["trunk"]["final_norm"]["scale"] - 1)
    assert 1e-4 < gap.max() < 0.1

    def gone():
        raise AssertionError("asked for the start of a run that is finished")

    assert_equal(run(1e-2, gone, "moved"), moved)


@pytest.mark.slow
def test_muon_moves_stacked_matrices_as_it_moves_each(tmp_path):
    data = list(dialogues())

    def trained(decoder, where, params):
        return train(
            data,
            ModelConfig(decoder, 8),
            METHODS["bc"],
            TrainConfig(3, 1e-2, optimizer="muon", warmup_steps=0),
            packing_for(data, 2, 32),
            seed=0,
            folder=tmp_path / where,
            start_from=lambda: params,
        )["trunk"]["blocks"]

    fresh = init_params(CONFIG, 0)
    blocks = fresh["trunk"]["blocks"]
    together = jax.tree.map(lambda *each: jnp.stack(each), *(blocks[i] for i in range(3)))
    stacked = jax.tree.map(jnp.copy, fresh | {"trunk": fresh["trunk"] | {"blocks": together}})
    apart = trained(QWEN, "apart", fresh)
    found = trained(SCANNED, "stacked", stacked)
    for layer in range(3):
        jax.tree.map(
            lambda a, b, i=layer: np.testing.assert_allclose(a[i], b, atol=2e-4),
            found,
            apart[layer],
        )
    assert np.abs(found["mlp_in"]["kernel"] - together["mlp_in"]["kernel"]).max() > 1e-2


def test_configs_of_older_checkpoints_have_the_defaults_of_new_fields():
    old = {
        "decoder": {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "mlp_size": 48,
            "max_positions": 24,
            "norm_epsilon": 1e-5,
            "position_encoding": "rotary",
            "rotary_base": 100.0,
            "initializer_range": 0.02,
        },
        "value_inner_size": 8,
        "utterance_q": "last",
    }
    decoder = DecoderConfig(50, 32, 3, 4, 48, 24, position_encoding="rotary", rotary_base=100.0)
    assert ModelConfig.from_dict(old) == ModelConfig(decoder, 8, "last")
    whole = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert ModelConfig.from_dict(whole) == CONFIG


# --- bad input ----------------------------------------------------------------------------------


def test_all_that_is_missing_extra_or_misshapen_is_named_at_once(copy):
    folder = copy[1](
        **{
            "model.layers.1.self_attn.k_proj.bias": None,
            "lm_head.weight": None,
            "model.layers.0.self_attn.o_proj.bias": np.zeros(16, np.float32),
            "model.layers.2.mlp.up_proj.weight": np.zeros((16, 24), np.float32),
        }
    )
    with pytest.raises(PretrainedError) as caught:
        check_tensors(folder)
    for problem in (
        "model.layers.1.self_attn.k_proj.bias is missing",
        "lm_head.weight is missing",
        "model.layers.0.self_attn.o_proj.bias is not part of it",
        "model.layers.2.mlp.up_proj.weight gives (16, 24), but (24, 16) is needed",
    ):
        assert problem in str(caught.value)
    with pytest.raises(PretrainedError, match=r"lm_head\.weight is missing"):
        load_trunk(folder, QWEN)


@pytest.mark.parametrize("sizes", [(4000, 10**9), (10**9, 4000), (2000, 4000)])
def test_a_network_saved_over_another_leaves_nothing_of_it(tmp_path, sizes):
    own = tmp_path / "model-of-mine.safetensors"
    own.write_text("mine")
    for seed, size in enumerate(sizes):
        params = init_params(CONFIG, seed)
        tokens = {"eos_token_id": 1} if seed == 0 else None
        save_pretrained(
            tmp_path, CONFIG, params, card="", max_file_bytes=size, special_tokens=tokens
        )
    assert_equal(load_trunk(tmp_path, QWEN), params["trunk"])
    fresh = tmp_path / "fresh"
    save_pretrained(fresh, CONFIG, params, card="", max_file_bytes=size)
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in fresh.iterdir()} | {
        own.name,
        fresh.name,
    }


def test_an_own_output_where_it_is_said_to_be_tied_is_told(copy):
    """transformers 5 loads such an output; a copy of the embedding is none."""
    tensors, write = copy
    embedding = tensors["model.embed_tokens.weight"]
    folder = write(**{"lm_head.weight": embedding})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    check_tensors(folder)
    tied = dataclasses.replace(QWEN, tied_output=True)
    expected = load_trunk(folder, tied)["token_embedding"]["embedding"]
    np.testing.assert_array_equal(expected, embedding)
    other = embedding.copy()
    other[-1, -1] += 1
    for matrix in (other, embedding[:-1]):
        folder = write(**{"lm_head.weight": matrix})
        for read in (check_tensors, lambda folder: load_trunk(folder, tied)):
            with pytest.raises(
                PretrainedError, match=r"lm_head\.weight is another matrix than mod"
            ):
                read(folder)


@pytest.mark.parametrize("config", [QWEN, SCANNED], ids=["layers", "stacked"])
@pytest.mark.parametrize("junk", [np.nan, -np.inf])
def test_weights_that_are_no_numbers_are_told_with_their_tensor(copy, config, junk):
    tensors, write = copy
    name = "model.layers.1.mlp.up_proj.weight"
    spoiled = tensors[name].copy()
    spoiled[-1, -1] = junk
    for dtype in (np.float32, ml_dtypes.bfloat16):
        folder = write(**{name: spoiled.astype(dtype)})
        with pytest.raises(PretrainedError, match=f"tensor {name} holds NaN or infinity"):
            load_trunk(folder, config)


def test_names_without_prefix_and_buffers_of_old_files_are_understood(copy, checkpoint):
    tensors, write = copy
    bare = {name.removeprefix("model."): x for name, x in tensors.items()}
    bare |= {"layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}
    gone = {name: None for name in tensors if name not in bare}
    assert_equal(load_trunk(write(**bare, **gone), QWEN), checkpoint[1]["trunk"])


def test_a_network_of_another_shape_is_refused(checkpoint):
    with pytest.raises(PretrainedError, match="is not the network asked for"):
        load_trunk(checkpoint[0], dataclasses.replace(QWEN, num_layers=2))
    with pytest.raises(PretrainedError, match="is not the network asked for"):
        load_trunk(checkpoint[0], dataclasses.replace(QWEN, vocab_size=20))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"{}"),
            "model.safetensors cannot be read",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
            ),
            "lacks files that .* names: model-1.safetensors, model-2.safetensors",
        ),
    ],
)
def test_files_that_cannot_be_read_are_named(copy, spoil, message):
    folder = copy[1]()
    spoil(folder)
    with pytest.raises(PretrainedError, match=message):
        check_tensors(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/hostname", "out.safetensors", "a/../../x", "x\0y", 7]
)
def test_an_index_may_not_name_files_outside_its_folder(copy, tmp_path, name):
    folder = copy[1]()
    inside = tmp_path / "inside"
    inside.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).rename(inside / file)
    (inside / "out.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (tmp_path / "elsewhere.safetensors").write_bytes((inside / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((inside / "model.safetensors").read_bytes())
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(PretrainedError, match="no file inside the folder"):
        check_tensors(inside)


def test_links_within_the_cache_of_the_hub_are_read(copy, tmp_path):
    folder = copy[1]()
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (folder / "model.safetensors").rename(blobs / "0a")
    (folder / "config.json").rename(snapshot / "config.json")
    (snapshot / "model-1.safetensors").symlink_to(Path("../../blobs/0a"))
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}})
    (snapshot / "model.safetensors.index.json").write_text(index)
    check_tensors(snapshot)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 999),
        ("num_hidden_layers", -1),
        ("vocab_size", 10**18),
        ("vocab_size", 10**11),
        ("hidden_size", 2**39),
        ("intermediate_size", 10**12),
        ("num_attention_heads", 10**12),
        ("head_dim", 10**12),
        ("num_key_value_heads", 0),
        ("rms_norm_eps", float("inf")),
        ("architectures", [1]),
        ("vocab_size", "many"),
        ("hidden_act", None),
        ("num_attention_heads", 0),
    ],
)
def test_sizes_are_checked_against_the_tensors_before_anything_is_made(copy, field, value):
    folder = copy[1]()
    fields = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(fields))
    before = time.process_time()
    with pytest.raises((PretrainedError, SettingError)):
        check_tensors(folder)
    assert time.process_time() - before < 1


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_says_what_would_be(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PretrainedError, match=r"no checkpoint './no/such/place': give a folder"):
        find("./no/such/place")


def test_files_hold_what_they_say(checkpoint):
    folder, params = checkpoint
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="np") as opened:
            assert name in opened.keys()  # noqa: SIM118
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params["trunk"]))
    assert index["metadata"]["total_size"] == size
