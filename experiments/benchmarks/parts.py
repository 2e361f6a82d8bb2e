"""Parts of a benchmark, each in a process of its own with its own limit.

A part yields figures as it finds them. One that fails, hangs or takes all memory leaves those that
it has found, and costs the parts after it nothing.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = Iterator[Mapping[str, Any]]
Part = Callable[[str], Found]  # of a size
PartsOf = Callable[[str], Mapping[str, Part]]  # importable: each process calls it


class Absent(Exception):
    """Something that a part needs is not on this machine."""


def chosen(asked: str, known: Sequence[str]) -> list[str]:
    """Names of the parts that are asked for; all where none is.

    Args:
        asked: Names with commas between; `step` is every part `step-...`.
        known: All names.

    Raises:
        ValueError: There is no such part.
    """
    found: dict[str, None] = {}
    for word in filter(None, asked.split(",")):
        named = [name for name in known if name == word or name.startswith(f"{word}-")]
        if not named:
            raise ValueError(f"there is no part {word!r}; there are {', '.join(known)}.")
        found |= dict.fromkeys(named)
    return list(found or known)


def run(
    parts_of: PartsOf,
    size: str,
    limits: Mapping[str, float],
    deadline: float,
    path: Path | None,
) -> list[dict[str, Any]]:
    """Runs parts one after the other; returns and writes what they found.

    Args:
        parts_of: Gives the parts of a size.
        size: Size of the parts.
        limits: Parts that are run, in this order, and seconds of each.
        deadline: By `time.perf_counter`; parts that have not begun then are skipped.
        path: File for the figures, a JSON object a line.
    """
    results: list[dict[str, Any]] = []
    best = None
    for name, limit in limits.items():
        left = deadline - time.perf_counter()
        if left > 0:
            result = {"part": name, **run_part(parts_of, size, name, min(limit, left))}
        else:
            result = {"part": name, "skipped": "the time of all parts was over"}
        if name == "peak":
            best = result.get("tflops")
        elif best and "tflops" in result:
            result["mfu"] = result["tflops"] / best
        results.append(result)
        tell(result, path)
    return results


def tell(result: Mapping[str, Any], path: Path | None) -> None:
    """Prints what a part found, and adds it to the file."""
    print("  ".join(f"{key} {_shown(value)}" for key, value in result.items()), flush=True)
    if path:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def run_part(parts_of: PartsOf, size: str, name: str, limit: float) -> dict[str, Any]:
    """Findings of a part, in a process that is killed after its limit, and why it ended early."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    target, arguments = _in_process, (parts_of, size, name, answers)
    process = context.Process(target=target, args=arguments, daemon=True)
    start = time.perf_counter()
    process.start()
    found: dict[str, Any] = {}
    try:
        while True:
            left = limit - (time.perf_counter() - start)
            was_alive = process.is_alive()
            try:
                # One that has ended may have answered in the last moment.
                answer = answers.get(timeout=max(0.01, min(0.5, left) if was_alive else 1.0))
            except queue.Empty:
                if not was_alive:
                    found["failed"] = f"ended with exit code {process.exitcode}"
                    break
                if left <= 0:
                    found["failed"] = f"took longer than {limit:.3g} s"
                    break
                continue
            if answer is None:
                break
            found |= answer
    finally:
        _kill_group(process)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def _kill_group(process: Any) -> None:
    """Ends a part and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # one that has no group of its own yet
    process.join()


def _in_process(parts_of: PartsOf, size: str, name: str, answers: Any) -> None:
    os.setpgid(0, 0)
    try:
        for found in parts_of(size)[name](size):
            answers.put(dict(found))
    except Absent as absent:
        answers.put({"skipped": str(absent)})
    except BaseException as error:
        line = str(error).strip().partition("\n")[0][:300]
        answers.put({"failed": f"{type(error).__name__}: {line}", "at": _where(error)})
    answers.put(None)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(f.filename).name}:{f.lineno}" for f in frames if "site-packages" not in f.filename
    ]
    return ours[-1] if ours else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
