"""The task of a run: from `task.yaml`, from the corpus, or from the embedded world."""

from __future__ import annotations

from typing import Any

from experiments.build import Experiment
from experiments.config import TASK_FIELDS, DataConfig, TaskConfig
from experiments.run_folder import RunError, RunFolder
from experiments.stamps import stamp_file
from imagination.corpora import CORPORA, ReadOptions
from imagination.simulation import load_world
from imagination.simulation.world import World
from imagination.task import Task


def load_task(experiment: Experiment, folder: RunFolder) -> Task:
    """Reads the task from `task.yaml` where the run has one, else from its corpus or world.

    Raises:
        RunError: It has none, though its task stands nowhere else.
    """
    if (task := folder.load_task()) is not None:
        return task
    if experiment.data.source in CORPORA:
        return corpus_task(experiment.data)
    if experiment.data.source == "world" and experiment.task.world:
        return load_world(experiment.task.world).task
    raise RunError(
        f"{folder.task} is gone, which says what the task of this run is. Put it back "
        f"({stamp_file(folder, 'imagine')} tells what it said)."
    )


def world_of(experiment: Experiment) -> World | None:
    """The embedded world that the dialogues come from; None where they come from elsewhere."""
    if experiment.data.source != "world" or experiment.imagines_with_llm:
        return None
    return load_world(experiment.task.world)


def read_options(data: DataConfig) -> ReadOptions:
    """Options of the readers of corpora."""
    return ReadOptions(data.max_reward, data.missing_outcome)


def corpus_task(data: DataConfig) -> Task:
    """Returns the task that the dialogues of the corpus are about."""
    return CORPORA[data.source].task(read_options(data))


def given_task(task: TaskConfig, experiment_name: str) -> tuple[str, dict[str, Any]]:
    """The task's name, and what the settings say of it; what is missing is derived.

    Without a description it is the task of the embedded world; without a world it is named after
    the experiment.
    """
    given = task.given()
    if not task.world:
        return experiment_name or "task", given
    world_task = load_world(task.world).task
    if "description" not in given:
        of_world = {name: getattr(world_task, name) for name in TASK_FIELDS}
        if "reward_range" in given:  # the world's bar for success lies on its own scale
            del of_world["success_reward"]
        given = of_world | given
    return world_task.name, given
