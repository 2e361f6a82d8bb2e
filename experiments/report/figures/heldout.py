"""Figures of a run on dialogues that were set apart: do the values foretell the outcome?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.summary import CalibrationBin, Heldout, PredictionPoint
from experiments.looks import Look, ordered
from experiments.report.figures import style
from experiments.report.figures.style import Looks, Screen
from experiments.report.wording import percent


def heldout_auroc(heldout: Heldout, looks: Looks, screen: Screen = style.WIDE) -> Figure | None:
    """AUROC of V and Q over the dialogue, with intervals; one line a method."""
    drawn = {}
    for value in ("v", "q"):
        known = {
            method: [point for point in points if getattr(point, f"auroc_{value}") is not None]
            for method, points in heldout.value_prediction.items()
        }
        if known := {method: points for method, points in known.items() if points}:
            drawn[value] = known
    if not drawn:
        return None
    with style.styled():
        panels = screen.panels(len(drawn), 2, 2.6, sharey=True)
        handles: dict[str, Any] = {}
        for axis, (value, known) in zip(panels.all, drawn.items(), strict=True):
            for method in reversed(ordered(known)):
                field = f"auroc_{value}"
                handles[method] = _draw_auroc(axis, looks[method], known[method], field)
            axis.axhline(0.5, color=style.MUTED, lw=1, linestyle=style.DASHED)
            axis.set_title(f"{value.upper()} against the outcome")
            axis.set_xlabel("share of the dialogue seen")
            axis.xaxis.set_major_formatter(lambda x, _: percent(x))
        for axis in panels.first:
            axis.set_ylabel("AUROC")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _draw_auroc(axis: Axes, look: Look, points: Sequence[PredictionPoint], field: str) -> Any:
    """Draws points, all of which have an AUROC, and returns the line."""
    x, y = [point.point for point in points], [getattr(point, field) for point in points]
    bounds = (getattr(point, f"{field}_ci95") or (math.nan, math.nan) for point in points)
    low, high = zip(*bounds, strict=True)
    axis.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0)
    [line] = axis.plot(x, y, marker=look.marker, ms=5, lw=1.8, color=look.color)
    return line


def heldout_calibration(
    heldout: Heldout, looks: Looks, screen: Screen = style.WIDE
) -> Figure | None:
    """Predicted against observed outcomes at each point of the dialogue, a panel a point."""
    bins = {
        method: {point.point: point.calibration for point in points}
        for method, points in heldout.value_prediction.items()
    }
    points = sorted({point for each in bins.values() for point in each})[: style.MOST_PANELS]
    if not points:
        return None
    with style.styled():
        panels = screen.panels(len(points), 4, 2.5, sharex=True, sharey=True)
        handles: dict[str, Any] = {}
        for axis, point in zip(panels.all, points, strict=True):
            for method, each in bins.items():
                handles[method] = _draw_bins(axis, looks[method], each[point])
            predicted = [b.predicted for each in bins.values() for b in each[point]]
            style.draw_diagonal(axis, min(predicted), max(predicted))
            axis.set_title(f"{percent(point)} seen")
        for axis in panels.lowest:
            axis.set_xlabel("predicted")
        for axis in panels.first:
            axis.set_ylabel("observed")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _draw_bins(axis: Axes, look: Look, bins: Sequence[CalibrationBin]) -> Any:
    largest = max(each.count for each in bins)
    for each in bins:
        axis.plot([each.predicted] * 2, [each.low, each.high], color=look.color, lw=1.3)
    return axis.scatter(
        [each.predicted for each in bins],
        [each.observed for each in bins],
        s=[14 + 40 * each.count / largest for each in bins],
        marker=look.marker,
        color=look.color,
        zorder=3,
    )
