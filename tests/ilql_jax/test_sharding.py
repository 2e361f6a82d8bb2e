"""Many devices and hosts give what one gives; what cannot be split is told before it is tried."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import compiling
import jax
import jax.numpy as jnp
import pytest
from sharded_training import GOES_ON, MORE_TRAININGS, SHORT, TRAININGS

from ilql_jax import METHODS, ModelConfig, chunked_cross_entropy, sharding
from ilql_jax.models import DecoderConfig, abstract_params
from ilql_jax.models.config import VALUE_HEAD_KINDS
from ilql_jax.settings import SettingError
from ilql_jax.sharding import HostsConfig, MeshConfig, MeshError, make_mesh, partition_spec
from ilql_jax.train_step import TrainConfig, abstract_state

SCRIPT = Path(__file__).parents[1] / "support" / "sharded_training.py"
MODEL = ModelConfig(DecoderConfig(64, 32, 2, 4, 64, 16), 32)


def start(*arguments, devices=1):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiling.flags(devices=devices),
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out.splitlines()[-1])


# --- the same result ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
    return finish(start("meshes", tmp_path_factory.mktemp("meshes"), devices=8))


@pytest.fixture(scope="module")
def on_more_meshes(tmp_path_factory):
    return finish(start("more_meshes", tmp_path_factory.mktemp("meshes"), devices=8))


@pytest.mark.parametrize("shape", TRAININGS)
def test_a_mesh_gives_the_losses_of_one_device(on_meshes, shape):
    assert_same_losses(on_meshes, TRAININGS[shape], shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MORE_TRAININGS)
def test_further_methods_have_the_losses_of_one_device(on_more_meshes, shape):
    assert_same_losses(on_more_meshes, MORE_TRAININGS[shape], shape)


def assert_same_losses(found, method, shape):
    alone, there = found[f"{method} alone"], found[f"{method} on {shape}"]
    assert found["devices"] == 8
    assert len(alone) == SHORT.steps and len(set(alone.values())) >= SHORT.steps - 1
    assert len(there) == (3 if method == "ilql" else SHORT.steps)
    assert there == pytest.approx({step: alone[step] for step in there}, abs=1e-5)


def test_a_run_goes_on_on_another_mesh(on_meshes):
    alone = on_meshes["ilql alone"]
    assert on_meshes["goes on"] == pytest.approx({k: alone[k] for k in ("3", "4")}, abs=1e-5)
    assert on_meshes["difference"] < 3e-4


def test_no_device_holds_more_than_its_part(on_meshes):
    _, fsdp, tensor = GOES_ON
    (part, whole), (kernel, of) = on_meshes["parts"]["q/out_kernel"], on_meshes["parts"]["mlp_in"]
    assert part == [2, whole[1] // tensor, whole[2] // fsdp]
    assert kernel == [of[0] // fsdp, of[1] // tensor]


def test_no_device_puts_a_table_together_to_look_something_up(on_meshes):
    assert len(on_meshes["looked_up"]) == 3
    for found in on_meshes["looked_up"]:
        assert found["error"] < 1e-5 and not found["whole"]


def test_a_vocabulary_that_tensor_does_not_divide_is_split_all_the_same(on_meshes):
    assert on_meshes["odd"]["error"] < 1e-5
    assert 17 in on_meshes["odd"]["sizes"] and not {33, 34} & set(on_meshes["odd"]["sizes"])


def test_a_device_looks_at_a_chunk_of_its_own_decisions():
    rows = jnp.zeros((8, 64))
    parts = len(chunked_cross_entropy._split((rows,), 16)[0])
    with jax.sharding.use_abstract_mesh(mesh_of(2, 2, 2)):
        assert sharding.row_parts() == 4
        assert parts == 4 * len(chunked_cross_entropy._split((rows,), 16)[0])


def test_a_network_in_parts_writes_and_scores_as_on_one_device(on_meshes):
    alone, there = on_meshes["used"]
    assert (alone["devices"], there["devices"]) == (1, 8)
    assert there["tokens"] == alone["tokens"] and len(alone["tokens"]) == 5
    assert there["q"] == pytest.approx(alone["q"], abs=1e-4) and len(set(alone["q"])) > 5


def test_a_network_lies_in_parts_where_there_are_enough_devices(monkeypatch):
    assert sharding.mesh_to_use(MeshConfig(data=-1, fsdp=4)) is None  # there is one
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 6)
    monkeypatch.setattr(sharding, "make_mesh", lambda config, devices: (config, len(devices)))
    assert sharding.mesh_to_use(MeshConfig(data=-1)) is None  # its parameters were not split
    assert sharding.mesh_to_use(MeshConfig(data=-1, fsdp=4)) is None  # not a part of six
    assert sharding.mesh_to_use(MeshConfig(data=8, tensor=2)) == (MeshConfig(1, 1, 2), 6)
    assert sharding.mesh_to_use(MeshConfig(data=2, fsdp=-1)) == (MeshConfig(1, -1, 1), 6)


def two_hosts(folder, die_at=0):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start("host", folder, port, 0, 0), start("host", folder, port, 1, die_at)]


@pytest.mark.slow
def test_two_hosts_of_which_one_is_killed_come_back_to_the_same_result(on_more_meshes, tmp_path):
    whole = [finish(process) for process in two_hosts(tmp_path / "whole")]
    assert whole[0] == whole[1]
    assert whole[0]["losses"] == pytest.approx(on_more_meshes["mc alone"], abs=1e-5)

    first, second = two_hosts(tmp_path / "parts", die_at=3)
    try:
        second.communicate(timeout=120)
        assert second.returncode == -9
        try:  # the other learns of it from a broken connection
            first.communicate(timeout=20)
            assert first.returncode != 0
        except subprocess.TimeoutExpired:
            pass
    finally:
        first.kill()
        first.communicate()
    again = [finish(process) for process in two_hosts(tmp_path / "parts")]
    assert list(again[0]["losses"]) == ["3", "4"]
    assert {each["params"] for each in again} == {whole[0]["params"]}


# --- what lies where ----------------------------------------------------------------------------


def mesh_of(data, fsdp, tensor):
    """A mesh without devices: all that rules ask for."""
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("trunk/token_embedding/embedding", (64, 32), ("tensor", "fsdp")),
        ("trunk/position_embedding/embedding", (15, 32), (None, "fsdp")),
        ("trunk/blocks/1/attention/qkv/kernel", (32, 96), ("fsdp", "tensor")),
        ("trunk/blocks/1/attention/k/kernel", (32, 16), ("fsdp", "tensor")),
        ("trunk/blocks/1/attention/k/bias", (16,), ("tensor",)),
        ("trunk/blocks/attention/out/kernel", (12, 32, 32), (None, "tensor", "fsdp")),
        ("trunk/blocks/mlp_gate/kernel", (12, 32, 64), (None, "fsdp", "tensor")),
        ("trunk/blocks/0/mlp_out/bias", (32,), ()),
        ("value_trunk/token_embedding/embedding", (64, 32), ("tensor", "fsdp")),
        ("value_trunk/blocks/1/attention/out/kernel", (32, 32), ("tensor", "fsdp")),
        ("trunk/blocks/attention_norm/scale", (12, 32), (None, None)),
        ("q/out_kernel", (2, 64, 32), (None, "tensor", "fsdp")),
        ("targets/q/out_kernel", (2, 64, 32), (None, "tensor", "fsdp")),
        ("optimizer/1/0/mu/q/inner_kernel", (2, 32, 32), (None, "fsdp", "tensor")),
        ("v/out/kernel", (32, 1), ("tensor", None)),
        ("q/a_new_map", (3, 32), (None, "fsdp")),
        ("q/a_new_vector", (32,), ()),
        ("optimizer/count", (), ()),
    ],
)
def test_names_say_where_parameters_lie(name, shape, expected):
    spec = partition_spec(name, shape, mesh_of(1, 2, 4))
    assert tuple(spec) == expected + (None,) * (len(shape) - len(expected))


def alternatives(pattern):
    """The names that a rule's pattern stands for: `(a|b)/kernel` for a/kernel and b/kernel."""
    group = re.match(r"\((.*)\)(.*)", pattern)
    return [name + group[2] for name in group[1].split("|")] if group else [pattern]


