"""Tree search over dialogue acts (GDP-Zero), with a client that answers by a Python function."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter

import pydantic
import pytest
from prompted_llm import ACTS, PRICE, TASK, ScriptedClient, conversation, opened, ordinary, steps_of

from imagination.agents import PromptedHuman, prompted_agent
from imagination.agents.gdp_zero import OpenLoopSearch, SearchConfig
from imagination.agents.prompted import DialogueActs

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
    client = ScriptedClient(giving_is_right)
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


def test_gdp_zero_rates_by_the_anchors_of_other_raters():
    client = ScriptedClient(giving_is_right)
    task = dataclasses.replace(TASK, success="They can say what recursion is.")
    prompted_agent("gdp_zero", client, task, acts=GIVE_OR_TAKE, simulations=1).respond([opened()])
    told = client.words("agents/gdp_zero_value")
    PromptedHuman(rater := ScriptedClient(ordinary), task).rate([opened()])
    anchors = "; ".join(map(" ".join, task.anchors()))
    assert len(task.anchors()) > 3
    assert anchors in told and anchors in rater.words("human/rating")


def test_gdp_zero_lists_its_acts_once():
    client = ScriptedClient(ordinary)
    agent = prompted_agent("gdp_zero", client, TASK, simulations=1)
    agent.respond([opened(1), opened(2)])
    said = agent.respond([opened(3)])
    assert client.steps()["agents/gdp_zero_acts"] == 1
    assert (agent.setup_calls, agent.setup_cost) == (1, PRICE)
    assert list(agent.acts) == [act["name"] for act in ACTS]
    assert said[0].annotations["calls"] == 4  # prior, say, human, value


def test_gdp_zero_averages_its_value_samples():
    client = ScriptedClient(giving_is_right)
    agent = prompted_agent(
        "gdp_zero", client, TASK, acts=GIVE_OR_TAKE, simulations=1, value_samples=5
    )
    agent.respond([opened()])
    assert client.steps()["agents/gdp_zero_value"] == 5


def test_gdp_zero_looks_no_further_than_the_turn_limit():
    said = [("human", "Hm?"), ("agent", "So?"), ("human", "Hm?"), ("agent", "So?"), ("human", "?")]
    client = ScriptedClient(ordinary)
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


def test_search_that_breaks_off_says_the_best_it_has():
    def script(request):
        if client.steps()["agents/gdp_zero_value"] == 2:
            return "overloaded"
        return ordinary(request)

    client = ScriptedClient(script)
    (said,) = prompted_agent("gdp_zero", client, TASK).respond([opened()])
    assert said.text == "It calls itself." and said.ends
    assert "overloaded" in said.annotations["failure"] and said.annotations["act"] == "act 2"
