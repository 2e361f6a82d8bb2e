"""Pieces that the methods' losses are made of: gathers, Q of decisions, vocabulary-wide terms.

The elementwise formulas are in `losses.py`; here they meet network and batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ilql_jax import losses
from ilql_jax.batching import Batch
from ilql_jax.chunked_cross_entropy import chunked_cross_entropy, map_in_chunks
from ilql_jax.losses import SAME_UTTERANCE, Transitions
from ilql_jax.methods.method import DialogueConfig, MethodConfig, Metrics
from ilql_jax.models import ActorCritic, QHeads
from ilql_jax.preferences import PreferenceBatch
from ilql_jax.sharding import shard_batch


class Normalizers(NamedTuple):
    """Divisors of the means over a batch, scalars: sums of the weights of credited tokens, of
    credited utterances, of the cloning loss, and the number of tokens of observations.

    With gradient accumulation a loss gets a part of the batch at a time, and the normalizers of the
    whole: then losses, gradients and metrics of the parts add up to those of the batch.
    """

    tokens: Float[Array, ""]
    utterances: Float[Array, ""]
    cloned: Float[Array, ""]
    observed: Float[Array, ""]


def normalizers_of(batch: Batch | PreferenceBatch) -> Normalizers:
    """Normalizers of a whole batch."""
    rows = batch.dialogues if isinstance(batch, PreferenceBatch) else batch
    weights = (rows.by_token.weight, rows.by_utterance.weight, rows.clone_weight)
    return Normalizers(*map(jnp.sum, weights), observed=jnp.sum(_precedes_observation(rows)))


def gather(
    hidden: Float[Array, "batch time width"], index: Int[Array, "batch decisions"]
) -> Float[Array, "batch decisions width"]:
    """Hidden states at decisions."""
    return shard_batch(jnp.take_along_axis(hidden, index[..., None], axis=1))


# --- values -------------------------------------------------------------------------------------


def q_of_tokens(
    heads: QHeads, hidden: Float[Array, "batch time width"], batch: Batch
) -> Float[Array, "heads batch tokens"]:
    """Q of each agent token."""
    return heads.at_actions(gather(hidden, batch.by_token.state), batch.by_token.action)


def q_of_utterances(
    heads: QHeads, utterance_q: str, hidden: Float[Array, "batch time width"], batch: Batch
) -> Float[Array, "heads batch utterances"]:
    """Q of each agent utterance; `utterance_q` is that of `ModelConfig`."""
    utterances = batch.by_utterance
    if utterance_q == "last":
        return heads.at_actions(gather(hidden, utterances.state), utterances.action)
    shares = q_of_tokens(heads, hidden, batch)
    return sum_by_utterance(shares * batch.by_token.is_real, batch)


def conservative_loss(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    batch: Batch,
    by_utterance: bool,
    scale: float,
    chunk: int,
    normalizers: Normalizers,
) -> Float[Array, ""]:
    """`scale · L_CQL`: the conservative term (`cql_loss`) of all heads, averaged over decisions.

    Of an utterance whose Q is a sum over its tokens, the term is the mean of its tokens': their
    weight is 1 / length.

    Args:
        model: The network.
        hidden: States that the value heads read.
        batch: Packed dialogues.
        by_utterance: Decisions are utterances, not tokens.
        scale: Factor, inside the sum (see `chunked_cross_entropy`).
        chunk: `MethodConfig.action_chunk`.
        normalizers: Normalizers of the whole batch.
    """
    tokens, total = batch.by_token, normalizers.tokens
    weight = tokens.weight
    if by_utterance:
        total = normalizers.utterances
        if model.config.utterance_q == "last":
            tokens, weight = batch.by_utterance, batch.by_utterance.weight
        else:
            credited = (weight > 0).astype(weight.dtype)
            length = jnp.maximum(sum_by_utterance(credited, batch), 1.0)
            weight = weight * of_own_utterance(1 / length, batch)

    states = gather(hidden, tokens.state)
    weight = scale * weight / jnp.maximum(total, 1e-8)
    return chunked_cross_entropy(
        *model.q.last_layer(states), tokens.action, weight, chunk, states.dtype
    )


# --- policy -------------------------------------------------------------------------------------


def policy_loss(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    tokens: Transitions,
    weight: Float[Array, "batch tokens"],
    chunk: int,
    normalizers: Normalizers,
) -> Float[Array, ""]:
    """`Σ weight · (−log π_β)` over the agent's tokens, divided by the sum of cloning weights.

    Args:
        model: The network.
        hidden: States that the policy reads.
        tokens: The agent's.
        weight: Weight of each token, `Batch.clone_weight` or a multiple of it.
        chunk: `MethodConfig.action_chunk`.
        normalizers: Normalizers of the whole batch.
    """
    states = gather(hidden, tokens.state)
    weight = weight / jnp.maximum(normalizers.cloned, 1e-8)
    return chunked_cross_entropy(
        states[None],
        model.trunk.output_matrix()[None],
        None,
        tokens.action,
        weight,
        chunk,
        states.dtype,
    )


def observation_loss(
    model: ActorCritic,
    hidden: Sequence[Float[Array, "batch time width"]],
    batch: Batch,
    config: MethodConfig,
    normalizers: Normalizers,
) -> tuple[Float[Array, ""] | float, Metrics]:
    """`weight · mean of −log p(token | all before it)` over the tokens that the agent reads.

    The first token of a dialogue is not predicted. To predict what the other side says, the network
    has to keep what that depends on, however long ago it was said: where the state is not seen,
    values are learned of the state that the network has inferred.

    Args:
        model: The network.
        hidden: States of each of its trunks (`ActorCritic.hidden_states`); the losses of two are
            added.
        batch: Packed dialogues.
        config: Has the weight, where it is a `DialogueConfig`; at 0, or without, nothing is done.
        normalizers: Normalizers of the whole batch.

    Returns:
        The weighted loss, and the loss without the weight as metric `observation_loss`.
    """
    # A method of one's own may call the loss of ours with a config that has no such weight.
    scale = config.observation_loss_weight if isinstance(config, DialogueConfig) else 0.0
    if scale == 0:
        return 0.0, {}
    # Inside the sum, as any factor (see `chunked_cross_entropy`).
    weight = scale * _precedes_observation(batch) / jnp.maximum(normalizers.observed, 1e-8)
    following = jnp.roll(batch.tokens, -1, axis=1)
    value = jnp.zeros(())
    for trunk, states in zip(model.trunks, hidden, strict=False):  # of one, the states twice
        matrix = trunk.output_matrix()[None]
        value += chunked_cross_entropy(
            states[None], matrix, None, following, weight, config.action_chunk, states.dtype
        )
    return value, {"observation_loss": value / scale}


def _precedes_observation(batch: Batch) -> Float[Array, "batch time"]:
    """1 where the next token is of the same dialogue and not the agent's."""
    rows = jnp.arange(batch.tokens.shape[0])[:, None]
    tokens = batch.by_token
    is_decision = jnp.zeros(batch.tokens.shape, bool).at[rows, tokens.state].max(tokens.is_real)
    segment = batch.segment_ids
    goes_on = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    return (jnp.pad(goes_on, ((0, 0), (0, 1))) & ~is_decision).astype(jnp.float32)


