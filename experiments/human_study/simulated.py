"""Humans of an embedded world in a study: who is played, and how they would rate what was said."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from imagination.dialogue import Turn
from imagination.simulation import SimulatedHuman, World
from imagination.simulation.world import WorldError
from imagination.speakers import Conversation


def draw_persona(world: World, seed: int, number: int) -> dict[str, str]:
    """Persona of the participant with this number, as often as such people come in the world."""
    prior = world.population("average")
    rng = random.Random(f"{seed}/persona/{number}")
    [persona] = rng.choices(list(prior), list(prior.values()))
    return world.persona_values(persona)


def world_rating(world: World, persona: Mapping[str, str], turns: Sequence[Turn]) -> float | None:
    """Rating that the world's human with this persona would give, from the words alone.

    Args:
        world: The world.
        persona: Trait -> value, of the scenario card.
        turns: The conversation; what comes after the human's farewell is not looked at.

    Returns:
        On the task's scale; None for a persona that the world does not have, or without words of
        the human.
    """
    try:
        world.persona(persona)
    except WorldError:
        return None
    until = _end(world, turns)
    if not until:
        return None
    conversation = Conversation("rated", dict(persona), seed=0, turns=list(turns[:until]))
    [rating] = SimulatedHuman(world).rate([conversation])
    return rating


def _end(world: World, turns: Sequence[Turn]) -> int:
    """Number of turns up to the one with which the world's conversation is over."""
    state, slots, act = None, {}, None
    for place, turn in enumerate(turns):
        if turn.speaker == "agent":
            act = world.understand_about(slots, turn.text)
            continue
        reply = world.hear_loosely(turn.text)
        if state is None:
            slots = world.find_slots(turn.text)
            state = world.begin(reply)
        else:
            state = world.advance(state, act, reply)
        if world.is_over(state):
            return place + 1
    return len(turns) if state is not None else 0
