"""Prompted humans and agents, with a client that answers by a Python function."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import types
from collections import Counter

import pydantic
import pytest
from messages_server import MessagesServer

from imagination.agents import (
    AGENTS,
    NO_ANSWER,
    PromptedHuman,
    prompted_agent,
    run_async,
    slips,
    spending,
)
from imagination.agents.gdp_zero import OpenLoopSearch, SearchConfig
from imagination.agents.prompted import DialogueActs
from imagination.agents.speaker import without_own_name
from imagination.dialogue import Dialogue, Turn
from imagination.llm import Answer, Client, Failure, LLMConfig, LLMError, Usage
from imagination.prompts import load_prompt
from imagination.simulation import SimulatedHuman, load_world, sample_conversations
from imagination.speakers import Conversation, converse
from imagination.task import Task

TASK = Task(
    name="lesson",
    description="A tutor explains recursion to a student of unknown background.",
    agent_role="tutor",
    human_role="student",
    persona_axes={"level": ("zeroknow", "midknow"), "mood": ("fidgety", "serene")},
    reward_range=(1.0, 5.0),
    success_reward=4.0,
    max_turns=3,
)
PERSONA = {"level": "zeroknow", "mood": "fidgety"}
PRICE = 0.25


class FakeClient:
    """Answers at once by `script(request)`: values of the schema, or a string = a Failure."""

    def __init__(self, script):
        self.config = types.SimpleNamespace(model="fake-1")
        self.script = script
        self.requests = []

    async def ask(self, request):
        self.requests.append(request)
        await asyncio.sleep(0)
        said = self.script(request)
        if isinstance(said, str):
            return Failure(request, said)
        parsed = request.schema.model_validate(said)
        usage = Usage(input_tokens=10, output_tokens=5, cost=PRICE)
        return Answer(parsed.model_dump_json(), parsed, "fake-1", usage, False)

    async def ask_all(self, requests, on_done=None):
        return [await self.ask(request) for request in requests]

    def steps(self):
        return Counter(request.step for request in self.requests)

    def words(self, step=""):
        return "\n".join(
            request.system + "\n" + "\n".join(content for _, content in request.messages)
            for request in self.requests
            if request.step.startswith(step)
        )


def steps_of(**counts):
    return Counter({f"agents/{step}": count for step, count in counts.items()})


ACTS = [{"name": f"act {i}", "description": f"does {i}"} for i in range(6)]


def ordinary(request):
    """Sensible answers to every prompt there is."""
    last = request.messages[-1][1]
    if request.step == "human/turn":
        return {"text": "Student: What is recursion?", "ends": last.count("Tutor:") >= 2}
    lines = {
        "agents/plain": {"text": "It calls itself.", "ends": False},
        "agents/clam_ask": {"text": "What do you know already?", "ends": False},
        "agents/clam_answer": {"text": "It calls itself.", "ends": False},
        "agents/gdp_zero_say": {"text": "It calls itself.", "ends": False},
        "agents/gdp_zero_human": {"text": "I see.", "ends": False},
        "agents/reasoning": {
            "reasoning": "SECRET THOUGHT",
            "line": {"text": "It calls itself.", "ends": False},
        },
        "agents/clam_check": {"missing": "what they know", "ambiguous": "Tutor:" not in last},
        "agents/gdp_zero_acts": {"acts": ACTS},
        "agents/gdp_zero_prior": {"weights": [{"act": "act 2", "weight": 90}]},
        "agents/gdp_zero_value": {"reason": "why not", "rating": 3},
        "human/rating": {"reason": "SECRET REASON", "rating": 4},
    }
    return lines[request.step]


def conversation(seed=0, said=()):
    turns = [Turn(*each) for each in said]
    return Conversation(id=f"c{seed}", persona=PERSONA, seed=seed, turns=turns)


def opened(seed=0):
    return conversation(seed, [("human", "What is recursion?")])


def play(name, client, seeds=(1, 2), **settings):
    agent = prompted_agent(name, client, TASK, **settings)
    return converse(agent, PromptedHuman(client, TASK), [conversation(s) for s in seeds], TASK)


# Whole conversations


@pytest.mark.parametrize("name", AGENTS)
def test_conversation_end_to_end(name):
    client = FakeClient(ordinary)
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
    client = FakeClient(ordinary)
    play(name, client)
    agents_steps = [step for step in client.steps() if step not in ("human/turn", "human/rating")]
    assert agents_steps
    for step in agents_steps:
        assert not any(value in client.words(step) for value in PERSONA.values())
    for step in ("human/turn", "human/rating"):
        assert all(value in client.words(step) for value in PERSONA.values())


def test_hidden_reasoning_is_kept_and_shown_to_nobody():
    client = FakeClient(ordinary)
    dialogue, _ = play("reasoning", client)
    assert all(turn.annotations["reasoning"] == "SECRET THOUGHT" for turn in dialogue.agent_turns)
    assert "SECRET" not in client.words()
    assert "SECRET" not in " ".join(turn.text for turn in dialogue.turns)


def test_clam_asks_when_ambiguous_and_answers_otherwise():
    client = FakeClient(ordinary)
    dialogue, _ = play("clam", client)
    first, second = dialogue.agent_turns
    assert first.text == "What do you know already?" and first.annotations["ambiguous"]
    assert second.text == "It calls itself." and not second.annotations["ambiguous"]
    assert "What is missing: what they know" in client.words("agents/clam_ask")
    assert client.steps() >= steps_of(clam_check=4, clam_ask=2, clam_answer=2)


def test_clam_asks_nothing_that_nobody_would_answer():
    said = [("human", "Hm?"), ("agent", "So?"), ("human", "Hm?"), ("agent", "So?"), ("human", "?")]
    client = FakeClient(
        lambda r: (
            {"missing": "all", "ambiguous": True} if r.step == "agents/clam_check" else ordinary(r)
        )
    )
    (utterance,) = prompted_agent("clam", client, TASK).respond([conversation(0, said)])
    assert utterance.text == "It calls itself." and utterance.annotations["ambiguous"]


def test_calls_and_cost_are_counted():
    client = FakeClient(ordinary)
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

    alone = [play(name, FakeClient(script), seeds=[seed])[0] for seed in (3, 4)]
    together = play(name, FakeClient(script), seeds=(9, 4, 3))
    assert [together[2], together[1]] == alone
    assert together[0].turns != together[1].turns


def test_same_words_asked_twice_in_a_turn_are_two_requests():
    client = FakeClient(ordinary)
    agent = prompted_agent("gdp_zero", client, TASK, simulations=4, value_samples=3)
    agent.respond([opened()])
    asked = [(r.step, r.messages, r.resample) for r in client.requests]
    assert len(set(asked)) == len(asked)


def test_conversations_are_held_concurrently():
    class SlowClient(FakeClient):
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
        return prompted_agent("plain", FakeClient(ordinary), TASK).respond([opened()])

    assert asyncio.run(inside())[0].text == "It calls itself."


def test_all_speakers_share_one_loop():
    async def loop():
        return asyncio.get_running_loop()

    assert run_async(loop()) is run_async(loop())


def test_prompted_agent_talks_with_the_human_of_a_world():
    world = load_world("teaching")
    client = FakeClient(ordinary)
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
    dialogue, _ = play(name, FakeClient(failing(step)))
    last = dialogue.turns[-1]
    assert (last.speaker, last.text) == ("agent", NO_ANSWER)
    assert "refused" in last.annotations["failure"] and step in last.annotations["failure"]
    assert spending(dialogue)["agent_failures"] == 1
    # Whatever the human would say of so short a conversation, it is a failure.
    assert dialogue.reward == TASK.reward_range[0]


def test_nobody_leaves_before_the_agent_has_spoken():
    def leaving(request):
        return {**ordinary(request), **({"ends": True} if request.step == "human/turn" else {})}

    for dialogue in play("plain", FakeClient(leaving)):
        assert [turn.speaker for turn in dialogue.turns] == ["human", "agent", "human"]


def test_failure_of_the_human_ends_the_conversation():
    client = FakeClient(failing("human/turn"))
    dialogue, _ = play("plain", client)
    assert [turn.text for turn in dialogue.turns] == [NO_ANSWER]
    assert spending(dialogue)["human_failures"] == 1
    assert (
        dialogue.reward is None and not client.steps()["human/rating"]
    )  # nothing there to be rated


def test_rating_that_failed_is_none():
    dialogue, _ = play("plain", FakeClient(failing("human/rating")))
    assert dialogue.reward is None
    assert "refused" in dialogue.turns[-1].annotations["rating_failure"]


def test_search_that_breaks_off_says_the_best_it_has():
    def script(request):
        if client.steps()["agents/gdp_zero_value"] == 2:
            return "overloaded"
        return ordinary(request)

    client = FakeClient(script)
    (said,) = prompted_agent("gdp_zero", client, TASK).respond([opened()])
    assert said.text == "It calls itself." and said.ends
    assert "overloaded" in said.annotations["failure"] and said.annotations["act"] == "act 2"


def test_error_that_stops_the_run_is_raised_when_the_others_are_done():
    def script(request):
        if request.label == "c1":
            raise LLMError("no such model")
        return ordinary(request)

    client = FakeClient(script)
    with pytest.raises(LLMError, match="no such model"):
        prompted_agent("clam", client, TASK).respond([opened(s) for s in range(3)])
    assert client.steps() == steps_of(clam_check=3, clam_ask=2)


# GDP-ZERO

GIVE_OR_TAKE = {"give": "gives", "take": "takes"}


def giving_is_right(request):
    """The model first thinks of taking, but foresees that giving ends well."""
    last = request.messages[-1][1]
    if request.step == "agents/gdp_zero_prior":
        return {"weights": [{"act": "take", "weight": 60}, {"act": "GIVE", "weight": 40}]}
    if request.step == "agents/gdp_zero_say":
        return {"text": "I give" if "give (gives)" in last else "I take", "ends": False}
    if request.step == "agents/gdp_zero_human":
        return {"text": "Fine.", "ends": True}
    assert "finished conversation" in last
    return {"reason": "it was given", "rating": 5 if "I give" in last else 1}


def test_gdp_zero_finds_the_better_act_with_exactly_the_calls_expected():
    client = FakeClient(giving_is_right)
    agent = prompted_agent("gdp_zero", client, TASK, acts=GIVE_OR_TAKE, simulations=8)
    (said,) = agent.respond([opened()])
    assert said.text == "I give" and said.annotations["act"] == "give"
    # Walk 1 takes (prior .6), is worth -1; walk 2 gives and is worth 1; from then on giving wins:
    # Q + P √N / (1 + n) is at least 1 for it, and at most -1 + .6 √7 / 2 for taking. Three
    # realizations are kept for giving, one for taking; what is known is not asked again.
    assert said.annotations["visits"] == {"give": 7, "take": 1}
    assert said.annotations["act_values"] == {"give": 1.0, "take": -1.0}
    assert client.steps() == steps_of(
        gdp_zero_prior=1, gdp_zero_say=4, gdp_zero_human=4, gdp_zero_value=4
    )
    assert said.annotations["calls"] == 13 and said.annotations["cost"] == 13 * PRICE
    assert agent.setup_calls == 0


def test_gdp_zero_lists_its_acts_once():
    client = FakeClient(ordinary)
    agent = prompted_agent("gdp_zero", client, TASK, simulations=1)
    agent.respond([opened(1), opened(2)])
    said = agent.respond([opened(3)])
    assert client.steps()["agents/gdp_zero_acts"] == 1
    assert (agent.setup_calls, agent.setup_cost) == (1, PRICE)
    assert list(agent.acts) == [act["name"] for act in ACTS]
    assert said[0].annotations["calls"] == 4  # prior, say, human, value


def test_gdp_zero_averages_its_value_samples():
    client = FakeClient(giving_is_right)
    agent = prompted_agent(
        "gdp_zero", client, TASK, acts=GIVE_OR_TAKE, simulations=1, value_samples=5
    )
    agent.respond([opened()])
    assert client.steps()["agents/gdp_zero_value"] == 5


def test_gdp_zero_looks_no_further_than_the_turn_limit():
    said = [("human", "Hm?"), ("agent", "So?"), ("human", "Hm?"), ("agent", "So?"), ("human", "?")]
    client = FakeClient(ordinary)
    agent = prompted_agent("gdp_zero", client, TASK, acts=GIVE_OR_TAKE, simulations=12)
    agent.respond([conversation(0, said)])
    assert client.steps()["agents/gdp_zero_prior"] == 1
    assert "finished conversation" in client.words("agents/gdp_zero_value")


class Ladder:
    """Up is worth something only after two steps; a state is the acts so far."""

    def __init__(self):
        self.asked = Counter()

    def is_over(self, state):
        return len(state) == 2

    async def prior(self, state):
        self.asked["prior"] += 1
        return {"down": 0.5, "up": 0.5}

    async def step(self, state, act):
        self.asked["step"] += 1
        return (*state, act)

    async def value(self, state):
        self.asked["value"] += 1
        return {("up", "up"): 1.0, ("down",): 0.4}.get(state, 0.3)


def test_search_looks_past_the_next_act():
    ladder = Ladder()
    search = OpenLoopSearch(ladder, (), SearchConfig(simulations=40), seed=0)
    asyncio.run(search.run())
    act, state = search.best()
    assert (act, state) == ("up", ("up",))
    assert sum(search.root.visits.values()) == 40
    assert ladder.asked["prior"] == 3  # the root and both nodes that are not over
    assert all(len(node.realizations) <= 3 for node in search.nodes.values())


def test_search_keeps_the_realization_that_did_best():
    class Luck(Ladder):
        def is_over(self, state):
            return len(state) == 1

        async def step(self, state, act):
            self.asked["step"] += 1
            return (f"{act} {self.asked['step']}",)

        async def value(self, state):
            return {"up 2": 0.9, "up 3": 0.95, "up 4": 0.8}.get(state[0], 0.0)

    search = OpenLoopSearch(Luck(), (), SearchConfig(simulations=10), seed=0)
    asyncio.run(search.run())
    assert search.best() == ("up", ("up 3",))


def test_acts_must_be_enough_and_different():
    with pytest.raises(pydantic.ValidationError, match="6 to 10 acts"):
        DialogueActs(acts=ACTS[:5])
    with pytest.raises(pydantic.ValidationError, match="6 acts with 5 names"):
        DialogueActs(acts=[*ACTS[:5], ACTS[0]])


# Names, settings, prompts


def test_unknown_agent_names_those_there_are():
    with pytest.raises(ValueError, match="'oracle'; there are plain, reasoning, clam, gdp_zero"):
        prompted_agent("oracle", FakeClient(ordinary), TASK)


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
        prompted_agent(name, FakeClient(ordinary), TASK, **settings)


def test_results_name_model_and_prompt_versions():
    client = FakeClient(ordinary)
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


def test_empty_line_and_rating_off_the_scale_are_not_answers():
    def empty(request):
        return {"text": "  ", "ends": False}

    with pytest.raises(pydantic.ValidationError, match="no words"):
        prompted_agent("plain", FakeClient(empty), TASK).respond([opened()])
    client = FakeClient(lambda request: {"reason": "", "rating": 6})
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


# Slips


def said(*lines, persona=None, task=TASK):
    turns = []
    for line in lines:
        turns += [Turn("human", line), Turn("agent", "Tutor: Goodbye! Assistant: zeroknow fidgety")]
    return slips(Dialogue("d", "lesson", tuple(turns), persona=persona or PERSONA), task)


@pytest.mark.parametrize(
    "line, count",
    [
        ("Tutor: recursion is a loop.", 1),
        ("I see.\n\nTUTOR: Good.\nStudent: Thanks.", 1),
        ("**Tutor:** Good.", 1),
        ("Ok.\nAssistant: Certainly!", 1),
        ("Agent: hello\nTutor: hello", 1),  # a turn counts once
        ("Student: what is recursion?", 0),
        ("Tutor, what is recursion?", 0),
        ("My last tutor: he was mean.", 0),
        ("Is an agent: a thing?", 0),
        ("Tutoring: is it free?", 0),
        ("", 0),
    ],
)
def test_speaking_for_the_agent(line, count):
    assert said(line)["speaks_for_agent"] == count


def test_human_whose_role_is_agent_may_use_its_label():
    task = dataclasses.replace(TASK, agent_role="coach", human_role="Agent")
    assert said("Agent: hi", task=task)["speaks_for_agent"] == 0
    assert said("Coach: hi", task=task)["speaks_for_agent"] == 1


@pytest.mark.parametrize(
    "lines, persona, count",
    [
        (["I am zeroknow and fidgety."], PERSONA, 1),
        (["I am ZEROKNOW; and: Fidgety!"], PERSONA, 1),
        (["I am zeroknow."], PERSONA, 0),
        (["Hello.", "I am zeroknow and fidgety."], PERSONA, 0),  # not at once
        (["I am zeroknowing, fidgetyish."], PERSONA, 0),
        (["I like art museums and walking."], {"a": "art_museums", "b": "likes walking"}, 0),
        (["He likes walking in art museums."], {"a": "art_museums", "b": "likes walking"}, 1),
        (["Yes, no, what is recursion?"], {"kids": "yes", "pets": "no"}, 0),
        (["Yes, I have kids. No pets."], {"kids": "yes", "pets": "no"}, 1),
        (["I am interested, and patient"], {"a": "not interested", "b": "patient"}, 0),
        (["Of the"], {"of": "the", "to": "of"}, 0),
        (["Hi"], {}, 0),
    ],
)
def test_giving_the_persona_away_at_once(lines, persona, count):
    turns = tuple(Turn("human", line) for line in lines)
    assert slips(Dialogue("d", "lesson", turns, persona=persona), TASK)["reveals_persona"] == count


@pytest.mark.parametrize(
    "lines, count",
    [
        (["Hi", "Thanks, goodbye!", "One more thing."], 1),
        (["Bye.", "And?", "Well?"], 2),
        (["Ok. Thank you. Have a nice day!", "What about loops?"], 1),
        (["See you later, tutor!", "What about loops?"], 1),
        (["Hi", "Thanks, goodbye!"], 0),
        (["Thanks, bye!", "Bye!"], 0),  # farewells may be exchanged
        (["How do I say goodbye?", "In French?"], 0),
        (["Goodbye. Or no, wait, one question.", "In French?"], 0),
        (["I see you have a point.", "Go on."], 0),
        (["I will not say goodbye before I know it.", "Go on."], 0),
        (["Goodbye to all that is a book.", "Go on."], 0),
        (["Goodbye?", "Go on."], 0),
        ([], 0),
    ],
)
def test_going_on_after_the_end(lines, count):
    assert said(*lines)["goes_on_after_end"] == count
