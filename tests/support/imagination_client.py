"""An LLM client in this process that answers from a function, and what it imagines."""

import asyncio
import collections

from imagination.engine import EngineConfig, imagine_dialogues
from imagination.llm import Answer, Failure, Usage
from imagination.task import Task

TASK = Task(
    name="advice",
    description="Somebody in a shop gives advice on which bicycle to buy.",
    agent_role="seller",
    human_role="customer",
    persona_axes={
        "use": ("commuting to work", "mountain trails", "family trips"),
        "purse": ("tight budget", "money is no issue"),
        "manner": ("plainspoken", "evasive", "contrarian"),
    },
    reward_range=(0.0, 1.0),
    success_reward=0.8,
    max_turns=4,
    criteria=("A concrete bicycle is named.",),
    success="The customer leaves with a bicycle that suits them.",
)


class FakeClient:
    """Answers each request by `answer(request)`: a parsed answer, a failure's reason, or None.

    None = a stand-in of the schema. Waits a moment first, so that coroutines do interleave.
    """

    def __init__(self, answer=lambda request: None):
        self.answer, self.requests = answer, []

    async def ask_all(self, requests):
        return [await self._ask(request) for request in requests]

    async def _ask(self, request):
        self.requests.append(request)
        await asyncio.sleep(0)
        found = self.answer(request)
        if isinstance(found, str):
            return Failure(request, found)
        parsed = found or request.schema.placeholder()
        try:
            if request.check:
                request.check(parsed)
        except ValueError as error:
            return Failure(request, str(error))
        return Answer(parsed.model_dump_json(), parsed, "fake-1", Usage(), False)

    def steps(self):
        return collections.Counter(request.step for request in self.requests)

    def keys(self):
        return [request.key("m") for request in self.requests]


def imagine(client, task=TASK, on_dialogue=None, **settings):
    config = EngineConfig(**{"dialogues": 6, **settings})
    return asyncio.run(imagine_dialogues(client, task, config, on_dialogue))


def words(request):
    return "\n".join([request.system, *(text for _, text in request.messages)])


def failing_first_time(*numbers):
    """Fails the criteria of these numbers wherever nothing was rewritten yet."""

    def answer(request):
        if request.step == "engine/refine":
            turns = [("human", "Hello."), ("agent", "A rewritten answer."), ("human", "Bye.")]
            return request.schema(turns=[{"speaker": s, "text": t} for s, t in turns])
        if request.step == "engine/critique" and "rewritten" not in words(request):
            parsed = request.schema.placeholder()
            for verdict in parsed.verdicts:
                verdict.fulfilled = verdict.number not in numbers
            return parsed
        return None

    return answer


def secret_profile(request):
    """Profiles whose words can be recognised wherever they turn up."""
    if request.step != "engine/personas":
        return None
    parsed = request.schema.placeholder()
    for profile in parsed.profiles:
        profile.profile, profile.reveals = "SECRET profile.", "SECRET habit."
        profile.situations = ["SECRET situation."]
    return parsed
