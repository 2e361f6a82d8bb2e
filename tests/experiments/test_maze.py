"""The maze: its exact values, its players, and the experiment from data to table at tiny size."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from experiments import in_environment, maze, provenance
from experiments.in_environment import EnvironmentConfig
from experiments.run_folder import RunError
from ilql_jax.methods import METHODS, MethodError
from ilql_jax.settings import SettingError

TINY = EnvironmentConfig(
    methods=("bc", "fbc"),
    seeds=1,
    episodes=16,
    test_episodes=4,
    steps=2,
    batch_rows=2,
    hidden_size=16,
)


def test_exact_values_are_those_of_many_walks():
    returns = np.array([walk.total_reward for walk in maze.walks(400, seed=3)])
    error = returns.std() / len(returns) ** 0.5
    assert abs(returns.mean() - maze.references().behaviour) < 4 * error + 0.5  # some are cut off


def test_the_optimum_is_the_length_of_the_shortest_way():
    lengths, border = {maze.GOAL: 0}, collections.deque([maze.GOAL])
    while border:
        cell = border.popleft()
        for move in maze.MOVES:  # all moves can be taken back
            if (after := maze.moved(cell, move)) not in lengths:
                lengths[after] = lengths[cell] + 1
                border.append(after)
    shortest = np.mean([lengths[start] for start in maze.STARTS])
    assert maze.references().optimum == pytest.approx(-shortest)


def test_one_step_of_improvement_is_not_enough():
    score = maze.task().score(maze.references().one_step)
    assert 0.2 < score < 0.6


def test_walls_stay_and_what_is_no_move_costs_a_step():
    environment = maze.Maze()
    environment.reset(0)
    environment.at = (0, 0)
    word = maze.WORDS.index
    for action in (["up", "."], ["left", "."], ["down", "down"], ["A", "."], ["."]):
        step = environment.step(np.int32([word(each) for each in action]))
        assert step.reward == -1 and not step.terminated
        assert list(step.observation) == [word("A"), word("1")]
    environment.at = (maze.MIDDLE, 3)
    assert environment.step(np.int32([word("right"), maze.STOP])).terminated


def test_the_same_seed_gives_the_same_walks():
    first, again, other = (maze.walks(8, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert any(len(a.tokens) != len(b.tokens) for a, b in zip(first, other, strict=True))


# Agents that have hardly learned anything would walk for as long as they may.
SHORT = dataclasses.replace(maze.task(), max_turns=4)


@pytest.fixture(scope="module", autouse=True)
def few_episodes():
    """To choose a decoding by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_environment, "VALIDATION_EPISODES", 4)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("maze")
    in_environment.run(SHORT, TINY, home, Console(quiet=True))
    return home


def test_it_ends_with_table_figure_and_results(finished):
    found = json.loads((finished / "maze.json").read_text())
    assert set(found["methods"]) == {"bc", "fbc"}
    assert len(found["methods"]["fbc"]["trainings"]) == 1
    page = (finished / "maze.md").read_text()
    assert (
        "| filtered BC |" in page
        and "| one step by exact values |" in page
        and "p_holm speaks of other episodes" in page
        and "one training of each, intervals cover other episodes alone, and nothing is" in page
    )
    assert (finished / "maze.png").read_bytes().startswith(b"\x89PNG")


def test_it_ends_with_what_made_it(finished, tmp_path):
    home = tmp_path / "maze"
    shutil.copytree(finished, home)
    made = json.loads((home / "maze.json").read_text())["sessions"]
    assert [each["stage"] for each in made] == ["bc", "fbc"]
    page = (home / "maze.md").read_text()
    said = page.partition("Made with:\n\n- `python ")[2]
    assert f"` with commit {provenance.commit()}, Python 3" in said and "; bc " in said
    # Trainings of before this was kept stay as they are, and so do later ones.
    kept = json.loads((home / "bc-seed0.json").read_text())
    del kept["session"]
    (home / "bc-seed0.json").write_text(json.dumps(kept))
    in_environment.run(SHORT, TINY, home, Console(quiet=True))
    found = json.loads((home / "maze.json").read_text())
    assert (
        found["sessions"] == made[1:] and json.loads((home / "bc-seed0.json").read_text()) == kept
    )
    assert (
        page.partition("Made with")[0] == (home / "maze.md").read_text().partition("Made with")[0]
    )


