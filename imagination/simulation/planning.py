"""Exact values of a world: the optimum, any behaviour, the uniform policy.

The optimum is Bayes-optimal: it knows the population's prior, not the persona, and is found by
dynamic programming over (turns left, state, belief). The search looks at an act only while a
bound on its value, full knowledge of the persona from there on, exceeds the best act found; what
it returns is exact. Behaviours see the public state only, so their value follows by pushing the
probability of every state forward, all personas at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imagination.simulation.world import Act, Reply, State, World

# Belief: indices of the personas that are still possible, and their probabilities.
Belief = tuple[tuple[int, ...], tuple[float, ...]]
Policy = Callable[[State], Mapping[Act, float]]

_TINY = 1e-12


class Node(NamedTuple):
    """A point of a conversation: all that the best continuation depends on."""

    turns_left: int
    state: State
    belief: Belief


class Solution(NamedTuple):
    """The value and a best act; or, where not exact, an upper bound on the value."""

    value: float
    act: Act | None
    is_exact: bool


class Planner:
    """Optimal values and acts of one population, each computed when first asked for.

    Args:
        world: The world.
        population: `"average"` or `"difficult"`: whose prior the policy is optimal for.
        acts: The acts it may choose from; all by default. None among them is gibberish.
    """

    def __init__(
        self, world: World, population: str = "average", acts: tuple[Act | None, ...] | None = None
    ):
        self.world = world
        self.acts = tuple(world.acts) if acts is None else acts
        prior = world.population(population)
        self.personas = tuple(prior)
        self._prior: Belief = (tuple(range(len(prior))), tuple(prior.values()))
        self._solved: dict[Node, Solution] = {}
        self._replies: dict[tuple[State, Act | None], dict[int, Mapping[Reply, float]]] = {}
        self._ratings: dict[tuple[int, State], float] = {}
        self._ceilings: dict[tuple[int, State], float] = {}

    def value(self) -> float:
        """Expected rating of the optimal policy."""
        likelihoods = [self.world.opening(persona) for persona in self.personas]
        return sum(
            probability * self._value(Node(self.world.task.max_turns, self._begin(reply), belief))
            for reply, probability, belief in _split(self._prior, likelihoods)
        )

    def value_among(self, population: str) -> float:
        """Expected rating of this policy when it meets another population.

        It goes on believing in its own; personas that this rules out may not turn up.
        """
        probabilities = self.world.population(population)
        masses = tuple(probabilities.get(persona, 0.0) for persona in self.personas)
        likelihoods = [self.world.opening(persona) for persona in self.personas]
        return sum(
            self._follow(self.world.task.max_turns, self._begin(reply), belief, seen)
            for reply, belief, seen in self._branches(self._prior, likelihoods, masses)
        )

    def _follow(self, turns_left: int, state: State, belief: Belief, masses: tuple) -> float:
        if turns_left == 0 or self.world.is_over(state):
            return sum(m * self._rating(i, state) for i, m in zip(belief[0], masses, strict=True))
        act = self.best_act(turns_left, state, belief)
        likelihoods = self._likelihoods(belief, state, act)
        return sum(
            self._follow(turns_left - 1, self._after(state, act, reply), posterior, seen)
            for reply, posterior, seen in self._branches(belief, likelihoods, masses)
        )

    @staticmethod
    def _branches(belief: Belief, likelihoods: list, masses: tuple):
        """Replies with the belief after them and the actual mass of each persona believed in."""
        position = {index: place for place, index in enumerate(belief[0])}
        for reply, _, posterior in _split(belief, likelihoods):
            places = [position[index] for index in posterior[0]]
            seen = tuple(masses[place] * likelihoods[place][reply] for place in places)
            if any(seen):
                yield reply, posterior, seen

    def best_act(self, turns_left: int, state: State, belief: Belief) -> Act | None:
        """An optimal act; among equals, the one that is worth most if all ended after it."""
        return self._solve(Node(turns_left, self.world.situation(state), belief)).act

    def state_value(self, turns_left: int, state: State, belief: Belief) -> float:
        """Expected rating of the best continuation; without turns left, of what has been said."""
        return self._value(Node(turns_left, self.world.situation(state), belief))

    def act_value(self, turns_left: int, state: State, belief: Belief, act: Act | None) -> float:
        """Expected rating of this act and the best continuation after it."""
        state = self.world.situation(state)
        likelihoods = self._likelihoods(belief, state, act)
        return sum(
            probability * self._value(Node(turns_left - 1, self._after(state, act, reply), after))
            for reply, probability, after in _split(belief, likelihoods)
        )

    def forget(self, more_than: int) -> None:
        """Drops what was worked out where it has grown beyond this many nodes."""
        if len(self._solved) > more_than:
            self._solved.clear()

    def opened(self, reply: Reply) -> Belief:
        """The belief after the opening."""
        likelihoods = [self.world.opening(persona) for persona in self.personas]
        return _posterior(self._prior, likelihoods, reply)

    def updated(self, belief: Belief, state: State, act: Act | None, reply: Reply) -> Belief:
        """The belief after this reply; unchanged by a reply that nobody could have given."""
        return _posterior(belief, self._likelihoods(belief, state, act), reply)

    def _begin(self, reply: Reply) -> State:
        return self.world.situation(self.world.begin(reply))

    def _after(self, state: State, act: Act | None, reply: Reply) -> State:
        return self.world.situation(self.world.advance(state, act, reply))

    def _likelihoods(self, belief: Belief, state: State, act: Act | None):
        key = (self.world.mood_for(state, act), act)
        known = self._replies.setdefault(key, {})
        result = []
        for index in belief[0]:
            if index not in known:
                known[index] = self.world.replies_in(self.personas[index], *key)
            result.append(known[index])
        return result

    def _value(self, node: Node, at_least: float = -math.inf) -> float:
        """The value of a node if it exceeds `at_least`, else a bound that does not."""
        if node.turns_left == 0 or self.world.is_over(node.state):
            return self._expected(self._rating, node)
        return self._solve(node, at_least).value

    def _solve(self, node: Node, at_least: float = -math.inf) -> Solution:
        solution = self._solved.get(node)
        if solution is not None and (solution.is_exact or solution.value <= at_least):
            return solution
        best, best_act, upper, is_exact = at_least, None, -math.inf, False
        for bound, act, branches in self._candidates(node):
            if bound <= best + _TINY:
                upper = max(upper, bound)
                break
            value = bound
            for probability, after, branch_bound in branches:
                others = value - probability * branch_bound
                needed = (best - others) / probability
                value = others + probability * self._value(after, needed)
                if value <= best + _TINY:
                    break
            upper = max(upper, value)
            if value > best + _TINY:
                best, best_act, is_exact = value, act, True
        solution = Solution(best if is_exact else upper, best_act, is_exact)
        self._solved[node] = solution
        return solution

    def _candidates(self, node: Node) -> list[tuple[float, Act | None, list]]:
        """Acts with a bound on their value and what may follow, most promising first."""
        candidates = []
        for act in self.acts:
            bound = promise = 0.0
            branches = []
            likelihoods = self._likelihoods(node.belief, node.state, act)
            for reply, probability, posterior in _split(node.belief, likelihoods):
                after = Node(node.turns_left - 1, self._after(node.state, act, reply), posterior)
                branch_bound = self._bound(after)
                branches.append((probability, after, branch_bound))
                bound += probability * branch_bound
                promise += probability * self._expected(self._rating, after)
            candidates.append((bound, promise, act, branches))
        # What comes later is then mostly bounded away.
        candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
        return [(bound, act, branches) for bound, _, act, branches in candidates]

    def _bound(self, node: Node) -> float:
        if node.turns_left == 0 or self.world.is_over(node.state):
            return self._expected(self._rating, node)
        return self._expected(self._ceiling, node)

    def _expected(self, function: Callable[[int, State], float], node: Node) -> float:
        indices, probabilities = node.belief
        state = node.state
        return sum(p * function(i, state) for i, p in zip(indices, probabilities, strict=True))

    def _rating(self, index: int, state: State) -> float:
        key = (index, state)
        rating = self._ratings.get(key)
        if rating is None:
            rating = self._ratings[key] = self.world.rating(self.personas[index], state)
        return rating

    def _ceiling(self, index: int, state: State) -> float:
        if self.world.ceiling is None:
            return self.world.task.reward_range[1]
        key = (index, state)
        ceiling = self._ceilings.get(key)
        if ceiling is None:
            ceiling = self._ceilings[key] = self.world.ceiling(self.personas[index], state)
        return ceiling


def _split(belief: Belief, likelihoods: list[Mapping[Reply, float]]):
    """Each reply that may come, with its probability and the belief after it."""
    joint: dict[Reply, tuple[list[int], list[float]]] = {}
    for index, prior, likelihood in zip(*belief, likelihoods, strict=True):
        for reply, probability in likelihood.items():
            if probability > 0.0:
                indices, weights = joint.setdefault(reply, ([], []))
                indices.append(index)
                weights.append(prior * probability)
    result = []
    for reply, (indices, weights) in joint.items():
        total = sum(weights)
        # Rounded, so that beliefs reached by different orders of evidence are one entry.
        posterior = tuple(round(weight / total, 12) for weight in weights)
        result.append((reply, total, (tuple(indices), posterior)))
    return result


def _posterior(belief: Belief, likelihoods: list[Mapping[Reply, float]], reply: Reply) -> Belief:
    for heard, _, posterior in _split(belief, likelihoods):
        if heard == reply:
            return posterior
    return belief


@functools.cache
def optimal_value(world: World, population: str = "average") -> float:
    """Expected rating of the policy that is Bayes-optimal under this population's own prior."""
    return Planner(world, population).value()


