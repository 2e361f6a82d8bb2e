"""Figure of the scores: each method with its interval, and the references as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.evaluation.summary import Evaluation, Population, Scores
from experiments.looks import ordered
from experiments.report import wording
from experiments.report.figures import style
from experiments.report.figures.style import Looks, Screen
from experiments.report.tables import REFERENCE_NAMES

_LINE = 10  # points that a line of a label takes
_LABEL = 9.5  # points, as on the axes of other figures


def scores(evaluation: Evaluation, looks: Looks, screen: Screen = style.WIDE) -> Figure:
    """Score with its interval for each method and population."""
    populations = evaluation.population
    methods = ordered({name for each in populations.values() for name in each.methods})
    names = [style.lines(looks[name].title, screen.label_line) for name in methods]
    with style.styled():
        panels = screen.panels(
            len(populations),
            len(populations),
            1.3 + style.row_height(names) * len(methods),
            margin=0,
            sharex=True,
            sharey=True,
        )
        for axis, population in zip(panels.all, populations.values(), strict=True):
            _draw_scores(axis, population, methods)
        # After all scores: the axes share their limits, on which it depends whose labels collide.
        space = max(
            _label_references(axis, population)
            for axis, population in zip(panels.all, populations.values(), strict=True)
        )
        for axis, name in zip(panels.all, populations, strict=True):
            axis.set_title(style.lines(f"{name} population", 24), pad=space)
        panels.all[0].set_yticks(range(len(methods)), names)
        panels.all[0].set_ylim(len(methods) - 0.4, -0.6)
        for axis in panels.first:
            style.ink_labels(axis.get_yticklabels())
        # Below the figure, not an axis, which names of methods may have made small.
        units = dict.fromkeys(map(wording.unit_of, populations.values()))
        panels.figure.supxlabel(" / ".join(map(_axis_title, units)), color=style.MUTED, size=_LABEL)
    return panels.figure


def _draw_scores(axis: Axes, population: Population, methods: Sequence[str]) -> None:
    unit = wording.unit_of(population)
    for row, name in enumerate(methods):
        if name not in population.methods:
            continue
        method = population.methods[name]
        value, bounds, _ = wording.score(method)
        if value is None:
            continue
        color, marker = method.look.color, method.look.marker
        if bounds:
            axis.plot(bounds, [row, row], color=color, linewidth=2.4, zorder=3)
        axis.plot(value, row, marker, color=color, markersize=7, zorder=4)
        seeds = _scores_of_seeds(method, unit)
        if len(seeds) > 1:
            axis.plot(seeds, [row + 0.26] * len(seeds), "|", color=color, markersize=6, alpha=0.8)
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    for x, name in _reference_places(population):
        line = "-" if name == "optimum" else style.DASHED
        axis.axvline(x, color=style.MUTED, linewidth=1, linestyle=line)


def _axis_title(unit: str) -> str:
    explained = "\n(0 = mean behaviour, 1 = optimum)" if unit == wording.NORMALIZED else ""
    return unit + explained


def _scores_of_seeds(method: Scores, unit: str) -> list[float]:
    values = [
        each.normalized if unit == wording.NORMALIZED else each.mean_reward
        for each in method.trainings
    ]
    return [value for value in values if value is not None]


def _reference_places(population: Population) -> list[tuple[float, str]]:
    """Places of the references' lines, from the left, and their names."""
    references = population.references
    if references is None:
        return []
    places = {name: getattr(references, name) for name in REFERENCE_NAMES}
    if wording.unit_of(population) == wording.NORMALIZED:
        places = {name: references.normalized(reward) for name, reward in places.items()}
    return sorted((x, name) for name, x in places.items())


def _label_references(axis: Axes, population: Population) -> float:
    """Labels the references; a label too near to its neighbour's stands above it.

    Returns:
        The space that the labels take above the axes, in points.
    """
    low, high = axis.get_xlim()
    height, last, space = 3.0, -math.inf, 0.0
    for x, name in _reference_places(population):
        label = REFERENCE_NAMES[name].replace(" ", "\n")
        if x - last >= 0.17 * (high - low):
            height = 3.0
        _label_reference(axis, x, label, height)
        height += _LINE * (1 + label.count("\n"))
        last, space = x, max(space, height)
    return space + 4


def _label_reference(axis: Axes, x: float, name: str, height: float) -> None:
    axis.annotate(
        name,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, height),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7.5,
        linespacing=0.95,
        color=style.MUTED,
    )
