"""Conversations with a person in the human's place, as far as their words are those of a world.

People say what no human of a world would say there. Nothing is then known to have happened: the
state stays as it was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

from imagination.dialogue import Turn
from imagination.simulation import grammar
from imagination.simulation.dice import Dice
from imagination.simulation.speakers import Memory
from imagination.simulation.world import Act, Reply, World


def follow(world: World, turns: Sequence[Turn]) -> Memory:
    """State, topic and last act of a conversation; the topic named last counts."""
    memory = Memory(0, None, {})
    for number, turn in enumerate(turns, start=1):
        if turn.speaker == "agent":
            act = None if leaves_topic(world, turn.text, memory.slots) else act_of(world, turn.text)
            memory = dataclasses.replace(memory, turns=number, act=act)
        else:
            slots = {**memory.slots, **world.find_slots(turn.text)}
            memory = dataclasses.replace(memory, turns=number, slots=slots)
            memory = _heard(world, memory, turn.text)
    return memory


def act_of(world: World, text: str) -> Act | None:
    """The act of an agent's utterance, on whatever topic; None where it is not understood."""
    return world.understand([text])[0]


def leaves_topic(world: World, text: str, slots: Mapping[str, str]) -> bool:
    """True where a text names another value than one of these slots has, and not that one."""
    return world.names_other_slots(text, {**world.find_slots(text), **slots})


def _heard(world: World, memory: Memory, text: str) -> Memory:
    possible = possible_replies(world, memory)
    reply = reply_among(world, text, possible)
    if memory.state is None:
        state = world.begin(reply or max(possible, key=possible.__getitem__))
    elif reply is None:
        return memory
    else:
        state = world.advance(memory.state, memory.act, reply)
    return dataclasses.replace(memory, state=state)


def possible_replies(world: World, memory: Memory) -> dict[Reply, float]:
    """Replies that humans of the world give here -> how likely, over all personas."""
    found: dict[Reply, float] = {}
    for persona, weight in world.prior.items():
        if memory.state is None:
            replies = world.opening(persona)
        else:
            replies = world.replies_to(persona, memory.state, memory.act)
        for reply, probability in replies.items():
            if weight * probability > 0:
                found[reply] = found.get(reply, 0.0) + weight * probability
    return found


def reply_among(world: World, text: str, possible: Collection[Reply]) -> Reply | None:
    """The one of these replies that a person's words come closest to; None if none is near."""
    if (exact := world.hear(text)) is not None:
        return exact if exact in possible else None
    if plain := world.hear_plainly(text):
        return next((reply for reply in plain if reply in possible), None)
    understanding = world.human_understanding
    scores = dict(zip(understanding.names, understanding.similarities([text])[0], strict=True))
    near = [name for name in possible if scores[name] >= understanding.threshold]
    return max(near, key=scores.__getitem__, default=None)


def heard(world: World, text: str, before: Sequence[Turn] = ()) -> list[str]:
    """Reply that a person's words come closest to, and topics that they name; [] if neither.

    Args:
        world: The world.
        text: The words.
        before: Turns before them. A reply that can be given there comes first, and plain words
            ("yes", "no") mean nothing where none of theirs can.
    """
    reply = reply_among(world, text, possible_replies(world, follow(world, before)))
    if reply is None and not world.hear_plainly(text):
        reply = reply_among(world, text, world.replies)
    replies = [] if reply is None else [reply.replace("_", " ")]
    return [*replies, *world.find_slots(text).values()]


def example_sentences(world: World, memory: Memory, count: int, seed: int) -> list[str]:
    """Sentences that could be said here, of the likeliest replies, one of each.

    Args:
        world: The world.
        memory: The conversation so far.
        count: Most sentences.
        seed: Draws the words, and the topic where none was named.
    """
    possible = possible_replies(world, memory)
    likeliest = sorted(possible, key=possible.__getitem__, reverse=True)[:count]
    slots = {**world.draw_slots(seed), **memory.slots}
    dice = Dice(seed, memory.turns)
    return [world.replies[reply].expand(dice, slots) for reply in likeliest]


@functools.cache
def final_acts(world: World) -> frozenset[Act]:
    """Acts with which the agent ends a conversation: whatever is replied, even at its beginning."""
    opening = opening_replies(world)
    begun = Memory(1, world.begin(max(opening, key=opening.__getitem__)), {})

    def ends(act: Act) -> bool:
        replies = possible_replies(world, dataclasses.replace(begun, act=act))
        return all(world.is_over(world.advance(begun.state, act, reply)) for reply in replies)

    return frozenset(filter(ends, world.acts))


@functools.cache
def opening_slots(world: World) -> Mapping[str, Sequence[str]]:
    """Slots that the human always names when opening -> possible values."""
    forms = [each for reply in opening_replies(world) for each in world.replies[reply].templates]
    named = set.intersection(*(grammar.slots_of(form) for form in forms))
    return {slot: values for slot, values in world.slots.items() if slot in named}


def opening_replies(world: World) -> dict[Reply, float]:
    """Replies with which humans of the world open -> how likely."""
    return possible_replies(world, Memory(0, None, {}))
