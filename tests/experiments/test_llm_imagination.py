"""Money and time of imagining: forecasts that learn, the limit on cost, previews, bars.

Against a server on loopback whose answers have lengths as people's have.
"""

import asyncio
import json
import re
import types
from collections import Counter

import in_process
import pages
import pytest
from imagination_client import TASK, FakeClient
from lifelike_llm import lifelike
from messages_server import MessagesServer
from world_llm import WorldLLM

from experiments import llm_imagination, teaching, travel
from experiments.build import build
from experiments.command_line import parse
from experiments.run_folder import RunFolder
from experiments.tasks import given_task
from imagination.dialogue import read_dialogues
from imagination.engine import (
    EngineConfig,
    derive_task,
    forecast_imagination,
    imagination_forecast,
    imagine_dialogues,
    recalled_forecast,
)
from imagination.llm import Answer, Client, CostLimitError, LLMConfig, Meter, Usage, batches
from imagination.llm.cost import Affordable, LearnedForecast
from imagination.llm.session import run_concurrently
from imagination.llm.watching import RecallingClient, WatchedClient
from imagination.simulation import load_world

PRICES = {"price_input": 3.0, "price_output": 15.0, "price_cache_read": 0.3}


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-none")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


def imagined_with_costs(server, folder, config, **llm):
    """Imagines, and learns the cost on the way."""

    async def run():
        settings = LLMConfig(model="small", base_url=server.url, **PRICES, **llm)
        client = Client(settings, folder)
        planned = await imagination_forecast(TASK, config, settings)
        costs = LearnedForecast(planned, [f"{TASK.name}-{i}" for i in range(config.dialogues)])
        watched = WatchedClient(client, costs.saw)
        try:
            done = await imagine_dialogues(
                watched,
                TASK,
                config,
                lambda dialogue: costs.finished(dialogue.id),
                price=planned.cost / config.dialogues,
            )
        finally:
            await client.close()
        return done, costs, client.meter

    return asyncio.run(run())


async def imagined_first(server, folder, config, number):
    client = Client(LLMConfig(model="small", base_url=server.url, **PRICES), folder)
    try:
        return (await imagine_dialogues(client, TASK, config, first=number)).dialogues
    finally:
        await client.close()


# Forecasts


@pytest.mark.parametrize("way", ["rollout", "script"])
def test_the_forecast_learns_the_cost_from_the_first_dialogues(tmp_path, way):
    rollout = {"dialogues": 32, "max_turns": 2, "critique_rounds": 0}
    config = {"script": {"dialogues": 40, "failed_critique": "keep"}, "rollout": rollout}[way]
    config = EngineConfig(way=way, **config)
    with MessagesServer(lifelike) as server:
        _, costs, meter = imagined_with_costs(server, tmp_path, config)
        assert costs.spent == pytest.approx(meter.usage.cost) and costs.answers > 100
        assert costs.first == pytest.approx(costs.spent, rel=0.25)
        assert costs.cost == pytest.approx(costs.spent, rel=0.25)
        assert costs.calls == pytest.approx(costs.answers, rel=0.25)
        assert f"${costs.spent:,.4f}" in costs.line() and f"${costs.first:,.4f}" in costs.line()
        if way == "script":  # what is found on disk is learned from like what is paid for
            _, again, meter = imagined_with_costs(server, tmp_path, config)
            assert again.spent == pytest.approx(costs.spent)
            assert again.first == pytest.approx(costs.spent, rel=0.25)
            assert meter.usage.cost == 0


def test_answers_that_never_become_usable_count_with_what_was_paid_for_them(tmp_path):
    def answer(body):
        asks = len(body["messages"][0]["content"]) % 2 and "verdicts" in json.dumps(body)
        return "Well." if asks else lifelike(body)

    config = EngineConfig(dialogues=12, max_turns=1, failed_critique="keep")
    with MessagesServer(answer) as server:
        done, costs, meter = imagined_with_costs(server, tmp_path, config)
    dropped = Counter(each.step for each in done.dropped)
    assert dropped["engine/critique"] == len(done.dropped) > 0 and done.dialogues
    assert costs.spent == pytest.approx(meter.usage.cost)