def uniform_policy(world: World) -> Policy:
    """Every act equally likely in every turn."""
    probabilities = dict.fromkeys(world.acts, 1.0 / len(world.acts))
    return lambda state: probabilities


def persona_values(world: World, policy: Policy, listens: bool = True) -> np.ndarray:
    """Exact expected rating of a policy for each persona, in the order of `world.prior`.

    Args:
        world: The world.
        policy: State -> probabilities of the acts.
        listens: False for a policy that chooses by the situation alone, which is much faster.

    Returns:
        Float64 [personas].
    """
    steps = _steps(world)
    seen = (lambda state: state) if listens else world.situation
    layer: dict[State, _Mass] = {}
    ended: dict[State, _Mass] = {}
    for reply, mass in _stacked([world.opening(persona) for persona in world.prior]):
        _add(layer, seen(world.begin(reply)), mass)
    for _ in range(world.task.max_turns - 1):
        following: dict[State, _Mass] = {}
        for state, mass in layer.items():
            situation = world.situation(state) if listens else state
            if world.is_over(situation):
                _add(ended, situation, mass)
                continue
            for act, chosen in _choices(policy, state, mass):
                for reply, after, is_over, share in steps.after(situation, chosen, act):
                    if is_over:
                        _add(ended, after, share)
                    else:
                        next_state = world.advance(state, act, reply) if listens else after
                        _add(following, next_state, share)
        layer = following
    # What was merely heard matters no more after the last choice: as one, it is much less.
    last: dict[tuple[State, Act], _Mass] = {}
    for state, mass in layer.items():
        situation = world.situation(state)
        if world.is_over(situation):
            _add(ended, situation, mass)
            continue
        for act, chosen in _choices(policy, state, mass):
            _add(last, (situation, act), chosen)
    for (situation, act), mass in last.items():
        for _, after, _, share in steps.after(situation, mass, act):
            _add(ended, after, share)
    return sum(steps.worth(situation, mass) for situation, mass in ended.items())


