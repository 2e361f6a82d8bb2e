"""Frozen dataclasses as JSON files, checked field by field when they are read.

    write(path, results)                        # results: a dataclass of plain values
    results = read(path, Results, "--stage=evaluate")

What a class may consist of: numbers, text, truth values, `X | None`, tuples, mappings by name, and
other such classes. NaN and infinity have no place in JSON: a value that does not exist is None.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.files import write_atomically
from ilql_jax.errors import UserError, shown
from imagination.checks import is_finite

T = TypeVar("T")


class ResultsError(UserError, ValueError):
    """A file of results that cannot be read; the message names file, field and way out."""


def write(path: Path, record: Any) -> None:
    """Writes a dataclass as JSON, whole or not at all."""
    content = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(path, content)


def read(path: Path, cls: type[T], stage: str) -> T:
    """Reads a file that `write` has written.

    Args:
        path: The file.
        cls: Class of what it holds. A field named `schema` has to be that of the class: files of
            another version are refused.
        stage: Command-line flag that writes the file, named in errors.

    Raises:
        ResultsError: Not JSON, another schema, or a field that is missing, unknown or of another
            type.
    """
    way_out = f"Delete the file and run {stage} again."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultsError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). {way_out}"
        ) from None
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not text ({error.reason}). {way_out}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits; lists in lists
        raise ResultsError(f"{path}: cannot be read ({shown(error)}). {way_out}") from None
    try:
        _check_schema(content, cls)
        return _parsed(content, cls, ())
    except _Problem as problem:
        place, text = problem.args
        where = f", field {'.'.join(place)}" if place else ""
        raise ResultsError(f"{path}{where}: {text}. {way_out}") from None


class _Problem(Exception):
    """(place, text): the path of keys to a wrong value, and what is wrong."""


def _check_schema(content: Any, cls: type) -> None:
    expected = {f.name: f.default for f in dataclasses.fields(cls)}.get("schema")
    found = content.get("schema") if isinstance(content, dict) else None
    if expected is not None and isinstance(content, dict) and found != expected:
        version = "no version" if found is None else f"version {found!r}"
        raise _Problem(("schema",), f"written with {version} of the format, not {expected}")


def _parsed(value: Any, hint: Any, place: tuple[str, ...]) -> Any:
    """The value as its annotation says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        [inner] = [each for each in arguments if each is not types.NoneType]
        return _parsed(value, inner, place)
    if origin is tuple:
        return _parsed_tuple(value, arguments, place)
    if origin in (Mapping, dict):
        entries = _expect(value, dict, "an object", place)
        return {key: _parsed(each, arguments[1], (*place, key)) for key, each in entries.items()}
    if dataclasses.is_dataclass(hint):
        return _parsed_record(value, hint, place)
    if hint is float:
        number = _expect(value, (int, float), "a number", place)
        if not is_finite(number):
            raise _Problem(place, f"expected a finite number, not {shown(number)}")
        return float(number)
    if hint is Any:
        return value
    return _expect(value, hint, {int: "a whole number", str: "text"}.get(hint, str(hint)), place)


def _parsed_tuple(value: Any, hints: tuple[Any, ...], place: tuple[str, ...]) -> tuple[Any, ...]:
    entries = _expect(value, list, "a list", place)
    if hints[1:] == (Ellipsis,):
        hints = hints[:1] * len(entries)
    elif len(hints) != len(entries):
        raise _Problem(place, f"expected {len(hints)} values, not {len(entries)}")
    return tuple(
        _parsed(each, hint, (*place, str(index)))
        for index, (each, hint) in enumerate(zip(entries, hints, strict=True))
    )


def _parsed_record(value: Any, cls: type, place: tuple[str, ...]) -> Any:
    entries = _expect(value, dict, "an object", place)
    hints = _hints(cls)
    if unknown := [key for key in entries if key not in hints]:
        raise _Problem((*place, unknown[0]), f"unknown; there are {', '.join(hints)}")
    if missing := [name for name in hints if name not in entries]:
        raise _Problem((*place, missing[0]), "missing")
    return cls(
        **{name: _parsed(entries[name], hint, (*place, name)) for name, hint in hints.items()}
    )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _expect(value: Any, kind: Any, name: str, place: tuple[str, ...]) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Problem(place, f"expected {name}, not {str(value)[:60]!r}")
    return value
