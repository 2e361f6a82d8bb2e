"""The command line of an experiment: flags, settings, and what a run folder was run with before.

Later ones go before earlier ones: defaults (`config.py`), the experiment's file, its variants, the
folder's config.yaml, the command line.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.config import (
    SECTIONS,
    ConfigError,
    LLMOverride,
    add_method,
    described,
    keys_of,
)
from experiments.methods import own_files
from experiments.run_folder import STAGES, RunError, RunFolder
from ilql_jax.errors import shown
from ilql_jax.methods import METHODS
from ilql_jax.settings import Setting
from imagination.llm.secrets import without_password
from imagination.simulation.loading import WORLDS

# Settings -> defaults that are others where these settings have these values.
Variants = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]

MORE_STAGES = ("derive", "chat", "export")
# Code that is executed, addresses that keys and texts go to, and whose key that is (api): a file
# that lies in a run folder is not enough to name them.
_TRUSTED = (
    "task.world",
    "machine.coordinator",
    *(
        f"{section}.{name}"
        for section in SECTIONS
        if section == "llm" or LLMOverride in SECTIONS[section]
        for name in ("base_url", "api")
    ),
)
_MAY_NAME_FILES = ("methods", "logging.backends")  # of code, beside names
# What absl and ml_collections raise for a value that cannot be; the last three by Python's parser.
_NOT_PARSED = (
    *(flags.Error, AttributeError, KeyError, TypeError, ValueError, OverflowError),
    *(SyntaxError, MemoryError, RecursionError),
)
# Given as names with commas between.
_NAMES = ("methods", "evaluation.prompted", "imagination.also_rewards", "logging.backends")


class CommandLine(NamedTuple):
    """A parsed command line; `overrides` are the settings given on it."""

    stage: str
    workdir: str
    dry_run: bool
    preview: int
    config: ConfigDict
    overrides: dict[str, Any]


def parse(
    name: str, config: ConfigDict, arguments: Sequence[str], variants: Variants = ()
) -> CommandLine:
    """Reads the command line; `config` is changed by it.

    Raises:
        ConfigError: An unknown flag or key, or a value of the wrong type.
        MethodError: A method's file cannot be used.
    """
    for file in own_files([*config.methods, *_given_methods(arguments)]):
        add_method(config, file)
    arguments = _last_of_each(_with_tuples(arguments))
    values = flags.FlagValues()
    stages = [*STAGES, *MORE_STAGES]
    flags.DEFINE_enum("stage", STAGES[-1], stages, "", values)
    flags.DEFINE_string("workdir", f"runs/{name}", "", values)
    flags.DEFINE_bool("dry_run", False, "", values)
    flags.DEFINE_integer("preview", 0, "", lower_bound=0, flag_values=values)
    try:
        flag = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=arguments
        )
        rest = values(arguments)
    except _NOT_PARSED as error:
        raise ConfigError(_explain(error, config, arguments)) from None
    if rest[1:]:
        raise ConfigError(f"unexpected argument {shown(rest[1], 300, repr)}; see --help.")
    if not values.workdir.strip():
        raise ConfigError(f"--workdir is empty. Give a folder, or leave it out for runs/{name}.")
    overrides = dict(config_flags.get_override_values(values["config"]))
    _apply(flag.value, variants, overrides)
    workdir = os.path.expanduser(values.workdir)  # shells leave --workdir=~/x as it is
    return CommandLine(values.stage, workdir, values.dry_run, values.preview, flag.value, overrides)


def _apply(config: ConfigDict, variants: Variants, overrides: Mapping[str, Any]) -> None:
    """Changes defaults where the settings that a variant names have its values."""
    asked = {key: _value(config, key) for condition, _ in variants for key in condition}
    for condition, changes in variants:
        if all(asked[key] == value for key, value in condition.items()):
            config.update_from_flattened_dict(
                {key: value for key, value in changes.items() if key not in overrides}
            )


def _given_methods(arguments: Sequence[str]) -> tuple[str, ...]:
    """Entries of `--config.methods` on the command line, before flags are parsed."""
    for argument in _last_of_each(_with_tuples(arguments)):
        if argument.startswith("--config.methods="):
            return ast.literal_eval(argument.partition("=")[2])
    return ()


def _with_tuples(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--config.methods=bc,ilql` (or two arguments) as a Python tuple."""
    found = list(arguments)
    for key in _NAMES:
        flag = f"--config.{key}"
        for place, argument in enumerate(found):
            if argument == flag and place + 1 < len(found):
                found[place : place + 2] = [f"{flag}={found[place + 1]}"]
        found = [
            f"{flag}={_names(each.partition('=')[2])!r}" if each.startswith(f"{flag}=") else each
            for each in found
        ]
    return found


