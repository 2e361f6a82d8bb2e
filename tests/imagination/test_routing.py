"""Models by purpose: each step asks its own, with one meter, one cache and one limit on cost."""

import asyncio
import dataclasses

import pytest
from imagination_client import TASK
from lifelike_llm import lifelike
from llm_questions import KEY, answer, config, lines, request
from messages_server import MessagesServer

from imagination.engine import (
    PURPOSE_OF_STEP,
    EngineConfig,
    forecast_imagination,
    imagine_dialogues,
)
from imagination.llm import CostLimitError, LLMConfig
from imagination.llm.routing import RoutedClient


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


def models(llm):
    return {name: dataclasses.replace(llm, model=name) for name in ("critic", "judge", "human")}


def test_each_step_asks_its_own_model(tmp_path):
    async def run():
        llm = config(server, model="writer")
        client = RoutedClient(llm, tmp_path, models(llm), PURPOSE_OF_STEP)
        try:
            settings = EngineConfig(dialogues=2, also_rewards=("judge",), failed_critique="keep")
            return await imagine_dialogues(client, TASK, settings), client.meter
        finally:
            await client.close()

    with MessagesServer(lifelike) as server:
        imagined, meter = asyncio.run(run())
        calls = len(server.calls)
        again, later = asyncio.run(run())
        assert len(server.calls) == calls and again == imagined  # all of it is on disk
    for dialogue in imagined.dialogues:
        by_model = {step: name for step, name in dialogue.source["models"].items() if name}
        assert by_model == {
            "engine/personas": "writer",
            "engine/agent": "writer",
            "engine/human": "human",
            "engine/rating": "human",
            "engine/critique": "critic",
            "judge/rating": "judge",
            **({"engine/refine": "writer"} if dialogue.source["kind"] == "critiqued" else {}),
        }
    assert sum(row["calls"] for row in meter.summary()) == calls
    assert later.usage.cost == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache.jsonl"}


def test_answers_come_in_the_order_of_their_questions_and_one_limit_holds_for_all(tmp_path):
    asked = [
        request(f"question {i}", step=("engine/critique", "judge/rating", "engine/script")[i % 3])
        for i in range(60)
    ]

    async def run(**limits):
        llm = config(server, model="writer", max_tokens=300, **limits)
        client = RoutedClient(llm, tmp_path, models(llm), PURPOSE_OF_STEP)
        try:
            return await client.ask_all(asked), await client.ask(asked[0])
        finally:
            await client.close()

    with MessagesServer(answer) as server:
        with pytest.raises(CostLimitError):
            asyncio.run(run(max_cost=0.008))
        assert sum(line["usage"]["cost"] for line in lines(tmp_path / "cache.jsonl")) <= 0.008
        found, again = asyncio.run(run())
        assert len(server.calls) == 60
    assert [each.parsed.text for each in found] == [f"question {i}" for i in range(60)]
    assert [each.model for each in found[:3]] == ["critic", "judge", "writer"]
    assert again.from_cache and again.text == found[0].text


def test_a_model_that_costs_nothing_shares_the_limit_of_one_that_does(tmp_path):
    questions = [request(f"question {i}", step="engine/script") for i in range(20)]
    judged = [request(f"verdict {i}", step="engine/critique") for i in range(60)]

    async def run():
        paid = config(server, model="critic", max_tokens=300, max_cost=0.008)
        no_prices = dict.fromkeys(("price_input", "price_output", "price_cache_read"), 0.0)
        llm = dataclasses.replace(paid, model="writer", free=True, **no_prices)
        client = RoutedClient(llm, tmp_path, {"critic": paid}, PURPOSE_OF_STEP)
        try:
            found = await client.ask_all(questions)
            with pytest.raises(CostLimitError):
                await client.ask_all(judged)
            return found, client.meter
        finally:
            await client.close()

    with MessagesServer(answer) as server:
        found, meter = asyncio.run(run())
    assert [each.model for each in found] == ["writer"] * 20
    costs = {row["step"]: row["cost"] for row in meter.summary()}
    assert costs["engine/script"] == 0 < costs["engine/critique"] <= 0.008


def test_the_forecast_names_models_whose_prices_are_not_known():
    settings, free = EngineConfig(dialogues=2), LLMConfig(model="writer", free=True)
    text = forecast_imagination(TASK, settings, free).to_markdown(prompts=False)
    assert "No prices" not in text
    other = {"critic": LLMConfig(model="wise")}
    text = forecast_imagination(TASK, settings, free, other).to_markdown(prompts=False)
    assert "No prices are configured for wise: the cost is not known" in text


def test_the_forecast_has_the_prices_of_each_model():
    llm = LLMConfig(model="writer", price_input=1.0, price_output=5.0)
    dear = dataclasses.replace(llm, model="critic", price_input=10.0, price_output=50.0)
    settings = EngineConfig(dialogues=20)
    plain = {s.step: s.cost for s in forecast_imagination(TASK, settings, llm).steps}
    mixed = forecast_imagination(TASK, settings, llm, {"critic": dear})
    for step in mixed.steps:
        factor = 10 if step.step == "engine/critique" else 1
        assert step.cost == pytest.approx(factor * plain[step.step])
