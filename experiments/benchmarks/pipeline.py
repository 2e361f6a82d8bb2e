"""Does the input ever keep a step waiting?

    python experiments/benchmarks/pipeline.py

Three figures, for the network of `experiments/config.py` and dialogues that fill its context: how
many times faster batches are made than steps eat them; how much longer the loop of `train.train`
takes than the same loop over a single batch that is there already, block by block in turn; and the
share of a profiler's trace of that loop in which the device had no step to run. A step is always
started before the metrics of the one before it are read.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks import measuring
from experiments.build import build
from experiments.config import base_config
from ilql_jax import DecoderConfig, ModelConfig, Trajectory, make_batches, packing_for
from ilql_jax.train_step import init_state, make_train_step

SIZES = {"default": (2000, 200), "tiny": (60, 10)}  # dialogues, steps timed
BLOCK = 10
CPU_STEP = "ThunkExecutor::Execute (wait for completion)"  # what XLA:CPU calls a program that runs


def make_dialogues(count: int, longest: int, vocab_size: int, seed: int = 0) -> list[Trajectory]:
    """Dialogues of a quarter of the longest and up, agent and human in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(longest // 4, longest, count):
        is_action = np.arange(length) // 6 % 2 == 1
        rewards = np.zeros(length, np.float32)
        rewards[np.flatnonzero(is_action)[-1]] = rng.normal()
        tokens = rng.integers(vocab_size, size=length).astype(np.int32)
        found.append(Trajectory(tokens, is_action, rewards))
    return found


def run(size: str) -> dict:
    """Seconds to make a batch and of a step; `waiting_share` is what the input adds to a step."""
    count, steps = SIZES[size]
    experiment = build(base_config())
    if size == "tiny":
        model = ModelConfig(DecoderConfig(97, 16, 1, 2, 32, 64), 16)
    else:
        model = experiment.network.shape(experiment.tokenizer.vocab_size)
    longest = model.decoder.max_positions
    dialogues = make_dialogues(count, longest, model.decoder.vocab_size)
    packing = packing_for(dialogues, experiment.batches.batch_rows, longest)
    batches = make_batches(dialogues, packing, 0)
    ilql = experiment.method("ilql")
    method, train = ilql.method, ilql.train
    step_function = make_train_step(model, method, train)
    state = init_state(model, method, train, 0)

    def one_step(batch) -> None:
        nonlocal state
        state, metrics = step_function(state, batch)
        jax.block_until_ready((state, metrics))

    ready = next(batches)
    one_step(ready)  # compiles
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    making = (time.perf_counter() - start) / steps

    def loop(source: Iterator) -> None:
        nonlocal state
        pending = None
        for _ in range(BLOCK):
            state, metrics = step_function(state, next(source))
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.block_until_ready((state, pending))

    sources = {"pipeline": batches, "one batch": itertools.repeat(ready)}
    blocks = {
        name: lambda source=source: measuring.seconds(lambda: loop(source)) / BLOCK
        for name, source in sources.items()
    }
    times = measuring.in_turn(blocks, rounds=-(-steps // BLOCK))
    idle = idle_share(lambda: loop(batches), BLOCK)
    return {
        "size": size,
        "seconds_per_batch": making,
        "seconds_per_step": times["one batch"],
        "seconds_per_step_with_input": times["pipeline"],
        "times_faster": times["one batch"] / making,
        "waiting_share": times["pipeline"] / times["one batch"] - 1,
        "idle_share": idle,
    }


def idle_share(run_steps: Callable[[], None], count: int) -> float:
    """Share of a trace, from its first step's start to its last one's end, without a step running.

    Args:
        run_steps: Runs that many steps and waits for them; nothing else on the device.
        count: Number of steps.

    Raises:
        RuntimeError: The steps are not in the trace, or more than they.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the loop down
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run_steps()
        file = next(Path(folder).rglob("*.xplane.pb"))
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        steps = sorted(
            (event.start_ns, event.end_ns)
            for plane in planes
            for line in plane.lines
            for event in line.events
            if line.name == "XLA Modules"  # a line of each GPU and TPU
            or (line.name.startswith("tf_XLAPjRtCpuClient") and event.name == CPU_STEP)
        )
    if len(steps) != count:
        raise RuntimeError(f"{len(steps)} steps are in the trace, but {count} were run.")
    waits = sum(max(0, next_start - end) for (_, end), (next_start, _) in itertools.pairwise(steps))
    return waits / (steps[-1][1] - steps[0][0])


def main() -> None:
    line = measuring.arguments(__doc__, size=tuple(SIZES))
    result = run(line.size)
    measuring.print_table(
        [
            {
                "ms to make a batch": 1e3 * result["seconds_per_batch"],
                "ms of a step": 1e3 * result["seconds_per_step"],
                "with the pipeline": 1e3 * result["seconds_per_step_with_input"],
                "times faster": result["times_faster"],
                "longer by": f"{result['waiting_share']:.1%}",
                "idle in the trace": f"{result['idle_share']:.2%}",
            }
        ]
    )
    measuring.write_json(line.json, result)


if __name__ == "__main__":
    main()
