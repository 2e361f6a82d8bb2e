"""The imagination engine, against a client in this process that answers from a function.

At the end, with the real client against a server on loopback (`messages_server.py`).
"""

import asyncio
import collections
import dataclasses
import hashlib
import itertools
import json
import re
import types

import pytest
from imagination_client import TASK, FakeClient, failing_first_time, imagine, secret_profile, words
from messages_server import MessagesServer

from imagination import dataset_card
from imagination.criteria import CLOSING, GRADUAL
from imagination.dialogue import Dialogue
from imagination.engine import (
    EngineConfig,
    EngineError,
    derive_task,
    forecast_imagination,
    imagine_dialogues,
)
from imagination.engine.task_from_prompt import PLACEHOLDER as DERIVE_PLACEHOLDER
from imagination.engine.task_from_prompt import DerivedFields
from imagination.engine.write import load_behaviours
from imagination.llm import Client, LLMConfig, LLMError
from imagination.llm.play import Script
from imagination.llm.schemas import EndableLine

LLM = LLMConfig(model="m", price_input=1.0, price_output=5.0, price_date="2026-01-01")

WRITING = ("engine/script", "engine/human", "engine/agent", "engine/refine")


# Imagine


def test_the_agent_never_sees_the_persona():
    client = FakeClient(secret_profile)
    imagine(client, dialogues=18)
    values = list(itertools.chain(*TASK.persona_axes.values()))
    agents = [r for r in client.requests if r.step == "engine/agent"]
    assert agents
    for request in agents:
        assert "SECRET" not in words(request)
        assert not [value for value in values if value in words(request)]
    humans = [r for r in client.requests if r.step == "engine/human"]
    assert all("SECRET profile" in words(r) and "SECRET situation" in words(r) for r in humans)
    judges = [r for r in client.requests if r.step == "judge/rating"]
    assert not any("SECRET" in words(r) for r in judges)


def test_a_rollout_lets_each_side_see_what_was_said():
    said = itertools.count()

    def answer(request):
        if request.step == "engine/human":
            return EndableLine(text=f"Customer: human {next(said)}", ends=False)
        if request.step == "engine/agent":
            return EndableLine(text=f"agent {next(said)}", ends=False)
        return None

    client = FakeClient(answer)
    (dialogue,) = imagine(client, dialogues=1, critique_rounds=0).dialogues
    texts = [turn.text for turn in dialogue.turns]
    assert texts == [f"{'human' if i % 2 == 0 else 'agent'} {i}" for i in range(9)]
    assert dialogue.source["ended_by"] == "limit" and len(dialogue.agent_turns) == TASK.max_turns
    last = [r for r in client.requests if r.step == "engine/agent"][-1]
    assert [role for role, _ in last.messages] == ["user", "assistant"] * 3 + ["user"]
    assert last.messages[1][1] == '{"text": "agent 1", "ends": false}'
    assert last.messages[2][1] == "human 2" and last.messages[-1][1].startswith("human 6\n\n(")


@pytest.mark.parametrize(("last_words", "turns"), [("Thanks, bye.", 3), ("", 2)])
def test_the_human_decides_when_a_rollout_ends(last_words, turns):
    def answer(request):
        if request.step == "engine/human":
            # Wanting to leave before the agent said anything counts for nothing.
            first = len(request.messages) == 1
            return EndableLine(text="Hello." if first else last_words, ends=True)
        return None

    (dialogue,) = imagine(FakeClient(answer), dialogues=1).dialogues
    assert len(dialogue.turns) == turns and dialogue.source["ended_by"] == "human"


def test_each_side_knows_how_many_turns_are_left():
    client = FakeClient()
    imagine(client, dialogues=1, critique_rounds=0)
    last = {
        step: [r.messages[-1][1] for r in client.requests if r.step == step] for step in WRITING
    }
    left = [re.search(r"may speak (\d) more times", text)[1] for text in last["engine/agent"]]
    assert left == ["4", "3", "2", "1"] and "It is your last turn" in last["engine/agent"][-1]
    humans = last["engine/human"]
    assert len(humans) == 5 and "The seller may speak 4 more times" in humans[0]
    assert "These are your last words" in humans[-1] and not any(
        "last words, the" in text for text in humans[:-1]
    )


