"""The figures of a run's report.

Every function takes data that was read already and returns a matplotlib `Figure`, or None where
there is nothing to show. No pyplot: nothing outlives a call. `to_png` is for the figures folder,
`to_svg` for the page, where the colours become CSS variables and follow light and dark.

Colours and markers belong to methods (Okabe-Ito as far as it goes, told apart by colour-blind
readers too).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report import tables, wording
from imagination.dialogue import Dialogue

# name -> (light, dark). The page defines a CSS variable for each.
PALETTE = {
    "ink": ("#1c2129", "#e8eaee"),
    "muted": ("#68707e", "#9ba3b1"),
    "grid": ("#e5e8ed", "#2d333d"),
    "paper": ("#fffffe", "#171a20"),
    "ilql": ("#0072b2", "#56b4f0"),
    "ilql_hindsight1": ("#4aa3df", "#a9d8fb"),
    "ilql_hindsight2": ("#003c63", "#2f86c4"),
    "fbc": ("#d98b00", "#f0b13c"),
    "bc": ("#c2669a", "#e19cc4"),
    "mc": ("#009e73", "#3ccfa2"),
    "dpo": ("#8c8700", "#cfc93a"),
    "plain": ("#d55e00", "#ff8b40"),
    "reasoning": ("#8a5a2b", "#c99a6b"),
    "clam": ("#6a4fb3", "#a893ec"),
    "gdp_zero": ("#41505f", "#b5c2d0"),
    "data": ("#8a929f", "#7f8896"),
    "success": ("#00786a", "#4fd0bd"),
    "failure": ("#b8442a", "#ff8e72"),
}
MARKERS = {
    **{"ilql": "o", "fbc": "s", "bc": "D", "mc": "^", "dpo": "p"},
    **{"ilql_hindsight1": "<", "ilql_hindsight2": ">"},
    **{"plain": "P", "reasoning": "X", "clam": "v", "gdp_zero": "*"},
}
WIDTH = 9.0
FEWEST = 5  # conversations behind a mean that is worth drawing
MOST_PANELS = 12
LONGEST_LINE = 240  # points
LEGEND_LINE = 112  # characters beside each other

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": PALETTE["ink"][0],
    "axes.edgecolor": PALETTE["muted"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.titlecolor": PALETTE["ink"][0],
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PALETTE["paper"][0],
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.8,
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
}


def color(method: str) -> str:
    """The method's colour in figures."""
    return PALETTE.get(method, PALETTE["data"])[0]


@contextmanager
def styled() -> Iterator[None]:
    """The style of all figures, and matplotlib as it was afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """A figure of this height (inches) on the page's width, and its axes [rows, columns]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **layout)


def to_png(figure: Figure) -> bytes:
    """The figure in light colours, at twice the resolution of the page."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to stand in a page that defines `PALETTE` as variables.

    Texts are outlines and comments are dropped, so nothing that was said in a conversation can
    get into the markup.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", svg, count=2)
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg)


def plain(text: Any, longest: int = 28) -> str:
    """Text for a figure: no mathematics in dollar signs, no endless labels."""
    text = " ".join(str(text).split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


# --- scores -------------------------------------------------------------------------------------


def scores(evaluation: Mapping[str, Any]) -> Figure | None:
    """Score with its interval for each method and population, references as lines."""
    found = wording.populations(evaluation)
    if not found:
        return None
    methods = wording.ordered_methods({m for p in found.values() for m in p["methods"]})
    with styled():
        figure, axes = new_figure(
            1.3 + 0.36 * len(methods), 1, len(found), sharex=True, sharey=True
        )
        for axis, population in zip(axes[0], found.values(), strict=True):
            _draw_scores(axis, population, methods)
        # After all scores: the axes share their limits, which say whose labels are too near.
        space = max(
            _draw_references(axis, population, methods)
            for axis, population in zip(axes[0], found.values(), strict=True)
        )
        for axis, name in zip(axes[0], found, strict=True):
            axis.set_title(plain(f"{name} population"), pad=space)
        axes[0, 0].set_yticks(
            range(len(methods)), [plain(wording.method_name(method)) for method in methods]
        )
        axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)
        _ink_labels(axes[0, 0].get_yticklabels())
    return figure


def _draw_scores(axis: Axes, population: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Draws one population."""
    references = population.get("references") or {}
    unit = _score_unit(population, methods)
    for row, key in enumerate(methods):
        method = population["methods"].get(key) or {}
        value, bounds, _ = wording.score(method)
        if value is None:
            continue
        if wording.interval(bounds):
            axis.plot(bounds, [row, row], color=color(key), linewidth=2.4, zorder=3)
        axis.plot(value, row, MARKERS.get(key, "o"), color=color(key), markersize=7, zorder=4)
        seeds = wording.per_seed_scores(method, references)
        if len(seeds) > 1:
            axis.plot(
                seeds, [row + 0.26] * len(seeds), "|", color=color(key), markersize=6, alpha=0.8
            )
    axis.grid(axis="y", visible=False)
    explained = " (0 = mean behaviour, 1 = optimum)" if unit == NORMALIZED else ""
    axis.set_xlabel(unit + explained)
    for x, key in _reference_places(population, methods):
        style = "-" if key == "optimum" else (0, (3, 3))
        axis.axvline(x, color=PALETTE["muted"][0], linewidth=1, linestyle=style)


