"""The benchmarks run, at tiny size; and memory grows with tokens as they say."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parts_that_fail
import pytest
from accelerators import for_gpu

from experiments.benchmarks import (
    gpu,
    gpu_networks,
    gpu_torch,
    measuring,
    memory,
    parts,
    pipeline,
    scaling,
    train_step,
)
from ilql_jax import METHODS, ModelConfig
from ilql_jax.train_step import init_state


@pytest.mark.slow
def test_memory_grows_with_tokens_and_not_with_tokens_by_vocabulary():
    found = memory.run("tiny", "mlp", chunk=128)
    grown, all_scores = (np.diff(found[n]) for n in ("temporary_bytes", "bytes_of_all_scores"))
    assert grown[1] == pytest.approx(2 * grown[0], rel=0.15)  # twice the tokens, twice the growth
    assert grown[1] < 0.4 * all_scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["mlp", "tied"])
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


def found_by(name):
    """Figures of a part of `gpu.py` at tiny size, in this process."""
    return {
        key: value for each in gpu.parts_of("tiny")[name]("tiny") for key, value in each.items()
    }


def test_the_accelerators_script_is_rehearsed(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    deadline = time.perf_counter() + 300
    found = parts.run(gpu.parts_of, "tiny", {"peak": 120.0}, deadline, path)
    assert found[0]["tflops"] > 0
    assert [json.loads(line) for line in path.read_text().splitlines()] == found
    assert "peak  width 128" in capsys.readouterr().out
    step = found_by("step-gpt2-small")
    assert step["ms"] > 0 and step["tflops"] > 0 and np.isfinite(step["first_loss"])


slow = pytest.mark.slow
REHEARSED = {
    "evaluation": (("answers_per_second",), slow),
    "decoding-2": (("plain_tokens_per_second", "best_of_16_tokens_per_second"), slow),
    "generate": (("2_tokens_per_second",), needs_torch),
    "teaching": (("steps_per_second", "cpu_steps_per_second"), slow),
    "start": (("dialogues", "cold_seconds", "cached_seconds"), slow),
    "stage-evaluate": (("seconds_of_stage", "average_episodes", "difficult_episodes"), slow),
    "step-gpt2-small-cudnn": (("ms",), slow),
    "step-gpt2-small-remat": (("ms",), slow),
    "step-llama-1b": (("ms",), slow),
    "rows-4": (("ms",), slow),
}


@pytest.mark.parametrize(
    ("name", "figures"),
    [pytest.param(name, figures, marks=marks) for name, (figures, marks) in REHEARSED.items()],
)
def test_each_part_of_the_accelerators_script_is_rehearsed(name, figures):
    found = found_by(name)
    assert all(found[figure] > 0 for figure in figures)


def test_kinds_of_attention_agree_with_float32():
    found = found_by("attention")
    for kind in ("xla", "cudnn", "pallas"):
        assert 0 < found[f"{kind}_error"] < 0.01 and found[f"{kind}_ms"] > 0


@pytest.mark.parametrize("kind", ["cudnn", "remat"])
def test_flops_of_a_step_are_the_networks_however_it_is_computed(kind):
    """On a GPU: cuDNN's kernel, which only a GPU has, hides its products."""

    def flops(name):
        model = gpu_networks.model_of("tiny", name)
        _, batch = gpu_networks._batch(model, 2)
        program = gpu_networks._program(model)
        method, train = train_step.METHOD, train_step.TRAIN
        state = jax.eval_shape(lambda: init_state(model, method, train, 0))
        with for_gpu():
            return gpu_networks.flops_of_step(model, program, state, batch)

    assert flops("gpt2-small") == flops(f"gpt2-small-{kind}") > 0


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
def test_both_sides_start_from_the_same_losses_and_multiply_alike(dtype):
    """In a process of its own: PyTorch is told there how to multiply."""
    found = parts.run_part(gpu.parts_of, "tiny", f"eager-{dtype}", 120.0)
    assert found["torch_float32_precision"] == "high"  # TF32, as JAX multiplies by default
    assert found["losses_apart"] < gpu_torch.TOLERANCES[dtype] / 10
    assert found["times_faster"] == pytest.approx(found["eager_ms"] / found["ours_ms"])


