"""Seconds to an answer while many people chat with a served agent at the same time, over HTTP.

    python experiments/benchmarks/serving.py --workdir=runs/teaching
    python experiments/benchmarks/serving.py --workdir=runs/teaching --people=200 --think=0
    python experiments/benchmarks/serving.py --workdir=runs/teaching --through=pages

The server runs in a process of its own, as `experiments/serve.py` runs it, on the same cores; or as
`experiments/study.py` does (`--through=pages`), without the floor to the time of an answer. The
people are the simulated humans of the run's world; each reads and writes for `--think` seconds on
average before asking, and begins another conversation when one is over; in a study they rate it,
and take part again as others. What the networks need is compiled before the first of them comes.
The run should have been trained for a while: an agent that has learned nothing never stops before
its longest utterance.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import numpy as np
from rich.console import Console
from starlette.types import ASGIApp

from experiments import launch
from experiments.benchmarks import measuring
from experiments.human_study.browser import Browser, Page
from experiments.serving import web
from experiments.serving.config import AgentSettings
from experiments.serving.runs import open_run
from experiments.serving.web import WebConfig
from imagination.dialogue import ROLE_OF_SPEAKER, Turn
from imagination.simulation import SimulatedHuman, World, load_world, sample_conversations
from imagination.speakers import Conversation

SEED = 40_000_003  # far from those of data, validation and test
LIMIT = 120.0  # seconds that a person waits
API, PAGES = WAYS = "api", "pages"


def run(
    workdir: str,
    method: str,
    people: int,
    answers: int,
    think: float,
    settings: AgentSettings | None = None,
    through: str = API,
) -> dict[str, Any]:
    """Lets people chat with a method of a run.

    Args:
        workdir: Folder of the run, whose task is an embedded world.
        method: Method that answers.
        people: People at the same time.
        answers: Answers that each of them gets.
        think: Mean seconds from an answer to the next question.
        settings: Settings by which the agent answers; None = as served by default.
        through: One of `WAYS`.

    Returns:
        `p50` and `p95` in seconds, `within_1_s` (share), `answers_per_second`, `failed`,
        `pages_p95` (of the other pages of a study, None where there are none), and of the server
        `cpu_seconds` of an answer and `peak_bytes`.
    """
    experiment, _ = open_run(workdir)
    world = load_world(experiment.task.world)
    with _Server(f"{workdir}:{method}", settings or AgentSettings(), through) as server:
        found = chat(server.address, method, world, people, answers, think, through)
        cpu, peak = server.stop()
        answered = people * answers - found["failed"]
        return {**found, "cpu_seconds": cpu / answered, "peak_bytes": peak}


def chat(
    address: str,
    model: str,
    world: World,
    people: int,
    answers: int,
    think: float,
    through: str = API,
) -> dict[str, Any]:
    """Lets people of a world chat with an agent of a server; returns what `run` does of times."""
    start = time.perf_counter()
    pages: list[float] = []
    seconds = asyncio.run(_chat(address, model, world, people, answers, think, through, pages))
    wall = time.perf_counter() - start
    answered = [each for each in seconds if each is not None]
    if not answered:
        raise SystemExit("no question was answered; what went wrong stands above.")
    return {
        "people": people,
        "think": think,
        "through": through,
        "p50": float(np.percentile(answered, 50)),
        "p95": float(np.percentile(answered, 95)),
        "within_1_s": float(np.mean(np.asarray(answered) <= 1.0)),
        "answers_per_second": len(answered) / wall,
        "failed": len(seconds) - len(answered),
        "pages_p95": float(np.percentile(pages, 95)) if pages else None,
    }


class _Server:
    """The server, in a process of its own.

    Attributes:
        address: Address that it listens on.
    """

    def __init__(self, spec: str, settings: AgentSettings, through: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, spec, settings, through), daemon=True
        )

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


def _serve(pipe: Any, spec: str, settings: AgentSettings, through: str) -> None:
    with launch.told_errors() as console:
        config = WebConfig(port=0)
        serves = _study if through == PAGES else _api
        with web.listen(config) as listening, serves(spec, settings, config, console) as app:
            server = web.server(app, config)

            def stop() -> None:
                pipe.recv()
                server.should_exit = True

            threading.Thread(target=stop, daemon=True).start()
            pipe.send(web.address_of(listening))
            start = time.process_time()
            server.run(sockets=[listening])
        pipe.send((time.process_time() - start, measuring.peak_memory()))


@contextlib.contextmanager
def _api(
    spec: str, settings: AgentSettings, config: WebConfig, console: Console
) -> Iterator[ASGIApp]:
    from experiments.serving.agents import load_agents
    from experiments.serving.app import make_app
    from experiments.serving.batching import Batcher

    batcher = Batcher(settings.most_waiting)
    agents = load_agents([spec], settings, console=console, batcher=batcher)
    yield make_app(agents, batcher, config)


@contextlib.contextmanager
def _study(
    spec: str, settings: AgentSettings, config: WebConfig, console: Console
) -> Iterator[ASGIApp]:
    from experiments.human_study.answering import Answering
    from experiments.human_study.command import prepare
    from experiments.human_study.config import StudyConfig
    from experiments.human_study.pages import build_app

    study = StudyConfig(runs=spec, answer_floor=0.0, participants=100_000, requests_per_second=1e6)
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(study, settings, Path(folder), (), console)
        answering = Answering(setup.study, setup.agents, 0.0, LIMIT)
        yield web.Strict(build_app(setup.study, answering, study, setup.notices), config)


# --- people -------------------------------------------------------------------------------------


class NoAnswer(Exception):
    """A question without an answer; says why."""


class _Way(Protocol):
    """Way to talk with the agent."""

    async def begin(self) -> None:
        """Begins another conversation."""
        ...

    async def ask(self, conversation: Conversation) -> str:
        """Sends the human's last turn; returns the answer. Raises `NoAnswer` or `HTTPError`."""
        ...


