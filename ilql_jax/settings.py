"""Settings as frozen dataclasses that hold each field's meaning, default and bounds.

    @dataclasses.dataclass(frozen=True)
    class MethodConfig(Settings):
        steps: int = setting("Optimizer steps.", least=1)
        expectile: float = setting("τ of V's loss.", 0.8, above=0, below=1)
        chunk: int = setting("Decisions at a time.", 1024, least=1, shapes_result=False)

    MethodConfig(steps=10, expectile=1.5)
    # SettingError: expectile is 1.5, but must lie in (0, 1).

The dataclass is the one place for a setting's meaning, default and bounds, and for whether it
shapes results: help texts and command-line flags are generated from it (`settings_of`), and a
checkpoint compares only what shapes results (`runtime_fields`). It needs nothing but Python.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Any

from ilql_jax.errors import UserError, shown

LARGEST = 2**31 - 1  # of whole numbers: counts and seeds become int32 on a device
LARGEST_FLOAT = 3.4e38  # of other numbers, which become float32
REQUIRED = dataclasses.MISSING  # default of a setting that has none


class SettingError(UserError, ValueError):
    """A value that a setting cannot have.

    Attributes:
        name: Name of the setting.
        value: That was given.
        problem: Rule that it breaks, e.g. "must be at least 1".
    """

    def __init__(self, name: str, value: Any, problem: str):
        super().__init__(name, value, problem)
        self.name, self.value, self.problem = name, value, problem

    def __str__(self) -> str:
        end = "" if self.problem.endswith(".") else "."
        return f"{self.name} is {shown(self.value, 300, repr)}, but {self.problem}{end}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Description of one field of a `Settings` class.

    Bounds and choices of a tuple hold for each of its elements.

    Attributes:
        doc: Meaning, in one or two sentences.
        least: Smallest value; most: largest; above, below: bounds outside of what is allowed.
        choices: Allowed values; empty = any.
        shapes_result: False where another value gives the same results (to rounding): it may then
            change when a run goes on.
    """

    doc: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    shapes_result: bool = True

    def problem(self, value: Any) -> str | None:
        """Names the bound or the choices that a value breaks; None where it breaks none."""
        if self.choices:
            return None if value in self.choices else f"must be {_either(self.choices)}"
        within = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if within else self._bounds()

    def _bounds(self) -> str:
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        if low is not None and high is not None:
            opening = "[" if self.above is None else "("
            closing = "]" if self.below is None else ")"
            return f"must lie in {opening}{low}, {high}{closing}"
        if low is not None:
            return f"must be {'at least' if self.above is None else 'above'} {low}"
        return f"must be {'at most' if self.below is None else 'below'} {high}"


def setting(
    doc: str,
    default: Any = REQUIRED,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    shapes_result: bool = True,
) -> Any:
    """Declares a field of a `Settings` class; the arguments are those of `Setting`.

    Args:
        default: Value where none is given; without one the field is required.
    """
    described = Setting(doc, least, most, above, below, choices, shapes_result)
    return dataclasses.field(default=default, metadata={"setting": described})


class Settings:
    """Base of frozen dataclasses whose fields are declared by `setting`.

    On creation every field is checked: its type as annotated, then its bounds. Whole numbers are
    accepted for floats and lists for tuples, and converted, so that values read from JSON or YAML
    equal those written in code. Subclasses check what fields require of each other after
    `super().__post_init__()`.

    Raises:
        SettingError: A value of another type, not finite, beyond 32 bits, or out of bounds.
    """

    def __post_init__(self):
        for name, (hint, described) in _declared(type(self)).items():
            value = getattr(self, name)
            try:
                converted = _converted(value, hint)
            except _WrongType as wrong:
                raise SettingError(name, value, f"must be {wrong}") from None
            if converted is not value:
                object.__setattr__(self, name, converted)
            for each in converted if isinstance(converted, tuple) else (converted,):
                problem = None if each is None or described is None else described.problem(each)
                if problem:
                    raise SettingError(name, value, problem)


def settings_of(config: type) -> dict[str, Setting]:
    """Name -> description of the fields of a dataclass that were declared by `setting`."""
    return {
        field.name: field.metadata["setting"]
        for field in dataclasses.fields(config)
        if "setting" in field.metadata
    }


def runtime_fields(config: type) -> frozenset[str]:
    """Names of the settings that shape no result; those of nested settings as `outer.inner`."""
    names = {n for n, described in settings_of(config).items() if not described.shapes_result}
    for name, hint in _hints(config).items():
        if dataclasses.is_dataclass(hint):
            names |= {f"{name}.{inner}" for inner in runtime_fields(hint)}
    return frozenset(names)


class _WrongType(Exception):
    """Its message says which type was expected, e.g. "a whole number"."""


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


@functools.cache
def _declared(config: type) -> dict[str, tuple[Any, Setting | None]]:
    """Name -> annotation and description of every field."""
    described = settings_of(config)
    hints = _hints(config)
    return {
        field.name: (hints[field.name], described.get(field.name))
        for field in dataclasses.fields(config)
    }


def _converted(value: Any, hint: Any) -> Any:
    """The value as its annotation says; raises `_WrongType` where it cannot be."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _converted_to_any(value, typing.get_args(hint))
    if origin is tuple:
        return _converted_tuple(value, typing.get_args(hint))
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    expected = origin or hint
    if isinstance(expected, type) and not isinstance(value, expected):
        raise _WrongType("None" if expected is types.NoneType else f"of type {expected.__name__}")
    return value


def _converted_to_any(value: Any, hints: tuple[Any, ...]) -> Any:
    expected = []
    for hint in hints:
        try:
            return _converted(value, hint)
        except _WrongType as wrong:
            expected.append(str(wrong))
    raise _WrongType(" or ".join(expected))


def _converted_tuple(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise _WrongType("a tuple")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    elif len(hints) != len(value):
        raise _WrongType(f"a tuple of {len(hints)}")
    try:
        elements = tuple(_converted(each, hint) for each, hint in zip(value, hints, strict=True))
    except _WrongType as wrong:
        raise _WrongType(f"a tuple, and each of its elements {wrong}") from None
    same = isinstance(value, tuple) and all(a is b for a, b in zip(value, elements, strict=True))
    return value if same else elements


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _WrongType("a whole number")
    if not -LARGEST <= value <= LARGEST:
        raise _WrongType(f"a whole number, at most {LARGEST:,}")
    return value if type(value) is int else int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _WrongType("a number")
    if not math.isfinite(value):
        raise _WrongType("a finite number")
    if abs(value) > LARGEST_FLOAT:
        raise _WrongType(f"a number, at most {LARGEST_FLOAT:g}")
    return value if type(value) is float else float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongType("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongType("text")
    return value


_SCALARS = {int: _whole_number, float: _number, bool: _truth, str: _text}


def _either(choices: tuple[Any, ...]) -> str:
    *others, last = (str(each) or '""' for each in choices)
    return f"{', '.join(others)} or {last}" if others else last
