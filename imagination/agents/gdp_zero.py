"""Open-loop tree search over dialogue acts: GDP-ZERO (Yu et al. 2023, arXiv 2305.13660).

Only the search; what a state is, how likely an act is, what follows from it and what it is worth
is asked of a `Game`. `agents.py` has the game in which an LLM answers all of that.

Open loop: a node is the sequence of acts that led to it, not what was said. It holds up to
`max_realizations` ways in which these acts went in words.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

State = TypeVar("State")


class Game(Protocol[State]):
    """What is searched."""

    async def prior(self, state: State) -> Mapping[str, float]:
        """Probability of each act in a state."""
        ...

    async def step(self, state: State, act: str) -> State:
        """What an act led to this time."""
        ...

    async def value(self, state: State) -> float:
        """How well a state will end, from -1 to 1."""
        ...

    def is_over(self, state: State) -> bool: ...


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How long and how boldly to search; fewer walks and estimates than in the published code.

    Attributes:
        simulations: Walks down the tree per turn (published code: 20).
        c_puct: Weight of the prior against the values.
        q_0: Value of an act that was never tried; 0 is neither good nor bad.
        max_realizations: Ways in words kept for a sequence of acts, then drawn from again.
        value_samples: Estimates that a game averages for the value of a state (published code: 10).

    Raises:
        ValueError: A value that cannot be; the message names the field and what it may be.
    """

    simulations: int = 10
    c_puct: float = 1.0
    q_0: float = 0.0
    max_realizations: int = 3
    value_samples: int = 1

    def __post_init__(self) -> None:
        for field in ("simulations", "max_realizations", "value_samples"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                self._refuse(field, "a whole number of at least 1")
        if not 0 <= self.c_puct < math.inf:
            self._refuse("c_puct", "a number of at least 0")
        if not -1 <= self.q_0 <= 1:
            self._refuse("q_0", "a value from -1 to 1")

    def _refuse(self, field: str, expected: str) -> None:
        raise ValueError(f"gdp_zero, {field}: expected {expected}, got {getattr(self, field)!r}")


@dataclasses.dataclass
class Realization(Generic[State]):
    """One way in which a sequence of acts went, with the mean of what came back through it."""

    state: State
    value: float | None = None
    mean: float = 0.0
    visits: int = 0


@dataclasses.dataclass
class Node(Generic[State]):
    """A sequence of acts. `prior` is None until the search goes on from it."""

    realizations: list[Realization[State]]
    prior: Mapping[str, float] | None = None
    visits: dict[str, int] = dataclasses.field(default_factory=dict)
    values: dict[str, float] = dataclasses.field(default_factory=dict)


class OpenLoopSearch(Generic[State]):
    """The tree over one state of a game.

    Args:
        game: Answers for prior, step and value.
        state: Where to search from; not over.
        config: See `SearchConfig`.
        seed: Source of the draws among realizations.
    """

    def __init__(self, game: Game[State], state: State, config: SearchConfig, seed: Any):
        self._game = game
        self._config = config
        self._random = random.Random(str(seed))
        self.nodes: dict[tuple[str, ...], Node[State]] = {(): Node([Realization(state)])}

    @property
    def root(self) -> Node[State]:
        return self.nodes[()]

    async def run(self) -> None:
        """Walks down the tree as often as configured."""
        for _ in range(self._config.simulations):
            await self._simulate()

    async def _simulate(self) -> None:
        path, acts = [], ()
        realization = self.root.realizations[0]
        while True:
            node = self.nodes[acts]
            act = await self._select(node, realization.state)
            acts = (*acts, act)
            is_leaf = acts not in self.nodes
            realization = await self._realize(realization.state, acts)
            path.append((node, act, realization))
            if is_leaf or self._game.is_over(realization.state):
                break
        if realization.value is None:
            realization.value = await self._game.value(realization.state)
        for node, act, passed in path:
            _back_up(node, act, passed, realization.value)

    async def _select(self, node: Node[State], state: State) -> str:
        """The first act of the highest Q(s, a) + c P(s, a) √ΣN(s, ·) / (1 + N(s, a)).

        The prior is asked for when a node is first gone on from: a leaf that is never seen again
        costs no call for it.
        """
        if node.prior is None:
            node.prior = await self._game.prior(state)
            node.visits = dict.fromkeys(node.prior, 0)
            node.values = dict.fromkeys(node.prior, self._config.q_0)
        # Not zero before the first visit, so that the prior already decides then.
        spread = math.sqrt(max(sum(node.visits.values()), 1e-8))

        def score(act: str) -> float:
            bonus = node.prior[act] * spread / (1 + node.visits[act])
            return node.values[act] + self._config.c_puct * bonus

        return max(node.prior, key=score)

    async def _realize(self, state: State, acts: tuple[str, ...]) -> Realization[State]:
        known = self.nodes[acts].realizations if acts in self.nodes else []
        if len(known) >= self._config.max_realizations:
            return self._random.choice(known)
        realization = Realization(await self._game.step(state, acts[-1]))
        self.nodes.setdefault(acts, Node([])).realizations.append(realization)
        return realization

    def best(self) -> tuple[str, State] | None:
        """The act visited most (then: of the highest value) and its realization of highest mean.

        A search that broke off before anything came back gives what it has; None if nothing.
        """
        tried = [act for act in self.root.prior or () if (act,) in self.nodes]
        if not tried:
            return None
        act = max(tried, key=lambda a: (self.root.visits[a], self.root.values[a]))
        best = max(self.nodes[(act,)].realizations, key=lambda r: (r.visits > 0, r.mean))
        return act, best.state


def _back_up(node: Node[State], act: str, passed: Realization[State], value: float) -> None:
    node.visits[act] += 1
    node.values[act] += (value - node.values[act]) / node.visits[act]
    passed.visits += 1
    passed.mean += (value - passed.mean) / passed.visits