def test_the_agent_may_end_and_the_human_has_the_last_word():
    def answer(request):
        if request.step == "engine/agent":
            return EndableLine(text="Goodbye.", ends=True)
        return None

    client = FakeClient(answer)
    (dialogue,) = imagine(client, dialogues=1, critique_rounds=0).dialogues
    assert [turn.speaker for turn in dialogue.turns] == ["human", "agent", "human"]
    assert dialogue.source["ended_by"] == "agent"
    assert (
        "These are your last words"
        in [r.messages[-1][1] for r in client.requests if r.step == "engine/human"][-1]
    )
    silent = FakeClient(
        lambda r: EndableLine(text=" ", ends=True) if r.step == "engine/agent" else None
    )
    with pytest.raises(EngineError, match="engine/agent: text has no words"):
        imagine(silent, dialogues=1)


def test_the_agents_behave_in_several_ways():
    dialogues = imagine(FakeClient(), dialogues=len(load_behaviours())).dialogues
    assert {d.source["behaviour"] for d in dialogues} == set(load_behaviours())


def test_the_outcome_fixed_beforehand_is_in_the_script_prompt():
    client = FakeClient()
    imagined = imagine(client, dialogues=8, way="script", rewards="outcome")
    scripts = {r.label: words(r) for r in client.requests if r.step == "engine/script"}
    assert collections.Counter(d.reward for d in imagined.dialogues) == {0.0: 4, 1.0: 4}
    for dialogue in imagined.dialogues:
        assert f"The outcome: rating {dialogue.reward:g} " in scripts[dialogue.id]
        assert dialogue.source["outcome"] == dialogue.reward
        assert load_behaviours()[dialogue.source["behaviour"]] in scripts[dialogue.id]
        assert all(value in scripts[dialogue.id] for value in dialogue.persona.values())


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "begin with a turn of the human"),
        ([("agent", "Hi.")], "begin with a turn of the human"),
        ([("human", "Hi.")], "1 to 4 turns"),
        ([("human", "Hi."), ("agent", " ")], "without words"),
    ],
)
def test_scripts_that_are_no_dialogue_are_not_of_the_schema(turns, problem):
    client = FakeClient()
    imagine(client, dialogues=1, way="script")
    (schema,) = {r.schema for r in client.requests if r.step == "engine/script"}
    with pytest.raises(ValueError, match=problem):
        schema.model_validate({"turns": [{"speaker": s, "text": t} for s, t in turns]})


def test_turns_in_a_row_are_joined_and_labels_taken_off():
    turns = [("human", "Hi."), ("agent", "Seller: Hello."), ("agent", "agent: A bike?")]
    script = Script.model_construct(
        turns=[types.SimpleNamespace(speaker=s, text=t) for s, t in turns]
    )
    assert [t.text for t in script.dialogue_turns(TASK, "engine/script")] == [
        "Hi.",
        "Hello. A bike?",
    ]


def test_situations_of_a_persona_take_turns():
    task = dataclasses.replace(TASK, persona_axes={"use": ("sport", "work", "leisure")})

    def answer(request):
        if request.step != "engine/personas":
            return None
        parsed = request.schema.placeholder()
        for profile in parsed.profiles:
            profile.situations = ["first", "second", "third"]
        return parsed

    dialogues = imagine(FakeClient(answer), task, dialogues=9).dialogues
    seen = collections.Counter((d.persona["use"], d.source["situation"]) for d in dialogues)
    assert len(seen) == 9


# Critique and refine


@pytest.mark.parametrize("settings", [{"way": "script", "rewards": "outcome"}, {}])
def test_critique_keeps_both_versions_the_verdicts_and_what_changed(settings):
    client = FakeClient(failing_first_time(1, 3))
    dialogues = imagine(client, **settings).dialogues
    refine = next(words(r) for r in client.requests if r.step == "engine/refine")
    assert TASK.criteria[0] in refine.split("Failed:")[1]
    assert f"Circumstance: {dialogues[0].source['situation']}" in refine
    for dialogue in dialogues:
        critique = dialogue.source["critique"]
        assert dialogue.source["kind"] == "critiqued"
        assert dialogue.turns[1].text == "A rewritten answer."
        assert len(critique["original"]) > 3 and critique["original"][0]["role"] == "user"
        assert critique["changed"] == [[GRADUAL, TASK.criteria[0]]]
        first, second = critique["verdicts"]
        assert [v["criterion"] for v in first] == [GRADUAL, CLOSING, TASK.criteria[0]]
        assert [v["fulfilled"] for v in first] == [False, True, False]
        assert all(v["fulfilled"] and v["reason"] for v in second)
        assert (critique["rounds"], critique["passed"]) == (1, True)


