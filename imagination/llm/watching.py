"""`WatchedClient`: a client that tells of each answer, for bars and forecasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imagination.llm.config import LLMConfig
from imagination.llm.requests import Answer, Failure, Request
from imagination.llm.session import LLM


class WatchedClient:
    """Asks through another client, and calls a function after each answer.

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
        answers = await self._client.ask_all(requests)
        for request, answer in zip(requests, answers, strict=True):
            self._on_answer(request, answer)
        return answers
