"""Shared by the benchmarks: timing in turn, one process a side, tables, JSON.

Two things that are compared are always timed in turn, one round of each after the other, so that
whatever else the machine does meets both alike; what is reported is the ratio of the medians.
Sides in processes of their own are timed in seconds of their core, which other work on the machine
lengthens least.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def arguments(doc: str, **flags: Any) -> argparse.Namespace:
    """Parses the command line: `--json=PATH`, and one flag for each default given here."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="", help="also write the figures to this file")
    for name, default in flags.items():
        choices = default if isinstance(default, tuple) else None
        default = choices[0] if choices else default
        parser.add_argument(f"--{name}", default=default, type=type(default), choices=choices)
    return parser.parse_args()


def in_turn(steps: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Times steps in turn; returns the median of the seconds that each returns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(step())
    return {name: statistics.median(each) for name, each in times.items()}


def seconds(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Side:
    """One of the things compared, in a process of its own with one thread.

    Args:
        make: Builds it there: called with `arguments`, returns a function without arguments that
            does one step and returns plain numbers. It has to be importable, and to import what it
            needs itself, since the process is bound to its core before.
        arguments: Picklable.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any):
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._pipe = ours
        with _one_thread():
            self._process.start()
        theirs.close()
        self._answer()  # that it is built: what that takes for a while is not taken twice at once

    def step(self) -> tuple[float, Any]:
        """Seconds of processor time of one step, and what it returned."""
        return self._ask("step")

    def seconds(self) -> float:
        return self.step()[0]

    def forget_peak(self) -> None:
        """From now on, `peak_memory` counts what comes."""
        self._ask("forget")

    def peak_memory(self) -> int:
        """Most bytes of the process that were in memory."""
        return self._ask("peak")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send("end")
        self._process.join()

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(
                f"a side of the benchmark ended (exit code {self._process.exitcode}): its error "
                "stands above; -9 and none there means that memory ran out."
            ) from None


@contextlib.contextmanager
def _one_thread():
    """Environment for a process that is started inside."""
    before = dict(os.environ)
    os.environ.update(
        OMP_NUM_THREADS="1",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"{before.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip(),
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Any, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step = make(*arguments)
    pipe.send("built")
    while (asked := pipe.recv()) != "end":
        if asked == "step":
            start = time.process_time()
            result = step()
            pipe.send((time.process_time() - start, result))
        elif asked == "forget":
            _give_back_freed()
            # What the kernel counts as the most so far starts again from what is there now.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            pipe.send(None)
        else:
            pipe.send(peak_memory())


def _give_back_freed() -> None:
    """Returns freed memory to the kernel, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Peak memory of this process alone; `getrusage` includes the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """As Markdown, so that it can be put into a page as it is."""
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_shown(row[column]) for column in columns)} |")


def _shown(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if (isinstance(value, (int, float)) and not isinstance(value, bool))
        else str(value)
    )


def write_json(path: str, result: Mapping[str, Any]) -> None:
    """Figures with the machine, the date and the versions they are of; nothing if no path."""
    if not path:
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**result, "measured": circumstances()}, indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """Date, processor and versions of a measurement."""
    versions = {}
    for name in ("jax", "flax", "optax", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
