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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.evaluation import typed_json
from experiments.evaluation.statistics import bootstrap_mean, crossed_mean
from experiments.evaluation.summary import STAGE, Bounds
from imagination.dialogue import Dialogue
from imagination.simulation import POPULATIONS, Planner, World
from imagination.simulation.course import Course, Decision, follow
from imagination.simulation.world import Act

DIAGNOSIS_SCHEMA = 3
MOST_DECISIONS = 6
_MOST_NODES = 1_000_000  # that a planner may remember, at about a kilobyte each
_ROUNDING = 1e-9  # of exact values, which are sums in some order


@dataclasses.dataclass(frozen=True)
class PersonaLoss:
    """Loss of a method with the humans of one value of a persona axis, in rewards.

    Attributes:
        conversations: That were looked at.
        candidates: Mean loss of a conversation by what was not among the candidates.
        candidates_ci95: Its interval, over humans and trainings; None of a single human.
        choice: Mean loss of a conversation by the choice among them.
        choice_ci95: Its interval.
        a_turn: Both, of an utterance of the agent's.
        a_turn_ci95: Its interval.
    """

    conversations: int
    candidates: float
    candidates_ci95: Bounds | None
    choice: float
    choice_ci95: Bounds | None
    a_turn: float
    a_turn_ci95: Bounds | None


@dataclasses.dataclass(frozen=True)
class LostDecision:
    """A decision that a method takes wrongly, with all who were met with it.

    Attributes:
        turn: The agent's utterance in the conversation, from 1.
        by: `"candidates"`, where the best act was not considered, or `"choice"`.
        best: The best act of all, or of those considered.
        instead: The best act that was considered, or the one that was said; None = words that the
            world does not understand.
        times: Number of such decisions.
        loss: Mean over all conversations of what they lose.
    """

    turn: int
    by: str
    best: str | None
    instead: str | None
    times: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Loss:
    """Loss of a method with the humans of one population, in rewards.

    Attributes:
        episodes: Conversations that were looked at, of humans with whom every training talked.
        candidates: Mean loss of a conversation by what was not among the candidates.
        candidates_ci95: Its interval, over humans and, if there are several, trainings.
        choice: Mean loss of a conversation by the choice among them.
        choice_ci95: Its interval.
        a_turn: Both, of an utterance of the agent's.
        a_turn_ci95: Its interval.
        persona: Axis of the persona -> value -> loss with such humans.
        decisions: Those that lose most, most first.
    """

    episodes: int
    candidates: float
    candidates_ci95: Bounds
    choice: float
    choice_ci95: Bounds
    a_turn: float
    a_turn_ci95: Bounds
    persona: Mapping[str, Mapping[str, PersonaLoss]] = dataclasses.field(default_factory=dict)
    decisions: tuple[LostDecision, ...] = ()


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
        conversations: Those of the evaluation; sources name `method`, `population`, `episode`.
        episodes: So many of each training and population are looked at, with the share of
            difficult humans that all of them have.
    """
    groups: dict[str, dict[str, list[Dialogue]]] = {name: {} for name in POPULATIONS}
    for dialogue in conversations:
        source = dialogue.source
        groups[source["population"]].setdefault(source["method"], []).append(dialogue)
    chosen = {
        population: {name: _chosen(world, own, episodes) for name, own in methods.items()}
        for population, methods in groups.items()
    }
    return Diagnosis(
        episodes,
        {name: _losses(Planner(world, name), methods) for name, methods in chosen.items()},
    )


def _chosen(world: World, dialogues: Sequence[Dialogue], episodes: int) -> list[Dialogue]:
    """Dialogues of so many episodes, the first ones of difficult humans and of others.

    As many are difficult as in all episodes. Of the first episodes as they come it could be none,
    and what is lost would be of easy humans alone.
    """
    is_difficult = {
        each.source["episode"]: world.is_difficult(world.persona(each.persona))
        for each in dialogues
    }
    difficult = sorted(episode for episode, is_so in is_difficult.items() if is_so)
    others = sorted(episode for episode, is_so in is_difficult.items() if not is_so)
    many = round(min(1, episodes / len(is_difficult)) * len(difficult))
    kept = {*difficult[:many], *others[: max(0, episodes - many)]}
    return [each for each in dialogues if each.source["episode"] in kept]


def _losses(planner: Planner, methods: Mapping[str, Sequence[Dialogue]]) -> dict[str, Loss]:
    """One planner for all of a population: what it worked out for one serves the others."""
    found = {}
    for method, dialogues in methods.items():
        losses: dict[int, dict[int, _Lost]] = {}  # episode -> training
        for dialogue in dialogues:
            if turns := _turns(planner, dialogue):
                own = losses.setdefault(dialogue.source["episode"], {})
                own[dialogue.source["seed"]] = _Lost(dialogue, turns)
        trainings = {seed for own in losses.values() for seed in own}
        complete = [own for own in losses.values() if len(own) == len(trainings)]
        if complete:
            found[method] = _loss([[own[seed] for own in complete] for seed in sorted(trainings)])
    return found


class _Turn(NamedTuple):
    """The best act at a turn of the agent's, the best one that it considered, and what it said."""

    best: Act | None
    considered: Act | None
    said: Act | None
    candidates: float  # lost by them
    choice: float