def test_a_rewritten_rollout_is_rated_again():
    client = FakeClient(failing_first_time(2))
    imagine(client, dialogues=1)
    assert client.steps()["engine/rating"] == 2
    assert "A rewritten answer." in words([r for r in client.requests if "rating" in r.step][-1])


def test_rounds_of_critique_are_bounded():
    def never_good(request):
        return request.schema.placeholder().failing() if request.step == "engine/critique" else None

    client = FakeClient(never_good)
    settings = {"way": "script", "critique_rounds": 3, "failed_critique": "keep"}
    (dialogue,) = imagine(client, dialogues=1, **settings).dialogues
    assert (client.steps()["engine/critique"], client.steps()["engine/refine"]) == (4, 3)
    assert dialogue.source["critique"]["passed"] is False


def test_without_critique_nothing_is_judged():
    client = FakeClient()
    (dialogue,) = imagine(client, dialogues=1, critique_rounds=0).dialogues
    assert "engine/critique" not in client.steps()
    assert dialogue.source["kind"] == "imagined"
    assert dialogue.source["critique"]["verdicts"] == []


# The whole engine


def test_failures_are_counted_and_never_become_empty_dialogues():
    def answer(request):
        return "refused" if request.label in ("advice-1", "advice-4") else None

    seen = []
    imagined = imagine(FakeClient(answer), on_dialogue=seen.append)
    assert [d.id for d in imagined.dialogues] == [f"advice-{i}" for i in (0, 2, 3, 5)]
    assert sorted(d.id for d in seen) == [f"advice-{i}" for i in range(6)]
    assert [(d.id, d.reason) for d in imagined.dropped] == [
        ("advice-1", "refused"),
        ("advice-4", "refused"),
    ]


@pytest.mark.parametrize(
    "step", ["engine/human", "engine/agent", "engine/critique", "engine/rating"]
)
def test_a_failure_at_any_step_drops_that_dialogue_alone(step):
    def answer(request):
        return "max_tokens" if (request.step, request.label) == (step, "advice-2") else None

    imagined = imagine(FakeClient(answer))
    assert len(imagined.dialogues) == 5 and [d.step for d in imagined.dropped] == [step]


def test_nothing_at_all_is_an_error_with_the_reasons():
    with pytest.raises(EngineError, match=r"None of 6.*engine/rating: refused \(6 times\)"):
        imagine(FakeClient(lambda r: "refused" if r.step == "engine/rating" else None))


def test_an_error_of_the_client_stops_the_run():
    def answer(request):
        if request.step == "engine/critique":
            raise LLMError("401: set ANTHROPIC_API_KEY")
        return None

    with pytest.raises(LLMError, match="401"):
        imagine(FakeClient(answer), dialogues=20, conversations=4)


@pytest.mark.parametrize("way", ["script", "rollout"])
def test_the_same_seed_asks_the_same_requests(way):
    clients = [FakeClient(failing_first_time(1)) for _ in range(3)]
    for client, conversations in zip(clients, (256, 2, 256), strict=True):
        seed = int(client is clients[2])
        imagine(client, dialogues=20, way=way, conversations=conversations, seed=seed)
    first, second, other = (sorted(client.keys()) for client in clients)
    assert first == second != other
    written = [r.key("m") for r in clients[0].requests if r.step in WRITING]
    assert len(set(written)) == len(written)  # a dialogue is never another's answer


@pytest.mark.parametrize("way", ["script", "rollout"])
def test_more_dialogues_keep_the_ones_that_are_there(way):
    few, many = FakeClient(), FakeClient()
    imagine(few, dialogues=16, way=way, personas_per_call=4)
    imagine(many, dialogues=40, way=way, personas_per_call=4)
    assert set(few.keys()) <= set(many.keys())


def test_a_slow_conversation_holds_up_no_other():
    class SlowFirst(FakeClient):
        async def _ask(self, request):
            if request.label == "advice-0":
                await finished.wait()
            return await super()._ask(request)

    order = []

    async def run():
        client = SlowFirst()
        config = EngineConfig(dialogues=5)

        def on_dialogue(dialogue):
            order.append(dialogue.id)
            if len(order) == 4:
                finished.set()

        return await asyncio.wait_for(
            imagine_dialogues(client, TASK, config, on_dialogue), timeout=10
        )

    finished = asyncio.Event()
    imagined = asyncio.run(run())
    assert order[-1] == "advice-0" and len(order) == 5
    assert [d.id for d in imagined.dialogues] == [f"advice-{i}" for i in range(5)]


