"""`RoutedClient`: asks another model at some steps, with one limit on the cost of all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagination.llm.client import Client
from imagination.llm.config import LLMConfig
from imagination.llm.metering import Meter
from imagination.llm.requests import Answer, Failure, Request


class RoutedClient:
    """A client whose model depends on a request's step.

    Args:
        config: The model of all other steps.
        folder: For the files of all clients.
        models: Name of a purpose -> its model.
        steps: Step -> the purpose that it is for.

    Attributes:
        config: As given.
        meter: Counts and costs by step, of all models.
    """

    def __init__(
        self,
        config: LLMConfig,
        folder: Path,
        models: Mapping[str, LLMConfig] | None = None,
        steps: Mapping[str, str] | None = None,
    ):
        self.config = config
        self._client = Client(config, folder)
        self._others = {
            purpose: Client(model, Path(folder) / purpose, beside=self._client)
            for purpose, model in (models or {}).items()
        }
        self._steps = dict(steps or {})

    @property
    def meter(self) -> Meter:
        return self._client.meter

    @property
    def prompt_versions(self) -> Mapping[str, int]:
        """Version of a prompt -> replies to it that earlier runs left."""
        return self._client.prompt_versions

    @property
    def money_left(self) -> float:
        """Dollars that the limit on cost leaves; infinite without one."""
        return self._client.money_left

    def of(self, purpose: str) -> Client:
        """The client of a purpose: the one of all other steps where it has no model of its own."""
        return self._others.get(purpose, self._client)

    async def ask(self, request: Request) -> Answer | Failure:
        """Asks one question, by a call of its own. Raises `LLMError`."""
        return await self.of(self._steps.get(request.step, "")).ask(request)

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        """Asks many questions, each model its own. Raises `LLMError`."""
        places: dict[Client, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(self.of(self._steps.get(request.step, "")), []).append(place)
        asked = [client.ask_all([requests[i] for i in own]) for client, own in places.items()]
        # All are awaited: what was paid for is stored before an error is raised.
        groups = await asyncio.gather(*asked, return_exceptions=True)
        answers: dict[int, Answer | Failure] = {}
        for own, group in zip(places.values(), groups, strict=True):
            if isinstance(group, BaseException):
                raise group
            answers.update(zip(own, group, strict=True))
        return [answers[place] for place in range(len(requests))]

    def recall(self, request: Request) -> Answer | None:
        """The answer that is on disk, at the prices of now; asks nobody and writes nothing."""
        return self.of(self._steps.get(request.step, "")).recall(request)

    async def close(self) -> None:
        """Closes all clients."""
        for client in (*self._others.values(), self._client):
            await client.close()
