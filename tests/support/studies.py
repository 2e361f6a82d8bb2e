"""A study with agents that say back what they hear, for tests of its pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx2

from experiments.human_study.admin import Admin
from experiments.human_study.answering import Answering
from experiments.human_study.browser import Browser
from experiments.human_study.config import StudyConfig
from experiments.human_study.pages import build_app
from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.session import Rules, Study
from experiments.human_study.store import Store
from experiments.serving.answer import Answer
from imagination.dialogue import Turn

BASE = "http://127.0.0.1"
TOKEN = "a token that nobody guesses"
QUICK = StudyConfig(answer_floor=0.0, requests_per_second=1e6)


class Echo:
    """Says back what it hears; `say` may be anything else, and may raise."""

    opens, notice = False, ""

    def __init__(self, name: str, say: Callable[[str], Answer] | None = None):
        self.name = name
        self.asked: list[tuple[str, int]] = []
        self._say = say or (lambda text: Answer(f"You said: {text}"))

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        self.asked.append((dialogue_turns[-1].text, seed))
        await asyncio.sleep(0)
        return self._say(dialogue_turns[-1].text)

    async def close(self) -> None:
        pass


class Site:
    """A study, its pages in this process, and browsers for them."""

    TOKEN = TOKEN

    def __init__(
        self,
        folder: Path,
        agents: Sequence[Echo] = (Echo("alpha"), Echo("beta")),
        config: StudyConfig = QUICK,
        questionnaire: Questionnaire | None = None,
        notices: Sequence[str] = (),
        rules: Rules | None = None,
        timeout: float = 60.0,
    ):
        form = questionnaire or Questionnaire.load(FOLDER / "default.yaml")
        self.agents = {agent.name: agent for agent in agents}
        self.study = Study(
            Store(folder / "study.sqlite"),
            form,
            list(self.agents),
            rules or Rules(most_agent_turns=6),
        )
        self.answering = Answering(self.study, self.agents, config.answer_floor, timeout)
        admin = Admin(self.study, TOKEN, config.answer_floor, config.behind_tls)
        self.app = build_app(self.study, self.answering, config, notices, admin.routes())

    @contextlib.asynccontextmanager
    async def browser(
        self, address: str = "127.0.0.1", seen: list[str] | None = None
    ) -> AsyncIterator[Browser]:
        """A browser; `seen` gets the text of every answer, those on the way included."""

        async def keep(response: httpx2.Response) -> None:
            await response.aread()
            seen.append(response.text)

        transport = httpx2.ASGITransport(app=self.app, client=(address, 1))
        hooks = {} if seen is None else {"response": [keep]}
        async with httpx2.AsyncClient(
            transport=transport, base_url=BASE, event_hooks=hooks
        ) as client:
            yield Browser(client)

    @contextlib.asynccontextmanager
    async def joined(self, query: str = "") -> AsyncIterator[Browser]:
        """A browser whose participant is at the first conversation."""
        async with self.browser() as browser:
            page = await browser.open(f"/{query}")
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            await browser.send(page.forms["/instructions"])
            yield browser


async def exchange(browser: Browser, text: str = "Hello"):
    """Says something, and waits for the answer."""
    page = await browser.open("/study")
    await browser.send(page.forms["/say"], {"text": text})
    return await answered(browser)


async def answered(browser: Browser):
    """The page once the agent has answered."""
    for _ in range(500):
        page = await browser.open("/study")
        if not page.waits:
            return page
        await asyncio.sleep(0.005)
    raise AssertionError("the agent never answered")


async def rate(browser: Browser, value: str = "4"):
    """Gives each item of the page the same rating."""
    page = await browser.open("/study")
    names = page.forms["/rate"].choices
    return await browser.send(
        page.forms["/rate"], {name: "2" if name.endswith("!") else value for name in names}
    )


async def talk_and_rate(browser: Browser):
    await exchange(browser, "Hello")
    page = await exchange(browser, "What now?")
    await browser.send(page.forms["/finish"])
    return await rate(browser)
