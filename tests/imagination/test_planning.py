"""Exact values of small made-up worlds, against sums over every conversation that may happen."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from imagination.simulation import teaching
from imagination.simulation.planning import (
    Planner,
    blind_value,
    normalized_score,
    optimal_value,
    persona_values,
    policy_value,
    reference_values,
    uniform_policy,
)
from imagination.simulation.world import Behaviour, World

PERSONAS = (("calm",), ("hasty",), ("sly",), ("nobody",))
PRIOR = dict(zip(PERSONAS, (0.5, 0.3, 0.2, 0.0), strict=True))
ACTS, REPLIES = ("ask", "tell", "wait"), ("yes", "no", "bye")
TURNS = 3


def table(seed: int, *key) -> np.random.Generator:
    return np.random.default_rng([seed, *map(ord, repr(key))])


@functools.cache
def drawn(seed: int, *key) -> float:
    return float(table(seed, *key).random())


@functools.cache
def probabilities(seed: int, *key) -> dict[str, float]:
    """Probabilities of the replies; some are impossible, with a zero or left out."""
    weights = table(seed, *key).random(3) * (table(seed, "zero", *key).random(3) < 0.8)
    weights += 1e-3 * (weights.sum() == 0)
    shares = dict(zip(REPLIES, (weights / weights.sum()).tolist(), strict=True))
    return shares if seed % 2 else {reply: share for reply, share in shares.items() if share}


def acts_of(state: tuple) -> tuple:
    return tuple(act for act, _ in state[1:])


def without_words(state: tuple) -> tuple:
    """Blanks out what was merely heard; that the human has left stays."""
    return (None, *((act, reply if reply == "bye" else None) for act, reply in state[1:]))


def made_up(seed: int, turns: int = TURNS, **changes) -> World:
    """States are whole conversations; ratings depend on persona and acts alone."""
    task = dataclasses.replace(
        teaching.TASK,
        name="made_up",
        max_turns=turns,
        persona_axes={"kind": tuple(kind for (kind,) in PERSONAS)},
        reward_range=(0.0, 1.0),
    )
    fields = {
        "task": task,
        "prior": PRIOR,
        "is_difficult": lambda persona: persona[0] in ("hasty", "sly"),
        "acts": dict.fromkeys(ACTS),
        "replies": dict.fromkeys(REPLIES),
        "slots": {},
        "opening": lambda persona: probabilities(seed, "opening", persona),
        "begin": lambda reply: (reply,),
        "reply": lambda persona, state, act: probabilities(seed, persona, acts_of(state), act),
        "advance": lambda state, act, reply: (*state, (act, reply)),
        "is_over": lambda state: len(state) > 1 and state[-1][1] == "bye",
        "rating": lambda persona, state: drawn(seed, persona, acts_of(state)),
        "behaviours": {
            "listener": Behaviour(
                0.7,
                lambda state: (
                    {"ask": 0.25, "tell": 0.75, "wait": 0.0}
                    if state[-1] == "yes" or state[-1][1] == "yes"
                    else {"wait": 1.0}
                ),
            ),
            "deaf": Behaviour(
                0.3,
                lambda state: (
                    {ACTS[len(state) % 3]: 0.6, "ask": 0.4} if len(state) % 3 else {"ask": 1.0}
                ),
                listens=False,
            ),
        },
        "situation": without_words,
    }
    return World(**(fields | changes))


# --- everything that may happen -----------------------------------------------------------------


def openings(world: World, masses: dict) -> list[tuple[tuple, dict]]:
    return grouped(masses, world.opening, world.begin)


def continuations(world: World, masses: dict, state: tuple, act: str) -> list[tuple[tuple, dict]]:
    return grouped(
        masses,
        lambda persona: world.reply(persona, state, act),
        lambda reply: world.advance(state, act, reply),
    )


def grouped(masses: dict, likelihood, after) -> list[tuple[tuple, dict]]:
    found = []
    for reply in REPLIES:
        joint = {p: m * likelihood(p).get(reply, 0.0) for p, m in masses.items()}
        joint = {p: m for p, m in joint.items() if m > 0}
        if joint:
            found.append((after(reply), joint))
    return found


def worth(world: World, masses: dict, state: tuple) -> float:
    return sum(m * world.rating(p, state) for p, m in masses.items())


def best(world: World, turns: int, state: tuple, masses: dict) -> tuple[float, str | None]:
    """Value (times the mass) and act of the optimal policy."""
    if turns == 0 or world.is_over(state):
        return worth(world, masses, state), None
    values = {act: value_of(world, turns, state, masses, act) for act in world.acts}
    act = max(values, key=values.get)
    return values[act], act


def value_of(world: World, turns: int, state: tuple, masses: dict, act: str) -> float:
    branches = continuations(world, masses, state, act)
    return sum(best(world, turns - 1, after, joint)[0] for after, joint in branches)


def optimum(world: World, population: str = "average") -> float:
    branches = openings(world, world.population(population))
    return sum(best(world, world.task.max_turns, *branch)[0] for branch in branches)


def value_under(world: World, choose, masses: dict) -> float:
    """Value of a policy that sees turns left, state and what it believes (a joint), if it looks."""

    def go_on(turns: int, state: tuple, masses: dict) -> float:
        if turns == 0 or world.is_over(state):
            return worth(world, masses, state)
        return sum(
            share * go_on(turns - 1, after, joint)
            for act, share in choose(turns, state).items()
            if share > 0
            for after, joint in continuations(world, masses, state, act)
        )

    branches = openings(world, masses)
    return sum(go_on(world.task.max_turns, *branch) for branch in branches)


def joint_after(world: World, state: tuple, population: str) -> dict:
    """Mass of each persona that has said all this."""
    masses, heard = world.population(population), state[:1]
    masses = {p: m * world.opening(p).get(state[0], 0.0) for p, m in masses.items()}
    for act, reply in state[1:]:
        masses = {p: m * world.reply(p, heard, act).get(reply, 0.0) for p, m in masses.items()}
        heard = (*heard, (act, reply))
    return {p: m for p, m in masses.items() if m > 0}


def belief_after(planner: Planner, state: tuple) -> tuple:
    belief = planner.opened(state[0])
    for place, (act, reply) in enumerate(state[1:], 1):
        belief = planner.updated(belief, state[:place], act, reply)
    return belief


WORLDS = pytest.mark.parametrize("seed", range(4))
PLACES = [
    (0, ("yes",)),
    (1, ("yes", ("ask", "no"))),
    (1, ("no", ("wait", "yes"))),
    (2, ("no", ("tell", "no"), ("ask", "yes"))),
]


@WORLDS
@pytest.mark.parametrize("population", ["average", "difficult"])
def test_the_optimum_is_that_of_all_conversations(seed: int, population: str):
    world = made_up(seed)
    assert Planner(world, population).value() == pytest.approx(optimum(world, population), abs=1e-9)
    assert optimal_value(world, population) == pytest.approx(optimum(world, population), abs=1e-9)


@WORLDS
def test_an_act_left_out_is_not_chosen(seed: int):
    world = made_up(seed)
    fewer = dataclasses.replace(world, acts=dict.fromkeys(ACTS[:2]))
    assert Planner(world, acts=ACTS[:2]).value() == pytest.approx(optimum(fewer), abs=1e-9)


@WORLDS
def test_in_the_middle_of_a_conversation_state_and_acts_have_their_values(seed: int):
    world, looked_at = made_up(seed), 0
    for said, state in PLACES:
        masses, left = joint_after(world, state, "average"), TURNS - said
        if not masses:
            continue
        planner, total = Planner(world), sum(masses.values())
        place = left, state, belief_after(planner, state)
        value, act = best(world, left, state, masses)
        assert planner.best_act(*place) == act
        assert planner.state_value(*place) == pytest.approx(value / total, abs=1e-9)
        for other in ACTS:
            expected = value_of(world, left, state, masses, other) / total
            assert planner.act_value(*place, other) == pytest.approx(expected, abs=1e-9)
        looked_at += 1
    assert looked_at > 1


@WORLDS
def test_without_turns_left_or_after_the_end_the_rating_is_the_value(seed: int):
    world, planner = made_up(seed), Planner(made_up(seed))
    masses = {p: m for p, m in PRIOR.items() if m > 0}
    belief = tuple(range(3)), tuple(masses.values())
    spoken, over = ("yes", ("ask", "no")), ("yes", ("ask", "bye"))
    for turns, state in ((0, spoken), (2, over)):
        expected = worth(world, masses, state)
        assert planner.state_value(turns, state, belief) == pytest.approx(expected, abs=1e-9)


@WORLDS
def test_beliefs_follow_bayes_rule(seed: int):
    world = made_up(seed)
    for population in ("average", "difficult"):
        planner = Planner(world, population)
        for _, state in PLACES:
            masses = joint_after(world, state, population)
            if not masses:
                continue
            indices, shares = belief_after(planner, state)
            assert [planner.personas[i] for i in indices] == list(masses)
            expected = np.array([*masses.values()]) / sum(masses.values())
            np.testing.assert_allclose(shares, expected, atol=1e-9)


def test_a_reply_that_nobody_could_have_given_leaves_the_belief():
    world = made_up(0, reply=lambda persona, state, act: {"yes": 1.0, "no": 0.0})
    planner = Planner(world)
    belief = (0, 2), (0.25, 0.75)
    assert planner.updated(belief, ("yes",), "ask", "no") == belief
    assert planner.updated(belief, ("yes",), "ask", "never heard") == belief
    assert planner.opened("never heard") == ((0, 1, 2), (0.5, 0.3, 0.2))


@WORLDS
def test_a_policy_that_believes_in_the_average_is_valued_among_difficult_humans(seed: int):
    world = made_up(seed)
    planner = Planner(world)

    def choose(turns: int, state: tuple) -> dict:
        return {best(world, turns, state, joint_after(world, state, "average"))[1]: 1.0}

    for population in ("average", "difficult"):
        expected = value_under(world, choose, world.population(population))
        assert planner.value_among(population) == pytest.approx(expected, abs=1e-9)
    assert planner.value_among("average") == pytest.approx(planner.value(), abs=1e-9)


@pytest.mark.parametrize("acts", [("first", "other"), ("other", "first")])
def test_among_equal_acts_the_one_that_is_worth_most_at_once_comes_first(acts: tuple):
    """Both acts are needed in the end; a human may leave after any."""
    value = {(): 0.0, ("first",): 0.6, ("other",): 0.2}
    world = made_up(
        0,
        turns=2,
        acts=dict.fromkeys(acts),
        reply=lambda persona, state, act: {"yes": 1.0},
        rating=lambda persona, state: value.get(acts_of(state), float(len({*acts_of(state)}) > 1)),
    )
    planner = Planner(world)
    assert planner.value() == pytest.approx(1.0)
    belief = planner.opened("yes")
    assert planner.best_act(2, ("yes",), belief) == "first"
    assert planner.best_act(1, ("yes", ("first", "yes")), belief) == "other"


@WORLDS
def test_a_ceiling_changes_no_value_and_saves_looking(seed: int):
    """The best rating that a persona can still give is the tightest bound."""
    asked = []

    def counted(persona, state):
        asked.append(state)
        return drawn(seed, persona, acts_of(state))

    @functools.cache
    def ceiling(persona, state):
        longer = range(TURNS - len(state) + 2)
        endings = (e for n in longer for e in itertools.product(ACTS, repeat=n))
        # Whoever may still be rated at a later end, or now.
        return max(drawn(seed, persona, (*acts_of(state), *ending)) for ending in endings)

    plain = made_up(seed, rating=counted)
    value = Planner(plain).value()
    without = len(asked)
    asked.clear()
    planner = Planner(dataclasses.replace(plain, ceiling=ceiling))
    assert planner.value() == pytest.approx(value, abs=1e-9)
    assert len(asked) <= without
    nodes = len(planner._solved)
    low = Planner(dataclasses.replace(plain, ceiling=lambda persona, state: 1.0))
    assert low.value() == pytest.approx(value, abs=1e-9)
    assert nodes <= len(low._solved)


def test_an_act_that_is_certainly_worse_is_not_looked_into():
    """One act ends at the ceiling; no conversation after the others is rated."""
    rated = set()

    def rating(persona, state):
        rated.add(acts_of(state))
        return float(acts_of(state)[:1] == ("tell",))

    world = made_up(
        0,
        rating=rating,
        reply=lambda persona, state, act: {"yes": 1.0},
        ceiling=lambda persona, state: float(not acts_of(state) or acts_of(state)[0] == "tell"),
    )
    assert Planner(world).value() == pytest.approx(1.0)
    assert not any(acts[:1] != ("tell",) and len(acts) > 1 for acts in rated)
    # Nor are its equals, once one has reached the ceiling.
    assert sum(len(acts) == TURNS for acts in rated) <= len(ACTS)


@pytest.mark.parametrize(("turns", "reply"), [(1, "yes"), (TURNS, "bye")])
def test_where_it_ends_bounds_are_exact_and_only_the_best_act_is_looked_into(turns, reply):
    class Counting(Planner):
        looked_at = 0

        def _value(self, node, at_least=-np.inf):
            self.looked_at += 1
            return super()._value(node, at_least)

    ratings = {("ask",): 0.2, ("tell",): 0.7, ("wait",): 0.5}
    planner = Counting(
        made_up(
            0,
            turns=turns,
            opening=lambda persona: {"yes": 1.0},
            reply=lambda persona, state, act: {reply: 1.0},
            rating=lambda persona, state: ratings[acts_of(state)],
        )
    )
    assert planner.value() == pytest.approx(0.7)
    assert planner.looked_at == 2  # the opening, and what follows the best act


def test_what_was_worked_out_is_kept_until_there_is_too_much_of_it():
    steps = []
    world = made_up(
        1, advance=lambda state, act, reply: steps.append(act) or (*state, (act, reply))
    )
    planner = Planner(world)
    value = planner.value()
    taken = len(steps)
    assert planner.value() == value and len(steps) == taken > 0
    count = len(planner._solved)
    assert count > 1
    planner.forget(count)
    assert len(planner._solved) == count
    planner.forget(count - 1)
    assert not planner._solved
    assert planner.value() == value


# --- policies that are given --------------------------------------------------------------------


def value_of_behaviour(world: World, name: str | None, masses: dict) -> float:
    def choose(turns: int, state: tuple) -> dict:
        if name is None:
            return dict.fromkeys(ACTS, 1 / 3)
        behaviour = world.behaviours[name]
        return behaviour.choose(state if behaviour.listens else without_words(state))

    return value_under(world, choose, masses)


@WORLDS
@pytest.mark.parametrize("name", ["listener", "deaf", None])
def test_a_behaviour_has_its_value_for_every_persona_and_population(seed: int, name: str | None):
    world = made_up(seed)
    by_persona = [value_of_behaviour(world, name, {persona: 1.0}) for persona in PERSONAS]
    behaviour = world.behaviours.get(name, Behaviour(0.0, uniform_policy(world), listens=False))
    found = persona_values(world, behaviour.choose, behaviour.listens)
    np.testing.assert_allclose(found, by_persona, atol=1e-9)
    assert found.dtype == np.float64
    for population in ("average", "difficult"):
        weights = world.population(population)
        expected = sum(weights.get(p, 0) * v for p, v in zip(PERSONAS, by_persona, strict=True))
        assert policy_value(world, name, population) == pytest.approx(expected, abs=1e-9)


@WORLDS
@pytest.mark.parametrize("order", [("listener", "deaf", None), (None, "deaf", "listener")])
def test_policies_that_share_what_was_worked_out_keep_their_values(seed: int, order: tuple):
    """Replies by mood, next situations and ratings of one world serve all policies."""
    world = made_up(
        seed,
        reply=lambda persona, state, act: probabilities(seed, persona, act, len(state)),
        mood=lambda state, act: state if act == "ask" else (None,) * len(state),
    )
    for name in order:
        expected = [value_of_behaviour(world, name, {persona: 1.0}) for persona in PERSONAS]
        behaviour = world.behaviours.get(name, Behaviour(0.0, uniform_policy(world), listens=False))
        found = persona_values(world, behaviour.choose, behaviour.listens)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    for population in ("average", "difficult"):
        assert optimal_value(world, population) == pytest.approx(optimum(world, population))


def test_a_persona_is_not_rated_where_it_never_comes():
    rated = set()

    def rating(persona: tuple, state: tuple) -> float:
        rated.add((persona, state))
        return 0.5

    world = made_up(
        0,
        turns=2,
        opening=lambda persona: {"yes": 1.0},
        reply=lambda persona, state, act: {"bye" if persona == ("sly",) else "yes": 1.0},
        rating=rating,
    )
    np.testing.assert_allclose(persona_values(world, uniform_policy(world), False), 0.5)
    left = {persona for persona, state in rated if state[-1][1] == "bye"}
    assert left == {("sly",)}
    assert all(len(state) == 3 for persona, state in rated if persona != ("sly",))


def test_a_policy_listens_unless_it_is_told_not_to():
    world = made_up(2)
    listener = world.behaviours["listener"].choose
    np.testing.assert_array_equal(
        persona_values(world, listener), persona_values(world, listener, listens=True)
    )


@WORLDS
@pytest.mark.parametrize("population", ["average", "difficult"])
def test_the_best_blind_sequence_is_found_wherever_it_ends(seed: int, population: str):
    worlds = [made_up(seed, turns=turns) for turns in range(1, TURNS + 1)]
    values = {
        sequence: value_under(
            world,
            lambda _, state, s=sequence: {s[len(state) - 1]: 1.0},
            world.population(population),
        )
        for world in worlds
        for sequence in itertools.product(ACTS, repeat=world.task.max_turns)
    }
    world = worlds[-1]
    assert blind_value(world, population) == pytest.approx(max(values.values()), abs=1e-9)
    assert blind_value(world, population, 3) == blind_value(world, population, 9)
    # One sequence kept: the best act after the best so far.
    greedy: tuple = ()
    for _ in range(TURNS):
        greedy = max(((*greedy, act) for act in ACTS), key=values.get)
    expected = max(values[greedy[:length]] for length in range(1, TURNS + 1))
    assert blind_value(world, population, width=1) == pytest.approx(expected, abs=1e-9)


@WORLDS
@pytest.mark.parametrize("population", ["average", "difficult"])
def test_references_are_the_mixture_the_best_of_it_the_optimum_and_chance(seed, population):
    world = made_up(seed)
    values = {n: policy_value(world, n, population) for n in ("listener", "deaf", None)}
    expected = {
        "behaviour": 0.7 * values["listener"] + 0.3 * values["deaf"],
        "best_behaviour": max(values["listener"], values["deaf"]),
        "optimum": optimum(world, population),
        "uniform": values[None],
    }
    assert reference_values(world, population) == pytest.approx(expected, abs=1e-9)


def test_references_are_those_of_the_average_unless_told_otherwise():
    world = made_up(3)
    for function in (reference_values, optimal_value, blind_value):
        assert function(world) == function(world, "average") != function(world, "difficult")
    assert policy_value(world, None) == policy_value(world, None, "average")
    assert Planner(world).value() == Planner(world, "average").value()


def test_normalized_score_by_hand():
    references = {"behaviour": 0.5, "optimum": 0.75}
    scores = [normalized_score(value, references) for value in (0.5, 0.75, 0.625, 0.25)]
    assert scores == pytest.approx([0.0, 1.0, 0.5, -1.0])
    of_array = normalized_score(np.array([[0.5, 0.75], [0.625, 0.25]]), references)
    np.testing.assert_allclose(of_array, [[0, 1], [0.5, -1]])
    with pytest.raises(ValueError, match=r"optimum \(0.2\) must lie above the behaviour"):
        normalized_score(0.5, {"behaviour": 0.2, "optimum": 0.2})


def test_values_are_remembered_by_world():
    rated = []
    world = made_up(0, rating=lambda persona, state: rated.append(state) or 0.5)
    reference_values(world)
    count = len(rated)
    assert count > 0
    reference_values(world)
    policy_value(world, "listener", "difficult")
    assert len(rated) == count
    assert optimal_value(world) == pytest.approx(0.5)
