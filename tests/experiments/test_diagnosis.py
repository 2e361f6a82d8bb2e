"""Losses by candidates and by choice, against the exact values of a world."""

import dataclasses
import io

import evaluations
import numpy as np
import pytest
from rich.console import Console

from experiments.evaluation import diagnosis
from experiments.evaluation.diagnosis import (
    MOST_DECISIONS,
    Diagnosis,
    Loss,
    LostDecision,
    PersonaLoss,
    diagnose,
    lost,
)
from experiments.evaluation.statistics import bootstrap_mean
from experiments.report.diagnosis import diagnosis_tables, print_diagnosis
from imagination.dialogue import Dialogue, Turn
from imagination.simulation import (
    BehaviourAgent,
    OptimalAgent,
    Planner,
    SimulatedHuman,
    load_world,
    sample_conversations,
)
from imagination.simulation.course import follow
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


def labelled(dialogues, method: str, population: str = "average", seed: int = 0) -> list[Dialogue]:
    return [
        dataclasses.replace(
            d, source={"method": method, "seed": seed, "population": population, "episode": i}
        )
        for i, d in enumerate(dialogues)
    ]


def test_methods_and_populations_are_told_apart(tmp_path):
    foreign = dataclasses.replace(talks(BEST, 1)[0], turns=(Turn("agent", "Hello."),))
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


def test_intervals_are_over_trainings_and_the_humans_with_whom_all_of_them_talked():
    first, second = talks(BEST, 6), talks(BehaviourAgent(WORLD), 5)
    foreign = dataclasses.replace(first[2], turns=(Turn("agent", "Hello."),))
    first[2] = foreign
    both = [*labelled(first, "ilql"), *labelled(second, "ilql", seed=1)]
    loss = diagnose(WORLD, both, 6).population["average"]["ilql"]
    kept = (0, 1, 3, 4)
    totals = np.array(
        [[lost(PLANNER, own[i]).sum(axis=0)[0] for i in kept] for own in (first, second)]
    )
    expected = bootstrap_mean(totals, seed=0)
    assert (loss.episodes, loss.candidates) == (8, pytest.approx(expected.mean))
    assert loss.candidates_ci95 == pytest.approx((expected.low, expected.high))
    each = [lost(PLANNER, own[i]) for own in (first, second) for i in kept]
    assert loss.a_turn == pytest.approx(np.concatenate(each).sum(axis=1).mean())
    pooled = bootstrap_mean(totals.reshape(1, -1), seed=0)
    assert expected.high - expected.low > 2 * (pooled.high - pooled.low)


def test_the_interval_of_the_loss_a_turn_is_that_of_a_ratio(monkeypatch):
    """A loss of the same at every turn is known surely, however long conversations are."""
    dialogues = labelled(talks(BehaviourAgent(WORLD), 30), "bc")
    assert len({len(each.agent_turns) for each in dialogues}) > 1
    for noise, wide in ((0.0, False), (0.1, True)):
        rng = np.random.default_rng(0)

        def same(planner, dialogue, noise=noise, rng=rng):
            rows = np.full((len(dialogue.agent_turns), 2), [0.2, 0.1])
            rows += noise * rng.random(rows.shape)
            return [diagnosis._Turn(None, None, None, *row) for row in rows]

        monkeypatch.setattr(diagnosis, "_turns", same)
        loss = diagnose(WORLD, dialogues, 30).population["average"]["bc"]
        low, high = loss.a_turn_ci95
        assert loss.a_turn == pytest.approx(0.3 + noise, abs=0.02)
        assert low <= loss.a_turn + 1e-9 and (high - low > 1e-6) == wide
        for each in loss.persona["level"].values():
            low, high = each.a_turn_ci95
            assert low <= each.a_turn + 1e-9 and (high - low > 1e-6) == wide
        assert loss.candidates_ci95[1] - loss.candidates_ci95[0] > 0.05


def test_losses_are_split_by_persona(tmp_path):
    dialogues = labelled(talks(BehaviourAgent(WORLD), 30), "bc")
    found = diagnose(WORLD, dialogues, 30)
    loss = found.population["average"]["bc"]
    assert set(loss.persona) == set(dialogues[0].persona)
    for axis, values in loss.persona.items():
        assert set(values) == {d.persona[axis] for d in dialogues}
        assert sum(each.conversations for each in values.values()) == 30
        mean = sum(each.candidates * each.conversations for each in values.values()) / 30
        assert mean == pytest.approx(loss.candidates)
        for each in values.values():
            if each.conversations > 1:
                assert each.candidates_ci95[0] <= each.candidates <= each.candidates_ci95[1]
                assert each.a_turn_ci95[0] <= each.a_turn <= each.a_turn_ci95[1]
    alone = diagnose(WORLD, dialogues[:2], 2).population["average"]["bc"]
    [single, *_] = next(iter(alone.persona.values())).values()
    assert (single.conversations, single.candidates_ci95, single.a_turn_ci95) == (1, None, None)
    found.write(tmp_path / "diagnosis.json")
    assert Diagnosis.read(tmp_path / "diagnosis.json") == found


