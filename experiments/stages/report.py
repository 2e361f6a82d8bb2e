"""Stage report: the tables of results in the terminal, and `report.html` with its figures."""

from __future__ import annotations

from rich.console import Console

from experiments.build import Experiment
from experiments.evaluation.diagnosis import Diagnosis
from experiments.evaluation.returns import discount_of
from experiments.evaluation.summary import Evaluation, Heldout
from experiments.methods import TrainedMethod
from experiments.report import diagnosis, page, tables
from experiments.report.run import Trained
from experiments.run_folder import RunFolder


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Writes the report and prints its tables."""
    path = page.write_report(folder.path, facts_of(experiment))
    if folder.evaluation.exists():
        evaluation = Evaluation.read(folder.evaluation)
        tables.print_results(console, evaluation)
        if folder.diagnosis.exists():
            diagnosis.print_diagnosis(console, Diagnosis.read(folder.diagnosis), evaluation)
    if folder.heldout.exists():
        tables.print_heldout(console, Heldout.read(folder.heldout))
    console.print(f"Report: {path}")


def facts_of(experiment: Experiment) -> dict[str, Trained]:
    """Facts of the trainings that the report reads their numbers by, by name of the method."""
    return {
        each.name: Trained(
            discount_of(each.method, experiment.batches), _steps_before(experiment, each)
        )
        for each in experiment.methods
    }


def _steps_before(experiment: Experiment, method: TrainedMethod) -> int:
    """Steps that a network has taken when a training of this method begins."""
    if method.starts_from is None:
        return 0
    before = experiment.method(method.starts_from)
    return before.train.steps + _steps_before(experiment, before)
