"""Decoding: utterances for many conversations at once, in compiled loops.

Three functions, as in JetStream's continuous batching: `prefill` reads what is new in
conversations and keeps their keys and values in a cache, where they stay from turn to turn;
`insert` puts conversations into free *slots*, the rows of the decoding batch, in each of which
several utterances are written side by side; `generate` writes in all slots until enough of them
have finished, so that those can be refilled. All shapes are fixed, so nothing is compiled again.
`policy.py` schedules them; `sample` is the three in a row, for one batch.

Each token comes from the cloned policy, or from what a `Steer` makes of it and the values; by
default π(a | h) ∝ π_β(a | h) · exp(β (min_k Q_k(h, a) − V(h))) (ILQL, eq. 6). The value of a
finished utterance is that of `ModelConfig.utterance_q`; `policy.py` re-ranks by it. Q is that of
the trained heads, not of their slower target copies.

Where the values have a trunk of their own, it reads beside the policy's, with its keys and values
in the same cache: two passes a token. With slots and a cache for `trunks=1` only the policy's
trunk reads, at no extra cost; `q` and `v` are zero then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ilql_jax import losses
from ilql_jax.models import Decoder, ModelConfig, Params, kv_cache, with_params
from ilql_jax.models.blocks import compute_dtype
from ilql_jax.models.kv_cache import KVCache

# Logits of the policy [..., vocab] (−inf where a token is not allowed), min_k Q_k [..., vocab],
# V [...], strength -> logits of the steered policy, like `losses.steer_logits`.
Steer = Callable[
    [Float[Array, "... vocab"], Float[Array, "... vocab"], Float[Array, "..."], Float[Array, ""]],
    Float[Array, "... vocab"],
]


class Samples(NamedTuple):
    """Utterances written for each conversation (NumPy).

    Attributes:
        tokens: int32 [B, N, S], the stop token included, zeros after it.
        length: int32 [B, N], tokens written, the stop token included.
        log_prob: float32 [B, N], log π_β of the utterance (unsteered).
        q: float32 [B, N], min_k Q_k of the utterance.
        v: float32 [B], V before anything was written.
    """

    tokens: Int[np.ndarray, "batch samples time"]
    length: Int[np.ndarray, "batch samples"]
    log_prob: Float[np.ndarray, "batch samples"]
    q: Float[np.ndarray, "batch samples"]
    v: Float[np.ndarray, " batch"]


class Slots(NamedTuple):
    """State of the decoding batch: B conversations, N utterances each of at most S tokens.

    All slots write into the same column at a time, `clock` modulo S, whenever they were filled.

    Attributes:
        clock: Tokens written since the slots were made.
        filled: Clock at which the slot was filled, [B].
        context: Cache of the conversations, [B, heads, columns, head_size] each.
        context_length: Tokens in it, [B].
        keys: A random key an utterance, [B, N].
        hidden: State before the next token in each trunk that reads, [trunks, B, N, width].
        written: Cache of the utterances, [B · N, heads, S, head_size] each.
        tokens: [B, N, S], a slot's first at column `filled` modulo S.
        length: Tokens of each utterance so far, [B, N].
        log_prob: log π_β of each, [B, N].
        q: Value of each from each of the twin heads, [heads, B, N]; zero where the values' trunk
            does not read.
        v: V before them, [B]; zero likewise.
        done: True for a finished utterance, and in free slots, [B, N].
    """

    clock: Int[Array, ""]
    filled: Int[Array, " batch"]
    context: KVCache
    context_length: Int[Array, " batch"]
    keys: Key[Array, "batch samples"]
    hidden: Float[Array, "trunks batch samples width"]
    written: KVCache
    tokens: Int[Array, "batch samples time"]
    length: Int[Array, "batch samples"]
    log_prob: Float[Array, "batch samples"]
    q: Float[Array, "heads batch samples"]
    v: Float[Array, " batch"]
    done: Bool[Array, "batch samples"]

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        num_slots: int,
        num_samples: int,
        max_length: int,
        columns: int,
        trunks: int,
    ) -> Slots:
        """Makes free slots.

        Args:
            config: Shape of the network.
            num_slots: B.
            num_samples: N.
            max_length: S.
            columns: Tokens of the longest conversation.
            trunks: `config.num_trunks`, or 1: the policy's alone.
        """
        decoder, each = config.decoder, (num_slots, num_samples)
        return cls(
            clock=jnp.zeros((), jnp.int32),
            filled=jnp.zeros(num_slots, jnp.int32),
            context=KVCache.zeros(decoder, (num_slots,), columns, trunks),
            context_length=jnp.ones(num_slots, jnp.int32),
            keys=jnp.broadcast_to(jax.random.key(0), each),
            hidden=jnp.zeros((trunks, *each, decoder.hidden_size), compute_dtype(decoder)),
            written=KVCache.zeros(decoder, (num_slots * num_samples,), max_length, trunks),
            tokens=jnp.zeros((*each, max_length), jnp.int32),
            length=jnp.zeros(each, jnp.int32),
            log_prob=jnp.zeros(each),
            q=jnp.zeros((2, *each)),
            v=jnp.zeros(num_slots),
            done=jnp.ones(each, bool),
        )

    @property
    def samples(self) -> Samples:
        """The utterances, valid for slots that have finished (NumPy)."""
        filled, tokens, length = (np.asarray(x) for x in (self.filled, self.tokens, self.length))
        order = (filled[:, None] + np.arange(tokens.shape[-1])) % tokens.shape[-1]
        tokens = np.take_along_axis(tokens, order[:, None], axis=-1)
        tokens = np.where(np.arange(tokens.shape[-1]) < length[..., None], tokens, 0)
        q = np.asarray(self.q).min(axis=0)
        return Samples(tokens, length, np.asarray(self.log_prob), q, np.asarray(self.v))


@functools.partial(jax.jit, static_argnames=("config", "columns"), donate_argnames="cache")
def prefill(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    sources: Int[Array, " batch"],
    entries: Int[Array, " batch"],
    tokens: Int[Array, "batch new"],
    start: Int[Array, " batch"],
    last: Int[Array, " batch"],
    *,
    columns: int,
) -> tuple[Float[Array, "trunks batch width"], KVCache, KVCache]:
    """Reads what is new in conversations of a cache.

    Args:
        config: Shape of the network.
        params: Its parameters.
        cache: Keys and values of all conversations, [entries, heads, columns, head_size] each, in
            the trunks that read; donated.
        sources: Place in the cache of what is known of each conversation already.
        entries: Place of each conversation from now on, mostly the same; one past the last for
            padding.
        tokens: New tokens, padded on the right.
        start: Number of tokens that the cache holds already.
        last: Index of the new token whose state is returned.
        columns: Columns of the cache that are enough for all, the new tokens included.

    Returns:
        The states asked for; keys and values of these conversations; and the cache with them.
    """
    own = jax.tree.map(lambda x: x[sources, :, :columns], cache)
    trunks = zip(with_params(config, params).trunks, own.by_trunk(config.decoder), strict=False)
    hidden, own = zip(*(kv_cache.prefill(*each, tokens, start) for each in trunks), strict=True)
    own = KVCache.of_trunks(own)
    cache = jax.tree.map(
        lambda old, new: old.at[entries, :, :columns].set(new, mode="drop"), cache, own
    )
    states = [jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0] for x in hidden]
    return jnp.stack(states), own, cache


@functools.partial(jax.jit, static_argnames="config", donate_argnames="slots")
def insert(
    config: ModelConfig,
    params: Params,
    slots: Slots,
    into: Int[Array, " batch"],
    context: KVCache,
    context_length: Int[Array, " batch"],
    hidden: Float[Array, "trunks batch width"],
    keys: Key[Array, " batch"],
) -> Slots:
    """Puts conversations into free slots.

    Args:
        config: Shape of the network.
        params: Its parameters.
        slots: Donated.
        into: Slot of each conversation; one past the last for padding.
        context: Keys and values of the conversations, from `prefill`; as many columns as the slots
            have must be enough for them.
        context_length: Tokens of each.
        hidden: State after the last of them in each trunk that reads.
        keys: One random key a conversation, on which alone what is drawn for it depends.
    """
    num_samples, columns = slots.done.shape[1], slots.context.columns
    context = jax.tree.map(lambda x: x[..., :columns, :], context)

    def put(old: Array, new: Array, axis: int = 0) -> Array:
        at = (slice(None),) * axis + (into,)
        return old.at[at].set(new, mode="drop")

    reads_values = len(hidden) == config.num_trunks
    v = with_params(config, params).state_value(hidden[-1]) if reads_values else 0.0
    sample_keys = jax.vmap(lambda key: jax.random.split(key, num_samples))(keys)
    return slots._replace(
        filled=put(slots.filled, slots.clock),
        context=jax.tree.map(put, slots.context, context),
        context_length=put(slots.context_length, context_length),
        keys=put(slots.keys, sample_keys),
        hidden=put(slots.hidden, hidden[:, :, None], axis=1),
        length=put(slots.length, 0),
        log_prob=put(slots.log_prob, 0.0),
        q=put(slots.q, 0.0, axis=1),
        v=put(slots.v, v),
        done=put(slots.done, False),
    )


@functools.partial(
    jax.jit, static_argnames=("config", "stop_token", "steer"), donate_argnames="slots"
)
def generate(
    config: ModelConfig,
    params: Params,
    slots: Slots,
    finished: Int[Array, ""],
    allowed: Bool[Array, " vocab"],
    temperature: Float[Array, ""],
    steering_strength: Float[Array, ""],
    *,
    stop_token: int,
    steer: Steer | None,
) -> Slots:
    """Writes in all slots until enough of them have finished.

    An utterance ends with the stop token, which is forced at the greatest length.

    Args:
        config: Shape of the network.
        params: Its parameters.
        slots: Donated.
        finished: Number of slots that have to be finished or free.
        allowed: False for tokens that are never written, the forced stop token excepted.
        temperature: 1 samples from the policy, 0 takes the best token.
        steering_strength: β; read by `steer`.
        stop_token: Ends an utterance.
        steer: Makes logits of policy and values, at the cost of the Q heads' vocabulary-wide
            work; None = the cloned policy. Needs slots that the values' trunk reads too.

    Raises:
        ValueError: `steer` with slots that only the policy's trunk reads.
    """
    model = with_params(config, params)
    longest = slots.tokens.shape[-1]
    reads_values = len(slots.hidden) == config.num_trunks
    if steer is not None and not reads_values:
        raise ValueError(
            f"steering reads the values, but the slots have {len(slots.hidden)} trunk, the "
            f"policy's alone: make them and the cache for {config.num_trunks}."
        )

    def write_token(slots: Slots) -> Slots:
        age = slots.clock - slots.filled
        policy_state, value_state = slots.hidden[0], slots.hidden[-1]
        if steer is None:
            scores = logits = jnp.where(allowed, model.trunk.logits(policy_state), -jnp.inf)
        else:
            logits, q_by_head = model.logits_and_q(policy_state, value_state)
            logits = jnp.where(allowed, logits, -jnp.inf)
            q, v = jnp.min(q_by_head, axis=0), model.state_value(value_state)
            scores = steer(logits, q, v, steering_strength)
            # A great strength may overflow, which would make NaN of what is not allowed.
            largest = jnp.finfo(scores.dtype).max
            scores = jnp.where(allowed, jnp.clip(scores, -largest, largest), -jnp.inf)
        token = _choose(slots.keys, age, scores, temperature)
        token = jnp.where((age == longest - 1)[:, None], stop_token, token)
        log_prob = -losses.policy_loss(logits, token)
        q = jnp.zeros_like(slots.q)
        if reads_values:
            q = model.q_at_actions(policy_state, value_state, token)
        running = ~slots.done
        column = slots.clock % longest
        positions = (slots.context_length + age)[:, None]
        visible = (column - jnp.arange(longest)) % longest <= age[:, None]

        def step(trunk: Decoder, context: KVCache, written: KVCache):
            length = slots.context_length
            return kv_cache.decode_step(
                trunk, token, positions, context, length, written, column, visible
            )

        caches = (each.by_trunk(config.decoder) for each in (slots.context, slots.written))
        hidden, written = zip(*map(step, model.trunks, *caches), strict=True)
        kept = jnp.where(running, token, slots.tokens[:, :, column])
        return slots._replace(
            clock=slots.clock + 1,
            hidden=jnp.stack(hidden),
            written=KVCache.of_trunks(written),
            tokens=slots.tokens.at[:, :, column].set(kept),
            length=slots.length + running,
            log_prob=slots.log_prob + jnp.where(running, log_prob, 0.0),
            q=jnp.where(running, q + slots.q if config.utterance_q == "sum" else q, slots.q),
            done=slots.done | (token == stop_token),
        )

    def goes_on(slots: Slots) -> Bool[Array, ""]:
        return slots.done.all(axis=1).sum() < jnp.minimum(finished, slots.done.shape[0])

    return jax.lax.while_loop(goes_on, write_token, slots)


def sample(
    config: ModelConfig,
    params: Params,
    context: Int[Array, "batch context"],
    context_length: Int[Array, " batch"],
    keys: Key[Array, " batch"],
    allowed: Bool[Array, " vocab"],
    temperature: Float[Array, ""],
    steering_strength: Float[Array, ""],
    *,
    num_samples: int,
    max_length: int,
    stop_token: int,
    steer: Steer | None,
) -> Samples:
    """Writes `num_samples` utterances after each context: one batch, all from the start.

    What is drawn for a conversation depends on its key alone, not on the others in the batch.

    Args:
        config: Shape of the network.
        params: Its parameters.
        context: Tokens so far, padded on the right.
        context_length: Number of them, at least 1.
        keys: One random key a conversation.
        allowed: See `generate`, as for the next ones.
        temperature: 1 samples from the policy, 0 takes the best token.
        steering_strength: β; read by `steer`.
        num_samples: N.
        max_length: S.
        stop_token: Ends an utterance.
        steer: None = the cloned policy.
    """
    batch, columns = context.shape
    places, lengths = jnp.arange(batch), jnp.asarray(context_length)
    trunks = config.num_trunks
    cache = KVCache.zeros(config.decoder, (batch,), columns, trunks)
    hidden, own, _ = prefill(
        config, params, cache, places, places, context, 0 * places, lengths - 1, columns=columns
    )
    slots = Slots.empty(config, batch, num_samples, max_length, columns, trunks)
    slots = insert(config, params, slots, places, own, lengths, hidden, keys)
    slots = generate(
        config,
        params,
        slots,
        batch,
        allowed,
        temperature,
        steering_strength,
        stop_token=stop_token,
        steer=steer,
    )
    return slots.samples


def _choose(
    keys: Key[Array, "batch samples"],
    age: Int[Array, " batch"],
    scores: Float[Array, "batch samples vocab"],
    temperature: Float[Array, ""],
) -> Int[Array, "batch samples"]:
    """Chooses the next token of each utterance, from unnormalised log-probabilities."""

    def sampled() -> Array:
        # Relative to the best: then no temperature makes NaN of it, however small. However large,
        # it must not reach the −inf of tokens that are not allowed (−inf · 0): XLA may multiply by
        # the inverse, which it takes for 0 where that is below the smallest normal number.
        numbers = jnp.finfo(scores.dtype)
        relative = scores - scores.max(axis=-1, keepdims=True)
        tempered = relative / jnp.clip(temperature, numbers.tiny, 1 / numbers.tiny)
        tempered = jnp.where(jnp.isneginf(relative), -jnp.inf, tempered)
        per_slot = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        return _sample(jax.vmap(per_slot)(keys, age), tempered)

    return jax.lax.cond(temperature > 0, sampled, lambda: _best(scores))


def _best(scores: Float[Array, "... vocab"]) -> Int[Array, "..."]:
    """Returns the first of the highest scores.

    XLA:CPU does two plain reductions in vectors, but not one that carries an index along.
    """
    last = scores.shape[-1] - 1
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    is_best = scores == scores.max(axis=-1, keepdims=True)
    return jnp.where(is_best, index, last).min(axis=-1)


def _sample(
    keys: Key[Array, "batch samples"], log_weights: Float[Array, "batch samples vocab"]
) -> Int[Array, "batch samples"]:
    """Draws by the inverse of the cumulative distribution: one random number a token.

    `jax.random.categorical` draws one per word of the vocabulary. The sums run over blocks first,
    then inside the block that was hit, so that no running sum goes over the whole vocabulary.

    Args:
        keys: A random key each.
        log_weights: Unnormalised log-probabilities, of which the highest is 0.
    """
    *leading, vocab = log_weights.shape
    size = max(1, round(vocab**0.5))
    padding = [(0, 0)] * len(leading) + [(0, -vocab % size)]
    weights = jnp.exp(log_weights)
    blocks = jnp.pad(weights, padding).reshape(*leading, -1, size)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys)[..., None]
    block, before, threshold = _first_above(blocks.sum(axis=-1), uniform)
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    share = (threshold - before) / inside.sum(axis=-1, keepdims=True)
    token, _, _ = _first_above(inside, share)
    return block * size + token


def _first_above(
    weights: Float[Array, "... n"], share: Float[Array, "... 1"]
) -> tuple[Int[Array, "..."], Float[Array, "... 1"], Float[Array, "... 1"]]:
    """Finds where the running sum of the weights first exceeds a share of their total.

    Returns:
        The place, the running sum before it, and the threshold.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    threshold = share * cumulative[..., -1:]
    # Strictly above the threshold, so that what has probability zero is never drawn.
    place = jnp.sum(cumulative <= threshold, axis=-1)
    # Rounding may leave the threshold at the total: then the last that has a weight.
    place = jnp.minimum(place, jnp.argmax(cumulative, axis=-1))
    at = place[..., None]
    before = jnp.take_along_axis(cumulative, at, -1) - jnp.take_along_axis(weights, at, -1)
    return place, before, threshold
