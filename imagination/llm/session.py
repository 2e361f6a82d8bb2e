"""`Session`: asks an LLM for one dialogue or turn, and records models, prompts, calls and cost.

Every dialogue is worked on by a coroutine of its own with a session of its own, so a slow one holds
up no other. `run_concurrently` runs these coroutines; `run_async` runs them from code that is not
asynchronous.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import sys
import threading
import zlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import pydantic

from imagination.llm.config import LLMConfig
from imagination.llm.requests import Answer, Failure, Request
from imagination.prompts import load_prompt

T = TypeVar("T")
Parsed = TypeVar("Parsed", bound=pydantic.BaseModel)


class LLM(Protocol):
    """Answers requests. `imagination.llm.Client` is one."""

    config: LLMConfig

    async def ask(self, request: Request) -> Answer | Failure:
        """Asks by a call of its own."""
        ...

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        """Answers in the order of the requests; in batch mode by Message Batches."""
        ...


class NoAnswer(Exception):
    """A request had no usable answer, after several asks.

    Attributes:
        step: Step of the request.
        reason: The last fault, in words.
    """

    def __init__(self, step: str, reason: str):
        super().__init__(f"{step}: {reason}")
        self.step, self.reason = step, reason


@dataclasses.dataclass(frozen=True)
class DroppedDialogue:
    """A dialogue that could not be finished: at which step, and why."""

    id: str
    step: str
    reason: str


@dataclasses.dataclass
class Session:
    """Asks for one dialogue, or for one turn of it.

    Attributes:
        llm: Answers the requests.
        label: Subject of the requests, for people.
        seed: Source of the resample numbers of `ask_prompt`.
        immediate: Each request is a call of its own, even where the client sends batches.
        models: Step -> the model that answered it last.
        prompts: Step -> version of its prompt.
        calls: Requests so far, failed ones included.
        cost: Dollars so far, as if nothing had come from the cache of an earlier run.
        tokens: Tokens so far, read and written, likewise.
    """

    llm: LLM
    label: str = ""
    seed: str = ""
    immediate: bool = False
    models: dict[str, str] = dataclasses.field(default_factory=dict)
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    calls: int = 0
    cost: float = 0.0
    tokens: int = 0

    async def ask(self, request: Request) -> Any:
        """Returns the answer as the request's schema. Raises `NoAnswer`."""
        return (await self.ask_all([request]))[0]

    async def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Asks requests that do not wait for each other. Raises `NoAnswer` where one has none."""
        self.calls += len(requests)
        if self.immediate:
            answers = await gather_all([self.llm.ask(request) for request in requests])
        else:
            answers = await self.llm.ask_all(requests)
        # What was paid counts also where one of them has no usable answer.
        self.cost += sum(answer.usage.cost for answer in answers)
        self.tokens += sum(answer.usage.tokens for answer in answers)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Failure):
                raise NoAnswer(request.step, answer.reason)
            self.models[request.step] = answer.model
            self.prompts[request.step] = request.prompt_version
        return [answer.parsed for answer in answers]

    async def ask_prompt(
        self,
        name: str,
        schema: type[Parsed],
        *,
        check: Callable[[Any], Any] | None = None,
        **values: Any,
    ) -> Parsed:
        """Fills a prompt and asks; the n-th request of a session is resampled by (seed, n).

        So an answer depends on the session's seed alone, and the same words asked twice give two
        samples. Raises `NoAnswer`.
        """
        resample = zlib.crc32(f"{self.seed}/{self.calls}".encode())
        prompt = load_prompt(name)
        return await self.ask(
            prompt.request(schema, values, resample=resample, label=self.label, check=check)
        )

    def fork(self) -> Session:
        """A session of its own whose record begins with the models and prompts of this one."""
        return Session(
            self.llm, self.label, self.seed, self.immediate, dict(self.models), dict(self.prompts)
        )


def most_at_once(llm: LLM, limit: int) -> int:
    """Number of dialogues that are worked on at the same time: no limit for Message Batches.

    A batch takes long however small it is, and the client puts into one whatever is asked at the
    same time, by whichever coroutine. Where money may run out, no more are begun than calls can be
    in flight (and of what is imagined, no more than can be paid for: `cost.Affordable`).
    """
    config = getattr(llm, "config", None)
    if getattr(config, "batch", False):
        return sys.maxsize
    return min(limit, config.max_in_flight) if getattr(config, "max_cost", 0) else limit


async def run_concurrently(
    jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    limit: int | Callable[[], int],
    on_done: Callable[[T], None] | None = None,
) -> list[T]:
    """Runs coroutine functions side by side, each as a task, and returns their results in order.

    Args:
        jobs: Coroutine functions, begun in their order.
        limit: Jobs that run at the same time; a function is asked whenever one may begin or has
            ended, and one job runs whatever it says.
        on_done: Called with each result as it comes.

    Raises:
        The first exception of a job; the other jobs are cancelled.
    """
    slots = _Slots(limit if callable(limit) else lambda: limit)

    async def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with slots:
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


class _Slots:
    """A semaphore whose number of places may change."""

    def __init__(self, limit: Callable[[], int]):
        self._limit = limit
        self._taken = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    async def __aenter__(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was let in, and cancelled before it went on
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._taken < max(1, self._limit()):
            place = self._waiting.popleft()
            if not place.done():  # else cancelled
                self._taken += 1
                place.set_result(None)


async def gather_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. An error is raised when the rest is done: paid answers are kept."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, from any thread, also from one that runs a loop of its own.

    All of a process runs on the same loop, in a thread of its own: a client's connections and
    locks belong to the loop they were first used on, and agent and human share the client. Close
    a client that was used here with `run_async(client.close())`.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _background_loop() -> asyncio.AbstractEventLoop:
    # By process: a forked child inherits the dictionary but not the thread behind the loop.
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="llm sessions", daemon=True).start()
            _loops[os.getpid()] = loop
        return loop
