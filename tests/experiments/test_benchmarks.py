"""The benchmarks run, at tiny size; and memory grows with tokens as they say."""

import importlib.util
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import gpu, measuring, memory, pipeline, scaling, train_step
from ilql_jax import METHODS, ModelConfig


@pytest.mark.slow
def test_memory_grows_with_tokens_and_not_with_tokens_by_vocabulary():
    found = memory.run("tiny", "mlp", chunk=128)
    grown, all_scores = (np.diff(found[n]) for n in ("temporary_bytes", "bytes_of_all_scores"))
    assert grown[1] == pytest.approx(2 * grown[0], rel=0.15)  # twice the tokens, twice the growth
    assert grown[1] < 0.4 * all_scores[1]


@pytest.mark.parametrize("heads", ["mlp", pytest.param("tied", marks=pytest.mark.slow)])
def test_a_smaller_chunk_takes_less_memory(heads):
    decoder, _ = memory.SIZES["tiny"]
    model = ModelConfig(decoder, 32, utterance_q="last", value_heads=heads)
    sizes = [
        memory.temporaries(
            model,
            METHODS["ilql"].configured(credit="token", cql_weight=0.1, action_chunk=chunk),
            rows=16,
        )
        for chunk in (10_000, 512, 128)
    ]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]


def test_sides_are_timed_in_turn_and_the_median_counts():
    order, seconds = [], {"ours": iter([1.0, 9.0, 2.0]), "theirs": iter([4.0, 3.0, 50.0])}

    def timed(name):
        def step():
            order.append(name)
            return next(seconds[name])

        return step

    assert measuring.in_turn({name: timed(name) for name in seconds}, rounds=3) == {
        "ours": 2.0,
        "theirs": 4.0,
    }
    assert order == ["ours", "theirs"] * 3


