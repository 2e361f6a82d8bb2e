"""Sweeps of the command line: each variant's settings are understood, in both sizes."""

from __future__ import annotations

import importlib
import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console

from experiments import looks, sweeps, variants
from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import ConfigError
from experiments.provenance import Session
from experiments.variants import Row, SweepResult
from ilql_jax.methods import METHODS
from ilql_jax.settings import SettingError

EVERY = [(name, each) for name, kind in sweeps.SWEEPS.items() for each in kind.experiments]


@pytest.mark.parametrize("size", ["full", pytest.param("small", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "experiment"), EVERY)
def test_every_variant_is_an_experiment_that_can_be_run(
    name: str, experiment: str, size: str, tmp_path: Path
):
    config = sweeps.SweepConfig(sweep=name, experiment=experiment, size=size, seeds=2)
    sweep = sweeps.chosen(config)
    is_default = experiment == sweeps.SWEEPS[name].experiments[0]
    assert sweep.name == (name if is_default else f"{name}-{experiment}")
    assert len(sweep.variants) > 1
    if experiment != sweeps.ALL:
        assert {each.experiment for each in sweep.variants} == {experiment}
    built = []
    for variant in sweep.variants:
        module = importlib.import_module(f"experiments.{variant.experiment}")
        words = ["program", *variants.arguments(sweep, variant, tmp_path / "run")]
        line = parse(variant.experiment, module.get_config(), words, module.VARIANTS)
        built.append(checked(line.config))
        assert built[-1].run.seeds == 2
    told = {str(each) for each in built}
    assert len(told) == len(built)  # no two are the same experiment


def test_what_is_not_varied_is_the_default_of_the_experiment():
    for experiment, first in (("teaching", 3000), ("travel", 8000)):
        sweep = sweeps.chosen(sweeps.SweepConfig(sweep="steps", experiment=experiment))
        assert [each.at for each in sweep.variants][:2] == [first, first / 4]
    first, *others = sweeps.chosen(
        sweeps.SweepConfig(sweep="data", experiment="counseling")
    ).variants
    assert first.settings == {
        "methods": "fbc_hindsight1,ilql_hindsight1", "imagination.dialogues": 3000
    }  # fmt: skip
    assert [each.at for each in others] == [1000, 9000]


def test_the_parts_of_ilql_are_crossed_and_credit_is_told_from_what_comes_with_it():
    sweep = sweeps.chosen(sweeps.SweepConfig(sweep="gain"))
    parts = {
        (
            each.settings["methods"],
            any(key.endswith("awac_temperature") for key in each.settings),
            "best of" in each.settings[f"decoding.{each.settings['methods']}"],
        )
        for each in sweep.variants[:8]
    }
    assert parts == set(itertools.product(("ilql", "mc"), (False, True), (False, True)))
    steps = [dict(each.settings) for each in sweep.variants[8:11]]
    assert [steps[1][key] for key in steps[1].keys() - steps[0].keys()] == ["token"]
    assert {key.rpartition(".")[2] for key in steps[2].keys() - steps[1].keys()} == {
        "cql_weight", "token_trace", "ilql"
    }  # fmt: skip


def test_methods_of_each_world_are_those_that_learn_there():
    sweep = sweeps.chosen(sweeps.SweepConfig(sweep="methods"))
    trained = {each.label: each.settings["methods"].split(",") for each in sweep.variants}
    assert trained["teaching"] == [
        name for name, each in METHODS.items() if each.learns_from == "dialogues"
    ]
    more = ["ilql_hindsight1", "ilql_hindsight2", "dpo"]
    assert trained["persuasion"] == [*trained["teaching"], *more]
    assert trained["travel by token"] == ["ilql"]
    assert sweep.between_methods and len(trained) == 8


def test_an_experiment_that_makes_no_sense_in_a_sweep_is_refused():
    with pytest.raises(SettingError, match=r"'maze', but must be teaching, .* or persuasion in"):
        sweeps.SweepConfig(sweep="data", experiment="maze")
    with pytest.raises(SettingError, match="must be persuasion or counseling in the sweep hind"):
        sweeps.SweepConfig(sweep="hindsight", experiment="travel")


def test_a_small_sweep_keeps_what_its_variants_set():
    sweep = sweeps.chosen(sweeps.SweepConfig(sweep="data", size="small"))
    words = variants.arguments(sweep, sweep.variants[1], Path("x"))
    assert [w for w in words if "imagination.dialogues" in w] == [
        "--config.imagination.dialogues=1000"
    ]


def test_a_sweep_ends_with_its_figures_and_what_made_them(tmp_path: Path, monkeypatch):
    made = Session("train", "python x.py", "0123abcd", "jax 1", "2 cores", "2026-11-28", 60.0)
    look = looks.look_of("bc", METHODS)
    rows = tuple(Row(each, "bc", look, None, 1, 0.5, (0.4, 0.6)) for each in ("one", "two"))
    found = SweepResult("gain", "?", "", False, False, {"average": rows}, (made,))
    monkeypatch.setattr(variants, "run", lambda *_: found)
    console = Console(file=io.StringIO(), width=300)
    sweeps._run(["experiments/sweeps.py", "--sweep=gain", f"--workdir={tmp_path}"], console)
    page = (tmp_path / "gain.md").read_text()
    line = "`python experiments/sweeps.py --sweep=gain --workdir=.../"
    assert f"\n\nMade with:\n\n- {line}" in page and line in console.file.getvalue()
    assert page.endswith(" with commit 0123abcd, jax 1; 2 cores; 2026-11-28; train 60 s\n")
    assert str(tmp_path) not in page
    assert SweepResult.read(tmp_path / "gain.json").sessions == (made,)
    assert (tmp_path / "gain.png").read_bytes()[1:4] == b"PNG"


def test_settings_of_runs_are_refused_and_a_sweep_must_be_named(capsys):
    console = Console(quiet=True)
    with pytest.raises(ConfigError, match="variants set settings of runs themselves"):
        sweeps._run(["sweeps.py", "--sweep=gain", "--config.train.steps=3"], console)
    with pytest.raises(ConfigError, match="--sweep is missing"):
        sweeps._run(["sweeps.py"], console)
    with pytest.raises(ConfigError, match="sweep is 'gains'"):
        sweeps._run(["sweeps.py", "--sweep=gains"], console)