def test_before_any_answer_the_forecast_is_the_planned_one():
    config, llm = EngineConfig(dialogues=40), LLMConfig(model="m", **PRICES)
    planned = forecast_imagination(TASK, config, llm)
    costs = LearnedForecast(planned, [f"advice-{i}" for i in range(40)])
    assert (costs.calls, costs.cost) == (planned.calls, pytest.approx(planned.cost))
    assert costs.line() == ""


@pytest.mark.parametrize("way", ["rollout", "script"])
def test_answers_of_an_earlier_run_are_forecast_from(tmp_path, way):
    """They tell how many dialogues are rewritten, and how long answers are."""
    config = EngineConfig(way=way, dialogues=40, max_turns=2, failed_critique="keep")

    async def recalled(**changes):
        settings = LLMConfig(model="small", **PRICES | changes)
        client = Client(settings, tmp_path)
        try:
            planned = await imagination_forecast(TASK, config, settings)
            known = await recalled_forecast(planned, TASK, config, RecallingClient(client))
            return planned, known
        finally:
            await client.close()

    def files():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    planned, learned = asyncio.run(recalled())
    assert learned == planned and not files()
    with MessagesServer(lifelike) as server:
        few = asyncio.run(imagined_first(server, tmp_path, config, 12))
        left = files()
        planned, learned = asyncio.run(recalled())
        _, dearer = asyncio.run(recalled(price_output=30.0))
        assert files() == left
        _, costs, _ = imagined_with_costs(server, tmp_path, config)
    assert "of 12 finished dialogues" in learned.notes[-1] and few
    if way == "script":  # many are rewritten
        assert planned.cost < 0.75 * costs.spent
    assert learned.cost == pytest.approx(costs.spent, rel=0.15)
    assert learned.calls == pytest.approx(costs.answers, rel=0.15)
    assert learned.cost <= learned.cost_at_most
    output = sum(step.output_tokens for step in learned.steps)
    assert dearer.cost - learned.cost == pytest.approx(output * 15 / 1e6, rel=0.01)
    _, again = asyncio.run(recalled())
    assert again.cost == pytest.approx(costs.spent)


def llm_data_configs():
    """The examples of the page that have a limit on cost: the command, and the file."""
    page = next(page for page in pages.PAGES if page.name == "llm_data.md")
    (words,) = [words for words in pages.commands(page) if "max_cost" in " ".join(words)]
    yield parse("travel", travel.get_config(), list(words[1:])).config
    names = {"__name__": "trips"}
    exec(pages.files()["trips.py"], names)
    yield names["get_config"]()


def test_the_documents_own_examples_fit_under_their_limit():
    configs = list(llm_data_configs())
    assert len(configs) == 2
    for config in configs:
        experiment = build(config)
        name, given = given_task(experiment.task, "trips")
        imagination = experiment.imagination
        planned = forecast_imagination({"name": name, **given}, imagination.engine, imagination.llm)
        assert 0 < planned.cost_at_most < imagination.llm.max_cost
        # A derived limit of turns could be any.
        assert f"limit of {given['max_turns']} agent turns" in planned.to_markdown()


def test_the_scale_of_a_described_task_is_a_setting():
    """Reaches the task, and so every prompt that rates."""
    own = (
        "--config.task.world=",
        "--config.task.description=A guide helps a traveler to choose a hike.",
        "--config.task.success_reward=0",
        "--config.task.reward_range=-1,1",
        "--config.task.reward_unit=miles that are walked",
    )
    line = parse("travel", travel.get_config(), ["travel.py", "--config.llm.model=m", *own])
    name, given = given_task(build(line.config).task, "trips")
    task = asyncio.run(derive_task(FakeClient(), name, given))
    assert (task.reward_range, task.success_reward) == ((-1.0, 1.0), 0.0)
    assert task.reward_unit == "miles that are walked"
    # A world's task keeps what is not changed; its bar for success is one of its own scale.
    world = load_world("travel").task
    unit = parse("travel", travel.get_config(), ["travel.py", own[-1]])
    name, given = given_task(build(unit.config).task, "")
    assert given["reward_range"] == world.reward_range
    assert (given["success_reward"], given["reward_unit"]) == (world.success_reward, own[-1][26:])
    scale = parse("travel", travel.get_config(), ["travel.py", "--config.task.reward_range=0,10"])
    name, given = given_task(build(scale.config).task, "")
    task = asyncio.run(derive_task(FakeClient(), name, given))
    assert (task.reward_range, task.success_reward) == ((0.0, 10.0), 8.0)


