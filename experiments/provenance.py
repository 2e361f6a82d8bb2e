"""`Session`: the command, code, versions and machine that made a stage of a run; for the report.

Each stage that did something adds a line to `sessions.jsonl`, one that was interrupted, too, so
that the seconds of a stage are those of all its sessions; trainings in an environment keep theirs
with their returns. Nothing there shapes a result. Of paths outside of this repository only
the last part is kept, and no name of a user or of a host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imagination.llm.secrets import without_secrets

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")  # in /dev

_AT_ONCE = 0.5  # seconds of a stage that finds all its files


@dataclasses.dataclass(frozen=True)
class Session:
    """One stage of a run, as it was made.

    Attributes:
        stage: Its name; of a training in an environment, its method.
        command: Command line.
        commit: Commit of the code, or its version where there is no repository.
        versions: Versions of Python and the libraries.
        machine: Processor, cores, memory and accelerators.
        date: Day and minute of its end, UTC.
        seconds: That it took in this process.
    """

    stage: str
    command: str
    commit: str
    versions: str
    machine: str
    date: str
    seconds: float


def session(stage: str, arguments: Sequence[str], seconds: float) -> Session:
    """The session of this process.

    Args:
        stage: That is done.
        arguments: `sys.argv`.
        seconds: That it took.
    """
    now = datetime.datetime.now(datetime.UTC)
    date = now.strftime("%Y-%m-%d %H:%M UTC")
    return Session(stage, command(arguments), commit(), versions(), machine(), date, seconds)


def record(path: Path, made: Session) -> None:
    """Adds a line to the sessions of a run, but for a stage that was done before."""
    if made.seconds < _AT_ONCE:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(made)) + "\n")


@contextlib.contextmanager
def recorded_if_interrupted(path: Path, stage: str, arguments: Sequence[str]) -> Iterator[None]:
    """Adds the session of a stage that an error or a person ends before it is done."""
    start = time.monotonic()
    try:
        yield
    except BaseException:
        # What ended the stage is told; where the disk is full, this cannot be kept.
        with contextlib.suppress(OSError):
            record(path, session(stage, arguments, time.monotonic() - start))
        raise


def read_sessions(path: Path) -> list[Session]:
    """The sessions of a run, in their order; lines that are damaged are left out."""
    if not path.exists():
        return []
    sessions = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            sessions.append(from_json(json.loads(line)))
        except (ValueError, RecursionError):
            continue
    return [each for each in sessions if each is not None]


def from_json(found: Any) -> Session | None:
    """The session that an object of JSON holds; None where it holds none."""
    names = [field.name for field in dataclasses.fields(Session)]
    try:
        known = {name: str(found[name]) for name in names}
        return Session(**{**known, "seconds": float(found["seconds"])})
    except (ValueError, TypeError, KeyError):
        return None


def together(sessions: Sequence[Session]) -> list[tuple[Session, str, str]]:
    """Sessions by command, code, versions and machine, in order of the first.

    Returns:
        Of each group the first session, its dates in words, and its stages with the seconds of all
        their sessions.
    """
    groups: dict[tuple[str, ...], list[Session]] = {}
    for each in sessions:
        key = (each.command, each.commit, each.versions, each.machine)
        groups.setdefault(key, []).append(each)
    shown = []
    for group in groups.values():
        dates = " to ".join(dict.fromkeys((group[0].date, group[-1].date)))
        seconds: dict[str, float] = {}
        for each in group:
            seconds[each.stage] = seconds.get(each.stage, 0.0) + each.seconds
        stages = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
        shown.append((group[0], dates, stages))
    return shown


def made_with(sessions: Sequence[Session]) -> str:
    """Sessions as Markdown that can be read in a terminal, too; "" where there are none."""
    said = [
        f"- `{first.command}` with commit {first.commit}, {first.versions}; {first.machine}; "
        f"{dates}; {stages}"
        for first, dates, stages in together(sessions)
    ]
    return "\n".join(["Made with:", "", *said, ""]) if said else ""


def command(arguments: Sequence[str]) -> str:
    """A command line as it can be shown: without folders outside of the repository and secrets."""
    program, *words = arguments
    shown = ["python", _shown_path(program), *map(_shown_word, words)]
    return without_secrets(shlex.join(shown))


def _shown_word(word: str) -> str:
    option, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + sign + ",".join(map(_shown_path, value.split(",")))


def _shown_path(text: str) -> str:
    path = Path(text)
    if not path.is_absolute() and not text.startswith("~"):
        return text
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return f".../{path.name}"


def commit() -> str:
    """Commit of the code, with a note where files were changed since; else its version."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return git("rev-parse", "--short=12", "HEAD") + (", changed since" if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return f"version {_version('ilql-jax')}"


def versions() -> str:
    """Versions of Python and the libraries."""
    libraries = (f"{name} {_version(name)}" for name in PACKAGES)
    return ", ".join((f"Python {platform.python_version()}", *libraries))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def machine() -> str:
    """Processor, cores that this process may use, memory and accelerators."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    parts = [
        f"{usable} of {os.cpu_count()} cores",
        _processor(),
        f"{memory / 1e9:.0f} GB of memory",
    ]
    if devices := accelerators():
        parts.append(f"accelerators: {len(devices)}")
    return ", ".join([*parts, platform.system()])


def accelerators() -> list[Path]:
    """Device files of accelerators, found without taking hold of one."""
    return [path for kind in _ACCELERATORS for path in Path("/dev").glob(kind)]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
