"""Flaws planted into dialogues of a world, and the critique that finds them by words and rating."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from worlds import play

from experiments.checks import checked
from experiments.config import base_config
from experiments.run_folder import RunFolder
from experiments.stages import imagine
from imagination.dataset_card import dataset_card
from imagination.dialogue import read_dialogues
from imagination.flaws import MENDED, NAMES_PERSONA, PLANTED
from imagination.hindsight.world import WorldHindsight
from imagination.simulation import WORLDS, BehaviourAgent, load_world
from imagination.simulation.planted_flaws import KINDS, MISRATED, mend, plant


@pytest.fixture(scope="module")
def originals() -> list:
    world = load_world("teaching")
    return play(world, BehaviourAgent(world), 600)


def kinds(dialogues: list, field: str = PLANTED) -> Counter:
    return Counter(each.source.get(field, "") for each in dialogues)


def test_half_of_the_flaws_are_of_either_kind_and_the_rest_stays_as_it_is(originals: list):
    task = load_world("teaching").task
    planted = plant(originals, task, 0.5, seed=3)
    assert kinds(planted)[""] == pytest.approx(300, abs=50)
    assert all(kinds(planted)[kind] == pytest.approx(150, abs=40) for kind in KINDS)
    for flawed, original in zip(planted, originals, strict=True):
        kind = flawed.source.get(PLANTED, "")
        assert flawed.id == original.id and flawed.persona == original.persona
        assert (flawed == original) == (not kind)
        if kind == MISRATED:
            assert flawed.turns == original.turns
            assert flawed.reward == pytest.approx(1 - original.reward)
        if kind == NAMES_PERSONA:
            assert flawed.turns[1:] == original.turns[1:] and flawed.reward == original.reward
            assert all(value in flawed.turns[0].text for value in original.persona.values())


def test_a_larger_share_has_the_flaws_of_a_smaller_one_and_another_seed_has_others(originals: list):
    task = load_world("teaching").task
    few, many, others = (
        {each.id: each.source[PLANTED] for each in planted if PLANTED in each.source}
        for planted in (plant(originals, task, *how) for how in [(0.1, 0), (0.4, 0), (0.1, 1)])
    )
    assert few.items() < many.items()
    assert others != few
    assert plant(originals, task, 0.0, seed=0) == originals


@pytest.mark.parametrize("name", WORLDS)
def test_critique_finds_what_the_words_tell(name: str):
    world = load_world(name)
    originals = play(world, BehaviourAgent(world), 200)
    planted = plant(originals, world.task, 1.0, seed=0)
    mended = mend(planted, originals, world.task, WorldHindsight(world).rate)
    for after, before, original in zip(mended, planted, originals, strict=True):
        if after is before:  # by a rating in the middle of the scale nothing is told
            assert before.source[PLANTED] == MISRATED
            continue
        assert after.source[MENDED] == before.source[PLANTED] and PLANTED not in after.source
        assert (after.turns, after.reward) == (original.turns, original.reward)
    assert kinds(mended, MENDED)[NAMES_PERSONA] == kinds(planted)[NAMES_PERSONA]
    found = kinds(mended, MENDED)[MISRATED] / kinds(planted)[MISRATED]
    assert found > 0.7


def test_ratings_that_cannot_be_told_from_words_are_left(originals: list):
    task = load_world("teaching").task
    planted = plant(originals, task, 1.0, seed=0)
    mended = mend(planted, originals, task, lambda dialogues: [None] * len(dialogues))
    assert kinds(mended, MENDED)[MISRATED] == 0 < kinds(mended, MENDED)[NAMES_PERSONA]


def test_card_counts_what_was_planted_mended_and_left(originals: list):
    world = load_world("teaching")
    planted = plant(originals, world.task, 0.5, seed=0)
    mended = mend(planted, originals, world.task, lambda dialogues: [None] * len(dialogues))
    card = dataset_card(mended, world.task)
    count = kinds(planted)
    assert f"| {NAMES_PERSONA} | {count[NAMES_PERSONA]} | {count[NAMES_PERSONA]} | 0 |" in card
    assert f"| {MISRATED} | {count[MISRATED]} | 0 | {count[MISRATED]} |" in card
    assert "Planted flaws" not in dataset_card(originals, world.task)


@pytest.mark.parametrize("mends", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_has_them_in_its_dialogues_and_its_card(mends: bool, tmp_path: Path):
    def imagined(name: str, **settings) -> RunFolder:
        config = base_config()
        config.task.world, config.imagination.dialogues = "teaching", imagine.CHUNK + 20
        config.imagination.update(settings)
        folder = RunFolder(tmp_path / name)
        imagine.run(checked(config), folder, Console(quiet=True))
        return folder

    plain = read_dialogues(imagined("plain").dialogues)
    flawed = imagined("flawed", planted_flaws=0.5, mend_flaws=mends)
    dialogues = read_dialogues(flawed.dialogues)
    world = load_world("teaching")
    expected = plant(plain, world.task, 0.5, seed=0)
    if mends:
        expected = mend(expected, plain, world.task, WorldHindsight(world).rate)
    assert dialogues == expected
    assert sum((MENDED if mends else PLANTED) in each.source for each in dialogues) > 200
    assert "## Planted flaws" in flawed.dataset_card.read_text()
