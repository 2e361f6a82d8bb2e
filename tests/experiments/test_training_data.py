"""Dialogues as training takes them: weights by the prior of their personas."""

import io
import json

import numpy as np
import pytest
from in_process import SMALLEST, run
from rich.console import Console

from experiments.build import build
from experiments.checks import checked as checked_settings
from experiments.command_line import parse
from experiments.config import BatchConfig, base_config
from experiments.networks import load_agent, value_unit
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.stages.imagine import play_chunk
from experiments.teaching import get_config
from experiments.training_data import TrainingData, check_dialogues, load_once, start_value
from ilql_jax import METHODS, ModelConfig, Trajectory
from ilql_jax.models import DecoderConfig
from imagination.dialogue import Turn, read_dialogues, write_dialogues
from imagination.persona_sampling import PersonaSampling
from imagination.simulation import imagine_conversations, load_world
from imagination.speakers import Conversation


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


def test_trainings_in_one_process_read_their_data_once_until_it_is_another(imagined, tmp_path):
    folder, _ = checked(tmp_path, imagined, importance_weights=False)
    how = ("agent", False)
    first = load_once(folder, 1000, 0, *how)
    assert load_once(RunFolder(tmp_path), 1000, 0, *how) is first
    assert load_once(folder, 1000, 0, "agent_last", False) is not first
    write_dialogues(folder.dialogues, imagined[::-1])
    names = [each.name for each in load_once(folder, 1000, 0, *how).trajectories]
    assert names == [each.name for each in first.trajectories][::-1]


# --- values start low ---------------------------------------------------------------------------


def test_values_start_at_the_lowest_return_where_that_is_below_0():
    network = ModelConfig(DecoderConfig(8, 16, 1, 2, 16, 16), 8)

    def walk(rewards: list[float]) -> Trajectory:
        is_action = np.arange(len(rewards)) % 2 == 1
        return Trajectory(is_action + np.int32(1), is_action, np.float32(rewards))

    def start(method: str, *trajectories: Trajectory) -> float:
        batches = BatchConfig(token_discount=1.0, utterance_discount=0.5)
        return start_value(METHODS[method], network, batches, list(trajectories))

    costly, good = walk([0, -2, 0, -1]), walk([0, 3])
    assert start("ilql", costly) == pytest.approx(-2.5)
    assert start("bc", costly) == 0
    assert start("mc", good) == 0 and start("mc", good, costly) == pytest.approx(-2.5)


def test_a_run_with_costs_alone_begins_with_values_of_the_worst(tmp_path):
    rows = [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}],
            "reward": -1.0 - number % 4,
        }
        for number in range(40)
    ]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        *(a for a in SMALLEST if "imagination" not in a and "methods" not in a),
        "--config.data.source=jsonl",
        f"--config.data.path={data}",
        "--config.methods=ilql",
        "--config.train.learning_rate=1e-6",
    )
    folder = RunFolder(tmp_path / "run")
    ended = run(folder.path, *settings, "--stage=train")
    assert ended.status == 0, ended.output + ended.traceback
    unit = Unit("ilql", 0)
    scale, start = value_unit(folder, unit)
    assert start / scale == pytest.approx(-4)
    experiment = checked_settings(
        parse("teaching", get_config(), ["teaching.py", *settings]).config
    )
    agent = load_agent(experiment, folder, unit, experiment.method("ilql").decodings[-1])
    [said] = agent.respond([Conversation("c", {}, 0, turns=[Turn("human", "hi")])])
    assert said.annotations["v"] == pytest.approx(-4, abs=0.1)
