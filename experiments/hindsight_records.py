"""Reads and counts the files of the stage regenerate, and puts the counts in words."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import DAMAGE, read_json_object
from experiments.report.wording import number
from experiments.run_folder import RunError, RunFolder, is_for_training
from ilql_jax.errors import shown
from imagination.dialogue import Dialogue, iterate_dialogues, place_of


@dataclasses.dataclass(frozen=True)
class Round:
    """One look back.

    Attributes:
        number: Counted from 1.
        parents: Id -> dialogue, of those looked back on.
        dialogues: Dialogues that can be learned from.
        rejections: Those that cannot: parent, problem, detail.
    """

    number: int
    parents: Mapping[str, Dialogue]
    dialogues: Sequence[Dialogue]
    rejections: Sequence[Mapping[str, Any]]

    @functools.cached_property
    def pairs(self) -> list[tuple[Dialogue, Dialogue]]:
        """Each regenerated dialogue behind the one that it was made from."""
        return [(self.parents[d.source["parent"]], d) for d in self.dialogues]

    @property
    def changed(self) -> int:
        """Dialogues looked back on that led to another one."""
        return len({parent.id for parent, _ in self.pairs})

    @property
    def rewards(self) -> tuple[float, float] | None:
        """Mean reward of originals and of what was made of them, pair by pair."""
        if not self.dialogues:
            return None
        before, after = zip(*((a.total_reward, b.total_reward) for a, b in self.pairs), strict=True)
        return float(np.mean(before)), float(np.mean(after))

    @property
    def share_above(self) -> float | None:
        """Share of the pairs whose regenerated dialogue has the higher reward."""
        if not self.dialogues:
            return None
        return float(np.mean([b.total_reward > a.total_reward for a, b in self.pairs]))


@dataclasses.dataclass(frozen=True)
class Hindsight:
    """All rounds of a run, and how its reward model agrees with known outcomes."""

    rounds: Sequence[Round]
    calibration: Mapping[str, Any]


def read_hindsight(path: Path, originals: Sequence[Dialogue]) -> Hindsight | None:
    """The hindsight of a run's folder, or None where nobody looked back.

    Args:
        path: The run's folder.
        originals: Its dialogues.
    """
    folder = RunFolder(path)
    if not folder.calibration.exists():
        return None
    rejections = read_rejections(folder)
    parents = {d.id: d for d in originals if is_for_training(d)}
    rounds = []
    while (file := folder.hindsight_round(len(rounds) + 1)).exists():
        count = len(rounds) + 1
        made = read_round(folder, count)
        _check_parents(file, made, parents)
        own = [each for each in rejections if each["round"] == count]
        rounds.append(Round(count, parents, made, own))
        parents = {d.id: d for d in made}
    try:
        calibration = read_calibration(folder)
    except DAMAGE as error:
        raise RunError(
            f"{folder.calibration} is damaged ({error}). Delete it, and --stage=regenerate makes "
            "it again."
        ) from None
    return Hindsight(rounds, calibration)


def read_round(folder: RunFolder, round_number: int) -> list[Dialogue]:
    """The regenerated dialogues of a round.

    Raises:
        RunError: The first round has none, or one does not say what it was made from.
        DialogueError: The file is damaged.
    """
    path = folder.hindsight_round(round_number)
    dialogues = list(iterate_dialogues(path))
    if not dialogues and round_number == 1:
        raise RunError(f"{path} holds no dialogues any more. {_MADE_AGAIN}")
    for index, each in enumerate(dialogues):
        turn = each.source.get("turn")
        if not isinstance(each.source.get("parent"), str) or not _is_agent_turn(each, turn):
            raise RunError(
                f"{place_of(path, index)}: source is {shown(each.source, 200)}, but must have the "
                f"id of the dialogue that this was made from (parent) and a turn of the agent "
                f"(turn). {_MADE_AGAIN}"
            )
    return dialogues


_MADE_AGAIN = "Delete the file, and --stage=regenerate makes it again."


def _check_parents(path: Path, made: Sequence[Dialogue], parents: Mapping[str, Dialogue]) -> None:
    """Raises `RunError` for a dialogue that was made from none of these."""
    for index, each in enumerate(made):
        parent, turn = parents.get(each.source["parent"]), each.source["turn"]
        if parent is None or not _is_agent_turn(parent, turn):
            raise RunError(
                f"{place_of(path, index)}: made from turn {turn} of {each.source['parent']!r}, "
                f"which is no turn of the agent in a dialogue that was looked back on. "
                f"{_MADE_AGAIN}"
            )


def _is_agent_turn(dialogue: Dialogue, turn: Any) -> bool:
    is_place = type(turn) is int and 0 <= turn < len(dialogue.turns)
    return is_place and dialogue.turns[turn].speaker == "agent"


def read_calibration(folder: RunFolder) -> dict[str, Any]:
    """The reward model's agreement with known outcomes.

    Raises:
        ValueError, KeyError, TypeError: The file is damaged.
    """
    found = read_json_object(folder.calibration)
    for name in ("count", "spearman", "ratings"):
        found[name]
    describe_calibration(found)
    return found


def read_rejections(folder: RunFolder) -> list[dict[str, Any]]:
    """Reads the rejected proposals and continuations of all rounds."""
    if not folder.rejected.exists():
        return []
    try:
        found = [json.loads(line) for line in folder.rejected.read_text("utf-8").splitlines()]
        [(each["round"] + 0, each["problem"] + "") for each in found]  # of these types
    except DAMAGE as error:
        raise RunError(
            f"{folder.rejected} is damaged ({error}). Delete {folder.hindsight}, and "
            "--stage=regenerate makes it again."
        ) from None
    return found


# --- in words -----------------------------------------------------------------------------------


def count_problems(rejections: Iterable[Mapping[str, Any]]) -> str:
    """`same utterance 3, empty turn 1`; empty where there is nothing."""
    counts = Counter(each["problem"] for each in rejections)
    return ", ".join(f"{problem} {count:,}" for problem, count in counts.most_common())


def describe_calibration(found: Mapping[str, Any]) -> str:
    """Reads the reward model's agreement with known outcomes."""
    return (
        f"Reward model against the known rewards of {found['count']:,} dialogues: rank correlation "
        f"{number(found['spearman'])} (Spearman; Pearson {number(found['pearson'])}), mean error "
        f"{number(found['mean_absolute_error'])}, bias {number(found['bias'])}."
    )


