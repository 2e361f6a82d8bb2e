"""`Environment`: the task that agents are judged on, and the humans who come to talk.

The humans are those of the embedded world; or, where an LLM plays them in a run whose task an LLM
imagined, those of that task (`task.yaml`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.build import Experiment
from experiments.run_folder import RunFolder
from experiments.tasks import load_task
from imagination.agents.human import Background
from imagination.dialogue import Dialogue, read_dialogues
from imagination.engine.personas import balance, draw_evenly, draw_personas, prior_probability
from imagination.engine.run import DETAILS, PROFILE, REVEALS, SITUATION
from imagination.persona_sampling import PRIOR_PROBABILITY, PersonaSampling, persona_key
from imagination.simulation import World, load_world, sample_conversations
from imagination.speakers import Conversation
from imagination.task import Task

# Seeds of humans, to which a run's seed is added: far from each other and from those of the data.
VALIDATION_SEED, TEST_SEED, CURVE_SEED = 10_000_019, 20_000_003, 30_000_001
ROUND_SEED, SEED_STEP = 31_000_001, 1_000_000  # of the first round of imagination, and to the next


@dataclasses.dataclass(frozen=True)
class Environment:
    """Task and humans of an evaluation.

    Attributes:
        task: Topic of the conversations, and the scale they are rated on.
        world: The embedded world that the humans come from; None where they come from the task.
        humans: (population, count, seed) -> conversations without turns. Conversation i
            has the same human whoever the agent is.
    """

    task: Task
    world: World | None
    humans: Callable[[str, int, int], list[Conversation]]


def load_environment(experiment: Experiment, folder: RunFolder) -> Environment:
    """Loads the environment of a run.

    Raises:
        TaskError: A task.yaml that cannot be used.
        RunError: It is gone, and there is no world.
    """
    is_played = experiment.evaluation.config.human == "prompted"
    if is_played and (folder.task.exists() or not experiment.task.world):
        task = load_task(experiment, folder)
        return Environment(task, None, lambda *arguments: _humans_of_task(task, folder, *arguments))
    world = load_world(experiment.task.world)

    def humans(population: str, count: int, seed: int) -> list[Conversation]:
        return sample_conversations(world, population, count, seed, prefix=population)

    return Environment(world.task, world, humans)


def _humans_of_task(
    task: Task, folder: RunFolder, population: str, count: int, seed: int
) -> list[Conversation]:
    """Draws all personas evenly; for the difficult population, those imagined as difficult.

    Each has the background that the data has of such a person, the next one each time.
    """
    if population == "difficult":
        personas = draw_evenly(_difficult_personas(folder), count, f"{seed}/difficult")
    else:
        personas = draw_personas(task.persona_axes, count, seed)
    return _conversations_with(personas, folder, population, seed)


def humans_like_imagined(
    task: Task, folder: RunFolder, sampling: PersonaSampling, count: int, seed: int
) -> list[Conversation]:
    """Draws humans like those whom an LLM imagined for the data.

    Where these are balanced, they are people of the data, of whom it is known who is difficult.

    Args:
        task: The imagined task.
        folder: Folder of the run.
        sampling: Distribution of the personas in the data.
        count: Number of humans.
        seed: Another seed gives other humans.

    Returns:
        Conversations that have yet to begin.
    """
    if sampling.personas == "balanced":
        people = {persona_key(d.persona): d for d in _imagined(folder)}
        drawn = draw_evenly([d.persona for d in people.values()], count, f"{seed}/imagined")
        is_difficult = {key: bool(d.source.get("difficult")) for key, d in people.items()}
        personas = balance(drawn, is_difficult, sampling.difficult_share)
    else:
        personas = draw_personas(task.persona_axes, count, seed)
    return _conversations_with(personas, folder, "average", seed)


def about_imagined(
    task: Task, folder: RunFolder
) -> Callable[[Mapping[str, str]], Mapping[str, Any]]:
    """Notes on personas as the data has them: `difficult`, and the prior probability."""
    difficult = {persona_key(d.persona) for d in _imagined(folder) if d.source.get("difficult")}
    probability = prior_probability(task.persona_axes)

    def about(persona: Mapping[str, str]) -> dict[str, Any]:
        return {
            "difficult": persona_key(persona) in difficult,
            PRIOR_PROBABILITY: probability,
        }

    return about


def _conversations_with(
    personas: Sequence[Mapping[str, str]], folder: RunFolder, population: str, seed: int
) -> list[Conversation]:
    backgrounds = _backgrounds(folder)
    met: Counter[Any] = Counter()
    conversations = []
    for index, persona in enumerate(personas):
        key = persona_key(persona)
        known = backgrounds.get(key)
        conversations.append(
            Conversation(
                id=f"{population}-{index}",
                persona=persona,
                seed=zlib.crc32(f"{seed}/{population}/{index}".encode()),
                human_memory=known[met[key] % len(known)] if known else None,
            )
        )
        met[key] += 1
    return conversations


def _imagined(folder: RunFolder) -> list[Dialogue]:
    """Reads the dialogues, and those that are not learned from: the people in them are as good."""
    rejected = folder.rejected_dialogues
    apart = read_dialogues(rejected) if rejected.exists() else []
    return [*read_dialogues(folder.dialogues), *apart]


def _backgrounds(folder: RunFolder) -> dict[Any, list[Background]]:
    """Persona -> what the humans of the data with its traits were told, each once."""
    found: dict[Any, dict[Background, None]] = defaultdict(dict)
    for dialogue in _imagined(folder):
        told = [dialogue.source.get(field) for field in (PROFILE, REVEALS, SITUATION)]
        if all(isinstance(text, str) for text in told):
            details = dialogue.source.get(DETAILS)
            pairs = details.items() if isinstance(details, Mapping) else ()  # none in older ones
            background = Background(*told, tuple((what, str(how)) for what, how in pairs))
            found[persona_key(dialogue.persona)][background] = None
    return {key: list(backgrounds) for key, backgrounds in found.items()}


def _difficult_personas(folder: RunFolder) -> Sequence[Mapping[str, str]]:
    """Lists the difficult personas of the data; all personas where none is marked difficult."""
    dialogues = _imagined(folder)
    difficult = [d for d in dialogues if d.source.get("difficult")] or dialogues
    return list({persona_key(d.persona): d.persona for d in difficult}.values())
