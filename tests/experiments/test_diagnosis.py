"""Losses by candidates and by choice, against the exact values of a world."""

import dataclasses
import io

import evaluations
import numpy as np
import pytest
from rich.console import Console

from experiments.evaluation.diagnosis import Diagnosis, Loss, diagnose, lost
from experiments.report import tables
from imagination.dialogue import Dialogue, Turn
from imagination.simulation import (
    BehaviourAgent,
    OptimalAgent,
    Planner,
    SimulatedHuman,
    load_world,
    sample_conversations,
)
from imagination.speakers import converse

WORLD = load_world("teaching")
PLANNER = Planner(WORLD, "average")
BEST = OptimalAgent(WORLD)


def talks(agent, episodes: int) -> list[Dialogue]:
    conversations = sample_conversations(WORLD, "average", episodes, 3, "average")
    return converse(agent, SimulatedHuman(WORLD), conversations, WORLD.task)


def considering(dialogue: Dialogue) -> Dialogue:
    """The dialogue, in which every utterance was chosen among one of each act."""
    slots = WORLD.find_slots(dialogue.turns[0].text)
    texts = [phrasing.templates[0].format(**slots) for phrasing in WORLD.acts.values()]
    texts = [text for text in texts if WORLD.understand_about(slots, text)]
    notes = {"candidates": [{"text": text, "q": 0.0} for text in texts]}
    turns = [
        dataclasses.replace(t, annotations=notes) if t.speaker == "agent" else t
        for t in dialogue.turns
    ]
    return dataclasses.replace(dialogue, turns=tuple(turns))


def test_the_optimum_loses_nothing():
    for dialogue in talks(BEST, 15):
        rows = lost(PLANNER, dialogue)
        assert rows.shape == (len(dialogue.agent_turns), 2)
        assert rows == pytest.approx(0, abs=1e-9)


def test_losses_and_rewards_make_up_the_optimum():
    dialogues = talks(BehaviourAgent(WORLD), 60)
    rows = [lost(PLANNER, dialogue) for dialogue in dialogues]
    assert all((row >= -1e-9).all() and not row[:, 1].any() for row in rows)  # nothing considered
    sums = [row.sum() + d.reward for row, d in zip(rows, dialogues, strict=True)]
    error = np.std(sums) / np.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(PLANNER.value(), abs=3 * error)


def test_what_was_considered_is_lost_by_choice():
    dialogue = max(talks(BehaviourAgent(WORLD), 5), key=lambda d: len(d.turns))
    alone, among = lost(PLANNER, dialogue), lost(PLANNER, considering(dialogue))
    assert among.sum(axis=1) == pytest.approx(alone.sum(axis=1))
    assert among[:, 1].sum() > 0 and among[:, 0].sum() < alone[:, 0].sum()


def labelled(dialogues, method: str, population: str = "average") -> list[Dialogue]:
    return [
        dataclasses.replace(
            d, source={"method": method, "seed": 0, "population": population, "episode": i}
        )
        for i, d in enumerate(dialogues)
    ]


def test_methods_and_populations_are_told_apart(tmp_path):
    foreign = Dialogue("x", "teaching", (Turn("agent", "Hello."),), 0.0)
    conversations = [
        *labelled(talks(BEST, 4), "ilql"),
        *labelled(talks(BehaviourAgent(WORLD), 4), "bc"),
        *labelled([foreign], "mc"),
        *labelled(talks(BEST, 4), "ilql", "difficult"),
    ]
    found = diagnose(WORLD, conversations, 3)
    assert {name: set(each) for name, each in found.population.items()} == {
        "average": {"ilql", "bc"},
        "difficult": {"ilql"},
    }
    assert found.population["average"]["bc"].episodes == 3
    assert found.population["average"]["bc"].candidates > 0.1
    found.write(tmp_path / "diagnosis.json")
    assert Diagnosis.read(tmp_path / "diagnosis.json") == found


def test_the_table_is_in_the_unit_of_the_scores():
    loss = Loss(40, 4.0, 0.28, (0.0, 0.56), 0.14, (0.07, 0.21))
    diagnosis = Diagnosis(40, {"average": {"ilql": loss, "unknown": loss}, "difficult": {}})
    console = Console(width=100, file=io.StringIO(), color_system=None)
    tables.print_diagnosis(console, diagnosis, evaluations.evaluation())
    text = " ".join(console.file.getvalue().split())
    assert "ILQL 0.15 0.10 [0.00, 0.20] 0.05 [0.03, 0.07] 0.037 40" in text  # over 2.8
    assert "difficult population: what is lost" not in text
