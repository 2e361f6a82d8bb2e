"""A real model on this machine: SmolLM2 by llama.cpp (`experiments/local_llm.sh`)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pages
import pytest
import warm_start
from launching import TINY_IMAGINED, flattened
from llm_questions import ask_all

from imagination.dialogue import read_dialogues
from imagination.engine.critique import Verdicts
from imagination.flaws import FLAWS, flaws
from imagination.llm import Answer, LLMConfig, Request
from imagination.llm.play import script_schema
from imagination.llm.schemas import rating_schema, specialize
from imagination.task import Task

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "local_llm"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "fetched").exists(),
    reason="no local model: FETCH_ONLY=1 experiments/local_llm.sh",
)


@pytest.fixture(scope="module")
def address():
    """The local server, on a free port, until the tests are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {"PORT": str(port), "THREADS": "1"}
    script = [ROOT / "experiments" / "local_llm.sh", FOLDER]
    with subprocess.Popen(script, env=settings, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if (status := server.poll()) is not None and status < 0:
                pytest.skip(f"this CPU cannot run the server's build: it ended by signal {-status}")
            if status is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def settings_of(address: str) -> LLMConfig:
    chat = {"base_url": address, "api": "chat_completions", "temperature": 0.8}
    return LLMConfig("smollm2", **chat, max_tokens=600, max_in_flight=2, timeout=600.0)


# The page's experiment with as few tokens as it can have: whole scripts of one turn each.
FEW_WORDS = (
    "--config.task.max_turns=1",
    "--config.imagination.dialogues=4",
    "--config.imagination.way=script",
    "--config.imagination.details=False",
    "--config.imagination.length=a few words",
    "--config.llm.max_tokens=600",
    "--config.llm.max_in_flight=2",
    "--config.llm.timeout=600",
)
SMALL = (
    *TINY_IMAGINED,
    "--config.decoding.max_utterance=8",
    "--config.evaluation.average_episodes=1",
    "--config.evaluation.difficult_episodes=1",
)


@pytest.fixture(scope="module")
def drinks(tmp_path_factory) -> Path:
    """Folder with the page's experiment, and its runs."""
    folder = tmp_path_factory.mktemp("drinks")
    (folder / "drinks.py").write_text(pages.files()["drinks.py"], "utf-8")
    return folder


def launch(folder: Path, address: str, *arguments: str) -> str:
    result = warm_start.run(
        [sys.executable, "drinks.py", *FEW_WORDS, f"--config.llm.base_url={address}", *arguments],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return flattened(result.stdout)


@pytest.fixture(scope="module")
def output(address, drinks) -> str:
    """Output of a whole run: imagined, criticized, rated, learned from, judged by guests."""
    return launch(drinks, address, *SMALL)


def test_dialogues_of_a_real_model_hold_together_whatever_it_says(output, address, drinks):
    folder = drinks / "runs" / "drinks"
    task = Task.from_yaml((folder / "task.yaml").read_text("utf-8"), "task.yaml")
    dialogues = list(read_dialogues(folder / "dialogues.jsonl"))
    assert 1 <= len(dialogues) <= 4
    for dialogue in dialogues:
        speakers = [turn.speaker for turn in dialogue.turns]
        assert speakers in (["human", "agent"], ["human", "agent", "human"])
        assert all(turn.text.strip() for turn in dialogue.turns)
        assert 0 <= dialogue.reward <= 1
        assert dialogue.persona["taste"] in task.persona_axes["taste"]
        assert flaws(dialogue, task).keys() <= set(FLAWS)
    card = (folder / "dataset_card.md").read_text("utf-8")
    assert f"# drinks: {len(dialogues)} dialogues" in card
    # What is on disk is asked of nobody again; what was of no use is.
    asked = (folder / "llm" / "cache.jsonl").read_bytes()
    cache = f"--config.llm.cache_folder={folder / 'llm'}"
    launch(drinks, address, *SMALL, "--workdir=runs/again", "--stage=imagine", cache)
    again = {each.id: each for each in read_dialogues(drinks / "runs/again/dialogues.jsonl")}
    assert again.items() >= {each.id: each for each in dialogues}.items()
    if not (folder / "llm" / "failed.jsonl").exists():
        assert (folder / "llm" / "cache.jsonl").read_bytes() == asked


def test_a_real_model_takes_a_paragraph_to_a_judged_agent(output, drinks):
    folder = drinks / "runs" / "drinks"
    lines = (folder / "conversations.jsonl").read_text("utf-8").splitlines()
    spoken = [json.loads(line) for line in lines]
    assert {each["id"] for each in spoken} == {"ilql-seed0-average-0", "ilql-seed0-difficult-0"}
    assert all(any(m["role"] == "user" for m in each["messages"]) for each in spoken)
    answers = (folder / "llm" / "cache.jsonl").read_text("utf-8").splitlines()
    steps = {json.loads(line)["step"] for line in answers}
    assert steps >= {"engine/personas", "engine/script", "engine/critique", "engine/rating"}
    assert steps >= {"human/turn", "human/rating"}
    assert re.search(r"drinks, average population.* ILQL +[\d.]", output)
    assert "difficult population" in (folder / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_real_model_is_held_to_the_limits_of_every_schema(address, tmp_path, caplog):
    schemas = [rating_schema((0.0, 2.0)), specialize(Verdicts, count=2), script_schema(1)]
    system = "You talk with a traveller about a trip. Answer in short sentences."
    asked = [
        Request("local", system, (("user", "Hello, where shall I go?"),), schema=schema)
        for schema in schemas
    ]
    found, meter = ask_all(settings_of(address), tmp_path, asked)
    assert all(isinstance(each, Answer) for each in found)
    assert [type(each.parsed) for each in found] == schemas
    assert meter.summary()[0]["re_asks"] == 0 and not caplog.records
