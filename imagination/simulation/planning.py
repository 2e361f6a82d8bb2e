"""Exact values of a world: the optimum, any behaviour, the uniform policy.

The optimum is Bayes-optimal: it knows the population's prior, not the persona, and is found by
dynamic programming over (turns left, state, belief). The search looks at an act only while a
bound on its value, full knowledge of the persona from there on, exceeds the best act found; what
it returns is exact. Behaviours see the public state only, so their value follows by pushing the
probability of every state forward, all personas at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from imagination.simulation.world import Act, Reply, State, World

# Belief: indices of the personas that are still possible, and their probabilities.
Belief = tuple[tuple[int, ...], tuple[float, ...]]
Policy = Callable[[State], Mapping[Act, float]]

_TINY = 1e-12


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
        self._solved: dict[tuple[int, State, Belief], tuple[float, Act | None]] = {}
        self._ratings: dict[tuple[int, State], float] = {}
        self._ceilings: dict[tuple[int, State], float] = {}

    def value(self) -> float:
        """Expected rating of the optimal policy."""
        likelihoods = [self.world.opening(persona) for persona in self.personas]
        return sum(
            probability * self._value(self.world.task.max_turns, self._begin(reply), belief)
            for reply, probability, belief in _split(self._prior, likelihoods)
        )

    def best_act(self, turns_left: int, state: State, belief: Belief) -> Act | None:
        """An optimal act; among equals, the one that is worth most if all ended after it."""
        return self._solve(turns_left, self.world.situation(state), belief)[1]

    def opened(self, reply: Reply) -> Belief:
        """The belief after the opening."""
        likelihoods = [self.world.opening(persona) for persona in self.personas]
        return _posterior(self._prior, likelihoods, reply)

    def updated(self, belief: Belief, state: State, act: Act | None, reply: Reply) -> Belief:
        """The belief after this reply; unchanged by a reply that nobody could have given."""
        return _posterior(belief, self._likelihoods(belief, state, act), reply)

    def _begin(self, reply: Reply) -> State:
        return self.world.situation(self.world.begin(reply))

    def _likelihoods(self, belief: Belief, state: State, act: Act | None):
        return [self.world.replies_to(self.personas[index], state, act) for index in belief[0]]

    def _value(self, turns_left: int, state: State, belief: Belief) -> float:
        if turns_left == 0 or self.world.is_over(state):
            return self._expected(self._rating, state, belief)
        return self._solve(turns_left, state, belief)[0]

    def _solve(self, turns_left: int, state: State, belief: Belief) -> tuple[float, Act | None]:
        key = (turns_left, state, belief)
        found = self._solved.get(key)
        if found is not None:
            return found
        candidates = []
        for act in self.acts:
            bound = promise = 0.0
            branches = []
            likelihoods = self._likelihoods(belief, state, act)
            for reply, probability, posterior in _split(belief, likelihoods):
                after = self.world.situation(self.world.advance(state, act, reply))
                branches.append((probability, after, posterior))
                bound += probability * self._bound(turns_left - 1, after, posterior)
                promise += probability * self._expected(self._rating, after, posterior)
            candidates.append((bound, promise, act, branches))
        # Most promising first: what comes later is then mostly bounded away.
        candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
        best, best_act = -np.inf, None
        for bound, _, act, branches in candidates:
            if bound <= best + _TINY:
                break
            value = sum(p * self._value(turns_left - 1, after, b) for p, after, b in branches)
            if value > best + _TINY:
                best, best_act = value, act
        self._solved[key] = (best, best_act)
        return best, best_act

    def _bound(self, turns_left: int, state: State, belief: Belief) -> float:
        if turns_left == 0 or self.world.is_over(state):
            return self._expected(self._rating, state, belief)
        return self._expected(self._ceiling, state, belief)

    def _expected(self, function: Callable[[int, State], float], state: State, belief: Belief):
        indices, probabilities = belief
        return sum(
            p * function(index, state) for index, p in zip(indices, probabilities, strict=True)
        )

    def _rating(self, index: int, state: State) -> float:
        key = (index, state)
        found = self._ratings.get(key)
        if found is None:
            found = self._ratings[key] = self.world.rating(self.personas[index], state)
        return found

    def _ceiling(self, index: int, state: State) -> float:
        if self.world.ceiling is None:
            return self.world.task.reward_range[1]
        key = (index, state)
        found = self._ceilings.get(key)
        if found is None:
            found = self._ceilings[key] = self.world.ceiling(self.personas[index], state)
        return found


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


def optimal_value(world: World, population: str = "average") -> float:
    """Expected rating of the policy that is Bayes-optimal under this population's own prior."""
    return Planner(world, population).value()