NORMALIZED = "normalized score"
_LINE = 10  # points that a line of a label takes


def _score_unit(population: Mapping[str, Any], methods: Sequence[str]) -> str:
    scored = [wording.score(population["methods"].get(key) or {}) for key in methods]
    return next((unit for value, _, unit in scored if value is not None), "mean reward")


def _reference_places(
    population: Mapping[str, Any], methods: Sequence[str]
) -> list[tuple[float, str]]:
    """Where the lines of the references stand, from the left, and which they are."""
    references = population.get("references") or {}
    normalized = _score_unit(population, methods) == NORMALIZED
    places = []
    for key in wording.REFERENCE_NAMES:
        x = references.get(key)
        x = wording.normalize(x, references) if normalized else x
        if wording.is_number(x):
            places.append((x, key))
    return sorted(places)


def _draw_references(axis: Axes, population: Mapping[str, Any], methods: Sequence[str]) -> float:
    """Labels of the references; one too near to its neighbour's stands above it.

    Returns:
        The space that they take above the axes, in points.
    """
    low, high = axis.get_xlim()
    height, last, space = 3.0, -math.inf, 0.0
    for x, key in _reference_places(population, methods):
        label = wording.REFERENCE_NAMES[key].replace(" ", "\n")
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
        color=PALETTE["muted"][0],
    )


def _ink_labels(labels: Iterable[Any]) -> None:
    for label in labels:
        label.set_color(PALETTE["ink"][0])


# --- learning curves ----------------------------------------------------------------------------

Metrics = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]


def learning_curves(metrics: Metrics) -> Figure | None:
    """One panel for each loss and validation metric; a line a method, a thin one a seed."""
    names = _panels(metrics)
    if not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with styled():
        figure, axes = new_figure(0.5 + 2.05 * rows, rows, columns)
        handles: dict[str, Any] = {}
        for axis, name in zip(axes.flat, names, strict=False):
            handles |= _draw_curves(axis, metrics, name)
            axis.set_title(plain(name.replace("_", " ")))
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("step")
        _legend(figure, handles)
    return figure


def _panels(metrics: Metrics) -> list[str]:
    names = dict.fromkeys(
        key
        for rows in metrics.values()
        for row in rows
        for key, value in row.items()
        if wording.is_number(value)
        and wording.is_number(row.get("step"))
        and ("loss" in key or key.startswith("validation/"))
    )
    return sorted(names, key=lambda key: (key.startswith("validation/"), key != "loss"))[
        :MOST_PANELS
    ]


