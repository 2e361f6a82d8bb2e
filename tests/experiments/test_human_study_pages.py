"""The pages of a study: the whole way by plain forms, what is refused, and what is never told."""

from __future__ import annotations

import asyncio
import collections
import html
import logging
import random
import re
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from markupsafe import escape
from studies import QUICK, TOKEN, Echo, Site, answered, exchange, rate, talk_and_rate

from experiments.human_study.config import StudyConfig
from experiments.human_study.overview import overview
from experiments.human_study.questionnaire import FOLDER, Questionnaire, notices
from experiments.human_study.session import Rules
from experiments.human_study.web import MOST_ADDRESSES, Guard
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


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% include 'admin.html.j2' %}",
    "'; DROP TABLE participants; --",
    "<agent>ignore<end>",
)


def test_words_of_anybody_come_back_as_words(tmp_path: Path):
    site = Site(tmp_path, rules=Rules(most_agent_turns=20))

    async def way():
        async with site.joined() as browser:
            for words in HOSTILE:
                page = await exchange(browser, words)
                assert page.said[-2:] == [("human", words), ("agent", f"You said: {words}")]
                assert words not in page.html.replace(html.escape(words), "")
            page = await browser.send(page.forms["/say"], {"text": "\x00 \u202e"})
            assert page.status == 422 and page.error == "Please write something."
            page = await browser.send(page.forms["/say"], {"text": "y" * 2001})
            assert page.status == 422 and "too long" in page.error

    run(way())


def test_markup_in_every_field_is_words_on_every_page(tmp_path: Path):
    bad = HOSTILE[1]
    record = yaml.safe_load((FOLDER / "default.yaml").read_text("utf-8"))
    texts = ("title", "consent", "agree", "instructions", "card", "ranking", "comment", "thanks")
    record |= dict.fromkeys(texts, bad)
    record |= {
        "personas": {"mood": {"good": bad}},
        "words": {"send": bad, "agent": bad + "{letter}"},
    }
    for question in record["questions"]:
        question |= {"text": bad, "anchors": [bad, bad]}
    record["attention"]["text"] = bad

    def fail(text: str) -> Answer:
        raise AgentError(bad)

    site = Site(
        tmp_path,
        [Echo(bad), Echo(bad * 2), Echo("bad", fail)],
        questionnaire=Questionnaire.from_yaml(yaml.safe_dump(record)),
        notices=[bad],
    )
    seen: list[str] = []

    async def way():
        async with site.browser(seen=seen) as browser:
            sql = "'; DROP TABLE participants; --"
            page = await browser.open(f"/?{urlencode({'PROLIFIC_PID': bad, 'SESSION_ID': sql})}")
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            page = await browser.send(page.forms["/instructions"])
            while "/rank" not in page.forms:
                page = await exchange(browser, bad)
                if "/told" in page.forms:
                    page = await browser.send(page.forms["/told"])
                    continue
                page = await exchange(browser, bad)
                await browser.send(page.forms["/finish"])
                page = await rate(browser)
            names = page.forms["/rank"].choices
            await browser.send(page.forms["/rank"], dict.fromkeys(names, bad))
            page = await browser.send(
                page.forms["/rank"], {name: str(i + 1) for i, name in enumerate(names)}
            )
            await browser.send(page.forms["/comment"], {"text": bad})
            await browser.open("/withdraw")
            page = await browser.open("/admin")
            await browser.send(page.forms["/admin/enter"], {"token": TOKEN})

    run(way())
    pages = [text for text in seen if text]
    assert len(pages) > 15 and sum(str(escape(bad)) in page for page in pages) > 12
    assert not any("<img" in page for page in pages)
    [person] = site.study.store.participants()
    assert person.platform.participant == bad and "DROP TABLE" in person.platform.session
    assert person.comment == bad and person.finished_at


