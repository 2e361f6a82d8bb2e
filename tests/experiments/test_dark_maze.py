"""The maze in the dark: its exact values, its players, and the experiment at tiny size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from experiments import dark_maze, in_environment
from experiments.dark_maze import GOAL, STARTS, WORDS, DarkMaze, DarkMazeConfig
from experiments.maze import MOVES


def said(word: str) -> np.ndarray:
    return np.int32([WORDS.index(word), dark_maze.STOP])


def test_the_walls_nearby_are_seen_and_no_more():
    maze = DarkMaze()
    maze.at = (0, 3)
    for word, shown in {
        "up": "here, wall up",
        "left": "here, wall up, wall down",
        "goal": "here, wall up, wall down",  # no move: a step that leads nowhere
        "right": "here, wall up",
        "down": "here, wall left, wall right",
    }.items():
        step = maze.step(said(word))
        assert ", ".join(WORDS[token] for token in step.observation) == shown
        assert (step.reward, step.terminated) == (-1.0, False)
    maze.at = (2, 3)
    step = maze.step(said("down"))
    assert maze.at == GOAL and (step.reward, step.terminated) == (-1.0, True)
    assert [WORDS[token] for token in step.observation] == ["goal"]


def test_exact_values_of_the_players_are_those_of_many_walks():
    walks = dark_maze.walks(300, seed=3)
    for number, straight in enumerate(dark_maze.PLAYERS):
        returns = np.array([walk.total_reward for walk in walks[150 * number :][:150]])
        error = returns.std() / len(returns) ** 0.5
        assert abs(returns.mean() - dark_maze.player_value(straight)) < 4 * error


def test_a_steady_player_goes_straight_on_until_there_is_a_wall():
    odds = dark_maze.chances(0.8, "left", ["here", "wall up"])
    assert odds == pytest.approx({"up": 0.05, "down": 0.05, "left": 0.85, "right": 0.05})
    for last, walls in (("left", ["wall left"]), (None, [])):
        assert set(dark_maze.chances(0.8, last, walls).values()) == {0.25}


def test_the_optimum_is_the_shortest_way_where_all_places_are_told_apart(monkeypatch):
    ways = {GOAL: 0}
    while len(ways) <= len(STARTS):
        for cell in STARTS:
            near = [ways[to] for move in MOVES if (to := dark_maze.moved(cell, move)) in ways]
            if near and cell not in ways:
                ways[cell] = 1 + min(near)
    shortest = -np.mean([ways[cell] for cell in STARTS])
    in_the_dark = dark_maze.optimum()
    monkeypatch.setattr(dark_maze, "seen", lambda cell: (str(cell),))
    assert dark_maze.optimum() == pytest.approx(shortest)
    assert in_the_dark < shortest - 0.5


def test_the_optimum_in_a_corridor_is_what_one_works_out_by_hand(monkeypatch):
    """Two ends that look alike but for the side of their wall; in between one sees nothing."""
    monkeypatch.setattr(dark_maze, "FREE", (*((0, column) for column in range(4)), (1, 3)))
    monkeypatch.setattr(dark_maze, "GOAL", (0, 0))
    monkeypatch.setattr(dark_maze, "STARTS", ((0, 1), (0, 2)))
    # Both see walls above and below. To the left, one of them is there, the other has one more.
    assert dark_maze.optimum() == pytest.approx(-(1 + 2) / 2)
    monkeypatch.setattr(dark_maze, "GOAL", (1, 3))
    # To the right from either: 3 and 2 steps, the last one down.
    assert dark_maze.optimum() == pytest.approx(-(3 + 2) / 2)


def test_the_same_seed_gives_the_same_walks():
    first, again, other = (dark_maze.walks(7, seed) for seed in (1, 1, 2))
    assert len(first) == 7
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(first, other, strict=True))


def test_it_ends_with_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(in_environment, "VALIDATION_EPISODES", 2)
    tiny = {"episodes": 12, "test_episodes": 2, "steps": 2, "hidden_size": 16, "max_positions": 32}
    config = dataclasses.replace(DarkMazeConfig(), methods=("bc",), seeds=1, **tiny)
    task = dataclasses.replace(dark_maze.task(), max_turns=4)
    in_environment.run(task, config, tmp_path, Console(quiet=True))
    assert "| BC |" in (tmp_path / "dark_maze.md").read_text()
