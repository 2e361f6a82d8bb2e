"""Variants of an experiment side by side: runs, scores with intervals, tests, table and figure.

A sweep (`sweeps.py`) is a question and the variants that answer it. Each variant is an ordinary run
in a folder of its own below the sweep's: a command that was stopped goes on where it was, and each
run has its own report. All talk with the same humans, so that variants are compared human by human.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from experiments.evaluation import typed_json
from experiments.evaluation.statistics import compare, compare_trainings, holm, paired
from experiments.evaluation.summary import STAGE, Bounds, Evaluation, Population, References, Scores
from experiments.files import write_atomically
from experiments.interrupts import TERMINATED, Stop, not_passed_on
from experiments.looks import Look
from experiments.provenance import Session, read_sessions
from experiments.report import tables as tables_of_runs
from experiments.report import wording
from experiments.report.tables import Cell, ResultTable
from experiments.run_folder import STAGES, RunError, RunFolder, Unit
from experiments.stamps import stamp_file
from imagination.dialogue import read_dialogues
from imagination.simulation import POPULATIONS

SWEEP_SCHEMA = 3
_OF_EVALUATION = ("decoding.", "evaluation.")  # settings that no training depends on
_OF_RESULTS = shutil.ignore_patterns("results*", "*.results")  # in the folder of metrics

Execute = Callable[[Sequence[str]], int]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run of a sweep.

    Attributes:
        label: In tables, figures and folder names.
        settings: Key -> value, as after `--config.`; they go before those of the whole sweep.
        trained_as: Label of an earlier variant with the same dialogues and trainings, which are
            copied from there; "" = none. Only settings of decoding and evaluation may differ.
        at: Place on the sweep's axis; None in a sweep without one.
        experiment: Experiment's file, without its ending.
    """

    label: str
    settings: Mapping[str, Any]
    trained_as: str = ""
    at: float | None = None
    experiment: str = "teaching"

    @property
    def folder_name(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A question, and the variants that answer it.

    Attributes:
        name: On the command line and of the folder.
        question: In one sentence.
        variants: The first of an experiment is what its others are compared with.
        settings: Key -> value, of all variants.
        axis: Name of what varies, where variants lie on an axis; "" = they are kinds.
        is_logarithmic: True where steps along the axis are factors.
        between_methods: All methods of an experiment are compared with its main one, instead of
            each with the same method of the first variant.

    Raises:
        ValueError: Labels that are not unique, or a variant that cannot have been trained as the
            one it names.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axis: str = ""
    is_logarithmic: bool = False
    between_methods: bool = False

    def __post_init__(self):
        known: dict[str, Variant] = {}
        folders = {each.folder_name for each in self.variants}
        if len(folders) < len(self.variants):
            raise ValueError(f"sweep {self.name}: two variants have the same label.")
        for each in self.variants:
            if (each.at is None) == bool(self.axis):
                raise ValueError(f"sweep {self.name}: {each.label!r} has no place on its axis.")
            if each.trained_as:
                self._check_is_trained_as(each, known.get(each.trained_as))
            known[each.label] = each

    def _check_is_trained_as(self, variant: Variant, other: Variant | None) -> None:
        if other is None or other.experiment != variant.experiment:
            raise ValueError(
                f"sweep {self.name}: {variant.label!r} is trained as {variant.trained_as!r}, which "
                "is no earlier variant of that experiment."
            )
        of_training = [
            {k: v for k, v in each.settings.items() if not k.startswith(_OF_EVALUATION)}
            for each in (variant, other)
        ]
        if of_training[0] != of_training[1]:
            raise ValueError(
                f"sweep {self.name}: {variant.label!r} and {other.label!r} differ in more than "
                "decoding and evaluation, so they cannot share a training."
            )


@dataclasses.dataclass(frozen=True)
class Row:
    """A method of a variant with the humans of one population.

    Attributes:
        variant: Label.
        method: Name.
        look: Title, colour and marker of the method.
        at: Place on the axis; None without one.
        trainings: Number of them.
        score: Normalized score; None where the world has none.
        score_ci95: Its interval, over trainings and episodes.
        difference: Score minus that of the row that it is compared with (`Sweep`), in the same
            experiment; None for that row itself.
        p: p-value of the difference, for the agents as trained.
        p_holm: After Holm's correction for the rows of the experiment and population.
        p_training: For training again; None with one training.
        p_training_holm: After Holm's correction.
    """

    variant: str
    method: str
    look: Look
    at: float | None
    trainings: int
    score: float | None
    score_ci95: Bounds | None
    difference: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_training: float | None = None
    p_training_holm: float | None = None


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Content of a sweep's `.json`.

    Attributes:
        name: Name of the sweep.
        question: That it answers.
        axis: Name of what varies; "" where variants are kinds.
        is_logarithmic: True where steps along the axis are factors.
        between_methods: Kind of the comparison, as in `Sweep`.
        population: Name -> rows, in the order of the variants, an experiment after the other.
        sessions: Those of the variants' runs, up to their evaluation.
    """

    name: str
    question: str
    axis: str
    is_logarithmic: bool
    between_methods: bool
    population: Mapping[str, tuple[Row, ...]]
    sessions: tuple[Session, ...] = ()
    schema: int = SWEEP_SCHEMA

    def write(self, path: Path) -> None:
        typed_json.write(path, self)

    @classmethod
    def read(cls, path: Path) -> SweepResult:
        """Raises `ResultsError` for a file that `write` has not written."""
        return typed_json.read(path, cls, STAGE)


# --- runs ---------------------------------------------------------------------------------------


def arguments(sweep: Sweep, variant: Variant, folder: Path) -> list[str]:
    """Arguments of the run's command, after the experiment's file."""
    settings = {**sweep.settings, **variant.settings}
    return [f"--workdir={folder}", *(f"--config.{k}={v}" for k, v in settings.items())]


def run(sweep: Sweep, home: Path, console: Console, execute: Execute | None = None) -> SweepResult:
    """Does the runs as far as they are not done, and compares them.

    Args:
        sweep: The variants.
        home: Folder of the sweep; each run has its folder in there.
        console: Receives what is told.
        execute: Runs a command and returns its exit status; None = as a process of its own, whose
            output is shown.

    Raises:
        RunError: A run has failed. What is done stays; the same command goes on there.
    """
    execute = execute or _executed
    folders = {each.label: home / each.folder_name for each in sweep.variants}
    for number, each in enumerate(sweep.variants, start=1):
        folder = folders[each.label]
        title = f"{sweep.name}, variant {number} of {len(sweep.variants)}: {each.label}"
        console.rule(f"{title} ({folder})", style="dim")
        if each.trained_as and not (folder / "config.yaml").exists():
            _copy_training(folders[each.trained_as], folder)
        elif each.trained_as:
            _copy_new_trainings(folders[each.trained_as], folder)
        program = Path(__file__).with_name(f"{each.experiment}.py")
        command = [sys.executable, str(program), *arguments(sweep, each, folder)]
        if status := execute(command):
            raise RunError(
                f"{each.label!r} of the sweep {sweep.name} ended with exit status {status}; what "
                f"it said stands above. To run it alone: {shlex.join(['python', *command[1:]])}"
            )
    return compared(sweep, folders)


def _executed(command: Sequence[str]) -> int:
    """Runs a command; where this process is stopped, it ends as when it is stopped alone."""
    with not_passed_on():
        process = subprocess.Popen(command)
    with process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            Stop.told = process.wait() == TERMINATED  # it has printed the line
            raise


def _copy_training(source: Path, target: Path) -> None:
    """Copies what a run has up to its trainings; an interrupted copy is made anew."""
    run = RunFolder(source)
    stages = STAGES[: STAGES.index("train") + 1]
    wanted = [run.dataset_card, run.task, run.hindsight_card]
    wanted += [path for stage in stages for path in (*run.products(stage), stamp_file(run, stage))]
    unfinished = target.with_name(f"{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path in filter(Path.exists, wanted):
        copy = unfinished / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, dirs_exist_ok=True, ignore=_OF_RESULTS)
        else:
            shutil.copy2(path, copy)
    unfinished.rename(target)


def _copy_new_trainings(source: Path, target: Path) -> None:
    """Copies trainings that a run has and its copy has not, as after a larger number of seeds."""
    run, copy = RunFolder(source), RunFolder(target)
    for unit in _trained(run) - _trained(copy):
        folders = [each.checkpoints(unit) for each in (run, copy)]
        logs = [each.metrics(unit).with_suffix("") for each in (run, copy)]
        for old, new in (folders, logs):
            shutil.rmtree(new, ignore_errors=True)
            if old.exists():
                shutil.copytree(old, new, ignore=_OF_RESULTS)
        for file in (RunFolder.metrics, RunFolder.imagined):
            if file(run, unit).exists():
                file(copy, unit).parent.mkdir(exist_ok=True)
                shutil.copy2(file(run, unit), file(copy, unit))
        # The mark last: without it, the training is copied again.
        write_atomically(copy.finished(unit), run.finished(unit).read_bytes())


def _trained(run: RunFolder) -> set[Unit]:
    """Trainings that a run has finished."""
    ending = ".finished.json"
    marks = run.path.glob(f"metrics/*{ending}")
    return {unit for path in marks if (unit := Unit.parse(path.name.removesuffix(ending)))}


# --- comparison ---------------------------------------------------------------------------------


def compared(sweep: Sweep, folders: Mapping[str, Path]) -> SweepResult:
    """Scores of all variants, tested within each experiment.

    Args:
        sweep: The variants.
        folders: Label -> folder of a finished run.
    """
    runs = {label: RunFolder(path) for label, path in folders.items()}
    evaluations = {label: Evaluation.read(run.evaluation) for label, run in runs.items()}
    rewards = {label: _rewards(runs[label], each) for label, each in evaluations.items()}
    experiments: dict[str, list[Variant]] = {}
    for variant in sweep.variants:
        experiments.setdefault(variant.experiment, []).append(variant)
    population = {}
    for name in POPULATIONS:
        found = {label: each.population[name] for label, each in evaluations.items()}
        own = {label: each[name] for label, each in rewards.items()}
        population[name] = tuple(
            row
            for variants in experiments.values()
            for row in _compared(variants, found, own, sweep.between_methods)
        )
    return SweepResult(
        sweep.name,
        sweep.question,
        sweep.axis,
        sweep.is_logarithmic,
        sweep.between_methods,
        population,
        tuple(each for run in runs.values() for each in _sessions(run)),
    )


def _sessions(run: RunFolder) -> list[Session]:
    """Sessions of all that its scores depend on."""
    return [each for each in read_sessions(run.sessions) if each.stage != "report"]


def _compared(
    variants: Sequence[Variant],
    found: Mapping[str, Population],
    rewards: Mapping[str, Mapping[str, Float[np.ndarray, "seeds episodes"]]],
    between_methods: bool,
) -> tuple[Row, ...]:
    """Rows of one experiment and population, tested against one of the first variant.

    Args:
        variants: All of the experiment.
        found: Label -> scores.
        rewards: Label -> method -> rewards.
        between_methods: As in `Sweep`.
    """
    first = variants[0]
    of_first = rewards[first.label]
    main = (between_methods and wording.main_method(of_first)) or next(iter(of_first))
    rows = []
    for variant in variants:
        of_variant = found[variant.label]
        for method, scores in of_variant.methods.items():
            row = _row(variant, method, scores)
            other = main if between_methods or method not in of_first else method
            if (variant, method) != (first, other):
                own = rewards[variant.label][method]
                row = _tested(row, own, of_first[other], of_variant.references)
            rows.append(row)
    return _corrected(rows)


def _rewards(
    run: RunFolder, evaluation: Evaluation
) -> dict[str, dict[str, Float[np.ndarray, "seeds episodes"]]]:
    """Population -> method -> rewards, nan where nobody rated."""
    found: dict[str, dict[str, list[list[float | None]]]] = {name: {} for name in POPULATIONS}
    for method, scores in evaluation.population[POPULATIONS[0]].methods.items():
        for training in scores.trainings:
            dialogues = read_dialogues(run.unit_conversations(Unit(method, training.seed)))
            for name in POPULATIONS:
                own = [d.reward for d in dialogues if d.source["population"] == name]
                found[name].setdefault(method, []).append(own)
    return {
        name: {method: np.array(rows, float) for method, rows in methods.items()}
        for name, methods in found.items()
    }


def _row(variant: Variant, method: str, scores: Scores) -> Row:
    return Row(
        variant=variant.label,
        method=method,
        look=scores.look,
        at=variant.at,
        trainings=len(scores.trainings),
        score=scores.normalized,
        score_ci95=scores.normalized_ci95,
    )


def _tested(row: Row, own: np.ndarray, other: np.ndarray, references: References | None) -> Row:
    """With the difference between two rows of rewards, human by human."""
    own, other = paired(own, other)
    difference, p = compare(own, other, seed=0)
    p_training = compare_trainings(own, other)
    normalized = None if references is None else references.normalized_difference(difference)
    return dataclasses.replace(row, difference=normalized, p=p, p_training=p_training)


def _corrected(rows: Sequence[Row]) -> tuple[Row, ...]:
    """With Holm's correction, over the rows that were tested."""
    for name in ("p", "p_training"):
        p_values = [getattr(row, name) for row in rows]
        adjusted = iter(holm([p for p in p_values if p is not None]))
        rows = [
            row if p is None else dataclasses.replace(row, **{f"{name}_holm": next(adjusted)})
            for row, p in zip(rows, p_values, strict=True)
        ]
    return tuple(rows)


# --- what is shown ------------------------------------------------------------------------------


def tables(result: SweepResult) -> list[ResultTable]:
    """A table for each population, in the order of the variants."""
    made = []
    for name, rows in result.population.items():
        p = "p_training_holm" if _trainings(rows) > 1 else "p_holm"
        made.append(
            ResultTable(
                name,
                f"{result.question} {name.capitalize()} population",
                (result.axis or "variant", "method", wording.NORMALIZED, "difference", p),
                tuple(_line(row, getattr(row, p)) for row in rows),
                (_about_tests(rows, result.between_methods),),
            )
        )
    return made


def _trainings(rows: Sequence[Row]) -> int:
    """Number of trainings that each row has at least."""
    return min(row.trainings for row in rows)


def _line(row: Row, p: float | None) -> tables_of_runs.Row:
    difference = "" if row.difference is None else f"{row.difference:+.2f}"
    cells = (
        Cell(row.variant),
        Cell(row.look.title),
        Cell(wording.number(row.score), wording.interval(row.score_ci95)),
        Cell(difference),
        Cell("" if p is None else wording.p_value(p)),
    )
    return tables_of_runs.Row(f"{row.variant}/{row.method}", "method", cells)


def _about_tests(rows: Sequence[Row], between_methods: bool) -> str:
    """Says what differences are from, and over what intervals and p generalise."""
    trainings = _trainings(rows)
    told = [f"{trainings} training{'s' * (trainings > 1)} of each."]
    untested = [row for row in rows if row.p is None]
    is_tested = len(untested) < len(rows)
    if is_tested and between_methods:
        mains = [f"{row.look.title} ({row.variant})" for row in untested]
        told.append(f"Differences are from the main method of each world: {', '.join(mains)}.")
    elif is_tested:
        same = " with the same method" if len({row.method for row in untested}) > 1 else ""
        told.append(f"Differences are from {rows[0].variant}{same}.")
    if trainings > 1:
        told.append("Intervals cover other humans, and other trainings on the same dialogues.")
        p = "p_training_holm (after Holm's correction): would a difference last in such trainings?"
        told += [p] * is_tested
    else:
        values = "Intervals and p_holm (after Holm's correction)" if is_tested else "Intervals"
        told.append(
            f"{values} cover other humans, with the agents as trained; one training of each "
            "says nothing of new trainings."
        )
    return " ".join(told)


def draw(result: SweepResult):
    """Scores with their intervals: along the axis, or one below the other; matplotlib `Figure`."""
    from experiments.report.figures import style

    with style.styled():
        count = len(result.population)
        first = next(iter(result.population.values()))
        kinds = [(row.variant, row.method) for row in first]
        height = 3.2 if result.axis else 0.8 + 0.34 * len(kinds)
        panels = style.WIDE.panels(count, count, height, sharey=True, margin=0.9)
        handles, looks = {}, {row.method: row.look for row in first}
        for axis, (name, rows) in zip(panels.all, result.population.items(), strict=True):
            axis.set_title(f"{name} population")
            if result.axis:
                handles |= _draw_curves(axis, result, rows)
            else:
                handles |= _draw_kinds(axis, rows, kinds)
        if len(handles) > 1:
            style.add_legend(panels.figure, handles, looks, style.WIDE)
        if result.axis:
            panels.all[0].set_ylabel("normalized score")
        else:
            labels = [style.plain(label, 40) for label in _labels(first)]
            panels.all[0].set_yticks(range(len(kinds)), labels)
            style.ink_labels(panels.all[0].get_yticklabels())
            panels.all[0].set_ylim(len(kinds) - 0.4, -0.6)
    return panels.figure


def _labels(rows: Sequence[Row]) -> list[str]:
    """The variant of each row, with the method where variants have several."""
    variants = [row.variant for row in rows]
    if len(set(variants)) == len(variants):
        return variants
    return [f"{row.variant}: {row.look.title}" for row in rows]


def _draw_kinds(axis, rows: Sequence[Row], kinds: Sequence[tuple[str, str]]) -> dict[str, Any]:
    from experiments.report.figures import style

    handles = {}
    for line in (0.0, 1.0):  # the data's behaviours, the optimum
        axis.axvline(line, color=style.MUTED, linestyle=style.DASHED, lw=1, zorder=1)
    for row in rows:
        if row.score is None or row.score_ci95 is None:
            continue
        place = kinds.index((row.variant, row.method))
        axis.plot(row.score_ci95, [place, place], color=row.look.color, lw=2.4)
        (handles[row.method],) = axis.plot(
            row.score, place, row.look.marker, color=row.look.color, ms=7
        )
    axis.set_xlabel("normalized score")
    return handles


def _draw_curves(axis, result: SweepResult, rows: Sequence[Row]) -> dict[str, Any]:
    from experiments.report.figures import style

    handles = {}
    axis.axhline(1.0, color=style.MUTED, linestyle=style.DASHED, lw=1, zorder=1)
    for method in dict.fromkeys(row.method for row in rows):
        own = [r for r in rows if r.method == method and r.score_ci95 is not None]
        own.sort(key=lambda row: row.at)
        if not own:
            continue
        look, at = own[0].look, [row.at for row in own]
        low, high = zip(*(row.score_ci95 for row in own), strict=True)
        axis.fill_between(at, low, high, color=look.color, alpha=0.15, lw=0)
        (handles[method],) = axis.plot(
            at, [row.score for row in own], f"{look.marker}-", color=look.color
        )
    if result.is_logarithmic:
        places = sorted({row.at for row in rows})
        axis.set_xscale("log")
        axis.set_xticks(places, [f"{at:,g}" for at in places])
        axis.minorticks_off()
    axis.set_xlabel(result.axis)
    return handles
