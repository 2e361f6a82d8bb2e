"""A task of a user's own that has no embedded world: one paragraph, and an LLM for all else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm_start
import yaml
from launching import DESCRIPTION, ROOT
from launching import TINY_IMAGINED as TINY
from messages_server import MessagesServer
from world_llm import WorldLLM

from experiments import llm_imagination
from experiments.build import build
from experiments.checks import checked
from experiments.command_line import with_saved
from experiments.config import ConfigError, base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stamps import begin_stage, check_stage
from experiments.training_data import check_lengths
from ilql_jax import Trajectory
from ilql_jax.progress import make_console
from imagination.task import TaskError

EXPERIMENT = f"""
from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.task.description = {DESCRIPTION!r}
    config.imagination.engine = "anthropic"
    config.llm.model = "world"
    config.imagination.dialogues = 24
    return config


if __name__ == "__main__":
    launch.main("trips", get_config())
"""


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    file = folder.with_name("trips.py")
    file.write_text(EXPERIMENT)
    environment = {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "ANTHROPIC_API_KEY": "none"}
    return warm_start.run(
        [sys.executable, str(file), f"--workdir={folder}", *arguments],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        timeout=600,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task derived, edited by hand, then everything up to the report."""
    folder = tmp_path_factory.mktemp("own") / "run"
    with MessagesServer(WorldLLM("travel")) as server:
        where = f"--config.llm.base_url={server.url}"
        result = launch(folder, where, "--stage=derive")
        assert result.returncode == 0, result.stdout + result.stderr
        assert len(server.calls) == 1 and not (folder / "dialogues.jsonl").exists()
        assert "persona_axes:" in result.stdout
        edit_task(folder, max_turns=5)
        result = launch(
            folder,
            *TINY,
            "--config.evaluation.human=prompted",
            "--config.evaluation.prompted=plain",
            "--config.llm.model=world",
            f"--config.llm.base_url={server.url}",
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert "trips, difficult population" in result.stdout
    return folder


def edit_task(folder: Path, **fields) -> None:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))


def test_a_paragraph_in_a_file_of_ones_own_is_enough(finished: Path):
    dialogues = [json.loads(line) for line in (finished / "dialogues.jsonl").open()]
    assert [d["id"] for d in dialogues] == [f"trips-{i}" for i in range(24)]
    spoken = [sum(m["role"] == "assistant" for m in d["messages"]) for d in dialogues]
    assert max(spoken) == 5  # as task.yaml was edited before they were imagined
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["task"] == "trips"
    assert set(evaluation["population"]["average"]["methods"]) == {"ilql", "plain"}
    assert (finished / "report.html").exists()


@pytest.mark.parametrize(
    ("fields", "stages", "message"),
    [
        ({"max_turns": 5}, (), ""),  # as it was
        ({"human_role": "tourist"}, ("imagine", "evaluate"), "human_role was 'traveller', now 'to"),
        ({"criteria": ["It is short."]}, ("imagine", "evaluate"), "task.yaml:criteria was"),
        # Where success begins also says how results are counted.
        ({"success_reward": 0.7}, ("evaluate",), "task.yaml:success_reward was 0.8, now 0.7"),
        ({"reward_range": [1, 0]}, ("imagine", "evaluate"), "task, field 'reward_range'"),
    ],
)
def test_a_task_that_was_edited_too_late_is_told(finished, tmp_path, fields, stages, message):
    folder = RunFolder(shutil.copytree(finished, tmp_path / "edited"))
    edit_task(folder.path, **fields)
    for each in ("imagine", "train", "evaluate"):
        if each in stages:
            with pytest.raises((RunError, TaskError), match=message):
                check_stage(folder, each, saved(folder))
        else:
            check_stage(folder, each, saved(folder))


def test_a_task_that_is_gone_is_told(finished: Path, tmp_path: Path):
    folder = RunFolder(shutil.copytree(finished, tmp_path / "gone"))
    folder.task.unlink()
    with pytest.raises(RunError, match=r"task\.yaml is gone.*dialogues\.jsonl"):
        check_stage(folder, "imagine", saved(folder))


def test_dialogues_may_be_imagined_anew_from_an_edited_task(finished: Path, tmp_path: Path):
    folder = RunFolder(shutil.copytree(finished, tmp_path / "anew"))
    edit_task(folder.path, human_role="tourist")
    folder.dialogues.unlink()
    begin_stage(folder, "imagine", saved(folder))
    folder.dialogues.write_text("")
    check_stage(folder, "imagine", saved(folder))


def saved(folder: RunFolder):
    """The run as it was last made."""
    address = yaml.safe_load(folder.config_file.read_text())["llm"]["base_url"]
    config = base_config()
    config.llm.base_url = address  # an address counts where the experiment names it
    return checked(with_saved(config, folder, {}))


