"""Figure on hindsight: the reward model against known rewards, and the rewards of all rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.hindsight_records import Hindsight, Round
from experiments.looks import look_of
from experiments.report.figures import style
from experiments.report.figures.style import Screen


def hindsight(records: Hindsight | None, screen: Screen = style.WIDE) -> Figure | None:
    """The reward model against known rewards, and the rewards of all rounds."""
    if records is None or not records.rounds:
        return None
    points = _points(records.calibration["ratings"])
    with style.styled():
        panels = screen.panels(2 if points else 1, 2, 3.2, margin=0.4)
        if points:
            _draw_reward_model(panels.all[0], points)
        _draw_rewards(panels.all[-1], records.rounds)
    return panels.figure


def _draw_reward_model(axis: Axes, points: Counter[tuple[float, float]]) -> None:
    axis.set_title("reward model, original dialogues")
    axis.set_xlabel("known reward")
    axis.set_ylabel("reward model's rating")
    known, rated = zip(*points, strict=True)
    sizes = [14 * count**0.7 for count in points.values()]
    axis.scatter(known, rated, s=sizes, color=look_of("ilql").color, alpha=0.5, linewidths=0)
    style.draw_diagonal(axis, min(*known, *rated), max(*known, *rated))


def _draw_rewards(axis: Axes, rounds: Sequence[Round]) -> None:
    """The cumulative distribution of the rewards, originals first."""
    groups = {"original": list(rounds[0].parents.values())}
    groups |= {f"round {each.number}": each.dialogues for each in rounds}
    colors = [style.DATA, *(look_of(f"ilql_hindsight{each.number}").color for each in rounds)]
    handles = {}
    for (name, dialogues), color in zip(groups.items(), colors, strict=True):
        rewards = sorted(d.total_reward for d in dialogues if d.reward is not None)
        if rewards:
            shares = [(index + 1) / len(rewards) for index in range(len(rewards))]
            [handles[name]] = axis.step(rewards, shares, where="post", color=color)
    style.set_title(axis, "rewards, round by round", [*handles.values()], [*handles])
    axis.set_xlabel("reward at most")
    axis.set_ylabel("share of the dialogues")


def _points(ratings: Sequence[Mapping[str, Any]]) -> Counter[tuple[float, float]]:
    """Counts dialogues by (known, rated)."""
    return Counter(
        (round(each["known"], 3), round(each["rated"], 3))
        for each in ratings
        if None not in (each["known"], each["rated"])
    )
