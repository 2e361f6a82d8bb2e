"""A pilot: humans of an embedded world take part through the real pages, and rate what came of it.

It shows that pages, agents and report work together, and how large a difference a study of this
size could see, before a person is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping

import httpx2
from starlette.types import ASGIApp

from experiments.human_study.browser import Browser, Page
from experiments.human_study.questionnaire import Questionnaire
from experiments.human_study.records import StudyError
from experiments.human_study.simulated import world_rating
from experiments.human_study.store import Store
from imagination.dialogue import Turn
from imagination.simulation import SimulatedHuman, World
from imagination.simulation.speakers import sample_conversations
from imagination.speakers import Conversation

AT_ONCE = 8
_MOST_PAGES = 400  # of one participant; more is a loop
_PATIENCE = 0.05  # seconds between two looks for an answer
BASE = "http://127.0.0.1"


async def run_pilot(
    app: ASGIApp,
    store: Store,
    questionnaire: Questionnaire,
    world: World,
    count: int,
    noise: float,
    seed: int,
    on_done: Callable[[], None] | None = None,
    at_once: int = AT_ONCE,
    raters: int = 0,
) -> None:
    """Lets simulated participants go through the pages, several at a time.

    Args:
        app: The pages.
        store: The study's, from which each simulated participant has the persona of their card.
        questionnaire: Gives the scales.
        world: Its humans talk.
        count: Participants.
        noise: Standard deviation of a rating, on a scale of 1 to 5; each participant is also as a
            whole more or less pleased, by half of it.
        seed: Seed of all of it.
        on_done: Called after each participant.
        at_once: Participants at a time.
        raters: Further ones, who afterwards rate conversations of the others.

    Raises:
        StudyError: A page that no participant could go on from.
    """
    transport = httpx2.ASGITransport(app=app)
    places = asyncio.Semaphore(at_once)

    async def go_on(person: _Simulated) -> None:
        async with places:
            await person.go_on()
        if on_done:
            on_done()

    async def all_of(numbers: range, address: str) -> None:
        async with contextlib.AsyncExitStack() as clients:
            people = []
            # One after the other: who gets which order and card must not depend on who is quicker.
            for number in numbers:
                client = httpx2.AsyncClient(transport=transport, base_url=BASE)
                await clients.enter_async_context(client)
                people.append(_Simulated(client, store, questionnaire, world, noise, seed, number))
                await people[-1].begin(address)
            async with asyncio.TaskGroup() as tasks:
                for person in people:
                    tasks.create_task(go_on(person))

    await all_of(range(count), "/")
    await all_of(range(count, count + raters), "/judge")


class _Simulated:
    """One simulated participant."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        store: Store,
        questionnaire: Questionnaire,
        world: World,
        noise: float,
        seed: int,
        number: int,
    ):
        self._browser, self._client = Browser(client), client
        self._store, self._questionnaire, self._world = store, questionnaire, world
        self._noise, self._seed, self._number = noise, seed, number
        self._rng = random.Random(f"{seed}/pilot/{number}")
        self._mood = self._rng.gauss(0, noise / 2)
        self._outcomes: list[float] = []
        self._conversation: Conversation | None = None
        self._has_begun = False

    async def begin(self, address: str) -> None:
        """Agrees to take part, where there is a place."""
        page = await self._browser.open(address)
        if "/consent" in page.forms:
            await self._browser.send(page.forms["/consent"], {"agree": "yes"})
        self._has_begun = "study" in self._client.cookies

    async def go_on(self) -> None:
        """Goes through all pages to the last."""
        if not self._has_begun:
            return
        page = await self._browser.open("/study")
        for _ in range(_MOST_PAGES):
            if page.code:
                return
            page = await self._next(page)
        raise StudyError(f"Simulated participant {self._number + 1} never came to an end.")

    async def _next(self, page: Page) -> Page:
        if page.status != 200:
            raise StudyError(
                f"Simulated participant {self._number + 1} was told {page.status}: "
                f"{page.error or page.heading}"
            )
        forms = page.forms
        if "/say" in forms:
            return await self._talk(page)
        if "/rate" in forms:
            return await self._rate(page)
        if "/rank" in forms:
            return await self._rank(page)
        for action in ("/instructions", "/told"):
            if action in forms:
                self._conversation = None
                return await self._browser.send(forms[action])
        raise StudyError(f"A simulated participant knows no way on from {page.heading!r}.")

    def _persona(self) -> Mapping[str, str]:
        """Persona of the card; for a rater, of who talked."""
        number = self._store.number_of(self._client.cookies.get("study", ""))
        progress = self._store.progress(number)
        for judgement in progress.judgements:
            if judgement.rated_at is None:
                number = self._store.talk(judgement.talk).participant
                break
        return self._store.participant(number).persona

    async def _talk(self, page: Page) -> Page:
        if page.waits:
            while page.waits:  # an agent that hangs is given up by the server
                await asyncio.sleep(_PATIENCE)
                page = await self._browser.open("/study")
            return page
        if self._conversation is None:
            place = self._number * 100 + len(self._outcomes)
            [conversation] = sample_conversations(self._world, "average", 1, place, "pilot")
            conversation.persona = self._persona() or conversation.persona
            self._conversation = conversation
        conversation = self._conversation
        conversation.turns[:] = [Turn(speaker, text) for speaker, text in page.said]
        if conversation.finished:
            if page.forms["/finish"].can_be_sent:
                return await self._browser.send(page.forms["/finish"])
            return await self._browser.send(page.forms["/say"], {"text": "Goodbye."})
        [utterance] = SimulatedHuman(self._world).respond([conversation])
        conversation.finished = utterance.ends
        return await self._browser.send(page.forms["/say"], {"text": utterance.text})

    async def _rate(self, page: Page) -> Page:
        turns = [Turn(speaker, text) for speaker, text in page.said]
        persona = self._persona() or (self._conversation.persona if self._conversation else {})
        rating = world_rating(self._world, persona, turns)
        worst, best = self._world.task.reward_range
        outcome = 0.0 if rating is None else (rating - worst) / (best - worst)
        self._outcomes.append(outcome)
        self._conversation = None
        fields = {}
        for name, values in page.forms["/rate"].choices.items():
            if name.endswith("!"):
                fields[name] = str(self._questionnaire.attention.answer)
            else:
                points = sorted(map(int, values))
                fields[name] = str(self._rating(outcome, points[0], points[-1]))
        return await self._browser.send(page.forms["/rate"], fields)

    def _rating(self, outcome: float, low: int, high: int) -> int:
        step = (high - low) / 4
        felt = low + (high - low) * outcome
        felt += step * (self._mood + self._rng.gauss(0, self._noise))
        return round(min(high, max(low, felt)))

    async def _rank(self, page: Page) -> Page:
        names = list(page.forms["/rank"].choices)
        liked = [o + self._rng.gauss(0, self._noise / 4) for o in self._outcomes]
        order = sorted(range(len(names)), key=lambda place: -liked[place])
        fields = {names[place]: str(rank + 1) for rank, place in enumerate(order)}
        return await self._browser.send(page.forms["/rank"], fields)