def _choices(policy: Policy, state: State, mass: _Mass) -> Iterator[tuple[Act, _Mass]]:
    for act, probability in policy(state).items():
        if probability > 0.0:
            yield act, (mass[0], probability * mass[1])


def blind_value(world: World, population: str = "average", width: int = 30) -> float:
    """Expected rating of a good fixed sequence of acts, that of an agent that hears nothing.

    Args:
        world: The world.
        population: `"average"` or `"difficult"`.
        width: Sequences kept from one turn to the next (beam search).

    Returns:
        The best value found: exact for its sequence, a lower bound on that of the best one.
    """
    probabilities = world.population(population)
    prior = np.array([probabilities.get(persona, 0.0) for persona in world.prior])
    steps = _steps(world)
    start: dict[State, _Mass] = {}
    for reply, (support, mass) in _stacked([world.opening(persona) for persona in world.prior]):
        _add(start, world.situation(world.begin(reply)), (support, mass * prior))
    beam, best = [start], 0.0
    for _ in range(world.task.max_turns):
        grown = []
        for layer in beam:
            for act in world.acts:
                following: dict[State, _Mass] = {}
                for state, mass in layer.items():
                    if world.is_over(state):
                        _add(following, state, mass)
                        continue
                    for _, after, _, share in steps.after(state, mass, act):
                        _add(following, after, share)
                worth = sum(steps.worth(s, mass).sum() for s, mass in following.items())
                grown.append((float(worth), following))
        grown.sort(key=lambda item: item[0], reverse=True)
        beam = [layer for _, layer in grown[:width]]
        best = max(best, grown[0][0])
    return best


# Probability mass of each persona, and the set of those with any (as bits: a quick look saves
# most of the products).
_Mass = tuple[int, np.ndarray]


