"""Wordle with 40 words: what is known has to be put together from all that was said.

python experiments/wordle.py
python experiments/wordle.py --methods=fbc,ilql --workdir=runs/wordle2

An environment that is no dialogue and does not show its state, in the spirit of LMRL-Gym's Wordle
(Abdulhai et al., 2023; theirs has 400 words). A guess is spelled letter by letter; each letter is
marked as right, as right elsewhere, or as absent. Every wrong guess costs 1, and after six it is
over. A guess that is no word of the list is wrong and tells nothing. The games that are learned
from are those of players who say a word that fits all marks so far with probability 0.8, 0.3 or
not at all, and any word else.

Scores are normalized by exact values: 0 = the mean of the players, 1 = the optimum. Ends with a
table, `wordle.png`, `wordle.md` and `wordle.json`; a run that was stopped goes on with the same
command.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from experiments import in_environment
from experiments.in_environment import EnvironmentConfig, EnvironmentTask
from ilql_jax import Trajectory
from ilql_jax.environment import ScriptedPlayer, Step
from ilql_jax.settings import setting

_LIST = """
about other which their there first would these click price state email world music after video
where books links years order items group under games could great hotel store terms right local
those using phone forum based black check index
"""
LIST = tuple(_LIST.split())
LENGTH, MOST_GUESSES = 5, 6
ABSENT, ELSEWHERE, RIGHT = "absent", "elsewhere", "right"
BEGIN = "guess"
WORDS = (".", *"abcdefghijklmnopqrstuvwxyz", BEGIN, ABSENT, ELSEWHERE, RIGHT)
STOP = WORDS.index(".")
PLAYERS = (0.0, 0.3, 0.8)  # probability of a guess that fits; a third of the games each

Marks = tuple[str, ...]
Candidates = int  # set of words of the list, a bit each
ALL: Candidates = (1 << len(LIST)) - 1


@dataclasses.dataclass(frozen=True)
class WordleConfig(EnvironmentConfig):
    """Settings for games of some 60 tokens, whose words have to be learned letter by letter."""

    seeds: int = setting("Trainings of each method.", 1, least=1)
    episodes: int = setting("Episodes that are learned from.", 20_000, least=10)
    steps: int = setting("Optimizer steps of a training.", 9000, least=1)
    hidden_size: int = setting("Width of the network.", 64, least=8)
    num_heads: int = setting("Attention heads of the network.", 4, least=1)
    max_positions: int = setting("Longest context, in tokens.", 80, least=8)
    expectile: float = setting(
        "Expectile of V, of methods that have this setting.", 0.8, above=0, below=1
    )
    polyak_rate: float = setting(
        "Share of the new parameters in the target network, a step.", 0.005, above=0, most=1
    )


# --- the game -----------------------------------------------------------------------------------


class Wordle:
    """One word of the list is looked for; an action is five letters and the stop token."""

    def reset(self, seed: int) -> list[int]:
        self.word = LIST[np.random.default_rng(seed).integers(len(LIST))]
        self.guesses = 0
        return [WORDS.index(BEGIN)]

    def step(self, action: np.ndarray) -> Step:
        *letters, last = (WORDS[token] for token in action)
        guess = "".join(letters) if last == "." else ""
        self.guesses += 1
        found = guess == self.word
        marks = marked(guess, self.word) if guess in LIST else (ABSENT,) * LENGTH
        return Step(
            observation=[WORDS.index(mark) for mark in marks],
            reward=0.0 if found else -1.0,
            terminated=found or self.guesses == MOST_GUESSES,
        )


@functools.cache
def marked(guess: str, word: str) -> Marks:
    """A mark for each letter; one that the guess has more often than the word is absent."""
    unmatched = [w for g, w in zip(guess, word, strict=True) if g != w]
    marks = []
    for letter, there in zip(guess, word, strict=True):
        if letter == there:
            marks.append(RIGHT)
        elif letter in unmatched:
            unmatched.remove(letter)
            marks.append(ELSEWHERE)
        else:
            marks.append(ABSENT)
    return tuple(marks)


@functools.cache
def fitting(guess: str, marks: Marks) -> Candidates:
    """Words that would have got these marks."""
    return sum(1 << i for i, word in enumerate(LIST) if marked(guess, word) == marks)


def words_in(candidates: Candidates) -> list[str]:
    return [word for i, word in enumerate(LIST) if candidates >> i & 1]


# --- its players --------------------------------------------------------------------------------


def games(count: int, seed: int) -> list[Trajectory]:
    """Games of the players, as many of each."""
    players = [
        (ScriptedPlayer(choose=_rule(fits)), len(range(number, count, len(PLAYERS))))
        for number, fits in enumerate(PLAYERS)
    ]
    return in_environment.episodes_of(players, Wordle, seed, MOST_GUESSES)


def _rule(fits: float) -> Callable:
    def choose(context: np.ndarray, rng: np.random.Generator) -> list[int]:
        said = words_in(remaining(context)) if rng.random() < fits else LIST
        return [*map(WORDS.index, said[rng.integers(len(said))]), STOP]

    return choose


def remaining(context: Sequence[int]) -> Candidates:
    """Words that fit all that was said in a game of words of the list."""
    candidates = ALL
    said = [WORDS[token] for token in context[1:]]
    for start in range(0, len(said), 2 * LENGTH + 1):  # letters, stop token, marks
        guess, marks = said[start:][:LENGTH], said[start + LENGTH + 1 :][:LENGTH]
        candidates &= fitting("".join(guess), tuple(marks))
    return candidates


# --- exact values -------------------------------------------------------------------------------


@functools.cache
def player_value(fits: float) -> float:
    """Expected return of a player, exact."""

    @functools.cache
    def value(word: str, candidates: Candidates, left: int) -> float:
        if not left:
            return 0.0
        own = words_in(candidates)
        total = 0.0
        for guess in LIST:
            chance = (1 - fits) / len(LIST) + fits * (guess in own) / len(own)
            if chance and guess != word:
                after = candidates & fitting(guess, marked(guess, word))
                total += chance * (value(word, after, left - 1) - 1)
        return total

    return float(np.mean([value(word, ALL, MOST_GUESSES) for word in LIST]))


@functools.cache
def optimum(candidates: Candidates = ALL) -> float:
    """Expected return of the best guesses, exact: it never needs more than there are."""
    own = words_in(candidates)
    if len(own) <= 2:
        return -(len(own) - 1) / 2
    best = -np.inf
    for guess in LIST:
        parts = [candidates & fitting(guess, m) for m in {marked(guess, word) for word in own}]
        if len(parts) > 1 or guess in own:
            found = 1 << LIST.index(guess)
            wrong = sum(len(words_in(p)) * (optimum(p) - 1) for p in parts if p != found)
            best = max(best, wrong / len(own))
    return float(best)


# --- the experiment -----------------------------------------------------------------------------


def task() -> EnvironmentTask:
    return EnvironmentTask(
        name="wordle",
        title="Wordle with 40 words",
        make_environment=Wordle,
        data=games,
        words=WORDS,
        stop_token=STOP,
        max_turns=MOST_GUESSES,
        behaviour=float(np.mean([player_value(fits) for fits in PLAYERS])),
        optimum=optimum(),
        others={"the best of the players": player_value(max(PLAYERS))},
    )


def main() -> None:
    in_environment.main(task(), __doc__, WordleConfig)


if __name__ == "__main__":
    main()
