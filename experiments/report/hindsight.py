"""The report's section on hindsight: what each round came to, and pairs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.hindsight_records import (
    ROUND_HEADERS,
    Hindsight,
    Round,
    count_problems,
    describe_calibration,
    round_cells,
)
from experiments.report import figures, wording
from imagination.dialogue import Dialogue

Pair = tuple[Dialogue, Dialogue]

RULE = (
    "On the left a dialogue as it was, on the right as it was played again from the turn that is "
    "framed; what both share is pale. Under the headings stands what is known of the human: on the "
    "left as the data has it, on the right as it was inferred. Picked by rule, not by eye: of each "
    "round the first pair, and those with the largest, the smallest (most negative) and the median "
    "difference in reward."
)


def section(found: Hindsight | None) -> dict[str, Any] | None:
    """What the template shows; None where nobody looked back."""
    if found is None or not found.rounds:
        return None
    return {
        "calibration": describe_calibration(found.calibration),
        "headers": ROUND_HEADERS,
        "rows": [round_cells(each) for each in found.rounds],
        "problems": count_problems(r for each in found.rounds for r in each.rejections),
        "rule": RULE,
        "pairs": [shown for each in found.rounds for shown in _pick(each)],
    }


def _pick(one: Round) -> list[dict[str, Any]]:
    """The pairs to show of a round, and why each."""
    if not one.pairs:
        return []
    ranked = sorted(range(len(one.pairs)), key=lambda index: (_gain(one.pairs[index]), index))
    reasons = (
        (0, "first"),
        (ranked[-1], "largest difference"),
        (ranked[0], "smallest difference"),
        (ranked[len(ranked) // 2], "median difference"),
    )
    chosen: dict[int, list[str]] = {}
    for index, why in reasons:
        chosen.setdefault(index, []).append(why)
    return [
        _shown(one.pairs[index], f"round {one.number}: {', '.join(why)}")
        for index, why in chosen.items()
    ]


def _gain(pair: Pair) -> float:
    before, after = pair
    return after.total_reward - before.total_reward


def _shown(pair: Pair, why: str) -> dict[str, Any]:
    before, after = pair
    turn = after.source["turn"]
    return {
        "why": why,
        "turn": turn + 1,
        "reason": str(after.source.get("reason", "")),
        "before": _column(before, turn),
        "after": _column(after, turn),
    }


def _column(dialogue: Dialogue, changed: int) -> Mapping[str, Any]:
    marks = ["shared"] * changed + ["changed"]
    return {
        "reward": wording.number(dialogue.total_reward),
        "persona": dialogue.persona,
        "turns": [
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "mark": marks[index] if index < len(marks) else "",
            }
            for index, turn in enumerate(dialogue.turns)
        ],
    }


def draw(found: Hindsight | None) -> Figure | None:
    """The reward model against known rewards, and the rewards of all rounds."""
    if found is None or not found.rounds:
        return None
    with figures.styled():
        figure, axes = figures.new_figure(3.6, 1, 2)
        _draw_reward_model(axes[0, 0], _points(found.calibration.get("ratings") or ()))
        _draw_rewards(axes[0, 1], found.rounds)
    return figure


def _draw_reward_model(axis: Axes, points: Counter[tuple[float, float]]) -> None:
    axis.set_title("reward model, original dialogues")
    axis.set_xlabel("known reward")
    axis.set_ylabel("says the reward model")
    if not points:
        return
    known, rated = zip(*points, strict=True)
    sizes = [14 * count**0.7 for count in points.values()]
    axis.scatter(known, rated, s=sizes, color=figures.color("ilql"), alpha=0.5, linewidths=0)
    figures.diagonal(axis, min(*known, *rated), max(*known, *rated))


def _draw_rewards(axis: Axes, rounds: Sequence[Round]) -> None:
    """The cumulative distribution of the rewards, originals first."""
    groups = {"original": list(rounds[0].parents.values())}
    groups |= {f"round {each.number}": each.dialogues for each in rounds}
    colors = ["data", *(f"ilql_hindsight{each.number}" for each in rounds)]
    for (name, dialogues), color in zip(groups.items(), colors, strict=True):
        rewards = sorted(d.total_reward for d in dialogues if d.reward is not None)
        if rewards:
            shares = [(index + 1) / len(rewards) for index in range(len(rewards))]
            axis.step(rewards, shares, where="post", color=figures.color(color), label=name)
    axis.set_title("rewards, round by round")
    axis.set_xlabel("reward at most")
    axis.set_ylabel("share of the dialogues")
    axis.legend(loc="upper left")


def _points(ratings: Sequence[Mapping[str, Any]]) -> Counter[tuple[float, float]]:
    """(known, rated) -> how many dialogues."""
    return Counter(
        (round(each["known"], 3), round(each["rated"], 3))
        for each in ratings
        if wording.is_number(each.get("known")) and wording.is_number(each.get("rated"))
    )
