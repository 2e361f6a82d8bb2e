"""Figure of the learning curves, from the metrics that were logged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiments.evaluation.summary import References
from experiments.looks import Look, ordered
from experiments.report.figures import style
from experiments.report.figures.style import Looks, Screen
from imagination.simulation import normalized_score

# (method, seed) -> records of the log: `step`, and metrics by name.
Metrics = Mapping[tuple[str, int], Sequence[Mapping[str, float]]]
Line = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]  # steps, values

LONGEST_LINE = 240  # points
_FEW = 12  # points, that are worth a mark each
VALIDATION = "validation/"  # and a population: mean reward at a checkpoint


def learning_curves(
    metrics: Metrics,
    looks: Looks,
    screen: Screen = style.WIDE,
    references: Mapping[str, References] | None = None,
    steps_before: Mapping[str, int] | None = None,
) -> Figure | None:
    """One panel for each score that was measured, and for each loss; a line a method and seed.

    What was measured once in each training has no panel.

    Args:
        metrics: Logs of the trainings.
        looks: Looks of the methods.
        screen: Wide or narrow.
        references: Population -> exact values, in which rewards are given as normalized scores.
        steps_before: Method -> steps of the trainings that its own goes on from, behind which its
            lines begin; 0 for those that are not there.
    """
    names = _panels(metrics)
    if not names:
        return None
    with style.styled():
        panels = screen.panels(len(names), 3, 2.05, margin=0.5)
        handles: dict[str, Any] = {}
        for axis, name in zip(panels.all, names, strict=True):
            known = (references or {}).get(name.removeprefix(VALIDATION))
            handles |= _draw_curves(axis, metrics, name, looks, known, steps_before or {})
            axis.set_title(style.lines(_title(name, known), screen.title_line(3)))
        for axis in panels.lowest:
            axis.set_xlabel("step")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _panels(metrics: Metrics) -> list[str]:
    """Scores and losses of which a training has two points or more: one alone is no curve."""
    names: dict[str, None] = {}
    for records in metrics.values():
        points = Counter(
            name
            for record in records
            for name in record
            if ("loss" in name or name.startswith(VALIDATION)) and math.isfinite(record[name])
        )
        names |= dict.fromkeys(name for name, count in points.items() if count > 1)
    places = {name: (not name.startswith(VALIDATION), name != "loss") for name in names}
    return sorted(names, key=places.__getitem__)[: style.MOST_PANELS]


def _title(name: str, references: References | None) -> str:
    if not name.startswith(VALIDATION):
        return name.replace("_", " ")
    measure = "mean reward" if references is None else "normalized score"
    return f"{measure}, {name.removeprefix(VALIDATION)} population"


def _draw_curves(
    axis: Axes,
    metrics: Metrics,
    name: str,
    looks: Looks,
    references: References | None,
    steps_before: Mapping[str, int],
) -> dict[str, Any]:
    handles, drawn = {}, []
    for method in reversed(ordered({method for method, _ in metrics})):
        lines = [
            _thinned(records, name) for (owner, _), records in metrics.items() if owner == method
        ]
        before = steps_before.get(method, 0)
        lines = [(before + steps, y) for steps, y in lines if len(steps)]
        if references is not None:
            lines = [(steps, normalized_score(y, vars(references))) for steps, y in lines]
        if not lines:
            continue
        handles[method] = _draw_lines(axis, lines, looks[method])
        drawn += [values for _, values in lines]
    if not name.startswith(VALIDATION):
        _scale(axis, np.concatenate(drawn))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return handles


def _draw_lines(axis: Axes, lines: Sequence[Line], look: Look) -> Any:
    """Draws each seed thin and their mean thick; returns the latter."""
    if len(lines) > 1:
        for steps, values in lines:
            axis.plot(steps, values, color=look.color, linewidth=0.7, alpha=0.4)
    steps, values = _mean_line(lines)
    marker = look.marker if len(steps) < _FEW else None
    [line] = axis.plot(steps, values, color=look.color, linewidth=1.8, marker=marker, markersize=4)
    return line


def _thinned(records: Sequence[Mapping[str, float]], name: str) -> Line:
    """Means of neighbouring steps, at most `LONGEST_LINE` of them."""
    points = [(r["step"], r[name]) for r in records if math.isfinite(r.get(name, math.nan))]
    array = np.array(points, dtype=float).reshape(-1, 2)
    pieces = np.array_split(array, min(len(array), LONGEST_LINE)) if len(array) else []
    means = np.array([piece.mean(axis=0) for piece in pieces]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _mean_line(lines: Sequence[Line]) -> Line:
    steps = max((steps for steps, _ in lines), key=len)
    values = np.array([np.interp(steps, x, y, right=np.nan) for x, y in lines])
    present = ~np.isnan(values).all(axis=0)
    return steps[present], np.nanmean(values[:, present], axis=0)


def _scale(axis: Axes, values: Float[np.ndarray, " n"]) -> None:
    """Shows what comes after the beginning, which is far above all the rest.

    On a logarithmic scale where losses fall to a tenth; on a linear one the wildest 2 % are left
    out.
    """
    if 0 < 10 * values.min() < values.max():
        axis.set_yscale("log")
        few = values.max() < 400 * values.min()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        return
    axis.yaxis.set_major_locator(MaxNLocator(5))
    low, high = np.percentile(values, [0.5, 98.5])
    if high > low:
        margin = 0.08 * (high - low)
        axis.set_ylim(low - margin, high + margin)
