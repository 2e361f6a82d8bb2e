"""Writes files whole or not at all, so that a killed run leaves no half of one; reads them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ilql_jax.errors import UserError

Found = TypeVar("Found")

# What a file of somebody else's, or one that a disk has spoiled, may raise when it is read.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) under another name beside it and then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's error names none
        raise
    partial.replace(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        ValueError: It holds something else.
        OSError: It cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {str(found)[:40]!r}, no JSON object")
    return found


def read_or_none(path: Path, read: Callable[[], Found], console: Console) -> Found | None:
    """Content of a file that can be made again; None where it is not there, or is damaged.

    Args:
        path: The file.
        read: Reads it, perhaps with others beside it.
        console: Told of damage.
    """
    if not path.exists():
        return None
    try:
        return read()
    except (*DAMAGE, UserError, FileNotFoundError) as error:
        said = (str(error) or repr(error)).splitlines()[0][:200]
        told = f"Warning: {path} is damaged ({said}), and is made again."
        console.print(told, style="yellow", markup=False, highlight=False)
        return None
