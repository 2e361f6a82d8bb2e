"""Share of the imagination engine's time that is its own.

    python experiments/benchmarks/engine.py

Two figures, against the tests' server on this machine, which speaks the embedded travel world:
dialogues a second when every answer is in the cache (what remains is the engine), and how many
calls are in flight at a time against a server that takes a second for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

# The stand-in for a model belongs to the tests; nothing else of them is used.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from messages_server import MessagesServer
from world_llm import WorldLLM

from imagination.engine import EngineConfig, imagine_dialogues
from imagination.llm import Client, LLMConfig
from imagination.simulation import load_world

DIALOGUES, IN_FLIGHT = 1000, 64


async def imagine(url: str, folder: Path, dialogues: int, **llm) -> float:
    """Seconds that it takes to imagine the dialogues as scripts, without critique."""
    engine = EngineConfig(
        dialogues, way="script", rewards="outcome", critique_rounds=0, personas_per_call=1
    )
    start = time.perf_counter()
    client = Client(LLMConfig("world", base_url=url, **llm), folder)
    try:
        result = await imagine_dialogues(client, load_world("travel").task, engine)
    finally:
        await client.close()
    assert len(result.dialogues) == dialogues
    return time.perf_counter() - start


def main() -> None:
    os.environ.setdefault("ANTHROPIC_API_KEY", "none")  # loopback asks for none
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, MessagesServer(WorldLLM("travel")) as server:
        asyncio.run(imagine(server.url, Path(folder), DIALOGUES))
        again = min(asyncio.run(imagine(server.url, Path(folder), DIALOGUES)) for _ in range(3))
        found["dialogues_per_second_from_cache"] = DIALOGUES / again
    with (
        tempfile.TemporaryDirectory() as folder,
        MessagesServer(WorldLLM("travel"), latency=1.0) as server,
    ):
        asyncio.run(imagine(server.url, Path(folder), 4 * IN_FLIGHT, max_in_flight=IN_FLIGHT))
        found["most_calls_in_flight"] = server.peak_in_flight
    for name, value in found.items():
        print(f"{name.replace('_', ' ')}: {value:,.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
