"""Opens the folders of runs whose agents are served: files of somebody else, which are data."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import command_line
from experiments.build import Experiment, build
from experiments.checks import check
from experiments.config import base_config
from experiments.networks import has_all
from experiments.run_folder import RunFolder


def open_run(path: str, overrides: Sequence[str] = ()) -> tuple[Experiment, RunFolder]:
    """Reads what a run was made from, by the same guards as its own stages.

    Args:
        path: The run's folder.
        overrides: Settings of the command line, `--config.KEY=VALUE`, which go before those of
            the folder; code and addresses are taken from here alone.

    Raises:
        RunError: It holds no run, one of another version, or names code or an address itself.
        ConfigError: A setting that cannot be.
    """
    folder = RunFolder(path)
    folder.check_path()
    name = folder.known_experiment()
    line = command_line.parse(str(name), _defaults(str(name)), [str(name), *overrides])
    config = command_line.with_saved(line.config, folder, line.overrides)
    experiment = build(config)
    check(experiment, config, judged=False, trained=not has_all(experiment, folder))
    return experiment, folder


def _defaults(name: str) -> ConfigDict:
    """Settings of an experiment of ours; of another's file, those that all have."""
    file = Path(__file__).parents[1] / f"{name}.py"
    is_ours = (
        re.fullmatch(r"\w+", name) and file.is_file() and b"def get_config" in file.read_bytes()
    )
    if not is_ours:
        return base_config()
    return importlib.import_module(f"experiments.{name}").get_config()