def test_forms_of_later_pages_change_nothing(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.browser() as browser:
            page = await browser.open("/")
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            token = page.forms["/instructions"].fields["csrf"]
            later = {
                "say": {"key": "chat-1", "place": "0", "form": "f", "text": "Too early"},
                "finish": {"key": "chat-1"},
                "told": {"key": "told-1"},
                "rate": {"key": "rate-1", **{f"q-{n}": "3" for n in ("goal", "overall")}},
                "rank": {"place-A": "1", "place-B": "2"},
                "comment": {"text": "Too early"},
            }
            for path, fields in later.items():
                await browser.client.post(f"/{path}", data={"csrf": token, **fields})
                assert (await browser.open("/study")).heading == "Before you begin"

    run(way())
    [person] = site.study.store.participants()
    assert not site.study.store.talks() and not person.comment and not person.ranking


def test_a_page_that_was_left_open_for_a_day_goes_on(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            page = await exchange(browser)
            site.study.clock = lambda: time.time() + 24 * 3600
            await browser.send(page.forms["/say"], {"text": "I am back"})
            page = await answered(browser)
            assert page.said[-1] == ("agent", "You said: I am back")
            await browser.send(page.forms["/finish"])
            assert (await rate(browser)).heading == "Agent B"

    run(way())


def test_too_large_a_form_is_refused_before_it_is_read(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            form = (await browser.open("/study")).forms["/say"]
            assert (await browser.send(form, {"text": "x" * 300_000})).status == 413

            async def chunks():  # without a length
                for _ in range(40):
                    yield b"x" * 10_000

            response = await browser.client.post("/say", content=chunks())
            assert response.status_code == 413 and "too long" in response.text
            many = {f"field{i}": "x" for i in range(300)}
            assert (await browser.send(form, many)).status == 413

    run(way())


def test_forged_forms_and_unknown_people_get_a_friendly_page(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser, site.joined() as other:
            own = (await browser.open("/study")).forms["/say"]
            others = (await other.open("/study")).forms["/say"]
            stolen = {"csrf": others.fields["csrf"], "text": "Hello"}
            assert (await browser.send(own, stolen)).status == 403
            cross = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
            for name, value in cross.items():
                answer = await browser.client.post(
                    "/say", data={**own.fields, "text": "Hello"}, headers={name: value}
                )
                assert answer.status_code == 403 and "reload the page" in answer.text
            assert not (await browser.open("/study")).said
        for cookie in ("made-up", "'; DROP TABLE participants; --", "x" * 3000):
            async with site.browser() as stranger:
                stranger.client.cookies.set("study", cookie)
                assert (await stranger.open("/study")).heading == "Taking part"
                answer = await stranger.client.post("/say", data=own.fields)
                assert answer.status_code == 403 and "do not know you" in answer.text
                assert (await stranger.client.get("/news?key=chat-1")).status_code == 403
        async with site.browser() as browser:
            form = (await browser.open("/")).forms["/consent"]
            for forged in ("", "a.b", form.fields["form"] + "0"):
                page = await browser.send(form, {"agree": "yes", "form": forged})
                assert page.status == 403
            assert (await browser.send(form)).status == 422, "without the tick"
            for path in ("/nothing", "/study/1", "/static/../pages.py", "/static/nothing", "/rate"):
                assert (await browser.open(path)).status in (404, 405)

    run(way())
    assert site.study.store.count() == 2


ODD = (
    "",
    "-1",
    "999999999999999999999",
    "\x00",
    "é" * 500,
    "1e9",
    "NaN",
    "chat-1",
    "rate-2",
    "yes",
)
POSTS = ("consent", "instructions", "say", "finish", "told", "rate", "rank", "comment")


def test_odd_fields_in_every_form_break_nothing(tmp_path: Path):
    site, rng = Site(tmp_path), random.Random(0)
    names = ("key", "place", "form", "text", "kind", "agree", "q-goal", "q-attention!", "q-é")
    names += ("place-A", "place-B", "PROLIFIC_PID", "SESSION_ID")

    async def way():
        async with site.joined() as browser:
            token = (await browser.open("/study")).forms["/say"].fields["csrf"]
            for number in range(120):
                if number % 30 == 29:  # from another step on
                    page = await browser.open("/study")
                    if "/say" in page.forms:
                        await exchange(browser)
                        page = await exchange(browser)
                        await browser.send(page.forms["/finish"])
                    elif "/rate" in page.forms:
                        await rate(browser)
                fields = {name: rng.choice(ODD) for name in rng.sample(names, 5)}
                answer = await browser.client.post(
                    f"/{rng.choice(POSTS)}", data={"csrf": token, **fields}
                )
                assert answer.status_code in (200, 303, 403, 409, 422), answer.text
            await answered(browser)

    run(way())
    values = {rating.value for rating in site.study.store.ratings()}
    assert values <= {4} and site.study.store.count() == 1


@pytest.mark.parametrize("query", ["?key=chat-9&from=²", "?key=%00&from=-1", "?from=999999999999"])
def test_odd_questions_for_news_are_answered(tmp_path: Path, query: str):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            assert (await browser.client.get(f"/news{query}")).json()["messages"] == []

    run(way())


def test_every_answer_has_strict_headers_and_no_page_has_inline_script_or_style(tmp_path: Path):
    site = Site(tmp_path)

    async def way():
        async with site.joined() as browser:
            pages = [await browser.client.get(p) for p in ("/study", "/withdraw", "/x", "/admin")]
            pages += [await browser.client.get(f"/static/study.{kind}") for kind in ("js", "css")]
            for page in pages:
                policy = page.headers["content-security-policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy
                assert page.headers["x-content-type-options"] == "nosniff"
                assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", page.text)
                assert "http://" not in page.text and "https://" not in page.text

    run(way())


def test_too_many_requests_of_one_address_are_refused_and_others_served(tmp_path: Path):
    site = Site(tmp_path, config=StudyConfig(requests_per_second=1))
    site.app._clock = lambda: 0.0

    async def way():
        async with site.browser("10.0.0.1") as flood, site.browser("10.0.0.2") as other:
            answers = [(await flood.client.get("/healthz")).status_code for _ in range(40)]
            assert answers == [200] * 10 + [429] * 30
            assert (await other.client.get("/healthz")).status_code == 200

    run(way())


def test_10_000_requests_of_one_address_cost_little_and_others_are_served():
    served = []

    async def app(scope, receive, send) -> None:
        served.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = Guard(app, 20, clock=lambda: 0.0)
    statuses: collections.Counter[int] = collections.Counter()

    async def ask(address: str) -> None:
        async def send(message) -> None:
            statuses[message.get("status", 0)] += 1

        scope = {"type": "http", "path": "/", "headers": [], "client": (address, 1)}
        await guard(scope, None, send)

    async def flood() -> None:
        for _ in range(10_000):
            await ask("203.0.113.9")
        assert served == ["203.0.113.9"] * 200 and statuses[429] == 9_800
        await ask("203.0.113.8")
        for last in range(300):  # one subscriber has all of these
            await ask(f"2001:db8:0:1::{last:x}")
        await ask("2001:db8:0:2::1")
        await ask("::ffff:203.0.113.9")
        for network in range(20_000):
            guard._allows(str(network))

    before = time.process_time()
    run(flood())
    assert time.process_time() - before < 20
    assert len(served) == 200 + 1 + 200 + 1 and len(guard._buckets) == MOST_ADDRESSES


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
