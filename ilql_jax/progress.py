"""Progress bars of all that takes long; plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

WIDTH_OF_A_FILE = 100
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


def make_console(stderr: bool = False) -> Console:
    """A console that keeps the tables whole when the output goes into a file or a pipe."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH_OF_A_FILE)


class ProgressBars(Progress):
    """Bars with count, rate, elapsed and remaining time, and the field `note` of each.

    Where nothing can be drawn anew, in a log file or a pipe, a line is printed of each bar that is
    under way, every 30 seconds, and a last one of those that ended since. At the end the bars
    themselves are printed.

    Args:
        console: Console that shows them; its clock is theirs.
        unit: Name of what is counted, for the rate.
    """

    def __init__(self, console: Console, unit: str = ""):
        drawn = console.is_terminal and not console.is_dumb_terminal
        self._prints_lines = not (drawn or console.is_jupyter)
        self._clock = console.get_time
        self._next_lines = math.inf  # when they are due
        self._printed: set[TaskID] = set()  # those that were under way then
        super().__init__(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(unit),
            _Times(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            speed_estimate_period=20,
            # Looked at by a thread, so that a line comes also where the work itself says nothing.
            refresh_per_second=1 / SECONDS_BETWEEN_LINES if self._prints_lines else 10,
        )

    def start(self) -> None:
        """Shows the bars from now on."""
        if self._prints_lines:
            self._next_lines = self._clock() + SECONDS_BETWEEN_LINES
        super().start()

    def stop(self) -> None:
        """Shows the last state of the bars, which stays."""
        self._next_lines = math.inf
        super().stop()

    def get_renderable(self) -> RenderableType:
        """The bars as they are; called whenever they are looked at."""
        if self._clock() >= self._next_lines:
            self._next_lines = self._clock() + SECONDS_BETWEEN_LINES
            self._print_lines()
        return super().get_renderable()

    def _print_lines(self) -> None:
        under_way = {task.id for task in self.tasks if task.started and not task.finished}
        for task in self.tasks:
            if task.id in under_way | self._printed:
                texts = [column(task) for column in self.columns]
                words = (text.plain.strip() for text in texts if isinstance(text, Text))
                line = "  ".join(filter(None, words))
                self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._printed = under_way


class LiveNote:
    """A note of a bar that is made anew each time it is shown."""

    def __init__(self, text: Callable[[], str]):
        self._text = text

    def __str__(self) -> str:
        return self._text()


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        self._unit = f" {unit}" if unit else ""
        super().__init__()

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        return Text(f"{speed:,.0f}{self._unit}/s" if speed >= 100 else f"{speed:.3g}{self._unit}/s")


class _Times(ProgressColumn):
    """`elapsed 0:05, left 1:20`; the rest is unknown until there is a rate."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        text = f"elapsed {clock(elapsed or 0)}"
        if not task.finished and task.time_remaining is not None:
            text += f", left {clock(task.time_remaining)}"
        return Text(text)


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, unit: str = "steps", note: str = ""
) -> Iterator[Callable[[int, str], None]]:
    """Shows one bar on standard error while the context is open.

    Yields:
        `update(completed, note)`.
    """
    with ProgressBars(make_console(stderr=True), unit) as bars:
        task = bars.add_task(title, total=total, note=note)
        yield lambda completed, note: bars.update(task, completed=completed, note=note)


def clock(seconds: float) -> str:
    """Formats a duration as 0:05, 1:20 or 2:03:04."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
