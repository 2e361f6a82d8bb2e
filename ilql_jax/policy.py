"""`Policy`: a trained network that answers conversations, tokens in and tokens out, in batches.

Its decodings are those of the papers: sample from the cloned policy or take its best token; steer
every token by the values; or write several whole utterances and keep the one of highest value.
The compiled loops are in `decode.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ilql_jax import losses
from ilql_jax.decode import Samples, Slots, Steer, generate, insert, prefill
from ilql_jax.decoding_config import DecodingConfig, PolicyError
from ilql_jax.lookahead import (
    NEXT_CANDIDATES,
    Best,
    Imagination,
    Replies,
    Said,
    look_ahead,
)
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.cpu_matmul import decoding_layout
from ilql_jax.models.kv_cache import KVCache
from ilql_jax.policy_checks import check_decoding, check_params, check_tokens
from ilql_jax.policy_folder import PolicyFolderError, load_policy
from ilql_jax.prefix_index import PrefixIndex


class ContextError(PolicyError):
    """A conversation that the network cannot read on. The message gives the limit."""


@dataclasses.dataclass(frozen=True)
class Response:
    """One utterance, with the values and the log-probability that the network gave it.

    Attributes:
        tokens: int32 [S], the stop token included.
        q: Value of the utterance, min over the twin heads, in the rewards' own unit; where the
            decoding looks ahead, that which it came to (see `lookahead.py`). None where the values
            have a trunk of their own and the decoding does not need it: that trunk is not run then.
        v: Value of the state before it, or None, as `q`.
        log_prob: log π_β of the utterance (unsteered).
        candidates: All that were written, best first; empty where it was one.
    """

    tokens: Int[np.ndarray, " time"]
    q: float | None
    v: float | None
    log_prob: float
    candidates: tuple[Said, ...] = ()

    @property
    def written(self) -> tuple[Said, ...]:
        """All that were written, best first."""
        return self.candidates or (Said(self.tokens, self.q, self.log_prob),)


class Writing(NamedTuple):
    """Way to write: that of the agent's utterances, or of what the other side is imagined to say.

    Attributes:
        decoding: Rule of choice.
        stop_token: Ends what is written; forced at the greatest length.
        allowed: bool [vocab], false for tokens that are never written.
        max_length: Greatest length, in tokens.
    """

    decoding: DecodingConfig
    stop_token: int
    allowed: Bool[Array, " vocab"]
    max_length: int


class Policy:
    """Answers many conversations at once.

    Conversations are recognised by their tokens: of one that was answered before, only what is new
    is read. Slots (see `decode.py`) that have finished are refilled with conversations that wait.

    Args:
        model_config: Shape of the network.
        params: Its parameters.
        decoding: Rule by which utterances are chosen.
        stop_token: Ends an utterance.
        allowed: bool [vocab], false for tokens that are never written (the stop token excepted,
            which is forced at the greatest length).
        max_utterance: Longest utterance, in tokens.
        batch_size: Number of slots: conversations decoded together. With fewer some stay free, so
            that nothing is compiled again.
        cache_megabytes: Room for the keys and values of conversations that may go on; the oldest
            are evicted, and read again when needed. There is always room for one batch.
        steer: Logits of the steered policy (see `decode.Steer`); part of the method that trained
            the values.
        reward_scale: Factor of the rewards in training. Values are given back in the rewards' own
            unit: divided by it, plus the baseline.
        baseline: Value that heads of zero stand for, in the rewards' own unit (see
            `PackingConfig.baseline`).
        max_context: Most tokens of a conversation that are read; None = as many as the network
            reads beside the longest utterance. A cache is as long as the longest conversation needs
            (with `few_programs` as long as any may need).
        replies: Layout of the other side's turns, for decodings that look ahead; None = unknown.
        discount: γ from one utterance to the next in training, for the same.
        few_programs: True for as few shapes as will do: what short conversations need is padded to
            half of the context, so that a server can compile all of it before the first question.

    Raises:
        ContextError: No room for a conversation beside the longest utterance.
        PolicyError: A decoding that this network cannot do, parameters of another shape, or tokens
            outside of its vocabulary.
    """

    BUCKET = 128  # Columns of a batch are a multiple of this; each number is compiled once.
    WIDTHS = (16, 32, 64, 128, 256)  # Of what is read at a time, likewise.
    COLUMNS = 1024  # Of a new cache, which grows: a network may read far more than is ever said.

    def __init__(
        self,
        model_config: ModelConfig,
        params: Params,
        decoding: DecodingConfig,
        stop_token: int,
        allowed: Bool[np.ndarray, " vocab"],
        max_utterance: int = 48,
        batch_size: int = 64,
        cache_megabytes: float = 256.0,
        steer: Steer = losses.steer_logits,
        reward_scale: float = 1.0,
        baseline: float = 0.0,
        max_context: int | None = None,
        few_programs: bool = False,
        replies: Replies | None = None,
        discount: float = 0.99,
    ):
        if max_utterance < 1 or batch_size < 1:
            raise PolicyError(
                f"max_utterance is {max_utterance} and batch_size {batch_size}, but both must be "
                "at least 1."
            )
        if max_context is not None and max_context < 1:
            raise PolicyError(f"max_context is {max_context}, but must be at least 1.")
        self.max_context = model_config.decoder.max_positions - max_utterance
        if self.max_context < 1:
            raise ContextError(
                f"an utterance of {max_utterance} tokens does not fit in the network's context "
                f"of {model_config.decoder.max_positions}."
            )
        if max_context is not None:
            self.max_context = min(self.max_context, max_context)
        if few_programs:
            self.BUCKET = _round_up(-(-self.max_context // 2), self.BUCKET)
            self.WIDTHS = (32, min(self.BUCKET, max(self.WIDTHS)))
        check_tokens(model_config, stop_token, allowed)
        check_params(model_config, params)
        self.stop_token = stop_token
        self.max_utterance = max_utterance
        self.batch_size = batch_size
        self.reward_scale, self.baseline = reward_scale, baseline
        self._replies, self._discount = replies, discount
        self._config, self._params = decoding_layout(model_config, params)
        self.allowed = jnp.asarray(allowed, bool)
        self._steer = steer
        check_decoding(model_config, params, decoding, replies)
        self._decoding = decoding
        # What is read last may be padded to the next width.
        self._most_columns = _round_up(self.max_context + max(self.WIDTHS), self.BUCKET)
        self._first_columns = min(self.COLUMNS, self._most_columns)
        if few_programs:
            self._first_columns = self._most_columns
        entry = jax.eval_shape(lambda: self._empty_cache(1, self._most_columns))
        entry_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(entry))
        entries = max(batch_size, int(cache_megabytes * 2**20 // entry_bytes))
        self._prefixes = PrefixIndex(entries)
        self._cache: KVCache | None = None  # allocated when first needed
        # A few at a time, so that a slot does not wait long for others to be free.
        self._group = -(-batch_size // 4)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        decoding: DecodingConfig | str | None = None,
        batch_size: int = 64,
        cache_megabytes: float = 256.0,
        steer: Steer | None = None,
    ) -> Policy:
        """Loads a policy from the folder of a `fit`; it plays as it did there, to the bit.

        Args:
            folder: Written by `fitting.fit` or `policy_folder.save_policy`.
            decoding: Another rule than the saved one, as config or as text ("greedy").
            batch_size: As for a new policy, as is `cache_megabytes`.
            steer: Steering rule; needed where the method has one of its own (`Method.steer`).

        Raises:
            PolicyFolderError: The folder holds no whole policy; the message names what is missing.
        """
        saved, params = load_policy(folder)
        if isinstance(decoding, str):
            decoding = DecodingConfig.parse(decoding)
        decoding = decoding or DecodingConfig(**saved.decoding)
        if decoding.steering_strength and saved.steered_by and steer is None:
            raise PolicyFolderError(
                f"{folder}: decoding '{decoding}' steers by the rule of the method "
                f"{saved.steered_by!r}, which is code and not in the folder. Give it: "
                "steer=load_method(FILE).steer, of the .py file that defines the method, or decode "
                "without steering (decoding='sampled')."
            )
        return cls(
            saved.model,
            params,
            decoding,
            saved.stop_token,
            saved.allowed_mask,
            saved.max_utterance,
            batch_size,
            cache_megabytes,
            steer or losses.steer_logits,
            saved.reward_scale,
            saved.baseline,
        )

    @property
    def decoding(self) -> DecodingConfig:
        """Rule by which utterances are chosen; another one may be set.

        Raises:
            PolicyError: One that this network cannot do.
        """
        return self._decoding

    @decoding.setter
    def decoding(self, decoding: DecodingConfig) -> None:
        check_decoding(self._config, self._params, decoding, self._replies)
        before, self._decoding = self._trunks, decoding
        if self._trunks != before:
            self.forget()  # other trunks have read it

    @property
    def _trunks(self) -> int:
        """Trunks that read: the cloned policy does without the values', if these have their own."""
        return self._config.num_trunks if self._decoding.reads_values else 1

    def respond(
        self, contexts: Sequence[Int[np.ndarray, " time"]], seeds: Sequence[int]
    ) -> list[Response]:
        """Writes the agent's next utterance in each conversation.

        Args:
            contexts: Tokens of each conversation so far, int32, at most `max_context` of them.
            seeds: One a conversation; with the context it determines the answer.

        Raises:
            ContextError: A context that is empty, too long, or has tokens that there are not.
            PolicyError: Not as many seeds as contexts.
        """
        contexts = self._checked_contexts(contexts, seeds)
        responses = self._write(contexts, seeds, self._speaking)
        if self.decoding.lookahead:
            responses = self._looked_ahead(contexts, seeds, responses)
        return responses

    @property
    def _speaking(self) -> Writing:
        return Writing(self.decoding, self.stop_token, self.allowed, self.max_utterance)

    def _write(
        self,
        contexts: Sequence[Int[np.ndarray, " time"]],
        seeds: Sequence[int],
        writing: Writing,
        branches: bool = False,
    ) -> list[Response]:
        """Writes one utterance after each context.

        Args:
            contexts: Tokens so far.
            seeds: One a context.
            writing: Way to write.
            branches: Several contexts begin alike: what was read of the beginning is kept.
        """
        # Those with much to read together, so that the others are not padded to them.
        unread = [len(context) - self._prefixes.known_length(context) for context in contexts]
        waiting = deque(int(i) for i in np.argsort(unread, kind="stable"))
        responses: list[Any] = [None] * len(contexts)
        columns = _round_up(max(map(len, contexts), default=1), self.BUCKET)
        decoding = writing.decoding
        slots = _empty_slots(
            self._config,
            self.batch_size,
            decoding.candidates,
            writing.max_length,
            columns,
            self._trunks,
        )
        taken: dict[int, int] = {}  # slot -> conversation
        while waiting or taken:
            free = [slot for slot in range(self.batch_size) if slot not in taken]
            while waiting and free:
                size = min(len(waiting), len(free), self._group)
                group = [waiting.popleft() for _ in range(size)]
                into = [free.pop() for _ in group]
                own = [contexts[i] for i in group]
                luck = [seeds[i] for i in group]
                slots = self._insert(slots, into, own, luck, columns, branches)
                taken |= zip(into, group, strict=True)
            enough = min(len(taken), self._group) if waiting else len(taken)
            slots = generate(
                self._config,
                self._params,
                slots,
                self.batch_size - len(taken) + enough,
                writing.allowed,
                jnp.float32(decoding.temperature),
                jnp.float32(decoding.steering_strength),
                stop_token=writing.stop_token,
                steer=self._steer if decoding.steering_strength else None,
            )
            samples = slots.samples
            done = np.asarray(slots.done).all(axis=1)
            for slot in [slot for slot in taken if done[slot]]:
                responses[taken.pop(slot)] = self._response(samples, slot)
        return responses

    def _looked_ahead(
        self,
        contexts: Sequence[Int[np.ndarray, " time"]],
        seeds: Sequence[int],
        responses: Sequence[Response],
    ) -> list[Response]:
        """The responses with their candidates valued, and chosen, by looking ahead."""
        own = [_different(response) for response in responses]
        # As many at a time as there is room for what is read of them.
        each = self.decoding.candidates * (2 + self.decoding.replies)
        size = max(1, self._prefixes.entries // each)
        values: list[list[float]] = []
        for start in range(0, len(contexts), size):
            part = slice(start, start + size)
            with self._prefixes.passing():
                values += look_ahead(
                    self._imagination,
                    self._replies,
                    contexts[part],
                    own[part],
                    seeds[part],
                    turns=self.decoding.lookahead,
                    replies=self.decoding.replies,
                    discount=self._discount,
                    longest=self.max_context,
                )
        return [
            _chosen_by(response, candidates, found)
            for response, candidates, found in zip(responses, own, values, strict=True)
        ]

    def rehearse(self, context: Int[np.ndarray, " time"]) -> None:
        """Compiles what answering contexts of this length takes, imagined turns included.

        Args:
            context: Tokens of one, int32, at most `max_context` of them.
        """
        # More than fit, so that slots are filled one after the other, and again.
        contexts, seeds = [context] * (self.batch_size + 1), range(self.batch_size + 1)
        self._write(contexts, seeds, self._speaking)
        if self.decoding.lookahead:
            self._imagination.ends(contexts)
            self._imagination.best(contexts, seeds)
            for count in {self.decoding.replies, *([1] if self.decoding.lookahead > 1 else [])}:
                self._imagination.replies(contexts, seeds, count)

    @functools.cached_property
    def _imagination(self) -> Imagination:
        """This network's answers to what looking ahead asks."""
        layout, vocab = self._replies, self._config.decoder.vocab_size
        # Of an utterance of one token, the stop token is written whatever its probability is.
        ending = Writing(
            DecodingConfig(), layout.over, jnp.asarray(layout.end_mask(vocab)), max_length=1
        )
        speaking = Writing(
            DecodingConfig(), layout.stop, jnp.asarray(layout.mask(vocab)), layout.max_length
        )

        def ends(contexts):
            written = self._write(contexts, [0] * len(contexts), ending, branches=True)
            return [float(np.exp(response.log_prob)) for response in written]

        def replies(contexts, seeds, count):
            how = speaking._replace(decoding=DecodingConfig(candidates=count))
            written = self._write(contexts, seeds, how, branches=True)
            return [[said.tokens for said in response.written] for response in written]

        def best(contexts, seeds):
            decoding = dataclasses.replace(
                self.decoding.without_values,
                candidates=min(NEXT_CANDIDATES, self.decoding.candidates),
            )
            how = self._speaking._replace(decoding=decoding)
            written = self._write(contexts, seeds, how, branches=True)
            return [Best(each.tokens, each.q, each.v) for each in written]

        return Imagination(ends, replies, best)

    def known_length(self, context: Int[np.ndarray, " time"]) -> int:
        """Returns how many of a conversation's first tokens are not read again.

        Args:
            context: Its tokens, int32.
        """
        return self._prefixes.known_length(np.ascontiguousarray(context, np.int32))

    def forget(self) -> None:
        """Forgets all conversations that were read; needed where `respond` raised in their midst.

        After an error inside of a computation the cache may be half written.
        """
        self._prefixes = PrefixIndex(self._prefixes.entries)
        self._cache = None

    def _checked_contexts(
        self, contexts: Sequence[Int[np.ndarray, " time"]], seeds: Sequence[int]
    ) -> list[Int[np.ndarray, " time"]]:
        if len(seeds) != len(contexts):
            raise PolicyError(
                f"there are {len(contexts)} contexts and {len(seeds)} seeds; give a seed each."
            )
        vocab = self._config.decoder.vocab_size
        checked = []
        for index, context in enumerate(contexts):
            if not 0 < len(context) <= self.max_context:
                raise ContextError(
                    f"context {index} has {len(context)} tokens; between 1 and "
                    f"{self.max_context} can be read. Leave out its oldest turns."
                )
            checked.append(np.ascontiguousarray(context, np.int32))
            if checked[-1].min() < 0 or checked[-1].max() >= vocab:
                outside = next(int(x) for x in checked[-1] if not 0 <= x < vocab)
                raise ContextError(
                    f"context {index} has the token {outside}; the network's vocabulary is 0 to "
                    f"{vocab - 1}."
                )
        return checked

    def _insert(
        self,
        slots: Slots,
        into: list[int],
        contexts: list[Int[np.ndarray, " time"]],
        seeds: list[int],
        columns: int,
        branches: bool,
    ) -> Slots:
        """Reads what is new in a group of conversations, and puts each into a slot."""
        self._cache = self._cache_for(columns)

        def padded(values: Sequence[int], padding: int, dtype=np.int32) -> np.ndarray:
            return np.asarray([*values, *[padding] * (self._group - len(values))], dtype)

        assigned = self._prefixes.assign(contexts, branches)
        sources = padded([each.source for each in assigned], self._prefixes.entries)
        entries = padded([each.entry for each in assigned], self._prefixes.entries)
        start = padded([each.length for each in assigned], 0)
        end = padded([len(context) for context in contexts], 1)
        while True:
            unread = int((end - start).max())
            width = next((w for w in self.WIDTHS if w >= unread), self.WIDTHS[-1])
            tokens = np.zeros((self._group, width), np.int32)
            for row, context in enumerate(contexts):
                piece = context[start[row] : start[row] + width]
                tokens[row, : len(piece)] = piece
            hidden, own, self._cache = prefill(
                self._config,
                self._params,
                self._cache,
                sources,
                entries,
                tokens,
                start,
                np.minimum(end - start, width) - 1,
                columns=min(_round_up(columns + width, self.BUCKET), self._most_columns),
            )
            if unread <= width:
                break
            sources = entries
            start = np.minimum(start + width, end - 1)
        keys = padded([seed % 2**32 for seed in map(int, seeds)], 0, np.uint32)
        return insert(
            self._config,
            self._params,
            slots,
            padded(into, self.batch_size),
            own,
            end,
            hidden,
            jax.vmap(jax.random.key)(keys),
        )

    def _cache_for(self, columns: int) -> KVCache:
        """The cache with room for conversations of so many tokens; made, or made longer."""
        needed = min(_round_up(columns + max(self.WIDTHS), self.BUCKET), self._most_columns)
        length = now = self._first_columns if self._cache is None else self._cache.columns
        while length < needed:
            length = min(2 * length, self._most_columns)
        if self._cache is None:
            return self._empty_cache(self._prefixes.entries, length)
        if length == now:
            return self._cache
        return _longer(self._cache, length - now)

    def _empty_cache(self, entries: int, columns: int) -> KVCache:
        return _empty_cache(self._config.decoder, (entries,), columns, self._trunks)

    def _response(self, samples: Samples, slot: int) -> Response:
        written = [
            Said(
                samples.tokens[slot, n, : samples.length[slot, n]],
                self._value(samples.q[slot, n]),
                float(samples.log_prob[slot, n]),
            )
            for n in np.argsort(-samples.q[slot], kind="stable")
        ]
        knows_values = self._trunks == self._config.num_trunks
        return Response(
            tokens=written[0].tokens,
            q=written[0].q if knows_values else None,
            v=self._value(samples.v[slot]) if knows_values else None,
            log_prob=written[0].log_prob,
            candidates=tuple(written) if len(written) > 1 else (),
        )

    def _value(self, given: np.ndarray) -> float:
        """A head's value in the rewards' own unit."""
        return float(given) / self.reward_scale + self.baseline


# One program makes all of their arrays: each array by itself is a program and a call of the device.
_empty_slots = jax.jit(Slots.empty, static_argnums=range(6))
_empty_cache = jax.jit(KVCache.zeros, static_argnums=range(4))


@functools.partial(jax.jit, static_argnums=1)
def _longer(cache: KVCache, columns: int) -> KVCache:
    """Adds columns at the end."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, columns), (0, 0))), cache)


def _different(response: Response) -> list[Said]:
    """Candidates of a response, each once."""
    once: dict[bytes, Said] = {}
    for said in response.written:
        once.setdefault(said.tokens.tobytes(), said)
    return list(once.values())


def _chosen_by(response: Response, candidates: Sequence[Said], values: Sequence[float]) -> Response:
    """The response with the candidate of highest value, all of them in this order."""
    order = np.argsort(-np.asarray(values), kind="stable")
    ranked = tuple(candidates[i]._replace(q=values[i]) for i in order)
    candidates = ranked if len(ranked) > 1 else ()
    return dataclasses.replace(response, **ranked[0]._asdict(), candidates=candidates)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
