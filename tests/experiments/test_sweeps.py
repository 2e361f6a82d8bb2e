"""Sweeps of the command line: each variant's settings are understood, in both sizes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from rich.console import Console

from experiments import sweeps, variants
from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import ConfigError


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_every_variant_is_an_experiment_that_can_be_run(name: str, size: str, tmp_path: Path):
    sweep = sweeps.chosen(sweeps.SweepConfig(sweep=name, size=size, seeds=2))
    assert sweep.name == name and len(sweep.variants) > 1
    built = []
    for variant in sweep.variants:
        module = importlib.import_module(f"experiments.{variant.experiment}")
        words = ["program", *variants.arguments(sweep, variant, tmp_path / "run")]
        line = parse(variant.experiment, module.get_config(), words, module.VARIANTS)
        built.append(checked(line.config))
        assert built[-1].run.seeds == 2
    told = {str(each) for each in built}
    assert len(told) == len(built)  # no two are the same experiment


def test_a_small_sweep_keeps_what_its_variants_set():
    sweep = sweeps.chosen(sweeps.SweepConfig(sweep="data", size="small"))
    words = variants.arguments(sweep, sweep.variants[1], Path("x"))
    assert [w for w in words if "imagination.dialogues" in w] == [
        "--config.imagination.dialogues=1000"
    ]


def test_settings_of_runs_are_refused_and_a_sweep_must_be_named(capsys):
    console = Console(quiet=True)
    with pytest.raises(ConfigError, match="variants set settings of runs themselves"):
        sweeps._run(["sweeps.py", "--sweep=gain", "--config.train.steps=3"], console)
    with pytest.raises(ConfigError, match="--sweep is missing"):
        sweeps._run(["sweeps.py"], console)
    with pytest.raises(ConfigError, match="sweep is 'gains'"):
        sweeps._run(["sweeps.py", "--sweep=gains"], console)