@needs_torch
@pytest.mark.parametrize("loss", [5.02, float("nan")])
def test_no_ratio_is_given_where_losses_differ(loss, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(train_step, "make_torch", lambda *_: lambda: 5.0)
    monkeypatch.setattr(train_step, "make_ours", lambda *_, **__: lambda: loss)
    found = {}
    with pytest.raises(RuntimeError, match=r"losses differ by (0\.004|nan), more than 0\.002"):
        for each in gpu.parts_of("tiny")["eager-float32"]("tiny"):
            found |= each
    assert found["eager_ms"] > 0 and "times_faster" not in found


@pytest.mark.slow
def test_a_rehearsed_training_and_decoding_give_equal_bits():
    found = found_by("determinism")
    equal, _, arrays = found["training_equal_arrays"].partition(" of ")
    assert equal == arrays and found["decoding_is_equal"]


def test_shapes_for_an_accelerator_are_networks_and_prompts_are_longer_than_in_a_rehearsal():
    models = {name: gpu_networks.model_of("full", name) for name in gpu_networks.SHAPES["full"]}
    flash = [name for name, model in models.items() if model.decoder.attention == "cudnn"]
    assert flash == ["gpt2-small-cudnn", "llama-1b-cudnn"]
    assert {name.removesuffix("-cudnn") for name in flash} <= models.keys()
    prompts = {size: gpu_networks.PROMPT_AND_NEW[size][0] for size in gpu_networks.SHAPES}
    assert prompts["full"] > prompts["tiny"]


def test_parts_are_asked_for_by_their_names_or_what_they_begin_with():
    known = list(gpu.parts_of("full"))
    assert known[:2] == ["evaluation", "decoding-8"]
    steps = [name for name in known if name.startswith("step-")]
    of_steps = known.index("peak") + 1  # MFU is a share of it
    assert known[of_steps : of_steps + len(steps)] == steps
    assert known.index("eager-bfloat16") < of_steps < known.index("stage-evaluate")
    assert parts.chosen("evaluation,step", known) == ["evaluation", *steps]
    assert parts.chosen("rows-16,rows", known)[:2] == ["rows-16", "rows-32"]
    assert parts.chosen("", known) == known
    with pytest.raises(ValueError, match="there is no part 'steps'; there are evaluation"):
        parts.chosen("steps", known)


@pytest.mark.slow
def test_steps_at_one_call_are_counted_as_many(monkeypatch):
    def in_turn(calls, rounds):
        return {name: float(name) for name in calls if not calls[name]()}

    taken = []
    monkeypatch.setattr(gpu_networks, "AT_ONCE", (1, 4))
    monkeypatch.setattr(measuring, "in_turn", in_turn)
    monkeypatch.setattr(measuring, "seconds", lambda call: taken.append(call()))
    found = found_by("dispatch")
    assert taken == [8, 8]  # of each, four steps to compile and four that were timed
    assert found == {
        "1_at_once_steps_per_second": 4.0,  # four steps in a second
        "4_at_once_steps_per_second": 1.0,
        "times_faster": 0.25,
    }


def test_a_part_that_takes_too_long_or_fails_costs_only_itself():
    hung = parts.run_part(parts_that_fail.parts_of, "tiny", "hangs", limit=10.0)
    assert hung["figure"] == 1 and hung["failed"] == "took longer than 10 s"
    assert is_gone(hung["started"])
    broken = parts.run_part(parts_that_fail.parts_of, "tiny", "breaks", 60.0)
    assert broken["figure"] == 2 and broken["failed"] == "ValueError: broken"
    assert broken["at"].startswith("parts_that_fail.py:")


def is_gone(process):
    """True once a process has ended, and nobody but its parent's heir has yet to hear of it."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_no_part_begins_after_the_time_of_all():
    now = time.perf_counter()
    found = parts.run(parts_that_fail.parts_of, "tiny", {"breaks": 60.0}, now, None)
    assert found == [{"part": "breaks", "skipped": "the time of all parts was over"}]
