"""`PolicyAgent`: a trained policy that speaks in words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ilql_jax.policy import Policy, Response
from imagination.chat_formats import NoRoomError
from imagination.speakers import FAILURE, NO_ANSWER, Conversation, Utterance, with_words
from imagination.tokenization import DialogueTokenizer


class PolicyAgent:
    """Takes the agent's turn with a `Policy`; annotates turns with their values.

    Args:
        policy: The trained network with its decoding.
        tokenizer: The one it was trained with.
        reward_scale: Factor of the rewards in training, by which values are divided. None for a
            network without values: no values are noted then, nor where the policy computed none.
        keep_candidates: Number of considered utterances that are kept with each turn.
        system: System message that the agent was trained with, for conversations that have none
            of their own.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: DialogueTokenizer,
        reward_scale: float | None = 1.0,
        keep_candidates: int = 0,
        system: str | None = None,
    ):
        self.policy = policy
        self.tokenizer = tokenizer
        self.reward_scale = reward_scale
        self.keep_candidates = keep_candidates
        self.system = system

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        """As of `Agent`; where a last turn does not fit, it fails as an LLM without an answer."""
        try:
            return self._respond(conversations)
        except NoRoomError as error:
            if len(conversations) > 1:  # one too long message is no fault of the others
                return [utterance for each in conversations for utterance in self.respond([each])]
            return [Utterance(NO_ANSWER, ends=True, annotations={FAILURE: str(error)})]

    def _respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        contexts = self.tokenizer.contexts(
            [c.turns for c in conversations],
            self.policy.max_context,
            [self.system if c.system is None else c.system for c in conversations],
        )
        responses = self.policy.respond(
            contexts, [turn_seed(c.seed, len(c.turns)) for c in conversations]
        )
        return [self.utterance(response) for response in responses]

    def utterance(self, response: Response) -> Utterance:
        """The policy's response in words, annotated with its values; without words, a failure."""
        text = self.tokenizer.decode(response.tokens)
        return with_words(Utterance(text, annotations=self._values(response)))

    def _values(self, response: Response) -> dict[str, Any]:
        if self.reward_scale is None or response.q is None:
            return {}
        annotations: dict[str, Any] = {
            "q": round(response.q / self.reward_scale, 4),
            "v": round(response.v / self.reward_scale, 4),
        }
        if self.keep_candidates:
            different: dict[str, float] = {}
            for said in response.candidates:
                text, q = self.tokenizer.decode(said.tokens), round(said.q / self.reward_scale, 4)
                different.setdefault(text, q)
            best = list(different.items())[: self.keep_candidates]
            annotations["candidates"] = [{"text": text, "q": q} for text, q in best]
        return annotations


def turn_seed(seed: int, turns: int) -> int:
    """A seed that differs from conversation to conversation and from turn to turn.

    Args:
        seed: Seed of the conversation.
        turns: Number of its turns so far.
    """
    return zlib.crc32(f"{seed}/{turns}".encode())
