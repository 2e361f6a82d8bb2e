"""How prompted speakers ask: one background event loop, one `Asker` for each turn they take."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import zlib
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import pydantic

from imagination.dialogue import Dialogue
from imagination.llm import Answer, Failure, Request
from imagination.prompting import Prompt, without_label
from imagination.speakers import Conversation, Utterance

Result = TypeVar("Result")
Parsed = TypeVar("Parsed", bound=pydantic.BaseModel)

# Said where a model gave nothing that could be said: a turn is never silently empty.
NO_ANSWER = "(no answer)"


class Client(Protocol):
    """What is needed of `imagination.llm.Client`."""

    config: Any

    async def ask(self, request: Request) -> Answer | Failure: ...


class Line(pydantic.BaseModel):
    """What a speaker says, and whether the conversation is over with it."""

    text: str
    ends: bool

    @pydantic.field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the line is empty; say something")
        return text.strip()


@functools.cache
def rating_on(worst: float, best: float) -> type[pydantic.BaseModel]:
    """The schema of a rating on a scale: the reason first, so that the number follows from it."""
    return pydantic.create_model(
        "Rating", reason=(str, ...), rating=(float, pydantic.Field(ge=worst, le=best))
    )


class NoAnswer(Exception):
    """The client set a request aside after several asks; the message is its reason."""


class Asker:
    """Asks for one turn of one conversation, and counts what that takes.

    The n-th request of a turn is resampled by (seed, turn, n): what is answered depends on the
    conversation alone, and asking the same words twice in a turn gives two samples.

    Attributes:
        calls: Requests so far, failed ones included.
        cost: Dollars so far, as if nothing had come from the cache of an earlier run.
    """

    def __init__(self, client: Client, label: str, seed: int, turn: int):
        self._client = client
        self._label = label
        self._stream = f"{seed}/{turn}"
        self.calls = 0
        self.cost = 0.0

    @classmethod
    def for_turn(cls, client: Client, conversation: Conversation) -> Asker:
        return cls(client, conversation.id, conversation.seed, len(conversation.turns))

    async def ask(self, prompt: Prompt, schema: type[Parsed], **values: Any) -> Parsed:
        """The answer, as `schema`. Raises `NoAnswer`."""
        resample = zlib.crc32(f"{self._stream}/{self.calls}".encode())
        self.calls += 1
        request = prompt.request(prompt.name, schema, values, resample=resample, label=self._label)
        answer = await self._client.ask(request)
        if isinstance(answer, Failure):
            raise NoAnswer(f"{prompt.version}: {answer.reason}")
        self.cost += answer.usage.cost
        return answer.parsed

    @property
    def annotations(self) -> dict[str, float]:
        return {"calls": self.calls, "cost": round(self.cost, 9)}


def spending(dialogue: Dialogue) -> dict[str, float]:
    """Calls, dollars and failures of a conversation, for either side.

    Returns:
        `agent_calls`, `agent_cost`, `agent_failures`, and the same of `human`; zeros for a side
        that is not prompted.
    """
    spent = {}
    for speaker in ("agent", "human"):
        notes = [turn.annotations for turn in dialogue.turns if turn.speaker == speaker]
        spent[f"{speaker}_calls"] = sum(note.get("calls", 0) for note in notes)
        spent[f"{speaker}_cost"] = sum(note.get("cost", 0.0) for note in notes)
        spent[f"{speaker}_failures"] = sum("failure" in note for note in notes)
    return spent


def gave_up(asker: Asker, reason: Exception, line: Line | None = None, **notes: Any) -> Utterance:
    """The turn of a speaker whose model failed: what it has, the reason, and the end."""
    annotations = {**notes, **asker.annotations, "failure": str(reason)}
    return Utterance(line.text if line else NO_ANSWER, ends=True, annotations=annotations)


def spoken(text: str, role: str) -> str:
    """The line without the speaker's own role in front, unless it is all there is."""
    return without_label(text, role) or text


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
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


async def all_of(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results in order. An error is raised when the rest is done: what was paid for is kept."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _background_loop() -> asyncio.AbstractEventLoop:
    # By process: a forked child inherits the dictionary but not the thread behind the loop.
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="prompted", daemon=True).start()
            _loops[os.getpid()] = loop
        return loop
