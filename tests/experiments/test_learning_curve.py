"""During a training, the agent talks with simulated humans; the training is the same without."""

from __future__ import annotations

import pytest
from in_process import SMALLEST, run

from experiments.checks import checked
from experiments.command_line import parse
from experiments.evaluation import learning_curve
from experiments.metrics import read_log
from experiments.run_folder import RunFolder, Unit
from experiments.teaching import get_config
from imagination.simulation import BehaviourAgent, OptimalAgent, load_world

UNIT = Unit("bc", 0)
SETTINGS = (
    *(a for a in SMALLEST if not a.startswith("--config.methods")),
    "--config.methods=bc",
)
CURVE = "--config.evaluation.curve_episodes=12"


def trained(folder: RunFolder, *settings: str) -> list[dict]:
    ended = run(folder.path, *SETTINGS, "--stage=train", *settings)
    assert ended.status == 0, ended.output + ended.traceback
    return read_log(folder.metrics(UNIT))


def test_every_checkpoint_is_judged_and_the_training_is_the_same_without(tmp_path):
    judged = trained(RunFolder(tmp_path / "with"), CURVE)
    steps = [record["step"] for record in judged if "validation/average" in record]
    assert steps and all(0 <= each.get("validation/difficult", 0) <= 1 for each in judged)
    without = trained(RunFolder(tmp_path / "without"), "--config.evaluation.curve_episodes=0")
    assert not any("validation/average" in each for each in without)
    losses = [[each["loss"] for each in log if "loss" in each] for log in (judged, without)]
    assert losses[0] == losses[1]


def validation(*settings: str):
    line = parse("teaching", get_config(), ["teaching.py", *SETTINGS, *settings])
    return learning_curve.validation(checked(line.config), RunFolder("nowhere"), UNIT, None)


def test_it_is_the_mean_reward_with_humans_of_both_populations(monkeypatch):
    world = load_world("teaching")
    validate = validation(CURVE)
    monkeypatch.setattr(learning_curve, "merge_adapters", lambda *network: network)
    found = {}
    for agent in (OptimalAgent(world), BehaviourAgent(world)):
        monkeypatch.setattr(learning_curve, "agent_of", lambda *_, agent=agent: agent)
        found[type(agent)] = validate(1, {})
    best, behaviour = found[OptimalAgent], found[BehaviourAgent]
    assert best["average"] > 0.85 and best["difficult"] > 0.6
    assert behaviour["average"] < best["average"] and behaviour["difficult"] < best["difficult"]


@pytest.mark.parametrize(
    "settings",
    [
        ["--config.evaluation.curve_episodes=0"],
        [CURVE, "--config.mesh.fsdp=2"],
        [CURVE, "--config.data.source=esconv", "--config.data.path=x.json"],
    ],
)
def test_nobody_is_asked_where_nobody_can_be(settings):
    assert validation(*settings) is None