def _last_of_each(arguments: Sequence[str]) -> list[str]:
    """The arguments without settings that are given again later: absl would join tuples."""
    last = {argument.partition("=")[0]: place for place, argument in enumerate(arguments)}
    return [
        argument
        for place, argument in enumerate(arguments)
        if not (argument.startswith("--config.") and "=" in argument)
        or last[argument.partition("=")[0]] == place
    ]


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between, or as a Python tuple."""
    # Python's parser has room for some nesting, and no more.
    with contextlib.suppress(SyntaxError, ValueError, MemoryError, RecursionError):
        value = ast.literal_eval(text)
        if isinstance(value, tuple | list):
            return tuple(map(str, value))
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict | None, str]:
    """The section of a key, and its name there; None where there is no such section."""
    *sections, own = key.split(".")
    found: Any = config
    for each in sections:
        found = found.get(each) if isinstance(found, ConfigDict) else None
    return found if isinstance(found, ConfigDict) else None, own


def _value(config: ConfigDict, key: str) -> Any:
    section, own = _place(config, key)
    return section[own]


# --- what a folder was run with before ----------------------------------------------------------


def with_saved(config: ConfigDict, folder: RunFolder, overrides: Mapping[str, Any]) -> ConfigDict:
    """The settings of a folder that was run before, changed by what the command line says.

    Raises:
        RunError: config.yaml is of another version of this project, or names code or an address
            that neither the command line nor the experiment's file names.
    """
    saved = folder.saved_config()
    if saved is None:
        return config
    merged = config.copy_and_resolve_references()
    known = set(keys_of(merged))
    _check_trust(merged, saved, folder, overrides)
    for key in keys_of(saved):
        if key not in known:
            if not _is_of_own_method(key):
                raise RunError(
                    f"{folder.config_file} was written by another version of this project: it has "
                    f"config.{key}, which is no setting here. Use that version, or give a new "
                    "folder (--workdir=...)."
                )
        elif key not in overrides and not _is_saved_without_password(merged, saved, key):
            value = _value(saved, key)
            try:
                merged.update_from_flattened_dict({key: value})
            except (TypeError, ValueError, OverflowError):
                given = shown(value, 300, repr)
                raise RunError(
                    f"{folder.config_file}, key {key}: {given} is of the wrong type."
                ) from None
    return merged


def _check_trust(
    config: ConfigDict, saved: ConfigDict, folder: RunFolder, overrides: Mapping[str, Any]
) -> None:
    """Raises `RunError` for code and addresses that config.yaml alone names.

    A run folder may come from somebody else: its files are data. What it names is not executed,
    and no key is sent there.
    """
    untrusted = {}
    for key in _TRUSTED:
        section, own = _place(saved, key)
        if key in overrides or section is None or not isinstance(value := section.get(own), str):
            continue
        is_harmless = key == "task.world" and value in WORLDS
        if value and not is_harmless and value != without_password(_value(config, key)):
            untrusted[key] = value
    for key in _MAY_NAME_FILES:
        section, own = _place(saved, key)
        entries = () if section is None else section.get(own, ())
        if key not in overrides and _own_files_of(entries) - _own_files_of(_value(config, key)):
            untrusted[key] = ",".join(map(str, entries))
    if untrusted:
        named = " and ".join(
            f"config.{key} = {without_password(value)!r}" for key, value in untrusted.items()
        )
        options = " ".join(
            f"--config.{key}={shlex.quote(without_password(value))}"
            for key, value in untrusted.items()
        )
        raise RunError(
            f"{folder.config_file} sets {named}, but code is executed, and an address is sent "
            "keys and texts (whose, api says), only where this command line or the experiment's "
            "file names it. "
            f"Add {options}"
        )


def _is_saved_without_password(config: ConfigDict, saved: ConfigDict, key: str) -> bool:
    """True if an address differs only by the password, which no file holds."""
    value = _value(config, key)
    return value != without_password(value) and _value(saved, key) == without_password(value)


def _own_files_of(entries: Any) -> set[str]:
    """Python files among entries of a setting, whatever a file says they are."""
    entries = entries if isinstance(entries, tuple) else (entries,)
    return set(own_files(map(str, entries)))


def _is_of_own_method(key: str) -> bool:
    """True for a setting of an own method that is not trained this time."""
    parts = key.split(".")
    return parts[0] in ("method", "decoding") and len(parts) > 1 and parts[1] not in METHODS


# --- errors and help ----------------------------------------------------------------------------


def _explain(error: Exception, config: ConfigDict, arguments: Sequence[str]) -> str:
    """The flag at fault, and for an unknown key the one that was probably meant."""
    keys = keys_of(config)
    given = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    settings_given = dict(argument.partition("=")[::2] for argument in given)
    for key in settings_given:
        if key not in keys:
            return f"unknown setting config.{key}. {_meant(key, keys)}"
    for key, value in settings_given.items():
        if key in str(error) and value in str(error):
            default = _value(config, key)
            return (
                f"config.{key}={shown(value, 300, repr)} is not of the right type; "
                f"expected {type(default).__name__}, e.g. {default!r}."
            )
    if isinstance(error, MemoryError | RecursionError) and settings_given:
        longest = max(settings_given, key=lambda key: len(settings_given[key]))
        value = shown(settings_given[longest], 300, repr)
        return f"config.{longest}={value} is too long or too nested to be read."
    if isinstance(error, flags.UnrecognizedFlagError):
        flag = shown(error.flagname, 300)
        return f"there is no flag --{flag}; settings begin with --config. {_meant(flag, keys)}"
    return str(error)


# What might be looked for as a setting -> the way to ask for it.
_ASKED_ELSEWHERE = {
    f"{section}.rounds": f"Rounds are asked for by methods that learn from them, e.g. "
    f"--config.methods=ilql,ilql_{section}1 (ilql_{section}2 has two)."
    for section in ("imagination", "hindsight")
}


def _meant(key: str, keys: Sequence[str]) -> str:
    if key in _ASKED_ELSEWHERE:
        return _ASKED_ELSEWHERE[key]
    own = key.rpartition(".")[2]
    same = [each for each in keys if each.rpartition(".")[2] == own]
    if same:
        return f"Did you mean {' or '.join(f'config.{each}' for each in same)}?"
    close = difflib.get_close_matches(key, keys, n=1)
    if close:
        return f"Did you mean config.{close[0]}?"
    in_section = [each for each in keys if each.startswith(f"{key.split('.')[0]}.")]
    sections = sorted({each.split(".")[0] for each in keys})
    return f"There are: {', '.join(in_section or sections)}; see --help."


USAGE = """\
--stage=STAGE     run up to this stage: {stages}; or derive (task.yaml only), chat, export
--workdir=FOLDER  the run's folder, runs/{name} if not given; a stage that is done is skipped
--dry_run         what an LLM would be asked, and the cost, without a call
--preview=N       the first N dialogues that an LLM imagines, before the others are paid for
--help=SECTION    settings of one section, or those with this word in their name
--config.KEY=VALUE  any setting below, e.g. --config.train.steps=500"""


def asked_help(arguments: Sequence[str]) -> str | None:
    """The section that help is asked for; "" = all of it, None = no help."""
    for place, argument in enumerate(arguments[1:], start=1):
        flag, _, word = argument.partition("=")
        if flag in ("--help", "-h", "-help"):
            following = arguments[place + 1 : place + 2]
            if not word and following and not following[0].startswith("-"):
                word = following[0]
            return word.removeprefix("config.")
    return None


def print_help(
    name: str, about: str, config: ConfigDict, arguments: Sequence[str], console: Console
) -> None:
    """Prints every setting with its default and its meaning, by section.

    Raises:
        ConfigError: No setting is of the section asked for.
    """
    files = own_files([*config.methods, *_given_methods(arguments)])
    own = [add_method(config, file) for file in files]
    word = asked_help(arguments) or ""
    about_settings = described(own)
    tables = _help_tables(config, about_settings, word)
    if not tables:
        raise ConfigError(f"--help={word}: no setting has that name; --help shows all.")
    if not word:
        console.print(about.strip(), markup=False, highlight=False)
        usage = USAGE.format(name=name, stages=", ".join(STAGES))
        console.print(f"\n{usage}\n", markup=False, highlight=False)
    for table in tables:
        console.print(table)
    console.print(
        "[dim]* changes no result, and may be changed when a run goes on. Defaults are those of "
        f"{escape(name)}.[/dim]"
    )


def _help_tables(config: ConfigDict, about: Mapping[str, Setting], word: str) -> list[Table]:
    """A table for each section, of the settings that the word names: a section, or a part of a key.

    Args:
        config: Settings with their defaults.
        about: Key -> description, in the order of the tables.
        word: Names a section, or is a part of keys; "" = all.
    """
    chosen = [key for key in about if f"{key.rpartition('.')[0]}.".startswith(f"{word}.")]
    chosen = chosen or [key for key in about if word in key]
    tables: dict[str, Table] = {}
    for key in chosen if word else about:
        section, _, own = key.rpartition(".")
        if section not in tables:
            tables[section] = _help_table(f"config.{section}" if section else "config")
        setting = about[key]
        tables[section].add_row(
            f"{own}{'' if setting.shapes_result else '*'}",
            escape(_shown(_value(config, key))),
            escape(_meaning(setting)),
        )
    return list(tables.values())


def _help_table(title: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None)
    table.add_column("setting", style="cyan", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=28)
    table.add_column("meaning", overflow="fold")
    return table


def _shown(value: Any) -> str:
    if isinstance(value, ConfigDict):
        return str(value.to_dict() or "{}")
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "()"
    return '""' if value == "" else str(value)


def _meaning(setting: Setting) -> str:
    missing = [str(each) for each in setting.choices if str(each) not in setting.doc]
    return f"{setting.doc} ({', '.join(map(str, setting.choices))})" if missing else setting.doc
