"""Checks of a world when it is loaded, so that a slip in its data is named and not simulated.

Everything that can be listed is checked whole; replies, ratings and behaviours are checked in
the states of a few hundred random conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ilql_jax.errors import shown
from imagination.checks import is_finite, without_surrogates
from imagination.simulation import grammar
from imagination.simulation.dice import Dice
from imagination.simulation.grammar import Phrasing
from imagination.simulation.world import Behaviour, State, World, WorldError
from imagination.task import Task

MOST_SOLVED_TURNS = 200  # the optimum is worked out turn by turn
MOST_FORMS = 200_000  # of a reply: who hears one of them has to tell it from all others
_LOOKED_AT = 250  # forms of a template of an act
_WALKS = 300
_TOLERANCE = 1e-6


def validate(world: World) -> None:
    """Checks a world.

    Raises:
        WorldError: The first thing found wrong: where, what, and what would be right.
    """
    _require(
        isinstance(world.task, Task), f"world: task is {shown(world.task)!r}, but must be a Task"
    )
    place = f"world {world.name!r}"
    _check_types(world, place)
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
        _require_distribution(_called(where, world.opening, persona), world.replies, where)
    _walk(world, place)


def _check_types(world: World, place: str) -> None:
    """Checks what kind of thing each field is; a plain string is no list of texts."""
    for name in ("prior", "acts", "replies", "slots", "behaviours"):
        value = getattr(world, name)
        where = f"{place}: {name}"
        _require(isinstance(value, Mapping), f"{where} is {shown(value)!r}, but must be a dict")
        _require(bool(value) or name == "slots", f"{where} is empty; give at least one")
        for key in value:
            kind = tuple if name == "prior" else str
            _require(
                isinstance(key, kind),
                f"{where}: the key {shown(key)!r} must be {'a tuple' if kind is tuple else 'text'}",
            )
    for name in ("is_difficult", "opening", "begin", "reply", "advance", "is_over", "rating"):
        _require_function(getattr(world, name), f"{place}: {name}")
    for name in ("situation", "mood", "ceiling"):
        if getattr(world, name) is not None or name == "situation":
            _require_function(getattr(world, name), f"{place}: {name}")
    for name, behaviour in world.behaviours.items():
        where = f"{place}: behaviour {name!r}"
        _require(isinstance(behaviour, Behaviour), f"{where} is no Behaviour(share, choose)")
        _require_function(behaviour.choose, f"{where}: choose")
    for slot, values in world.slots.items():
        _require_texts(values, f"{place}: slot {slot!r}", "values")
    for kind, phrasings in (("act", world.acts), ("reply", world.replies)):
        for name, phrasing in phrasings.items():
            where = f"{place}: {kind} {name!r}"
            is_phrasing = isinstance(phrasing, Phrasing)
            _require(is_phrasing, f"{where} is {shown(phrasing)!r}, but must be a Phrasing([...])")
            _require_texts(phrasing.templates, where, "templates")
            if len(phrasing.also):
                _require_texts(phrasing.also, f"{where}, also", "templates")


def _require_function(value: Any, where: str) -> None:
    _require(callable(value), f"{where} is {shown(value)!r}, but must be a function")


def _require_texts(values: Any, where: str, what: str) -> None:
    _require(
        isinstance(values, list | tuple),
        f"{where} has the {what} {shown(values)!r}, but they must be a list of texts",
    )
    _require(bool(values), f"{where} has no {what}; give at least one")
    for value in values:
        is_text = isinstance(value, str) and bool(value.strip())
        _require(is_text, f"{where} has {shown(value)!r} among its {what}, which is no text")
        _require(
            value == without_surrogates(value),
            f"{where} has {value!r} among its {what}, which no file can hold: half of a sign",
        )


def _called(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of the world; an exception of it is told with the place."""
    try:
        return function(*arguments)
    except WorldError:
        raise
    except Exception as error:
        raise WorldError(f"{where}: it raised {shown(error, 300, repr)}") from error


def _check_hash(state: Any, where: str) -> None:
    try:
        hash(state)
    except TypeError as error:
        raise WorldError(
            f"{where} is {shown(state)!r}, which cannot be hashed ({error}). States are keys: use "
            "named tuples or frozen dataclasses, with tuples for lists."
        ) from None


