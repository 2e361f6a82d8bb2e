"""Number of processes that share the units of a stage."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments import parallel
from experiments.parallel import WorkerError, run_units, workers_for
from ilql_jax.errors import UserError


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are counted otherwise")
@pytest.mark.parametrize(
    ("units", "workers"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (5, 2), (40, 2)],
)
def test_units_are_shared_evenly_by_two_cores_with_no_more_processes_than_that_takes(
    units, workers, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert workers_for(0, units) == workers


def test_a_number_that_is_asked_for_counts_and_one_needs_no_other_process():
    assert (workers_for(3, 40), workers_for(3, 2), workers_for(1, 40)) == (3, 2, 0)


def process_of(number: int, report) -> tuple[int, int]:
    return number, os.getpid()


def test_a_process_does_one_unit_after_the_other():
    console = Console(file=io.StringIO())
    found = run_units(process_of, [(n,) for n in range(5)], list("abcde"), 2, console)
    assert [number for number, _ in found] == list(range(5))
    assert len({process for _, process in found}) <= 2
    assert os.getpid() not in {process for _, process in found}


FIRST, AFTER = 1, [(1,), (), (0,), (), (3,)]  # a unit may stand before one that it needs


def lists_what_is_done(number: int, folder: Path, waits: bool, report) -> list[str]:
    """Names of the units that are done; the first waits for those that need not wait for it."""
    for _ in range(600):
        if number != FIRST or not waits or all((folder / name).exists() for name in "34"):
            break
        time.sleep(0.05)
    done = sorted(path.name for path in folder.iterdir())
    (folder / str(number)).touch()
    return done


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_a_unit_begins_when_those_before_it_are_done_and_others_do_not_wait(workers, tmp_path):
    console = Console(file=io.StringIO())
    arguments = [(number, tmp_path, workers > 1) for number in range(5)]
    done = run_units(lists_what_is_done, arguments, list("abcde"), workers, console, AFTER)
    for number, before in enumerate(AFTER):
        assert set(map(str, before)) <= set(done[number])
    assert done[FIRST] == (["3", "4"] if workers > 1 else [])
    assert not multiprocessing.active_children()


def test_units_that_wait_for_each_other_are_told():
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match=r"units wait for each other: \[1, 2\]"):
        run_units(process_of, [(n,) for n in range(3)], list("abc"), 2, console, [(), (2,), (1,)])


def dies(number: int, report) -> None:
    if number == 2:
        os._exit(9)


def test_a_process_that_dies_at_a_later_unit_is_told():
    console = Console(file=io.StringIO())
    with pytest.raises(WorkerError, match="ended with exit code 9"):
        run_units(dies, [(n,) for n in range(4)], list("abcd"), 2, console)
    assert not multiprocessing.active_children()


def waits_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


def reports_or_dies(number: int, folder: Path, report) -> None:
    if number == 0:
        waits_for(folder / "reported")
        os._exit(9)
    for done in range(1200):  # a minute, if nobody notices
        report(done, None, "")
        (folder / "reported").touch()
        time.sleep(0.05)


def test_a_process_that_dies_is_told_while_others_report_all_the_time(tmp_path):
    console, begun = Console(file=io.StringIO()), time.monotonic()
    with pytest.raises(WorkerError, match="ended with exit code 9"):
        run_units(reports_or_dies, [(0, tmp_path), (1, tmp_path)], list("ab"), 2, console)
    assert time.monotonic() - begun < 50


def tells_or_dies(number: int, folder: Path, report) -> None:
    if number == 0:
        waits_for(folder / "told")
        os._exit(9)
    (folder / "told").touch()
    raise UserError("the disk is full")


def test_an_error_that_was_told_comes_before_a_death(tmp_path, monkeypatch):
    """Both are there when the parent looks."""
    real = parallel._death
    monkeypatch.setattr(parallel, "_death", lambda running: waits_for_death(running, real))
    console = Console(file=io.StringIO())
    with pytest.raises(WorkerError, match="the disk is full"):
        run_units(tells_or_dies, [(0, tmp_path), (1, tmp_path)], list("ab"), 2, console)


def waits_for_death(running, real) -> str | None:
    if len(running) == 2:
        running[0].process.join()
        time.sleep(0.5)  # of the other one, to tell
    return real(running)


def ends_once_done(number: int, folder: Path, report) -> None:
    if number == 0:  # done; its process has nothing to do until the second unit is
        threading.Timer(0.2, lambda: [(folder / "dead").touch(), os._exit(9)]).start()
    elif number == 1:
        waits_for(folder / "dead")
        time.sleep(0.5)


def test_a_process_that_dies_while_it_waits_is_told_with_its_next_unit(tmp_path):
    console = Console(file=io.StringIO())
    units = [(number, tmp_path) for number in range(4)]
    with pytest.raises(WorkerError, match="ended with exit code 9"):
        run_units(ends_once_done, units, list("abcd"), 2, console, [(), (), (1,), (1,)])


def folder_of_programs(report) -> tuple[str, int]:
    import jax

    folder = jax.config.jax_compilation_cache_dir
    return folder, Path(folder).stat().st_mode & 0o777


def in_workers() -> list[tuple[str, int]]:
    console = Console(file=io.StringIO())
    return run_units(folder_of_programs, [(), ()], ["a", "b"], 2, console)


def test_workers_share_what_they_compile_in_a_folder_of_their_own(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (first, mode), other = in_workers()
    assert other == (first, 0o700) and mode == 0o700
    assert in_workers()[0][0] == first and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_workers_use_the_folder_of_programs_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert {folder for folder, _ in in_workers()} == {str(tmp_path)}