def log_prob_of_tokens(
    model: ActorCritic, hidden: Float[Array, "batch time width"], batch: Batch, chunk: int
) -> Float[Array, "batch tokens"]:
    """log π_β of each agent token; `chunk` is `MethodConfig.action_chunk`."""

    def log_prob(states, actions):
        return -losses.policy_loss(model.trunk.logits(states), actions)

    tokens = batch.by_token
    return map_in_chunks(log_prob, gather(hidden, tokens.state), tokens.action, chunk)


def awac_token_weights(
    advantage: Float[Array, "batch decisions"],
    batch: Batch,
    by_utterance: bool,
    temperature: float,
    max_weight: float,
) -> Float[Array, "batch tokens"]:
    """`min(exp(advantage / temperature), max_weight)` of each agent token; 1 at temperature 0.

    A factor of the token's cloning weight. All tokens of an utterance have its advantage where
    decisions are utterances. 1 where values do not learn from the decision: its advantage is not
    known.
    """
    credited = batch.by_token.weight
    if temperature == 0:
        return jnp.ones_like(credited)
    if by_utterance:
        advantage = of_own_utterance(advantage, batch)
        credited = of_own_utterance(batch.by_utterance.weight, batch)
    weight = losses.awac_weights(advantage, 1 / temperature, max_weight)
    return jnp.where(credited > 0, weight, 1.0)


# --- utterances and their tokens ----------------------------------------------------------------


def sum_by_utterance(
    values: Float[Array, "... batch tokens"], batch: Batch
) -> Float[Array, "... batch utterances"]:
    """Sums over each utterance's tokens; slots without a token must hold zeros."""
    slots = batch.by_utterance.weight.shape[1]
    belongs = jax.nn.one_hot(_utterance_of_token(batch), slots, dtype=values.dtype)
    return jnp.einsum("...ba,bau->...bu", values, belongs)


def of_own_utterance(
    values: Float[Array, "batch utterances"], batch: Batch
) -> Float[Array, "batch tokens"]:
    """For each agent token, the value of the utterance that it belongs to."""
    return jnp.take_along_axis(values, _utterance_of_token(batch), axis=1, mode="clip")


def _utterance_of_token(batch: Batch) -> Int[Array, "batch tokens"]:
    """Slot of the utterance that each agent token belongs to."""
    is_last = batch.by_token.boundary != SAME_UTTERANCE
    return jnp.cumsum(is_last, axis=1) - is_last
