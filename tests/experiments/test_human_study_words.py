"""Words of a study's pages: all of them are data, and a study in another language has no other."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path

import yaml
from studies import QUICK, Echo, Site, exchange, talk_and_rate

from experiments.human_study import pages
from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.words import Words, blanks, english
from experiments.serving.answer import AgentError

# Of the questionnaire: everything that has words of its own there.
TEXTS = ("title", "consent", "agree", "instructions", "card", "ranking", "comment", "thanks")


def foreign() -> Questionnaire:
    """A questionnaire whose words are all of another language, as far as anybody here can tell."""
    record = yaml.safe_load((FOLDER / "default.yaml").read_text("utf-8"))
    record |= {name: f"«{name}»" for name in TEXTS} | {"lang": "he", "judging": "«judging»"}
    for place, question in enumerate(record["questions"]):
        question |= {"text": f"«q{place}»", "anchors": ["«low»", "«high»"]}
    record["attention"]["text"] = "«attention»"
    record["words"] = {
        name: " ".join([f"«{name}»", *(f"{{{blank}}}" for blank in sorted(blanks(text)))])
        for name, text in english().items()
    }
    return Questionnaire.from_yaml(yaml.safe_dump(record, allow_unicode=True))


def visible(html: str) -> str:
    """Words of a page: its text, and what attributes tell people or the script."""
    told = re.findall(r' (?:aria-label|data-(?:you|writing|lost|sending))="([^"]*)"', html)
    return " ".join([re.sub(r"<[^>]*>", " ", html), *told])


def test_a_study_in_another_language_needs_no_code(tmp_path: Path):
    def fail(text: str):
        raise AgentError("no words of a participant's")

    config = dataclasses.replace(QUICK, code="1234", return_url="https://p.org")
    agents = [Echo("a"), Echo("b"), Echo("bad", fail)]
    site = Site(tmp_path, agents, config, foreign())
    seen: list[str] = []

    async def way():
        async with site.browser(seen=seen) as browser:
            page = await browser.open("/")
            await browser.send(page.forms["/consent"])  # without the tick
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            page = await browser.send(page.forms["/instructions"])
            while "/say" in page.forms:
                number = site.study.store.number_of(browser.client.cookies["study"])
                if site.study.step(number).talk.agent == "bad":
                    page = await exchange(browser, "«hi»")
                    page = await browser.send(page.forms["/told"])
                    continue
                for text in ("", "«x»" * 2000):
                    await browser.send(page.forms["/say"], {"text": text})
                page = await talk_and_rate(browser)
            page = await browser.send(page.forms["/rank"])
            names = page.forms["/rank"].choices
            page = await browser.send(
                page.forms["/rank"], {name: str(i + 1) for i, name in enumerate(names)}
            )
            await browser.send(page.forms["/comment"], {"text": "«fine»"})
            await browser.send((await browser.open("/withdraw")).forms["/withdraw"])
            for path in ("/nothing", "/rate"):
                await browser.open(path)
            await browser.client.post("/say", data={"csrf": "forged"})
            await browser.client.post("/say", data={"text": "x" * 300_000})
        async with site.browser(seen=seen) as browser:
            page = await browser.open("/judge")
            page = await browser.send(page.forms["/consent"], {"agree": "yes"})
            site.study.pause(True)
            await browser.open("/")

    asyncio.run(way())
    texts = [visible(text) for text in seen if text]
    assert len(texts) > 25
    for text in texts:
        ours = re.sub(r"«\w+»|You said: |Hello|What now\?", "", text)
        assert not re.search("[A-Za-z]{2,}", ours), ours
    assert all('lang="he" dir="rtl"' in text for text in seen if "<html" in text)


def test_all_words_are_used_and_all_that_are_used_are_there():
    folder = Path(pages.__file__).parent
    sources = [*folder.glob("*.py"), *folder.glob("templates/*.j2")]
    used = set(re.findall(r'"([a-z_]+)"', "".join(path.read_text("utf-8") for path in sources)))
    assert set(english()) <= used
    said = "".join(path.read_text("utf-8") for path in sources)
    asked = set(re.findall(r'(?:say|_say|words|Refused|message)\("([a-z_]+)"', said))
    assert asked <= set(english()) and len(asked) > 40


def test_what_is_filled_in_is_not_looked_at_again():
    words = Words("pt-BR", {"choose_an_answer": "Escolha: {question}"})
    assert words("choose_an_answer", question="{question} {0.__class__}") == (
        "Escolha: {question} {0.__class__}"
    )
    assert words.direction == "ltr" and Words("ar-EG").direction == "rtl"
    assert words("send") == "Send"
