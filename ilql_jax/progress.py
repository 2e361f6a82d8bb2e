"""Progress bars in the terminal, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, unit: str = "steps", note: str = ""
) -> Iterator[Callable[[int, str], None]]:
    """Shows a bar while the context is open; yields `update(completed, note)`.

    Beside the bar stand the count, units per second, the time elapsed and left, and the note. Where
    standard error is no terminal, only the last state is printed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TextColumn
    from rich.text import Text

    class Times(TextColumn):
        """Rate since this process started, elapsed and remaining time."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            rate = f"{speed:.3g} {unit}/s  " if speed else ""
            return Text(f"{rate}elapsed {clock(task.elapsed)}, left {clock(task.time_remaining)}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        Times(""),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, note=note)
        yield lambda completed, note: progress.update(task, completed=completed, note=note)


def clock(seconds: float | None) -> str:
    """Formats a duration as 0:05, 1:20 or 2:03:04; "-" where it is not known."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