class _ThroughApi:
    def __init__(self, client: httpx2.AsyncClient, model: str):
        self._client, self._model = client, model

    async def begin(self) -> None:
        pass

    async def ask(self, conversation: Conversation) -> str:
        messages = [
            {"role": ROLE_OF_SPEAKER[turn.speaker], "content": turn.text}
            for turn in conversation.turns
        ]
        body = {"model": self._model, "messages": messages, "seed": conversation.seed}
        response = await self._client.post("/v1/chat/completions", json=body)
        return response.raise_for_status().json()["choices"][0]["message"]["content"]


class _ThroughPages:
    """Does what a participant's browser does, script included; another participant each time.

    Args:
        client: With cookies of its own.
        pages: Gets the seconds of each page.
    """

    def __init__(self, client: httpx2.AsyncClient, pages: list[float]):
        self._client, self._browser, self._pages = client, Browser(client), pages
        self._form: dict[str, str] = {}

    async def begin(self) -> None:
        if self._form:
            await self._rate()
        self._client.cookies.clear()
        page = await self._timed("/")
        page = await self._timed(page, "/consent", {"agree": "yes"})
        page = await self._timed(page, "/instructions")
        self._form = page.forms["/say"].fields

    async def _rate(self) -> None:
        page = await self._timed("/study")
        if "/finish" in page.forms and page.forms["/finish"].can_be_sent:
            page = await self._timed(page, "/finish")
        if "/rate" in page.forms:
            choices = page.forms["/rate"].choices
            await self._timed(page, "/rate", {name: each[1] for name, each in choices.items()})

    async def _timed(
        self, page: Page | str, form: str = "", fields: dict[str, str] | None = None
    ) -> Page:
        start = time.perf_counter()
        if isinstance(page, str):
            found = await self._browser.open(page)
        else:
            found = await self._browser.send(page.forms[form], fields)
        self._pages.append(time.perf_counter() - start)
        if found.status != 200:
            raise NoAnswer(f"{found.status}: {found.error or found.heading}")
        return found

    async def ask(self, conversation: Conversation) -> str:
        place = len(conversation.turns) - 1
        text = conversation.turns[-1].text
        fields = {"place": str(place), "form": secrets.token_hex(16), "text": text}
        sent = await self._client.post(
            "/say", data=self._form | fields, headers={"accept": "application/json"}
        )
        sent.raise_for_status()
        while True:
            query = {"key": self._form["key"], "from": str(place + 1)}
            news = (await self._client.get("/news", params=query)).raise_for_status().json()
            if news["messages"]:
                conversation.finished |= news["over"]
                return news["messages"][0]["text"]
            if news["over"]:
                raise NoAnswer("the conversation was ended")


async def _chat(
    address: str,
    model: str,
    world: World,
    people: int,
    answers: int,
    think: float,
    through: str,
    pages: list[float],
) -> list[float | None]:
    human = SimulatedHuman(world)

    async def come(index: int) -> list[float | None]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=address, timeout=LIMIT, limits=limits, verify=False
        ) as client:
            way = _ThroughPages(client, pages) if through == PAGES else _ThroughApi(client, model)
            return await _person(index, way, world, human, answers, think)

    found = await asyncio.gather(*map(come, range(people)))
    return [seconds for each in found for seconds in each]


async def _person(
    index: int, way: _Way, world: World, human: SimulatedHuman, answers: int, think: float
) -> list[float | None]:
    """Seconds to each answer of one person; None where there was none."""
    dice = random.Random(index)
    seconds: list[float | None] = []
    humans = iter(sample_conversations(world, "average", answers, SEED + index, f"person-{index}"))
    await asyncio.sleep(dice.uniform(0, think))  # they do not come at the same moment
    conversation = next(humans)
    await way.begin()
    while len(seconds) < answers:
        if conversation.finished or len(conversation.turns) >= 2 * world.task.max_turns:
            conversation = next(humans)
            await way.begin()
        [said] = human.respond([conversation])
        conversation.turns.append(Turn("human", said.text))
        conversation.finished = said.ends
        if said.ends and len(conversation.turns) > 1:
            continue
        await asyncio.sleep(dice.uniform(0.5, 1.5) * think)
        start = time.perf_counter()
        try:
            text = await way.ask(conversation)
        except (httpx2.HTTPError, NoAnswer) as error:
            print(f"person {index}: {type(error).__name__} {error}")
            seconds.append(None)
            conversation.finished = True
            continue
        seconds.append(time.perf_counter() - start)
        conversation.turns.append(Turn("agent", text))
    return seconds


def main() -> None:
    line = measuring.arguments(
        __doc__,
        workdir="runs/teaching",
        method="ilql",
        people=60,
        answers=10,
        think=5.0,
        through=WAYS,
    )
    with launch.told_errors():
        found = run(
            line.workdir, line.method, line.people, line.answers, line.think, None, line.through
        )
    measuring.print_table(
        [
            {
                "people": found["people"],
                "through": found["through"],
                "think, s": found["think"],
                "p50, s": found["p50"],
                "p95, s": found["p95"],
                "within 1 s": f"{found['within_1_s']:.1%}",
                "answers/s": found["answers_per_second"],
                "CPU seconds an answer": found["cpu_seconds"],
                "other pages p95, s": "–" if found["pages_p95"] is None else found["pages_p95"],
                "failed": found["failed"],
                "peak memory, GB": found["peak_bytes"] / 1e9,
            }
        ]
    )
    measuring.write_json(line.json, {**found, "run": Path(line.workdir).name})


if __name__ == "__main__":
    main()