class _Steps:
    """Replies, next situations and ratings of a world for all personas at once.

    They depend on the situation alone, of which there are few: each is worked out once, for all
    policies.
    """

    def __init__(self, world: World):
        self._world = world
        self._personas = tuple(world.prior)
        self._tables: dict[tuple[State, Act | None], list[tuple[Reply, _Mass]]] = {}
        # Situation -> act -> its table, and after each reply that came up: situation, is it over.
        self._known: dict[State, dict[Act | None, tuple[list, dict]]] = {}
        self._ratings: dict[State, np.ndarray] = {}

    def after(
        self, situation: State, mass: _Mass, act: Act | None
    ) -> Iterator[tuple[Reply, State, bool, _Mass]]:
        """Replies that may follow, the situation after each, if it is over, and the mass there."""
        known = self._known.setdefault(situation, {})
        if act not in known:
            known[act] = self._table(situation, act), {}
        table, situations = known[act]
        for reply, (speakers, likelihood) in table:
            if both := mass[0] & speakers:
                after = situations.get(reply)
                if after is None:
                    after = self._world.situation(self._world.advance(situation, act, reply))
                    after = situations[reply] = after, bool(self._world.is_over(after))
                yield reply, *after, (both, likelihood * mass[1])

    def worth(self, situation: State, mass: _Mass) -> np.ndarray:
        """Mass of each persona times its rating; personas that never come here are not rated."""
        present = np.flatnonzero(mass[1])
        ratings = self._ratings.get(situation)
        if ratings is None:
            ratings = self._ratings[situation] = np.full(len(self._personas), np.nan)
        for index in present[np.isnan(ratings[present])].tolist():
            ratings[index] = self._world.rating(self._personas[index], situation)
        worth = np.zeros(len(self._personas))
        worth[present] = mass[1][present] * ratings[present]
        return worth

    def _table(self, situation: State, act: Act | None) -> list[tuple[Reply, _Mass]]:
        mood = (self._world.mood_for(situation, act), act)
        if mood not in self._tables:
            rows = [self._world.replies_in(persona, *mood) for persona in self._personas]
            self._tables[mood] = _stacked(rows)
        return self._tables[mood]


@functools.cache
def _steps(world: World) -> _Steps:
    return _Steps(world)


def _stacked(rows: list[Mapping[Reply, float]]) -> list[tuple[Reply, _Mass]]:
    columns: dict[Reply, np.ndarray] = {}
    for index, row in enumerate(rows):
        for reply, probability in row.items():
            columns.setdefault(reply, np.zeros(len(rows)))[index] = probability
    return [
        (reply, (sum(1 << int(i) for i in np.flatnonzero(column)), column))
        for reply, column in columns.items()
    ]


def _add(layer: dict[Hashable, _Mass], state: Hashable, mass: _Mass) -> None:
    if state in layer:
        support, sum_of_mass = layer[state]
        mass = (support | mass[0], sum_of_mass + mass[1])
    layer[state] = mass


@functools.cache
def _persona_values(world: World, behaviour: str | None) -> np.ndarray:
    if behaviour is None:
        return persona_values(world, uniform_policy(world), listens=False)
    chosen = world.behaviours[behaviour]
    return persona_values(world, chosen.choose, chosen.listens)


def policy_value(world: World, behaviour: str | None, population: str = "average") -> float:
    """Exact expected rating of a behaviour by name; None is the uniform policy."""
    weights = world.population(population)
    prior = np.array([weights.get(persona, 0.0) for persona in world.prior])
    return float(prior @ _persona_values(world, behaviour))


@functools.cache
def _reference_values(world: World, population: str) -> tuple[tuple[str, float], ...]:
    values = {name: policy_value(world, name, population) for name in world.behaviours}
    mean = sum(each.share * values[name] for name, each in world.behaviours.items())
    return (
        ("behaviour", mean),
        ("best_behaviour", max(values.values())),
        ("optimum", optimal_value(world, population)),
        ("uniform", policy_value(world, None, population)),
    )


def reference_values(world: World, population: str = "average") -> dict[str, float]:
    """The exact values that scores are read against.

    Args:
        world: The world.
        population: `"average"` or `"difficult"`.

    Returns:
        `behaviour` (mean over the mixture that writes the data: normalized score 0),
        `best_behaviour`, `optimum` (normalized score 1; Bayes-optimal under this population's
        own prior, so the difficult one's knows that it meets difficult humans), `uniform`.
    """
    return dict(_reference_values(world, population))


def normalized_score(
    reward: float | Float[np.ndarray, "*shape"], references: Mapping[str, float]
) -> float | Float[np.ndarray, "*shape"]:
    """Scales a reward so that the mean of the behaviour is 0 and the optimum is 1.

    Args:
        reward: A mean reward, or an array of rewards.
        references: Mean rewards of the `behaviour` in the data and of the `optimum`.

    Returns:
        The score, without unit, in the shape of `reward`; outside [0, 1] for worse than the data.

    Raises:
        ValueError: The optimum is not above the behaviour.
    """
    behaviour, optimum = references["behaviour"], references["optimum"]
    if not optimum > behaviour:
        raise ValueError(
            f"The optimum ({optimum}) must lie above the behaviour ({behaviour}); a world in which "
            "the data is optimal already has no normalized score."
        )
    return (reward - behaviour) / (optimum - behaviour)
