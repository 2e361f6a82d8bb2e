"""Progress bars where there is no terminal: plain lines, by a clock that the tests set."""

import io
import re
import threading

import pytest
from rich.console import Console

from ilql_jax import progress
from ilql_jax.progress import ProgressBars


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def bars_of(clock, file=None, **kwargs):
    console = Console(file=file or io.StringIO(), width=100, get_time=clock, **kwargs)
    return ProgressBars(console, "steps"), console.file


def lines_at(bars, file, clock, seconds):
    """The lines that come of the first look at this time or later."""
    before, clock.seconds = len(file.getvalue()), seconds
    bars.refresh()
    return file.getvalue()[before:].splitlines()


def test_a_line_comes_every_30_seconds_with_count_rate_times_and_note(clock):
    bars, file = bars_of(clock)
    with bars:
        task = bars.add_task("BC", total=400, note="compiling")
        assert lines_at(bars, file, clock, 29.9) == []
        assert lines_at(bars, file, clock, 30) == ["BC  0/400  elapsed 0:30  compiling"]
        assert lines_at(bars, file, clock, 59) == []
        bars.update(task, completed=10)
        clock.seconds = 69.0
        bars.update(task, completed=30, note="loss 1.250")
        line = "BC   30/400  2 steps/s  elapsed 1:10, left 3:05  loss 1.250"
        assert [re.sub("  +", "  ", each) for each in lines_at(bars, file, clock, 70)] == [
            re.sub("  +", "  ", line)
        ]
        # Words in brackets are words, and a long line is one line.
        bars.update(task, note="x " * 99 + "y")
        [line] = lines_at(bars, file, clock, 100)
        assert line.endswith("x y")


def test_short_work_shows_its_last_state_alone(clock):
    bars, file = bars_of(clock)
    with bars:
        task = bars.add_task("BC", total=2, note="")
        clock.seconds = 29
        bars.update(task, completed=2)
        bars.refresh()
    [line] = filter(str.strip, file.getvalue().splitlines())
    assert re.fullmatch(r"BC +━+ +2/2 +elapsed 0:29 *", line)


def test_of_several_bars_those_under_way_have_lines_and_a_last_one_where_they_end(clock):
    bars, file = bars_of(clock)
    with bars:
        first, second, quick = (
            bars.add_task(name, start=False, total=None, note="waiting") for name in "abc"
        )
        bars.reset(first, total=4, note="")
        assert [line[:1] for line in lines_at(bars, file, clock, 30)] == ["a"]
        bars.update(first, completed=4)
        bars.reset(quick, total=1, note="")
        bars.update(quick, completed=1)
        bars.reset(second, note="")
        ended, begun = lines_at(bars, file, clock, 60)
        assert "a  4/4  elapsed 0:30" in ended and begun.startswith("b")
        assert [line[:1] for line in lines_at(bars, file, clock, 90)] == ["b"]


def test_in_a_terminal_there_are_bars_and_no_lines(clock):
    bars, file = bars_of(clock, force_terminal=True, _environ={"TERM": "xterm"})
    with bars:
        bars.add_task("BC", total=2, note="")
        clock.seconds = 31
        bars.refresh()
        assert "━" in file.getvalue()
    assert not re.search("^BC  0/2", file.getvalue(), re.M)


def test_lines_come_by_themselves_while_the_work_says_nothing(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    came = threading.Event()

    class File(io.StringIO):
        def write(self, text):
            if "0/2" in text:
                came.set()
            return super().write(text)

    with ProgressBars(Console(file=File(), width=100)) as bars:
        bars.add_task("BC", total=2, note="")
        assert came.wait(20)


@pytest.mark.parametrize(
    ("speed", "shown"), [(0.3, "0.3 steps/s"), (99.97, "100 steps/s"), (1234.5, "1,234 steps/s")]
)
def test_a_slow_rate_is_no_zero_and_a_fast_one_has_no_exponent(clock, speed, shown):
    bars, file = bars_of(clock)
    with bars:
        task = bars.add_task("BC", total=100_000, note="")
        for count in (1, 1 + 10 * speed):
            clock.seconds += 10
            bars.update(task, completed=count)
        [line] = lines_at(bars, file, clock, 30)
        assert f"  {shown}  " in line


@pytest.mark.parametrize(
    ("seconds", "shown"), [(5, "0:05"), (80, "1:20"), (7384, "2:03:04"), (59.6, "1:00")]
)
def test_durations(seconds, shown):
    assert progress.clock(seconds) == shown
