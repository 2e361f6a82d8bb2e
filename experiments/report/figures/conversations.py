"""Figures of the conversations: rewards, personas, values along them, calibration of Q."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.looks import Look
from experiments.report.figures import style
from experiments.report.figures.style import FEWEST, Looks, Screen, plain
from experiments.report.run import by_method
from imagination.dialogue import Dialogue


def mean_and_half(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (normal approximation)."""
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(half)


# --- rewards ------------------------------------------------------------------------------------


def reward_distributions(
    conversations: Sequence[Dialogue],
    dialogues: Sequence[Dialogue],
    population: str,
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Histogram of the rewards of each method, the training data's below them in grey."""
    rewards = {
        name: np.array([d.total_reward for d in group])
        for name, group in by_method(conversations, population).items()
    }
    if not rewards:
        return None
    rows = [(looks[name].title, looks[name].color, values) for name, values in rewards.items()]
    data = np.array([d.total_reward for d in dialogues if d.reward is not None])
    if data.size:
        rows.append(("training data", style.DATA, data))
    edges = _edges(np.concatenate([values for _, _, values in rows]))
    shares = [np.histogram(values, edges)[0] / len(values) for _, _, values in rows]
    with style.styled():
        panels = screen.panels(len(rows), 1, 0.72, margin=0.5, sharex=True, sharey=True)
        for axis, (title, color, values), share in zip(panels.all, rows, shares, strict=True):
            axis.bar(edges[:-1], share, np.diff(edges) * 0.92, align="edge", color=color)
            axis.axvline(values.mean(), color=style.INK, linewidth=1.4)
            label = f"{plain(title)}\nmean {values.mean():.2f}, n = {len(values)}"
            axis.set_ylabel(label, rotation=0, ha="right", va="center", color=style.INK)
            axis.set_yticks([])
            axis.set_ylim(0, 1.08 * max(each.max() for each in shares))
            axis.spines["left"].set_visible(False)
        panels.lowest[0].set_xlabel("reward of a conversation")
    return panels.figure


def _edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Bins around the values themselves where there are few, else 32 of one width."""
    distinct = np.unique(values.round(6))
    if 1 < len(distinct) <= 24 and np.diff(distinct).min() > 0.02 * np.ptp(distinct):
        half = np.diff(distinct).min() / 2
        return np.arange(distinct[0] - half, distinct[-1] + 2 * half, 2 * half)
    low, high = values.min(), values.max()
    return np.linspace(low, high, 33) if high > low else np.array([low - 0.5, low + 0.5])


# --- personas -----------------------------------------------------------------------------------


def persona_scores(
    conversations: Sequence[Dialogue],
    population: str,
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Mean reward for each value of each persona axis, one panel an axis."""
    groups = by_method(conversations, population)
    axes_values = _persona_axes(groups)
    if not axes_values:
        return None
    heights = [0.42 * (len(values) + 0.9) for values in axes_values.values()]
    with style.styled():
        panels = screen.panels(len(axes_values), 2, heights, sharex=True)
        handles: dict[str, Any] = {}
        for axis, (name, values) in zip(panels.all, axes_values.items(), strict=True):
            handles |= _draw_persona_axis(axis, groups, name, values, looks)
            axis.set_title(plain(name.replace("_", " ")))
        for axis in panels.lowest:
            axis.set_xlabel("mean reward")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _persona_axes(groups: Mapping[str, Sequence[Dialogue]]) -> dict[str, list[str]]:
    """Axes on which the humans differ, with their values."""
    values: dict[str, set[str]] = {}
    for group in groups.values():
        for dialogue in group:
            for name, value in dialogue.persona.items():
                values.setdefault(name, set()).add(str(value))
    axes = {name: sorted(each) for name, each in values.items() if 1 < len(each) <= 12}
    return dict(list(axes.items())[: style.MOST_PANELS])


def _draw_persona_axis(
    axis: Axes,
    groups: Mapping[str, Sequence[Dialogue]],
    name: str,
    values: Sequence[str],
    looks: Looks,
) -> dict[str, Any]:
    handles, offsets = {}, np.linspace(-0.27, 0.27, len(groups)) if len(groups) > 1 else [0.0]
    counts = dict.fromkeys(values, 0)
    for offset, (method, group) in zip(offsets, groups.items(), strict=True):
        look = looks[method]
        for row, value in enumerate(values):
            rewards = [d.total_reward for d in group if str(d.persona.get(name)) == value]
            counts[value] = max(counts[value], len(rewards))
            if not rewards:
                continue
            mean, half = mean_and_half(np.array(rewards))
            y = row + offset
            axis.plot([mean - half, mean + half], [y, y], color=look.color, linewidth=1.6)
            [handles[method]] = axis.plot(mean, y, look.marker, color=look.color, markersize=5)
    axis.set_yticks(range(len(values)), [f"{plain(v, 20)}  ({counts[v]})" for v in values])
    axis.set_ylim(len(values) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)
    for row in range(1, len(values)):
        axis.axhline(row - 0.5, color=style.GRID, linewidth=0.8)
    style.ink_labels(axis.get_yticklabels())
    return handles


# --- values -------------------------------------------------------------------------------------


def values_along(
    conversations: Sequence[Dialogue],
    success_reward: float,
    population: str,
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Mean V and Q at each agent turn, of successful and of failed conversations."""
    meanings = {"v": "before the utterance", "q": "of the utterance"}
    found = [
        (method, name, _outcomes(group, name, success_reward))
        for method, group in by_method(conversations, population).items()
        for name in meanings
    ]
    drawn = [each for each in found if any(points for _, _, points in each[2])]
    if not drawn:
        return None
    with style.styled():
        panels = screen.panels(len(drawn), 2, 2.3, sharex=True, sharey=True)
        for axis, (method, name, lines) in zip(panels.all, drawn, strict=True):
            for look, linestyle, points in lines:
                _draw_values(axis, points, look, linestyle)
            axis.set_title(f"{plain(looks[method].title)}: {name.upper()} {meanings[name]}")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in panels.first:
            axis.set_ylabel("value")
        for axis in panels.lowest:
            axis.set_xlabel("agent turn")
        outcomes: dict[str, Any] = {}  # not every method has conversations of both
        for axis in panels.all:
            handles, labels = axis.get_legend_handles_labels()
            outcomes |= dict(zip(labels, handles, strict=True))
        labels = sorted(outcomes, reverse=True)  # success before failure
        handles = [outcomes[label] for label in labels]
        panels.figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return panels.figure


def _outcomes(
    group: Sequence[Dialogue], name: str, success_reward: float
) -> list[tuple[Look, Any, list[tuple[float, ...]]]]:
    """Looks and points of the successful conversations and of the failed ones."""
    succeeded = [d for d in group if d.total_reward >= success_reward]
    failed = [d for d in group if d.total_reward < success_reward]
    success = Look(f"success (≥ {success_reward:g})", style.SUCCESS, "o")
    failure = Look(f"failure (< {success_reward:g})", style.FAILURE, "s")
    return [
        (success, "-", _mean_values(succeeded, name)),
        (failure, (0, (4, 2)), _mean_values(failed, name)),
    ]


def _value(dialogue: Dialogue, turn: int, name: str) -> float | None:
    """Q or V noted at an agent turn (counted from either end); agents may learn no values."""
    turns = dialogue.agent_turns
    return turns[turn].annotations.get(name) if -len(turns) <= turn < len(turns) else None


def _mean_values(group: Sequence[Dialogue], name: str) -> list[tuple[float, ...]]:
    """(agent turn, mean value, half of its interval) where there are enough conversations."""
    points = []
    for turn in range(max((len(d.agent_turns) for d in group), default=0)):
        values = [v for d in group if (v := _value(d, turn, name)) is not None]
        if len(values) >= FEWEST:
            points.append((turn + 1, *mean_and_half(np.array(values))))
    return points


def _draw_values(
    axis: Axes, points: Sequence[tuple[float, ...]], look: Look, linestyle: Any
) -> None:
    if not points:
        return
    turns, means, halves = np.array(points).T
    axis.fill_between(turns, means - halves, means + halves, color=look.color, alpha=0.18, lw=0)
    axis.plot(
        turns,
        means,
        linestyle=linestyle,
        marker=look.marker,
        ms=4,
        color=look.color,
        lw=1.8,
        label=look.title,
    )


def q_calibration(
    conversations: Sequence[Dialogue],
    population: str,
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Predicted Q against the reward at the end, from the first and from the last agent turn."""
    groups = by_method(conversations, population)
    drawn = []
    for turn, title in ((0, "first agent turn"), (-1, "last agent turn")):
        pairs = {
            method: np.array(
                [(q, d.total_reward) for d in group if (q := _value(d, turn, "q")) is not None]
            )
            for method, group in groups.items()
        }
        pairs = {m: p for m, p in pairs.items() if len(p) >= 2 * FEWEST}
        if pairs:
            drawn.append((title, pairs))
    if not drawn:
        return None
    with style.styled():
        panels = screen.panels(len(drawn), 2, 3.3, sharey=True)
        handles: dict[str, Any] = {}
        for axis, (title, pairs) in zip(panels.all, drawn, strict=True):
            handles |= _draw_calibration(axis, pairs, looks)
            axis.set_title(f"Q at the {title}")
            axis.set_xlabel("predicted: Q")
        for axis in panels.first:
            axis.set_ylabel("observed: mean reward")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _draw_calibration(
    axis: Axes, pairs: Mapping[str, Float[np.ndarray, "n 2"]], looks: Looks
) -> dict[str, Any]:
    handles, ends = {}, []
    for method, points in pairs.items():
        order = points[np.argsort(points[:, 0], kind="stable")]
        bins = [
            part for part in np.array_split(order, min(8, len(order) // FEWEST)) if len(part) > 1
        ]
        x = np.array([part[:, 0].mean() for part in bins])
        y, half = np.array([mean_and_half(part[:, 1]) for part in bins]).T
        look = looks[method]
        handles[method] = axis.errorbar(
            x, y, half, fmt=look.marker, color=look.color, ms=5.5, elinewidth=1.4
        )
        ends += [x.min(), x.max()]
    if ends:
        style.draw_diagonal(axis, min(ends), max(ends))
    return handles
