"""What `evaluation.json` holds: scores, intervals, tests, references, calls and cost.

Whatever does not apply is None: a prompted agent has no training, a human who is played by an LLM
no optimum. Conversations without a rating are counted, and left out of means and tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluation import prompted
from experiments.evaluation.environment import load_scene
from experiments.evaluation.statistics import bootstrap_mean, pairwise_tests
from experiments.networks import train_seconds
from experiments.run_folder import RunFolder, Unit
from imagination.dialogue import Dialogue, read_dialogues
from imagination.simulation import POPULATIONS, normalized_score

Played = Mapping[Unit, Sequence[Dialogue]]
Results = Mapping[Unit, Mapping[str, Any]]


def summarize(config: ConfigDict, folder: RunFolder, wanted: Sequence[Unit]) -> dict[str, Any]:
    """The evaluation of these units.

    Raises:
        RunError: They cannot be compared.
    """
    task = load_scene(config, folder).task
    found = {unit: json.loads(folder.unit_result(unit).read_text()) for unit in wanted}
    human = prompted.describe_human(config, found)
    played = {unit: read_dialogues(folder.unit_conversations(unit)) for unit in wanted}
    summary = {"task": task.name, "success_reward": task.success_reward, "human": human}
    summary["population"] = {}
    for population in POPULATIONS:
        references = None
        if config.evaluation.human == "world":
            references = json.loads(folder.references.read_text())[population]
        there = {
            unit: [d for d in dialogues if d.source["population"] == population]
            for unit, dialogues in played.items()
        }
        summary["population"][population] = _summarize_population(
            config, folder, task.success_reward, references, there, found
        )
    return summary


def _summarize_population(
    config: ConfigDict,
    folder: RunFolder,
    success_reward: float,
    references: Mapping[str, float] | None,
    played: Played,
    found: Results,
) -> dict[str, Any]:
    methods, scores = {}, {}
    for method in dict.fromkeys(unit.method for unit in played):
        own = {unit: dialogues for unit, dialogues in played.items() if unit.method == method}
        dialogues = [d for group in own.values() for d in group]
        scores[method] = rewards = _rewards(own)
        methods[method] = {
            **_scores(rewards, references, config.seed),
            **_habits(dialogues, success_reward, config),
        }
        if method in config.evaluation.prompted:
            methods[method] |= _of_prompted_agent(config, found[Unit(method, 0)], dialogues)
        else:
            methods[method] |= _of_trained(folder, found, own)
        if config.evaluation.human == "prompted":
            methods[method] |= prompted.of_prompted_human(config, dialogues)
    tests = pairwise_tests(scores, seed=config.seed)
    return {
        "references": dict(references or {}),
        "methods": methods,
        "tests": tests,
        "difference_scale": "reward",
    }


def _rewards(played: Played) -> np.ndarray:
    """[seeds, episodes], nan where nobody rated."""
    return np.array(
        [[np.nan if d.reward is None else d.reward for d in group] for group in played.values()]
    )


def _scores(
    rewards: np.ndarray, references: Mapping[str, float] | None, seed: int
) -> dict[str, Any]:
    """Means over the episodes that were rated with every seed."""
    rated = rewards[:, ~np.isnan(rewards).any(axis=0)]
    counts = {
        "episodes": rewards.shape[1],
        "unrated": int(np.isnan(rewards).sum()),
        "seeds": rewards.shape[0],
    }
    if not rated.size:
        empty = ("mean_reward", "ci95", "normalized", "normalized_ci95")
        return {**dict.fromkeys(empty), **counts, "per_seed": []}
    interval = bootstrap_mean(rated, seed=seed)

    def normalized(value: float) -> float | None:
        if references is None:
            return None
        return float(normalized_score(value, references))

    bounds = (interval.low, interval.high)
    return {
        "mean_reward": float(interval.mean),
        "ci95": [float(bound) for bound in bounds],
        "normalized": normalized(interval.mean),
        "normalized_ci95": [normalized(bound) for bound in bounds] if references else None,
        **counts,
        "per_seed": [float(mean) for mean in rated.mean(axis=1)],
    }


def _habits(
    dialogues: Sequence[Dialogue], success_reward: float, config: ConfigDict
) -> dict[str, float | None]:
    successes = [d.reward >= success_reward for d in dialogues if d.reward is not None]
    lost = [_not_understood(d) for d in dialogues]
    return {
        "success_rate": float(np.mean(successes)) if successes else None,
        "turns": float(np.mean([len(d.agent_turns) for d in dialogues])),
        # Only the world tells what it understood.
        "not_understood": float(np.mean(lost)) if config.evaluation.human == "world" else None,
    }


def _not_understood(dialogue: Dialogue) -> int:
    return sum(
        "understood_as" in turn.annotations and turn.annotations["understood_as"] is None
        for turn in dialogue.turns[1:]
        if turn.speaker == "human"
    )


def _of_trained(folder: RunFolder, found: Results, units: Played) -> dict[str, Any]:
    # The setting chosen, or all of them where the seeds differ.
    chosen = dict.fromkeys(found[unit]["decoding"] for unit in units)
    return {
        "train_seconds": float(np.mean([train_seconds(folder, unit) for unit in units])),
        "decoding": " / ".join(chosen),
    }


def _of_prompted_agent(
    config: ConfigDict, result: Mapping[str, Any], dialogues: Sequence[Dialogue]
) -> dict[str, Any]:
    without_training = dict.fromkeys(("seeds", "train_seconds", "decoding"))
    asked = prompted.of_prompted_agent(config, result, dialogues)
    return {**without_training, "per_seed": [], **asked}
