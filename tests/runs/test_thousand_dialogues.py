"""1,000 dialogues imagined while one call in ten fails, and while the process is killed.

A real server on loopback answers in the words of the embedded travel world; about half of the
dialogues fail a criterion and are rewritten.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from messages_server import ANSWER_FAULTS, DELIVERY_FAULTS, MessagesServer, wait_until
from world_llm import WorldLLM

from imagination.engine import EngineConfig, Imagined, imagine_dialogues
from imagination.llm import Client, LLMConfig
from imagination.simulation import travel

DIALOGUES = 1000
IN_FLIGHT = 16
# The caller's fault stops a run, and a slow answer is none; all others may come at any time.
CALLERS_FAULTS = ("400", "401", "403", "404", "413", "422")
KINDS = {*DELIVERY_FAULTS, *ANSWER_FAULTS} - {*CALLERS_FAULTS, "slow"}
ONE_IN_TEN = dict.fromkeys(sorted(KINDS), 0.1 / len(KINDS))


class Critic(WorldLLM):
    """Finds fault with every other dialogue that it is shown."""

    def _verdicts(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        found = super()._verdicts(system, messages, fields)
        found["verdicts"][0]["fulfilled"] = zlib.crc32(messages[-1]["content"].encode()) % 2 == 0
        return found


def imagine(url: str, folder: Path) -> Imagined:
    """As the paper does it: scripts towards an outcome, judged and rewritten."""

    async def run() -> Imagined:
        # Asked often enough that no question runs out of asks by chance.
        llm = LLMConfig("world", base_url=url, max_in_flight=IN_FLIGHT, max_asks=9)
        client = Client(llm, folder)
        try:
            settings = {"way": "script", "rewards": "outcome", "failed_critique": "keep"}
            engine = EngineConfig(DIALOGUES, **settings)
            return await imagine_dialogues(client, travel.TASK, engine)
        finally:
            await client.close()

    return asyncio.run(run())


def keys_on_disk(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "cache.jsonl").open()]


@pytest.fixture(scope="module", autouse=True)
def key_in_environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", "none")
        yield


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Imagined, int]:
    """Result where nothing fails, and the number of calls that takes."""
    with MessagesServer(Critic("travel")) as server:
        imagined = imagine(server.url, tmp_path_factory.mktemp("smooth"))
    kinds = collections.Counter(d.source["kind"] for d in imagined.dialogues)
    assert kinds["imagined"] + kinds["critiqued"] == DIALOGUES and min(kinds.values()) > 300
    return imagined, len(server.calls)


@pytest.mark.slow
def test_faults_lose_nothing_repeat_nothing_and_cost_no_call_more(smooth, tmp_path):
    imagined, needed = smooth
    with MessagesServer(Critic("travel"), faults=ONE_IN_TEN, retry_after_ms=5) as server:
        assert imagine(server.url, tmp_path) == imagined
    assert {call.fault for call in server.calls} == {"", *KINDS}
    assert len(server.calls) == needed + server.fault_count(*KINDS)
    keys = keys_on_disk(tmp_path)
    assert len(keys) == len(set(keys)) == needed + server.fault_count(*ANSWER_FAULTS)
    assert not (tmp_path / "failed.jsonl").exists()


@pytest.mark.slow
def test_killed_twice_among_faults_and_resumed_gives_the_same_dataset(smooth, tmp_path):
    imagined, needed = smooth
    script = f"""
import pathlib, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]!r}
import test_thousand_dialogues
test_thousand_dialogues.imagine(sys.argv[1], pathlib.Path(sys.argv[2]))
"""
    with MessagesServer(Critic("travel"), faults=ONE_IN_TEN, retry_after_ms=5) as server:
        for part in (0.3, 0.7):
            process = subprocess.Popen(
                [sys.executable, "-c", script, server.url, str(tmp_path)], env=os.environ
            )
            wait_until(lambda part=part: sum(server.answered.values()) > part * needed, 120)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert imagine(server.url, tmp_path) == imagined
        answered, calls = sum(server.answered.values()), len(server.calls)
    keys = keys_on_disk(tmp_path)
    assert len(keys) == len(set(keys))
    # Only those in flight at a kill came a second time: nobody received their answers.
    assert 0 <= answered - len(keys) <= 2 * IN_FLIGHT
    assert calls <= needed + server.fault_count(*KINDS) + 2 * IN_FLIGHT