def _draw_curves(axis: Axes, metrics: Metrics, name: str) -> dict[str, Any]:
    handles, drawn = {}, []
    for method in reversed(wording.ordered_methods({method for method, _ in metrics})):
        lines = [
            _thin_out(rows, name)
            for (owner, _), rows in sorted(metrics.items())
            if owner == method and any(wording.is_number(row.get(name)) for row in rows)
        ]
        if not lines:
            continue
        if len(lines) > 1:
            for steps, values in lines:
                axis.plot(steps, values, color=color(method), linewidth=0.7, alpha=0.4)
        steps, values = _mean_line(lines)
        marker = "o" if len(steps) < 3 else None
        line = axis.plot(steps, values, color=color(method), linewidth=1.8, marker=marker)
        handles[method] = line[0]
        drawn += [line[1] for line in lines]
    _limit_to_most(axis, np.concatenate(drawn))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    return handles


def _thin_out(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring steps, at most `LONGEST_LINE` of them.

    A run that was killed and went on has logged some steps twice; the later line counts.
    """
    values = {
        row["step"]: row[name]
        for row in rows
        if wording.is_number(row.get("step")) and wording.is_number(row.get(name))
    }
    array = np.array(sorted(values.items()), dtype=float).reshape(-1, 2)
    pieces = np.array_split(array, min(len(array), LONGEST_LINE)) if len(array) else [array]
    means = np.array([piece.mean(axis=0) for piece in pieces if len(piece)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _mean_line(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    steps = max((line[0] for line in lines), key=len)
    values = [np.interp(steps, x, y, right=np.nan) for x, y in lines if len(x)]
    present = ~np.isnan(values).all(axis=0)
    return steps[present], np.nanmean(np.array(values)[:, present], axis=0)


def _limit_to_most(axis: Axes, values: np.ndarray) -> None:
    """One wild step at the beginning must not flatten the rest."""
    low, high = np.percentile(values, [0.5, 98.5])
    if high > low:
        margin = 0.08 * (high - low)
        axis.set_ylim(low - margin, high + margin)


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    methods = wording.ordered_methods(handles)
    names = [plain(wording.method_name(m)) for m in methods]
    figure.legend(
        [handles[m] for m in methods],
        names,
        loc="outside upper left",
        ncols=max(1, min(len(names), LEGEND_LINE // max(map(len, names), default=1))),
        handlelength=1.4,
    )


# --- conversations ------------------------------------------------------------------------------


def by_method(
    conversations: Iterable[Dialogue], population: str | None = None
) -> dict[str, list[Dialogue]]:
    """Rated conversations of each method, of one population or all."""
    groups: dict[str, list[Dialogue]] = {}
    for dialogue in conversations:
        if dialogue.reward is None or "method" not in dialogue.source:
            continue
        if population in (None, dialogue.source.get("population")):
            groups.setdefault(str(dialogue.source["method"]), []).append(dialogue)
    return {key: groups[key] for key in wording.ordered_methods(groups)}


def reward_distributions(
    conversations: Sequence[Dialogue],
    dialogues: Sequence[Dialogue] = (),
    population: str | None = "average",
) -> Figure | None:
    """Histogram of the rewards of each method, the training data's below them in grey."""
    groups = {
        key: np.array([d.total_reward for d in group])
        for key, group in by_method(conversations, population).items()
    }
    if not groups:
        return None
    data = [d.total_reward for d in dialogues if d.reward is not None]
    if data:
        groups["data"] = np.array(data)
    edges = _edges(np.concatenate(list(groups.values())))
    shares = {
        key: np.histogram(rewards, edges)[0] / len(rewards) for key, rewards in groups.items()
    }
    highest = max(share.max() for share in shares.values())
    with styled():
        figure, axes = new_figure(
            0.5 + 0.72 * len(groups), len(groups), 1, sharex=True, sharey=True
        )
        for axis, (key, rewards) in zip(axes[:, 0], groups.items(), strict=True):
            axis.bar(edges[:-1], shares[key], np.diff(edges) * 0.92, align="edge", color=color(key))
            axis.axvline(rewards.mean(), color=PALETTE["ink"][0], linewidth=1.4)
            name = "training data" if key == "data" else plain(wording.method_name(key))
            label = f"{name}\nmean {rewards.mean():.2f}, n = {len(rewards)}"
            axis.set_ylabel(label, rotation=0, ha="right", va="center", color=PALETTE["ink"][0])
            axis.set_yticks([])
            axis.set_ylim(0, 1.08 * highest)
            axis.spines["left"].set_visible(False)
        axes[-1, 0].set_xlabel("reward of a conversation")
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins around the values themselves where there are few, else 32 of one width."""
    distinct = np.unique(values.round(6))
    if 1 < len(distinct) <= 24 and np.diff(distinct).min() > 0.02 * np.ptp(distinct):
        half = np.diff(distinct).min() / 2
        return np.arange(distinct[0] - half, distinct[-1] + 2 * half, 2 * half)
    low, high = values.min(), values.max()
    return np.linspace(low, high, 33) if high > low else np.array([low - 0.5, low + 0.5])


def persona_scores(
    conversations: Sequence[Dialogue], population: str | None = "average"
) -> Figure | None:
    """Mean reward for each value of each persona axis, one panel an axis."""
    groups = by_method(conversations, population)
    axes_values = _persona_axes(groups)
    if not axes_values:
        return None
    columns = min(2, len(axes_values))
    names = list(axes_values)
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    heights = [max(len(axes_values[name]) for name in row) + 0.9 for row in rows]
    with styled():
        figure, axes = new_figure(
            0.6 + 0.42 * sum(heights), len(rows), columns, sharex=True, height_ratios=heights
        )
        handles: dict[str, Any] = {}
        for axis, name in zip(axes.flat, names, strict=False):
            handles |= _draw_persona_axis(axis, groups, name, axes_values[name])
            axis.set_title(plain(name.replace("_", " ")))
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("mean reward")
        _legend(figure, handles)
    return figure


def _persona_axes(groups: Mapping[str, Sequence[Dialogue]]) -> dict[str, list[str]]:
    """Axes on which the humans differ, with their values in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for group in groups.values():
        for dialogue in group:
            for name, value in dialogue.persona.items():
                found.setdefault(str(name), {})[str(value)] = None
    axes = {name: sorted(values) for name, values in found.items() if 1 < len(values) <= 12}
    return dict(list(axes.items())[:MOST_PANELS])


def _draw_persona_axis(
    axis: Axes, groups: Mapping[str, Sequence[Dialogue]], name: str, values: Sequence[str]
) -> dict[str, Any]:
    handles, offsets = {}, np.linspace(-0.27, 0.27, len(groups)) if len(groups) > 1 else [0.0]
    counts = dict.fromkeys(values, 0)
    for offset, (method, group) in zip(offsets, groups.items(), strict=True):
        for row, value in enumerate(values):
            rewards = [d.total_reward for d in group if str(d.persona.get(name)) == value]
            counts[value] = max(counts[value], len(rewards))
            if not rewards:
                continue
            mean, half = _mean_and_half(np.array(rewards))
            y = row + offset
            axis.plot([mean - half, mean + half], [y, y], color=color(method), linewidth=1.6)
            marker = MARKERS.get(method, "o")
            handles[method] = axis.plot(mean, y, marker, color=color(method), markersize=5)[0]
    axis.set_yticks(range(len(values)), [f"{plain(v, 20)}  ({counts[v]})" for v in values])
    axis.set_ylim(len(values) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)
    for row in range(1, len(values)):
        axis.axhline(row - 0.5, color=PALETTE["grid"][0], linewidth=0.8)
    _ink_labels(axis.get_yticklabels())
    return handles


def _mean_and_half(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95 % interval (normal approximation)."""
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(half)


def split_at(
    conversations: Sequence[Dialogue], success_reward: float | None
) -> tuple[Callable[[Dialogue], bool], str, str]:
    """What counts as success: the task's bar, or the median where the run does not tell it."""
    if wording.is_number(success_reward):
        bar = success_reward
        return (lambda d: d.total_reward >= bar), f"success (≥ {bar:g})", f"failure (< {bar:g})"
    rewards = [d.total_reward for d in conversations if d.reward is not None]
    median = float(np.median(rewards)) if rewards else 0.0
    return (
        (lambda d: d.total_reward > median),
        f"above the median ({median:.2g})",
        "at or below it",
    )


def values_along(
    conversations: Sequence[Dialogue],
    success_reward: float | None = None,
    population: str | None = "average",
) -> Figure | None:
    """Mean V and Q at each agent turn, of successful and of failed conversations."""
    groups = {
        key: group
        for key, group in by_method(conversations, population).items()
        if any(_value(d, 0, "q") is not None or _value(d, 0, "v") is not None for d in group)
    }
    if not groups:
        return None
    succeeded, yes, no = split_at(conversations, success_reward)
    with styled():
        figure, axes = new_figure(
            0.6 + 2.3 * len(groups), len(groups), 2, sharey="row", sharex=True
        )
        for row, (method, group) in zip(axes, groups.items(), strict=True):
            for axis, name in zip(row, ("v", "q"), strict=True):
                for style, label, wanted in (("success", yes, True), ("failure", no, False)):
                    part = [d for d in group if succeeded(d) == wanted]
                    _draw_values(axis, part, name, style, label)
                meaning = "before the utterance" if name == "v" else "of the utterance"
                axis.set_title(f"{plain(wording.method_name(method))}: {name.upper()} {meaning}")
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel("value")
        for axis in axes[-1]:
            axis.set_xlabel("agent turn")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return figure


def _value(dialogue: Dialogue, turn: int, name: str) -> float | None:
    turns = dialogue.agent_turns
    value = turns[turn].annotations.get(name) if -len(turns) <= turn < len(turns) else None
    return value if wording.is_number(value) else None


def _draw_values(axis: Axes, group: Sequence[Dialogue], name: str, style: str, label: str) -> None:
    points = []
    for turn in range(max((len(d.agent_turns) for d in group), default=0)):
        values = [v for d in group if (v := _value(d, turn, name)) is not None]
        if len(values) >= FEWEST:
            points.append((turn + 1, *_mean_and_half(np.array(values))))
    if not points:
        return
    turns, means, halves = np.array(points).T
    line = "-" if style == "success" else (0, (4, 2))
    axis.fill_between(turns, means - halves, means + halves, color=color(style), alpha=0.18, lw=0)
    marker = "o" if style == "success" else "s"
    axis.plot(
        turns, means, linestyle=line, marker=marker, ms=4, color=color(style), lw=1.8, label=label
    )


def q_calibration(
    conversations: Sequence[Dialogue], population: str | None = "average"
) -> Figure | None:
    """Predicted Q against the reward at the end, from the first and from the last agent turn."""
    groups = by_method(conversations, population)
    panels = []
    for turn, title in ((0, "first agent turn"), (-1, "last agent turn")):
        pairs = {
            method: np.array(
                [(q, d.total_reward) for d in group if (q := _value(d, turn, "q")) is not None]
            )
            for method, group in groups.items()
        }
        panels.append((title, {m: p for m, p in pairs.items() if len(p) >= 2 * FEWEST}))
    if not any(pairs for _, pairs in panels):
        return None
    with styled():
        figure, axes = new_figure(3.9, 1, 2, sharey=True)
        handles: dict[str, Any] = {}
        for axis, (title, pairs) in zip(axes[0], panels, strict=True):
            handles |= _draw_calibration(axis, pairs)
            axis.set_title(f"Q at the {title}")
            axis.set_xlabel("predicted: Q")
        axes[0, 0].set_ylabel("observed: mean reward")
        _legend(figure, handles)
    return figure


def _draw_calibration(axis: Axes, pairs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    handles, ends = {}, []
    for method, points in pairs.items():
        order = points[np.argsort(points[:, 0], kind="stable")]
        bins = [
            part for part in np.array_split(order, min(8, len(order) // FEWEST)) if len(part) > 1
        ]
        x = np.array([part[:, 0].mean() for part in bins])
        y, half = np.array([_mean_and_half(part[:, 1]) for part in bins]).T
        handles[method] = axis.errorbar(
            x,
            y,
            half,
            fmt=MARKERS.get(method, "o"),
            color=color(method),
            ms=5.5,
            elinewidth=1.4,
        )
        ends += [x.min(), x.max()]
    if ends:
        diagonal(axis, min(ends), max(ends))
    return handles


def diagonal(axis: Axes, low: float, high: float) -> None:
    """A dashed line where both coordinates are the same."""
    axis.plot(
        [low, high], [low, high], color=PALETTE["muted"][0], lw=1, linestyle=(0, (3, 3)), zorder=1
    )


# --- held-out dialogues -------------------------------------------------------------------------


def heldout_auroc(heldout: Mapping[str, Any]) -> Figure | None:
    """AUROC of V and Q over the dialogue, with intervals; one line a method."""
    found = tables.predictions(heldout)
    if not found:
        return None
    with styled():
        figure, axes = new_figure(3.2, 1, 2, sharey=True)
        handles: dict[str, Any] = {}
        for axis, name in zip(axes[0], ("v", "q"), strict=True):
            for method, points in reversed(found.items()):
                handles |= _draw_auroc(axis, method, points, f"auroc_{name}")
            axis.axhline(0.5, color=PALETTE["muted"][0], lw=1, linestyle=(0, (3, 3)))
            axis.set_title(f"{name.upper()} against the outcome")
            axis.set_xlabel("share of the dialogue seen")
            axis.xaxis.set_major_formatter(lambda x, _: tables.percent(x))
        axes[0, 0].set_ylabel("AUROC")
        _legend(figure, handles)
    return figure


def _draw_auroc(
    axis: Axes, method: str, points: Sequence[Mapping[str, Any]], key: str
) -> dict[str, Any]:
    points = [point for point in points if wording.is_number(point.get(key))]
    if not points:
        return {}
    x, y = [p["point"] for p in points], [p[key] for p in points]
    bounds = [p.get(f"{key}_ci95") for p in points]
    if all(wording.interval(b) for b in bounds):
        low, high = np.array(bounds, dtype=float).T
        axis.fill_between(x, low, high, color=color(method), alpha=0.15, lw=0)
    line = axis.plot(x, y, marker=MARKERS.get(method, "o"), ms=5, lw=1.8, color=color(method))
    return {method: line[0]}


def heldout_calibration(heldout: Mapping[str, Any]) -> Figure | None:
    """Predicted against observed outcomes at each point of the dialogue, a panel a point."""
    found = {
        method: {p["point"]: bins for p in points if (bins := _bins(p))}
        for method, points in tables.predictions(heldout).items()
    }
    points = sorted({point for bins in found.values() for point in bins})[:MOST_PANELS]
    if not points:
        return None
    columns = min(4, len(points))
    rows = math.ceil(len(points) / columns)
    with styled():
        figure, axes = new_figure(0.6 + 2.5 * rows, rows, columns, sharex=True, sharey=True)
        handles: dict[str, Any] = {}
        for axis, point in zip(axes.flat, points, strict=False):
            for method, bins in found.items():
                if point in bins:
                    handles[method] = _draw_bins(axis, method, bins[point])
            everything = [b["predicted"] for bins in found.values() for b in bins.get(point, [])]
            diagonal(axis, min(everything), max(everything))
            axis.set_title(f"{tables.percent(point)} seen")
        for axis in axes.flat[len(points) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("predicted")
        axes[0, 0].set_ylabel("observed")
        _legend(figure, handles)
    return figure


def _bins(point: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        b
        for b in point.get("calibration") or []
        if wording.is_number(b.get("predicted")) and wording.is_number(b.get("observed"))
    ]


def _draw_bins(axis: Axes, method: str, bins: Sequence[Mapping[str, Any]]) -> Any:
    largest = max((b.get("count") or 1 for b in bins), default=1)
    for b in bins:
        if wording.is_number(b.get("low")) and wording.is_number(b.get("high")):
            axis.plot([b["predicted"]] * 2, [b["low"], b["high"]], color=color(method), lw=1.3)
    return axis.scatter(
        [b["predicted"] for b in bins],
        [b["observed"] for b in bins],
        s=[14 + 40 * (b.get("count") or 1) / largest for b in bins],
        marker=MARKERS.get(method, "o"),
        color=color(method),
        zorder=3,
    )
