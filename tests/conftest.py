"""Compiling takes most of the tests' time: without XLA's optimizations, and once for all processes.

Networks here are tiny, so that optimizing their programs would not pay. Programs are kept in a
folder of this run (`JAX_COMPILATION_CACHE_DIR`, unless it is set) that worker processes and the
experiments they start share: much of what they compile is the same.
"""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import compiling
import pytest
import warm_start

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = compiling.flags(os.environ.get("XLA_FLAGS", ""))

_OWN_CACHE = ""
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _OWN_CACHE = tempfile.mkdtemp(prefix="jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN_CACHE
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

_OWN_FOLDER = warm_start.make_folder()

# Tracing allocates by the million what stays: looked through for garbage ten times as rarely, the
# suite takes a twentieth less time.
gc.set_threshold(7_000, 100, 100)

_LONG = ("test_sharding.py", "test_simulation.py")  # a minute and more


def pytest_unconfigure():
    """Removes the folders, in the process that made them (workers inherit the variables)."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)
    if _OWN_FOLDER:
        warm_start.remove(_OWN_FOLDER)


def pytest_collection_modifyitems(items):
    """Long files first: they must not be left for a single process at the end.

    Before whole runs those that need no program: the process that forks these is not ready yet.
    """
    items.sort(key=lambda item: (item.path.name not in _LONG, not _is_run(item)))


def pytest_collection_finish(session):
    """Begins what whole runs need as soon as a process knows that it has some to do."""
    if any(map(_is_run, session.items)) and not session.config.option.collectonly:
        warm_start.begin()


def _is_run(item) -> bool:
    return "runs" in item.path.parts


_left_in_memory = [2e9]  # bytes, after programs were forgotten last


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Forgets compiled programs when they fill memory: gigabytes slow the garbage collector.

    Not all of the memory comes back, and looking for garbage takes seconds: again only where half a
    gigabyte has been added since.
    """
    yield
    if "jax" in sys.modules and _resident_bytes() > _left_in_memory[0] + 0.5e9:
        sys.modules["jax"].clear_caches()
        gc.collect()
        _left_in_memory[0] = max(2e9, _resident_bytes())


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm")  # Linux alone; elsewhere nothing is forgotten
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0