def test_every_dialogue_has_the_same_keys_and_survives_the_disk():
    rewrite = failing_first_time(1)
    client = FakeClient(lambda r: rewrite(r) if r.label in ("advice-1", "advice-3") else None)
    for settings in ({}, {"way": "script", "rewards": "outcome"}):
        records = [d.to_json() for d in imagine(client, **settings).dialogues]
        shapes = {json.dumps(_shape(record["source"])) for record in records}
        assert len(shapes) == 1
        for record in records:
            again = Dialogue.from_json(json.loads(json.dumps(record))).to_json()
            assert again == record and record["messages"][0]["role"] == "user"
            source = record["source"]
            rewritten = record["id"] in ("advice-1", "advice-3")
            assert source["models"].pop("engine/refine") == ("fake-1" if rewritten else None)
            assert set(source["models"].values()) == {"fake-1"}
            assert {"engine/personas", "engine/critique", "engine/behaviours"} <= set(
                source["prompts"]
            )


def _shape(value):
    return {k: _shape(v) for k, v in sorted(value.items())} if isinstance(value, dict) else 0


def test_a_task_without_axes_says_what_to_do():
    with pytest.raises(EngineError, match="persona_axes"):
        imagine(FakeClient(), dataclasses.replace(TASK, persona_axes={}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dialogues", 0),
        ("dialogues", 2.0),
        ("way", "novel"),
        ("rewards", "stars"),
        ("rewards", "outcome"),  # with rollout
        ("also_rewards", ("outcome",)),  # with rollout
        ("also_rewards", ("stars",)),
        ("outcomes", 1),
        ("personas_per_call", 0),
        ("critique_rounds", -1),
        ("judge_votes", 0),
        ("max_turns", -1),
        ("conversations", 0),
        ("seed", -1),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf"{field} is .*, but must"):
        EngineConfig(**{"dialogues": 3, field: value})


# Forecast


@pytest.mark.parametrize("dialogues", [5, 40])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"also_rewards": ("judge",), "judge_votes": 5, "max_turns": 2},
        {"way": "script", "rewards": "outcome"},
        {"way": "script", "critique_rounds": 0, "personas_per_call": 3},
    ],
)
def test_the_forecast_counts_the_calls_that_are_made(dialogues, settings):
    client = FakeClient()
    imagine(client, dialogues=dialogues, **settings)
    planned = forecast_imagination(TASK, EngineConfig(dialogues=dialogues, **settings), LLM)
    assert {s.step: s.calls for s in planned.steps if s.calls} == client.steps()


def test_the_forecast_at_most_is_every_dialogue_rewritten():
    def never_good(request):
        return request.schema.placeholder().failing() if request.step == "engine/critique" else None

    client = FakeClient(never_good)
    imagine(client, dialogues=40, critique_rounds=2, failed_critique="keep")
    planned = forecast_imagination(TASK, EngineConfig(dialogues=40, critique_rounds=2), LLM)
    assert {s.step: s.calls_at_most for s in planned.steps} == client.steps()
    assert planned.cost_at_most > planned.cost > 0


def test_the_forecast_shows_a_prompt_of_every_step_and_the_price():
    config = EngineConfig(dialogues=100)
    given = {"name": "advice", "description": TASK.description}
    planned = forecast_imagination(given, config, LLM)
    text = planned.to_markdown()
    steps = ("task", "personas", "human", "agent", "critique", "refine")
    for step in (f"engine/{name}" for name in steps):
        assert f"## {step} (" in text
    assert TASK.description in text and "2026-01-01" in text
    assert {s.step: s.calls for s in planned.steps}["engine/task"] == 1
    halved = forecast_imagination(given, config, dataclasses.replace(LLM, batch=True))
    assert halved.cost == pytest.approx(planned.cost / 2)
    assert "not known" in forecast_imagination(given, config, LLMConfig(model="m")).to_markdown()


# With the real client, over HTTP


