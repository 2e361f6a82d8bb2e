"""The files of results: what is written is read back, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import random

import evaluations
import pytest
from fuzzing import damaged_bytes, held, with_odd_value

from experiments.evaluation.summary import (
    AgentPlayer,
    Evaluation,
    Heldout,
    HumanPlayer,
    PlayedHuman,
    PromptedAgent,
    UnitResult,
)
from experiments.evaluation.typed_json import ResultsError
from ilql_jax.errors import UserError


def full_evaluation() -> Evaluation:
    """An evaluation in which every type appears."""
    agent = PromptedAgent("m", "plain/1", 2.0, None, 1, None, {"simulations": 4})
    played = PlayedHuman(3.5, 0.01, {"reveals_persona": 2})
    average = evaluations.population()
    prompted = evaluations.scores("plain", None, seeds=0, prompted_agent=agent, played_human=played)
    average = dataclasses.replace(
        average,
        methods={**average.methods, "plain": prompted},
        tests=(*average.tests, evaluations.comparison("bc", "plain", None, None)),
    )
    human = HumanPlayer("m", "human/1", "rate/1", "They are shy.")
    return dataclasses.replace(evaluations.evaluation(average), human=human)


def test_an_evaluation_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "evaluation.json"
    for written in (full_evaluation(), evaluations.evaluation()):
        written.write(path)
        assert Evaluation.read(path) == written
    assert json.loads(path.read_text())["schema"] == 2


@pytest.mark.parametrize("auroc", [(0.61, (0.52, 0.69)), (1.0, None), (None, None)])
def test_held_out_results_are_read_back_as_they_were(tmp_path, auroc):
    path = tmp_path / "heldout.json"
    written = evaluations.heldout(auroc)
    written.write(path)
    assert Heldout.read(path) == written


def test_the_result_of_a_unit_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "unit.json"
    for written in (
        UnitResult("greedy", {"greedy": 1.0, "sampled": None}, None, None, None, None),
        UnitResult(None, {}, AgentPlayer("m", "plain/1", {"c_puct": 1.0}), None, 2, 0.5),
    ):
        written.write(path)
        assert UnitResult.read(path) == written


def edited(content: dict, place: str, value: object) -> None:
    *path, last = place.split(".")
    for key in path:
        content = content[int(key)] if isinstance(content, list) else content[key]
    if value is KeyError:
        del content[last]
    else:
        content[last] = value


ILQL = "population.average.methods.ilql"


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("task", 3, "field task: expected text, not '3'"),
        ("success_reward", "high", "field success_reward: expected a number, not 'high'"),
        ("success_reward", True, "field success_reward: expected a number"),
        (f"{ILQL}.episodes", 1.5, f"field {ILQL}.episodes: expected a whole number"),
        (f"{ILQL}.turns", KeyError, f"field {ILQL}.turns: missing"),
        (f"{ILQL}.turn", 2, f"field {ILQL}.turn: unknown"),
        (f"{ILQL}.ci95", [1.0], f"field {ILQL}.ci95: expected 2 values, not 1"),
        (f"{ILQL}.trainings.0.seconds", None, f"{ILQL}.trainings.0.seconds: expected a number"),
        ("population.average.tests.1.p", float("nan"), "tests.1.p: expected a finite number"),
        ("success_reward", 10**400, "success_reward: expected a finite number, not 1000"),
        ("population", [], "field population: expected an object"),
        ("schema", 99, "field schema: written with version 99 of the format, not 2"),
        ("schema", KeyError, "field schema: written with no version of the format, not 2"),
    ],
)
def test_a_damaged_file_names_file_and_field(tmp_path, place, value, problem):
    path = tmp_path / "evaluation.json"
    evaluations.evaluation().write(path)
    content = json.loads(path.read_text())
    edited(content, place, value)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError) as caught:
        Evaluation.read(path)
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value) and problem in str(caught.value)
    assert "--stage=evaluate" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [('{"task": ', "line 1: not valid JSON"), ("[]", "expected an object"), ("{}", "schema")],
)
def test_a_foreign_file_is_refused(tmp_path, text, problem):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=problem):
        Evaluation.read(path)


@pytest.mark.parametrize("kind", [Heldout, Evaluation])
def test_damaged_results_are_told_with_the_file_or_read(tmp_path, kind):
    path = tmp_path / "results.json"
    written = evaluations.heldout() if kind is Heldout else full_evaluation()
    written.write(path)
    content = path.read_bytes()
    for seed in range(60):
        rng = random.Random(seed)
        if rng.random() < 0.7:
            path.write_bytes(with_odd_value(rng, json.loads(content)).encode(errors="replace"))
        else:
            path.write_bytes(damaged_bytes(rng, content))
        with held("run folders", f"{kind.__name__} {seed}", names=str(path)):
            kind.read(path)


def test_a_number_that_is_none_cannot_be_written(tmp_path):
    broken = dataclasses.replace(evaluations.evaluation(), success_reward=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        broken.write(tmp_path / "evaluation.json")
    assert not list(tmp_path.iterdir())


def test_a_world_whose_data_is_optimal_has_no_normalized_score():
    references = dataclasses.replace(evaluations.REFERENCES, optimum=1.9)
    assert references.normalized(1.9) is None
    assert evaluations.REFERENCES.normalized(3.3) == pytest.approx(0.5)


def test_a_methods_seeds_are_summed_up():
    scores = evaluations.scores("bc", 2.0, seeds=2)
    one = dataclasses.replace(scores.trainings[0], decoding="greedy", seconds=13.0)
    scores = dataclasses.replace(scores, trainings=(one, scores.trainings[1]))
    assert scores.train_seconds == 50.0 and scores.conversations == 80
    assert scores.decoding == "greedy / sampled at 0.6, best of 16"
    prompted = evaluations.scores("plain", 2.0, seeds=0)
    assert prompted.train_seconds is None and prompted.decoding is None
    assert prompted.conversations == 40
