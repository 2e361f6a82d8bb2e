"""Open-loop tree search over dialogue acts: GDP-ZERO (Yu et al. 2023, arXiv 2305.13660).

The search alone: a `Game` says how likely an act is, what follows from it and what a state is
worth. `prompted.py` has the game in which an LLM answers these questions.

Open loop: a node is the sequence of acts that led to it, not the words. It holds up to
`max_realizations` realizations of these acts in words.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from ilql_jax.settings import Settings, setting

State = TypeVar("State")


class Game(Protocol[State]):
    """Answers the questions of the search."""

    async def prior(self, state: State) -> Mapping[str, float]:
        """Probability of each act in a state."""
        ...

    async def step(self, state: State, act: str) -> State:
        """A state that an act leads to; another call may give another one."""
        ...

    async def value(self, state: State) -> float:
        """Expected end of a state, from -1 (worst) to 1 (best)."""
        ...

    def is_over(self, state: State) -> bool: ...


@dataclasses.dataclass(frozen=True)
class SearchConfig(Settings):
    """Settings of the search: by default fewer walks and estimates than in the published code.

    Raises:
        SettingError: A value out of bounds.
    """

    simulations: int = setting(
        "Walks down the tree per turn (published code: 20).", 10, least=1, most=10_000
    )
    c_puct: float = setting("Weight of the prior against the values.", 1.0, least=0)
    q_0: float = setting(
        "Value of an act never tried, from -1 to 1; 0 is neither good nor bad.",
        0.0,
        least=-1,
        most=1,
    )
    max_realizations: int = setting(
        "Realizations in words kept for a sequence of acts, then drawn from again.", 3, least=1
    )
    value_samples: int = setting(
        "Estimates averaged for the value of a state (published code: 10).", 1, least=1, most=1000
    )


@dataclasses.dataclass
class Realization(Generic[State]):
    """A sequence of acts in words, with the mean of the values that were backed up through it."""

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
        state: State to search from; not over.
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

        def upper_bound(act: str) -> float:
            bonus = node.prior[act] * spread / (1 + node.visits[act])
            return node.values[act] + self._config.c_puct * bonus

        return max(node.prior, key=upper_bound)

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
