"""The task of a run: from `task.yaml`, from the corpus, or from the embedded world."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments import config as settings
from experiments.run_folder import RunFolder
from imagination.corpora import CORPORA
from imagination.simulation import load_world
from imagination.task import Task


def load_task(config: ConfigDict, folder: RunFolder) -> Task:
    """Reads the task from `task.yaml` where the run has one, else from its corpus or world."""
    if (task := folder.load_task()) is not None:
        return task
    if config.data.source != "world":
        return corpus_task(config)
    return load_world(config.task.world).task


def corpus_task(config: ConfigDict) -> Task:
    """Returns the task that the dialogues of the corpus are about."""
    return CORPORA[config.data.source].task(settings.read_options(config))


def given_task(config: ConfigDict, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """The task's name, and what the settings say of it; what is missing is derived.

    Without a description it is the task of the embedded world; without a world it is named after
    the experiment.
    """
    given = {name: config.task[name] for name in settings.TASK_FIELDS}
    given["persona_axes"] = given["persona_axes"].to_dict()
    if not config.task.world:
        return folder.experiment or "task", given
    task = load_world(config.task.world).task
    if not given["description"]:
        world = {name: getattr(task, name) for name in settings.TASK_FIELDS}
        given = world | {name: value for name, value in given.items() if value}
        given |= {"reward_range": task.reward_range, "success_reward": task.success_reward}
    return task.name, given
