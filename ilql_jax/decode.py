"""Decoding: utterances for many conversations at once, written in compiled loops.

A conversation is read once; its keys and values stay in a *store* and are read on from turn to
turn. To be answered it takes a *lane*: a row of the batch in which several utterances are written
side by side. A lane that has finished is refilled with the next conversation while the others
write on (`admit`, `write`); all shapes are fixed, so nothing is compiled again.

Each token comes from the cloned policy, steered by the values where a strength is given:
`π(a | h) ∝ π_β(a | h) · exp(β (min_k Q_k(h, a) − V(h)))` (ILQL, eq. 6). The value of a finished
utterance is read as `ModelConfig.utterance_q` says; `policy.py` re-ranks by it. Q is that of the
trained heads, not of their slower target copies.

Where the values have a trunk of their own, it reads and writes along beside the policy's, with keys
and values in the same store: two passes a token. Lanes and a store that are made for one trunk are
the policy's alone, which then costs nothing more, and tells no values.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ilql_jax import losses
from ilql_jax.models import Decoder, ModelConfig, Params, with_params
from ilql_jax.models.blocks import compute_dtype
from ilql_jax.models.kv_cache import KVCache, decode_step, extend


class Samples(NamedTuple):
    """Utterances written for each conversation.

    Attributes:
        tokens: int32 [B, N, S], the stop token included, zeros after it.
        length: int32 [B, N], tokens written, the stop token included.
        log_prob: float32 [B, N], log π_β of the utterance (unsteered).
        q: float32 [B, N], min_k Q_k of the utterance.
        v: float32 [B], V before anything was written.
    """

    tokens: Int[Array, "batch samples time"]
    length: Int[Array, "batch samples"]
    log_prob: Float[Array, "batch samples"]
    q: Float[Array, "batch samples"]
    v: Float[Array, "batch"]


class Lanes(NamedTuple):
    """B conversations being answered, N utterances each of at most S tokens.

    All lanes write into the same column at a time, `clock` modulo S, whenever they began.

    Attributes:
        clock: Tokens written since the lanes were made.
        born: Clock at which the lane was admitted, [B].
        context: Keys and values of the conversations, [B, heads, columns, head_size] each.
        context_length: Columns of them that are real, [B].
        keys: A random key an utterance, [B, N].
        hidden: State before the next token in each trunk that reads, [trunks, B, N, width].
        written: Keys and values of the utterances, [B · N, heads, S, head_size] each.
        tokens: [B, N, S], a lane's first at column `born` modulo S.
        length: Tokens of each utterance so far, [B, N].
        log_prob: log π_β of each, [B, N].
        q: Value of each from each of the twin heads, [heads, B, N]; zero where the trunk that the
            heads look at does not read.
        v: V before them, [B]; likewise.
        done: Whether it is finished, [B, N]; true in a lane that is free.
    """

    clock: Int[Array, ""]
    born: Int[Array, "batch"]
    context: KVCache
    context_length: Int[Array, "batch"]
    keys: Key[Array, "batch samples"]
    hidden: Float[Array, "trunks batch samples width"]
    written: KVCache
    tokens: Int[Array, "batch samples time"]
    length: Int[Array, "batch samples"]
    log_prob: Float[Array, "batch samples"]
    q: Float[Array, "heads batch samples"]
    v: Float[Array, "batch"]
    done: Bool[Array, "batch samples"]

    @property
    def samples(self) -> Samples:
        """What was written, for the lanes that are finished (NumPy)."""
        born, tokens, length = (np.asarray(x) for x in (self.born, self.tokens, self.length))
        order = (born[:, None] + np.arange(tokens.shape[-1])) % tokens.shape[-1]
        tokens = np.take_along_axis(tokens, order[:, None], axis=-1)
        tokens = np.where(np.arange(tokens.shape[-1]) < length[..., None], tokens, 0)
        q = np.asarray(self.q).min(axis=0)
        return Samples(tokens, length, np.asarray(self.log_prob), q, np.asarray(self.v))


def empty_lanes(
    config: ModelConfig, lanes: int, num_samples: int, max_length: int, columns: int, trunks: int
) -> Lanes:
    """Free lanes, for conversations of up to `columns` tokens.

    Args:
        config: Shape of the network.
        lanes: B.
        num_samples: N.
        max_length: S.
        columns: Longest conversation.
        trunks: `config.num_trunks`, or 1: the policy's alone.
    """
    decoder, each = config.decoder, (lanes, num_samples)
    return Lanes(
        clock=jnp.zeros((), jnp.int32),
        born=jnp.zeros(lanes, jnp.int32),
        context=KVCache.zeros(decoder, (lanes,), columns, trunks),
        context_length=jnp.ones(lanes, jnp.int32),
        keys=jnp.broadcast_to(jax.random.key(0), each),
        hidden=jnp.zeros((trunks, *each, decoder.hidden_size), compute_dtype(decoder)),
        written=KVCache.zeros(decoder, (lanes * num_samples,), max_length, trunks),
        tokens=jnp.zeros((*each, max_length), jnp.int32),
        length=jnp.zeros(each, jnp.int32),
        log_prob=jnp.zeros(each),
        q=jnp.zeros((2, *each)),
        v=jnp.zeros(lanes),
        done=jnp.ones(each, bool),
    )


@functools.partial(jax.jit, static_argnames=("config", "columns"), donate_argnames="store")
def read(
    config: ModelConfig,
    params: Params,
    store: KVCache,
    slots: Int[Array, "rows"],
    tokens: Int[Array, "rows new"],
    start: Int[Array, "rows"],
    last: Int[Array, "rows"],
    *,
    columns: int,
) -> tuple[Float[Array, "trunks rows width"], KVCache, KVCache]:
    """Reads on in conversations of the store.

    Args:
        config: Shape of the network.
        params: Its parameters.
        store: Of all conversations, [slots, heads, columns, head_size] each, in the trunks that
            read; given up.
        slots: Which of them; one past the last stands for none.
        tokens: What is new, padded on the right.
        start: How many tokens are known already.
        last: Which of the new tokens' states is wanted.
        columns: How many of the store's columns are enough for all rows, the new ones included.

    Returns:
        The states asked for; keys and values of the rows; and the store with them.
    """
    rows = jax.tree.map(lambda x: x[slots, :, :columns], store)
    trunks = zip(with_params(config, params).trunks, rows.by_trunk(config.decoder), strict=False)
    hidden, rows = zip(*(extend(*each, tokens, start) for each in trunks), strict=True)
    rows = KVCache.of_trunks(rows)
    store = jax.tree.map(
        lambda kept, new: kept.at[slots, :, :columns].set(new, mode="drop"), store, rows
    )
    wanted = [jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0] for x in hidden]
    return jnp.stack(wanted), rows, store


@functools.partial(jax.jit, static_argnames="config", donate_argnames="lanes")
def admit(
    config: ModelConfig,
    params: Params,
    lanes: Lanes,
    into: Int[Array, "rows"],
    context: KVCache,
    context_length: Int[Array, "rows"],
    hidden: Float[Array, "trunks rows width"],
    keys: Key[Array, "rows"],
) -> Lanes:
    """Puts conversations into free lanes.

    Args:
        config: Shape of the network.
        params: Its parameters.
        lanes: Given up.
        into: Which lane each takes; one past the last stands for none.
        context: Keys and values of the conversations, from `read`; as many columns as the lanes
            have are enough for them.
        context_length: Tokens of each.
        hidden: State after the last of them in each trunk that reads.
        keys: One random key a conversation: what is written depends on it alone.
    """
    num_samples, columns = lanes.done.shape[1], lanes.context.columns
    context = jax.tree.map(lambda x: x[..., :columns, :], context)

    def put(old: Array, new: Array, axis: int = 0) -> Array:
        at = (slice(None),) * axis + (into,)
        return old.at[at].set(new, mode="drop")

    reads_values = len(hidden) == config.num_trunks
    v = with_params(config, params).v(hidden[-1]) if reads_values else 0.0
    sample_keys = jax.vmap(lambda key: jax.random.split(key, num_samples))(keys)
    return lanes._replace(
        born=put(lanes.born, lanes.clock),
        context=jax.tree.map(put, lanes.context, context),
        context_length=put(lanes.context_length, context_length),
        keys=put(lanes.keys, sample_keys),
        hidden=put(lanes.hidden, hidden[:, :, None], axis=1),
        length=put(lanes.length, 0),
        log_prob=put(lanes.log_prob, 0.0),
        q=put(lanes.q, 0.0, axis=1),
        v=put(lanes.v, v),
        done=put(lanes.done, False),
    )


@functools.partial(
    jax.jit, static_argnames=("config", "stop_token", "steered"), donate_argnames="lanes"
)
def write(
    config: ModelConfig,
    params: Params,
    lanes: Lanes,
    finished: Int[Array, ""],
    allowed: Bool[Array, "vocab"],
    temperature: Float[Array, ""],
    steering_strength: Float[Array, ""],
    *,
    stop_token: int,
    steered: bool,
) -> Lanes:
    """Writes on in all lanes until so many of them have finished.

    An utterance ends with the stop token, which is forced at the greatest length.

    Args:
        config: Shape of the network.
        params: Its parameters.
        lanes: Given up.
        finished: How many lanes have to be finished or free.
        allowed: False for tokens that are never written.
        temperature: 1 samples from the policy, 0 takes the best token.
        steering_strength: β; read only if `steered`.
        stop_token: Ends an utterance.
        steered: Whether the values steer each token (costs the Q heads' vocabulary work). Needs
            lanes that the values' trunk reads too.
    """
    model = with_params(config, params)
    longest = lanes.tokens.shape[-1]
    reads_values = len(lanes.hidden) == config.num_trunks
    if steered and not reads_values:
        raise ValueError(
            f"steered is true, but the lanes have {len(lanes.hidden)} trunk, the policy's alone: "
            f"make them and the store for {config.num_trunks}."
        )

    def write_token(lanes: Lanes) -> Lanes:
        age = lanes.clock - lanes.born
        of_policy, of_values = lanes.hidden[0], lanes.hidden[-1]
        if steered:
            logits, every_q = model.logits_and_q(of_policy, of_values)
            logits = jnp.where(allowed, logits, -jnp.inf)
            q, v = jnp.min(every_q, axis=0), model.v(of_values)
            scores = losses.steer_logits(logits, q, v, steering_strength)
        else:
            scores = logits = jnp.where(allowed, model.trunk.logits(of_policy), -jnp.inf)
        token = _choose(lanes.keys, age, scores, temperature)
        token = jnp.where((age == longest - 1)[:, None], stop_token, token)
        log_prob = -losses.policy_loss(logits, token)
        q = model.q.at_actions(of_values, token) if reads_values else jnp.zeros_like(lanes.q)
        running = ~lanes.done
        column = lanes.clock % longest
        positions = (lanes.context_length + age)[:, None]
        visible = (column - jnp.arange(longest)) % longest <= age[:, None]

        def read_token(trunk: Decoder, context: KVCache, written: KVCache):
            length = lanes.context_length
            return decode_step(trunk, token, positions, context, length, written, column, visible)

        caches = (each.by_trunk(config.decoder) for each in (lanes.context, lanes.written))
        hidden, written = zip(*map(read_token, model.trunks, *caches), strict=True)
        kept = jnp.where(running, token, lanes.tokens[:, :, column])
        return lanes._replace(
            clock=lanes.clock + 1,
            hidden=jnp.stack(hidden),
            written=KVCache.of_trunks(written),
            tokens=lanes.tokens.at[:, :, column].set(kept),
            length=lanes.length + running,
            log_prob=lanes.log_prob + jnp.where(running, log_prob, 0.0),
            q=jnp.where(running, q + lanes.q if config.utterance_q == "sum" else q, lanes.q),
            done=lanes.done | (token == stop_token),
        )

    def goes_on(lanes: Lanes) -> Bool[Array, ""]:
        return lanes.done.all(axis=1).sum() < jnp.minimum(finished, lanes.done.shape[0])

    return jax.lax.while_loop(goes_on, write_token, lanes)


def generate(
    config: ModelConfig,
    params: Params,
    context: Int[Array, "batch context"],
    context_length: Int[Array, "batch"],
    keys: Key[Array, "batch"],
    allowed: Bool[Array, "vocab"],
    temperature: Float[Array, ""],
    steering_strength: Float[Array, ""],
    *,
    num_samples: int,
    max_length: int,
    stop_token: int,
    steered: bool,
) -> Samples:
    """Writes `num_samples` utterances after each context: all in one batch, all from the start.

    What is drawn for a conversation depends on its key alone, not on the others in the batch.

    Args:
        config: Shape of the network.
        params: Its parameters.
        context: Tokens so far, padded on the right.
        context_length: How many of them are real, at least 1.
        keys: One random key a conversation.
        allowed: False for tokens that are never written.
        temperature: 1 samples from the policy, 0 takes the best token.
        steering_strength: β; read only if `steered`.
        num_samples: N.
        max_length: S.
        stop_token: Ends an utterance.
        steered: Whether the values steer each token.
    """
    batch, columns = context.shape
    rows, lengths = jnp.arange(batch), jnp.asarray(context_length)
    trunks = config.num_trunks
    store = KVCache.zeros(config.decoder, (batch,), columns, trunks)
    hidden, read_rows, _ = read(
        config, params, store, rows, context, 0 * rows, lengths - 1, columns=columns
    )
    lanes = empty_lanes(config, batch, num_samples, max_length, columns, trunks)
    lanes = admit(config, params, lanes, rows, read_rows, lengths, hidden, keys)
    lanes = write(
        config,
        params,
        lanes,
        batch,
        allowed,
        temperature,
        steering_strength,
        stop_token=stop_token,
        steered=steered,
    )
    return lanes.samples


def _choose(
    keys: Key[Array, "batch samples"],
    age: Int[Array, "batch"],
    scores: Float[Array, "batch samples vocab"],
    temperature: Float[Array, ""],
) -> Int[Array, "batch samples"]:
    """The next token of each utterance, from unnormalised log-probabilities."""

    def sampled() -> Array:
        per_lane = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        return _sample(jax.vmap(per_lane)(keys, age), scores / temperature)

    return jax.lax.cond(temperature > 0, sampled, lambda: _best(scores))


def _best(scores: Float[Array, "... vocab"]) -> Int[Array, "..."]:
    """The first of the highest scores.

    XLA:CPU does two plain reductions in vectors, but not one that carries an index along.
    """
    last = scores.shape[-1] - 1
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    is_best = scores == scores.max(axis=-1, keepdims=True)
    return jnp.where(is_best, index, last).min(axis=-1)


def _sample(
    keys: Key[Array, "batch samples"], logits: Float[Array, "batch samples vocab"]
) -> Int[Array, "batch samples"]:
    """Draws by the inverse of the cumulative distribution: one random number a token.

    `jax.random.categorical` draws one per word of the vocabulary. The sums run over blocks first,
    then inside the block that was hit, so that no running sum goes over the whole vocabulary.
    """
    *leading, vocab = logits.shape
    size = max(1, round(vocab**0.5))
    padding = [(0, 0)] * len(leading) + [(0, -vocab % size)]
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
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
    """Where the running sum of the weights first exceeds a share of their total.

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
