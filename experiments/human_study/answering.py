"""`Answering`: agents answer in the conversations of a study, one task each, never twice."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Protocol

from experiments.human_study.records import Talk
from experiments.human_study.session import Study
from experiments.serving.answer import AgentError, OverloadedError, ServedAgent
from ilql_jax.errors import UserError

logger = logging.getLogger(__name__)


class Sleep(Protocol):
    """Waits, as `asyncio.sleep` does."""

    async def __call__(self, delay: float, /) -> None: ...


class Answering:
    """Asks the agent where it has the word, waits for the floor, and keeps the answer.

    Args:
        study: Keeps what is said.
        agents: Name -> agent, of all agents of the study.
        floor: Seconds that each answer takes at least, from the participant's message on.
        timeout: Seconds after which an agent has failed.
        sleep: Waits.
    """

    def __init__(
        self,
        study: Study,
        agents: Mapping[str, ServedAgent],
        floor: float,
        timeout: float,
        sleep: Sleep = asyncio.sleep,
    ):
        self._study, self._agents = study, agents
        self._floor, self._timeout, self._sleep = floor, timeout, sleep
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def ensure(self, talk: Talk) -> asyncio.Task[None] | None:
        """The task that answers in this conversation, begun if need be; None where none is due."""
        if not self._study.awaits_agent(talk):
            return None
        task = self._tasks.get(talk.number)
        if task is None:
            task = asyncio.create_task(self._answer(talk))
            self._tasks[talk.number] = task
            task.add_done_callback(lambda _: self._tasks.pop(talk.number, None))
        return task

    async def wait(self, talk: Talk, seconds: float) -> None:
        """Waits until the agent has answered, at most so long; the answer comes all the same."""
        if (task := self.ensure(talk)) is not None:
            await asyncio.wait([task], timeout=seconds)

    async def close(self) -> None:
        """Gives up what is still awaited; it is asked again after a restart."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, talk: Talk) -> None:
        asked = talk.messages[-1].at if talk.messages else talk.begun_at
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._ask(talk)
        except TimeoutError:
            return self._failed(talk, f"no answer within {self._timeout:g} s")
        except AgentError as error:
            return self._failed(talk, str(error), error.spent)
        except UserError as error:
            return self._failed(talk, str(error))
        except Exception as error:  # whatever an agent raises, the participant goes on
            logger.exception("agent %s failed", talk.agent)
            return self._failed(talk, f"{type(error).__name__}: {error}")
        took = time.monotonic() - begun
        await self._sleep(max(0.0, self._floor - max(took, self._study.clock() - asked)))
        # Read again: meanwhile the participant may have withdrawn.
        details = {**answer.details, "seconds": round(took, 3)}
        try:
            self._study.spent(talk, details)
            self._study.answered(talk, answer.text, answer.is_over, details)
        except sqlite3.Error:
            logger.exception("an answer could not be kept")  # and is asked for again
        return None

    async def _ask(self, talk: Talk):
        agent, turns = self._agents[talk.agent], self._study.turns(talk)
        while True:
            try:
                return await agent.answer(turns, talk.seed)
            except OverloadedError as error:
                await self._sleep(error.retry_after)

    def _failed(self, talk: Talk, reason: str, spent: Mapping[str, Any] | None = None) -> None:
        try:
            self._study.spent(talk, spent or {})
            self._study.failed(talk, reason)
        except sqlite3.Error:
            logger.exception("a failure could not be kept")
