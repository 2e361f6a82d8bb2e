"""`Policy`: a trained network as something that answers: tokens in, tokens out, in batches.

The forms of the papers: sample from the cloned policy or take its best token; steer every token
by the values; or write several whole utterances and keep the one of highest value.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from ilql_jax.decode import Lanes, Samples, admit, empty_lanes, read, write
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.cpu_matmul import decoding_layout
from ilql_jax.models.kv_cache import KVCache


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

    @property
    def reads_values(self) -> bool:
        """Whether what is said depends on the values."""
        return self.candidates > 1 or self.steering_strength != 0

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
        q: Value of the utterance, min over the twin heads, in units of the rewards trained on. None
            where the values have a trunk of their own and the decoding does not ask them: it is
            not read then.
        v: Value of the state before it; likewise.
        log_prob: log π_β of the utterance.
        candidates: (tokens, q) of everything that was written, best first.
    """

    tokens: Int[np.ndarray, "time"]
    q: float | None
    v: float | None
    log_prob: float
    candidates: tuple[tuple[Int[np.ndarray, "time"], float], ...] = ()


class ContextError(UserError, ValueError):
    """A conversation that the network cannot read on. The message gives the limit."""


class Policy:
    """Answers many conversations at once.

    Conversations are recognised by their tokens: of one that was answered before, only what was
    said since is read. Lanes (see `decode.py`) that have finished are refilled with conversations
    that wait.

    Args:
        model_config: Shape of the network.
        params: Its parameters.
        decoding: How utterances are chosen.
        stop_token: Ends an utterance.
        allowed: bool [vocab], false for tokens that are never written.
        max_utterance: Longest utterance, in tokens.
        batch_size: Conversations decoded together; fewer are filled up, so that nothing is
            compiled again.
        store_megabytes: Room for the keys and values of conversations that may go on; the oldest
            are forgotten and read again when needed. There is always room for one batch.
    """

    BUCKET = 64  # Columns of a batch are a multiple of this; each number is compiled once.
    WIDTHS = (16, 32, 64, 128, 256)  # Of what is read at a time, likewise.

    def __init__(
        self,
        model_config: ModelConfig,
        params: Params,
        decoding: DecodingConfig,
        stop_token: int,
        allowed: Bool[np.ndarray, "vocab"],
        max_utterance: int = 48,
        batch_size: int = 64,
        store_megabytes: float = 256.0,
    ):
        self.decoding = decoding
        self.stop_token = stop_token
        self.max_utterance = max_utterance
        self.batch_size = batch_size
        self.max_context = model_config.decoder.max_positions - max_utterance
        self._config, self._params = decoding_layout(model_config, params)
        self._allowed = jnp.asarray(allowed)
        if self.max_context < 1:
            raise ContextError(
                f"an utterance of {max_utterance} tokens does not fit in the network's context "
                f"of {model_config.decoder.max_positions}."
            )
        # The plain policy does without the values' trunk, if they have one.
        self._trunks = model_config.num_trunks if decoding.reads_values else 1
        # What is read last may be padded to the next width.
        columns = _round_up(self.max_context + max(self.WIDTHS), self.BUCKET)
        self._columns = columns
        each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(self._empty)))
        slots = max(batch_size, int(store_megabytes * 2**20 // each))
        self._memory = _Memory(slots)
        self._store: KVCache | None = None
        # A few at a time, so that a lane does not wait long for others to be free.
        self._group = -(-batch_size // 4)

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
        contexts = [np.ascontiguousarray(context, np.int32) for context in contexts]
        known = [self._memory.known(context) for context in contexts]
        # Those with much to read together, so that the others are not padded to them.
        new = [len(c) - k for c, k in zip(contexts, known, strict=True)]
        waiting = deque(int(i) for i in np.argsort(new, kind="stable"))
        responses: list[Any] = [None] * len(contexts)
        columns = _round_up(max(map(len, contexts), default=1), self.BUCKET)
        lanes = empty_lanes(
            self._config,
            self.batch_size,
            self.decoding.candidates,
            self.max_utterance,
            columns,
            self._trunks,
        )
        talking: dict[int, int] = {}  # lane -> conversation
        while waiting or talking:
            free = [lane for lane in range(self.batch_size) if lane not in talking]
            while waiting and free:
                group = [
                    waiting.popleft() for _ in range(min(len(waiting), len(free), self._group))
                ]
                into = [free.pop() for _ in group]
                lanes = self._admit(
                    lanes, into, [contexts[i] for i in group], [seeds[i] for i in group], columns
                )
                talking |= zip(into, group, strict=True)
            enough = min(len(talking), self._group) if waiting else len(talking)
            lanes = write(
                self._config,
                self._params,
                lanes,
                self.batch_size - len(talking) + enough,
                self._allowed,
                jnp.float32(self.decoding.temperature),
                jnp.float32(self.decoding.steering_strength),
                stop_token=self.stop_token,
                steered=self.decoding.steering_strength != 0,
            )
            samples = lanes.samples
            done = np.asarray(lanes.done).all(axis=1)
            for lane in [lane for lane in talking if done[lane]]:
                responses[talking.pop(lane)] = self._select(samples, lane)
        return responses

    def _admit(
        self,
        lanes: Lanes,
        into: list[int],
        contexts: list[np.ndarray],
        seeds: list[int],
        columns: int,
    ) -> Lanes:
        """Reads what is new in a group of conversations, and gives each a lane."""
        if self._store is None:
            self._store = self._empty(self._memory.slots)

        def padded(values: Sequence[int], nothing: int, dtype=np.int32) -> np.ndarray:
            return np.asarray([*values, *[nothing] * (self._group - len(values))], dtype)

        known = self._memory.slots_for(contexts)
        slots = padded([slot for slot, _ in known], self._memory.slots)
        start = padded([length for _, length in known], 0)
        end = padded([len(context) for context in contexts], 1)
        while True:
            left = int((end - start).max())
            width = next((w for w in self.WIDTHS if w >= left), self.WIDTHS[-1])
            tokens = np.zeros((self._group, width), np.int32)
            for row, context in enumerate(contexts):
                piece = context[start[row] : start[row] + width]
                tokens[row, : len(piece)] = piece
            hidden, rows, self._store = read(
                self._config,
                self._params,
                self._store,
                slots,
                tokens,
                start,
                np.minimum(end - start, width) - 1,
                columns=min(_round_up(columns + width, self.BUCKET), self._columns),
            )
            if left <= width:
                break
            start = np.minimum(start + width, end - 1)
        own = padded([seed % 2**32 for seed in map(int, seeds)], 0, np.uint32)
        return admit(
            self._config,
            self._params,
            lanes,
            padded(into, self.batch_size),
            rows,
            end,
            hidden,
            jax.vmap(jax.random.key)(own),
        )

    def _empty(self, slots: int = 1) -> KVCache:
        """A store without conversations."""
        return KVCache.zeros(self._config.decoder, (slots,), self._columns, self._trunks)

    def _select(self, samples: Samples, row: int) -> Response:
        ranking = np.argsort(-samples.q[row], kind="stable")
        written = [
            (samples.tokens[row, n, : samples.length[row, n]], float(samples.q[row, n]))
            for n in ranking
        ]
        best = ranking[0]
        knows_values = self._trunks == self._config.num_trunks
        return Response(
            tokens=written[0][0],
            q=written[0][1] if knows_values else None,
            v=float(samples.v[row]) if knows_values else None,
            log_prob=float(samples.log_prob[row, best]),
            candidates=tuple(written) if len(written) > 1 else (),
        )


class _Memory:
    """Which conversation lies in which slot of the store; the oldest is forgotten first."""

    def __init__(self, slots: int):
        self.slots = slots
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # tokens -> slot, oldest first
        self._lengths: Counter[int] = Counter()  # of those tokens, in bytes
        self._free = list(range(slots))[::-1]

    def known(self, context: Int[np.ndarray, "time"]) -> int:
        """How many of its first tokens are in a slot."""
        return len(self._find(context.tobytes())) // context.itemsize

    def slots_for(self, contexts: Sequence[Int[np.ndarray, "time"]]) -> list[tuple[int, int]]:
        """For each a slot of its own from now on, and how many of its tokens are in it already."""
        found = []
        for context in contexts:
            key = self._find(context.tobytes())
            slot = self._forget(key) if key else self._any_slot()
            # The state after the last token is needed even where all of them are known.
            found.append((slot, min(len(key) // context.itemsize, len(context) - 1)))
        # Only now: the slots hold these conversations when all of them have been read.
        for context, (slot, _) in zip(contexts, found, strict=True):
            key = context.tobytes()
            if key in self._slot_of:  # said twice, word for word
                self._free.append(self._forget(key))
            self._slot_of[key] = slot
            self._lengths[len(key)] += 1
        return found

    def _find(self, context: bytes) -> bytes:
        """The longest beginning of the context that is in a slot."""
        for length in sorted(self._lengths, reverse=True):
            if context[:length] in self._slot_of:
                return context[:length]
        return b""

    def _any_slot(self) -> int:
        return self._free.pop() if self._free else self._forget(next(iter(self._slot_of)))

    def _forget(self, key: bytes) -> int:
        self._lengths[len(key)] -= 1
        if not self._lengths[len(key)]:
            del self._lengths[len(key)]
        return self._slot_of.pop(key)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
