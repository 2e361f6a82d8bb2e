"""Starts an experiment: flags, run folder, and the stages one after the other.

    python experiments/teaching.py                                  everything
    python experiments/teaching.py --workdir=runs/t1 --config.train.steps=500
    python experiments/teaching.py --workdir=runs/t1 --stage=evaluate   up to this stage
    python experiments/teaching.py --stage=chat                     talk with the trained agent
    python experiments/teaching.py --stage=export                   for Hugging Face's transformers
    python experiments/teaching.py --stage=derive --config.imagination.engine=anthropic ...
                                                                    task.yaml only, to be edited
    python experiments/teaching.py --dry_run --config.imagination.engine=anthropic ...
                                                                    calls, cost and prompts only

A stage whose files are there is skipped, so a run that was killed goes on where it was.

Several hosts (`config.machine`) share the stage train alone, on a folder that all of them see:
what goes before it has to be there, and what comes after it is done by one host, later. Process 0
writes and prints.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from experiments import config as settings
from experiments.methods import rounds_of
from experiments.parallel import is_ours
from experiments.run_folder import STAGES, RunError, RunFolder
from experiments.terminal import make_console, quiet_libraries
from ilql_jax import sharding

# Settings as asked for -> key -> what it is then, unless the command line says otherwise.
Dependent = Callable[[ConfigDict], dict[str, Any]]


def main(name: str, config: ConfigDict, dependent: Dependent | None = None) -> None:
    """Runs the experiment `name` with the settings of `config`, changed by the command line.

    Args:
        name: Of the experiment.
        config: Its settings.
        dependent: Defaults that depend on other settings (on where the dialogues come from).
    """
    with told_errors() as console:
        _run(name, config, dependent, sys.argv, console)


@contextlib.contextmanager
def told_errors() -> Iterator[Console]:
    """A console; errors that are meant for the user end the program with their message alone."""
    quiet_libraries()
    console = make_console()
    try:
        yield console
    except KeyboardInterrupt:
        console.print("\nStopped. The same command goes on from here.")
        sys.exit(130)
    except Exception as error:
        if not is_ours(error):
            raise
        console.print(f"\nError: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(1)


def _run(
    name: str,
    config: ConfigDict,
    dependent: Dependent | None,
    arguments: list[str],
    console: Console,
) -> None:
    line = parse_flags(name, config, arguments, dependent)
    folder = RunFolder(line.workdir)
    folder.check_experiment(name)
    config = with_saved(line.config, folder, line.overrides)
    is_judged = not line.dry_run and line.stage in STAGES[STAGES.index("evaluate") :]
    settings.check(config, is_judged, trained=not _has_all(config, folder))
    if line.dry_run:
        _print_plans(config, folder, console)
        return
    if line.stage == "chat":
        from experiments.stages import chat

        chat.run(config, folder, console)
        return
    if line.stage == "export":
        from experiments.stages import export

        export.run(config, folder, console)
        return
    _check_shape_is_used(config, line)
    _check_hindsight_is_used(config, line)
    if config.machine.coordinator:
        run_on_hosts(name, config, folder, line.stage, console)
        return
    if line.stage in STAGES[STAGES.index("train") :]:
        # Before the settings are kept with the run, and before dialogues are paid for.
        from experiments.stages import train

        train.check_settings(config, folder)
    run_stages(name, config, folder, line.stage, console)


def _has_all(config: ConfigDict, folder: RunFolder) -> bool:
    """Whether all networks are there that were to be made of a pretrained one."""
    if not config.model.pretrained or not folder.config_file.exists():
        return False
    from experiments import networks

    settings.check_methods(config)
    return all(networks.is_trained(folder, unit) for unit in networks.units(config))


def _print_plans(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """What the stages would ask of an LLM, and what it would cost."""
    from experiments import llm_imagination
    from experiments.stages import regenerate

    imagines = settings.imagines_with_llm(config)
    looks_back = config.hindsight.engine != "world" and rounds_of(config.methods) > 0
    if not imagines and not looks_back:
        raise RunError(
            "--dry_run shows what an LLM would be asked; set config.imagination.engine=anthropic, "
            "or config.hindsight.engine=anthropic with a method that learns from hindsight."
        )
    if imagines:
        llm_imagination.print_plan(config, folder, console)
    if looks_back:
        regenerate.print_plan(config, folder, console)


def _check_hindsight_is_used(config: ConfigDict, line: CommandLine) -> None:
    given = [f"config.{key}" for key in line.overrides if key.startswith("hindsight.")]
    if line.stage == "regenerate":
        given.append("--stage=regenerate")
    if given and not rounds_of(config.methods):
        raise settings.ConfigError(
            f"{given[0]} is about hindsight, but no method of config.methods "
            f"({', '.join(config.methods)}) learns from it; add one such as ilql_hindsight1."
        )


def _check_shape_is_used(config: ConfigDict, line: CommandLine) -> None:
    given = [key for key in line.overrides if key in settings.SHAPE_KEYS]
    if given and config.model.pretrained:
        raise settings.ConfigError(
            f"config.{given[0]} is given, but the network has the shape of "
            f"config.model.pretrained, {config.model.pretrained!r}. Leave one of them out."
        )


def run_stages(
    name: str, config: ConfigDict, folder: RunFolder, last: str, console: Console
) -> None:
    """Runs the stages up to this one, as far as they are not done.

    Raises:
        RunError: The folder was made from other settings, or another process works in it.
    """
    with folder.lock():
        for each in STAGES:
            folder.check_stage(each, config)
        folder.save_config(name, config)
        if last == "derive":
            _derive(config, folder, console)
            return
        for each in STAGES[: STAGES.index(last) + 1]:
            if each != "regenerate" or rounds_of(config.methods):
                _run_stage(each, config, folder, console)


def run_on_hosts(
    name: str, config: ConfigDict, folder: RunFolder, stage: str, console: Console
) -> None:
    """The stage train, of which this process does its part.

    Raises:
        RunError: Another stage is asked for, or one before it is not done.
    """
    if stage != "train":
        raise RunError(
            f"several hosts (config.machine.coordinator) do the stage train alone, not {stage}: "
            "add --stage=train. The other stages are done by one host, without config.machine."
        )
    needed = [folder.dialogues]
    needed += [folder.hindsight_round(k) for k in range(1, rounds_of(config.methods) + 1)]
    if missing := [path for path in needed if not path.exists()]:
        raise RunError(
            f"{missing[0]} is not there, which the hosts are to learn from. Run the same command "
            "on one of them, without config.machine and with "
            f"--stage={'imagine' if missing[0] == folder.dialogues else 'regenerate'}, and see "
            "that all of them see the folder."
        )
    sharding.start_hosts(settings.hosts_config(config))
    if sharding.is_first_host():
        run_stages(name, config, folder, stage, console)
    else:
        from experiments.stages import train

        train.run(config, folder, Console(quiet=True))
    sharding.wait_for_all("the stage train")


def _derive(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    from experiments import llm_imagination

    if not settings.imagines_with_llm(config):
        raise RunError(
            "--stage=derive writes the task that an LLM is to imagine; set "
            "config.imagination.engine=anthropic."
        )
    llm_imagination.derive(config, folder, console)


def _run_stage(stage: str, config: ConfigDict, folder: RunFolder, console: Console) -> None:
    # Imported late: an error in the settings is told before the libraries of the stages load.
    from experiments.stages import evaluate, imagine, regenerate, report, train

    start = time.monotonic()
    folder.begin_stage(stage, config)
    if stage == "imagine":
        imagine.run(config, folder, console)
    elif stage == "regenerate":
        regenerate.run(config, folder, console)
    elif stage == "train":
        train.run(config, folder, console)
    elif stage == "evaluate":
        evaluate.run(config, folder, console)
    else:
        report.run(folder, console)
    console.print(f"[dim]{stage}: {time.monotonic() - start:.0f} s[/dim]")


class CommandLine(NamedTuple):
    """What was asked for; `overrides` are the settings that were given there."""

    stage: str
    workdir: str
    dry_run: bool
    config: ConfigDict
    overrides: dict[str, Any]


def parse_flags(
    name: str, config: ConfigDict, arguments: list[str], dependent: Dependent | None = None
) -> CommandLine:
    """Reads the command line; `config` is changed by it.

    Raises:
        ConfigError: An unknown flag or key, or a value of the wrong type.
    """
    values = flags.FlagValues()
    known = [*STAGES, "derive", "chat", "export"]
    flags.DEFINE_enum(
        "stage", STAGES[-1], known, "Run up to this; or derive, chat, export.", values
    )
    flags.DEFINE_string("workdir", f"runs/{name}", "The run's folder.", values)
    flags.DEFINE_bool("dry_run", False, "Show what an LLM would be asked, and the cost.", values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        flag = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=arguments
        )
        rest = values(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise settings.ConfigError(_explain(error, config, arguments)) from None
    if values.help:
        print(f"{values.get_help()}\nSettings and defaults:\n{config}")
        sys.exit(0)
    if rest[1:]:
        raise settings.ConfigError(f"unexpected argument {rest[1]!r}; see --help.")
    overrides = config_flags.get_override_values(values["config"])
    following = dependent(flag.value) if dependent else {}
    flag.value.update_from_flattened_dict(
        {key: value for key, value in following.items() if key not in overrides}
    )
    # --config.methods=bc,ilql reads better than a Python tuple in quotes.
    flag.value.methods = _names(flag.value.methods)
    flag.value.logging.backends = _names(flag.value.logging.backends)
    flag.value.evaluation.prompted = _names(flag.value.evaluation.prompted)
    flag.value.imagination.also_rewards = _names(flag.value.imagination.also_rewards)
    return CommandLine(values.stage, values.workdir, values.dry_run, flag.value, dict(overrides))


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for name in ",".join(given).split(",") if name.strip())


def with_saved(config: ConfigDict, folder: RunFolder, overrides: dict) -> ConfigDict:
    """The settings of a folder that was run before, changed by what the command line says."""
    saved = folder.saved_config()
    if saved is None:
        return config
    merged = config.copy_and_resolve_references()
    for key in _keys(merged):
        if key in overrides:
            continue
        section = saved
        for part in key.split("."):
            section = section.get(part) if isinstance(section, ConfigDict) else None
        if section is not None:
            try:
                merged.update_from_flattened_dict({key: section})
            except (TypeError, ValueError):
                raise RunError(
                    f"{folder.config_file}, key {key}: {section!r} is of the wrong type."
                ) from None
    return merged


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        nested = isinstance(value, ConfigDict)
        found += _keys(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


def _explain(error: Exception, config: ConfigDict, arguments: list[str]) -> str:
    """The flag at fault, and for an unknown key the one that was probably meant."""
    keys = _keys(config)
    given = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    settings_given = dict(argument.partition("=")[::2] for argument in given)
    for key in settings_given:
        if key not in keys:
            return f"unknown setting config.{key}. {_meant(key, keys)}"
    for key, value in settings_given.items():
        if key in str(error) and value in str(error):
            default = config
            for part in key.split("."):
                default = default[part]
            return (
                f"config.{key}={value!r} is not of the right type; "
                f"expected {type(default).__name__}, e.g. {default!r}."
            )
    return str(error)


def _meant(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    if close:
        return f"Did you mean config.{close[0]}?"
    in_section = [each for each in keys if each.startswith(f"{key.split('.')[0]}.")]
    return f"There are: {', '.join(in_section or sorted({k.split('.')[0] for k in keys}))}."
