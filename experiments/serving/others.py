"""Agents that are no network of a run: of an embedded world, prompted LLMs, other servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from experiments.serving.answer import FAILED, AgentError, Answer, ConversationError
from experiments.serving.batching import Batcher
from imagination.agents.prompted import PromptedAgent
from imagination.dialogue import ROLE_OF_SPEAKER, Turn
from imagination.llm.config import LLMConfig
from imagination.llm.requests import LLMError, NotDelivered, Request
from imagination.llm.transports.base import Transport
from imagination.speakers import FAILURE, Agent, Conversation, Utterance

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # of a world's agent, which answers one after the other


class WorldAgent:
    """An agent of an embedded world: one of its behaviours, or its optimum.

    Args:
        name: By which it is asked for.
        agent: Chooses the acts; called in the batcher's thread.
        batcher: Answers in its thread.
        details: Told with each answer.
    """

    opens = False  # the human of a world speaks first
    notice = ""

    def __init__(self, name: str, agent: Agent, batcher: Batcher, details: dict[str, Any]):
        self.name = name
        self._agent, self._batcher, self._details = agent, batcher, details
        batcher.enter()

    def _utterances(self, conversations: Sequence[Conversation]) -> list[Utterance | Exception]:
        """Answers one after the other, so that what fails in one is no fault of the others."""
        found: list[Utterance | Exception] = []
        for conversation in conversations:
            try:
                found += self._agent.respond([conversation])
            except Exception:
                logger.exception("%s failed", self.name)
                found.append(AgentError(FAILED))
        return found

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        check_human_spoke(dialogue_turns)
        conversation = Conversation("served", {}, seed, list(dialogue_turns))
        utterance = await self._batcher.ask(self._utterances, conversation, _AT_ONCE)
        return _answer(utterance, self._details, system)

    async def close(self) -> None:
        self._batcher.leave()


class PromptedServedAgent:
    """An LLM that is prompted as in the evaluation, through the run's client with its cost limit.

    Args:
        name: By which it is asked for.
        agent: The prompted agent.
        close: Called at the end, once for all agents of the client.
        notice: Note for everybody who talks with it.
    """

    opens = False

    def __init__(
        self,
        name: str,
        agent: PromptedAgent,
        close: Callable[[], Awaitable[None]],
        notice: str = "",
    ):
        self.name, self.notice = name, notice
        self._agent, self._close = agent, close

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        check_human_spoke(dialogue_turns)
        conversation = Conversation("served", {}, seed, list(dialogue_turns))
        try:
            [utterance] = await self._agent.answers([conversation])
        except LLMError as error:
            raise AgentError(f"The agent's LLM gave no answer: {error}") from None
        if reason := utterance.annotations.get(FAILURE):
            raise AgentError(f"The agent's LLM gave no answer: {reason}", utterance.annotations)
        details = {"agent": "prompted", **self._agent.model_and_version}
        return _answer(utterance, details, system)

    async def close(self) -> None:
        await self._close()


class ChatAgent:
    """A model behind any server that speaks chat completions.

    Args:
        name: By which it is asked for.
        config: Names the model, the address and the time an answer may take.
    """

    opens = False
    notice = ""

    def __init__(self, name: str, config: LLMConfig):
        self.name = name
        self._config = config
        self._transport: Transport | None = None
        self._slots = asyncio.Semaphore(config.max_in_flight)

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        check_human_spoke(dialogue_turns)
        said = [t for t in dialogue_turns if t.text.strip()]  # services take no empty message
        messages = tuple((ROLE_OF_SPEAKER[turn.speaker], turn.text) for turn in said)
        request = Request("serving/chat", system or "", messages)
        try:
            if self._transport is None:  # connections belong to the loop that uses them
                from imagination.llm.transports import open_transport

                self._transport = open_transport(self._config)
            async with self._slots:
                message, _ = await self._transport.ask(request)
        except (LLMError, NotDelivered) as error:
            raise AgentError(f"The agent's server gave no answer: {error}") from None
        usage = self._config.usage(message["usage"])
        spent = {"calls": 1, "tokens": usage.tokens, "cost": round(usage.cost, 9)}
        if not message["text"].strip():
            raise AgentError("The agent's server gave an empty answer.", spent)
        details = {
            "agent": "chat",
            "model": message["model"],
            "prompt_tokens": usage.input_tokens + usage.cache_read_tokens,
            "cached_tokens": usage.cache_read_tokens,
            "completion_tokens": usage.output_tokens,
            **spent,
        }
        return Answer(message["text"].strip(), details=details)

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()


def check_human_spoke(turns: Sequence[Turn]) -> None:
    """Raises `ConversationError` for agents that only answer, where nobody has spoken."""
    if not any(turn.speaker == "human" for turn in turns):
        raise ConversationError("This agent does not speak first: say something to it.")


def _answer(utterance: Utterance, details: dict[str, Any], system: str | None) -> Answer:
    told = {**details, **utterance.annotations}
    if system:
        told["system_message"] = "ignored: this agent takes none"
    return Answer(utterance.text, utterance.ends, told)
