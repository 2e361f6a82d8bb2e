"""Terminal output of a run: console, progress bars, and silence from libraries."""

from __future__ import annotations

import os
import warnings

from absl import logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
)
from rich.text import Text

from ilql_jax.progress import clock

WIDTH_OF_A_FILE = 100


def make_console() -> Console:
    """A console that keeps the tables whole when the output goes into a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)


def quiet_libraries() -> None:
    """Hides remarks of libraries that are of no use to who runs an experiment."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "PyTorch was not found"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


class _Times(ProgressColumn):
    """`elapsed 0:05, left 1:20`; the rest is unknown until there is a rate."""

    def render(self, task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        text = f"elapsed {clock(elapsed or 0)}"
        if not task.finished and task.time_remaining is not None:
            text += f", left {clock(task.time_remaining)}"
        return Text(text)


def progress_bars(console: Console) -> Progress:
    """Bars with count, rate, elapsed and remaining time; plain lines where there is no terminal."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        _Times(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        speed_estimate_period=20,
    )
