"""A maze in words, where one step of improvement is not enough: values have to be stitched.

python experiments/maze.py
python experiments/maze.py --seeds=1 --methods=bc,ilql,qsft --workdir=runs/maze1

The example of an environment that is no dialogue, in the spirit of LMRL-Gym's maze (Abdulhai et
al., 2023). Two kinds of poor players walk to the goal, and every step costs 1. The careful ones go
round the wall, a long way, and err now and then. The bold ones take the short way through the mist,
and lose themselves in it. So whoever went into the mist came home late, and the returns say that
the way round is better: cloning, filtering and Monte-Carlo values all take it. But each step
through the mist was taken by somebody, and bootstrapped values put them together.

Scores are normalized by exact values: 0 = the mean of the players, 1 = the optimum. Ends with a
table, `maze.png`, `maze.md` and `maze.json`; a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments import in_environment
from experiments.in_environment import EnvironmentTask
from ilql_jax import Trajectory
from ilql_jax.environment import ScriptedPlayer, Step

# S = where walks begin, G = goal, # = wall, ~ = mist, through which one sees as little as elsewhere
PLAN = (
    ".....",
    ".###.",
    ".###.",
    ".###.",
    "S###.",
    "S~~~G",
    "S###.",
    ".###.",
    ".###.",
    ".###.",
    ".....",
)
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
ROWS, COLUMNS = "ABCDEFGHIJK", "12345"
WORDS = (".", *MOVES, *ROWS, *COLUMNS)
STOP = WORDS.index(".")
SLIPS = 0.15  # probability that a player goes anywhere
MOST_STEPS = 100

Cell = tuple[int, int]
Walk = Callable[[Cell], Mapping[str, float]]  # cell -> probability of each move


def cells(plan: Sequence[str], signs: str) -> tuple[Cell, ...]:
    """Cells of a plan that have one of these signs."""
    return tuple((r, c) for r, row in enumerate(plan) for c, x in enumerate(row) if x in signs)


FREE, STARTS, MIST, (GOAL,) = (cells(PLAN, signs) for signs in (".S~G", "S", "~", "G"))
MIDDLE = GOAL[0]


# --- the maze -----------------------------------------------------------------------------------


class Maze:
    """A walk to the goal; an action is a word of `MOVES` and the stop token."""

    def reset(self, seed: int) -> list[int]:
        self.at = STARTS[np.random.default_rng(seed).integers(len(STARTS))]
        return _seen(self.at)

    def step(self, action: np.ndarray) -> Step:
        word, *rest = (WORDS[token] for token in action)
        if word in MOVES and rest == ["."]:  # anything else is a step that leads nowhere
            self.at = moved(self.at, word)
        return Step(observation=_seen(self.at), reward=-1.0, terminated=self.at == GOAL)


def moved(cell: Cell, move: str, free: Collection[Cell] = FREE) -> Cell:
    """The cell after a move; walls stay where they are."""
    row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
    return (row, column) if (row, column) in free else cell


def _seen(cell: Cell) -> list[int]:
    return [WORDS.index(ROWS[cell[0]]), WORDS.index(COLUMNS[cell[1]])]


# --- its players --------------------------------------------------------------------------------


def careful(cell: Cell) -> dict[str, float]:
    """Goes round, either way; out of the mist to the right."""
    row, column = cell
    if row == MIDDLE:
        ways = ("up", "down") if column == 0 else ("right",)
    elif column == 0 and 0 < row < len(PLAN) - 1:
        ways = ("up",) if row < MIDDLE else ("down",)
    elif column == GOAL[1]:
        ways = ("down",) if row < MIDDLE else ("up",)
    else:
        ways = ("right",)
    return _with_slips(*ways)


def bold(cell: Cell) -> dict[str, float]:
    """Goes into the mist, and anywhere in it."""
    row, column = cell
    if cell in MIST:
        return dict.fromkeys(MOVES, 1 / len(MOVES))
    if column == 0:
        way = "right" if row == MIDDLE else "down" if row < MIDDLE else "up"
        return _with_slips(way)
    return careful(cell)


def _with_slips(*ways: str) -> dict[str, float]:
    return {move: SLIPS / len(MOVES) + (1 - SLIPS) * (move in ways) / len(ways) for move in MOVES}


PLAYERS: dict[Walk, float] = {careful: 0.75, bold: 0.25}  # share of the walks


def walks(count: int, seed: int) -> list[Trajectory]:
    """Walks of the players; those that took too long are cut off."""
    players = [
        (ScriptedPlayer(choose=_rule(walk), max_context=2), round(share * count))
        for walk, share in PLAYERS.items()
    ]
    return in_environment.episodes_of(players, Maze, seed, MOST_STEPS)


def _rule(walk: Walk) -> Callable:
    def choose(context: np.ndarray, rng: np.random.Generator) -> list[int]:
        row, column = (WORDS[token] for token in context[-2:])
        odds = walk((ROWS.index(row), COLUMNS.index(column)))
        return [WORDS.index(rng.choice(list(odds), p=list(odds.values()))), STOP]

    return choose


# --- exact values -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class References:
    """Expected returns from the starts, undiscounted.

    Attributes:
        behaviour: Mean of the data's players.
        optimum: Return of the shortest way.
        one_step: Return of the best move by the players' exact Q (what Monte-Carlo values at their
            best come to).
    """

    behaviour: float
    optimum: float
    one_step: float


def references() -> References:
    """Solves the maze, and its players, exactly."""
    leads_to = np.array([[FREE.index(moved(c, move)) for move in MOVES] for c in FREE])
    starts = [FREE.index(cell) for cell in STARTS]
    odds = [np.array([list(walk(cell).values()) for cell in FREE]) for walk in PLAYERS]
    values = [_values(each, leads_to) for each in odds]
    shares = list(PLAYERS.values())
    visits = [s * _visits(o, leads_to, starts) for s, o in zip(shares, odds, strict=True)]
    # Who took a move, and what came of it: the mixture's Q.
    weights = [v[:, None] * p for v, p in zip(visits, odds, strict=True)]
    returns = [-1 + v[leads_to] for v in values]
    q = sum(w * r for w, r in zip(weights, returns, strict=True)) / sum(weights)
    best = np.zeros(len(FREE))
    for _ in FREE:  # no shortest way is longer than there are cells
        best = np.where(np.arange(len(FREE)) == FREE.index(GOAL), 0, (-1 + best[leads_to]).max(1))
    improved = _values(np.eye(len(MOVES))[q.argmax(1)], leads_to)
    return References(
        behaviour=float(np.dot(shares, [v[starts].mean() for v in values])),
        optimum=float(best[starts].mean()),
        one_step=float(improved[starts].mean()),
    )


def _transitions(odds: Float[np.ndarray, "cells moves"], leads_to: np.ndarray) -> np.ndarray:
    """[cells, cells] of a walk, without the goal's row and column (where it ends)."""
    matrix = np.zeros((len(FREE), len(FREE)))
    for move in range(len(MOVES)):
        np.add.at(matrix, (np.arange(len(FREE)), leads_to[:, move]), odds[:, move])
    goal = FREE.index(GOAL)
    return np.delete(np.delete(matrix, goal, 0), goal, 1)


