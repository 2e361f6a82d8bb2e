"""A real model on this machine: SmolLM2 by llama.cpp (`experiments/local_llm.sh`)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from llm_questions import ask_all

from imagination.engine.critique import Verdicts
from imagination.llm import Answer, LLMConfig, Request
from imagination.llm.play import script_schema
from imagination.llm.schemas import rating_schema, specialize

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "local_llm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "fetched").exists(),
        reason="no local model: FETCH_ONLY=1 experiments/local_llm.sh",
    ),
]


@pytest.fixture(scope="module")
def address():
    """The local server, on a free port, until the tests are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {"PORT": str(port)}
    script = [ROOT / "experiments" / "local_llm.sh", FOLDER]
    with subprocess.Popen(script, env=settings, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def wait_for(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_real_model_is_held_to_the_limits_of_every_schema(address, tmp_path, caplog):
    schemas = [rating_schema((0.0, 2.0)), specialize(Verdicts, count=2), script_schema(1)]
    system = "You talk with a traveller about a trip. Answer in short sentences."
    asked = [
        Request("local", system, (("user", "Hello, where shall I go?"),), schema=schema)
        for schema in schemas
    ]
    config = LLMConfig(
        "smollm2", base_url=address, api="chat_completions", max_tokens=1000, timeout=300.0
    )
    found, meter = ask_all(config, tmp_path, asked)
    assert all(isinstance(each, Answer) for each in found)
    assert [type(each.parsed) for each in found] == schemas
    assert meter.summary()[0]["re_asks"] == 0 and not caplog.records
