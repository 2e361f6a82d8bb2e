"""Attackers of a study: markup in every field, forged and odd forms, floods, strict headers."""

from __future__ import annotations

import asyncio
import collections
import html
import random
import re
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from markupsafe import escape
from studies import TOKEN, Echo, Site, answered, exchange, rate

from experiments.human_study.config import StudyConfig
from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.session import Rules
from experiments.human_study.web import MOST_ADDRESSES, Guard
from experiments.serving.answer import AgentError, Answer


def run(coroutine):
    return asyncio.run(coroutine)


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
