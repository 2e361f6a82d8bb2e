"""`guarded`: a world whose functions are watched wherever they are called.

`validation.py` looks into the states of some random conversations. A slip in a state that is
reached later, while dialogues are played or agents judged, is told when it comes: with the
function, its persona, state and act, and the file and line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ilql_jax.errors import place_of_function, shown
from imagination.checks import is_finite
from imagination.simulation.world import Persona, World, WorldError

TOLERANCE = 1e-6  # of sums of probabilities, and of ceilings

# Says what is wrong with a value, as the end of a sentence about where it comes from; None where
# nothing is.
Check = Callable[[Any], str | None]


def guarded(world: World) -> World:
    """A copy whose functions raise `WorldError` instead of what they would raise, and for results
    of no use.

    Args:
        world: With functions where functions have to be (see `validation.validate`).
    """
    low, high = world.task.reward_range

    def rating_problem(value: Any) -> str | None:
        is_rating = is_number(value) and low <= value <= high
        return None if is_rating else f" is {shown(value)}; task.reward_range is {low} to {high}"

    of_acts = functools.partial(distribution_problem, known=world.acts)
    of_replies = functools.partial(distribution_problem, known=world.replies)
    # Field -> where it was called, and what is asked of its result.
    rules: dict[str, tuple[Callable[..., str], Check]] = {
        "is_difficult": (lambda who: f"is_difficult of persona {shown_persona(who)}", _truth),
        "opening": (lambda who: f"opening of persona {shown_persona(who)}", of_replies),
        "begin": (lambda reply: f"begin with reply {reply!r}", _hash_problem),
        "reply": (
            lambda who, state, act: (
                f"reply of persona {shown_persona(who)} in state {state} to act {act!r}"
            ),
            of_replies,
        ),
        "advance": (
            lambda state, act, reply: (
                f"advance from state {state} after act {act!r} and reply {reply!r}"
            ),
            _hash_problem,
        ),
        "is_over": (lambda state: f"is_over of state {state}", _truth),
        "rating": (
            lambda who, state: f"rating of persona {shown_persona(who)} in state {state}",
            rating_problem,
        ),
        "situation": (lambda state: f"situation of state {state}", _hash_problem),
        "mood": (lambda state, act: f"mood of state {state} for act {act!r}", _hash_problem),
        "ceiling": (
            lambda who, state: f"ceiling of persona {shown_persona(who)} in state {state}",
            _number_problem,
        ),
    }
    place = f"world {world.name!r}: "
    functions = {
        name: _watched(function, place, *rule)
        for name, rule in rules.items()
        if (function := getattr(world, name)) is not None
    }
    behaviours = {}
    for name, each in world.behaviours.items():
        where = functools.partial("behaviour {!r} in state {}".format, name)
        behaviours[name] = dataclasses.replace(
            each, choose=_watched(each.choose, place, where, of_acts)
        )
    return dataclasses.replace(world, behaviours=behaviours, **functions)


def distribution_problem(probabilities: Any, known: Collection[object]) -> str | None:
    """Says why these are no probabilities of what is known; None where they are."""
    if not isinstance(probabilities, Mapping):
        return f": {shown(probabilities)!r}, but must be a dict name -> probability"
    for name, probability in probabilities.items():
        if name not in known:
            return f": unknown {name!r}; known are {', '.join(map(str, known))}"
        if not (is_number(probability) and probability >= 0.0):
            return (
                f": probability of {name!r} is {shown(probability)!r}; it must be a number of 0 or "
                "more"
            )
    total = sum(probabilities.values())
    if abs(total - 1.0) > TOLERANCE:
        return (
            f": probabilities must sum to 1, these sum to {total:.6g}: "
            f"{shown(dict(probabilities), 300)}"
        )
    return None


def is_number(value: Any) -> bool:
    """True for finite numbers, numpy's and truth values too."""
    value = value.item() if isinstance(value, np.generic) else value
    return is_finite(value) or isinstance(value, bool)


def shown_persona(persona: Persona) -> str:
    """A persona for messages."""
    return f"({', '.join(map(str, persona))})"


def _watched(
    function: Callable[..., Any], place: str, where: Callable[..., str], problem_of: Check
) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def watched(*arguments: Any) -> Any:
        try:
            value = function(*arguments)
        except WorldError:
            raise
        except (Exception, SystemExit) as error:
            told = f"{place}{where(*arguments)}: it raised {shown(error, 300, repr)}"
            raise WorldError(f"{told}{place_of_function(function, error)}") from error
        if (problem := problem_of(value)) is not None:
            raise WorldError(f"{place}{where(*arguments)}{problem}{place_of_function(function)}")
        return value

    return watched


def _hash_problem(state: Any) -> str | None:
    try:
        hash(state)
    except Exception as error:
        return (
            f" is {shown(state)!r}, which cannot be hashed ({shown(error)}). States are keys: use "
            "named tuples or frozen dataclasses, with tuples for lists."
        )
    return None


def _truth(value: Any) -> str | None:
    try:
        bool(value)
    except Exception as error:
        return f" is {shown(value)!r}, which is neither true nor false ({shown(error)})"
    return None


def _number_problem(value: Any) -> str | None:
    return None if is_number(value) else f" is {shown(value)!r}, but must be a finite number"
