"""Starts Python programs from a process that has imported what experiments need.

The imports of an experiment take four seconds of CPU time, its world ten more to be solved, and
the suite starts some 150 of them. `run` and `start` have each forked from one process, the same
for all test workers, that has imported them and solved the world that most use, and has no device
and no random state yet. Everything after that is as in a program of its own: its arguments,
environment, folder, output and exit status.

JAX reads its environment when it is imported. A program that is to see other `JAX_*` variables
than the test session is started cold.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[2]
FOLDER = "TESTS_WARM_START"  # the variable that names the folder of the process that forks
IMPORTED = (
    "experiments.launch",
    "experiments.stages.chat",
    "experiments.stages.evaluate",
    "experiments.stages.export",
    "experiments.stages.imagine",
    "experiments.stages.regenerate",
    "experiments.stages.report",
    "experiments.stages.train",
    "anthropic",
    "scipy.stats",
)


class Program(Protocol):
    """A program that was started; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


def run(
    command: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str],
    input: str = "",
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """Runs `[sys.executable, FILE, *arguments]` to its end; output is captured as text.

    Raises:
        subprocess.TimeoutExpired: It took longer than `timeout` seconds, and was killed.
    """
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        files = {name: Path(folder, name) for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(input)
        program = _started(command, cwd, env, files)
        try:
            status = program.wait(timeout)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            raise
        stdout, stderr = (files[name].read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(command, status, stdout, stderr)


def start(command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str]) -> Program:
    """Starts `[sys.executable, FILE, *arguments]`, which is to be killed; its output is lost."""
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), Path(os.devnull))
    return _started(command, cwd, env, nowhere)


def _started(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], files: Mapping[str, Path]
) -> Program:
    python, *arguments = map(str, command)
    if python != sys.executable or not arguments[0].endswith(".py") or _of_jax(env) != _of_jax():
        with contextlib.ExitStack() as opened:
            modes = {"stdin": "r", "stdout": "w", "stderr": "w"}
            streams = {
                name: opened.enter_context(path.open(modes[name])) for name, path in files.items()
            }
            return subprocess.Popen(command, cwd=cwd, env=dict(env), **streams)
    names = {name: str(path) for name, path in files.items()}
    return _Forked({"arguments": arguments, "cwd": str(cwd), "env": dict(env)} | names)


def _of_jax(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("JAX_")}


class _Forked:
    """A program that the forking process has started: its end of the connection."""

    def __init__(self, asked: Mapping[str, object]):
        self._connection = _connection()
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        self._answers = self._connection.makefile()
        self.pid = json.loads(self._answers.readline())["pid"]
        self._status: int | None = None

    def poll(self) -> int | None:
        return self._status_within(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._status_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"program {self.pid}", timeout)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _status_within(self, seconds: float | None) -> int | None:
        if self._status is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(seconds):
                    self._status = json.loads(self._answers.readline())["status"]
                    self._answers.close()
                    self._connection.close()
        return self._status


# --- the process that forks ----------------------------------------------------------------------


def make_folder() -> Path | None:
    """Makes the folder of a session of tests, in the process that begins it; None in others."""
    if FOLDER in os.environ:
        return None
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    (folder / "session").write_text(str(os.getpid()))
    os.environ[FOLDER] = str(folder)
    return folder


def remove(folder: Path) -> None:
    """Ends the process that forks, if one was needed, and removes its folder."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def begin() -> None:
    """Starts the process that forks, unless somebody has; it gets ready beside the first tests."""
    folder = Path(os.environ[FOLDER])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "pid").exists():
            process = subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
            (folder / "pid").write_text(str(process.pid))


def _connection() -> socket.socket:
    """A connection to the process that forks, once it is ready."""
    begin()
    folder = Path(os.environ[FOLDER])
    end = time.monotonic() + 300
    while not (folder / "socket").exists():
        assert time.monotonic() < end, "the process that forks did not start"
        time.sleep(0.05)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / "socket"))
    return connection


def _serve(folder: Path) -> None:
    """Forks a program per connection, says its process id, and its exit status at its end."""
    for name in IMPORTED:
        importlib.import_module(name)
    import transformers

    from imagination.simulation.loading import load_world
    from imagination.simulation.planning import reference_values

    for name in ("AutoTokenizer", "PreTrainedTokenizerFast"):
        getattr(transformers, name)  # imported when first used
    for population in ("average", "difficult"):
        # Kept by the function: programs find the world of most of them solved.
        reference_values(load_world("teaching"), population)
    # Programs never look for garbage in what is imported here, nor copy its pages to do so; and
    # elsewhere as rarely as the tests themselves (conftest.py).
    gc.collect()
    gc.freeze()
    gc.set_threshold(7_000, 100, 100)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "unnamed"))
    listener.listen()
    (folder / "unnamed").rename(folder / "socket")
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while _is_wanted(folder):
            if selector.select(0.01 if running else 1.0):
                connection, _ = listener.accept()
                with connection.makefile() as lines:
                    asked = json.loads(lines.readline())
                child = os.fork()
                if not child:
                    for each in (listener, connection, *running.values()):
                        each.close()
                    _become(asked)
                running[child] = connection
                _say(connection, {"pid": child})
            for child in list(running):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    _say(running[child], {"status": os.waitstatus_to_exitcode(status)})
                    running.pop(child).close()


def _is_wanted(folder: Path) -> bool:
    """False once the session that made the folder has ended, however it did."""
    try:
        os.kill(int((folder / "session").read_text()), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def _say(connection: socket.socket, answer: Mapping[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _become(asked: Mapping) -> None:
    """Turns this process into the program; never returns."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(asked[name], flags), number)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    program = asked["arguments"][0]
    sys.argv = list(asked["arguments"])
    sys.path[0] = str(Path(program).resolve().parent)
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
