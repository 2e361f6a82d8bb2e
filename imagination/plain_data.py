"""Plain data out of JSON that anybody may have written.

What makes a parser fail in its own words, or gives values that cannot be written again, is told
here with its place: numbers that no float holds, thousands of digits, nesting without end, halves
of signs, bytes that are no UTF-8, a key given twice, lines that fill the memory.
"""

from __future__ import annotations

import codecs
import datetime
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ilql_jax.errors import shown
from imagination.checks import is_finite, without_surrogates

MOST_BYTES = 10 * 2**20  # of one JSON line: `datasets` reads none that is longer
DEEPEST = 32  # lists and mappings inside of each other
_MOST_DIGITS = 300  # a float holds 308


class _Unplain(ValueError):
    """Its message says what is wrong, without the place."""


def json_lines(path: str | os.PathLike[str], error: type[Exception]) -> Iterator[tuple[str, Any]]:
    """Reads JSON Lines, one record at a time; empty lines are passed over.

    Args:
        path: The file.
        error: Class of the errors.

    Yields:
        Place ("file, line 3") and record. Numbers beyond floats come as infinite.

    Raises:
        FileNotFoundError: No such file.
        error: A line that is no JSON, or longer than `MOST_BYTES`; the message names it.
    """
    try:
        with Path(path).open("rb") as file:
            number = 0
            while line := file.readline(MOST_BYTES + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > MOST_BYTES:
                    raise error(
                        f"{where}: longer than {MOST_BYTES // 2**20} MB, the most of one dialogue. "
                        "Is every record on a line of its own? Split or drop this one."
                    )
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield where, parse_json(line, where, error)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}.") from None


def parse_json(content: bytes | str, where: str, error: type[Exception]) -> Any:
    """Parses one JSON text, with a byte order mark or without.

    Args:
        content: The text, or its bytes in UTF-8.
        where: Place of the text, for messages.
        error: Class of the errors.

    Returns:
        The value. Numbers beyond floats come as infinite, for the checks of their field.

    Raises:
        error: It is no JSON, or names a key twice in one object.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        # Without its end of line: what is missing is missing on this line, not in the next.
        text = text.rstrip("\r\n")
        return json.loads(text, parse_int=_whole, object_pairs_hook=_without_repeated)
    except UnicodeDecodeError as problem:
        problem_text = f"not valid UTF-8 ({problem.reason} at byte {problem.start})"
    except json.JSONDecodeError as problem:
        told = f"{problem.msg} at column {problem.colno}"
        problem_text = f"not valid JSON ({told}): {shown(text.strip())!r}"
    except RecursionError:
        problem_text = "lists or objects are nested too deep"
    except _Unplain as problem:
        problem_text = str(problem)
    raise error(f"{where}: {problem_text}. Repair or delete this line.")


def plain(value: Any, where: str, field: str, error: type[Exception]) -> Any:
    """Copies parsed JSON or YAML so that it can be written again: valid UTF-8, finite numbers.

    Args:
        value: As parsed.
        where: Place of the record, for messages.
        field: Name of the value in it.
        error: Class of the errors.

    Raises:
        error: Names the inner field at fault.
    """
    return _Copier(where, error).copy(value, field, 0)


class _Copier:
    """Copies plain values, and tells the place of the first that is none."""

    def __init__(self, where: str, error: type[Exception]):
        self._where, self._error = where, error

    def copy(self, value: Any, field: str, depth: int) -> Any:
        if isinstance(value, str):
            return without_surrogates(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            if not is_finite(value):
                self._fail(field, f"expected a finite number, got {shown(value)!r}")
            return value
        if isinstance(value, list | tuple | Mapping) and depth >= DEEPEST:
            self._fail(field, f"nested more than {DEEPEST} deep")
        if isinstance(value, list | tuple):
            return [
                self.copy(each, f"{field}[{index}]", depth + 1) for index, each in enumerate(value)
            ]
        if isinstance(value, Mapping):
            copied = {}
            for key, each in value.items():
                if not isinstance(key, str):
                    self._fail(field, f"the key {shown(key)!r} is no text; put it in quotes")
                inner = f"{field}.{key}" if field else key
                copied[without_surrogates(key)] = self.copy(each, inner, depth + 1)
            return copied
        kind = {datetime.date: "a date", datetime.datetime: "a time"}.get(type(value))
        kind = kind or f"a value of type {type(value).__name__}"
        self._fail(field, f"{kind} ({shown(value)}); if it is text, put it in quotes")

    def _fail(self, field: str, problem: str) -> None:
        named = f"field {field[:200]!r}" if field else ""
        place = ", ".join(filter(None, (self._where, named)))
        raise self._error(": ".join(filter(None, (place, problem))))


def _whole(digits: str) -> int | float:
    """Infinite where no float is as large, like 1e999 is; Python refuses 4,301 digits."""
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        (repeated, _), *_ = counts.most_common(1)
        raise _Unplain(f"the key {shown(repeated)!r} stands twice in one object")
    return record
