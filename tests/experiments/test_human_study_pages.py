"""The pages of a study: the whole way by plain forms, what is refused, and what is never told."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import time
from pathlib import Path

import pytest
from studies import QUICK, TOKEN, Echo, Site, answered, exchange, rate, talk_and_rate

from experiments.human_study.config import StudyConfig
from experiments.human_study.overview import overview
from experiments.human_study.questionnaire import FOLDER, Questionnaire, notices
from experiments.serving.answer import AgentError, Answer, OverloadedError


def run(coroutine):
    return asyncio.run(coroutine)


async def to_the_end(browser):
    """From the first conversation to the last page."""
    page = await browser.open("/study")
    while "/say" in page.forms:
        page = await talk_and_rate(browser)
    names = page.forms["/rank"].choices
    return await browser.send(
        page.forms["/rank"], {name: str(i + 1) for i, name in enumerate(names)}
    )


def test_the_whole_way_by_plain_forms(tmp_path: Path):
    site = Site(tmp_path, config=StudyConfig(answer_floor=0, return_url="https://p.org/?cc={code}"))

    async def way():
        query = "?PROLIFIC_PID=p1&STUDY_ID=s&SESSION_ID=x"
        async with site.joined(query) as browser:
            page = await to_the_end(browser)
            assert page.heading == "Thank you" and re.fullmatch("[0-9A-F]{8}", page.code)
            assert f"https://p.org/?cc={page.code}" in page.html
            page = await browser.send(page.forms["/comment"], {"text": "Nice <b>study</b>"})
            assert "Nice &lt;b&gt;study&lt;/b&gt;" in page.html and "is kept" in page.html
            assert (await browser.open("/")).heading == "Thank you"

    run(way())
    [person] = site.study.store.participants()
    assert person.platform.participant == "p1" and person.finished_at
    assert len(site.study.store.ratings()) == 8 and len(person.ranking) == 2


def test_nothing_that_reaches_the_browser_names_an_agent_or_a_seed(tmp_path: Path):
    site = Site(tmp_path, [Echo("ilql-secret"), Echo("bc-secret")])
    seen: list[str] = []

    async def way():
        async with site.joined() as browser:

            async def keep(response):
                await response.aread()
                seen.append(str(response.headers) + response.text)

            browser.client.event_hooks["response"] = [keep]
            await browser.client.get("/news?key=chat-1&from=0")
            await to_the_end(browser)

    run(way())
    assert len(seen) > 20 and not any("secret" in each for each in seen)
    seeds = [str(talk.seed) for talk in site.study.store.talks()]
    assert not any(seed in each for each in seen for seed in seeds)


def test_every_answer_takes_at_least_the_floor(tmp_path: Path):
    waited: list[float] = []
    site = Site(tmp_path, config=StudyConfig(answer_floor=3.0))

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    site.answering._sleep = sleep

    async def way():
        async with site.joined() as browser:
            await exchange(browser)

    run(way())
    assert len(waited) == 1 and 0 < waited[0] <= 3.0


def test_a_message_that_is_sent_twice_is_one_and_asks_the_agent_once(tmp_path: Path):
    echo = Echo("only")
    site = Site(tmp_path, [echo])

    async def way():
        async with site.joined() as browser:
            page = await browser.open("/study")
            form, fields = page.forms["/say"], {"text": "Hello"}
            await asyncio.gather(*(browser.send(form, fields) for _ in range(3)))
            page = await answered(browser)
            assert page.said == [("human", "Hello"), ("agent", "You said: Hello")]
            stale = await browser.send(form, {"text": "From another window", "form": "other"})
            assert stale.status == 422 and "another window" in stale.error
            assert "From another window" in stale.html, "the words are not lost"
            assert len((await browser.open("/study")).said) == 2

    run(way())
    assert len(echo.asked) == 1


def test_forms_of_earlier_pages_change_nothing(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            chat = (await browser.open("/study")).forms
            await exchange(browser)
            page = await exchange(browser)
            await browser.send(page.forms["/finish"])
            ratings = (await browser.open("/study")).forms["/rate"]
            page = await rate(browser)
            assert page.heading == "Agent B"
            values = dict.fromkeys(ratings.choices, "1")
            for form, fields in (
                (ratings, values),
                (chat["/say"], {"text": "Old"}),
                (chat["/finish"], {}),
            ):
                page = await browser.send(form, fields)
                assert page.heading == "Agent B" and not page.said

    run(way())
    assert {rating.value for rating in site.study.store.ratings()} == {4}


def test_an_agent_that_crashes_or_hangs_is_told_and_the_next_one_comes(tmp_path: Path):
    def crash(text: str) -> Answer:
        raise AgentError("it crashed at secret place")

    site = Site(tmp_path, [Echo("bad", crash), Echo("worse", lambda text: 1 / 0)])

    async def way():
        async with site.joined() as browser:
            for expected in ("Agent B", "Thank you"):
                page = await exchange(browser)
                assert page.heading == "This conversation ends here"
                assert "no fault of yours" in page.html and "secret" not in page.html
                page = await browser.send(page.forms["/told"])
                assert page.heading == expected

    run(way())
    failures = {talk.agent: talk.failure for talk in site.study.store.talks()}
    assert "secret place" in failures["bad"] and "ZeroDivisionError" in failures["worse"]


def test_an_agent_that_hangs_is_given_up(tmp_path: Path):
    class Hanging(Echo):
        async def answer(self, dialogue_turns, seed, system=None):
            await asyncio.sleep(3600)

    site = Site(tmp_path, [Hanging("slow")], timeout=0.05)

    async def way():
        async with site.joined() as browser:
            assert (await exchange(browser)).heading == "This conversation ends here"

    run(way())
    assert "within 0.05 s" in site.study.store.talks()[0].failure


def test_an_agent_that_fails_touches_no_cell_of_another(tmp_path: Path):
    def fail(text: str) -> Answer:
        raise AgentError("it crashed")

    site = Site(tmp_path, [Echo("bad", fail), Echo("good"), Echo("fine")])

    async def way():
        for _ in range(6):
            async with site.joined() as browser:
                page = await browser.open("/study")
                while "/say" in page.forms:
                    page = await exchange(browser)
                    if "/told" in page.forms:
                        page = await browser.send(page.forms["/told"])
                    else:
                        page = await exchange(browser)
                        await browser.send(page.forms["/finish"])
                        page = await rate(browser)
                names = page.forms["/rank"].choices
                await browser.send(
                    page.forms["/rank"], {name: str(i + 1) for i, name in enumerate(names)}
                )

    run(way())
    seen = overview(site.study, 0.0)
    found = {a.name: (a.begun, a.rated, a.failed) for a in seen.agents}
    assert found == {"bad": (6, 0, 6), "good": (6, 6, 0), "fine": (6, 6, 0)}
    assert [(cell.begun, cell.kept, cell.finished) for cell in seen.cells] == [(1, 1, 1)] * 6
    assert len(site.study.store.ratings()) == 6 * 2 * 4


def test_an_agent_that_is_overloaded_is_asked_again(tmp_path: Path):
    tries = []

    def busy(text: str) -> Answer:
        tries.append(text)
        if len(tries) < 3:
            raise OverloadedError("busy", 0)
        return Answer("Here I am.")

    site = Site(tmp_path, [Echo("busy", busy)])

    async def way():
        async with site.joined() as browser:
            assert (await exchange(browser)).said[-1] == ("agent", "Here I am.")

    run(way())


def test_no_address_is_kept_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    site = Site(tmp_path)

    async def way():
        async with site.browser("203.0.113.77") as browser:
            page = await browser.open("/")
            await browser.send(page.forms["/consent"], {"agree": "yes"})

    run(way())
    assert "203.0.113.77" not in caplog.text
    assert all(b"203.0.113" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_disk_that_keeps_nothing_is_told_and_nothing_is_lost(tmp_path: Path, monkeypatch):
    site = Site(tmp_path)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    async def way():
        async with site.joined() as browser:
            page = await exchange(browser)
            with monkeypatch.context() as patch:
                patch.setattr(site.study.store, "add_message", full)
                refused = await browser.send(page.forms["/say"], {"text": "More"})
                assert refused.status == 503 and "could not be kept" in refused.html
            await browser.send(page.forms["/say"], {"text": "More"})
            assert len((await answered(browser)).said) == 4

    run(way())


def test_an_answer_that_a_full_disk_did_not_keep_is_asked_for_again(tmp_path: Path, monkeypatch):
    echo = Echo("only")
    site = Site(tmp_path, [echo])
    keep, refused = site.study.store.add_message, []

    def full(talk: int, message):
        if message.speaker == "agent" and not refused:
            refused.append(message.text)
            raise sqlite3.OperationalError("database or disk is full")
        return keep(talk, message)

    async def way():
        async with site.joined() as browser:
            monkeypatch.setattr(site.study.store, "add_message", full)
            page = await exchange(browser)
            assert page.said == [("human", "Hello"), ("agent", "You said: Hello")]

    run(way())
    assert len(refused) == 1 and len(echo.asked) == 2


def test_nothing_is_answered_before_it_is_on_disk_and_many_wait_for_the_disk_once(tmp_path: Path):
    site, people = Site(tmp_path), 8
    store, flush = site.study.store, site.study.store.flush
    flushed: list[int] = []
    before = store.commits
    until = time.monotonic() + 30

    def slow() -> None:
        there = store.commits
        while store.commits < before + people and time.monotonic() < until:  # until all are waiting
            time.sleep(0.01)
        flush()
        flushed.append(there)

    async def way():
        async with site.browser() as browser:
            forms = [(await browser.open("/")).forms["/consent"] for _ in range(people)]
            store.flush = slow

            async def begin(form) -> None:
                fields = {**form.fields, "agree": "yes"}
                answer = await browser.client.post("/consent", data=fields)
                assert answer.status_code == 303
                assert flushed, "it came before anything was on disk"

            await asyncio.gather(*map(begin, forms))

    run(way())
    assert len(flushed) <= 3 and flushed[-1] == store.commits


def test_withdrawal_needs_a_second_click_and_leaves_nothing(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            await exchange(browser)
            page = await browser.open("/withdraw")
            assert site.study.store.talks()
            page = await browser.send(page.forms["/withdraw"])
            assert page.heading == "You have withdrawn"
            assert (await browser.open("/")).heading == "You have withdrawn"

    run(way())
    assert not site.study.store.talks()


def test_notices_stand_with_the_consent_and_beside_every_conversation(tmp_path: Path):
    form = Questionnaire.load(FOLDER / "counseling.yaml")
    site = Site(tmp_path, questionnaire=form, notices=notices({"counseling"}, ["And more."]))

    async def way():
        async with site.browser() as browser:
            page = await browser.open("/")
            assert "no counsellor" in page.html and "And more." in page.html
        async with site.joined() as browser:
            page = await browser.open("/study")
            assert "emergency" in page.html and "Your card" in page.html

    run(way())


def test_raters_read_and_rate_the_conversations_of_others(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            await to_the_end(browser)
        async with site.browser() as browser:
            page = await browser.open("/judge")
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            page = await browser.send(page.forms["/instructions"])
            while "/rate" in page.forms:
                assert page.said and not any(n.endswith("!") for n in page.forms["/rate"].choices)
                page = await rate(browser, "2")
            assert page.heading == "Thank you"

    run(way())
    assert len(site.study.store.ratings()) == 16


def test_the_researchers_page_wants_the_token(tmp_path: Path):
    site = Site(tmp_path, [Echo("alpha"), Echo("beta")])

    async def way():
        async with site.joined("?PROLIFIC_PID=p7") as browser:
            await exchange(browser)
        async with site.browser() as browser:
            page = await browser.open("/admin")
            assert "/admin/pause" not in page.forms
            page = await browser.send(page.forms["/admin/enter"], {"token": "guessed"})
            assert page.status == 403
            forged = await browser.client.post("/admin/pause", data={"paused": "yes", "form": "x"})
            assert forged.status_code == 303 and site.study.is_open
            page = await browser.send(page.forms["/admin/enter"], {"token": TOKEN})
            assert "1 under way" in page.html and "p7" in page.html and "alpha" in page.html
            await browser.send(page.forms["/admin/pause"])
            assert not site.study.is_open
            async with site.browser() as late:
                assert "no further participants" in (await late.open("/")).html
            await browser.send((await browser.open("/admin")).forms["/admin/pause"])
            assert site.study.is_open
            form = (await browser.open("/admin")).forms["/admin/withdraw"]
            page = await browser.send(form, {"sure": "yes"})
            assert "1 withdrawn" in page.html and "p7" not in page.html

    run(way())


def test_what_llms_cost_is_shown_also_of_failures_and_of_those_who_withdrew(tmp_path: Path):
    spent = {"calls": 2, "tokens": 700, "cost": 0.25}

    def fail(text: str) -> Answer:
        raise AgentError("nothing came", spent)

    site = Site(tmp_path, [Echo("llm", lambda _: Answer("Hm.", details=spent)), Echo("bad", fail)])

    async def way():
        async with site.joined() as browser:
            for _ in range(2):
                page = await exchange(browser)
                if "/told" in page.forms:
                    await browser.send(page.forms["/told"])
                else:
                    page = await exchange(browser)
                    await browser.send(page.forms["/finish"])
                    await rate(browser)
            await browser.send((await browser.open("/withdraw")).forms["/withdraw"])
        async with site.browser() as browser:
            page = await browser.open("/admin")
            return await browser.send(page.forms["/admin/enter"], {"token": TOKEN})

    page = run(way())
    assert "Agents have cost $0.7500" in page.html
    assert re.search(r"<td>4</td><td>1,400</td><td>\$0.5000</td>", page.html)
    assert re.search(r"<td>2</td><td>700</td><td>\$0.2500</td>", page.html)


def test_without_a_token_there_is_no_such_page(tmp_path: Path):
    from experiments.human_study.admin import Admin, admin_token
    from experiments.human_study.records import StudyError

    assert admin_token({}) == "" and not Admin(Site(tmp_path).study, "", 0.0, False).routes()
    with pytest.raises(StudyError, match="can be guessed"):
        admin_token({"STUDY_TOKEN": "short"})


def test_behind_tls_cookies_are_for_https_alone(tmp_path: Path):
    import dataclasses

    site = Site(tmp_path, config=dataclasses.replace(QUICK, behind_tls=True))

    async def way():
        async with site.browser() as browser:
            page = await browser.open("/")
            form = page.forms["/consent"]
            answer = await browser.client.post("/consent", data={**form.fields, "agree": "yes"})
            assert "Secure" in answer.headers["set-cookie"]
            assert "HttpOnly" in answer.headers["set-cookie"]

    run(way())