def describe_round(each: Round) -> str:
    """Describes the result of a round."""
    told = (
        f"Round {each.number}: {len(each.parents):,} dialogues looked back on, {each.changed:,} "
        f"changed into {len(each.dialogues):,}"
    )
    if each.rewards:
        before, after = each.rewards
        told += f" (mean reward {number(before)} before, {number(after)} after)"
    if each.rejections:
        told += f"; rejected: {count_problems(each.rejections)}"
    return f"{told}."


def card(found: Hindsight) -> str:
    """All of it as Markdown."""
    lines = ["# Hindsight", "", describe_calibration(found.calibration), "", "## Rounds", ""]
    lines += _table(ROUND_HEADERS, map(round_cells, found.rounds))
    problems = Counter(
        (each["round"], each["problem"]) for one in found.rounds for each in one.rejections
    )
    if problems:
        rows = [(str(n), problem, f"{count:,}") for (n, problem), count in sorted(problems.items())]
        lines += ["", "## Rejected", "", *_table(("round", "problem", "times"), rows)]
    return "\n".join(lines) + "\n"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headers, ["---"] * len(headers), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


ROUND_HEADERS = (
    "round",
    "looked back on",
    "changed",
    "regenerated",
    "rejected",
    "mean reward before",
    "after",
    "above before",
)


def round_cells(each: Round) -> tuple[str, ...]:
    """A line of the table of rounds."""
    before, after = each.rewards or (None, None)
    share = each.share_above
    return (
        str(each.number),
        f"{len(each.parents):,}",
        f"{each.changed:,}",
        f"{len(each.dialogues):,}",
        f"{len(each.rejections):,}",
        number(before),
        number(after),
        "–" if share is None else f"{100 * share:.0f} %",
    )
