"""A client that answers the prompts of agents and humans by a Python function, and its task."""

from __future__ import annotations

import asyncio
import types
from collections import Counter

from imagination.agents import PromptedHuman, prompted_agent
from imagination.dialogue import Turn
from imagination.llm import Answer, Failure, Usage
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


class ScriptedClient:
    """Answers at once by `script(request)`: values of the schema, or a string = a Failure."""

    def __init__(self, script):
        self.config = types.SimpleNamespace(model="fake-1")
        self.script = script
        self.requests = []

    async def ask(self, request):
        self.requests.append(request)
        await asyncio.sleep(0)
        said = self.script(request)
        usage = Usage(input_tokens=10, output_tokens=5, cost=PRICE)
        if isinstance(said, str):
            return Failure(request, said, usage)
        parsed = request.schema.model_validate(said)
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
