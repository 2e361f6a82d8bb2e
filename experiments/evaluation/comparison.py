"""From conversations on disk to an `Evaluation`: means, intervals, tests, calls and cost.

Conversations without a rating are counted, and left out of means and tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments.evaluation import prompted
from experiments.evaluation.statistics import bootstrap_mean, pairwise_tests
from experiments.evaluation.summary import (
    Comparison,
    Evaluation,
    Population,
    References,
    Scores,
    Training,
    UnitResult,
)
from experiments.files import read_json_object
from experiments.looks import Look, look_of
from experiments.networks import train_seconds
from experiments.run_folder import RunFolder, Unit
from ilql_jax.methods import METHODS, Method
from imagination.checks import is_finite
from imagination.dialogue import Dialogue, read_dialogues
from imagination.simulation import POPULATIONS
from imagination.speakers import failure_of
from imagination.task import Task

Conversations = Mapping[Unit, Sequence[Dialogue]]


def compare_units(
    folder: RunFolder,
    units: Sequence[Unit],
    task: Task,
    *,
    seed: int,
    has_prices: bool,
    methods: Mapping[str, Method] = METHODS,
) -> Evaluation:
    """Compares trained networks and prompted agents by their conversations.

    Args:
        folder: Holds the conversations and the result of each unit.
        units: Units that are compared; all of them have talked.
        task: Task of the conversations.
        seed: Seed of intervals and tests.
        has_prices: True where the calls' costs are known.
        methods: Method by name, which say how they look in tables and figures.

    Raises:
        RunError: The units talked with humans of different models or prompts.
    """
    results = {unit: UnitResult.read(folder.unit_result(unit)) for unit in units}
    human = prompted.common_human(results)
    conversations = {unit: read_dialogues(folder.unit_conversations(unit)) for unit in units}
    references: Mapping[str, References] = {}
    if human is None:
        references = read_references(folder)
    looks = {unit.method: look_of(unit.method, methods) for unit in units}
    population = {}
    for name in POPULATIONS:
        own = {
            unit: [d for d in dialogues if d.source["population"] == name]
            for unit, dialogues in conversations.items()
        }
        exact = references[name] if references else None
        population[name] = _compare(folder, own, results, looks, task, exact, seed, has_prices)
    return Evaluation(task.name, task.success_reward, human, population)


def read_references(folder: RunFolder) -> dict[str, References]:
    """The exact values of each population of the world.

    Raises:
        ValueError, KeyError, TypeError: The file is damaged.
    """
    found = read_json_object(folder.references)
    for each in (value for name in POPULATIONS for value in found[name].values()):
        if not is_finite(each):
            raise ValueError(f"it holds {str(each)[:40]!r}, no number")
    return {name: References(**found[name]) for name in POPULATIONS}


def _compare(
    folder: RunFolder,
    conversations: Conversations,
    results: Mapping[Unit, UnitResult],
    looks: Mapping[str, Look],
    task: Task,
    references: References | None,
    seed: int,
    has_prices: bool,
) -> Population:
    """All units with the same humans."""
    methods, rewards = {}, {}
    for method in dict.fromkeys(unit.method for unit in conversations):
        own = {unit: group for unit, group in conversations.items() if unit.method == method}
        rewards[method] = _rewards(own)
        methods[method] = _scores(
            folder, own, results, looks[method], rewards[method], task, references, seed, has_prices
        )
    tests = tuple(Comparison(**record) for record in pairwise_tests(rewards, seed=seed))
    return Population(references, methods, tests)


def _rewards(conversations: Conversations) -> Float[np.ndarray, "seeds episodes"]:
    """Rewards, nan where nobody rated."""
    return np.array(
        [
            [np.nan if d.reward is None else d.reward for d in group]
            for group in conversations.values()
        ]
    )


def _scores(
    folder: RunFolder,
    conversations: Conversations,
    results: Mapping[Unit, UnitResult],
    look: Look,
    rewards: Float[np.ndarray, "seeds episodes"],
    task: Task,
    references: References | None,
    seed: int,
    has_prices: bool,
) -> Scores:
    """One method; means are over the episodes that were rated with every seed."""
    dialogues = [d for group in conversations.values() for d in group]
    rated = rewards[:, ~np.isnan(rewards).any(axis=0)]
    mean = bounds = None
    if rated.size:
        mean, *ends = map(float, bootstrap_mean(rated, seed=seed))
        bounds = (ends[0], ends[1])
    first = results[next(iter(conversations))]
    trainings: tuple[Training, ...] = ()
    if first.agent is None:
        means = [float(row.mean()) if row.size else None for row in rated]
        trainings = tuple(
            Training(
                unit.seed,
                own_mean,
                _normalized(own_mean, references),
                results[unit].decoding,
                train_seconds(folder, unit),
            )
            for unit, own_mean in zip(conversations, means, strict=True)
        )
    low, high = bounds or (None, None)
    normalized_bounds = (_normalized(low, references), _normalized(high, references))
    successes = [d.reward >= task.success_reward for d in dialogues if d.reward is not None]
    return Scores(
        look=look,
        episodes=rewards.shape[1],
        unrated=int(np.isnan(rewards).sum()),
        broken_off=sum(bool(failure_of(d.turns)) for d in dialogues),
        mean_reward=mean,
        ci95=bounds,
        normalized=_normalized(mean, references),
        normalized_ci95=None if None in normalized_bounds else normalized_bounds,
        success_rate=float(np.mean(successes)) if successes else None,
        turns=float(np.mean([len(d.agent_turns) for d in dialogues])),
        # Only the world tells what it understood.
        not_understood=None if first.human else float(np.mean([*map(_not_understood, dialogues)])),
        trainings=trainings,
        prompted_agent=prompted.agent_scores(first, dialogues, has_prices) if first.agent else None,
        played_human=prompted.human_scores(dialogues, has_prices) if first.human else None,
    )


def _normalized(reward: float | None, references: References | None) -> float | None:
    return None if reward is None or references is None else references.normalized(reward)


def _not_understood(dialogue: Dialogue) -> int:
    """Number of utterances that the human could not follow."""
    return sum(
        "understood_as" in turn.annotations and turn.annotations["understood_as"] is None
        for turn in dialogue.turns[1:]
        if turn.speaker == "human"
    )
