"""Command line of a program whose settings are `Settings` classes: a flag for each field.

    settings, overrides = parse((ServeConfig, AgentSettings), sys.argv)
    settings[ServeConfig].workdir

Experiments that are trained have sections of settings instead (`command_line.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.config import ConfigError
from ilql_jax.errors import shown
from ilql_jax.settings import REQUIRED, SettingError, Settings, settings_of

Kind = TypeVar("Kind", bound=Settings)

OVERRIDE = "--config."  # a setting of the runs that are opened
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parsed(dict[type[Settings], Any]):
    """Class -> its instance, as the command line has it."""

    def __getitem__(self, kind: type[Kind]) -> Kind:
        return super().__getitem__(kind)


def parse(kinds: Sequence[type[Settings]], arguments: Sequence[str]) -> tuple[Parsed, list[str]]:
    """Reads `--NAME=VALUE` (`--NAME VALUE` too) for the fields of the classes.

    Args:
        kinds: Classes; a field of the same name in two of them is one flag.
        arguments: As `sys.argv`: the program's name first.

    Returns:
        The settings by class, and the arguments that begin with `--config.`, which are for the
        runs.

    Raises:
        ConfigError: An unknown flag, a value of the wrong type or out of bounds.
    """
    values, overrides = _given(kinds, arguments[1:])
    parsed = Parsed()
    for kind in kinds:
        own = {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}
        for field in dataclasses.fields(kind):
            if field.default is REQUIRED and field.name not in own:
                raise ConfigError(f"--{field.name} is missing; see --help.")
        try:
            parsed[kind] = kind(**own)
        except SettingError as error:
            raise ConfigError(f"--{error}") from None
    return parsed, overrides


def asked_help(arguments: Sequence[str]) -> bool:
    """True where the command line asks for help."""
    return any(each.partition("=")[0] in ("--help", "-h", "-help") for each in arguments[1:])


def print_help(
    about: str,
    kinds: Mapping[str, type[Settings]],
    console: Console,
    opens_runs: bool = True,
) -> None:
    """Prints every flag with its default and its meaning.

    Args:
        about: The program's docstring.
        kinds: Title -> class of the flags below it.
        console: Console that gets it.
        opens_runs: The program takes settings of runs, too.
    """
    console.print(about.strip(), markup=False, highlight=False)
    for title, kind in kinds.items():
        table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None)
        table.add_column("flag", style="cyan", no_wrap=True)
        table.add_column("default", overflow="fold", max_width=28)
        table.add_column("meaning", overflow="fold")
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        for name, setting in settings_of(kind).items():
            default = "" if defaults[name] is REQUIRED else defaults[name]
            choices = ", ".join(map(str, setting.choices))
            meaning = f"{setting.doc} ({choices})" if choices else setting.doc
            text = ",".join(default) if isinstance(default, tuple) else str(default)
            text = text or '""'
            table.add_row(f"--{name}", escape(text), escape(meaning))
        console.print(table)
    of_runs = "; --config.KEY=VALUE changes a setting of the runs" if opens_runs else ""
    console.print(f"\n--help prints this{of_runs}.")


def _given(
    kinds: Sequence[type[Settings]], arguments: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    values: dict[str, Any] = {}
    overrides: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, has_value, value = argument.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith(OVERRIDE):
            if not has_value:
                raise ConfigError(f"{flag} has no value; write {flag}=VALUE.")
            overrides.append(argument)
            continue
        if not flag.startswith("--") or name not in hints:
            raise ConfigError(_unknown(argument, name, sorted(hints)))
        hint = hints[name]
        if not has_value and hint is not bool:
            if not waiting:
                raise ConfigError(f"{flag} has no value; write {flag}=VALUE.")
            value = waiting.pop(0)
        elif not has_value:
            value = "true"
        values[name] = _converted(flag, value, hint)
    return values, overrides


def _converted(flag: str, value: str, hint: Any) -> Any:
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    if hint == tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip())
    try:
        if hint is bool:
            return _TRUTH[value.strip().lower()]
        return hint(value) if hint in kinds else value
    except (KeyError, ValueError):
        raise ConfigError(f"{flag}={shown(value, 100, repr)}: expected {kinds[hint]}.") from None


def _unknown(argument: str, name: str, known: Sequence[str]) -> str:
    if not argument.startswith("--"):
        return f"unexpected argument {shown(argument, 200, repr)}; see --help."
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"Did you mean --{close[0]}?" if close else "See --help."
    return f"there is no flag --{shown(name, 100)}. {meant}"