# The limit


def test_at_the_limit_the_finished_dialogues_can_be_used(tmp_path):
    config = EngineConfig(dialogues=24, critique_rounds=0)
    with MessagesServer(lifelike) as server:
        limit = {"max_cost": 0.12, "max_in_flight": 4, "max_tokens": 300}
        with pytest.raises(CostLimitError, match=r"(\d+) of 24 dialogues are finished") as told:
            imagined_with_costs(server, tmp_path, config, **limit)
        finished = int(re.search(r"(\d+) of 24", str(told.value))[1])
        assert 0 < finished < 24 and "--config.imagination.at_limit=use" in str(told.value)
        use = EngineConfig(dialogues=24, critique_rounds=0, at_limit="use")
        part, _, _ = imagined_with_costs(server, tmp_path, use, **limit)
        # A call that was too dear among others in flight may have its place now.
        assert finished <= len(part.dialogues) == 24 - part.unpaid < 24
        assert f"{part.unpaid} unfinished" in part.line()
        whole, _, _ = imagined_with_costs(server, tmp_path, use)
    assert len(whole.dialogues) == 24 and not whole.unpaid
    by_id = {dialogue.id: dialogue for dialogue in whole.dialogues}
    assert all(by_id[dialogue.id] == dialogue for dialogue in part.dialogues)


@pytest.mark.parametrize("batch", [True, False])
def test_half_of_the_money_finishes_about_half_of_the_dialogues(tmp_path, batch, monkeypatch):
    """Dialogues that begin together would be unfinished together."""
    monkeypatch.setattr(batches, "_QUIET_SECONDS", 0.02)
    config = EngineConfig(dialogues=40, at_limit="use", failed_critique="keep")
    settings = {"batch": batch, "batch_poll": 0.02, "max_tokens": 300}
    with MessagesServer(lifelike) as server:
        _, costs, whole = imagined_with_costs(server, tmp_path / "whole", config, **settings)
        assert whole.usage.cost == pytest.approx(costs.spent)
        limit = {"max_cost": whole.usage.cost / 2}
        part, _, meter = imagined_with_costs(server, tmp_path, config, **settings, **limit)
    assert 15 <= len(part.dialogues) == 40 - part.unpaid <= 22
    assert 0.9 * limit["max_cost"] < meter.usage.cost <= limit["max_cost"]


def test_no_more_dialogues_are_under_way_than_can_be_paid_for():
    llm = types.SimpleNamespace(money_left=1.0)
    assert Affordable(llm, 100, 64, price=0.1)() == 5  # a guess may be twice too low
    assert Affordable(llm, 100, 64, price=0.01)() == 16  # until it is known what they cost
    assert Affordable(llm, 100, 64, price=0.005)() == 64  # there is enough, whatever they cost
    assert Affordable(llm, 100, 64)() == 16 and Affordable(object(), 100, 64)() == 64
    affordable = Affordable(llm, 100, 64)
    for _ in range(16):
        affordable.ended(0.02)
    assert affordable() == 37
    llm.money_left = 10.0
    assert affordable() == 64
    llm.money_left = -0.1  # a lower limit than before; one is tried, which is told
    assert affordable() < 1
    assert Affordable(llm, 100, 64)() == 16


def test_as_many_jobs_run_as_may_now_and_one_in_any_case():
    async def run():
        running, seen = 0, []

        async def job():
            nonlocal running
            running += 1
            seen.append(running)
            await asyncio.sleep(0)
            running -= 1
            return len(seen)

        limits = iter([0, 0, 0, 3])
        assert len(await run_concurrently([job] * 9, lambda: next(limits, 3))) == 9
        return seen

    seen = asyncio.run(run())
    assert seen[:2] == [1, 1] and max(seen) == 3