def _check_task(world: World, place: str) -> None:
    low, high = world.task.reward_range
    _require(low < high, f"{place}: task.reward_range {world.task.reward_range}: low < high")
    turns = world.task.max_turns
    _require(
        1 <= turns <= MOST_SOLVED_TURNS,
        f"{place}: task.max_turns is {turns}, but must be from 1 to {MOST_SOLVED_TURNS}",
    )


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
    _called(f"{place}: is_difficult", world.population, "difficult")


def _check_phrasings(world: World, place: str) -> None:
    for kind, phrasings in (("act", world.acts), ("reply", world.replies)):
        for name, phrasing in phrasings.items():
            where = f"{place}: {kind} {name!r}"
            for template in (*phrasing.templates, *phrasing.also):
                try:
                    count = grammar.count_forms(template)
                except grammar.GrammarError as error:
                    raise WorldError(f"{where}: {error}") from None
                except RecursionError:
                    raise WorldError(
                        f"{where}: template {shown(template)!r} has too many brackets in brackets"
                    ) from None
                _require(
                    kind == "act" or count <= MOST_FORMS,
                    f"{where}: template {shown(template)!r} has {shown(count)} forms, of which a "
                    f"reply may have {MOST_FORMS:,}; write several templates with fewer",
                )
                _require(
                    all(grammar.sample_forms(template, _LOOKED_AT)),
                    f"{where}: template {shown(template)!r} says nothing where all of its "
                    "alternatives are empty",
                )
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
        reply = dice.choose(world.opening(persona))
        where = f"{place}: begin with reply {reply!r}"
        state = _called(where, world.begin, reply)
        _check_hash(state, where)
        for _ in range(world.task.max_turns):
            _check_state(world, persona, state, place)
            if _called(f"{place}: is_over of state {state}", world.is_over, state):
                break
            act = acts[dice.below(len(acts))]
            where = f"{place}: reply of persona {_shown(persona)} in state {state} to act {act!r}"
            replies = _called(where, world.reply, persona, state, act)
            _require_distribution(replies, world.replies, where)
            reply = dice.choose(replies)
            where = f"{place}: advance from state {state} after act {act!r} and reply {reply!r}"
            following = _called(where, world.advance, state, act, reply)
            _check_hash(following, where)
            step = (persona, state, act, reply)
            where = f"{place}: situation or mood of state {state}"
            _called(where, _check_situation, world, step, following, place)
            state = following
        _check_state(world, persona, state, place)


def _check_state(world: World, persona: tuple, state: State, place: str) -> None:
    low, high = world.task.reward_range
    where = f"{place}: rating of persona {_shown(persona)} in state {state}"
    rating = _called(where, world.rating, persona, state)
    _require(
        _is_number(rating) and low <= rating <= high,
        f"{where} is {shown(rating)}; task.reward_range is {low} to {high}",
    )
    if world.ceiling is not None:
        ceiling = _called(f"{where}: ceiling", world.ceiling, persona, state)
        _require(
            _is_number(ceiling) and ceiling >= rating - _TOLERANCE,
            f"{where} is {rating}, above its ceiling {shown(ceiling)}",
        )
    if _called(f"{place}: is_over of state {state}", world.is_over, state):
        return
    for name in world.behaviours:
        where = f"{place}: behaviour {name!r} in state {state}"
        _require_distribution(_called(where, world.choice_of, name, state), world.acts, where)


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


def _require_distribution(probabilities: Any, known: Collection[object], where: str) -> None:
    is_dict = isinstance(probabilities, Mapping)
    _require(is_dict, f"{where}: {shown(probabilities)!r}, but must be a dict name -> probability")
    for name, probability in probabilities.items():
        _require(
            name in known,
            f"{where}: unknown {name!r}; known are {', '.join(map(str, known))}",
        )
        _require(
            _is_number(probability) and probability >= 0.0,
            f"{where}: probability of {name!r} is {shown(probability)!r}; it must be a number of 0 "
            "or more",
        )
    total = sum(probabilities.values())
    _require(
        abs(total - 1.0) <= _TOLERANCE,
        f"{where}: probabilities must sum to 1, these sum to {total:.6g}: {dict(probabilities)}",
    )


def _is_number(value: Any) -> bool:
    """True for finite numbers, numpy's and truth values too."""
    value = value.item() if isinstance(value, np.generic) else value
    return is_finite(value) or isinstance(value, bool)


def _shown(persona: tuple) -> str:
    return f"({', '.join(map(str, persona))})"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorldError(message)
