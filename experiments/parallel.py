"""Units of work side by side in processes, each on one core, with a progress bar each.

Small networks do not fill several cores, but independent trainings do. On a machine with an
accelerator, or with `workers=1`, the units run one after the other in this process instead.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing import connection, util
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.interrupts import not_passed_on
from experiments.terminal import quiet_libraries
from ilql_jax.disk import disk_error
from ilql_jax.errors import UserError
from ilql_jax.progress import ProgressBars

# done, total (or None where unknown), what to show behind the bar
Report = Callable[[int, int | None, str], None]


_SECONDS_TO_END = 5.0  # of a worker that was told to; then it is killed
_SECONDS_TO_READ = 2.0  # what was sent before a worker died; then its death is told
_PROGRAMS = "JAX_COMPILATION_CACHE_DIR"


class WorkerError(UserError, RuntimeError):
    """A unit failed; carries the message of what happened there."""


def message_of(error: BaseException, place: str | Path = "") -> str | None:
    """The message of an error that is written for the user; None for a bug: it needs a traceback.

    Args:
        error: Any.
        place: Folder that is named where a disk's error names none.
    """
    if isinstance(error, UserError):
        return str(error)
    if (found := disk_error(error, place)) is not None:
        return str(found)
    return str(error) if isinstance(error, FileNotFoundError) else None


def workers_for(requested: int, units: int) -> int:
    """Number of processes; 0 = none beside this one, as asked or where there is an accelerator.

    It does not matter for the results how many units are left to do: a process has one thread
    also when it is the only one.
    """
    if requested == 1:
        return 0
    if requested:
        return min(requested, units)
    import jax

    if jax.default_backend() != "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Where the last would run alone, a few more processes than cores share them evenly instead;
    # else they would only take more memory.
    return units if units % cores and units <= 2 * cores else min(units, cores)


def run_units(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    names: Sequence[str],
    workers: int,
    console: Console,
    after: Sequence[Collection[int]] = (),
) -> list[Any]:
    """Calls `function(*arguments[i], report)` for each i, with a bar for each.

    Args:
        function: Importable by name; `report(done, total, note)` moves its bar.
        arguments: Picklable arguments of each unit. Of those that may begin, the first one does.
        names: Names of the bars.
        workers: Processes; 0 runs everything here.
        console: Console that shows the bars.
        after: Indices of the units that have to be done before each one; empty = none has to.

    Returns:
        The results, in order.

    Raises:
        WorkerError: A unit failed in its process; the others are stopped.
        ValueError: Units wait for each other.
    """
    if not arguments:
        return []
    units = _Units(arguments, after or [()] * len(arguments))
    with ProgressBars(console) as bars:
        tasks = [bars.add_task(name, start=False, total=None, note="waiting") for name in names]

        def show(index: int, done: int, total: int | None, note: str) -> None:
            if done < bars.tasks[index].completed:  # a unit's next part, with a time of its own
                bars.reset(tasks[index])
            bars.update(tasks[index], completed=done, total=total, note=note)

        if workers == 0:
            while (index := units.next()) is not None:
                bars.reset(tasks[index], note="")
                report = functools.partial(show, index)
                units.results[index] = function(*arguments[index], report)
        else:
            _run_in_processes(function, units, workers, show, bars, tasks)
    return [units.results[index] for index in range(len(arguments))]


class _Units:
    """Units that wait, and the results of those that are done."""

    def __init__(self, arguments: Sequence[tuple], after: Sequence[Collection[int]]):
        self.arguments = arguments
        self.results: dict[int, Any] = {}
        self.waiting = list(range(len(arguments)))
        self._after = [frozenset(each) for each in after]
        left = {*self.waiting}
        while begin := {each for each in left if not self._after[each] & left}:
            left -= begin
        if left:
            raise ValueError(f"units wait for each other: {sorted(left)}")

    def next(self) -> int | None:
        """Takes the first unit that may begin; None = none may, yet or any more."""
        done = self.results.keys()
        index = next((each for each in self.waiting if self._after[each] <= done), None)
        if index is not None:
            self.waiting.remove(index)
        return index


def _run_in_processes(
    function: Callable[..., Any], units: _Units, workers: int, show, bars, tasks
) -> None:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    running: dict[int, _Worker] = {}  # by the index of the unit that it works at
    idle: list[_Worker] = []
    died: float | None = None  # when it was seen
    try:
        while True:
            while len(running) < workers and (index := units.next()) is not None:
                bars.reset(tasks[index], note="" if idle else "starting")
                if idle:
                    running[index] = idle.pop()
                else:
                    running[index] = _Worker(context, function, messages)
                    running[index].start()
                running[index].take(index, units.arguments[index])
            if not units.waiting:
                while idle:
                    idle.pop().end()
            if not running:
                break
            problem = _death(running)  # looked for each time: others may report without a pause
            died = None if problem is None else died or time.monotonic()
            # Read first what was sent before: the reason, or the result of the one that died.
            if problem and died and time.monotonic() - died > _SECONDS_TO_READ:
                raise WorkerError(problem)
            try:
                kind, index, content = messages.get(timeout=0.5)
            except queue.Empty:
                if problem:
                    raise WorkerError(problem) from None
                continue
            if kind == "report":
                show(index, *content)
            elif kind == "result":
                units.results[index] = content
                idle.append(running.pop(index))
            else:
                raise WorkerError(content)
    finally:
        left = [*running.values(), *idle]
        for worker in left:
            worker.stop()
        for worker in left:
            worker.kill()


class _Worker:
    """A process that does one unit after the other.

    What a unit has imported, traced and read need not be done again for the next.
    """

    def __init__(self, context, function: Callable[..., Any], messages):
        self._theirs, ours = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._units, self._stop = ours
        arguments = (function, messages, *self._theirs)
        self.process = context.Process(target=_work, args=arguments, daemon=True)

    def start(self) -> None:
        with not_passed_on(), _programs_shared():
            self.process.start()
        for end in self._theirs:
            end.close()

    def take(self, index: int, arguments: tuple) -> None:
        """Gives it a unit, once it is done with the one before."""
        with contextlib.suppress(BrokenPipeError):  # it has died, which is told elsewhere
            self._units.send((index, arguments))

    def end(self) -> None:
        """Ends it, when there is no unit left."""
        self._units.close()
        self.process.join()
        self._stop.close()

    def stop(self) -> None:
        """Tells it to end at once."""
        self._stop.close()

    def kill(self) -> None:
        """Makes sure that it has ended, after `stop`."""
        self.process.join(_SECONDS_TO_END)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _programs_shared() -> Iterator[None]:
    """Lets workers that start here use what others of this process's workers have compiled.

    Much of it is the same: the networks of a run speak by the same programs. Where the environment
    names a folder for them, that one is used.
    """
    if _PROGRAMS in os.environ:
        yield
        return
    os.environ[_PROGRAMS] = _folder_of_programs().name
    try:
        yield
    finally:
        del os.environ[_PROGRAMS]


@functools.cache
def _folder_of_programs() -> tempfile.TemporaryDirectory:
    """A folder that this user alone can read and write, gone when this process ends."""
    return tempfile.TemporaryDirectory(prefix="programs-", ignore_cleanup_errors=True)


def _work(function, messages, units, stop) -> None:
    """Runs in the worker process."""
    threading.Thread(target=_end_when_told, args=(stop,), daemon=True).start()
    # One thread a process: XLA would otherwise start as many as there are cores, in each.
    os.environ["NPROC"] = os.environ["PJRT_NPROC"] = "1"
    quiet_libraries()
    with contextlib.suppress(EOFError):
        while True:
            index, arguments = units.recv()
            _do(function, index, arguments, messages)


def _do(function, index: int, arguments: tuple, messages) -> None:
    try:
        result = function(*arguments, lambda *report: messages.put(("report", index, report)))
        messages.put(("result", index, result))
    except BaseException as error:
        place = next((each for each in arguments if isinstance(each, Path)), "")
        text = message_of(error, place) or traceback.format_exc()
        messages.put(("error", index, text))


def _end_when_told(stop) -> None:
    """Ends this process when the parent closes its end of the pipe, or is killed: it must not leave
    workers behind that write into its folder.

    At once, whatever XLA is doing; but the semaphores that libraries made are taken back.
    """
    connection.wait([stop])
    util._run_finalizers(0)
    os._exit(1)


def _death(running: dict[int, _Worker]) -> str | None:
    """Message of a worker that ended at its unit; None = all live."""
    codes = (worker.process.exitcode for worker in running.values())
    code = next((code for code in codes if code is not None), None)
    if code is None:
        return None
    return (
        f"a worker process ended with exit code {code} (killed, or out of memory). Start again to "
        "go on. Less memory is needed with --config.workers=1; by trainings with a greater "
        "--config.train.gradient_accumulation; by conversations with a smaller "
        "--config.decoding.batch_size. Results stay the same, to rounding."
    )
