"""Starts Python programs from a process that has imported what experiments need.

The imports of an experiment take four seconds of CPU time, and the suite starts some 150 of them.
`run` forks each from one process per test worker that has imported them and solved the world that
most use, and has no device and no random state yet. Everything after that is as in a program of
its own: its arguments, environment, folder, output and exit status.

JAX reads its environment when it is imported. A program that is to see other `JAX_*` variables
than the test session is started cold, as is one that is to be killed (`subprocess.Popen`).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from children import exit_status

ROOT = Path(__file__).parents[2]
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
    python, *arguments = map(str, command)
    settings = {"cwd": cwd, "env": dict(env), "timeout": timeout}
    if python != sys.executable or not arguments[0].endswith(".py") or _of_jax(env) != _of_jax():
        return subprocess.run(command, capture_output=True, text=True, input=input, **settings)
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        files = {name: str(Path(folder, name)) for name in ("stdin", "stdout", "stderr")}
        Path(files["stdin"]).write_text(input)
        asked = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "timeout": timeout}
        status = _ask(asked | files)
        stdout, stderr = (Path(files[name]).read_text() for name in ("stdout", "stderr"))
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(command, status, stdout, stderr)


def _of_jax(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("JAX_")}


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    atexit.register(process.kill)
    return process


def _ask(asked: Mapping[str, object]) -> int | None:
    server = _server()
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> None:
    """Forks a program per line of standard input, and answers with its exit status."""
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
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes to the tests
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
        answers.write(json.dumps(exit_status(child, asked["timeout"])) + "\n")
        answers.flush()


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
    _serve()
