"""Losses against the optimum: by what an agent did not think of, and by what it chose wrongly.

A world knows the exact value of every act. At a turn of the agent's, with V* the value of the best
act, C that of the best one among the agent's candidates and Q that of what it said,

    lost by candidates = V* - C        lost by choice = C - Q

Summed over the turns of a conversation and averaged over conversations, the two make up what lies
between the optimum and the agent's mean reward, but for the luck of the ratings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.evaluation import typed_json
from experiments.evaluation.statistics import bootstrap_mean
from experiments.evaluation.summary import STAGE, Bounds
from imagination.dialogue import Dialogue
from imagination.simulation import POPULATIONS, Planner, World
from imagination.simulation.course import Course, Decision, follow

DIAGNOSIS_SCHEMA = 1
_MOST_NODES = 1_000_000  # that a planner may remember, at about a kilobyte each


@dataclasses.dataclass(frozen=True)
class Loss:
    """Loss of a method with the humans of one population, in rewards.

    Attributes:
        episodes: Conversations that were looked at.
        turns: Mean number of the agent's utterances in them.
        candidates: Mean loss of a conversation by what was not among the candidates.
        candidates_ci95: Its interval, over conversations.
        choice: Mean loss of a conversation by the choice among them.
        choice_ci95: Its interval.
    """

    episodes: int
    turns: float
    candidates: float
    candidates_ci95: Bounds
    choice: float
    choice_ci95: Bounds


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Content of `diagnosis.json`.

    Attributes:
        episodes: Conversations of each training and population that were to be looked at.
        population: Name -> method -> loss.
    """

    episodes: int
    population: Mapping[str, Mapping[str, Loss]]
    schema: int = DIAGNOSIS_SCHEMA

    def write(self, path: Path) -> None:
        typed_json.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Diagnosis:
        """Raises `ResultsError` for a file that `write` has not written."""
        return typed_json.read(path, cls, STAGE)


def diagnose(world: World, conversations: Iterable[Dialogue], episodes: int) -> Diagnosis:
    """Splits what each method loses.

    Args:
        world: That the humans are of.
        conversations: Of the evaluation, with `method`, `population` and `episode` in their source.
        episodes: The first so many of each training and population are looked at.
    """
    groups: dict[str, dict[str, list[Dialogue]]] = {name: {} for name in POPULATIONS}
    for dialogue in conversations:
        source = dialogue.source
        if source["episode"] < episodes:
            groups[source["population"]].setdefault(source["method"], []).append(dialogue)
    return Diagnosis(
        episodes,
        {name: _losses(Planner(world, name), methods) for name, methods in groups.items()},
    )


def _losses(planner: Planner, methods: Mapping[str, Sequence[Dialogue]]) -> dict[str, Loss]:
    """One planner for all of a population: what it worked out for one serves the others."""
    found = {}
    for method, dialogues in methods.items():
        rows = [row for row in (lost(planner, dialogue) for dialogue in dialogues) if len(row)]
        if not rows:
            continue
        totals = np.array([row.sum(axis=0) for row in rows])
        (candidates, *first), (choice, *second) = (
            map(float, bootstrap_mean(column[None], seed=0)) for column in totals.T
        )
        turns = float(np.mean([len(row) for row in rows]))
        found[method] = Loss(len(rows), turns, candidates, tuple(first), choice, tuple(second))
    return found


def lost(planner: Planner, dialogue: Dialogue) -> Float[np.ndarray, "turns 2"]:
    """Reward lost at each turn of the agent's: by its candidates, and by its choice among them."""
    planner.forget(more_than=_MOST_NODES)
    course = follow(planner, dialogue.turns)
    decisions = () if course is None else course.decisions
    rows = [_lost_at(planner, course, decision, dialogue) for decision in decisions]
    return np.array(rows, float).reshape(-1, 2)


def _lost_at(
    planner: Planner, course: Course, decision: Decision, dialogue: Dialogue
) -> tuple[float, float]:
    place = decision.turns_left, decision.state, decision.belief
    considered = dialogue.turns[decision.turn].annotations.get("candidates", ())
    texts = [each["text"] for each in considered]
    acts = {decision.act, *(planner.world.understand_about(course.slots, text) for text in texts)}
    values = {act: planner.act_value(*place, act) for act in acts}
    best = max(values.values())
    return planner.state_value(*place) - best, best - values[decision.act]
