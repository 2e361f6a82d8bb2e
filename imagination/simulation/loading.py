"""`load_world`: a world by name, by module, or from a file outside the repository."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ilql_jax.errors import shown
from imagination.simulation.guard import guarded
from imagination.simulation.validation import validate
from imagination.simulation.world import World, WorldError

WORLDS = {
    "teaching": "imagination.simulation.teaching",
    "travel": "imagination.simulation.travel",
    "persuasion": "imagination.simulation.persuasion",
    "counseling": "imagination.simulation.counseling",
}


def load_world(name_or_path: str | os.PathLike[str]) -> World:
    """Loads a world and checks it.

    Args:
        name_or_path: A name in `WORLDS`, a dotted module, or the path of a Python file.
            A module or file has `WORLD`, a `World`, or `make_world()`, which returns one.

    Returns:
        The world; the same object for the same argument. Functions of one that is not of this
        package are guarded: what goes wrong in them later is a `WorldError` too.

    Raises:
        WorldError: No such world, no world in it, or a world that contradicts itself.
    """
    name = os.fspath(name_or_path)
    try:
        return _load(str(Path(name).resolve()) if name.endswith(".py") else name)
    except (OSError, ValueError) as error:  # a path that no file can have
        if isinstance(error, WorldError):
            raise
        raise WorldError(f"no world file {shown(name, 300)!r} ({error}).") from None


@functools.cache
def _load(name: str) -> World:
    if name.endswith(".py"):
        module = _module_from_file(Path(name))
    elif name in WORLDS or "." in name:
        module = _import(WORLDS.get(name, name), name)
    else:
        raise WorldError(
            f"unknown world {shown(name)!r}. Known worlds: {', '.join(WORLDS)}; or give a dotted "
            "module or the path of a .py file that has WORLD."
        )
    world = getattr(module, "WORLD", None)
    what = "WORLD"
    if world is None and callable(make_world := getattr(module, "make_world", None)):
        what = "what make_world() returned"
        with _told(f"{name}: make_world()"):
            world = make_world()
    if not isinstance(world, World):
        raise WorldError(
            f"{name}: no world in it ({what} is {type(world).__name__}). Define WORLD = World(...) "
            "or make_world() that returns one."
        )
    validate(world)
    return world if name in WORLDS else guarded(world)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of somebody's code, and the end that it puts to the process, as `WorldError`."""
    try:
        yield
    except WorldError:
        raise
    except (Exception, SystemExit) as error:
        raise WorldError(f"{what} could not be run: {shown(error, 300, repr)}") from error


def _import(module: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in module.split(".")):
        raise WorldError(
            f"world {shown(name)!r} is neither a module (a dotted name) nor the path of a .py "
            f"file. Known worlds: {', '.join(WORLDS)}"
        )
    try:
        with _told(f"module {name!r}"):
            return importlib.import_module(module)
    except WorldError as problem:
        error = problem.__cause__
        is_missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if not is_missing or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise WorldError(
            f"unknown world {name!r}: no module {error.name!r}. Known worlds: {', '.join(WORLDS)}; "
            "or give the path of a .py file that has WORLD."
        ) from None


def _module_from_file(path: Path) -> ModuleType:
    try:
        is_file = path.is_file()
    except OSError:  # a name too long
        is_file = False
    if not is_file:
        raise WorldError(f"no world file {shown(path, 300)}. Known worlds: {', '.join(WORLDS)}")
    spec = importlib.util.spec_from_file_location(f"imagination_world_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and named tuples of the file look their module up by name.
    sys.modules[spec.name] = module
    with _told(f"{path}: the file"):
        spec.loader.exec_module(module)
    return module
