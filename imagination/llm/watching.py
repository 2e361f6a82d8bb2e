"""Clients for bars and forecasts.

`WatchedClient` tells of each answer, `RecallingClient` has those that are on disk and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from imagination.llm.config import LLMConfig
from imagination.llm.requests import Answer, Failure, Request
from imagination.llm.session import LLM, gather_all


class WatchedClient:
    """Asks through another client, and calls a function with each answer as it comes.

    Args:
        client: Answers.
        on_answer: Called with a request and what came of it.
    """

    def __init__(self, client: LLM, on_answer: Callable[[Request, Answer | Failure], None]):
        self.config: LLMConfig = client.config
        self._client = client
        self._on_answer = on_answer

    @property
    def money_left(self) -> float:
        """Dollars that the limit on cost leaves; infinite without one."""
        return self._client.money_left

    async def ask(self, request: Request) -> Answer | Failure:
        answer = await self._client.ask(request)
        self._on_answer(request, answer)
        return answer

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        return await gather_all([self._ask_with_others(request) for request in requests])

    async def _ask_with_others(self, request: Request) -> Answer | Failure:
        """Asks a question that may share a batch with others."""
        [answer] = await self._client.ask_all([request])
        self._on_answer(request, answer)
        return answer


class _HasAnswers(Protocol):
    config: LLMConfig

    def recall(self, request: Request) -> Answer | None: ...


class RecallingClient:
    """Answers with what earlier runs were answered, and calls nobody.

    Args:
        client: Has their answers (`Client` or `RoutedClient`).

    Attributes:
        recalled: The questions so far that have an answer, with it.
    """

    def __init__(self, client: _HasAnswers):
        self.config: LLMConfig = client.config
        self._client = client
        self.recalled: list[tuple[Request, Answer]] = []

    async def ask(self, request: Request) -> Answer | Failure:
        answer = self._client.recall(request)
        if answer is None:
            return Failure(request, "not asked yet")
        self.recalled.append((request, answer))
        return answer

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        return [await self.ask(request) for request in requests]
