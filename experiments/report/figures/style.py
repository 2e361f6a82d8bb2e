"""Style of all figures: colours, fonts, sizes; figures as PNG, and as SVG for the page.

Every figure function takes data that was read already and returns a matplotlib `Figure`, or None
where there is nothing to show. Each is drawn for a wide screen, and for a narrow one with its
panels below each other (`Screen`), so that letters keep their size. No pyplot: nothing outlives a
call. On the page, colours become CSS variables and follow light and dark. Methods are told apart by
colour and marker (Okabe-Ito as far as it goes, for colour-blind readers too).
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from experiments.looks import Look, ordered

Looks = Mapping[str, Look]  # name of a method -> its look
Palette = Mapping[str, tuple[str, str]]  # CSS variable -> colour on light and on dark paper

COLORS: Palette = {
    "ink": ("#1c2129", "#e8eaee"),
    "muted": ("#68707e", "#9ba3b1"),
    "grid": ("#e5e8ed", "#2d333d"),
    "paper": ("#fffffe", "#171a20"),
    "data": ("#8a929f", "#7f8896"),
    "success": ("#00786a", "#4fd0bd"),
    "failure": ("#b8442a", "#ff8e72"),
}
INK, MUTED, GRID, PAPER, DATA, SUCCESS, FAILURE = (light for light, _ in COLORS.values())
FEWEST = 5  # conversations behind a mean that is worth drawing
MOST_PANELS = 12
DASHED = (0, (3, 3))
_BOLD_LETTERS = 10.5  # of a title, to the inch
_LEGEND_LINE = 11  # points of a line of an axis's legend
_HANDLE = 6  # characters that the mark of a legend takes with the space around it

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
}


def css_names(looks: Looks) -> dict[str, str]:
    """Name of each method -> the CSS variable of its colour. Names may be any text."""
    return {name: f"method-{index}" for index, name in enumerate(ordered(looks))}


def palette(looks: Looks) -> dict[str, tuple[str, str]]:
    """All colours of a page."""
    of_methods = {
        css: (looks[name].color, looks[name].color_on_dark)
        for name, css in css_names(looks).items()
    }
    return {**COLORS, **of_methods}


@contextmanager
def styled() -> Iterator[None]:
    """Sets the style of all figures, and matplotlib back to what it was afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


@dataclasses.dataclass(frozen=True)
class Panels:
    """Axes of a figure, in reading order.

    Attributes:
        figure: The figure.
        all: Its axes.
        lowest: Those with none below them.
        first: The first of each row.
    """

    figure: Figure
    all: tuple[Axes, ...]
    lowest: tuple[Axes, ...]
    first: tuple[Axes, ...]


