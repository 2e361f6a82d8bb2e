"""A maze in the dark: the walls nearby are all that is seen, and many places look alike.

python experiments/dark_maze.py
python experiments/dark_maze.py --seeds=1 --methods=fbc,ilql --workdir=runs/dark1

Partially observed, in the spirit of LMRL-Gym's maze (Abdulhai et al., 2023): whoever wants to know
where they are has to remember where they came from. The maze is a comb; the goal is at the end of
one of its teeth, and a walk begins anywhere. Every step costs 1. The players of the data see what
the agent sees, and none of them looks for the goal: wanderers go anywhere, steady ones straight on
until there is a wall.

Scores are normalized by exact values: 0 = the mean of the players, 1 = the optimum of those who see
no more than the walls. Ends with a table, `dark_maze.png`, `dark_maze.md` and `dark_maze.json`; a
run that was stopped goes on with the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from experiments import in_environment, maze
from experiments.in_environment import EnvironmentConfig, EnvironmentTask
from experiments.maze import MOVES, Cell
from ilql_jax import Trajectory
from ilql_jax.environment import ScriptedPlayer, Step
from ilql_jax.settings import setting

# G = goal, # = wall; a walk begins at any other cell
PLAN = (
    ".......",
    ".##.##.",
    ".##.##.",
    ".##G##.",
)
WALLS = tuple(f"wall {move}" for move in MOVES)
HERE, ARRIVED = "here", "goal"
WORDS = (".", *MOVES, *WALLS, HERE, ARRIVED)
STOP = WORDS.index(".")
STEADY = 0.9  # probability that a steady player goes straight on
PLAYERS = (0.0, STEADY)  # half of the walks each
MOST_STEPS = 60

Belief = tuple[Cell, ...]  # where one may be: a cell for each beginning that is left, sorted


FREE, STARTS, (GOAL,) = (maze.cells(PLAN, signs) for signs in (".G", ".", "G"))


@dataclasses.dataclass(frozen=True)
class DarkMazeConfig(EnvironmentConfig):
    """Settings for walks whose state has to be remembered."""

    seeds: int = setting("Trainings of each method.", 3, least=1)
    episodes: int = setting("Episodes that are learned from.", 3000, least=10)
    steps: int = setting("Optimizer steps of a training.", 4000, least=1)
    batch_rows: int = setting("Rows of a batch.", 4, least=1)
    hidden_size: int = setting("Width of the network.", 64, least=8)
    num_heads: int = setting("Attention heads of the network.", 4, least=1)
    max_positions: int = setting("Longest context, in tokens.", 256, least=8)
    expectile: float = setting(
        "Expectile of V, of methods that have this setting.", 0.8, above=0, below=1
    )


# --- the maze -----------------------------------------------------------------------------------


class DarkMaze:
    """A walk to the goal; an action is a word of `MOVES` and the stop token."""

    def reset(self, seed: int) -> list[int]:
        self.at = STARTS[np.random.default_rng(seed).integers(len(STARTS))]
        return _tokens(seen(self.at))

    def step(self, action: np.ndarray) -> Step:
        word, *rest = (WORDS[token] for token in action)
        if word in MOVES and rest == ["."]:  # anything else is a step that leads nowhere
            self.at = moved(self.at, word)
        return Step(_tokens(seen(self.at)), reward=-1.0, terminated=self.at == GOAL)


def moved(cell: Cell, move: str) -> Cell:
    """The cell after a move; walls stay where they are."""
    return maze.moved(cell, move, FREE)


def seen(cell: Cell) -> tuple[str, ...]:
    """Words that are shown in a cell."""
    if cell == GOAL:
        return (ARRIVED,)
    return (
        HERE,
        *(wall for move, wall in zip(MOVES, WALLS, strict=True) if moved(cell, move) == cell),
    )


def _tokens(words: Iterable[str]) -> list[int]:
    return [WORDS.index(word) for word in words]


# --- its players --------------------------------------------------------------------------------


def walks(count: int, seed: int) -> list[Trajectory]:
    """Walks of the players, as many of each; those that took too long are cut off."""
    players = [
        (ScriptedPlayer(choose=_rule(straight)), len(range(number, count, len(PLAYERS))))
        for number, straight in enumerate(PLAYERS)
    ]
    return in_environment.episodes_of(players, DarkMaze, seed, MOST_STEPS)


def chances(straight: float, last: str | None, walls: Iterable[str]) -> dict[str, float]:
    """Probability of each move of a player, who has made the last one and sees walls.

    Args:
        straight: Probability of the last move once more, where there is no wall; else any.
        last: The move made last, None at the start.
        walls: Words of `WALLS` that are seen.
    """
    if last is None or WALLS[list(MOVES).index(last)] in walls:
        straight = 0.0
    return {move: (1 - straight) / len(MOVES) + straight * (move == last) for move in MOVES}


def _rule(straight: float) -> Callable:
    def choose(context: np.ndarray, rng: np.random.Generator) -> list[int]:
        words = [WORDS[token] for token in context]
        last = next((word for word in reversed(words) if word in MOVES), None)
        now = words[len(words) - words[::-1].index(HERE) :]
        odds = chances(straight, last, now)
        return [WORDS.index(rng.choice(list(odds), p=list(odds.values()))), STOP]

    return choose


# --- exact values -------------------------------------------------------------------------------


def player_value(straight: float) -> float:
    """Expected return of a player within `MOST_STEPS`, exact."""
    values = {(cell, last): 0.0 for cell in STARTS for last in (None, *MOVES)}
    for _ in range(MOST_STEPS):
        values = {
            (cell, last): sum(
                chance * (values.get((moved(cell, move), move), 0.0) - 1.0)  # 0 at the goal
                for move, chance in chances(straight, last, seen(cell)).items()
            )
            for cell, last in values
        }
    return float(np.mean([values[cell, None] for cell in STARTS]))


def optimum() -> float:
    """Expected return of the best moves by what was seen so far, exact: values of all beliefs."""
    firsts = _told_apart(STARTS)
    outcomes: dict[Belief, list[list[Belief]]] = {}
    found = list(firsts)
    while found:
        belief = found.pop()
        if belief in outcomes:
            continue
        outcomes[belief] = [_told_apart(moved(cell, move) for cell in belief) for move in MOVES]
        found += [after for each in outcomes[belief] for after in each if GOAL not in after]
    values = dict.fromkeys(outcomes, 0.0)
    while True:
        before = values
        values = {
            belief: max(
                -1.0 + sum(len(b) * before.get(b, 0.0) for b in after) / len(belief)
                for after in of_moves
            )
            for belief, of_moves in outcomes.items()
        }
        if all(abs(values[b] - before[b]) < 1e-12 for b in values):
            return sum(len(b) * values[b] for b in firsts) / len(STARTS)


def _told_apart(cells: Iterable[Cell]) -> list[Belief]:
    """Beliefs of those who see where they are, one for each thing that is seen."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(seen(cell), []).append(cell)
    return [tuple(sorted(each)) for each in found.values()]


# --- the experiment -----------------------------------------------------------------------------


def task() -> EnvironmentTask:
    return EnvironmentTask(
        name="dark_maze",
        title="maze in the dark",
        make_environment=DarkMaze,
        data=walks,
        words=WORDS,
        stop_token=STOP,
        max_turns=MOST_STEPS,
        behaviour=float(np.mean([player_value(straight) for straight in PLAYERS])),
        optimum=optimum(),
    )


def main() -> None:
    in_environment.main(task(), __doc__, DarkMazeConfig)


if __name__ == "__main__":
    main()
