"""A study in headless Chromium: the whole way, with all that people do to pages.

`STUDY_SCREENSHOTS=FOLDER pytest ...` keeps a picture of each page, wide and narrow, light and dark.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import browsers
import pytest
from studies import Echo, Site

from experiments.human_study.config import StudyConfig
from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.store import Store
from experiments.serving.answer import AgentError, Answer

study_server = pytest.importorskip("study_server")


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with browsers.chromium() as browser:
        yield browser


class Person:
    """Somebody with a browser of their own; every error that a page raises fails the test."""

    def __init__(self, chromium, address: str, **context):
        self.address = address
        self.context = chromium.new_context(**{"viewport": {"width": 360, "height": 740}} | context)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.page.on("console", self._listen)

    def _listen(self, message) -> None:
        # What the server refuses is no fault of a page.
        if message.type == "error" and "status of 4" not in message.text:
            self.errors.append(message.text)

    def begin(self, query: str = "") -> None:
        self.page.goto(f"{self.address}/{query}")
        self.page.get_by_role("checkbox").check()
        self.page.get_by_role("button", name="Begin").click()
        self.page.get_by_role("button", name="Begin the first conversation").click()

    def say(self, text: str) -> None:
        said = self.page.locator(".talk .agent").count()
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")
        self.page.locator(".talk .agent").nth(said).wait_for()
        self.page.locator("#say button:enabled").wait_for()
        # Where the next message is written can be seen without scrolling.
        bottom = "document.getElementById('text').getBoundingClientRect().bottom"
        self.page.wait_for_function(f"{bottom} <= innerHeight")

    def rate(self) -> None:
        for group in self.page.locator("fieldset").all():
            is_check = "choose 2" in group.inner_text()
            group.get_by_role("radio").nth(1 if is_check else 3).check()
        self.page.get_by_role("button", name="Send the ratings").click()

    def fits(self) -> bool:
        width = self.page.evaluate("document.documentElement.scrollWidth")
        return width <= self.page.viewport_size["width"]

    def close(self) -> None:
        self.context.close()
        assert not self.errors


SHOTS = os.environ.get("STUDY_SCREENSHOTS", "")


def shoot(person: Person, name: str) -> None:
    """Keeps pictures of the page as it is, where asked for."""
    assert person.fits(), name
    if not SHOTS:
        return
    for width in (1280, 360):
        for scheme in ("light", "dark"):
            person.page.set_viewport_size({"width": width, "height": 740})
            person.page.emulate_media(color_scheme=scheme)
            path = Path(SHOTS) / f"{name}-{width}-{scheme}.png"
            person.page.screenshot(path=path, full_page=True)


class Gated(Echo):
    """Answers once it may."""

    def __init__(self, name: str, may_answer: threading.Event):
        super().__init__(name)
        self._may_answer = may_answer

    async def answer(self, dialogue_turns, seed, system=None):
        while not self._may_answer.is_set():
            await asyncio.sleep(0.01)
        return await super().answer(dialogue_turns, seed, system)


def crash(text: str) -> Answer:
    raise AgentError("gone")


def test_the_whole_way_with_reload_back_double_click_and_two_tabs(chromium, tmp_path: Path):
    form = Questionnaire.load(FOLDER / "teaching.yaml")
    config = StudyConfig(answer_floor=0, requests_per_second=1e6, return_url="http://127.0.0.1:9/")
    may_answer = threading.Event()
    agents = [Gated("alpha", may_answer), Gated("beta", may_answer)]
    with study_server.served(tmp_path, questionnaire=form, config=config, agents=agents) as (
        _,
        address,
    ):
        person = Person(chromium, address)
        page = person.page
        page.goto(f"{address}/?PROLIFIC_PID=p1&SESSION_ID=s1")
        shoot(person, "1-consent")
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Begin").dblclick()
        page.get_by_role("heading", name="Before you begin").wait_for()
        shoot(person, "2-instructions")
        page.get_by_role("button", name="Begin the first conversation").dblclick()
        page.get_by_role("heading", name="Agent A").wait_for()
        assert page.get_by_role("button", name="Finish").is_disabled()

        # Twice Enter, and a reload while the agent is writing.
        page.get_by_label("Your message").fill("Hello, can you teach me <b>gravity</b>?")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        page.get_by_text("Agent A is writing").wait_for()
        shoot(person, "3-writing")
        page.reload()
        page.get_by_text("Agent A is writing").wait_for()
        may_answer.set()
        page.locator(".talk .agent").first.wait_for()
        assert page.locator(".talk li").count() == 2

        # A second tab is where the first one is; what the first then knows no more is refused.
        second = person.context.new_page()
        second.goto(f"{address}/study")
        assert second.locator(".talk li").count() == 2
        second.get_by_label("Your message").fill("From the second tab")
        second.get_by_role("button", name="Send").click()
        second.locator(".talk .agent").nth(1).wait_for()
        page.get_by_label("Your message").fill("From the first tab")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("gone on in another window").wait_for()
        page.locator(".talk .agent").nth(1).wait_for()
        assert page.get_by_label("Your message").input_value() == "From the first tab"
        second.close()
        shoot(person, "4-chat")

        page.get_by_role("button", name="Finish").dblclick()
        page.get_by_role("button", name="Send the ratings").wait_for()
        shoot(person, "5-rate")
        page.go_back()
        page.get_by_role("button", name="Send the ratings").wait_for()
        person.rate()
        page.get_by_role("heading", name="Agent B").wait_for()
        page.go_back()
        page.get_by_role("heading", name="Agent B").wait_for()

        for text in ("Hello", "Go on " * 60, "Thanks"):
            person.say(text)
        page.get_by_role("button", name="Finish").click()
        person.rate()
        page.get_by_role("button", name="Send the ranking").wait_for()
        shoot(person, "6-ranking")
        for place, choice in enumerate(page.get_by_role("combobox").all(), start=1):
            choice.select_option(str(place))
        page.get_by_role("button", name="Send the ranking").click()
        page.get_by_role("heading", name="Thank you").wait_for()
        shoot(person, "7-done")
        assert page.get_by_role("link", name="Back to the platform").is_visible()
        page.get_by_role("textbox").fill("A comment")
        page.get_by_role("button", name="Send the comment").click()
        page.get_by_text("Your comment is kept").wait_for()
        page.get_by_role("link", name="Withdraw").click()
        page.get_by_role("button", name="Delete everything").wait_for()
        shoot(person, "8-withdraw")
        person.close()
    store = Store(tmp_path / "study.sqlite")
    [participant] = store.participants()
    assert participant.finished_at and participant.comment == "A comment"
    first, last = store.talks()
    assert [m.text for m in first.messages if m.speaker == "human"] == [
        "Hello, can you teach me <b>gravity</b>?",
        "From the second tab",
    ]
    assert len(last.messages) == 6 and len(store.ratings()) == 8


@pytest.mark.slow
def test_by_keyboard_alone_with_names_for_all_that_can_be_reached(chromium, tmp_path: Path):
    with study_server.served(tmp_path) as (_, address):
        person = Person(chromium, address)
        page, press = person.page, person.page.keyboard.press
        page.goto(address)
        for key in ("Tab", "Tab", "Space", "Tab", "Enter"):  # past the link to the content
            press(key)
        page.get_by_role("heading", name="Before you begin").wait_for()
        page.get_by_role("button").focus()
        press("Enter")
        page.get_by_label("Your message").wait_for()
        assert page.evaluate("document.activeElement.id") == "text"
        for text in ("Hello", "And now?"):
            page.keyboard.type(text)
            press("Enter")
            page.locator("#say button:enabled").wait_for()
            page.wait_for_function("document.activeElement.id === 'text'")
        assert page.get_by_role("log").get_attribute("aria-live") == "polite"
        page.get_by_role("button", name="Finish").focus()
        press("Enter")
        page.locator("fieldset").first.wait_for()
        names = [g.get_by_role("radio").count() for g in page.locator("fieldset").all()]
        assert names == [5] * 5
        nameless = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]),select,textarea')]"
            ".filter((e) => !e.labels.length).length"
        )
        assert nameless == 0
        person.close()


@pytest.mark.slow
def test_a_lost_connection_loses_nothing(chromium, tmp_path: Path):
    with study_server.served(tmp_path) as (_, address):
        person = Person(chromium, address)
        person.begin()
        person.say("Hello")
        person.context.set_offline(True)
        person.page.get_by_label("Your message").fill("Are you there?")
        person.page.keyboard.press("Enter")
        person.page.get_by_text("connection is lost").wait_for()
        person.context.set_offline(False)
        person.page.locator(".talk .agent").nth(1).wait_for()
        assert person.page.locator(".talk li").count() == 4
        person.errors[:] = [e for e in person.errors if "ERR_INTERNET_DISCONNECTED" not in e]
        person.close()


@pytest.mark.slow
def test_without_script_all_of_it_works(chromium, tmp_path: Path):
    with study_server.served(tmp_path) as (_, address):
        person = Person(chromium, address, java_script_enabled=False)
        person.begin()
        page = person.page
        for turn in range(2):
            page.get_by_label("Your message").fill(f"Message {turn}")
            page.get_by_role("button", name="Send").click()
            page.locator(".talk .agent").nth(turn).wait_for()
            page.locator("#say button:enabled").wait_for()
        page.get_by_role("button", name="Finish").click()
        person.rate()
        page.get_by_role("heading", name="Agent B").wait_for()
        person.close()


@pytest.mark.slow
def test_an_agent_that_fails_is_told(chromium, tmp_path: Path):
    agents = [Echo("bad", crash), Echo("worse", crash)]
    with study_server.served(tmp_path, agents=agents) as (_, address):
        person = Person(chromium, address)
        person.begin()
        person.page.get_by_label("Your message").fill("Hello")
        person.page.keyboard.press("Enter")
        person.page.get_by_text("no fault of yours").wait_for()
        shoot(person, "9-told")
        person.page.get_by_role("button", name="Go on").click()
        person.page.get_by_role("heading", name="Agent B").wait_for()
        person.close()


@pytest.mark.slow
def test_the_researchers_page(chromium, tmp_path: Path):
    with study_server.served(tmp_path) as (_, address):
        person = Person(chromium, address)
        person.begin("?PROLIFIC_PID=p1")
        person.say("Hello")
        person.page.goto(f"{address}/admin")
        shoot(person, "10-enter")
        person.page.get_by_label("Token").fill(Site.TOKEN)
        person.page.get_by_role("button", name="Enter").click()
        person.page.get_by_role("heading", name="Progress").wait_for()
        shoot(person, "11-admin")
        person.page.get_by_role("button", name="Pause").click()
        person.page.get_by_text("nobody can begin").wait_for()
        person.close()
