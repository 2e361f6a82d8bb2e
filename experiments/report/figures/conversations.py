"""Figures of the conversations: rewards, personas, values along them, calibration of Q."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.evaluation.statistics import crossed_mean, rank_correlation
from experiments.looks import Look
from experiments.report.figures import style
from experiments.report.figures.style import FEWEST, Looks, Screen, plain
from experiments.report.run import by_method
from experiments.report.wording import number
from imagination.dialogue import Dialogue

Point = tuple[float, Dialogue]  # a number that was noted in a conversation
Returns = Mapping[str, Float[np.ndarray, " turns"]]  # id -> from each of the agent's turns on

_LINESTYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # of populations
MOST_BINS = 8


def mean_and_half(points: Sequence[Point]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over humans and, if there are several, trainings."""
    values, talks = zip(*points, strict=True)
    trainings = [talk.source.get("seed") for talk in talks]
    humans = [talk.source.get("episode") for talk in talks]
    found = crossed_mean(np.array(values), trainings, humans)
    return found.mean, found.high - found.mean


def _groups(
    conversations: Sequence[Dialogue], populations: Iterable[str]
) -> dict[str, dict[str, list[Dialogue]]]:
    """Population -> method -> rated conversations; populations without any are left out."""
    groups = {name: by_method(conversations, name) for name in populations}
    return {name: methods for name, methods in groups.items() if methods}


def _of_population(text: str, population: str, populations: Mapping[str, Any]) -> str:
    """The text, and the population where there are several."""
    return f"{text}, {population}" if len(populations) > 1 else text


# --- rewards ------------------------------------------------------------------------------------


