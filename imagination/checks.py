"""Checks of values that come from files: kinds of numbers, and errors that name place and field."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

from ilql_jax.errors import shown

MOST_REWARD = 1e30  # far inside of float32
MOST_TOTAL = 1e36  # of a dialogue: as many rewards as a line of 10 MB has room for

# Marks that turn the direction of writing around: they can make a text look like another.
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_finite(value: Any) -> bool:
    """True for numbers that a float holds, whole ones of many digits too; booleans are none."""
    largest = sys.float_info.max
    return _is_number(value, (int, float)) and -largest <= value <= largest


def is_reward(value: Any, most: float = MOST_REWARD) -> bool:
    """True for numbers that training can add up."""
    return is_finite(value) and -most <= value <= most


def is_whole(value: Any) -> bool:
    """True for whole numbers; booleans are none."""
    return _is_number(value, int)


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def require(
    condition: bool,
    error: type[Exception],
    place: str,
    field: str,
    value: Any,
    expected: str,
    way_out: str = "",
) -> None:
    """Raises `error` unless the condition holds.

    Args:
        condition: Result of the check.
        error: Class of the error.
        place: File and line, or another name of the record.
        field: Field of the record; "" for the record itself.
        value: Its value, of which the message shows the beginning.
        expected: Rule that it breaks, e.g. "a finite number".
        way_out: Further sentence of the message.
    """
    if not condition:
        where = f"{place}, field {field!r}" if field else place
        advice = f" {way_out}" if way_out else ""
        raise error(f"{where}: expected {expected}, got {shown(value)!r}.{advice}")


def without_surrogates(text: str) -> str:
    """Replaces lone surrogates (half an emoji), which UTF-8 cannot hold, by "?"."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def without_controls(text: str) -> str:
    """Replaces control characters other than line breaks by spaces; drops turning marks.

    A terminal or page that shows the text then shows nothing else than its letters.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if unicodedata.category(each) == "Cc" and each != "\n" else each
        for each in text
        if each not in _TURNING
    )
