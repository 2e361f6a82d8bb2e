"""A real model on this machine: SmolLM2 by llama.cpp (`experiments/local_llm.sh`)."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from llm_questions import ask_all

from imagination.dataset_card import dataset_card
from imagination.engine import EngineConfig, imagine_dialogues
from imagination.engine.critique import Verdicts
from imagination.flaws import FLAWS, flaws
from imagination.llm import Answer, Client, LLMConfig, Request
from imagination.llm.play import script_schema
from imagination.llm.schemas import rating_schema, specialize
from imagination.task import Task

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "local_llm"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "fetched").exists(),
    reason="no local model: FETCH_ONLY=1 experiments/local_llm.sh",
)
TASK = Task(
    name="drinks",
    description="A waiter finds out what a guest feels like and recommends one drink.",
    agent_role="waiter",
    human_role="guest",
    persona_axes={"taste": ("sweet things", "bitter things")},
    reward_range=(0.0, 1.0),
    success_reward=0.8,
    max_turns=1,
    success="The guest orders the drink.",
)
# As few tokens as a dialogue can have: without critique, and rated as it was written for.
SHORTEST = EngineConfig(
    dialogues=4,
    way="script",
    rewards="outcome",
    critique_rounds=0,
    details=False,
    personas_per_call=1,
    length="a few words",
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


def imagine(settings: LLMConfig, folder: Path):
    """The dialogues, and what was asked for them."""

    async def run():
        client = Client(settings, folder)
        try:
            return await imagine_dialogues(client, TASK, SHORTEST), client.meter.summary()
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_real_model_imagines_dialogues_that_hold_together_whatever_it_says(address, tmp_path):
    imagined, steps = imagine(settings_of(address), tmp_path)
    dialogues = imagined.dialogues
    assert len(dialogues) + len(imagined.dropped) == 4 and dialogues and not imagined.rejected
    for dialogue in dialogues:
        speakers = [turn.speaker for turn in dialogue.turns]
        assert speakers in (["human", "agent"], ["human", "agent", "human"])
        assert all(turn.text.strip() for turn in dialogue.turns)
        assert dialogue.reward in (0.0, 1.0)
        assert dialogue.persona["taste"] in TASK.persona_axes["taste"]
        assert flaws(dialogue, TASK).keys() <= set(FLAWS)
    assert {step["step"] for step in steps} == {"engine/personas", "engine/script"}
    card = dataset_card(dialogues, TASK, meter=steps, dropped=imagined.dropped)
    assert f"# drinks: {len(dialogues)} dialogues" in card
    # What is on disk is asked of nobody again.
    again, _ = imagine(dataclasses.replace(settings_of(address), max_retries=0), tmp_path)
    assert {each.id: each for each in again.dialogues}.items() >= {
        each.id: each for each in dialogues
    }.items()


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
