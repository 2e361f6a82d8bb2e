"""From a paragraph to a trained agent, with an LLM that is a real server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm_start
import yaml
from launching import ROOT
from launching import TINY_IMAGINED as TINY
from messages_server import MessagesServer
from world_llm import WorldLLM

KEY = "sk-this-must-never-be-written-down"
DIALOGUES = 150
DESCRIPTION = "A tutor finds out what a student knows already and explains from there."


def command(folder: Path, url: str, *arguments: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "experiments" / "teaching.py"), f"--workdir={folder}"),
        "--config.imagination.engine=anthropic",
        "--config.llm.model=world",
        f"--config.llm.base_url={url}",
        f"--config.imagination.dialogues={DIALOGUES}",
        "--config.llm.price_input=3",
        "--config.llm.price_output=15",
        f"--config.task.description={DESCRIPTION}",
        *arguments,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "ANTHROPIC_API_KEY": KEY}


def launch(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess:
    return warm_start.run(
        command(folder, url, *arguments),
        cwd=ROOT,
        env=environment(),
        timeout=600,
    )


@pytest.fixture(scope="module")
def llm() -> WorldLLM:
    return WorldLLM("teaching")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llm: WorldLLM):
    """A whole tiny run, the dialogues imagined while one call in ten fails; and its server."""
    folder = tmp_path_factory.mktemp("runs") / "imagined"
    faults = {"429": 0.03, "529": 0.02, "500": 0.02, "wrong_schema": 0.02, "max_tokens": 0.01}
    with MessagesServer(llm, faults=faults, seed=1) as server:
        result = launch(folder, server.url, *TINY)
        assert result.returncode == 0, result.stdout + result.stderr
        yield folder, server, result.stdout


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]


def answers_on_disk(folder: Path) -> int:
    lines = (folder / "llm" / "cache.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(set(keys)) == len(keys)
    return len(keys)


def test_a_paragraph_becomes_a_task_a_dataset_and_an_agent_that_was_judged(finished):
    folder, _, output = finished
    task = yaml.safe_load((folder / "task.yaml").read_text())
    assert task["description"] == DESCRIPTION
    assert task["agent_role"] == "tutor" and len(task["persona_axes"]) == 4
    dialogues = records(folder)
    assert [d["id"] for d in dialogues] == [f"teaching-{i}" for i in range(DIALOGUES)]
    assert all(len(d["messages"]) > 2 and 0 <= d["reward"] <= 1 for d in dialogues)
    assert len({d["reward"] for d in dialogues}) > 3
    assert json.loads((folder / "evaluation.json").read_text())["population"]["average"]
    assert (folder / "report.html").exists()
    assert "dialogues" in output and "$" in output
    assert "Judged by the humans of the embedded world 'teaching'" in output


def test_the_card_tells_what_is_in_the_dataset_and_what_it_took(finished):
    card = (finished[0] / "dataset_card.md").read_text().lower()
    for word in ("reward", "distinct-1", "self-bleu", "most alike", "criterion", "prompt", "cost"):
        assert word in card, word


def test_no_answer_was_paid_for_twice_and_no_key_was_written_down(finished):
    folder, server, _ = finished
    assert sum(server.answered.values()) == answers_on_disk(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_dataset(finished, llm, tmp_path):
    folder = tmp_path / "killed"
    with MessagesServer(llm, seed=2) as server:
        arguments = ("--stage=imagine", "--config.llm.max_in_flight=4")
        process = warm_start.start(command(folder, server.url, *arguments), env=environment())
        deadline = time.monotonic() + 120
        while sum(server.answered.values()) < 300 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert not (folder / "dialogues.jsonl").exists()
        result = launch(folder, server.url, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        lost = sum(server.answered.values()) - answers_on_disk(folder)
        assert 0 <= lost <= 4  # those in flight when it was killed
    assert [d["messages"] for d in records(folder)] == [d["messages"] for d in records(finished[0])]


@pytest.mark.slow  # as in test_own_task.py, test_evaluation_llm.py and test_imagination_rounds.py
def test_an_llm_plays_the_humans_of_the_task_that_was_imagined(finished, llm, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(finished[0], folder)
    task = yaml.safe_load((folder / "task.yaml").read_text())
    task["success_reward"] = 0.7  # edited by hand: what stands there counts
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    for made in ("evaluation", "evaluation.json", "stages/evaluate.json"):
        path = folder / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with MessagesServer(llm, seed=3) as server:
        result = launch(
            folder,
            finished[1].url,
            "--config.evaluation.human=prompted",
            "--config.evaluation.prompted=plain",
            f"--config.evaluation.base_url={server.url}",
            "--config.methods=ilql,ilql_imagination1",
            "--config.imagination.round_dialogues=6",
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert server.answered
    held = (folder / "imagination" / "ilql_imagination1-seed0.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"]["method"] for line in held] == ["ilql"] * 6
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["success_reward"] == 0.7
    for found in evaluation["population"].values():
        assert set(found["methods"]) == {"ilql", "ilql_imagination1", "plain"}
        assert all(each["normalized"] is None for each in found["methods"].values())
    conversations = map(json.loads, (folder / "conversations.jsonl").read_text().splitlines())
    difficult = [c for c in conversations if c["source"]["population"] == "difficult"]
    assert {c["persona"]["claims"] for c in difficult} == {"overstates"}


def test_a_dry_run_calls_nobody(tmp_path, llm):
    with MessagesServer(llm) as server:
        result = launch(tmp_path / "dry", server.url, "--dry_run")
        assert result.returncode == 0, result.stderr
        assert not server.answered
    assert "| engine/human |" in result.stdout and DESCRIPTION[:40] in result.stdout
    assert not (tmp_path / "dry" / "llm").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.imagination.engine=openai"], "must be world or anthropic"),
        (["--config.llm.model="], "config.llm.model is '', but must be the name"),
        (["--config.imagination.way=poem"], "way is 'poem', but must be script or rollout"),
        (["--config.task.description=Help"], "task, field 'description': expected"),
        (
            ["--config.imagination.rewards=outcome"],
            "config.imagination.rewards is 'outcome', but must be",
        ),
    ],
)
def test_settings_that_cannot_work_are_told_before_any_call(tmp_path, arguments, message):
    result = launch(tmp_path / "bad", "http://127.0.0.1:9", *arguments)
    assert result.returncode == 1
    assert message in " ".join(result.stdout.split()), result.stdout + result.stderr
