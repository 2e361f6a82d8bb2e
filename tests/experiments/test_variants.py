"""Sweeps: variants as runs of their own, tests human by human, table and figure."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm_start
from evaluations import REFERENCES, population, scores
from launching import ROOT, TINY
from rich.console import Console

from experiments import variants
from experiments.evaluation.summary import Evaluation
from experiments.provenance import Session, record
from experiments.report.figures import style
from experiments.report.tables import print_table, to_markdown
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.variants import Sweep, SweepResult, Variant
from imagination.dialogue import Dialogue, Turn, write_dialogues

TURNS = [Turn("human", "Hi."), Turn("agent", "Hello.")]


def finished_run(folder: Path, rewards: dict[str, list[list[float]]]) -> None:
    """A run as far as a comparison reads it: rewards by method, of each seed and episode."""
    run = RunFolder(folder)
    run.unit_conversations(Unit("x", 0)).parent.mkdir(parents=True)
    methods = {name: scores(name, sum(rows[0]) / len(rows[0]), seeds=len(rows))
               for name, rows in rewards.items()}  # fmt: skip
    each = dataclasses.replace(population({"bc": 2.0}, ()), methods=methods)
    Evaluation("t", 4.0, None, {"average": each, "difficult": each}).write(run.evaluation)
    for name, rows in rewards.items():
        for seed, row in enumerate(rows):
            dialogues = [
                Dialogue(f"{group}{i}", "t", TURNS, reward, {}, {"population": group, "episode": i})
                for group in ("average", "difficult")
                for i, reward in enumerate(row)
            ]
            write_dialogues(run.unit_conversations(Unit(name, seed)), dialogues)


LOW, HIGH = ([[base + 0.1 * (i % 3) + 0.02 * seed for i in range(30)] for seed in range(3)]
             for base in (2.0, 3.0))  # fmt: skip


MADE = Session("train", "python x.py", "0123abcd", "jax 1", "2 cores", "2026-11-28 12:00 UTC", 60.0)


@pytest.fixture
def result(tmp_path: Path) -> SweepResult:
    sweep = Sweep(
        "parts",
        "What do the parts do?",
        (
            Variant("whole", {"methods": "ilql,fbc"}),
            Variant("less", {"methods": "ilql,fbc"}),
            Variant("plain", {"methods": "bc"}),
        ),
    )
    finished_run(tmp_path / "whole", {"ilql": HIGH, "fbc": LOW})
    finished_run(tmp_path / "less", {"ilql": LOW, "fbc": LOW})
    for stage in ("train", "report"):
        record(tmp_path / "less" / "sessions.jsonl", dataclasses.replace(MADE, stage=stage))
    finished_run(tmp_path / "plain", {"bc": LOW})
    folders = {each.label: tmp_path / each.folder_name for each in sweep.variants}
    return variants.compared(sweep, folders)


def test_rows_are_compared_with_the_first_variant_by_method_and_human(result):
    rows = {(row.variant, row.method): row for row in result.population["average"]}
    assert [*rows] == [
        ("whole", "ilql"), ("whole", "fbc"), ("less", "ilql"), ("less", "fbc"), ("plain", "bc")
    ]  # fmt: skip
    assert rows["whole", "ilql"].p is None and rows["whole", "fbc"].difference is None
    expected = -1 / (REFERENCES.optimum - REFERENCES.behaviour)  # of ilql, where there is no bc
    assert rows["less", "ilql"].difference == pytest.approx(expected)
    assert rows["plain", "bc"].difference == pytest.approx(expected)
    assert rows["less", "fbc"].difference == pytest.approx(0)
    assert rows["less", "ilql"].p_training_holm < 0.001 < rows["less", "fbc"].p_training_holm
    assert rows["less", "ilql"].p_holm > rows["less", "ilql"].p  # of three tests


def of_methods(home: Path) -> SweepResult:
    """Methods compared in two worlds, in one of them with a variant of a method."""
    sweep = Sweep(
        "methods",
        "Which?",
        (
            Variant("teaching", {"methods": "bc,ilql"}),
            Variant("persuasion", {"methods": "bc,ilql,..."}, experiment="persuasion"),
            Variant("teaching by token", {"methods": "ilql"}),
        ),
        between_methods=True,
    )
    finished_run(home / "teaching", {"bc": LOW, "ilql": HIGH})
    finished_run(home / "teaching-by-token", {"ilql": LOW})
    finished_run(home / "persuasion", {"bc": HIGH, "ilql": LOW, "ilql_hindsight1": HIGH})
    return variants.compared(sweep, {e.label: home / e.folder_name for e in sweep.variants})


def test_methods_are_compared_with_the_main_one_of_their_world(tmp_path: Path):
    found = of_methods(tmp_path)
    rows = {(row.variant, row.method): row for row in found.population["difficult"]}
    assert [*rows] == [
        ("teaching", "bc"), ("teaching", "ilql"), ("teaching by token", "ilql"),
        ("persuasion", "bc"), ("persuasion", "ilql"), ("persuasion", "ilql_hindsight1"),
    ]  # fmt: skip
    untested = [key for key, row in rows.items() if row.p is None]
    assert untested == [("teaching", "ilql"), ("persuasion", "ilql_hindsight1")]
    lower = -1 / (REFERENCES.optimum - REFERENCES.behaviour)
    differences = {key: row.difference for key, row in rows.items() if row.p is not None}
    assert differences == pytest.approx(
        {
            ("teaching", "bc"): lower,
            ("teaching by token", "ilql"): lower,
            ("persuasion", "bc"): 0,
            ("persuasion", "ilql"): lower,
        }
    )
    # Corrected for the two tests of a world, not for the four of all.
    row = rows["teaching by token", "ilql"]
    assert row.p_holm == pytest.approx(2 * row.p)


def test_methods_are_named_with_their_world(tmp_path: Path):
    found = of_methods(tmp_path)
    said = to_markdown(variants.tables(found)[0])
    assert (
        "Differences are from the main method of each world: ILQL (teaching), ILQL + 1 round of "
        "hindsight (persuasion). Intervals" in said
    )
    labels = [each.get_text() for each in variants.draw(found).axes[0].get_yticklabels()]
    assert labels[1:3] == ["teaching: ILQL", "teaching by token: ILQL"]
    assert len(set(labels)) == 6


def test_it_is_written_and_shown(result, tmp_path: Path):
    result.write(tmp_path / "parts.json")
    assert SweepResult.read(tmp_path / "parts.json") == result
    assert result.sessions == (MADE,)  # a report is no part of it
    average, difficult = variants.tables(result)
    page = to_markdown(average)
    assert "| less | ILQL |" in page and "| -0.36 | < 0.001 |" in page
    assert "| normalized score | difference | p_training_holm |" in page
    assert (
        "3 trainings of each. Differences are from whole with the same method. Intervals cover "
        "other humans, and other trainings on the same dialogues. p_training_holm (after Holm's "
        "correction): would a difference last in such trainings?" in page
    )
    console = Console(width=100, record=True)
    print_table(console, difficult)
    shown = console.export_text()
    assert "What do the parts do? Difficult population" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert style.to_png(variants.draw(result))[1:4] == b"PNG"


def test_of_one_training_nothing_is_said_over_trainings(result):
    rows = [dataclasses.replace(r, trainings=1, p_training_holm=None)
            for r in result.population["average"]]  # fmt: skip
    tested, untested = (
        to_markdown(variants.tables(dataclasses.replace(result, population={"average": each}))[0])
        for each in (rows, rows[:1])
    )
    assert "| difference | p_holm |" in tested and "trainings?" not in tested
    assert "Intervals and p_holm (after Holm's correction) cover other humans" in tested
    for page in (tested, untested):
        assert "one training of each says nothing of new trainings." in page
    assert "Intervals cover other humans" in untested


def test_places_on_an_axis_are_drawn_as_curves(result):
    along = {
        name: tuple(
            dataclasses.replace(row, at={"whole": 10.0, "less": 100.0, "plain": 1.0}[row.variant])
            for row in rows
        )
        for name, rows in result.population.items()
    }
    figure = variants.draw(
        dataclasses.replace(result, axis="dialogues", is_logarithmic=True, population=along)
    )
    (first, second) = figure.axes
    assert first.get_xscale() == "log" and first.get_xlabel() == "dialogues"
    curves = [line.get_xdata() for line in second.lines if len(line.get_xdata()) == 2]
    assert any(list(x) == [10, 100] for x in curves)  # from left to right


def test_variants_that_do_not_belong_together_are_named():
    base = Variant("base", {"methods": "bc"})
    for others, message in (
        ((Variant("Base!", {}),), "two variants have the same label"),
        ((Variant("b", {}, at=1.0),), "'b' has no place on its axis"),
        ((Variant("b", {}, trained_as="x"),), "trained as 'x', which is no earlier variant"),
        ((Variant("b", {"train.steps": 3}, trained_as="base"),), "differ in more than decoding"),
    ):
        with pytest.raises(ValueError, match=message):
            Sweep("s", "?", (base, *others))


def test_a_run_that_fails_is_named_with_its_command(tmp_path: Path):
    sweep = Sweep("s", "?", (Variant("one", {"methods": "bc"}),), settings={"seeds": 2})
    seen = []

    def fail(command):
        seen.append(command)
        return 3

    with pytest.raises(RunError, match=r"'one' of the sweep s ended with exit status 3.*seeds=2"):
        variants.run(sweep, tmp_path, Console(quiet=True), fail)
    assert seen[0][2:] == [
        f"--workdir={tmp_path / 'one'}",
        "--config.seeds=2",
        "--config.methods=bc",
    ]


def test_a_copy_has_what_was_trained_and_nothing_of_what_came_of_it(tmp_path: Path):
    kept = ("dialogues.jsonl", "dataset_card.md", "tokenizer/a", "checkpoints/bc-seed0/4/state",
            "metrics/bc-seed0.jsonl", "metrics/bc-seed0/events", "stages/train.json")  # fmt: skip
    left = ("evaluation.json", "evaluation/bc-seed0.json", "report.html", "stages/evaluate.json",
            "metrics/results.jsonl", "metrics/bc-seed0/events.results", "config.yaml")  # fmt: skip
    for name in (*kept, *left):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(name)
    (tmp_path / "two.partial").mkdir()  # of a copy that was interrupted
    (tmp_path / "two.partial" / "evaluation.json").write_text("")
    variants._copy_training(tmp_path / "one", tmp_path / "two")
    found = {str(p.relative_to(tmp_path / "two")) for p in (tmp_path / "two").rglob("*")}
    assert {name for name in found if (tmp_path / "two" / name).is_file()} == set(kept)
    assert not (tmp_path / "two.partial").exists()


def test_a_copy_gets_the_trainings_that_came_later(tmp_path: Path):
    for folder, seeds in (("one", (0, 1)), ("two", (0,))):
        for seed in seeds:
            for name in (f"checkpoints/bc-seed{seed}/4/state", f"metrics/bc-seed{seed}.jsonl",
                         f"metrics/bc-seed{seed}.finished.json"):  # fmt: skip
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{folder} {name}")
    half = tmp_path / "two/checkpoints/bc-seed1/2"  # of a copy, or a training, that was interrupted
    half.mkdir(parents=True)
    variants._copy_new_trainings(tmp_path / "one", tmp_path / "two")
    assert not half.exists()
    for path in (tmp_path / "one").rglob("*"):
        copy = tmp_path / "two" / path.relative_to(tmp_path / "one")
        if path.is_file():
            made = "one" if "seed1" in str(path) else "two"
            assert copy.read_text() == f"{made} {path.relative_to(tmp_path / 'one')}"


RUN = """
import signal, sys, time
def end(number, _):
    time.sleep(0.5)
    print("Stopped.", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
time.sleep(60)
"""
SWEEP = """
import sys
from experiments import variants
from experiments.interrupts import line, noticed
with noticed() as stop:
    try:
        variants._executed([sys.executable, "-c", sys.argv[1]])
    except KeyboardInterrupt:
        print("" if stop.told else line(stop), flush=True)
sys.exit(stop.status)
"""


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_run_of_a_sweep_that_is_stopped_ends_in_order_and_tells_it_once(number):
    command = [sys.executable, "-c", SWEEP, RUN]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as sweep:
        assert sweep.stdout.readline() == "begun\n"
        # As a terminal does: to the sweep and to its run.
        (os.killpg if number == signal.SIGINT else os.kill)(sweep.pid, number)
        assert sweep.stdout.read().split() == ["Stopped."]
    assert sweep.returncode == 128 + number


@pytest.mark.slow
def test_what_is_trained_alike_is_trained_once_and_a_finished_sweep_does_nothing(tmp_path: Path):
    settings = dict(each.removeprefix("--config.").split("=", 1) for each in TINY)
    settings |= {"methods": "bc", "train.steps": 4, "imagination.dialogues": 100}
    sweep = Sweep(
        "s",
        "?",
        (
            Variant("greedy", {}),
            Variant("sampled", {"decoding.bc": '("sampled",)'}, trained_as="greedy"),
        ),
        settings=settings,
    )
    outputs = []

    def execute(command):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}
        done = warm_start.run(command, cwd=ROOT, env=env, timeout=600)
        outputs.append(done.stdout + done.stderr)
        return done.returncode

    found = variants.run(sweep, tmp_path, Console(quiet=True), execute)
    assert "bc-seed0" in outputs[0] and "Training" in outputs[0]
    assert "Training" not in outputs[1]
    decodings = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["population"]["average"][
            "methods"
        ]["bc"]["trainings"][0]["decoding"]
        for name in ("greedy", "sampled")
    ]
    assert decodings == ["greedy", "sampled"]
    assert [row.variant for row in found.population["difficult"]] == ["greedy", "sampled"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("dialogues.jsonl")}
    again = variants.run(sweep, tmp_path, Console(quiet=True), execute)
    assert again.population == found.population
    assert {each.stage for each in found.sessions} >= {"imagine", "train", "evaluate"}
    assert len(outputs) == 4 and not any("Training" in each for each in outputs[2:])
    assert before == {path: path.stat().st_mtime_ns for path in before}
