"""Dialogues as training takes them: weights by the prior of their personas."""

import io

import numpy as np
import pytest
from rich.console import Console

from experiments.build import build
from experiments.config import base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stages.imagine import play_chunk
from experiments.training_data import TrainingData, check_dialogues
from imagination.dialogue import read_dialogues, write_dialogues
from imagination.persona_sampling import PersonaSampling
from imagination.simulation import imagine_conversations, load_world


@pytest.fixture(scope="module")
def imagined():
    """Lessons of which four in ten are with difficult students."""
    world = load_world("teaching")
    conversations = imagine_conversations(world, PersonaSampling("balanced", 0.4), 300, 0, "d")
    return play_chunk(world, conversations)


def checked(path, dialogues, importance_weights=True):
    """Checks them as a run does before it trains; returns its folder and what was printed."""
    config = base_config()
    config.task.world, config.tokenizer.vocab_size = "teaching", 300
    config.model.max_positions = 1000
    config.data.importance_weights = importance_weights
    folder = RunFolder(path)
    write_dialogues(folder.dialogues, dialogues)
    console = Console(width=200, file=io.StringIO(), color_system=None)
    dialogues = read_dialogues(folder.dialogues)
    check_dialogues(build(config), folder, dialogues, console).save(folder.tokenizer)
    return folder, console.file.getvalue()


def test_weighted_dialogues_are_those_of_the_prior(imagined, tmp_path):
    folder, told = checked(tmp_path, imagined)
    assert "Weighted to the prior of their personas by" in told and "300 dialogues are wo" in told
    difficult = np.array([dialogue.source["difficult"] for dialogue in imagined])
    weights = [
        np.array([each.weight for each in TrainingData.load(folder, 1000, **asked).trajectories])
        for asked in ({}, {"importance_weights": True})
    ]
    assert (weights[0] == 1).all()
    world = load_world("teaching")
    expected = sum(p for persona, p in world.prior.items() if world.is_difficult(persona))
    assert np.average(difficult, weights=weights[1]) == pytest.approx(expected, abs=0.02)
    assert weights[1].mean() == pytest.approx(1)


def test_a_dialogue_of_unknown_prior_is_told_where_it_is_asked_for(imagined, tmp_path):
    imagined[4].source.pop("prior_probability")
    _, told = checked(tmp_path, imagined, importance_weights=False)
    assert "Weighted" not in told
    name = f"dialogue {imagined[4].id}"
    with pytest.raises(RunError, match=rf"{name}: source\.prior_probability is None.*=false"):
        checked(tmp_path, imagined)
