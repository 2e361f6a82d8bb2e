"""`UserError`: the base class of every error that a user can mend.

Its message names the value, the place and the way out, so command lines show it without a
traceback. All three floors derive theirs from it. It needs nothing but Python.
"""

from __future__ import annotations

from collections.abc import Callable


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
