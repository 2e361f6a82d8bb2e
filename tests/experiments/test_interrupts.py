"""Ctrl-C and SIGTERM while libraries are imported, while it runs, and with workers beside it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import SMALLEST

from experiments import interrupts, launch
from experiments.parallel import run_units

ROOT = Path(__file__).parents[2]
TOLD = "Stopped. The same command goes on from here."


def stopped(number: int, until, folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Sends a signal to an experiment and its workers, as a terminal does; status and lines."""
    process = subprocess.Popen(
        [sys.executable, "experiments/teaching.py", f"--workdir={folder}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        start_new_session=True,
    )
    while not until(process.pid):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, [line for line in output.splitlines() if line.strip()]


def is_caught(process: int, number: int) -> bool:
    """True if a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    [caught] = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells handlers by /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_libraries_are_imported(tmp_path, number, status):
    """Sent when `experiments` begins to be imported: nobody else handles SIGTERM so early."""

    def until(process: int) -> bool:
        return is_caught(process, signal.SIGTERM)

    assert stopped(number, until, tmp_path / "run", "--stage=imagine") == (status, [TOLD])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_while_workers_train(tmp_path):
    """Sent when they have begun, with loggers open that have semaphores of their own."""
    folder = tmp_path / "run"
    arguments = (*SMALLEST, "--config.workers=2", "--config.seeds=2", "--stage=train")

    def until(_: int) -> bool:
        return (folder / "metrics" / "bc-seed0.jsonl").exists()

    found, lines = stopped(signal.SIGINT, until, folder, *arguments)
    assert found == 130
    assert lines[-1] == TOLD and lines.count(TOLD) == 1
    assert not [x for x in lines if "Traceback" in x or "leaked" in x or "Error" in x], lines


def signals_its_parent(number: int, report) -> None:
    """Work of a minute that has the process stopped which waits for it; with 0 it does not."""
    if number:
        os.kill(os.getppid(), number)
    time.sleep(60)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_while_workers_work(number, status, capfd):
    """Sent by one of them as it begins, while the other may still start."""
    with pytest.raises(SystemExit) as ended, launch.told_errors() as console:
        run_units(signals_its_parent, [(number,), (0,)], ["a", "b"], 2, console)
    assert ended.value.code == status
    assert not multiprocessing.active_children()
    output = "".join(capfd.readouterr())
    assert output.count(TOLD) == 1 and "Traceback" not in output and "Error" not in output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noticed_and_handlers_are_put_back(number, status):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), interrupts.noticed() as stop:
        signal.raise_signal(number)
    assert stop.status == status
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_garbage_is_collected_is_not_lost(number, status):
    came = []

    def collected(phase: str, _) -> None:
        if not came:
            came.append(phase)
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt), interrupts.noticed() as stop:
        gc.callbacks.append(collected)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(collected)
        time.sleep(60)
    assert came == ["start"] and stop.status == status


def test_importing_from_experiments_changes_no_handler():
    assert not interrupts.is_experiment()


ROOT = Path(__file__).parents[2]
PROGRAMS = [
    path
    for folder in ("experiments", "experiments/benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "experiments import" in path.read_text() and '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_that_tells_its_errors_is_known_as_one(path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(path), raising=False)
    source = path.read_text()
    assert interrupts.is_experiment() == ("launch" in source or "in_environment" in source)
