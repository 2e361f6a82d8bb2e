"""Prompted humans and agents, with a client that answers by a Python function."""

from __future__ import annotations

import asyncio
import json

import pydantic
import pytest
from messages_server import MessagesServer
from prompted_llm import (
    ACTS,
    PERSONA,
    PRICE,
    TASK,
    ScriptedClient,
    conversation,
    opened,
    ordinary,
    play,
    steps_of,
)
from worlds import Parrot

from imagination.agents import (
    AGENTS,
    NO_ANSWER,
    PromptedHuman,
    prompted_agent,
    run_async,
    slips,
    spending,
)
from imagination.agents.cost import forecast_conversations
from imagination.agents.speaker import without_own_name
from imagination.dialogue import Dialogue
from imagination.engine import EngineConfig
from imagination.llm import Client, LLMConfig, LLMError
from imagination.prompts import load_prompt
from imagination.simulation import SimulatedHuman, load_world, sample_conversations
from imagination.speakers import converse

# Whole conversations


@pytest.mark.parametrize("name", AGENTS)
def test_conversation_end_to_end(name):
    client = ScriptedClient(ordinary)
    dialogues = play(name, client, **({"simulations": 2} if name == "gdp_zero" else {}))
    assert [d.reward for d in dialogues] == [4.0, 4.0]
    for dialogue in dialogues:
        assert [t.speaker for t in dialogue.turns] == ["human", "agent"] * 2 + ["human"]
        assert all(turn.text for turn in dialogue.turns)
        assert dialogue.turns[0].text == "What is recursion?"  # without its label
        assert Dialogue.from_json(dialogue.to_json()) == dialogue
        last = dialogue.turns[-1].annotations
        assert last["rating"] == 4 and last["rating_reason"] == "SECRET REASON"
        assert last["slips"] == slips(dialogue, TASK)


@pytest.mark.parametrize("name", AGENTS)
def test_persona_is_known_to_the_human_alone(name):
    client = ScriptedClient(ordinary)
    play(name, client)
    agents_steps = [step for step in client.steps() if step not in ("human/turn", "human/rating")]
    assert agents_steps
    for step in agents_steps:
        assert not any(value in client.words(step) for value in PERSONA.values())
    for step in ("human/turn", "human/rating"):
        assert all(value in client.words(step) for value in PERSONA.values())


def test_hidden_reasoning_is_kept_and_shown_to_nobody():
    client = ScriptedClient(ordinary)
    dialogue, _ = play("reasoning", client)
    assert all(turn.annotations["reasoning"] == "SECRET THOUGHT" for turn in dialogue.agent_turns)
    assert "SECRET" not in client.words()
    assert "SECRET" not in " ".join(turn.text for turn in dialogue.turns)


