"""A study whose server is killed at random moments under load: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from experiments.human_study.browser import Browser, Form, Page
from experiments.human_study.store import Store

SUPPORT = Path(__file__).parents[1] / "support"
ROOT = Path(__file__).parents[2]


class Server:
    """The server's process, which is killed and begun again on the same port."""

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "study_process.py"), str(self._folder), str(self.port)],
            env={"PYTHONPATH": f"{ROOT}:{SUPPORT}", "PATH": ""},
            cwd=ROOT,
        )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self._begin()

    async def listens(self) -> None:
        """Waits until it answers."""
        address = f"http://127.0.0.1:{self.port}/healthz"
        async with httpx2.AsyncClient(timeout=5) as client:
            while True:
                try:
                    await client.get(address)
                    return
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)


class Person:
    """Goes through the study, and sends everything again that was not acknowledged."""

    def __init__(self, name: str, address: str, seed: int):
        self.name, self._address = name, address
        self._rng = random.Random(seed)
        self.acknowledged: list[str] = []
        self._said = 0

    async def take_part(self) -> None:
        async with self._browser() as browser:
            page = await self._until_there(browser.open("/"), lambda: browser.open("/"))
            page = await self._send(browser, page.forms["/consent"], {"agree": "yes"})
            while not page.code:
                page = await self._next(browser, page)

    @contextlib.asynccontextmanager
    async def _browser(self) -> AsyncIterator[Browser]:
        async with httpx2.AsyncClient(base_url=self._address, timeout=20) as client:
            yield Browser(client)

    async def _next(self, browser: Browser, page: Page) -> Page:
        forms = page.forms
        if page.waits:
            await asyncio.sleep(0.02)
            return await self._until_there(browser.open("/study"), lambda: browser.open("/study"))
        if "/say" in forms and forms["/finish"].can_be_sent and self._rng.random() < 0.5:
            return await self._send(browser, forms["/finish"], {})
        if "/say" in forms:
            self._said += 1
            text = f"{self.name} says {self._said}"
            page = await self._send(browser, forms["/say"], {"text": text})
            self.acknowledged.append(text)
            return page
        if "/rate" in forms:
            names = forms["/rate"].choices
            return await self._send(browser, forms["/rate"], dict.fromkeys(names, "3"))
        if "/rank" in forms:
            places = {name: str(i + 1) for i, name in enumerate(forms["/rank"].choices)}
            return await self._send(browser, forms["/rank"], places)
        return await self._send(browser, forms["/instructions"], {})

    async def _send(self, browser: Browser, form: Form, fields: dict[str, str]) -> Page:
        return await self._until_there(
            browser.send(form, fields), lambda: browser.send(form, fields)
        )

    async def _until_there(self, first, again) -> Page:
        attempt = first
        while True:
            try:
                page = await attempt
                assert page.status == 200, page.html
                return page
            except httpx2.TransportError:  # killed before, while or after it was kept
                await asyncio.sleep(0.1)
                attempt = again()


async def under_load(folder: Path, kills: int, people: int, seed: int) -> tuple[list[Person], int]:
    """People take part, one after the other in each of some places, until all kills are over.

    Returns:
        The people, and how many messages were acknowledged when the last kill came.
    """
    server = Server(folder)
    rng, killing, begun, said = random.Random(seed), True, [], 0

    async def come_and_go(place: int) -> None:
        number = 0
        while killing or number == 0:
            person = Person(
                f"p{place}-{number}", f"http://127.0.0.1:{server.port}", seed + 97 * place + number
            )
            begun.append(person)
            await person.take_part()
            number += 1

    async def kill() -> None:
        nonlocal killing, said
        for number in range(kills):
            # Each fourth time maybe before the server listens; else people are in the middle of
            # everything, however long a start takes on this machine.
            if number % 4:
                await server.listens()
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            said = sum(len(person.acknowledged) for person in begun)
            server.restart()
        killing = False

    try:
        await asyncio.gather(kill(), *(come_and_go(place) for place in range(people)))
    finally:
        server.kill()
    return begun, said


def check(folder: Path, people: list[Person]) -> None:
    store = Store(folder / "study.sqlite")
    said = collections.Counter(message.text for talk in store.talks() for message in talk.messages)
    for person in people:
        assert person.acknowledged and all(said[text] == 1 for text in person.acknowledged)
        assert all(said[f"You said: {text}"] == 1 for text in person.acknowledged)
    participants = store.participants()
    assert len(participants) == len(people) and all(p.finished_at for p in participants)
    assert all(len(p.ranking) == 3 for p in participants)
    for talk in store.talks():
        speakers = [message.speaker for message in talk.messages]
        assert speakers == ["human", "agent"] * (len(speakers) // 2) and not talk.aside
        assert [message.number for message in talk.messages] == list(range(len(speakers)))
    assert len(store.talks()) == 3 * len(people)
    assert len(store.ratings()) == 12 * len(people)
    rows = collections.Counter(p.row for p in participants)
    assert max(rows.values()) - min((rows[row] for row in range(6)), default=0) <= 1


def test_three_kills_under_load_lose_and_double_nothing(tmp_path: Path):
    people, _ = asyncio.run(under_load(tmp_path, kills=3, people=4, seed=1))
    check(tmp_path, people)


@pytest.mark.slow
def test_twenty_kills_under_load_lose_and_double_nothing(tmp_path: Path):
    people, said = asyncio.run(under_load(tmp_path, kills=20, people=8, seed=2))
    assert said > 40, "the kills came in the middle of conversations"
    check(tmp_path, people)
