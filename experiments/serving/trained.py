"""`TrainedAgent`: a network of a run, which answers in the batches of a `Batcher`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.serving.answer import AgentError, Answer, ConversationError, TooLongError
from experiments.serving.batching import Batcher
from ilql_jax.policy import Policy
from imagination.agents.policy import PolicyAgent, turn_seed
from imagination.dialogue import DialogueError, Turn
from imagination.speakers import FAILURE

# Of a token, on average. A longer text is not even cut into tokens: it fits nowhere.
_MOST_CHARACTERS = 64


@dataclasses.dataclass(frozen=True)
class _Asked:
    turns: tuple[Turn, ...]
    seed: int
    system: str | None


class TrainedAgent:
    """A trained network with a way of choosing words.

    Conversations are recognised by their beginnings (`Policy`): of one that goes on, only what is
    new is read.

    Args:
        name: By which it is asked for.
        agent: The network, as the evaluation has it.
        batcher: Answers in its thread.
        method: Method that trained it, as told in the details.
        opens: True where it speaks first.
        notice: Note for everybody who talks with it.
        forgets: True: of a conversation that is too long the oldest turns are left out; else it is
            refused.
    """

    def __init__(
        self,
        name: str,
        agent: PolicyAgent,
        batcher: Batcher,
        *,
        method: str,
        opens: bool = False,
        notice: str = "",
        forgets: bool = True,
    ):
        self.name, self.opens, self.notice = name, opens, notice
        self._agent, self._batcher = agent, batcher
        self._method, self._forgets = method, forgets
        batcher.enter()

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        asked = _Asked(tuple(dialogue_turns), seed, system)
        return await self._batcher.ask(self._answers, asked, self._agent.policy.batch_size)

    async def close(self) -> None:
        self._batcher.leave()

    def _answers(self, asked: Sequence[_Asked]) -> list[Answer | AgentError | ConversationError]:
        """Answers a batch, in the thread of the batcher."""
        found: list[Any] = [self._read(each) for each in asked]
        fitting = [i for i, each in enumerate(found) if not isinstance(each, ConversationError)]
        policy = self._agent.policy
        contexts = [found[i][0] for i in fitting]
        known = [policy.known_length(context) for context in contexts]
        seeds = [turn_seed(asked[i].seed, len(asked[i].turns)) for i in fitting]
        try:
            responses = policy.respond(contexts, seeds)
        except Exception:
            policy.forget()  # what it has read is not known to be whole
            raise
        for i, response, cached in zip(fitting, responses, known, strict=True):
            context, forgotten = found[i]
            utterance = self._agent.utterance(response)
            if reason := utterance.annotations.get(FAILURE):
                found[i] = AgentError(f"The agent gave no answer: {reason}.")
                continue
            details = {
                "agent": "trained",
                "method": self._method,
                "decoding": str(policy.decoding),
                **utterance.annotations,
                "log_prob": round(response.log_prob, 4),
                "prompt_tokens": len(context),
                "cached_tokens": cached,
                "completion_tokens": len(response.tokens),
            }
            if forgotten:
                details["forgotten_turns"] = forgotten
            if asked[i].system and not self._agent.system:
                details["system_message"] = "ignored: it was trained without"
            found[i] = Answer(utterance.text, details=details)
        return found

    def _read(self, asked: _Asked) -> tuple[Int[np.ndarray, " time"], int] | ConversationError:
        """Tokens of a conversation, and how many of its oldest turns are not among them."""
        try:
            return self._fitting(asked.turns, self._system(asked))
        except ConversationError as error:
            return error
        except DialogueError as error:
            return ConversationError(f"The conversation cannot be read: {error}")

    def _system(self, asked: _Asked) -> str | None:
        """The given system message where the network knows such, else the one it knows."""
        return (asked.system or self._agent.system) if self._agent.system else None

    def _fitting(
        self, turns: tuple[Turn, ...], system: str | None
    ) -> tuple[Int[np.ndarray, " time"], int]:
        tokenizer, most = self._agent.tokenizer, self._agent.policy.max_context

        def length(first: int) -> int:
            if sum(len(turn.text) for turn in turns[first:]) > most * _MOST_CHARACTERS:
                return most + 1
            return len(tokenizer.context(turns[first:], None, system))

        first, last = 0, max(len(turns) - 1, 0)
        if length(0) > most:
            if length(last) > most:
                raise TooLongError(
                    f"The last message is too long: this agent reads {most} tokens at most, the "
                    "system message included. Say it in fewer words."
                )
            if not self._forgets:
                raise TooLongError(
                    f"The conversation is too long: this agent reads {most} tokens at most. Leave "
                    "out its oldest messages."
                )
            first = 1
            while first < last:  # the fewest turns that have to go
                middle = (first + last) // 2
                first, last = (middle + 1, last) if length(middle) > most else (first, middle)
        return tokenizer.context(turns[first:], most, system), first


def warm_up(policy: Policy) -> None:
    """Compiles what conversations of all lengths need, so that no question waits for it."""
    word = int(np.flatnonzero(np.asarray(policy.allowed))[0])
    for length in range(policy.BUCKET, policy.max_context + policy.BUCKET, policy.BUCKET):
        tokens = np.full(min(length, policy.max_context), word, np.int32)
        for width in policy.WIDTHS:
            policy.forget()
            policy.respond([tokens[: max(1, len(tokens) - width)]], [0])
            policy.respond([tokens], [0])
        policy.rehearse(tokens)
    policy.forget()
