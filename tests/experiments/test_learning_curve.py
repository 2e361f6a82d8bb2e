"""During a training, the agent talks with simulated humans."""

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

UNIT = Unit("ilql", 0)
SETTINGS = (
    *(a for a in SMALLEST if not a.startswith("--config.methods")),
    "--config.methods=ilql",
    '--config.decoding.ilql=("sampled, best of 2",)',
)
CURVE = "--config.evaluation.curve_episodes=12"


def test_every_checkpoint_is_judged_also_before_values_have_learned(tmp_path):
    folder, often = RunFolder(tmp_path), "--config.train.checkpoint_every=1"
    ended = run(folder.path, *SETTINGS, "--stage=train", CURVE, often)
    assert ended.status == 0, ended.output + ended.traceback
    log = read_log(folder.metrics(UNIT))
    judged = [record for record in log if "validation/average" in record]
    assert [record["step"] for record in judged] == [1, 2, 3, 4]
    assert all(0 <= record["validation/difficult"] <= 1 for record in judged)
    assert [record["step"] for record in log if "loss" in record] == [1, 2, 3, 4]


def validation(*settings: str):
    line = parse("teaching", get_config(), ["teaching.py", *SETTINGS, *settings])
    return learning_curve.validation(checked(line.config), RunFolder("nowhere"), UNIT, None)


def test_it_is_the_mean_reward_with_humans_of_both_populations(monkeypatch):
    world = load_world("teaching")
    validate = validation(CURVE)
    monkeypatch.setattr(learning_curve, "merge_adapters", lambda *network: network)
    monkeypatch.setattr(learning_curve, "learned_values", lambda params: True)
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