# Runs


def arguments(server, *more):
    return (
        "--stage=imagine",
        "--config.imagination.engine=anthropic",
        "--config.llm.model=world",
        f"--config.llm.base_url={server.url}",
        "--config.imagination.dialogues=12",
        "--config.llm.price_input=3",
        "--config.llm.price_output=15",
        *more,
    )


def test_a_preview_shows_the_first_dialogues_of_the_run_and_ends(tmp_path):
    with MessagesServer(WorldLLM("teaching")) as server:
        ended = in_process.run(tmp_path, *arguments(server), "--preview=2")
        assert ended.status == 0 and not ended.traceback, ended
        assert re.search(r"derive: answers\s.* 1/1 .* 1 calls \| .* tokens in, ", ended.output)
        assert "--- teaching-0:" in ended.output and "--- teaching-1:" in ended.output
        assert (
            "2 dialogues of 12" in ended.output and "all of them will cost about $" in ended.output
        )
        assert not (tmp_path / "dialogues.jsonl").exists()
        calls, shown = len(server.calls), ended.output
        ended = in_process.run(tmp_path, *arguments(server), "--dry_run")
        assert ended.status == 0 and "of 2 finished dialogues" in ended.output, ended
        assert len(server.calls) == calls
        ended = in_process.run(tmp_path, *arguments(server))
        assert ended.status == 0, ended
        dialogues = read_dialogues(tmp_path / "dialogues.jsonl")
        assert len(dialogues) == 12
        for dialogue in dialogues[:2]:
            assert all(" ".join(turn.text.split()) in shown for turn in dialogue.turns)
        keys = [json.loads(line)["key"] for line in (tmp_path / "llm/cache.jsonl").open()]
        assert len(server.calls) == len(set(keys)) > calls  # nothing was asked twice
        assert "## Tokens and cost\n\nCost: $" in (tmp_path / "dataset_card.md").read_text()
        ended = in_process.run(tmp_path, *arguments(server), "--preview=2")
        assert ended.status == 1 and "they are there" in ended.output
    ended = in_process.run(tmp_path / "world", "--preview=2")
    assert ended.status == 1 and "config.imagination.engine=anthropic" in ended.output


def test_a_preview_shows_dialogues_also_where_none_is_fit_to_learn_from(tmp_path):
    def strict(body):
        return world(body).replace('"fulfilled": true', '"fulfilled": false')

    world = WorldLLM("teaching")
    with MessagesServer(strict) as server:
        ended = in_process.run(tmp_path, *arguments(server), "--preview=2")
        assert ended.status == 0 and not ended.traceback, ended
        assert "--- teaching-0:" in ended.output and "--- teaching-1:" in ended.output
        assert ended.output.count("kept apart: ") == 2
        assert "0 dialogues, 2 kept apart of 12." in ended.output
        assert "all of them will cost about $" in ended.output
        ended = in_process.run(tmp_path, *arguments(server))
        assert ended.status == 1 and "None of 12 dialogues is fit to learn from" in ended.output


def test_a_preview_shows_what_the_limit_on_cost_leaves(tmp_path):
    with MessagesServer(WorldLLM("teaching")) as server:
        limit = ("--config.llm.max_cost=0.06", "--config.llm.max_tokens=300")
        limit += ("--config.llm.max_in_flight=2",)
        ended = in_process.run(tmp_path, *arguments(server, *limit), "--preview=12")
        assert ended.status == 0 and not ended.traceback, ended
        shown = ended.output.count("--- teaching-")
        left = re.search(r"(\d+) unfinished at config.llm.max_cost", ended.output)
        assert shown and shown + int(left[1]) == 12


