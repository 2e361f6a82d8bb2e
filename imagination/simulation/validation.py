"""Checks of a world when it is loaded, so that a slip in its data is named and not simulated.

Everything that can be listed is checked whole; replies, ratings and behaviours are checked in
the states of a few hundred random conversations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from imagination.simulation import grammar
from imagination.simulation.dice import Dice
from imagination.simulation.world import State, World, WorldError

_WALKS = 300
_TOLERANCE = 1e-6


def validate(world: World) -> None:
    """Checks a world.

    Raises:
        WorldError: The first thing found wrong: where, what, and what would be right.
    """
    place = f"world {world.name!r}"
    _check_task(world, place)
    _check_prior(world, place)
    _check_phrasings(world, place)
    _require_distribution(
        {name: behaviour.share for name, behaviour in world.behaviours.items()},
        world.behaviours,
        f"{place}: shares of the behaviours",
    )
    for persona in world.population("average"):
        where = f"{place}: opening of persona {_shown(persona)}"
        _require_distribution(world.opening(persona), world.replies, where)
    _walk(world, place)


def _check_task(world: World, place: str) -> None:
    low, high = world.task.reward_range
    _require(low < high, f"{place}: task.reward_range {world.task.reward_range}: low < high")
    _require(world.task.max_turns >= 1, f"{place}: task.max_turns must be at least 1")
    _require(bool(world.acts), f"{place}: it has no acts; the agent needs at least one")


def _check_prior(world: World, place: str) -> None:
    axes = world.task.persona_axes
    for persona in world.prior:
        _require(
            len(persona) == len(axes),
            f"{place}: persona {_shown(persona)} of the prior has {len(persona)} values; "
            f"give one for each axis ({', '.join(axes)})",
        )
        for value, (axis, values) in zip(persona, axes.items(), strict=True):
            _require(
                value in values,
                f"{place}: persona {_shown(persona)} of the prior: {value!r} is not a value of "
                f"axis {axis!r}; its values are {', '.join(values)}",
            )
    _require_distribution(world.prior, world.prior, f"{place}: the prior over personas")
    world.population("difficult")


def _check_phrasings(world: World, place: str) -> None:
    for kind, phrasings in (("act", world.acts), ("reply", world.replies)):
        for name, phrasing in phrasings.items():
            where = f"{place}: {kind} {name!r}"
            _require(bool(phrasing.templates), f"{where} has no templates; give at least one")
            for template in (*phrasing.templates, *phrasing.also):
                try:
                    grammar.parse(template)
                except grammar.GrammarError as error:
                    raise WorldError(f"{where}: {error}") from None
                unknown = grammar.slots_of(template) - set(world.slots)
                _require(
                    not unknown,
                    f"{where}: template {template!r} has the slot {', '.join(sorted(unknown))}; "
                    f"the world's slots are {', '.join(world.slots) or 'none'}",
                )
    world.check_replies_differ()


def _walk(world: World, place: str) -> None:
    personas = list(world.population("average"))
    acts = (*world.acts, None)
    for walk in range(_WALKS):
        dice = Dice(walk)
        persona = personas[walk % len(personas)]
        state = world.begin(dice.choose(world.opening(persona)))
        for _ in range(world.task.max_turns):
            _check_state(world, persona, state, place)
            if world.is_over(state):
                break
            act = acts[dice.below(len(acts))]
            where = f"{place}: reply of persona {_shown(persona)} in state {state} to act {act!r}"
            replies = world.reply(persona, state, act)
            _require_distribution(replies, world.replies, where)
            reply = dice.choose(replies)
            following = world.advance(state, act, reply)
            _check_situation(world, (persona, state, act, reply), following, place)
            state = following
        _check_state(world, persona, state, place)


def _check_state(world: World, persona: tuple, state: State, place: str) -> None:
    low, high = world.task.reward_range
    rating = world.rating(persona, state)
    where = f"{place}: rating of persona {_shown(persona)} in state {state}"
    _require(
        math.isfinite(rating) and low <= rating <= high,
        f"{where} is {rating}; task.reward_range is {low} to {high}",
    )
    if world.ceiling is not None:
        _require(
            world.ceiling(persona, state) >= rating - _TOLERANCE,
            f"{where} is {rating}, above its ceiling {world.ceiling(persona, state)}",
        )
    if world.is_over(state):
        return
    for name in world.behaviours:
        where = f"{place}: behaviour {name!r} in state {state}"
        _require_distribution(world.choice_of(name, state), world.acts, where)


def _check_situation(world: World, step: tuple, following: State, place: str) -> None:
    persona, state, act, reply = step
    situation = world.situation(state)
    where = f"{place}: situation of state {state}"
    _require(
        world.reply(persona, situation, act) == world.reply(persona, state, act)
        and world.reply(persona, world.mood_for(state, act), act)
        == world.reply(persona, state, act),
        f"{where}, or its mood, blanks out something that replies to act {act!r} depend on",
    )
    _require(
        world.situation(world.advance(situation, act, reply)) == world.situation(following),
        f"{where} blanks out something that the state after act {act!r} depends on",
    )
    _require(
        world.rating(persona, situation) == world.rating(persona, state),
        f"{where} blanks out something that the rating depends on",
    )


def _require_distribution(
    probabilities: Mapping[object, float], known: Collection[object], where: str
) -> None:
    for name, probability in probabilities.items():
        _require(
            name in known,
            f"{where}: unknown {name!r}; known are {', '.join(map(str, known))}",
        )
        _require(
            math.isfinite(probability) and probability >= 0.0,
            f"{where}: probability of {name!r} is {probability}; it must be 0 or more",
        )
    total = sum(probabilities.values())
    _require(
        abs(total - 1.0) <= _TOLERANCE,
        f"{where}: probabilities must sum to 1, these sum to {total:.6g}: {dict(probabilities)}",
    )


def _shown(persona: tuple) -> str:
    return f"({', '.join(map(str, persona))})"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorldError(message)