def own(**fields):
    config = base_config()
    config.imagination.engine, config.llm.model = "anthropic", "m"
    config.imagination.dialogues = 24
    config.task.description = DESCRIPTION
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "judged", "message"),
    [
        ({}, False, ""),
        ({"evaluation.human": "prompted", "llm.model": "m"}, True, ""),
        ({"task.world": "travel"}, True, ""),
        ({}, True, "no humans of a world to judge by.*evaluation.human=prompted.*--stage=train"),
        ({"task.description": ""}, False, "Name a world.*config.task.description"),
        (
            {"imagination.engine": "world", "llm.model": "", "task.description": ""},
            False,
            "Name a world.*config.imagination.engine=anthropic",
        ),
    ],
)
def test_without_a_world_it_is_told_what_is_missing(fields, judged, message):
    if not message:
        checked(own(**fields), judged=judged)
        return
    with pytest.raises(ConfigError, match=message):
        checked(own(**fields), judged=judged)


def test_the_task_alone_is_derived_for_an_llm_that_imagines(tmp_path: Path):
    result = launch(tmp_path / "run", "--stage=derive", "--config.imagination.engine=world")
    assert result.returncode == 1 and "config.imagination.engine=anthropic" in result.stdout


def trajectory(name: str, *utterances: int) -> Trajectory:
    """A dialogue of one human token before each of the agent's utterances."""
    mask = np.concatenate([[False] + [True] * length for length in utterances])
    return Trajectory(
        np.zeros(len(mask), np.int32), mask, np.zeros(len(mask), np.float32), True, name
    )


def test_dialogues_that_do_not_fit_say_how_much_room_all_of_them_need():
    config = base_config()
    data = [trajectory("a", 9), trajectory("b", 300), trajectory("c", 200, 200)]
    expected = (
        r"c: 402 tokens do not fit in the context of 240; 2 of 3 dialogues are too long\. "
        r"Set config\.model\.max_positions to 402"
    )
    with pytest.raises(RunError, match=expected):
        check_lengths(build(config).network, data, 24, make_console())


def test_dialogues_longer_than_a_pretrained_model_reads_are_not_sent_there(tmp_path: Path):
    fields = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 300}
    fields |= {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = base_config()
    config.model.pretrained = str(tmp_path)
    with pytest.raises(RunError, match=r"too long\. Shorten or drop them: .* at most 300\."):
        check_lengths(build(config).network, [trajectory("a", 400)], 24, make_console())
    with pytest.raises(RunError, match="max_positions to 261 or more"):
        check_lengths(build(config).network, [trajectory("a", 260)], 24, make_console())


def test_agents_that_will_be_cut_off_are_told(capsys):
    config = base_config()
    check_lengths(build(config).network, [trajectory("a", 24, 20)], 24, make_console())
    assert not capsys.readouterr().out
    check_lengths(build(config).network, [trajectory("a", 24, 60, 30, 3)], 24, make_console())
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("50% of what agents say") and "the longest takes 60." in told


def test_a_full_disk_is_told_and_what_was_paid_for_is_kept(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    full = folder / "dataset_card.md.partial"
    full.symlink_to("/dev/full")
    with MessagesServer(WorldLLM("travel")) as server:
        arguments = (f"--config.llm.base_url={server.url}", "--stage=imagine")
        result = launch(folder, *arguments)
        assert result.returncode == 1
        assert "the disk is full" in result.stdout and "Traceback" not in result.stderr
        full.unlink()
        calls = len(server.calls)
        result = launch(folder, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        assert len(server.calls) == calls
    assert len((folder / "dialogues.jsonl").read_text().splitlines()) == 24


def test_runs_that_share_a_cache_pay_once_for_what_they_have_in_common(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    shared = {"llm.cache_folder": str(tmp_path / "shared"), "imagination.way": "script"}
    calls, made = [], []
    with MessagesServer(WorldLLM("travel")) as server:
        shared |= {"llm.base_url": server.url, "imagination.rewards": "outcome"}
        for rounds in (0, 1):
            config = own(**shared, **{"imagination.critique_rounds": rounds})
            folder = RunFolder(tmp_path / f"critique{rounds}")
            imagined, _ = llm_imagination.run(checked(config, judged=False), folder, make_console())
            made.append(imagined.dialogues)
            calls.append(len(server.calls))
            assert not folder.llm.exists()
    # 1 for the task, some for the personas, and 24 scripts; then 24 verdicts and nothing else.
    assert calls[1] - calls[0] == 24 < calls[0]
    assert [d.turns for d in made[0]] == [d.turns for d in made[1]]  # this critic is content