@dataclasses.dataclass(frozen=True)
class Screen:
    """Room that a figure has.

    Attributes:
        width: Inches; letters have the same size on all screens.
        legend_line: Characters of a legend beside each other.
        label_line: Characters of a line of a name beside an axis.
        is_narrow: True where panels stand below each other.
    """

    width: float
    legend_line: int
    label_line: int
    is_narrow: bool

    def title_line(self, columns: int, labels: float = 0.7) -> int:
        """Characters of a line above one of so many panels in a row.

        Args:
            columns: Panels beside each other, on a wide screen.
            labels: Inches of the labels on the left of a panel.
        """
        inches = self.width / (1 if self.is_narrow else columns) - labels
        return int(inches * _BOLD_LETTERS)

    def panels(
        self,
        count: int,
        columns: int,
        heights: float | Sequence[float],
        *,
        margin: float = 0.6,
        sharex: bool = False,
        sharey: bool = False,
    ) -> Panels:
        """A figure of so many panels, on a wide screen with at most so many beside each other.

        Args:
            count: Panels.
            columns: Most of them in a row.
            heights: Inches of a panel, or of each.
            margin: Inches for legend and labels.
            sharex: All panels have the same limits in x.
            sharey: All panels have the same limits in y.
        """
        columns = 1 if self.is_narrow else min(columns, count)
        rows = math.ceil(count / columns)
        each = [heights] * count if isinstance(heights, float | int) else list(heights)
        of_rows = [max(each[i * columns : (i + 1) * columns]) for i in range(rows)]
        figure = Figure(figsize=(self.width, margin + sum(of_rows)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            rows, columns, squeeze=False, sharex=sharex, sharey=sharey, height_ratios=of_rows
        )
        axes = list(grid.flat)
        for blank in axes[count:]:
            blank.remove()
        lowest = axes[max(0, count - columns) : count]
        for axis in lowest:  # shared ones above a blank have lost theirs
            axis.tick_params(labelbottom=True)
        return Panels(figure, tuple(axes[:count]), tuple(lowest), tuple(axes[:count:columns]))


WIDE = Screen(9.0, 112, 34, is_narrow=False)
NARROW = Screen(4.0, 44, 18, is_narrow=True)  # a telephone's


def to_png(figure: Figure) -> bytes:
    """The figure in light colours, at twice the resolution of the page."""
    buffer = io.BytesIO()
    with styled():
        _lay_out(figure)
        figure.set_dpi(200)
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def to_svg(figure: Figure, colors: Palette, name: str) -> str:
    """The figure as an `<svg>` element for a page that defines `colors` as CSS variables.

    Texts are outlines and comments are dropped, so nothing that was said in a conversation can
    get into the markup. Ids begin with `name`: a figure that is hidden on a screen must not lend
    parts to one that is shown there.
    """
    buffer = io.StringIO()
    with styled():
        _lay_out(figure)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
        figure.patch.set_visible(True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", svg, count=2)
    svg = re.sub(r'((?: id="|href="#|url\(#))', rf"\g<1>{name}-", svg)
    for variable, (light, _) in colors.items():
        svg = svg.replace(light, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", svg)


def _lay_out(figure: Figure) -> None:
    """Places the axes once: `savefig` would do it for each format, and draw twice."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def plain(text: str, longest: int = 28) -> str:
    """Text for a figure: no mathematics in dollar signs, no endless labels."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def lines(text: str, width: int, most: int = 3) -> str:
    """Text for a figure in lines of so many characters; what needs more lines is cut."""
    wrapped = textwrap.wrap(text, width, max_lines=most, placeholder="…")
    return "\n".join(wrapped).replace("$", r"\$")


def row_height(names: Iterable[str]) -> float:
    """Inches of a row, so that names of several lines beside neighbouring rows stay apart."""
    return 0.2 + 0.16 * max((name.count("\n") + 1 for name in names), default=1)


def add_legend(figure: Figure, handles: Mapping[str, Any], looks: Looks, screen: Screen) -> None:
    """Puts a legend of methods above the axes."""
    methods = ordered(handles)
    titles = [lines(looks[name].title, screen.legend_line - _HANDLE) for name in methods]
    add_labels(figure, [handles[name] for name in methods], titles, screen)


def add_labels(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], screen: Screen
) -> None:
    """Puts a legend above the axes, in as many columns as there is room for."""
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, min(len(labels), screen.legend_line // (longest + _HANDLE))),
        handlelength=1.4,
    )


def set_title(axis: Axes, title: str, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Puts a title above an axis and a legend between the two, where it covers no data."""
    if not labels:
        axis.set_title(title)
        return
    axis.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        borderpad=0.2,
        labelspacing=0.2,
        handlelength=1.4,
        fontsize=8,
    )
    axis.set_title(title, pad=_LEGEND_LINE * len(labels) + 6)


def draw_diagonal(axis: Axes, low: float, high: float) -> None:
    """Draws a dashed line where both coordinates are the same."""
    axis.plot([low, high], [low, high], color=MUTED, lw=1, linestyle=DASHED, zorder=1)


def ink_labels(labels: Iterable[Any]) -> None:
    """Sets tick labels that are names, not numbers, in the colour of the text."""
    for label in labels:
        label.set_color(INK)
