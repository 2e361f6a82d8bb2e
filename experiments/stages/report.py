"""Stage report: the tables of results in the terminal, and `report.html` with its figures."""

from __future__ import annotations

import json

from rich.console import Console

from experiments.report import page, tables
from experiments.run_folder import RunFolder


def run(folder: RunFolder, console: Console) -> None:
    """Writes the report and prints its tables."""
    path = page.write_report(folder.path)
    _print_results(folder, console)
    console.print(f"Report: {path}")


def _print_results(folder: RunFolder, console: Console) -> None:
    """Prints the tables that a run ends with."""
    if folder.evaluation.exists():
        tables.print_results(console, json.loads(folder.evaluation.read_text()))
    if folder.heldout.exists():
        tables.print_heldout(console, json.loads(folder.heldout.read_text()))
