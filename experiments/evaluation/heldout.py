"""Judging on real dialogues that were set apart, where there is no simulated human to talk to.

Two questions: how likely are the words of real agents under the policy (perplexity), and do the
values foretell how it really ended, at several points of a dialogue (AUROC of success,
calibration)?
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments.evaluation.statistics import bootstrap_auroc, calibration_bins
from experiments.files import write_atomically
from experiments.methods import parse_method
from experiments.networks import trained_network, units
from experiments.run_folder import RunFolder, Unit
from experiments.tasks import load_task
from ilql_jax import sharding
from ilql_jax.batching import packing_for
from ilql_jax.checkpoint import read_metadata
from ilql_jax.scoring import Scores, score
from imagination.dialogue import Dialogue, read_dialogues
from imagination.task import Task
from imagination.tokenization import DialogueTokenizer

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of the agent's utterances in a dialogue


def run(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Writes `heldout.json`, unless it is there for just these trainings."""
    if folder.heldout.exists():
        judged = json.loads(folder.heldout.read_text())["methods"]
        if {m: each["seeds"] for m, each in judged.items()} == dict.fromkeys(
            config.methods, config.seeds
        ):
            return
    dialogues = read_dialogues(folder.dialogues)
    parts = {
        part: [d for d in dialogues if d.source.get("part") == part] for part in ("train", "test")
    }
    console.print(f"Judging on {len(parts['test'])} dialogues that were set apart.")
    task = load_task(config, folder)
    scores = {u: _score(config, folder, u, parts["test"]) for u in units(config)}
    result = {
        "task": dialogues[0].task,
        "sizes": {part: len(group) for part, group in parts.items()},
        "success": _success(task, parts["test"]),
        "methods": {m: _policy_quality(scores, m) for m in config.methods},
        "value_prediction": {
            m: _value_prediction(scores, m, parts["test"], task.success_reward, config.seed)
            for m in config.methods
            if parse_method(m).learns_values
        },
    }
    write_atomically(folder.heldout, json.dumps(_without_nan(result), indent=1))


def _score(
    config: ConfigDict, folder: RunFolder, unit: Unit, dialogues: list[Dialogue]
) -> list[Scores]:
    """Scores with values in the task's units."""
    tokenizer = DialogueTokenizer.load(folder.tokenizer)
    shape, params = trained_network(config, folder, unit)
    scale = read_metadata(folder.checkpoints(unit))["reward_scale"]
    trajectories = tokenizer.trajectories(dialogues, scale)
    packing = packing_for(trajectories, config.train.batch_rows, config.model.max_positions)
    mesh = sharding.mesh_to_use(settings.mesh_config(config))  # as the parameters lie
    return [
        Scores(s.log_prob, s.v / scale, s.q / scale)
        for s in score(trajectories, shape, params, packing, mesh)
    ]


def _policy_quality(scores: dict[Unit, list[Scores]], method: str) -> dict[str, Any]:
    """Perplexity per agent token, of each seed and their mean."""
    per_seed = [
        float(np.exp(-np.concatenate([s.log_prob for s in group]).mean()))
        for unit, group in scores.items()
        if unit.method == method
    ]
    return {
        "perplexity": float(np.mean(per_seed)),
        "per_seed": per_seed,
        "seeds": len(per_seed),
    }


def _success(task: Task, dialogues: list[Dialogue]) -> dict[str, Any]:
    """What counts as success, and how often there is one."""
    share = np.mean([d.total_reward >= task.success_reward for d in dialogues])
    return {"words": task.success, "reward": task.success_reward, "share": float(share)}


def _value_prediction(
    scores: dict[Unit, list[Scores]],
    method: str,
    dialogues: list[Dialogue],
    success_reward: float,
    seed: int,
) -> list[dict[str, Any]]:
    """How V and Q at each point of a dialogue foretell its reward; values are means over seeds."""
    of_method = [group for unit, group in scores.items() if unit.method == method]
    rewards = np.array([d.total_reward for d in dialogues])
    succeeded = rewards >= success_reward
    rows = []
    for point in POINTS:
        v = np.mean([[_at(s.v, point) for s in group] for group in of_method], axis=0)
        q = np.mean([[_at(s.q, point) for s in group] for group in of_method], axis=0)
        auroc_v = bootstrap_auroc(succeeded, v, seed=seed)
        auroc_q = bootstrap_auroc(succeeded, q, seed=seed)
        rows.append(
            {
                "point": point,
                "auroc_v": auroc_v.mean,
                "auroc_v_ci95": [auroc_v.low, auroc_v.high],
                "auroc_q": auroc_q.mean,
                "auroc_q_ci95": [auroc_q.low, auroc_q.high],
                "calibration": calibration_bins(q, rewards, 5),
            }
        )
    return rows


def _at(values: np.ndarray, fraction: float) -> float:
    return float(values[round(fraction * (len(values) - 1))])


def _without_nan(value: Any) -> Any:
    """What cannot be computed (AUROC where all succeed, or none) is null in JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