def _values(odds: Float[np.ndarray, "cells moves"], leads_to: np.ndarray) -> np.ndarray:
    """Expected return from each cell; minus infinity is a singular matrix."""
    inner = _transitions(odds, leads_to)
    solved = np.linalg.solve(np.eye(len(inner)) - inner, -np.ones(len(inner)))
    return np.insert(solved, FREE.index(GOAL), 0.0)


def _visits(
    odds: Float[np.ndarray, "cells moves"], leads_to: np.ndarray, starts: list[int]
) -> np.ndarray:
    """Expected visits of each cell in a walk."""
    inner = _transitions(odds, leads_to)
    goal = FREE.index(GOAL)
    begin = np.delete(np.bincount(starts, minlength=len(FREE)) / len(starts), goal)
    return np.insert(np.linalg.solve((np.eye(len(inner)) - inner).T, begin), goal, 1e-9)


# --- the experiment -----------------------------------------------------------------------------


def task() -> EnvironmentTask:
    exact = references()
    return EnvironmentTask(
        name="maze",
        title="maze in words",
        make_environment=Maze,
        data=walks,
        words=WORDS,
        stop_token=STOP,
        max_turns=MOST_STEPS,
        behaviour=exact.behaviour,
        optimum=exact.optimum,
        others={"one step by exact values": exact.one_step},
    )


def main() -> None:
    in_environment.main(task(), __doc__)


if __name__ == "__main__":
    main()
