"""Starts an experiment: command line, run folder, and the stages one after the other.

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
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict
from rich.console import Console

from experiments import command_line, flags, interrupts, provenance
from experiments.build import Experiment, build, errors_of
from experiments.checks import check
from experiments.command_line import CommandLine, Variants
from experiments.config import ConfigError
from experiments.networks import has_all
from experiments.parallel import message_of
from experiments.run_folder import STAGES, RunError, RunFolder
from experiments.stamps import begin_stage, check_stage
from experiments.terminal import quiet_libraries
from ilql_jax import sharding
from ilql_jax.errors import shown
from ilql_jax.models.network_config import SHAPE_OF_FRESH
from ilql_jax.progress import make_console
from ilql_jax.settings import Settings
from imagination.checks import without_surrogates
from imagination.llm.config import LLMConfig
from imagination.llm.secrets import (
    address_of,
    check_keys,
    sends_key_in_the_open,
    without_password,
    without_secrets,
)
from imagination.simulation.loading import load_world


def main(name: str, config: ConfigDict, variants: Variants = ()) -> None:
    """Runs the experiment `name` with the settings of `config`, changed by the command line.

    Args:
        name: Names the run's folder.
        config: Settings of the experiment.
        variants: Pairs of settings and defaults: where these settings have these values (on the
            command line), the defaults are others. Later pairs go before earlier ones.
    """
    with told_errors() as console:
        if command_line.asked_help(sys.argv) is not None:
            about = sys.modules["__main__"].__doc__ or name
            command_line.print_help(name, about, config, sys.argv, console)
            return
        _run(name, config, variants, sys.argv, console)


def program(
    about: str,
    kinds: Mapping[str, type[Settings]],
    run: Callable[[list[str], Console], None],
    opens_runs: bool = True,
) -> None:
    """Runs a program whose settings are flags (`flags.py`), or prints its help.

    Args:
        about: Its docstring.
        kinds: Title -> class of settings, for the help.
        run: Gets `sys.argv` and a console; its errors are told.
        opens_runs: The program takes settings of runs, too.
    """
    with told_errors() as console:
        if flags.asked_help(sys.argv):
            flags.print_help(about, kinds, console, opens_runs)
        else:
            run(sys.argv, console)


@contextlib.contextmanager
def told_errors() -> Iterator[Console]:
    """A console; errors that are meant for the user end the program with their message alone."""
    with interrupts.noticed() as stop:
        quiet_libraries()
        console = make_console()
        try:
            yield console
            return
        except KeyboardInterrupt:
            console.print(interrupts.line(stop))
            sys.exit(stop.status)
        except Exception as error:
            if (text := message_of(error)) is None:
                raise
        # Arguments and names of files may hold what no terminal takes.
        told = without_surrogates(f"\nError: {without_secrets(text)}")
        console.print(told, style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _run(
    name: str, config: ConfigDict, variants: Variants, arguments: list[str], console: Console
) -> None:
    line = command_line.parse(name, config, arguments, variants)
    folder = RunFolder(line.workdir)
    folder.check_path()
    folder.check_experiment(name)
    config = command_line.with_saved(line.config, folder, line.overrides)
    is_judged = not line.dry_run and line.stage in STAGES[STAGES.index("evaluate") :]
    experiment = build(config)
    check(experiment, config, judged=is_judged, trained=not has_all(experiment, folder))
    if experiment.task.world and line.stage in STAGES and not folder.evaluation.exists():
        with errors_of("task.world"):  # before anything is paid for, or trained
            load_world(experiment.task.world)
    check_llms(experiment.llms, console)
    _check_path_is_used(experiment, line)
    _check_shape_is_used(experiment, line)
    _check_rounds_are_used(experiment, line)
    if line.dry_run:
        from experiments import forecasts

        forecasts.print_forecasts(experiment, folder, console)
        return
    if line.preview:
        _preview(name, config, experiment, folder, line.preview, console)
        return
    if line.stage == "chat":
        from experiments.stages import chat

        chat.run(experiment, folder, console)
        return
    if line.stage == "export":
        from experiments.stages import export

        export.run(experiment, folder, console)
        return
    if experiment.machine.coordinator:
        run_on_hosts(name, config, experiment, folder, line.stage, console)
        return
    if line.stage in STAGES[STAGES.index("train") :]:
        # Before the settings are kept with the run, and before dialogues are paid for.
        from experiments.stages import train

        train.check_settings(experiment, folder)
    run_stages(name, config, experiment, folder, line.stage, console)


def check_llms(llms: Sequence[LLMConfig], console: Console) -> None:
    """Raises `LLMError` for a key that cannot be; warns where one can be read on its way."""
    for api in dict.fromkeys(llm.api for llm in llms):
        check_keys(api)
    used = dict.fromkeys((address_of(llm.base_url, llm.api), llm.api) for llm in llms)
    for address, api in used:
        if sends_key_in_the_open(address, api):
            console.print(
                f"Warning: {without_password(address)} is plain http, so everybody on the way can "
                "read the key that is sent there. Use https, or a server on this machine.",
                style="yellow",
                markup=False,
                highlight=False,
            )


def _preview(
    name: str,
    config: ConfigDict,
    experiment: Experiment,
    folder: RunFolder,
    number: int,
    console: Console,
) -> None:
    """Shows the first dialogues that an LLM imagines, and ends."""
    from experiments import llm_imagination

    if not experiment.imagines_with_llm:
        raise RunError(
            f"--preview={number} shows dialogues that an LLM imagines; set "
            "config.imagination.engine=anthropic."
        )
    with folder.lock():
        check_stage(folder, "imagine", experiment)
        folder.save_config(name, config)
        llm_imagination.preview(experiment, folder, number, console)


def _check_rounds_are_used(experiment: Experiment, line: CommandLine) -> None:
    """Settings of rounds are of use where a method learns from them.

    Those of the experiment's file may be there for methods that are left out this time.
    """
    for prefix, stage, what, number in (
        ("hindsight.", "regenerate", "hindsight", experiment.rounds),
        ("imagination.round_", None, "imagination", experiment.imagination_rounds),
    ):
        given = [f"config.{key}" for key in line.overrides if key.startswith(prefix)]
        if line.stage == stage:
            given.append(f"--stage={stage}")
        if given and not number:
            raise ConfigError(
                f"{given[0]} is about rounds of {what}, but no method of config.methods "
                f"({', '.join(experiment.run.methods)}) learns from them; add one such as "
                f"ilql_{what}1."
            )


def _check_path_is_used(experiment: Experiment, line: CommandLine) -> None:
    if line.overrides.get("data.path") and experiment.data.source == "world":
        raise ConfigError(
            f"config.data.path is {shown(experiment.data.path, 300, repr)}, but the dialogues come "
            "from elsewhere: config.data.source is 'world'. Set it to what this is (jsonl, or a "
            "corpus)."
        )


def _check_shape_is_used(experiment: Experiment, line: CommandLine) -> None:
    """A pretrained network has a shape of its own, but for what no config.json holds."""
    shape = {f"model.{name}" for name in SHAPE_OF_FRESH}
    given = [key for key in line.overrides if key in shape]
    if given and experiment.network.pretrained:
        raise ConfigError(
            f"config.{given[0]} is given, but the network has the shape of "
            f"config.model.pretrained, {experiment.network.pretrained!r}. Leave one of them out."
        )


def run_stages(
    name: str,
    config: ConfigDict,
    experiment: Experiment,
    folder: RunFolder,
    last: str,
    console: Console,
) -> None:
    """Runs the stages up to this one, as far as they are not done.

    Args:
        name: Name of the experiment.
        config: Settings that are kept with the run.
        experiment: Built from them.
        folder: Folder of the run.
        last: Last stage.
        console: Receives what is told.

    Raises:
        RunError: The folder was made from other settings, or another process works in it.
    """
    with folder.lock():
        for each in STAGES:
            check_stage(folder, each, experiment)
        folder.save_config(name, config)
        if last == "derive":
            _derive(experiment, folder, console)
            return
        for each in STAGES[: STAGES.index(last) + 1]:
            if each != "regenerate" or experiment.rounds:
                _run_stage(each, experiment, folder, console)


def run_on_hosts(
    name: str,
    config: ConfigDict,
    experiment: Experiment,
    folder: RunFolder,
    stage: str,
    console: Console,
) -> None:
    """Runs the part of the stage train that is this process's.

    Raises:
        RunError: Another stage is asked for, or one before it is not done.
    """
    if stage != "train":
        raise RunError(
            f"several hosts (config.machine.coordinator) do the stage train alone, not {stage}: "
            "add --stage=train. The other stages are done by one host, without config.machine."
        )
    needed = [folder.dialogues]
    needed += [folder.hindsight_round(k) for k in range(1, experiment.rounds + 1)]
    if missing := [path for path in needed if not path.exists()]:
        raise RunError(
            f"{missing[0]} is not there, which the hosts are to learn from. Run the same command "
            "on one of them, without config.machine and with "
            f"--stage={'imagine' if missing[0] == folder.dialogues else 'regenerate'}, and see "
            "that all of them see the folder."
        )
    sharding.start_hosts(experiment.machine)
    if sharding.is_first_host():
        run_stages(name, config, experiment, folder, stage, console)
    else:
        from experiments.stages import train

        train.run(experiment, folder, Console(quiet=True))
    sharding.wait_for_all("the stage train")


def _derive(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    from experiments import llm_imagination

    if not experiment.imagines_with_llm:
        raise RunError(
            "--stage=derive writes the task that an LLM is to imagine; set "
            "config.imagination.engine=anthropic."
        )
    llm_imagination.derive(experiment, folder, console)


def _run_stage(stage: str, experiment: Experiment, folder: RunFolder, console: Console) -> None:
    # Imported late: an error in the settings is told before the libraries of the stages load.
    from experiments.stages import evaluate, imagine, regenerate, report, train

    start = time.monotonic()
    begin_stage(folder, stage, experiment)
    with provenance.recorded_if_interrupted(folder.sessions, stage, sys.argv):
        if stage == "imagine":
            imagine.run(experiment, folder, console)
        elif stage == "regenerate":
            regenerate.run(experiment, folder, console)
        elif stage == "train":
            train.run(experiment, folder, console)
        elif stage == "evaluate":
            evaluate.run(experiment, folder, console)
        else:
            report.run(experiment, folder, console)
    seconds = time.monotonic() - start
    provenance.record(folder.sessions, provenance.session(stage, sys.argv, seconds))
    console.print(f"[dim]{stage}: {seconds:.0f} s[/dim]")
