"""`Policy`: a trained network as something that answers: tokens in, tokens out, in batches.

The forms of the papers: sample from the cloned policy or take its best token; steer every token
by the values; or write several whole utterances and keep the one of highest value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from ilql_jax.decode import Samples, generate
from ilql_jax.models import ModelConfig, Params


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How an utterance is chosen.

    Attributes:
        temperature: 1 samples, 0 is greedy.
        steering_strength: β of the values on every token; 0 = the cloned policy.
        candidates: Whole utterances written; above 1 the one of highest value is kept.
    """

    temperature: float = 1.0
    steering_strength: float = 0.0
    candidates: int = 1

    def __post_init__(self):
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}, but must be at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, but must lie in [0, inf).")
        if not math.isfinite(self.steering_strength):
            raise ValueError(f"steering_strength is {self.steering_strength}; it must be finite.")
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError(
                "candidates above 1 need a temperature above 0: greedy ones are equal."
            )

    def __str__(self) -> str:
        parts = ["sampled"] if self.temperature == 1 else [f"sampled at {self.temperature:g}"]
        if self.temperature == 0:
            parts = ["greedy"]
        if self.steering_strength:
            parts.append(f"steered by {self.steering_strength:g}")
        if self.candidates > 1:
            parts.append(f"best of {self.candidates}")
        return ", ".join(parts)

    @classmethod
    def parse(cls, text: str) -> DecodingConfig:
        """Reads what `str` writes: `greedy`, `sampled at 0.7, steered by 10, best of 16`.

        Raises:
            ValueError: Anything else.
        """
        fields: dict[str, Any] = {}
        for part in map(str.strip, text.split(",")):
            words = part.rsplit(" ", 1)
            try:
                if part in ("sampled", "greedy"):
                    fields["temperature"] = 1.0 if part == "sampled" else 0.0
                elif words[0] in ("sampled at", "steered by"):
                    name = "temperature" if words[0] == "sampled at" else "steering_strength"
                    fields[name] = float(words[1])
                elif words[0] == "best of":
                    fields["candidates"] = int(words[1])
                else:
                    raise ValueError
            except (ValueError, IndexError):
                raise ValueError(
                    f"decoding {text!r}: {part!r} is not understood; write parts of 'greedy' or "
                    "'sampled' or 'sampled at 0.7', 'steered by 10', 'best of 16', with commas."
                ) from None
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Response:
    """One utterance and what the network thought of it.

    Attributes:
        tokens: int32 [S], the stop token included.
        q: Value of the utterance, min over the twin heads, in units of the rewards trained on.
        v: Value of the state before it.
        log_prob: log π_β of the utterance.
        candidates: (tokens, q) of everything that was written, best first.
    """

    tokens: Int[np.ndarray, "time"]
    q: float
    v: float
    log_prob: float
    candidates: tuple[tuple[Int[np.ndarray, "time"], float], ...] = ()


class ContextError(ValueError):
    """A conversation that the network cannot read on. The message gives the limit."""


class Policy:
    """Answers many conversations at once.

    Args:
        model_config: Shape of the network.
        params: Its parameters.
        decoding: How utterances are chosen.
        stop_token: Ends an utterance.
        allowed: bool [vocab], false for tokens that are never written.
        max_utterance: Longest utterance, in tokens.
        batch_size: Conversations decoded together; fewer are filled up, so that nothing is
            compiled again.
    """

    # Contexts are padded to a multiple of this; each width is compiled once.
    BUCKET = 128

    def __init__(
        self,
        model_config: ModelConfig,
        params: Params,
        decoding: DecodingConfig,
        stop_token: int,
        allowed: Bool[np.ndarray, "vocab"],
        max_utterance: int = 48,
        batch_size: int = 64,
    ):
        self.decoding = decoding
        self.stop_token = stop_token
        self.max_utterance = max_utterance
        self.batch_size = batch_size
        self.max_context = model_config.decoder.max_positions - max_utterance
        self._config = model_config
        self._params = params
        self._allowed = jnp.asarray(allowed)
        if self.max_context < 1:
            raise ContextError(
                f"an utterance of {max_utterance} tokens does not fit in the network's context "
                f"of {model_config.decoder.max_positions}."
            )

    def respond(
        self, contexts: Sequence[Int[np.ndarray, "time"]], seeds: Sequence[int]
    ) -> list[Response]:
        """The agent's next utterance in each conversation.

        Args:
            contexts: What was said so far, as int32 vectors of any length up to `max_context`.
            seeds: One a conversation; with the context it determines the answer.

        Raises:
            ContextError: A context that is empty or too long.
        """
        for index, context in enumerate(contexts):
            if not 0 < len(context) <= self.max_context:
                raise ContextError(
                    f"context {index} has {len(context)} tokens; between 1 and "
                    f"{self.max_context} can be read. Leave out its oldest turns."
                )
        # Conversations of like length together, so that short ones are not padded to long ones.
        order = np.argsort([len(c) for c in contexts], kind="stable")
        responses: list[Any] = [None] * len(contexts)
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            samples = self._generate([contexts[i] for i in group], [seeds[i] for i in group])
            for row, index in enumerate(group):
                responses[index] = self._select(samples, row)
        return responses

    def _generate(self, contexts: list[np.ndarray], seeds: list[int]) -> Samples:
        longest = max(len(c) for c in contexts)
        width = min(-(-longest // self.BUCKET) * self.BUCKET, self.max_context)
        padded = np.zeros((self.batch_size, width), np.int32)
        lengths = np.ones(self.batch_size, np.int32)
        for row, context in enumerate(contexts):
            padded[row, : len(context)] = context
            lengths[row] = len(context)
        filled = np.zeros(self.batch_size, np.uint32)
        filled[: len(seeds)] = np.asarray(seeds, np.uint64) % 2**32
        samples = generate(
            self._config,
            self._params,
            padded,
            lengths,
            jax.vmap(jax.random.key)(filled),
            self._allowed,
            jnp.float32(self.decoding.temperature),
            jnp.float32(self.decoding.steering_strength),
            num_samples=self.decoding.candidates,
            max_length=self.max_utterance,
            stop_token=self.stop_token,
            steered=self.decoding.steering_strength != 0,
        )
        return jax.tree.map(np.asarray, samples)

    def _select(self, samples: Samples, row: int) -> Response:
        ranking = np.argsort(-samples.q[row], kind="stable")
        written = [
            (samples.tokens[row, n, : samples.length[row, n]], float(samples.q[row, n]))
            for n in ranking
        ]
        best = ranking[0]
        return Response(
            tokens=written[0][0],
            q=written[0][1],
            v=float(samples.v[row]),
            log_prob=float(samples.log_prob[row, best]),
            candidates=tuple(written) if len(written) > 1 else (),
        )
