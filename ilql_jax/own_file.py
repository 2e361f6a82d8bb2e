"""`defined_in`: a name that a Python file of somebody's own defines."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ilql_jax.errors import UserError, shown


def defined_in(path: str | Path, name: str, error_type: type[UserError]) -> Any:
    """Executes a .py file and returns what it defines under a name.

    Args:
        path: Path of the file. Give only files that are trusted: it is run.
        name: In capitals, e.g. METHOD.
        error_type: Raised for a file that is not there, that raises, or that does not define it;
            the message has the path.
    """
    try:
        path = Path(path).expanduser().resolve()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, an unknown ~user
        is_file = False
    if not is_file:
        raise error_type(f"{shown(path, 300)}: no such file. Name a .py file that defines {name}.")
    # A name of its own for each file: dataclasses look their module up by it.
    module_name = f"own_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise error_type(f"{path} is no Python file. Name a .py file that defines {name}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise error_type(f"{path}: {type(error).__name__}: {error}") from error
    if getattr(module, name, None) is None:
        raise error_type(f"{path} defines no {name}. Assign it there.")
    return getattr(module, name)
