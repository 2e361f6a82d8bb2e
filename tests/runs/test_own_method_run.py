"""A method of somebody's own, in one file: trained, evaluated and reported like ours."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from launching import TINY, flattened, launch

METHOD = '''
"""Reward-weighted cloning: the more a dialogue was worth, the more it is cloned."""

import dataclasses

import numpy as np

from ilql_jax.methods import Method, MethodConfig
from ilql_jax.methods.loss_terms import policy_loss
from ilql_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class WeightedConfig(MethodConfig):
    temperature: float = setting("Spread of the weights; 0 = plain cloning.", 1.0, least=0)


def select(trajectories, config):
    returns = np.array([float(each.rewards.sum()) for each in trajectories])
    weights = np.exp(config.temperature * (returns - returns.max()))
    return [
        dataclasses.replace(each, clone=np.where(each.is_action, weight, 0).astype(np.float32))
        for each, weight in zip(trajectories, weights, strict=True)
    ]


def loss(model, target, batch, config, *, progress, normalizers):
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    value = policy_loss(
        model, hidden, batch.by_token, batch.clone_weight, config.action_chunk, normalizers
    )
    return value, {"loss": value, "policy_loss": value}


METHOD = Method(
    name="weighted",
    title="weighted cloning",
    config=WeightedConfig(),
    loss=loss,
    select=select,
    decodings=("greedy",),
    color="#123456",
)
'''


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("methods") / "my_method.py"
    path.write_text(METHOD)
    return path


@pytest.fixture(scope="module")
def finished(own_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny run beside BC, trained by workers that have to load the file themselves."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    settings = (
        f"--workdir={folder}",
        *(a for a in TINY if not a.startswith(("--config.methods", "--config.workers"))),
        f"--config.methods=bc,{own_file}",
        "--config.method.weighted.temperature=0.5",
    )
    for others in (("--config.workers=2", "--stage=train"), ("--config.workers=1",)):
        result = launch(*settings, *others)
        assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


def test_it_stands_in_table_evaluation_and_report(finished: Path):
    assert "weighted cloning" in (finished / "output.txt").read_text()
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert set(evaluation["population"]["average"]["methods"]) == {"bc", "weighted"}
    assert "weighted cloning" in (finished / "report.html").read_text()
    lines = (finished / "metrics" / "weighted-seed0.jsonl").read_text().splitlines()
    losses = [json.loads(line)["policy_loss"] for line in lines]
    assert len(losses) == 30 and losses[-1] < losses[0]


def test_its_settings_are_bound_to_the_run_and_its_file_to_the_command_line(
    finished: Path, own_file: Path
):
    same = (f"--workdir={finished}", f"--config.methods=bc,{own_file}")
    result = launch(*same, "--config.method.weighted.temperature=2")
    assert result.returncode == 1
    assert "config.method.weighted.temperature was 0.5, now 2.0" in flattened(result.stdout)
    result = launch(f"--workdir={finished}")
    assert result.returncode == 1
    assert "only where this command line or the experiment" in flattened(result.stdout)
    own_file.write_text(METHOD + "\n# another method now\n")
    result = launch(*same)
    assert result.returncode == 1
    assert "the file of the method weighted was" in flattened(result.stdout)


def test_hosts_that_have_met_rehearse_it_before_they_train(finished: Path, tmp_path: Path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        METHOD.replace("batch.by_token", "batch.by_word").replace("weighted", "worse")
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = launch(
        f"--workdir={finished}",
        f"--config.methods=bc,{broken}",
        f"--config.machine.coordinator=127.0.0.1:{port}",
        "--config.machine.processes=1",
        "--stage=train",
    )
    assert result.returncode == 1
    assert "worse: loss raised AttributeError" in flattened(result.stdout)
    assert not list((finished / "checkpoints").glob("worse*"))
