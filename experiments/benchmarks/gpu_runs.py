"""Parts of `gpu.py` that run `experiments/teaching.py`: training, its start, the evaluation."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from experiments.benchmarks import measuring
from experiments.benchmarks.parts import Found

ROOT = Path(__file__).parents[2]
CPU = {"JAX_PLATFORMS": "cpu"}
_TINY = (
    "--config.imagination.dialogues=100",
    "--config.train.steps=10",
    "--config.model.hidden_size=16",
    "--config.model.num_layers=1",
)
# Part -> what differs from the default run. Steps are the same with fewer dialogues, which are
# imagined in a few seconds; the start is not, so it has as many as the default.
FLAGS = {
    "full": {
        "teaching": ("--config.imagination.dialogues=3000", "--config.train.steps=300"),
        "start": ("--config.train.steps=30",),
        "evaluate": (
            "--config.imagination.dialogues=1000",
            "--config.train.steps=30",
            "--config.evaluation.validation_episodes=16",
            "--config.evaluation.average_episodes=64",
            "--config.evaluation.difficult_episodes=64",
            "--config.evaluation.diagnosed_episodes=0",
        ),
    },
    "tiny": {
        "teaching": _TINY,
        "start": _TINY,
        "evaluate": (
            *_TINY,
            "--config.evaluation.validation_episodes=2",
            "--config.evaluation.average_episodes=2",
            "--config.evaluation.difficult_episodes=2",
            "--config.evaluation.diagnosed_episodes=0",
        ),
    },
}


def teaching(size: str) -> Found:
    """Steps a second of one training of ILQL on teaching, and on the CPU (one thread) beside it."""
    with _imagined(FLAGS[size]["teaching"]) as imagined:
        for name, environment in (("", {}), ("cpu_", CPU)):
            first, steps = _train(imagined, environment)
            yield {f"{name}first_step_seconds": first, f"{name}steps_per_second": steps}


def start(size: str) -> Found:
    """Seconds from a process's start to the first finished step of a training on teaching."""
    with _imagined(FLAGS[size]["start"]) as imagined, tempfile.TemporaryDirectory() as cache:
        with (imagined / "dialogues.jsonl").open("rb") as lines:
            yield {"dialogues": sum(1 for _ in lines)}
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in ("cold", "cached"):
            yield {f"{name}_seconds": _train(imagined, environment)[0]}


def evaluate(size: str) -> Found:
    """The stage evaluate after a short training: its seconds, and the mean reward that it found."""
    with _imagined(FLAGS[size]["evaluate"]) as imagined:
        _train(imagined, {})
        trained = _trained_beside(imagined)
        yield {"seconds_of_stage": measuring.seconds(lambda: _launch(trained, "--stage=evaluate"))}
        found = json.loads((trained / "evaluation.json").read_text("utf-8"))["population"]
        yield {
            f"{name}_{figure}": population["methods"]["ilql"][figure]
            for name, population in found.items()
            for figure in ("episodes", "mean_reward")
        }


@contextlib.contextmanager
def _imagined(flags: Sequence[str]) -> Iterator[Path]:
    """A folder of the run `teaching` whose dialogues are imagined."""
    with tempfile.TemporaryDirectory() as folder:
        imagined = Path(folder) / "imagined"
        _launch(imagined, "--stage=imagine", "--config.methods=ilql", *flags, environment=CPU)
        yield imagined


def _trained_beside(imagined: Path) -> Path:
    """The folder that `_train` trains in."""
    return imagined.with_name("trained")


def _train(imagined: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds to the first step of a training, and steps a second after it."""
    workdir = _trained_beside(imagined)
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(imagined, workdir)
    log = workdir / "metrics" / "ilql-seed0.jsonl"
    every = "--config.train.log_every=1000000"  # but the first step and the last
    seen: list[float] = []
    begun = time.perf_counter()

    def watch() -> None:
        lines = log.read_text("utf-8").count("\n") if log.exists() else 0
        seen.extend([time.perf_counter() - begun] * (lines - len(seen)))

    _launch(workdir, "--stage=train", every, environment=environment, meanwhile=watch)
    steps = [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines()]
    last = steps.index(max(steps))  # what else is told of that step comes later
    return seen[0], (steps[last] - steps[0]) / (seen[last] - seen[0])


def _launch(
    workdir: Path,
    *flags: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Runs the experiment `teaching`, which has to succeed."""
    said = workdir.with_suffix(".txt")
    command = [sys.executable, "experiments/teaching.py", f"--workdir={workdir}", *flags]
    with said.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output
        )
        while process.poll() is None:
            meanwhile()
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"teaching: {said.read_text('utf-8').strip()[-280:]}")
