"""Writes files whole or not at all, so that a killed run leaves no half of one; reads them back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
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


def version_of(path: Path) -> tuple[int, int, int]:
    """Tells a file or folder from what it was before it was written again or replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


Write = Callable[[Iterable[str]], None]


@contextlib.contextmanager
def written_in_chunks(path: Path, chunk: int) -> Iterator[tuple[int, Write]]:
    """Opens a JSON Lines file that is written chunk by chunk, and goes on with one begun before.

    A killed process loses at most one chunk: until the end, what there is lies beside the file.

    Args:
        path: The file.
        chunk: Lines that are made together.

    Yields:
        The lines that are there already, and a function that writes those of a chunk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    done = _keep_whole_chunks(partial, chunk)
    with partial.open("a", encoding="utf-8") as file:

        def write(lines: Iterable[str]) -> None:
            file.write("".join(lines))
            file.flush()

        yield done, write
    partial.replace(path)


def _keep_whole_chunks(partial: Path, chunk: int) -> int:
    """Cuts an unfinished file back to whole chunks and returns how many lines it holds."""
    if not partial.exists():
        return 0
    lines = partial.read_bytes().split(b"\n")[:-1]  # what follows the last newline is cut off
    whole = next((i for i, line in enumerate(lines) if not _is_whole(line)), len(lines))
    keep = whole - whole % chunk
    os.truncate(partial, sum(len(line) + 1 for line in lines[:keep]))
    return keep


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


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
        told = f"Warning: {path} cannot be used ({said}), and is made again."
        console.print(told, style="yellow", markup=False, highlight=False)
        return None
