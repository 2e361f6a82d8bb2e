"""The engine's prompts and behaviours, and answers back to the dialogue that asked.

Every dialogue is worked on by a coroutine of its own that asks through a `Correspondence`, so a
slow one holds up nobody.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ilql_jax.errors import UserError
from imagination import prompting
from imagination.dialogue import Turn
from imagination.llm import Answer, Failure, Request
from imagination.prompting import Prompt

PROMPTS = Path(__file__).parent / "prompts"

T = TypeVar("T")


class EngineError(UserError, RuntimeError):
    """The engine cannot go on. The message says what happened and the way out."""


class Dropped(Exception):
    """A dialogue that cannot be finished, because a request of it was set aside.

    Attributes:
        step: Where it happened.
        reason: Why, in words.
    """

    def __init__(self, step: str, reason: str):
        super().__init__(f"{step}: {reason}")
        self.step, self.reason = step, reason


def load_prompt(name: str) -> Prompt:
    """The engine's prompt of this name. Raises `PromptError` for a file that is none."""
    return prompting.load_prompt(PROMPTS / f"{name}.md")


@functools.cache
def load_behaviours() -> dict[str, str]:
    """The non-expert ways in which an imagined agent behaves: name -> instruction."""
    _, body = _versioned("behaviours")
    parts = re.split(r"^## (.+)\n", body, flags=re.MULTILINE)
    return {n.strip(): t.strip() for n, t in zip(parts[1::2], parts[2::2], strict=True)}


@functools.cache
def behaviours_version() -> str:
    """Version of the file that `load_behaviours` reads."""
    return _versioned("behaviours")[0]


def _versioned(name: str) -> tuple[str, str]:
    path = PROMPTS / f"{name}.md"
    return prompting.split_version(path.read_text("utf-8"), str(path))


def transcript(turns: Sequence[Turn], agent_role: str, human_role: str) -> str:
    """The dialogue as a reader sees it, one turn a line."""
    role = {"agent": agent_role, "human": human_role}
    return "\n".join(f"{role[turn.speaker]}: {turn.text}" for turn in turns)


class Post(Protocol):
    """Takes requests and gives their answers, in order. `imagination.llm.Client` is one."""

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer | Failure]: ...


@dataclasses.dataclass
class Correspondence:
    """What one dialogue asks, and a record of who answered.

    Attributes:
        post: Where requests go.
        models: Step -> the model that answered it.
        prompts: Step -> version of its prompt.
    """

    post: Post
    models: dict[str, str] = dataclasses.field(default_factory=dict)
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)

    async def ask(self, request: Request) -> Any:
        """The answer, as the request's schema. Raises `Dropped` where there is none."""
        return (await self.ask_all([request]))[0]

    async def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Likewise for several requests that do not wait for each other."""
        answers = await self.post.ask_all(requests)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Failure):
                raise Dropped(request.step, answer.reason)
            self.models[request.step] = answer.model
            self.prompts[request.step] = request.prompt_version
        return [answer.parsed for answer in answers]


@dataclasses.dataclass(frozen=True)
class Answering:
    """Where all coroutines' requests go.

    Attributes:
        post: The LLM client.
        at_once: How many coroutines are under way at the same time.
    """

    post: Post
    at_once: int = 256

    @classmethod
    def by(cls, post: Post, at_once: int) -> Answering:
        """All coroutines at once where the client sends Message Batches.

        A batch takes long however small it is, and the client puts into one what is asked at the
        same time, by whichever coroutine.
        """
        batch = getattr(getattr(post, "config", None), "batch", False)
        return cls(post, sys.maxsize if batch else at_once)

    async def work(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        on_done: Callable[[T], None] | None = None,
    ) -> list[T]:
        """Runs the jobs side by side, each a task of its own; returns their results in order.

        Args:
            jobs: Coroutine functions.
            on_done: Called with each result as it comes.

        Raises:
            Whatever the first of them raises; the others are cancelled.
        """
        gate = asyncio.Semaphore(self.at_once)

        async def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
            async with gate:
                result = await job()
            if on_done:
                on_done(result)
            return result

        tasks = [asyncio.create_task(run(job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
