"""Decoding: one jitted loop that writes utterances for a whole batch of conversations.

The context of each conversation is read once; its keys and values are shared by all samples drawn
for it. Each token comes from the cloned policy, steered by the values where a strength is given:
`π(a | h) ∝ π_β(a | h) · exp(β (min_k Q_k(h, a) − V(h)))` (ILQL, eq. 6). The value of a finished
utterance is read as `ModelConfig.utterance_q` says; `policy.py` re-ranks by it. Q is that of the
trained heads, not of their slower target copies.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ilql_jax import losses
from ilql_jax.models import ActorCritic, ModelConfig, Params, with_params
from ilql_jax.models.decoder import KeyValues


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


@functools.partial(
    jax.jit, static_argnames=("config", "num_samples", "max_length", "stop_token", "steered")
)
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
    """Writes `num_samples` utterances after each context.

    An utterance ends with the stop token, which is forced at `max_length`. What is drawn for a
    conversation depends on its key alone, not on the others in the batch.

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
        steered: Whether the values steer each token (costs the Q heads' vocabulary work).
    """
    model = with_params(config, params)
    batch, columns = context.shape
    segments = (jnp.arange(columns)[None] < context_length[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(columns), context.shape)
    hidden, cache = model.trunk.read(context, segments, positions)
    last = jnp.take_along_axis(hidden, (context_length - 1)[:, None, None], axis=1)
    shape = (cache.keys.shape[0], batch, num_samples, max_length, *cache.keys.shape[-2:])
    sample_keys = jax.vmap(lambda key: jax.random.split(key, num_samples))(keys)

    class Loop(NamedTuple):
        step: Array
        hidden: Array
        written: KeyValues
        tokens: Array
        length: Array
        log_prob: Array
        q: Array
        done: Array

    def write_token(loop: Loop) -> Loop:
        token, log_prob = _choose(
            model,
            loop.hidden,
            sample_keys,
            loop.step,
            allowed,
            temperature,
            steering_strength,
            steered,
        )
        forced = loop.step == max_length - 1
        token = jnp.where(forced, stop_token, token)
        log_prob = jnp.take_along_axis(log_prob, token[..., None], axis=-1)[..., 0]
        q = model.q.taken(loop.hidden, token)
        running = ~loop.done
        token = jnp.where(running, token, 0)
        next_position = context_length[:, None] + loop.step
        next_hidden, written = model.trunk.decode_step(
            token,
            jnp.broadcast_to(next_position, token.shape),
            cache,
            context_length,
            loop.written,
            loop.step,
        )
        return Loop(
            step=loop.step + 1,
            hidden=next_hidden,
            written=written,
            tokens=loop.tokens.at[:, :, loop.step].set(token),
            length=loop.length + running,
            log_prob=loop.log_prob + jnp.where(running, log_prob, 0.0),
            q=jnp.where(running, q + loop.q if config.utterance_q == "sum" else q, loop.q),
            done=loop.done | (token == stop_token),
        )

    per_sample = (batch, num_samples)
    loop = Loop(
        step=jnp.zeros((), jnp.int32),
        hidden=jnp.broadcast_to(last, (*per_sample, last.shape[-1])),
        written=KeyValues(jnp.zeros(shape, hidden.dtype), jnp.zeros(shape, hidden.dtype)),
        tokens=jnp.zeros((*per_sample, max_length), jnp.int32),
        length=jnp.zeros(per_sample, jnp.int32),
        log_prob=jnp.zeros(per_sample, jnp.float32),
        q=jnp.zeros((model.q.NUM_HEADS, *per_sample), jnp.float32),
        done=jnp.zeros(per_sample, bool),
    )
    loop = jax.lax.while_loop(
        lambda loop: (loop.step < max_length) & ~loop.done.all(), write_token, loop
    )
    q = jnp.min(loop.q, axis=0)
    return Samples(loop.tokens, loop.length, loop.log_prob, q, model.v(last[:, 0]))


def _choose(
    model: ActorCritic,
    hidden: Float[Array, "batch samples width"],
    keys: Key[Array, "batch samples"],
    step: Int[Array, ""],
    allowed: Bool[Array, "vocab"],
    temperature: Float[Array, ""],
    steering_strength: Float[Array, ""],
    steered: bool,
) -> tuple[Int[Array, "batch samples"], Float[Array, "batch samples vocab"]]:
    """The next token of each sample, and log π_β over the vocabulary."""
    logits = jnp.where(allowed, model.trunk.logits(hidden), -jnp.inf)
    log_prob = jax.nn.log_softmax(logits, axis=-1)
    scores = log_prob
    if steered:
        q, v = jnp.min(model.q(hidden), axis=0), model.v(hidden)
        scores = losses.steer_logits(logits, q, v, steering_strength)
    step_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
    heated = scores / jnp.maximum(temperature, 1e-6)
    sampled = _sample(step_keys, heated)
    return jnp.where(temperature > 0, sampled, jnp.argmax(scores, axis=-1)), log_prob


def _sample(
    keys: Key[Array, "batch samples"], logits: Float[Array, "batch samples vocab"]
) -> Int[Array, "batch samples"]:
    """Draws by the inverse of the cumulative distribution: one random number a token.

    `jax.random.categorical` draws one per word of the vocabulary.
    """
    cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys)[..., None]
    # Strictly above the threshold, so that a token of probability zero is never drawn.
    token = jnp.sum(cumulative <= uniform * cumulative[..., -1:], axis=-1)
    return jnp.minimum(token, jnp.argmax(cumulative, axis=-1))