def compared(gains: dict[str, float], walks: int = 20):
    walked = [-9.0, -8.0, -9.5, -8.5] * (walks // 4)
    results = [
        in_environment.Result(name, ["greedy"] * 2, [[each + gain for each in walked]] * 2)
        for name, gain in gains.items()
    ]
    return in_environment.summary(SHORT, results, seed=0)


def test_tests_are_over_trainings_too_where_there_are_several():
    found = compared({"bc": 0.0, "ilql": 3.0})
    assert found["tests"][0]["p_training_holm"] is not None
    said = in_environment.markdown(found)
    assert said.index("| ILQL |") < said.index("| BC |")
    assert "ILQL is above BC by 0.21 (p_holm < 0.001)." in said
    assert "Over training runs ILQL differs from BC (p_training_holm < 0.001)." in said
    assert "Intervals cover other episodes, and other trainings on the same data;" in said


def test_nothing_is_above_another_that_tests_do_not_tell_apart():
    said = in_environment.markdown(compared({"bc": 0.0, "mc": 0.0}))
    assert "BC is not distinguishable from MC (difference 0.00, p_holm = 1.000)." in said
    assert " above " not in said
    few = in_environment.markdown(compared({"bc": 0.0, "ilql": 3.0}, walks=4))
    assert "ILQL is not distinguishable from BC (difference 0.21, p_holm = 0." in few


def test_a_second_run_trains_nothing_and_a_damaged_result_is_made_again(finished, monkeypatch):
    asked = []
    monkeypatch.setattr(
        in_environment,
        "_trained",
        lambda *given: asked.append(given[2].name) or {"decoding": "x", "returns": [-9.0] * 4},
    )
    in_environment.run(SHORT, TINY, finished, Console(quiet=True))
    assert asked == []
    (finished / "bc-seed0.json").write_text('{"returns": [1')
    in_environment.run(SHORT, TINY, finished, Console(quiet=True))
    assert asked == ["bc"]


def test_an_interrupted_training_counts_in_what_made_it(finished, tmp_path, monkeypatch):
    home, ends = tmp_path / "maze", [KeyboardInterrupt(), None]
    shutil.copytree(finished, home)
    (home / "bc-seed0.json").unlink()

    def train_until_it_ends(*_):
        if error := ends.pop(0):
            raise error
        return {"decoding": "x", "returns": [-9.0] * 4}

    monkeypatch.setattr(provenance, "_AT_ONCE", 0.0)
    monkeypatch.setattr(in_environment, "_trained", train_until_it_ends)
    with pytest.raises(KeyboardInterrupt):
        in_environment.run(SHORT, TINY, home, Console(quiet=True))
    in_environment.run(SHORT, TINY, home, Console(quiet=True))
    made = json.loads((home / "maze.json").read_text())["sessions"]
    assert [each["stage"] for each in made] == ["bc", "bc", "fbc"]


def test_other_settings_in_a_used_folder_are_told(finished):

    other = dataclasses.replace(TINY, steps=3)
    with pytest.raises(RunError, match=r"--steps was 2, now 3"):
        in_environment.run(SHORT, other, finished, Console(quiet=True))


OWN = """
import dataclasses

from ilql_jax.methods import METHODS

METHOD = dataclasses.replace(METHODS["bc"], name="mine", title="My cloning", color="#123456")
"""


def test_a_method_of_a_file_stands_beside_the_others_and_its_edits_are_noticed(
    finished, tmp_path, monkeypatch
):
    home, file = tmp_path / "maze", tmp_path / "mine.py"
    shutil.copytree(finished, home)
    file.write_text(OWN)
    config = dataclasses.replace(TINY, methods=("bc", "fbc", str(file)))
    in_environment.run(SHORT, config, home, Console(quiet=True))
    assert (home / "mine-seed0.json").exists()
    assert "| My cloning |" in (home / "maze.md").read_text()
    look = json.loads((home / "maze.json").read_text())["methods"]["mine"]["look"]
    assert (look["title"], look["color"]) == ("My cloning", "#123456")
    file.write_text(OWN + "# edited\n")
    with pytest.raises(RunError, match="the file of the method mine was edited"):
        in_environment.run(SHORT, config, home, Console(quiet=True))
    for path in home.glob("mine-seed*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(
        in_environment, "_trained", lambda *_: {"decoding": "x", "returns": [-9.0] * 4}
    )
    in_environment.run(SHORT, config, home, Console(quiet=True))


def test_a_file_whose_method_learns_from_pairs_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("bc", "dpo"))
    config = dataclasses.replace(TINY, methods=(str(file),))
    with pytest.raises(MethodError, match=r"mine\.py learns from pairs"):
        in_environment.run(SHORT, config, tmp_path / "maze", Console(quiet=True))
    assert not (tmp_path / "maze").exists()


def test_the_expectile_is_that_of_methods_that_have_one():
    loaded = dataclasses.replace(TINY, methods=("bc", "ilql"), expectile=0.7).loaded()
    assert loaded["ilql"].config.expectile == 0.7 and loaded["bc"] is METHODS["bc"]


@pytest.mark.parametrize("methods", [(), ("bc", "bc"), ("dpo",), ("sarsa",)])
def test_methods_that_cannot_be_are_told(methods):
    with pytest.raises(SettingError, match="methods is"):
        EnvironmentConfig(methods=methods)
