"""Embedded worlds: tasks with simulated humans, written as data.

    world = load_world("teaching")
    conversations = sample_conversations(world, "average", 1000, seed=0, prefix="train")
    dialogues = converse(BehaviourAgent(world), SimulatedHuman(world), conversations, world.task)

`world.py` is the engine, each task of `WORLDS` a file beside it, `planning.py` computes their
exact values, `docs/own_task.md` shows how to write one. `python -m imagination.simulation`
prints the figures of the worlds.
"""

from imagination.simulation.loading import WORLDS, load_world
from imagination.simulation.planning import (
    Planner,
    normalized_score,
    optimal_value,
    policy_value,
    reference_values,
)
from imagination.simulation.speakers import (
    BehaviourAgent,
    OptimalAgent,
    SimulatedHuman,
    UniformAgent,
    about_personas,
    as_data,
    imagine_conversations,
    sample_conversations,
)
from imagination.simulation.world import POPULATIONS, Behaviour, World, WorldError

__all__ = [
    "POPULATIONS",
    "WORLDS",
    "Behaviour",
    "BehaviourAgent",
    "OptimalAgent",
    "Planner",
    "SimulatedHuman",
    "UniformAgent",
    "World",
    "WorldError",
    "about_personas",
    "as_data",
    "imagine_conversations",
    "load_world",
    "normalized_score",
    "optimal_value",
    "policy_value",
    "reference_values",
    "sample_conversations",
]