def test_decisions_that_lose_most_are_named():
    dialogues = labelled([considering(d) for d in talks(BehaviourAgent(WORLD), 30)], "bc")
    alone = labelled(talks(BehaviourAgent(WORLD), 30), "ilql")
    found = diagnose(WORLD, [*dialogues, *alone], 30).population["average"]
    for method, by in (("bc", "choice"), ("ilql", "candidates")):
        decisions, total = found[method].decisions, 0.0
        assert len(decisions) == MOST_DECISIONS
        assert {each.by for each in decisions} == {by}
        assert [each.loss for each in decisions] == sorted(
            (each.loss for each in decisions), reverse=True
        )
        for each in decisions:
            assert each.best != each.instead and each.best in WORLD.acts
            total += each.loss
        assert 0 < total <= getattr(found[method], by) + 1e-9
    first = max(found["ilql"].decisions, key=lambda each: (each.turn == 1, each.loss))
    said = [follow(PLANNER, d.turns).decisions[0].act for d in alone]
    assert first.turn == 1 and first.times == said.count(first.instead)
    assert (
        diagnose(WORLD, labelled(talks(BEST, 4), "bc"), 4).population["average"]["bc"].decisions
        == ()
    )


def test_as_many_difficult_humans_are_looked_at_as_there_are():
    played = talks(BehaviourAgent(WORLD), 40)
    is_difficult = [WORLD.is_difficult(WORLD.persona(each.persona)) for each in played]
    easy_first = [*np.flatnonzero(np.logical_not(is_difficult)), *np.flatnonzero(is_difficult)]
    dialogues = labelled([played[i] for i in easy_first], "bc")
    for episodes in (10, 25, 40, 50):
        loss = diagnose(WORLD, dialogues, episodes).population["average"]["bc"]
        looked_at = min(episodes, 40)
        assert loss.episodes == looked_at
        difficult = loss.persona["claims"]["overstates"].conversations
        assert difficult == round(sum(is_difficult) * looked_at / 40) > 0
    only = diagnose(WORLD, dialogues[-3:], 2).population["average"]["bc"]
    assert only.episodes == 2  # all are difficult


def test_the_table_by_persona_is_about_the_focus():
    with_novices = PersonaLoss(12, 0.28, (0.0, 0.56), 0.14, (0.07, 0.21), 0.105, (0.07, 0.14))
    with_one = PersonaLoss(1, 0.0, None, 1.4, None, 0.28, None)
    persona = {"level": {"novice": with_novices, "already_expert": with_one}}
    loss = Loss(40, 0.28, (0.0, 0.56), 0.14, (0.07, 0.21), 0.105, (0.07, 0.14), persona)
    found = Diagnosis(40, {"average": {"bc": loss, "ilql": loss}})
    [_, table] = diagnosis_tables(found, evaluations.evaluation())
    assert table.title == "teaching, average population: what ILQL loses, by persona"
    assert [list(map(str, row.cells)) for row in table.rows] == [
        ["level: novice", "0.15", "0.10 [0.00, 0.20]", "0.05 [0.03, 0.07]", "0.037", "12"],
        ["level: already expert", "0.50", "0.00", "0.50", "0.100", "1"],
    ]


def test_the_decisions_of_the_focus_that_lose_most_have_a_table():
    decisions = (
        LostDecision(1, "choice", "ask_prior", "explain", 12, 0.28),
        LostDecision(2, "candidates", "check", None, 1, 0.014),
    )
    loss = Loss(40, 0.28, (0.0, 0.56), 0.14, (0.07, 0.21), 0.1, (0.05, 0.15), {}, decisions)
    diagnosed = Diagnosis(40, {"average": {"bc": loss, "ilql": loss}})
    [_, table] = diagnosis_tables(diagnosed, evaluations.evaluation())
    assert table.title == "teaching, average population: the decisions by which ILQL loses most"
    assert [list(map(str, row.cells)) for row in table.rows] == [
        ["1", "ask prior", "explain", "choice", "12 of 40", "0.100"],
        ["2", "check", "words without meaning", "candidates", "1 of 40", "0.005"],
    ]


def test_the_table_is_in_the_unit_of_the_scores():
    loss = Loss(40, 0.28, (0.0, 0.56), 0.14, (0.07, 0.21), 0.105, (0.07, 0.14))
    found = Diagnosis(40, {"average": {"ilql": loss, "unknown": loss}, "difficult": {}})
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_diagnosis(console, found, evaluations.evaluation())
    text = " ".join(console.file.getvalue().split())
    assert (
        "ILQL 0.15 0.10 [0.00, 0.20] 0.05 [0.03, 0.07] 0.037 [0.025, 0.050] 40" in text
    )  # over 2.8
    assert "difficult population: what is lost" not in text
