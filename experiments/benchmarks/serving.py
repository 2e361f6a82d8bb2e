"""Seconds to an answer while many people chat with a served agent at the same time, over HTTP.

    python experiments/benchmarks/serving.py --workdir=runs/teaching
    python experiments/benchmarks/serving.py --workdir=runs/teaching --people=200 --think=0

The server runs in a process of its own, as `experiments/serve.py` runs it, on the same cores. The
people are the simulated humans of the run's world; each reads and writes for `--think` seconds on
average before asking, and begins another conversation when one is over. What the networks need is
compiled before the first of them comes. The run should have been trained for a while: an agent
that has learned nothing never stops before its longest utterance.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from experiments import launch
from experiments.benchmarks import measuring
from experiments.serving.config import AgentSettings
from experiments.serving.runs import open_run
from experiments.serving.web import WebConfig
from imagination.dialogue import ROLE_OF_SPEAKER, Turn
from imagination.simulation import SimulatedHuman, World, load_world, sample_conversations

SEED = 40_000_003  # far from those of data, validation and test
LIMIT = 120.0  # seconds that a person waits


def run(
    workdir: str,
    method: str,
    people: int,
    answers: int,
    think: float,
    settings: AgentSettings | None = None,
) -> dict[str, Any]:
    """Lets people chat with a method of a run.

    Args:
        workdir: Folder of the run, whose task is an embedded world.
        method: Method that answers.
        people: People at the same time.
        answers: Answers that each of them gets.
        think: Mean seconds from an answer to the next question.
        settings: How the agent answers; None = as served by default.

    Returns:
        `p50` and `p95` in seconds, `within_1_s` (share), `answers_per_second`, `failed`, and of the
        server `cpu_seconds` of an answer and `peak_bytes`.
    """
    experiment, _ = open_run(workdir)
    world = load_world(experiment.task.world)
    with _Server(f"{workdir}:{method}", settings or AgentSettings()) as server:
        found = chat(server.address, method, world, people, answers, think)
        cpu, peak = server.stop()
        answered = people * answers - found["failed"]
        return {**found, "cpu_seconds": cpu / answered, "peak_bytes": peak}


def chat(
    address: str, model: str, world: World, people: int, answers: int, think: float
) -> dict[str, Any]:
    """Lets people of a world chat with an agent of a server; returns what `run` does of times."""
    start = time.perf_counter()
    seconds = asyncio.run(_chat(address, model, world, people, answers, think))
    wall = time.perf_counter() - start
    answered = [each for each in seconds if each is not None]
    if not answered:
        raise SystemExit("no question was answered; what went wrong stands above.")
    return {
        "people": people,
        "think": think,
        "p50": float(np.percentile(answered, 50)),
        "p95": float(np.percentile(answered, 95)),
        "within_1_s": float(np.mean(np.asarray(answered) <= 1.0)),
        "answers_per_second": len(answered) / wall,
        "failed": len(seconds) - len(answered),
    }


class _Server:
    """The server, in a process of its own.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, spec: str, settings: AgentSettings):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, settings), daemon=True)

    def __enter__(self) -> _Server:
        self._process.start()
        self.address = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def stop(self) -> tuple[float, int]:
        """Ends it; returns its seconds of processor time, and the most bytes it had in memory."""
        self._pipe.send("stop")
        return self._answer()

    def _answer(self) -> Any:
        while not self._pipe.poll(1.0):
            if not self._process.is_alive():
                raise SystemExit("the server ended; its error stands above.")
        return self._pipe.recv()


def _serve(pipe: Any, spec: str, settings: AgentSettings) -> None:
    from experiments.serving import web
    from experiments.serving.agents import load_agents
    from experiments.serving.app import make_app
    from experiments.serving.batching import Batcher

    with launch.told_errors() as console:
        config = WebConfig(port=0)
        with web.listen(config) as listening:
            batcher = Batcher(settings.most_waiting)
            agents = load_agents([spec], settings, console=console, batcher=batcher)
            server = web.server(make_app(agents, batcher, config), config)

            def stop() -> None:
                pipe.recv()
                server.should_exit = True

            threading.Thread(target=stop, daemon=True).start()
            pipe.send(web.address_of(listening))
            start = time.process_time()
            server.run(sockets=[listening])
        pipe.send((time.process_time() - start, measuring.peak_memory()))


async def _chat(
    address: str, model: str, world: World, people: int, answers: int, think: float
) -> list[float | None]:
    human = SimulatedHuman(world)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=address, timeout=LIMIT, limits=limits) as client:
        found = await asyncio.gather(
            *(_person(p, client, model, world, human, answers, think) for p in range(people))
        )
    return [seconds for each in found for seconds in each]


async def _person(
    index: int,
    client: httpx2.AsyncClient,
    model: str,
    world: World,
    human: SimulatedHuman,
    answers: int,
    think: float,
) -> list[float | None]:
    """Seconds to each answer of one person; None where there was none."""
    dice = random.Random(index)
    seconds: list[float | None] = []
    humans = iter(sample_conversations(world, "average", answers, SEED + index, f"person-{index}"))
    await asyncio.sleep(dice.uniform(0, think))  # they do not come at the same moment
    conversation = next(humans)
    while len(seconds) < answers:
        if conversation.finished or len(conversation.turns) >= 2 * world.task.max_turns:
            conversation = next(humans)
        [said] = human.respond([conversation])
        conversation.turns.append(Turn("human", said.text))
        conversation.finished = said.ends
        if said.ends and len(conversation.turns) > 1:
            continue
        await asyncio.sleep(dice.uniform(0.5, 1.5) * think)
        messages = [
            {"role": ROLE_OF_SPEAKER[turn.speaker], "content": turn.text}
            for turn in conversation.turns
        ]
        body = {"model": model, "messages": messages, "seed": conversation.seed}
        start = time.perf_counter()
        try:
            response = await client.post("/v1/chat/completions", json=body)
            text = response.raise_for_status().json()["choices"][0]["message"]["content"]
        except httpx2.HTTPError as error:
            print(f"person {index}: {error}")
            seconds.append(None)
            conversation.finished = True
            continue
        seconds.append(time.perf_counter() - start)
        conversation.turns.append(Turn("agent", text))
    return seconds


def main() -> None:
    line = measuring.arguments(
        __doc__, workdir="runs/teaching", method="ilql", people=60, answers=10, think=5.0
    )
    with launch.told_errors():
        found = run(line.workdir, line.method, line.people, line.answers, line.think)
    measuring.print_table(
        [
            {
                "people": found["people"],
                "think, s": found["think"],
                "p50, s": found["p50"],
                "p95, s": found["p95"],
                "within 1 s": f"{found['within_1_s']:.1%}",
                "answers/s": found["answers_per_second"],
                "CPU seconds an answer": found["cpu_seconds"],
                "failed": found["failed"],
                "peak memory, GB": found["peak_bytes"] / 1e9,
            }
        ]
    )
    measuring.write_json(line.json, {**found, "run": Path(line.workdir).name})


if __name__ == "__main__":
    main()