@pytest.mark.parametrize(("length", "kept"), [(2_000, 2_000), (20_000, 6_000)])
def test_long_reasoning_is_no_reason_to_be_silent(length, kept):
    line = {"text": "It calls itself. " * 100, "ends": False}
    reasoned = {"reasoning": "I think. " * (length // 9) + "x" * (length % 9), "line": line}
    client = ScriptedClient(lambda r: reasoned if r.step == "agents/reasoning" else ordinary(r))
    (said,) = prompted_agent("reasoning", client, TASK).respond([opened()])
    assert said.text == line["text"].strip() and "failure" not in said.annotations
    assert kept - 9 < len(said.annotations["reasoning"]) <= kept


def test_clam_asks_when_ambiguous_and_answers_otherwise():
    client = ScriptedClient(ordinary)
    dialogue, _ = play("clam", client)
    first, second = dialogue.agent_turns
    assert first.text == "What do you know already?" and first.annotations["ambiguous"]
    assert second.text == "It calls itself." and not second.annotations["ambiguous"]
    assert "What is missing: what they know" in client.words("agents/clam_ask")
    assert client.steps() >= steps_of(clam_check=4, clam_ask=2, clam_answer=2)


def test_clam_asks_nothing_that_nobody_would_answer():
    said = [("human", "Hm?"), ("agent", "So?"), ("human", "Hm?"), ("agent", "So?"), ("human", "?")]
    client = ScriptedClient(
        lambda r: (
            {"missing": "all", "ambiguous": True} if r.step == "agents/clam_check" else ordinary(r)
        )
    )
    (utterance,) = prompted_agent("clam", client, TASK).respond([conversation(0, said)])
    assert utterance.text == "It calls itself." and utterance.annotations["ambiguous"]


def test_calls_and_cost_are_counted():
    client = ScriptedClient(ordinary)
    dialogues = play("clam", client)
    for dialogue in dialogues:
        assert spending(dialogue) == {
            "agent_calls": 4,
            "agent_cost": 4 * PRICE,
            "agent_failures": 0,
            "human_calls": 4,  # three turns and the rating
            "human_cost": 4 * PRICE,
            "human_failures": 0,
        }
    assert len(client.requests) == sum(
        spending(d)["agent_calls"] + spending(d)["human_calls"] for d in dialogues
    )


@pytest.mark.parametrize("name", AGENTS)
def test_conversations_do_not_depend_on_each_other(name):
    def script(request):
        said = ordinary(request)
        if "text" in said:
            said = {**said, "text": f"{request.resample}"}
        if "line" in said:
            said = {**said, "line": {**said["line"], "text": f"{request.resample}"}}
        if "rating" in said:
            said = {**said, "rating": 1 + request.resample % 5}
        return said

    alone = [play(name, ScriptedClient(script), seeds=[seed])[0] for seed in (3, 4)]
    together = play(name, ScriptedClient(script), seeds=(9, 4, 3))
    assert [together[2], together[1]] == alone
    assert together[0].turns != together[1].turns


def test_same_words_asked_twice_in_a_turn_are_two_requests():
    client = ScriptedClient(ordinary)
    agent = prompted_agent("gdp_zero", client, TASK, simulations=4, value_samples=3)
    agent.respond([opened()])
    asked = [(r.step, r.messages, r.resample) for r in client.requests]
    assert len(set(asked)) == len(asked)


def test_conversations_are_held_concurrently():
    class SlowClient(ScriptedClient):
        in_flight = peak = 0

        async def ask(self, request):
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            await asyncio.sleep(0.05)
            self.in_flight -= 1
            return await super().ask(request)

    client = SlowClient(ordinary)
    prompted_agent("plain", client, TASK).respond([opened(s) for s in range(100)])
    assert client.peak > 50


def test_works_where_a_loop_is_running_already():
    async def inside():
        return prompted_agent("plain", ScriptedClient(ordinary), TASK).respond([opened()])

    assert asyncio.run(inside())[0].text == "It calls itself."


def test_all_speakers_share_one_loop():
    async def loop():
        return asyncio.get_running_loop()

    assert run_async(loop()) is run_async(loop())


def test_prompted_agent_talks_with_the_human_of_a_world():
    world = load_world("teaching")
    client = ScriptedClient(ordinary)
    agent = prompted_agent("plain", client, world.task)
    fresh = sample_conversations(world, "average", 3, seed=0, prefix="a")
    dialogues = converse(agent, SimulatedHuman(world), fresh, world.task)
    assert all(0 <= d.reward <= 1 for d in dialogues)
    assert spending(dialogues[0])["agent_calls"] == len(dialogues[0].agent_turns)
    assert spending(dialogues[0])["human_calls"] == 0

    client.script = failing("agents/plain")
    fresh = sample_conversations(world, "average", 3, seed=0, prefix="a")
    broken = converse(agent, SimulatedHuman(world), fresh, world.task)
    assert [d.turns[-1].text for d in broken] == [NO_ANSWER] * 3
    assert all(0 <= d.reward <= 1 for d in broken)


def answer_any(body):
    """Fits every schema of the prompts: only the fields that are asked for are sent."""
    line = {"text": "It calls itself.", "ends": False}
    fields = {
        **line,
        **{"line": line, "reasoning": "so", "missing": "all", "ambiguous": True, "acts": ACTS},
        **{"weights": [], "reason": "so", "rating": 3},
    }
    asked = body["output_config"]["format"]["schema"]["properties"]
    return json.dumps({name: fields[name] for name in asked})


@pytest.mark.parametrize("name", AGENTS)
def test_real_client_over_http_with_faults_then_resumed_for_free(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-the-test")
    faults = {"429": 0.05, "529": 0.05, "cut": 0.03, "wrong_schema": 0.05}
    with MessagesServer(answer_any, faults=faults) as server:
        prices = {"price_input": 3.0, "price_output": 15.0}
        config = LLMConfig(model="m", base_url=server.url, max_asks=6, **prices)

        def run():
            client = Client(config, tmp_path)
            dialogues = play(name, client, seeds=range(4))
            total = client.meter.usage.cost
            run_async(client.close())
            return dialogues, total

        dialogues, paid = run()
        answered = server.answered.total()
        again, paid_again = run()
        assert again == dialogues and paid_again == 0
        assert server.answered.total() == answered
        spent = [spending(dialogue) for dialogue in dialogues]
        assert all(s["agent_failures"] == s["human_failures"] == 0 for s in spent)
        # Listing the acts belongs to no conversation.
        in_conversations = sum(s["agent_cost"] + s["human_cost"] for s in spent)
        assert 0.9 * paid <= in_conversations <= paid + 1e-9


# Failures


def failing(step):
    return lambda request: "refused" if request.step == step else ordinary(request)


@pytest.mark.parametrize(
    "name, step",
    [
        ("plain", "agents/plain"),
        ("reasoning", "agents/reasoning"),
        ("clam", "agents/clam_check"),
        ("gdp_zero", "agents/gdp_zero_acts"),
        ("gdp_zero", "agents/gdp_zero_prior"),
    ],
)
def test_failure_ends_the_conversation_with_words_and_is_counted(name, step):
    dialogue, _ = play(name, ScriptedClient(failing(step)))
    last = dialogue.turns[-1]
    assert (last.speaker, last.text) == ("agent", NO_ANSWER)
    assert "refused" in last.annotations["failure"] and step in last.annotations["failure"]
    assert spending(dialogue)["agent_failures"] == 1
    # Whatever the human would say of so short a conversation, it is a failure.
    assert dialogue.reward == TASK.reward_range[0]


def test_nobody_leaves_before_the_agent_has_spoken():
    def leaving(request):
        return {**ordinary(request), **({"ends": True} if request.step == "human/turn" else {})}

    for dialogue in play("plain", ScriptedClient(leaving)):
        assert [turn.speaker for turn in dialogue.turns] == ["human", "agent", "human"]


def test_failure_of_the_human_ends_the_conversation():
    client = ScriptedClient(failing("human/turn"))
    dialogue, _ = play("plain", client)
    assert [turn.text for turn in dialogue.turns] == [NO_ANSWER]
    assert spending(dialogue)["human_failures"] == 1
    assert spending(dialogue)["human_cost"] == PRICE  # unusable answers are paid for, too
    assert (
        dialogue.reward is None and not client.steps()["human/rating"]
    )  # nothing there to be rated


def test_rating_that_failed_is_none():
    dialogue, _ = play("plain", ScriptedClient(failing("human/rating")))
    assert dialogue.reward is None
    assert "refused" in dialogue.turns[-1].annotations["rating_failure"]


def test_error_that_stops_the_run_is_raised_when_the_others_are_done():
    def script(request):
        if request.label == "c1":
            raise LLMError("no such model")
        return ordinary(request)

    client = ScriptedClient(script)
    with pytest.raises(LLMError, match="no such model"):
        prompted_agent("clam", client, TASK).respond([opened(s) for s in range(3)])
    assert client.steps() == steps_of(clam_check=3, clam_ask=2)


# Names, settings, prompts


def test_unknown_agent_names_those_there_are():
    with pytest.raises(ValueError, match="'oracle'; there are plain, reasoning, clam, gdp_zero"):
        prompted_agent("oracle", ScriptedClient(ordinary), TASK)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("plain", {"simulations": 3}, "'plain' has no setting 'simulations'; it has none"),
        ("gdp_zero", {"depth": 3}, "no setting 'depth'; it has acts, simulations"),
        (
            "gdp_zero",
            {"simulations": 0},
            r"simulations is 0, but must lie in \[1, 10000\]",
        ),
        ("gdp_zero", {"value_samples": 0}, r"value_samples is 0, but must lie in \[1, 1000\]"),
        ("gdp_zero", {"c_puct": float("nan")}, "c_puct is nan, but must be a finite number"),
        ("gdp_zero", {"q_0": 5.0}, r"q_0 is 5.0, but must lie in \[-1, 1\]"),
        ("gdp_zero", {"acts": {"ask": "asks", "wait": ""}}, "each described"),
        ("gdp_zero", {"acts": {"one": "alone"}}, "two or more"),
    ],
)
def test_settings_that_cannot_be(name, settings, message):
    with pytest.raises(ValueError, match=message):
        prompted_agent(name, ScriptedClient(ordinary), TASK, **settings)


def test_results_name_model_and_prompt_versions():
    client = ScriptedClient(ordinary)
    human = PromptedHuman(client, TASK, guidance="Students are shy.")
    assert human.model_and_version == {
        "model": "fake-1",
        "prompt": load_prompt("human/turn").version,
        "rating_prompt": load_prompt("human/rating").version,
        "guidance": "Students are shy.",
    }
    human.respond([conversation()])
    assert "Students are shy." in client.words("human/turn")
    assert client.requests[0].prompt_version == load_prompt("human/turn").version
    clam = prompted_agent("clam", client, TASK).model_and_version
    names = ("agents/clam_check", "agents/clam_ask", "agents/clam_answer")
    assert clam["prompt"] == ", ".join(load_prompt(name).version for name in names)


SPEECH = EngineConfig(
    dialogues=1, language="German", style="like a pirate", length="five words", examples=("Ahoy!",)
).speech


@pytest.mark.parametrize("name", AGENTS)
def test_everybody_speaks_as_the_imagined_speak(name):
    told = "five words, like a pirate in German"
    imagined = load_prompt("engine/human").system.render(
        {
            "task": TASK,
            "persona": PERSONA,
            "profile": {"profile": "", "reveals": ""},
            "situation": "",
            "details": {},
        }
        | {"speech": SPEECH, "max_turns": 3}
    )
    assert told in imagined
    client = ScriptedClient(ordinary)
    agent = prompted_agent(name, client, TASK, speech=SPEECH)
    human = PromptedHuman(client, TASK, speech=SPEECH)
    converse(agent, human, [conversation(1)], TASK)
    silent = {"human/rating", "agents/clam_check"}
    silent |= {f"agents/gdp_zero_{part}" for part in ("acts", "prior", "value")}
    spoken = [request for request in client.requests if request.step not in silent]
    assert {"human/turn"} < {request.step for request in spoken}
    block = imagined[imagined.index("\n\nExamples of how people speak") :]
    for request in spoken:
        assert told in request.system and "sentences" not in request.system
        assert request.system.endswith(block.rstrip())
    # As before where nothing of it is set.
    usual = ScriptedClient(ordinary)
    play(name, usual)
    for request in usual.requests:
        assert "Examples" not in request.system and " in German" not in request.system
    assert "Write as people speak: one to three short sentences, no headings" in usual.words(
        "human/turn"
    )


@pytest.mark.parametrize("name", ["", *AGENTS])
def test_a_forecast_counts_what_is_asked_up_to_the_limit(name):
    """With a client that, like the stand-in, never ends and finds all ambiguous."""

    def endless(request):
        said = request.schema.placeholder().model_dump()
        if request.step == "agents/gdp_zero_prior":
            said["weights"] = [{"act": each["act"], "weight": 1.0} for each in said["weights"]]
        return said

    settings = {"simulations": 2} if name == "gdp_zero" else {}
    client = ScriptedClient(endless)
    agent = prompted_agent(name, client, TASK, **settings) if name else Parrot("Hello.")
    sample = [conversation(seed) for seed in (1, 2)]
    converse(agent, PromptedHuman(client, TASK), sample, TASK)
    llm = LLMConfig(model="m", price_input=3.0, price_output=15.0)
    player = LLMConfig(model="other", price_input=0.3, price_output=1.5)

    def planned(number, **more):
        people = [conversation(seed) for seed in (1, 2)]
        return forecast_conversations(
            TASK, people, number, llm, agent=name, settings=settings, **more
        )

    found = planned(2, human={})
    assert {step.step: step.calls for step in found.steps} == client.steps()
    assert client.steps()["human/turn"] == 2 * (TASK.max_turns + 1)
    assert all(step.calls_at_most == step.calls for step in found.steps)
    # The acts of a search are listed once, however many conversations there are.
    more = {step.step: step.calls for step in planned(200, human={}).steps}
    assert more == {
        step: count if step == "agents/gdp_zero_acts" else 100 * count
        for step, count in client.steps().items()
    }
    cheaper = {step.step: step.cost for step in planned(2, human={}, player=player).steps}
    for step in found.steps:
        factor = 0.1 if step.step.startswith("human/") else 1.0
        assert cheaper[step.step] == pytest.approx(factor * step.cost) and step.cost > 0
    alone = {step.step for step in planned(2).steps}
    assert alone == {step for step in client.steps() if not step.startswith("human/")}


def test_empty_line_and_rating_off_the_scale_are_not_answers():
    def empty(request):
        return {"text": "  ", "ends": False}

    with pytest.raises(pydantic.ValidationError, match="no words"):
        prompted_agent("plain", ScriptedClient(empty), TASK).respond([opened()])
    client = ScriptedClient(lambda request: {"reason": "", "rating": 6})
    with pytest.raises(pydantic.ValidationError, match="from 1 to 5"):
        PromptedHuman(client, TASK).rate([opened()])


@pytest.mark.parametrize(
    "text, rest",
    [
        ("Tutor: Hello", "Hello"),
        ("**Tutor:** Hello", "Hello"),
        ('tutor : "Hello"', '"Hello"'),
        ("Tutor, hello: there", "Tutor, hello: there"),
        ("Tutor:", "Tutor:"),
    ],
)
def test_own_label_is_taken_off(text, rest):
    assert without_own_name(text, "tutor") == rest