def served(body):
    """Answers of every schema, in words that hang on the question alone."""
    asked = [message["content"] for message in body["messages"]]
    if again := [i for i, text in enumerate(asked) if text.startswith("This answer cannot")]:
        asked = asked[: again[0] - 1]
    asked[-1] = asked[-1].partition("\n\n(An answer given before")[0]
    system = body["system"][0]["text"]
    mark = hashlib.sha256("".join([system, *asked]).encode()).hexdigest()[:6]
    fields = set(body["output_config"]["format"]["schema"]["properties"])
    if "unusable_because" in fields:
        placeholder = DerivedFields.placeholder().model_dump()
        derived = {**DERIVE_PLACEHOLDER, "max_turns": 3}
        derived["persona_axes"] = [axis.model_dump() for axis in derived["persona_axes"]]
        return json.dumps({**placeholder, **derived})
    if "profiles" in fields:
        each = {"profile": mark, "reveals": mark, "situations": [mark], "difficult": False}
        numbers = range(1, asked[0].count("Combination") + 1)
        return json.dumps({"profiles": [{"number": i, **each} for i in numbers]})
    if "turns" in fields:
        last = "Rewritten." if "You revise" in system else "Thanks."
        said = [("human", f"Hi {mark}."), ("agent", "Hello."), ("human", last)]
        return json.dumps({"turns": [{"speaker": s, "text": t} for s, t in said]})
    if "verdicts" in fields:
        count = len(re.findall(r"^\d+\. ", system, flags=re.MULTILINE))
        good = "Rewritten." in asked[0] or int(mark, 16) % 2 == 0
        each = {"reason": mark, "fulfilled": good}
        return json.dumps({"verdicts": [{"number": i + 1, **each} for i in range(count)]})
    if "rating" in fields:
        return json.dumps({"reason": mark, "rating": int(mark, 16) % 11 / 10})
    ends = {"ends": int(mark, 16) % 4 == 0} if "ends" in fields else {}
    return json.dumps({"text": f"Words {mark}.", **ends})


def over_http(server, folder, config, **llm):
    """From a paragraph to a dataset. Returns task, result and the client's meter."""
    prices = {"price_input": 3.0, "price_output": 15.0, "batch_poll": 0.02, "timeout": 10.0}

    async def run():
        client = Client(LLMConfig(model="small", base_url=server.url, **prices, **llm), folder)
        try:
            task = await derive_task(client, "advice", {"description": TASK.description})
            return task, await imagine_dialogues(client, task, config), client.meter
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.fixture
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-none")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@pytest.mark.usefixtures("key_in_environment")
@pytest.mark.parametrize("way", ["script", "rollout"])
def test_faults_and_a_restart_change_nothing_in_the_dataset(tmp_path, way):
    config = EngineConfig(dialogues=30, way=way, also_rewards=("judge",), judge_votes=2)
    with MessagesServer(served) as server:
        task, smooth, _ = over_http(server, tmp_path / "smooth", config)
        answered = dict(server.answered)
    assert len(smooth.dialogues) == 30 and not smooth.dropped
    assert 0 < sum(d.source["kind"] == "critiqued" for d in smooth.dialogues) < 30
    faults = dict.fromkeys(("429", "500", "529", "max_tokens", "wrong_schema", "refusal"), 0.015)
    with MessagesServer(served, faults=faults, schedule=[""] * 40 + ["401"]) as server:
        with pytest.raises(LLMError, match="401"):
            over_http(server, tmp_path / "rough", config, max_asks=6)
        server.schedule.append("")  # by the first answer it is told what the server can
        again, rough, meter = over_http(server, tmp_path / "rough", config, max_asks=6)
        assert server.fault_count(*faults)
        # Nothing usable was paid for twice; resamples of one question have the same body.
        assert all(server.answered[body] <= answered[body] for body in answered)
    assert again == task and rough == smooth
    assert sum(row["cache_hits"] for row in meter.summary()) >= 40
    card = dataset_card.dataset_card(
        rough.dialogues, task, meter=meter.summary(), dropped=rough.dropped
    )
    assert "| all |" in card


@pytest.mark.usefixtures("key_in_environment")
def test_message_batches_hold_what_all_conversations_ask_at_a_time(tmp_path):
    config = EngineConfig(dialogues=20, way="script", critique_rounds=0, conversations=2)
    with MessagesServer(served) as server:
        _, imagined, _ = over_http(server, tmp_path / "batch", config, batch=True)
        assert [batch.size for batch in server.batches] == [1, 3, 20, 20]
        _, direct, _ = over_http(server, tmp_path / "direct", config)
    assert imagined == direct
