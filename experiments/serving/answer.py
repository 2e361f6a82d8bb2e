"""`ServedAgent`, the contract of everything that answers here; its `Answer` and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from ilql_jax.errors import UserError
from imagination.dialogue import Turn

FAILED = "The agent failed; what happened is in the server's log."


class AgentError(UserError, RuntimeError):
    """An agent that crashed, hung or gave no answer. The message holds no key and no traceback.

    Attributes:
        spent: Cost of an LLM that was asked in vain: its `calls`, `tokens` and `cost`.
    """

    def __init__(self, message: str, spent: Mapping[str, Any] = MappingProxyType({})):
        super().__init__(message)
        self.spent = spent


class HungError(AgentError):
    """No answer in time."""


class OverloadedError(AgentError):
    """More wait for an answer than may.

    Attributes:
        retry_after: Seconds after which another try is of use.
    """

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class ConversationError(UserError, ValueError):
    """A conversation that an agent cannot answer. The message says what to change."""


class TooLongError(ConversationError):
    """A conversation, or a message, that is too long for an agent."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An agent's turn.

    Attributes:
        text: Its words.
        is_over: True where the agent ends the conversation with them.
        details: Plain JSON values: `agent` (kind), `method` or `model`, and where there are some
            `decoding`, `q` and `v` (values of the utterance and of the state before it),
            `candidates` (text and q of each, best first), `log_prob`, `prompt_tokens`,
            `cached_tokens` (of these, read before), `completion_tokens`, `forgotten_turns`
            (oldest turns that the network has no room for); of an LLM `calls`, `tokens` (read and
            written) and `cost` in dollars.
    """

    text: str
    is_over: bool = False
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ServedAgent(Protocol):
    """An agent that holds any number of conversations at once, and keeps none of them.

    Attributes:
        name: By which it is asked for.
        opens: True where it speaks first: it answers a conversation without turns.
        notice: Note for everybody who talks with it; "" = none.
    """

    name: str
    opens: bool
    notice: str

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        """Takes the agent's turn.

        Args:
            dialogue_turns: The conversation; the last turn is the human's.
            seed: With the conversation it determines the answer of everything that runs here.
            system: System message, for agents that know such.

        Raises:
            ConversationError: It cannot answer this conversation.
            AgentError: It crashed, took too long, or too many wait for it.
        """
        ...

    async def close(self) -> None:
        """Releases what it holds; it answers no more."""
        ...