def test_answers_to_other_versions_of_the_prompts_are_told_and_not_used(tmp_path):
    before = {"prompt_version": "engine/agent/0", "system": "", "messages": [["user", "Hi"]]}
    answer = {"text": "Hello.", "stop_reason": "end_turn", "model": "world", "max_tokens": 9}
    record = {"key": "k", "step": "engine/agent", "request": before, "answer": answer}
    (tmp_path / "llm").mkdir()
    line = json.dumps({**record, "usage": {"input_tokens": 1, "output_tokens": 1, "cost": 0.01}})
    (tmp_path / "llm" / "cache.jsonl").write_text(line + "\n")
    with MessagesServer(WorldLLM("teaching")) as server:
        ended = in_process.run(tmp_path, *arguments(server, "--config.imagination.dialogues=2"))
    assert ended.status == 0, ended
    assert "1 of the answers there are were given to other versions" in ended.output
    assert "engine/agent/0 (1)" in ended.output


def test_a_run_goes_on_with_what_the_limit_left(tmp_path):
    with MessagesServer(WorldLLM("teaching")) as server:
        limit = ("--config.llm.max_cost=0.06", "--config.llm.max_tokens=300")
        limit += ("--config.llm.max_in_flight=2",)
        ended = in_process.run(tmp_path, *arguments(server, *limit))
        assert ended.status == 1 and "more than config.llm.max_cost" in ended.output, ended
        finished = int(re.search(r"(\d+) of 12 dialogues are finished", ended.output)[1])
        use = "--config.imagination.at_limit=use"
        ended = in_process.run(tmp_path, *arguments(server, *limit, use))
        assert ended.status == 0, ended
        left = len(read_dialogues(tmp_path / "dialogues.jsonl"))
        assert 0 < finished <= left < 12
        assert f"delete {tmp_path / 'dialogues.jsonl'}" in ended.output
        card = (tmp_path / "dataset_card.md").read_text()
        assert f"{12 - left} of them at config.llm.max_cost" in card
        # The setting is the run's to change, and what is there counts.
        ended = in_process.run(tmp_path, *arguments(server, *limit), f"{use[:-3]}stop")
        assert ended.status == 0, ended


def test_a_limit_that_will_be_reached_is_told_once_as_soon_as_it_is_known(tmp_path):
    def answer(body):  # many are rewritten, which costs more than planned
        return (world if "unusable_because" in json.dumps(body) else lifelike)(body)

    world = WorldLLM("teaching")
    with MessagesServer(answer) as server:
        given = ("--config.imagination.way=script", "--config.imagination.dialogues=24")
        given += ("--config.llm.price_cache_read=3", "--config.llm.price_cache_write=3")
        given += ("--config.imagination.personas=prior",)
        given = arguments(server, *given, "--config.llm.max_tokens=300")
        experiment = build(parse("teaching", teaching.get_config(), ["t.py", *given]).config)
        planned = llm_imagination.forecast(experiment, RunFolder(tmp_path))
        ended = in_process.run(tmp_path, *given, f"--config.llm.max_cost={planned.cost:.6f}1")
    assert ended.status == 1 and not ended.traceback, ended
    told = "Forecast, learned from the answers so far: about $"
    assert ended.output.count("Forecast") == ended.output.count(told) == 1
    assert ended.output.index(told) < ended.output.index("could be passed")
    assert "or config.imagination.at_limit=use for those finished; nothing is" in ended.output


def test_the_bar_moves_from_the_first_call():
    states = []
    bars = types.SimpleNamespace(
        add_task=lambda *_, **fields: states.append(fields),
        update=lambda _, **fields: states.append(fields),
    )
    planned = forecast_imagination(TASK, EngineConfig(dialogues=6), LLMConfig(model="m", **PRICES))
    costs = LearnedForecast(planned, [f"advice-{i}" for i in range(6)])
    client = types.SimpleNamespace(meter=Meter())
    bar = llm_imagination._Bar(bars, costs, client, 6, 6)
    assert states == [{"total": planned.calls, "note": ""}]
    example = planned.steps[0].example
    client.meter.called(example.step, Usage(1000, 100, cost=0.01))
    costs.saw(example, Answer("{}", None, "m", Usage(1000, 100, cost=0.01), False))
    bar.show()
    assert states[-1]["completed"] == 1 and states[-1]["total"] == planned.calls
    note = states[-1]["note"]
    assert "0 of 6 dialogues | 1 calls | 1.0k tokens in, 100 out | $0.01 of about $" in note
    bar.end()
    assert states[-1]["total"] == 1