def test_every_rule_is_for_parameters_of_some_network():
    fused, llama = MODEL.decoder, {"norm": "rms_norm", "mlp": "swiglu", "fused_qkv": False}
    apart = dataclasses.replace(fused, lora_rank=2, tied_output=False, **llama)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for decoder in (fused, apart)
        for kind in VALUE_HEAD_KINDS
        for path, _ in jax.tree_util.tree_leaves_with_path(
            abstract_params(dataclasses.replace(MODEL, decoder=decoder, value_heads=kind))
        )
    }
    for pattern, _ in sharding.RULES:
        for ending in alternatives(pattern):
            assert any(sharding._ends_with(ending, name) for name in names), ending


def test_optimizer_state_lies_where_its_parameters_do():
    for optimizer in ("adamw", "muon"):
        state = abstract_state(MODEL, METHODS["ilql"], TrainConfig(4, 1e-3, optimizer=optimizer))
        laid_out = sharding.shardings(state, make_mesh(MeshConfig(1, 1, 1)))
        specs = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
            for path, leaf in jax.tree_util.tree_leaves_with_path(laid_out)
        }
        parameters = {k.removeprefix("params/"): v for k, v in specs.items() if "params/" in k}
        followers = 0
        for name, spec in specs.items():
            owner = [p for p in parameters if name.startswith("optimizer") and name.endswith(p)]
            followers += len(owner)
            assert all(spec == parameters[p] for p in owner), name
        assert followers > 1.5 * len(parameters)


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_mesh_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(MeshError, match="data 1 x fsdp 3 x tensor 1 does not divide the 1 devices"):
        make_mesh(MeshConfig(1, 3, 1))
    with pytest.raises(SettingError, match=r"fsdp is 0"):
        MeshConfig(fsdp=0)
    with pytest.raises(SettingError, match=r"data is open .* only one may be -1"):
        MeshConfig(data=-1, tensor=-1)