def test_a_call_is_timed_by_the_clock(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    assert measuring.seconds(lambda: None) == 2.5


def work(loops):
    """A side whose step takes so many loops, and returns how many steps it has done."""
    done = 0

    def step():
        nonlocal done
        for _ in range(loops):
            pass
        done += 1
        return done

    return step


@pytest.mark.slow
def test_a_side_with_ten_times_the_work_takes_about_ten_times_as_long():
    """Seconds of the processor: what else the machine does lengthens both alike."""
    sides = {
        name: measuring.Side(work, loops) for name, loops in (("a", 300_000), ("b", 3_000_000))
    }
    try:
        for side in sides.values():
            side.step()
        times = measuring.in_turn({name: side.seconds for name, side in sides.items()}, rounds=5)
        assert times["b"] / times["a"] == pytest.approx(10, rel=0.6)
        assert sides["a"].step()[1] == 7  # one, five in turn, and this one
    finally:
        for side in sides.values():
            side.close()


@pytest.mark.slow
def test_a_side_that_fails_says_so():
    with pytest.raises(RuntimeError, match=r"ended \(exit code 1\)"):
        measuring.Side(work)


def test_figures_of_the_pipeline_follow_from_its_times(monkeypatch):
    """A clock that stands in: a step takes 8 ms, with input 10 ms, and a batch is made in 1 ms."""
    monkeypatch.setattr(
        pipeline.measuring,
        "in_turn",
        lambda blocks, rounds: {"pipeline": 0.010, "one batch": 0.008},
    )
    clock = iter([5.0, 5.0 + 0.001 * pipeline.SIZES["tiny"][1]])
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(pipeline, "idle_share", lambda run_steps, count: run_steps() or count / 100)
    found = pipeline.run("tiny")
    assert found["seconds_per_batch"] == pytest.approx(0.001)
    assert found["times_faster"] == pytest.approx(8)
    assert found["waiting_share"] == pytest.approx(0.25)
    assert found["idle_share"] == pipeline.BLOCK / 100
    assert (found["seconds_per_step"], found["seconds_per_step_with_input"]) == (0.008, 0.010)


def test_pauses_between_steps_are_seen_in_the_trace():
    step = jax.jit(lambda x: jnp.linalg.matrix_power(x, 64))
    x = jnp.eye(256)
    step(x).block_until_ready()

    def steps(pause):
        def run():
            for _ in range(4):
                step(x).block_until_ready()
                time.sleep(pause)

        return run

    assert pipeline.idle_share(steps(0.3), 4) > 0.5
    with pytest.raises(RuntimeError, match="4 steps are in the trace, but 5 were run"):
        pipeline.idle_share(steps(0.0), 5)


def test_smoke_the_pipeline_runs_on_the_real_clock():
    """A smoke test: how fast a tiny step is on this machine cannot be said beforehand."""
    found = pipeline.run("tiny")
    ratio = found["seconds_per_step"] / found["seconds_per_batch"]
    assert found["times_faster"] == pytest.approx(ratio)


@pytest.mark.slow
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


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("heads", ["mlp", pytest.param("tied", marks=pytest.mark.slow)])
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
    seconds, peak, rates = (
        found[name] for name in ("seconds", "peak_bytes", "agent_tokens_per_second")
    )
    assert found["speed_ratio"] == pytest.approx(seconds["torch"] / seconds["ours"])
    assert found["speed_ratio"] == pytest.approx(rates["ours"] / rates["torch"])
    assert found["memory_ratio"] == pytest.approx(peak["ours"] / peak["torch"])
    dialogues = train_step.make_dialogues(train_step.SIZES["tiny"])
    assert found["agent_tokens"] == sum(int(d.is_action.sum()) for d in dialogues)
    for name, each in seconds.items():
        assert rates[name] == pytest.approx(found["agent_tokens"] / each)
        assert peak[name] > 50e6  # a process that has imported JAX or PyTorch


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("heads", ["mlp", pytest.param("linear", marks=pytest.mark.slow)])
def test_decoding_is_compared_with_torch(heads, tmp_path):
    file = tmp_path / "decoding.json"
    command = [sys.executable, "-m", "experiments.benchmarks.decoding", "--size=tiny"]
    command += ["--rounds=1", f"--heads={heads}", f"--json={file}"]
    written = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    found = json.loads(file.read_text())
    assert set(found["times_faster"]) == {"plain", "steered"}
    rates = found["tokens_per_second"]
    table = written.stdout.splitlines()
    assert len(table) == 4  # a table of two rows
    for row, (how, times) in zip(table[2:], found["times_faster"].items(), strict=True):
        assert how in row
        assert times == pytest.approx(rates[f"ours {how}"] / rates[f"Hugging Face {how}"])


def test_the_accelerators_script_is_rehearsed(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    found = {each["part"]: each for each in gpu.run("tiny", ["peak", "generate"], 120.0, path)}
    assert found["peak"]["tflops"] > 0
    assert found["generate"]["skipped"].startswith("torch")
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(found.values())
    assert "peak  width 128" in capsys.readouterr().out
    step = gpu.parts_of("tiny")["step-gpt2-small"]("tiny")
    assert step["ms"] > 0 and step["tflops"] > 0 and np.isfinite(step["first_loss"])


@pytest.mark.slow
def test_steps_at_one_call_are_counted_as_many(monkeypatch):
    def in_turn(calls, rounds):
        return {name: float(name) for name in calls if not calls[name]()}

    taken = []
    monkeypatch.setattr(gpu, "AT_ONCE", (1, 4))
    monkeypatch.setattr(gpu.measuring, "in_turn", in_turn)
    monkeypatch.setattr(gpu.measuring, "seconds", lambda call: taken.append(call()))
    found = gpu.parts_of("tiny")["dispatch"]("tiny")
    assert taken == [8, 8]  # of each, four steps to compile and four that were timed
    assert found == {
        "1_at_once_steps_per_second": 4.0,  # four steps in a second
        "4_at_once_steps_per_second": 1.0,
        "times_faster": 0.25,
    }


def test_a_part_that_takes_too_long_or_fails_costs_only_itself():
    assert gpu.run_part("tiny", "peak", limit=0.01)["failed"] == "took longer than 0.01 s"
    assert gpu.run_part("tiny", "no such part", 60.0)["failed"].startswith("KeyError")
