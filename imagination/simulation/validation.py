"""Checks of a world when it is loaded, so that a slip in its data is named and not simulated.

Everything that can be listed is checked whole; replies, ratings and behaviours are checked in
the states of a few hundred random conversations, and in others when they come (`guard.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ilql_jax.errors import shown
from imagination.checks import without_surrogates
from imagination.simulation import grammar
from imagination.simulation.dice import Dice
from imagination.simulation.grammar import Phrasing
from imagination.simulation.guard import TOLERANCE, distribution_problem, guarded, shown_persona
from imagination.simulation.world import Behaviour, State, World, WorldError
from imagination.task import Task

MOST_SOLVED_TURNS = 200  # the optimum is worked out turn by turn
MOST_FORMS = 200_000  # of a reply: who hears one of them has to tell it from all others
_LOOKED_AT = 250  # forms of a template of an act
_WALKS = 300


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
    world = guarded(world)
    world.population("difficult")
    for persona in world.population("average"):
        world.opening(persona)
    _walk(world, place)


def _check_types(world: World, place: str) -> None:
    """Checks what kind of thing each field is; a plain string is no list of texts."""
    for name in ("prior", "acts", "replies", "slots", "behaviours", "plain_words"):
        value = getattr(world, name)
        where = f"{place}: {name}"
        _require(isinstance(value, Mapping), f"{where} is {shown(value)!r}, but must be a dict")
        may_be_empty = name in ("slots", "plain_words")
        _require(bool(value) or may_be_empty, f"{where} is empty; give at least one")
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
    for name, templates in world.plain_words.items():
        known = f"the world's replies are {', '.join(world.replies)}"
        _require(name in world.replies, f"{place}: plain_words of {shown(name)!r}; {known}")
        _require_texts(templates, f"{place}: plain_words of reply {name!r}", "templates")


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
            f"{place}: persona {shown_persona(persona)} of the prior has {len(persona)} values; "
            f"give one for each axis ({', '.join(axes)})",
        )
        for value, (axis, values) in zip(persona, axes.items(), strict=True):
            _require(
                value in values,
                f"{place}: persona {shown_persona(persona)} of the prior: {value!r} is not a value "
                f"of axis {axis!r}; its values are {', '.join(values)}",
            )
    _require_distribution(world.prior, world.prior, f"{place}: the prior over personas")


def _check_phrasings(world: World, place: str) -> None:
    plain = {name: Phrasing(templates) for name, templates in world.plain_words.items()}
    of_kind = {"act": world.acts, "reply": world.replies, "plain_words of reply": plain}
    for kind, phrasings in of_kind.items():
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
    """Goes through random conversations of a guarded world, which tells what is wrong itself."""
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
            reply = dice.choose(world.reply(persona, state, act))
            following = world.advance(state, act, reply)
            _check_situation(world, (persona, state, act, reply), following, place)
            state = following
        _check_state(world, persona, state, place)


def _check_state(world: World, persona: tuple, state: State, place: str) -> None:
    rating = world.rating(persona, state)
    if world.ceiling is not None:
        ceiling = world.ceiling(persona, state)
        _require(
            ceiling >= rating - TOLERANCE,
            f"{place}: rating of persona {shown_persona(persona)} in state {state} is {rating}, "
            f"above its ceiling {shown(ceiling)}",
        )
    if not world.is_over(state):
        for name in world.behaviours:
            world.choice_of(name, state)


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
    problem = distribution_problem(probabilities, known)
    _require(problem is None, f"{where}{problem}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorldError(message)