def test_a_dimension_that_an_axis_does_not_divide_is_named():
    params = abstract_state(MODEL, METHODS["ilql"], TrainConfig(4, 1e-3, optimizer="adamw")).params
    qkv = {"kernel": params["trunk"]["blocks"][0]["attention"]["qkv"]["kernel"]}
    message = r"kernel has shape \(32, 96\): dimension 1, 96, .* 'tensor', but 5 does not divide it"
    with pytest.raises(MeshError, match=f"attention/qkv/{message}"):
        sharding.shardings({"attention": {"qkv": qkv}}, mesh_of(1, 1, 5))


def test_rows_that_cannot_be_split_evenly_are_refused():
    with pytest.raises(MeshError, match=r"batch_rows is 6, .* 2 x 2: it must be a multiple of 4"):
        sharding.check_rows(6, mesh_of(2, 2, 1))
    with pytest.raises(MeshError, match=r"8, but each of 3 parts .*multiple of 12"):
        sharding.check_rows(8, mesh_of(2, 2, 1), accumulation=3)
    sharding.check_rows(24, mesh_of(2, 2, 1), accumulation=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator": "head"}, "coordinator is 'head', but must be host:port, auto, or empty"),
        ({"coordinator": "head:1", "processes": 2, "id": 2}, r"id is 2, but must lie in \[0, 1\]"),
        ({"processes": 2}, "processes is 2, but must be 1 while coordinator is ''"),
    ],
)
def test_hosts_that_cannot_find_each_other_are_refused(fields, message):
    with pytest.raises(SettingError, match=message):
        HostsConfig(**fields)
