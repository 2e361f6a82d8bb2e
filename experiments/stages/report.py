"""Stage report: the tables of results in the terminal, and `report.html` with its figures."""

from __future__ import annotations

from rich.console import Console

from experiments.evaluation.diagnosis import Diagnosis
from experiments.evaluation.summary import Evaluation, Heldout
from experiments.report import diagnosis, page, tables
from experiments.run_folder import RunFolder


def run(folder: RunFolder, console: Console) -> None:
    """Writes the report and prints its tables."""
    path = page.write_report(folder.path)
    if folder.evaluation.exists():
        evaluation = Evaluation.read(folder.evaluation)
        tables.print_results(console, evaluation)
        if folder.diagnosis.exists():
            diagnosis.print_diagnosis(console, Diagnosis.read(folder.diagnosis), evaluation)
    if folder.heldout.exists():
        tables.print_heldout(console, Heldout.read(folder.heldout))
    console.print(f"Report: {path}")
