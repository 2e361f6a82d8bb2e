"""`Scene`: what the evaluation is about, and who comes to talk.

The humans are those of the embedded world; or, where an LLM plays them in a run whose task an LLM
imagined, those of that task (`task.yaml`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from experiments.run_folder import RunFolder
from imagination.dialogue import read_dialogues
from imagination.engine.personas import draw_evenly, draw_personas, persona_key
from imagination.simulation import World, load_world, sample_conversations
from imagination.speakers import Conversation
from imagination.task import Task


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where agents are judged.

    Attributes:
        task: What the conversations are about, and the scale they are rated on.
        world: The embedded world that the humans come from; None where they come from the task.
        humans: (population, count, seed) -> conversations that have yet to begin. Conversation i
            has the same human whoever the agent is.
    """

    task: Task
    world: World | None
    humans: Callable[[str, int, int], list[Conversation]]


def load_scene(config: ConfigDict, folder: RunFolder) -> Scene:
    """The scene of a run. Raises `TaskError` for a task.yaml that cannot be used."""
    task = folder.load_task() if config.evaluation.human == "prompted" else None
    if task is not None:
        return Scene(task, None, lambda *asked: _of_task(task, folder, *asked))
    world = load_world(config.task.world)

    def humans(population: str, count: int, seed: int) -> list[Conversation]:
        return sample_conversations(world, population, count, seed, prefix=population)

    return Scene(world.task, world, humans)


def _of_task(
    task: Task, folder: RunFolder, population: str, count: int, seed: int
) -> list[Conversation]:
    """All personas evenly; of the difficult population, those that were imagined as difficult."""
    if population == "difficult":
        personas = draw_evenly(_difficult(folder), count, f"{seed}/difficult")
    else:
        personas = draw_personas(task.persona_axes, count, seed)
    return [
        Conversation(
            id=f"{population}-{index}",
            persona=persona,
            seed=zlib.crc32(f"{seed}/{population}/{index}".encode()),
        )
        for index, persona in enumerate(personas)
    ]


def _difficult(folder: RunFolder) -> Sequence[Mapping[str, str]]:
    """Each difficult persona of the data once; all of them where none was called difficult."""
    dialogues = read_dialogues(folder.dialogues)
    chosen = [d for d in dialogues if d.source.get("difficult")] or dialogues
    return list({persona_key(d.persona): d.persona for d in chosen}.values())