def uniform_policy(world: World) -> Policy:
    """Every act equally likely in every turn."""
    probabilities = dict.fromkeys(world.acts, 1.0 / len(world.acts))
    return lambda state: probabilities


def persona_values(world: World, policy: Policy, hears: bool = True) -> np.ndarray:
    """Exact expected rating of a policy for each persona, in the order of `world.prior`.

    Args:
        world: The world.
        policy: State -> probabilities of the acts.
        hears: False for a policy that chooses by the situation alone, which is much faster.

    Returns:
        Float64 [personas].
    """
    personas = tuple(world.prior)
    tables = _ReplyTables(world, personas)
    known = (lambda state: state) if hears else world.situation
    values = np.zeros(len(personas))
    layer: dict[State, _Mass] = {}
    for reply, mass in _stacked([world.opening(persona) for persona in personas]):
        _add(layer, known(world.begin(reply)), *mass)
    for turn in range(world.task.max_turns + 1):
        following: dict[State, _Mass] = {}
        for state, (support, mass) in layer.items():
            if turn == world.task.max_turns or world.is_over(state):
                for index in np.flatnonzero(mass):
                    values[index] += mass[index] * world.rating(personas[index], state)
                continue
            situation = world.situation(state)
            for act, probability in policy(state).items():
                if probability <= 0.0:
                    continue
                for reply, (speakers, likelihood) in tables.get(situation, act):
                    if both := support & speakers:
                        after = known(world.advance(state, act, reply))
                        _add(following, after, both, probability * likelihood * mass)
        layer = following
    return values


# Probability mass of each persona, and the set of those with any (as bits: a quick look saves
# most of the products).
_Mass = tuple[int, np.ndarray]


class _ReplyTables:
    """Probability of each reply for all personas at once, by situation and act."""

    def __init__(self, world: World, personas: tuple):
        self._world, self._personas = world, personas
        self._tables: dict[tuple[State, Act | None], list[tuple[Reply, _Mass]]] = {}

    def get(self, situation: State, act: Act | None) -> list[tuple[Reply, _Mass]]:
        key = (situation, act)
        if key not in self._tables:
            rows = [self._world.reply(persona, situation, act) for persona in self._personas]
            self._tables[key] = _stacked(rows)
        return self._tables[key]


def _stacked(rows: list[Mapping[Reply, float]]) -> list[tuple[Reply, _Mass]]:
    columns: dict[Reply, np.ndarray] = {}
    for index, row in enumerate(rows):
        for reply, probability in row.items():
            columns.setdefault(reply, np.zeros(len(rows)))[index] = probability
    return [
        (reply, (sum(1 << int(i) for i in np.flatnonzero(column)), column))
        for reply, column in columns.items()
    ]


def _add(layer: dict[State, _Mass], state: State, support: int, mass: np.ndarray) -> None:
    if state in layer:
        other_support, other = layer[state]
        layer[state] = (support | other_support, mass + other)
    else:
        layer[state] = (support, mass)


@functools.cache
def _persona_values(world: World, behaviour: str | None) -> np.ndarray:
    if behaviour is None:
        return persona_values(world, uniform_policy(world), hears=False)
    return persona_values(world, world.behaviours[behaviour].choose)


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


def normalized_score(value: float, references: Mapping[str, float]) -> float:
    """0 at the behaviour in the data, 1 at the optimum."""
    behaviour, optimum = references["behaviour"], references["optimum"]
    return (value - behaviour) / (optimum - behaviour)
