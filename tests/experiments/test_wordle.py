"""Wordle: its marks, its exact values, its players, and the experiment at tiny size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from experiments import in_environment, wordle
from experiments.wordle import ABSENT, ELSEWHERE, RIGHT, WORDS, Wordle, WordleConfig


def spelled(word: str) -> np.ndarray:
    return np.int32([*map(WORDS.index, word), wordle.STOP])


@pytest.mark.parametrize(
    ("guess", "word", "marks"),
    [
        ("there", "there", (RIGHT,) * 5),
        ("there", "three", (RIGHT, RIGHT, ELSEWHERE, ELSEWHERE, RIGHT)),
        ("eerie", "there", (ELSEWHERE, ABSENT, ELSEWHERE, ABSENT, RIGHT)),  # two e's of three
        ("black", "would", (ABSENT, ELSEWHERE, ABSENT, ABSENT, ABSENT)),
    ],
)
def test_letters_are_marked_as_often_as_the_word_has_them(guess, word, marks):
    assert wordle.marked(guess, word) == marks


def test_a_game_ends_with_the_word_or_after_six_guesses_and_what_is_no_word_tells_nothing():
    game = Wordle()
    game.reset(3)
    for action in (spelled("zzzzz"), np.int32([wordle.STOP]), spelled(game.word)[:-1]):
        step = game.step(action)
        assert (step.reward, step.terminated) == (-1.0, False)
        assert [WORDS[token] for token in step.observation] == [ABSENT] * 5
    found = game.step(spelled(game.word))
    assert (found.reward, found.terminated) == (0.0, True)
    game.reset(3)
    other = next(word for word in wordle.LIST if word != game.word)
    assert [game.step(spelled(other)).terminated for _ in range(6)] == [False] * 5 + [True]


def test_exact_values_of_the_players_are_those_of_many_games():
    returns = np.array([game.total_reward for game in wordle.games(600, seed=3)])
    error = returns.std() / len(returns) ** 0.5
    assert abs(returns.mean() - wordle.task().behaviour) < 4 * error


def test_the_optimum_is_what_its_guesses_come_to_and_needs_no_more_than_there_are():
    """By a tree that takes the best guess in every state, walked for each word."""

    def best_guess(candidates):
        def worth(guess):
            own = wordle.words_in(candidates)
            after = [candidates & wordle.fitting(guess, wordle.marked(guess, w)) for w in own]
            if set(after) == {candidates} and len(own) > 1:
                return -np.inf  # tells nothing
            pairs = zip(own, after, strict=True)
            return sum(0 if w == guess else wordle.optimum(a) - 1 for w, a in pairs)

        return max(wordle.LIST, key=worth)

    wrong = []
    for word in wordle.LIST:
        candidates, guesses = wordle.ALL, []
        while not guesses or guesses[-1] != word:
            guesses.append(best_guess(candidates))
            candidates &= wordle.fitting(guesses[-1], wordle.marked(guesses[-1], word))
        wrong.append(len(guesses) - 1)
    assert -np.mean(wrong) == pytest.approx(wordle.optimum())
    assert max(wrong) < wordle.MOST_GUESSES
    assert wordle.optimum() > wordle.player_value(1.0) > wordle.player_value(0.8)


def test_the_same_seed_gives_the_same_games():
    first, again, other = (wordle.games(7, seed) for seed in (1, 1, 2))
    assert len(first) == 7
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(first, other, strict=True))


def test_it_ends_with_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(in_environment, "VALIDATION_EPISODES", 2)
    tiny = {"episodes": 12, "test_episodes": 2, "steps": 2, "batch_rows": 2, "hidden_size": 16}
    config = dataclasses.replace(WordleConfig(), methods=("fbc",), seeds=1, **tiny)
    in_environment.run(wordle.task(), config, tmp_path, Console(quiet=True))
    page = (tmp_path / "wordle.md").read_text()
    assert "| filtered BC |" in page and "| the best of the players | 0.76 |" in page
