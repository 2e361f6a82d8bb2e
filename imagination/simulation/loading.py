"""`load_world`: a world by name, by module, or from a file outside the repository."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

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
        The world; the same object for the same argument.

    Raises:
        WorldError: No such world, no world in it, or a world that contradicts itself.
    """
    name = os.fspath(name_or_path)
    return _load(str(Path(name).resolve()) if name.endswith(".py") else name)


@functools.cache
def _load(name: str) -> World:
    if name.endswith(".py"):
        module = _module_from_file(Path(name))
    elif name in WORLDS or "." in name:
        module = _import(WORLDS.get(name, name), name)
    else:
        raise WorldError(
            f"unknown world {name!r}. Known worlds: {', '.join(WORLDS)}; or give a dotted module "
            "or the path of a .py file that has WORLD."
        )
    world = getattr(module, "WORLD", None)
    if world is None and callable(make_world := getattr(module, "make_world", None)):
        world = make_world()
    if not isinstance(world, World):
        raise WorldError(
            f"{name}: no world in it (WORLD is {type(world).__name__}). Define WORLD = World(...) "
            "or make_world() that returns one."
        )
    validate(world)
    return world


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise WorldError(
            f"unknown world {name!r}: no module {error.name!r}. Known worlds: {', '.join(WORLDS)}; "
            "or give the path of a .py file that has WORLD."
        ) from None


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise WorldError(f"no world file {path}. Known worlds: {', '.join(WORLDS)}")
    spec = importlib.util.spec_from_file_location(f"imagination_world_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and named tuples of the file look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except WorldError:
        raise
    except Exception as error:
        raise WorldError(f"{path}: the file could not be run: {error!r}") from error
    return module