class _Lost(NamedTuple):
    """A conversation, and what was lost at each turn of it."""

    dialogue: Dialogue
    turns: Sequence[_Turn]

    @property
    def rows(self) -> Float[np.ndarray, "turns 2"]:
        return _rows(self.turns)


def _loss(trainings: Sequence[Sequence[_Lost]]) -> Loss:
    """Loss of a method, from the conversations of each training with the same humans in order."""
    everyone = [each for own in trainings for each in own]
    parts: list[Any] = []
    for values in _columns(everyone):
        mean, *bounds = map(float, bootstrap_mean(values.reshape(len(trainings), -1), seed=0))
        parts += [mean, tuple(bounds)]
    return Loss(len(everyone), *parts, _by_persona(everyone), _decisions(everyone))


def _decisions(everyone: Sequence[_Lost]) -> tuple[LostDecision, ...]:
    """The decisions that lose most, of those that lose anything."""
    losses: dict[tuple, list[float]] = {}
    for each in everyone:
        for number, turn in enumerate(each.turns, start=1):
            missed = number, "candidates", turn.best, turn.considered
            losses.setdefault(missed, []).append(turn.candidates)
            wrong = number, "choice", turn.considered, turn.said
            losses.setdefault(wrong, []).append(turn.choice)
    found = [
        LostDecision(*kind, len(own), sum(own) / len(everyone))
        for kind, own in losses.items()
        if sum(own) > _ROUNDING
    ]
    return tuple(sorted(found, key=lambda each: -each.loss)[:MOST_DECISIONS])


def _columns(group: Sequence[_Lost]) -> Float[np.ndarray, "3 conversations"]:
    """Losses by candidates, by choice and a turn, whose means over conversations are the losses.

    A loss a turn is a ratio, Σ lost / Σ turns = R. Of a conversation with n turns it is given to
    first order, R + (lost - R n) / mean n, so that a mean's interval is that of the ratio.
    """
    totals = np.array([each.rows.sum(axis=0) for each in group])
    both, turns = totals.sum(axis=1), np.array([len(each.rows) for each in group])
    ratio = both.sum() / turns.sum()
    return np.stack([*totals.T, ratio + (both - ratio * turns) / turns.mean()])


def _by_persona(everyone: Sequence[_Lost]) -> dict[str, dict[str, PersonaLoss]]:
    """The losses by the values of the axes on which the humans differ."""
    groups: dict[str, dict[str, list[_Lost]]] = {}
    for each in everyone:
        for axis, value in each.dialogue.persona.items():
            groups.setdefault(axis, {}).setdefault(str(value), []).append(each)
    return {
        axis: {value: _persona_loss(values[value]) for value in sorted(values)}
        for axis, values in groups.items()
        if len(values) > 1
    }


def _persona_loss(group: Sequence[_Lost]) -> PersonaLoss:
    trainings, humans = zip(
        *((each.dialogue.source["seed"], each.dialogue.source["episode"]) for each in group),
        strict=True,
    )
    parts: list[Any] = []
    for values in _columns(group):
        found = crossed_mean(values, trainings, humans)
        parts += [found.mean, found.bounds]
    return PersonaLoss(len(group), *parts)


def lost(planner: Planner, dialogue: Dialogue) -> Float[np.ndarray, "turns 2"]:
    """Reward lost at each turn of the agent's: by its candidates, and by its choice among them."""
    return _rows(_turns(planner, dialogue))


def _rows(turns: Sequence[_Turn]) -> Float[np.ndarray, "turns 2"]:
    return np.array([(turn.candidates, turn.choice) for turn in turns], float).reshape(-1, 2)


def _turns(planner: Planner, dialogue: Dialogue) -> list[_Turn]:
    planner.forget(more_than=_MOST_NODES)
    course = follow(planner, dialogue.turns)
    decisions = () if course is None else course.decisions
    return [_turn(planner, course, decision, dialogue) for decision in decisions]


def _turn(planner: Planner, course: Course, decision: Decision, dialogue: Dialogue) -> _Turn:
    place = decision.turns_left, decision.state, decision.belief
    considered = dialogue.turns[decision.turn].annotations.get("candidates", ())
    texts = [each["text"] for each in considered]
    acts = {decision.act, *(planner.world.understand_about(course.slots, text) for text in texts)}
    values = {act: planner.act_value(*place, act) for act in sorted(acts, key=str)}
    considered = max(values, key=values.__getitem__)
    return _Turn(
        planner.best_act(*place),
        considered,
        decision.act,
        planner.state_value(*place) - values[considered],
        values[considered] - values[decision.act],
    )
