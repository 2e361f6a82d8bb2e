"""The benchmarks run, at tiny size; and memory grows with tokens as they say."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import measuring, memory, pipeline, scaling
from ilql_jax import ModelConfig, ObjectiveConfig


def test_memory_grows_with_tokens_and_not_with_tokens_by_vocabulary():
    found = memory.run("tiny", "mlp", chunk=128)
    grown, all_scores = (np.diff(found[n]) for n in ("temporary_bytes", "bytes_of_all_scores"))
    assert grown[1] == pytest.approx(2 * grown[0], rel=0.15)  # twice the tokens, twice the growth
    assert grown[1] < 0.4 * all_scores[1]


@pytest.mark.parametrize("heads", ["mlp", "tied"])
def test_a_smaller_chunk_takes_less_memory(heads):
    decoder, _ = memory.SIZES["tiny"]
    model = ModelConfig(decoder, 32, utterance_q="last", value_heads=heads)
    sizes = [
        memory.temporaries(
            model, ObjectiveConfig(credit="token", cql_weight=0.1, action_chunk=chunk), rows=16
        )
        for chunk in (10_000, 512, 128)
    ]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]


def test_the_pipeline_is_timed_beside_a_loop_without_it():
    found = pipeline.run("tiny")
    assert found["times_faster"] > 0
    assert found["seconds_per_step_with_input"] > 0
    assert 0 <= found["idle_share"] < 1


def test_scaling_fits_exponents(tmp_path, monkeypatch):
    base, varied = scaling.SIZES["tiny"]
    assert set(varied) == set(scaling.SIZES["default"][1]) == set(scaling.GROWS)
    two = {name: varied[name] for name in ("context", "vocabulary")}  # each setting is compiled
    monkeypatch.setitem(scaling.SIZES, "tiny", (base, two))
    found = scaling.run("tiny", "tied", rounds=1)
    assert set(found["scaling"]) == set(two)
    measuring.write_json(str(tmp_path / "new" / "scaling.json"), found)
    written = json.loads((tmp_path / "new" / "scaling.json").read_text())
    assert written["scaling"] == found["scaling"]
    assert written["measured"]["versions"]["jax"]
    assert scaling._exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the other side needs the extra 'parity'"
)


@needs_torch
@pytest.mark.parametrize("heads", ["mlp", "tied"])
def test_the_train_step_is_compared_with_torch(heads, tmp_path):
    file = tmp_path / "train_step.json"
    command = [sys.executable, "-m", "experiments.benchmarks.train_step", "--size=tiny"]
    subprocess.run(
        [*command, "--rounds=1", f"--heads={heads}", f"--json={file}"], check=True, timeout=300
    )
    found = json.loads(file.read_text())
    assert len(found["losses"]) == 3
    for ours, theirs in found["losses"]:
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert found["losses"][0][0] > found["losses"][-1][0]  # something was learned
    assert found["speed_ratio"] > 0 and found["memory_ratio"] > 0


@needs_torch
@pytest.mark.parametrize("heads", ["mlp", "linear"])
def test_decoding_is_compared_with_torch(heads, tmp_path):
    file = tmp_path / "decoding.json"
    command = [sys.executable, "-m", "experiments.benchmarks.decoding", "--size=tiny"]
    command += ["--rounds=1", f"--heads={heads}", f"--json={file}"]
    written = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    found = json.loads(file.read_text())
    assert set(found["times_faster"]) == {"plain", "steered"}
    assert len(written.stdout.splitlines()) == 4  # a table of two rows
