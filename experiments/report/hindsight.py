"""The report's section on hindsight: a table of the rounds, and pairs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.hindsight_records import (
    ROUND_HEADERS,
    Hindsight,
    Round,
    count_problems,
    describe_calibration,
    round_cells,
)
from experiments.report import wording
from imagination.dialogue import Dialogue

Pair = tuple[Dialogue, Dialogue]

RULE = (
    "On the left a dialogue as it was, on the right as it was played again from the turn that is "
    "framed; what both share is pale. Under the headings stands what is known of the human: on the "
    "left as the data has it, on the right as it was inferred. Picked by rule, not by eye: of each "
    "round the first pair, and those with the largest, the smallest (most negative) and the median "
    "difference in reward."
)


def section(records: Hindsight | None) -> dict[str, Any] | None:
    """Content of the section for the template; None where nobody looked back."""
    if records is None or not records.rounds:
        return None
    return {
        "calibration": describe_calibration(records.calibration),
        "headers": ROUND_HEADERS,
        "rows": [round_cells(each) for each in records.rounds],
        "problems": count_problems(r for each in records.rounds for r in each.rejections),
        "rule": RULE,
        "pairs": [shown for each in records.rounds for shown in _pick(each)],
    }


def _pick(one: Round) -> list[dict[str, Any]]:
    """Picks the pairs of a round to show, with the reason for each."""
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
