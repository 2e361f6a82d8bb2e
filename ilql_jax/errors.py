"""`UserError`: the base class of every error that a user can mend.

Its message names the value, the place and the way out, so command lines show it without a
traceback. All three floors derive theirs from it. It needs nothing but Python.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Bad input, or a limit that was reached; anything else that is raised is a bug of ours."""


def shown(value: object, most: int = 80, form: Callable[[object], str] = str) -> str:
    """The beginning of a value, for messages.

    Args:
        value: Whatever was given.
        most: Longest text.
        form: Writes it: `str` or `repr`.
    """
    try:
        text = form(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= most else text[: most - 1] + "…"


def place_of_function(function: Callable[..., Any], error: BaseException | None = None) -> str:
    """File and line of somebody's own function, for messages: " (FILE, line 3)"; "" = none known.

    Args:
        function: Function of their file.
        error: The last line of that file that it came through counts; None = where the function
            begins.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    lines = [code.co_firstlineno]
    if error is not None:
        file = Path(code.co_filename)
        frames = traceback.extract_tb(error.__traceback__)
        lines += [frame.lineno or 0 for frame in frames if Path(frame.filename) == file]
    return f" ({code.co_filename}, line {lines[-1]})"