def reward_distributions(
    conversations: Sequence[Dialogue],
    dialogues: Sequence[Dialogue],
    populations: Sequence[str],
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Histograms of the rewards of each method, the training data's below them in grey.

    The first population is filled, others are outlined above it.
    """
    groups = _groups(conversations, populations)
    if not groups:
        return None
    rows: list[tuple[Look, dict[str, np.ndarray]]] = []
    for method in by_method(conversations):
        own = {name: _rewards(methods.get(method, ())) for name, methods in groups.items()}
        rows.append((looks[method], {name: each for name, each in own.items() if each.size}))
    if (data := _rewards(dialogues)).size:
        rows.append((Look("training data", style.DATA, ""), {"": data}))
    labels = [_rewards_label(look, own, screen) for look, own in rows]
    edges = _edges(np.concatenate([values for _, own in rows for values in own.values()]))
    with style.styled():
        height = max(0.72, 0.05 + style.row_height(labels))
        panels = screen.panels(len(rows), 1, height, margin=0.7, sharex=True, sharey=True)
        for axis, (look, own), label in zip(panels.all, rows, labels, strict=True):
            _draw_rewards(axis, own, [*groups], edges, look.color)
            axis.set_ylabel(label, rotation=0, ha="right", va="center", color=style.INK)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
        panels.lowest[0].set_xlabel("reward of a conversation")
        if len(groups) > 1:
            handles = [Patch(color=style.DATA)] + [
                Line2D([], [], color=style.INK, linewidth=1, linestyle=linestyle)
                for _, linestyle in zip([*groups][1:], _LINESTYLES, strict=False)
            ]
            style.add_labels(panels.figure, handles, [plain(name) for name in groups], screen)
    return panels.figure


def _rewards(dialogues: Iterable[Dialogue]) -> Float[np.ndarray, " n"]:
    return np.array([d.total_reward for d in dialogues if d.reward is not None])


def _rewards_label(look: Look, own: Mapping[str, np.ndarray], screen: Screen) -> str:
    """The name of a method, and for each population the mean and the conversations behind it."""
    name = style.lines(look.title, screen.label_line + 6)
    several = len(own) > 1
    means = [
        f"{plain(population, 10) if several else 'mean'} {values.mean():.2f}, n = {len(values)}"
        for population, values in own.items()
    ]
    return "\n".join([name, *means])


def _draw_rewards(
    axis: Axes,
    own: Mapping[str, Float[np.ndarray, " n"]],
    populations: Sequence[str],
    edges: Float[np.ndarray, " m"],
    color: str,
) -> None:
    """Draws shares of the rewards, and a line at the mean of each population."""
    for population, values in own.items():
        place = populations.index(population) if population in populations else 0
        share = np.histogram(values, edges)[0] / len(values)
        if place == 0:
            axis.bar(edges[:-1], share, np.diff(edges) * 0.92, align="edge", color=color)
        else:
            linestyle = _LINESTYLES[(place - 1) % len(_LINESTYLES)]
            axis.stairs(share, edges, color=style.INK, linewidth=1, linestyle=linestyle)
        linestyle = _LINESTYLES[place % len(_LINESTYLES)]
        axis.axvline(values.mean(), color=style.INK, linewidth=1.4, linestyle=linestyle)


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
    populations: Sequence[str],
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Mean reward for each value of each persona axis, one panel an axis and population."""
    groups = _groups(conversations, populations)
    axes_values = _persona_axes(groups)
    drawn = [
        (name, values, population)
        for name, of_populations in axes_values.items()
        for population, values in of_populations.items()
    ]
    if not drawn:
        return None
    labels = [{v: style.lines(v.replace("_", " "), 18) for v in values} for _, values, _ in drawn]
    heights = [(0.06 + style.row_height(own.values())) * (len(own) + 0.9) for own in labels]
    with style.styled():
        panels = screen.panels(len(drawn), 2, heights, sharex=True)
        handles: dict[str, Any] = {}
        for axis, (name, _, population), own in zip(panels.all, drawn, labels, strict=True):
            handles |= _draw_persona_axis(axis, groups[population], name, own, looks)
            title = _of_population(name.replace("_", " "), population, groups)
            axis.set_title(style.lines(title, screen.title_line(2, labels=1.6)))
        for axis in panels.lowest:
            axis.set_xlabel("mean reward")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _persona_axes(
    groups: Mapping[str, Mapping[str, Sequence[Dialogue]]],
) -> dict[str, dict[str, list[str]]]:
    """Axes on which the humans differ -> population -> its values."""
    found: dict[str, dict[str, set[str]]] = {}
    for population, methods in groups.items():
        for dialogue in (each for group in methods.values() for each in group):
            for name, value in dialogue.persona.items():
                found.setdefault(name, {}).setdefault(population, set()).add(str(value))
    differing = {
        name: {population: sorted(values) for population, values in own.items()}
        for name, own in found.items()
        if 1 < len(set().union(*own.values())) <= 12
    }
    most = style.MOST_PANELS // max(1, len(groups))
    return dict(list(differing.items())[:most])


def _draw_persona_axis(
    axis: Axes,
    groups: Mapping[str, Sequence[Dialogue]],
    name: str,
    labels: Mapping[str, str],
    looks: Looks,
) -> dict[str, Any]:
    """Draws a row for each value, labelled, and in it a mark for each method."""
    handles, offsets = {}, np.linspace(-0.27, 0.27, len(groups)) if len(groups) > 1 else [0.0]
    counts = dict.fromkeys(labels, 0)
    for offset, (method, group) in zip(offsets, groups.items(), strict=True):
        look = looks[method]
        for row, value in enumerate(labels):
            own = [(d.total_reward, d) for d in group if str(d.persona.get(name)) == value]
            counts[value] = max(counts[value], len(own))
            if not own:
                continue
            mean, half = mean_and_half(own)
            y = row + offset
            axis.plot([mean - half, mean + half], [y, y], color=look.color, linewidth=1.6)
            [handles[method]] = axis.plot(mean, y, look.marker, color=look.color, markersize=5)
    ticks = [f"{label}  ({counts[value]})" for value, label in labels.items()]
    axis.set_yticks(range(len(labels)), ticks)
    axis.set_ylim(len(labels) - 0.45, -0.55)
    axis.grid(axis="y", visible=False)
    for row in range(1, len(labels)):
        axis.axhline(row - 0.5, color=style.GRID, linewidth=0.8)
    style.ink_labels(axis.get_yticklabels())
    return handles


# --- values -------------------------------------------------------------------------------------


def values_along(
    conversations: Sequence[Dialogue],
    success_reward: float,
    populations: Sequence[str],
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Mean V and Q at each agent turn, of successful and of failed conversations.

    Outcomes differ in colour and mark, populations in the line.
    """
    meanings = {"v": "V before the utterance", "q": "Q of the utterance"}
    groups = _groups(conversations, populations)
    found = [
        (method, meaning, _outcomes(groups, method, name, success_reward))
        for method in by_method(conversations)
        for name, meaning in meanings.items()
    ]
    drawn = [each for each in found if any(points for _, _, points in each[2])]
    if not drawn:
        return None
    with style.styled():
        panels = screen.panels(len(drawn), 2, 2.5, sharex=True, sharey=True)
        outcomes: dict[str, Any] = {}  # not every method has conversations of both
        for axis, (method, meaning, lines) in zip(panels.all, drawn, strict=True):
            for look, linestyle, points in lines:
                if points:
                    outcomes[look.title] = _draw_values(axis, points, look, linestyle)
            title = style.lines(looks[method].title, screen.title_line(2), most=2)
            axis.set_title(f"{title}\n{meaning}")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in panels.first:
            axis.set_ylabel("value")
        for axis in panels.lowest:
            axis.set_xlabel("agent turn")
        labels = [look.title for look, _, _ in drawn[0][2] if look.title in outcomes]
        handles = [outcomes[label] for label in labels]
        style.add_labels(panels.figure, handles, labels, screen)
    return panels.figure


def _outcomes(
    groups: Mapping[str, Mapping[str, Sequence[Dialogue]]],
    method: str,
    name: str,
    success_reward: float,
) -> list[tuple[Look, Any, list[tuple[float, ...]]]]:
    """Looks and points of successful conversations and of failed ones, of each population."""
    looks = {
        True: Look(f"success (≥ {success_reward:g})", style.SUCCESS, "o"),
        False: Look(f"failure (< {success_reward:g})", style.FAILURE, "s"),
    }
    found = []
    for place, (population, methods) in enumerate(groups.items()):
        linestyle = _LINESTYLES[place % len(_LINESTYLES)]
        for succeeded, look in looks.items():
            own = [
                dialogue
                for dialogue in methods.get(method, ())
                if (dialogue.total_reward >= success_reward) == succeeded
            ]
            title = plain(_of_population(look.title, population, groups), 40)
            shown = Look(title, look.color, look.marker)
            found.append((shown, linestyle, _mean_values(own, name)))
    return found


def _value(dialogue: Dialogue, turn: int, name: str) -> float | None:
    """Q or V noted at an agent turn (counted from either end); agents may learn no values."""
    turns = dialogue.agent_turns
    return turns[turn].annotations.get(name) if -len(turns) <= turn < len(turns) else None


def _mean_values(group: Sequence[Dialogue], name: str) -> list[tuple[float, ...]]:
    """(agent turn, mean value, half of its interval) where there are enough conversations."""
    points = []
    for turn in range(max((len(d.agent_turns) for d in group), default=0)):
        values = [(v, d) for d in group if (v := _value(d, turn, name)) is not None]
        if len(values) >= FEWEST:
            points.append((turn + 1, *mean_and_half(values)))
    return points


def _draw_values(
    axis: Axes, points: Sequence[tuple[float, ...]], look: Look, linestyle: Any
) -> Any:
    """Draws a line in its band, and returns it."""
    turns, means, halves = np.array(points).T
    axis.fill_between(turns, means - halves, means + halves, color=look.color, alpha=0.14, lw=0)
    [line] = axis.plot(
        turns, means, linestyle=linestyle, marker=look.marker, ms=4, color=look.color, lw=1.8
    )
    return line


class _Foretold(NamedTuple):
    """Q at a turn of a conversation, and the return from there on."""

    q: float
    outcome: float
    talk: Dialogue


def q_calibration(
    conversations: Sequence[Dialogue],
    returns: Returns,
    populations: Sequence[str],
    looks: Looks,
    screen: Screen = style.WIDE,
) -> Figure | None:
    """Predicted Q against the return from there on, at the first and at the last agent turn."""
    groups = _groups(conversations, populations)
    drawn = []
    for population, methods in groups.items():
        for turn, title in ((0, "first agent turn"), (-1, "last agent turn")):
            predicted = {
                method: _predicted(group, turn, returns) for method, group in methods.items()
            }
            binned = {method: _bins(trainings) for method, trainings in predicted.items()}
            if binned := {method: bins for method, bins in binned.items() if bins}:
                told = [_told(predicted[method]) for method in binned]
                drawn.append((_of_population(title, population, groups), binned, told))
    if not drawn:
        return None
    with style.styled():
        most = max(len(told) for _, _, told in drawn)
        panels = screen.panels(len(drawn), 2, 3.2 + 0.17 * most, sharey=True)
        handles: dict[str, Any] = {}
        for axis, (title, binned, told) in zip(panels.all, drawn, strict=True):
            own = _draw_calibration(axis, binned, looks)
            handles |= own
            style.set_title(axis, f"Q at the {title}", [*own.values()], told)
            axis.set_xlabel("predicted: Q")
            axis.xaxis.set_major_locator(MaxNLocator(5))
        for axis in panels.first:
            axis.set_ylabel("observed: mean return")
        style.add_legend(panels.figure, handles, looks, screen)
    return panels.figure


def _predicted(group: Sequence[Dialogue], turn: int, returns: Returns) -> list[list[_Foretold]]:
    """The conversations of each training with the Q at a turn, by rising Q."""
    trainings: dict[Any, list[_Foretold]] = {}
    for dialogue in group:
        if dialogue.id in returns and (q := _value(dialogue, turn, "q")) is not None:
            foretold = _Foretold(q, returns[dialogue.id][turn], dialogue)
            trainings.setdefault(dialogue.source.get("seed"), []).append(foretold)
    return [sorted(points, key=lambda point: point.q) for points in trainings.values()]


def _bins(trainings: Sequence[Sequence[_Foretold]]) -> list[list[_Foretold]]:
    """Bins of equal size, made within each training; none where there are too few conversations.

    In bins over all trainings, those of one that hopes for more would lie right of the others',
    which says nothing of the order of people.
    """
    fewest = min(map(len, trainings), default=0)
    count = min(MOST_BINS, fewest // FEWEST) if fewest >= 2 * FEWEST else 0
    bins: list[list[_Foretold]] = [[] for _ in range(count)]
    for points in trainings:
        edges = np.linspace(0, len(points), count + 1).astype(int)
        for place, own in enumerate(bins):
            own += points[edges[place] : edges[place + 1]]
    return bins


def _told(trainings: Sequence[Sequence[_Foretold]]) -> str:
    """Rank correlation of Q with the return, spread of the returns, mean error of Q."""
    pairs = [np.array([(each.q, each.outcome) for each in own]) for own in trainings]
    humans = {each.talk.source.get("episode") for own in trainings for each in own}
    rho = rank_correlation(pairs, len(humans)).mean
    q, returns = np.concatenate(pairs).T
    parts = (
        "–" if np.isnan(rho) else number(rho),
        number(returns.std()),
        number((q - returns).mean()),
    )
    return "ρ {}, spread {}, error {}".format(*parts)


def _draw_calibration(
    axis: Axes, binned: Mapping[str, Sequence[Sequence[_Foretold]]], looks: Looks
) -> dict[str, Any]:
    handles, ends = {}, []
    for method, bins in binned.items():
        x = np.array([np.mean([each.q for each in points]) for points in bins])
        outcomes = [[(each.outcome, each.talk) for each in points] for points in bins]
        y, half = np.array([mean_and_half(each) for each in outcomes]).T
        look = looks[method]
        handles[method] = axis.errorbar(
            x, y, half, fmt=look.marker, color=look.color, ms=5.5, elinewidth=1.4
        )
        ends += [x.min(), x.max()]
    style.draw_diagonal(axis, min(ends), max(ends))
    return handles
