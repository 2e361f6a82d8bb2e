"""The methods, one function each: network + batch -> loss, metrics.

| method | learns |
| --- | --- |
| `bc` | the policy by cloning all dialogues |
| `fbc` | the same, on the dialogues of highest return (`select_trajectories` filters) |
| `mc` | Q by regression on Monte-Carlo returns, beside the policy |
| `ilql` | Q by bootstrapping from V, V as an upper expectile of Q, beside the policy |
| `dpo` | the policy from pairs of utterances, one better than the other (`preferences.py`) |

The policy of mc and ilql is cloned, plainly or with AWAC's weights (`awac_temperature`).

What a *decision* is, and so how far a reward has to travel, is `ObjectiveConfig.credit`: every
token (the paper), or every utterance, which makes the horizon that of the conversation. How many
steps are taken before bootstrapping are the λs, per boundary between decisions. The formulas are
in `losses.py`; which arrays they get is decided here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ilql_jax import chunked_cross_entropy, losses
from ilql_jax.batching import Batch
from ilql_jax.losses import CUT, END, NEXT_UTTERANCE, SAME_UTTERANCE, Transitions
from ilql_jax.models import ActorCritic, ModelConfig, QHeads
from ilql_jax.preferences import PreferenceBatch, split_pairs
from ilql_jax.sharding import shard_batch
from ilql_jax.trajectory import Trajectory, TrajectoryError

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned and how (defaults: values over utterances, settings of this project).

    Attributes:
        method: bc, fbc, mc, ilql or dpo.
        credit: "utterance": one Q for an utterance (read as `ModelConfig.utterance_q` says), V at
            its start. "token": both at every token.
        expectile: τ of V's loss; 0.5 = mean, towards 1 = best of the data.
        cql_weight: Weight of the conservative term.
        value_loss_weight: Weight of all value losses against the policy's loss.
        token_trace: λ between tokens of one utterance (credit "token").
        utterance_trace: λ across the human's turn.
        trace_fade: Both λ start at 1 (Monte Carlo) and reach the values above between these
            fractions of the training: values start from real outcomes before they bootstrap.
            (0, 0) switches that off.
        awac_temperature: The policy's loss is weighted by exp(advantage / temperature); 0 = plain
            cloning.
        awac_max_weight: Cap of that weight.
        fbc_fraction: Share of the dialogues that filtered BC keeps.
        kl_weight: β of DPO, the weight of the KL to the reference policy: the larger, the closer
            the policy stays to it.
        action_chunk: Most decisions of a batch whose scores over the whole vocabulary are in
            memory of a device together; at least one a row. It bounds memory and changes no
            result.
    """

    method: str = "ilql"
    credit: str = "utterance"
    expectile: float = 0.8
    cql_weight: float = 0.0
    value_loss_weight: float = 1.0
    token_trace: float = 0.0
    utterance_trace: float = 0.0
    trace_fade: tuple[float, float] = (0.0, 0.0)
    awac_temperature: float = 0.0
    awac_max_weight: float = 20.0
    fbc_fraction: float = 0.25
    kl_weight: float = 0.1
    action_chunk: int = 1024

    def __post_init__(self):
        _one_of("method", self.method, tuple(OBJECTIVES))
        _one_of("credit", self.credit, ("utterance", "token"))
        _within("fbc_fraction", self.fbc_fraction, 0, 1, open_at_zero=True)
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile is {self.expectile}, but must lie in (0, 1).")
        for name in ("token_trace", "utterance_trace"):
            _within(name, getattr(self, name), 0, 1)
        for name in ("awac_max_weight", "kl_weight"):
            _within(name, getattr(self, name), 0, float("inf"), open_at_zero=True)
        for name in ("cql_weight", "value_loss_weight", "awac_temperature"):
            _within(name, getattr(self, name), 0, float("inf"))
        if self.action_chunk < 1:
            raise ValueError(f"action_chunk is {self.action_chunk}, but must be at least 1.")
        if len(self.trace_fade) != 2 or not 0 <= self.trace_fade[0] <= self.trace_fade[1] <= 1:
            raise ValueError(f"trace_fade must be two rising fractions, got {self.trace_fade}.")


class Totals(NamedTuple):
    """What the means over a batch are divided by: sums of the decisions' weights, scalars.

    With gradient accumulation an objective sees a part of the batch at a time, and is told those
    of the whole: then losses, gradients and metrics of the parts add up to those of the batch.
    """

    tokens: Float[Array, ""]
    utterances: Float[Array, ""]
    cloned: Float[Array, ""]


def totals_of(batch: Batch | PreferenceBatch) -> Totals:
    """Of everything in the batch."""
    rows = batch.dialogues if isinstance(batch, PreferenceBatch) else batch
    weights = (rows.by_token.weight, rows.by_utterance.weight, rows.clone_weight)
    return Totals(*map(jnp.sum, weights))


def bc(
    model: ActorCritic,
    target_q: QHeads,
    batch: Batch,
    config: ObjectiveConfig,
    progress: Float[Array, ""],
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Behaviour cloning: −log π_β over the agent's tokens."""
    del target_q, progress
    totals = totals or totals_of(batch)
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    loss = _policy_loss(model, hidden, batch.by_token, batch.clone_weight, config, totals)
    return loss, {"loss": loss, "policy_loss": loss}


def ilql(
    model: ActorCritic,
    target_q: QHeads,
    batch: Batch,
    config: ObjectiveConfig,
    progress: Float[Array, ""],
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Implicit language Q-learning (ILQL, sec. 4) over the decisions that `config.credit` names.

    Args:
        model: Trunk and heads being trained.
        target_q: Slowly moving copy of the Q heads.
        batch: Packed dialogues.
        config: Weights, expectile, λs.
        progress: Fraction of the training done, for `trace_fade`.
        totals: Of the batch that this one is a part of; its own where not given.
    """
    totals = totals or totals_of(batch)
    by_utterance = config.credit == "utterance"
    if not by_utterance and model.config.utterance_q != "last":
        raise ValueError(
            f"utterance_q is {model.config.utterance_q!r}, but must be last for credit 'token': "
            "there, Q of every token is a value of its own, not a share of one."
        )
    hidden, of_values = model.hidden_states(batch.tokens, batch.segment_ids, batch.positions)
    decisions = batch.by_utterance if by_utterance else batch.by_token
    total = totals.utterances if by_utterance else totals.tokens

    def read_q(heads: QHeads) -> Float[Array, "heads batch decisions"]:
        if by_utterance:
            return q_of_utterances(heads, model.config.utterance_q, of_values, batch)
        return q_of_tokens(heads, of_values, batch)

    q = read_q(model.q)
    target = jax.lax.stop_gradient(read_q(target_q))
    v = model.v(gather(of_values, decisions.value_state))
    next_v = jax.lax.stop_gradient(model.v(gather(of_values, decisions.next_state)))
    traces = _traces(decisions, config, progress)
    returns = losses.returns_of(decisions, next_v, traces)
    token_weight = _awac_weights(jnp.min(target, axis=0) - v, batch, config)
    token_weight *= batch.clone_weight
    loss, metrics = losses.ilql_loss(
        q=q,
        target_q=target,
        v=v,
        returns=returns,
        cql=None,
        policy=None,
        weight=decisions.weight,
        expectile=config.expectile,
        value_loss_weight=config.value_loss_weight,
        total=total,
    )
    # What is as wide as the vocabulary is added with its factors inside (see `cross_entropy`).
    cql_factor = config.value_loss_weight * config.cql_weight
    if cql_factor > 0:
        cql = _conservative(model, of_values, batch, config, totals, cql_factor)
        loss += cql
        metrics["cql_loss"] = cql / cql_factor
    metrics["policy_loss"] = _policy_loss(
        model, hidden, batch.by_token, token_weight, config, totals
    )
    loss += metrics["policy_loss"]
    metrics["return_mean"] = losses.weighted_mean(returns, decisions.weight, total)
    return loss, metrics | {"loss": loss}


def mc(
    model: ActorCritic,
    target_q: QHeads,
    batch: Batch,
    config: ObjectiveConfig,
    progress: Float[Array, ""],
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Q regressed on Monte-Carlo returns, V its mean: ILQL without bootstrap or maximum."""
    monte_carlo = dataclasses.replace(
        config, token_trace=1.0, utterance_trace=1.0, trace_fade=(0.0, 0.0), expectile=0.5
    )
    return ilql(model, target_q, batch, monte_carlo, progress, totals)


def dpo(
    model: ActorCritic,
    target_q: QHeads,
    batch: PreferenceBatch,
    config: ObjectiveConfig,
    progress: Float[Array, ""],
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Direct preference optimization: the better of two utterances made likelier than the worse.

    Metrics beside the loss, of the implied rewards: `accuracy`, the share of the pairs where that
    of the better is higher; `margin`, by how much on average; and both means.
    """
    del target_q, progress
    pairs = (totals or totals_of(batch)).utterances / 2
    rows = batch.dialogues
    hidden = model.trunk(rows.tokens, rows.segment_ids, rows.positions)
    token_log_prob = log_prob_of_tokens(model, hidden, rows, config.action_chunk)
    log_prob = _sum_by_utterance(token_log_prob * rows.by_token.is_real, rows)
    (chosen, rejected), (reference_chosen, reference_rejected), (weight, _) = map(
        split_pairs, (log_prob, batch.reference_log_prob, rows.by_utterance.weight)
    )
    each = losses.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, config.kl_weight)
    loss = losses.weighted_mean(each, weight, pairs)
    better = losses.implied_reward(chosen, reference_chosen, config.kl_weight)
    worse = losses.implied_reward(rejected, reference_rejected, config.kl_weight)
    metrics = {
        "accuracy": (better > worse).astype(jnp.float32),
        "margin": better - worse,
        "chosen_reward": better,
        "rejected_reward": worse,
    }
    means = {n: losses.weighted_mean(values, weight, pairs) for n, values in metrics.items()}
    return loss, {"loss": loss, **means}


Objective = Callable[
    [ActorCritic, QHeads, Any, ObjectiveConfig, Float[Array, ""], Totals | None],
    tuple[Float[Array, ""], Metrics],
]
OBJECTIVES: dict[str, Objective] = {"bc": bc, "fbc": bc, "mc": mc, "ilql": ilql, "dpo": dpo}
LEARNS_VALUES = ("mc", "ilql")  # the others leave the value heads as they were made
LEARNS_FROM_PAIRS = ("dpo",)  # and from `PreferenceBatch`es, the others from `Batch`es


def network_of(method: str, config: ModelConfig) -> ModelConfig:
    """The network that a method trains: without a trunk for values where it learns none."""
    return config if method in LEARNS_VALUES else dataclasses.replace(config, value_trunk="shared")


def check_network(method: str, config: ModelConfig) -> None:
    """Raises `ValueError` if a part of the network would be carried along for nothing."""
    if network_of(method, config) != config:
        raise ValueError(
            f"value_trunk is {config.value_trunk!r}, but {method} learns no values: give it the "
            "network with value_trunk 'shared' (`network_of`). What it has learned can get a trunk "
            "for values afterwards (`copy_for_values`)."
        )


def select_trajectories(
    trajectories: Sequence[Trajectory], config: ObjectiveConfig
) -> list[Trajectory]:
    """The data a method trains on: all of it, or for filtered BC the share of highest return.

    Ties at the threshold are broken by order, so that exactly the configured share is kept.

    Raises:
        TrajectoryError: The share holds no dialogue.
    """
    if config.method != "fbc":
        return list(trajectories)
    keep = int(len(trajectories) * config.fbc_fraction)
    if keep == 0:
        raise TrajectoryError(
            f"fbc_fraction {config.fbc_fraction} of {len(trajectories)} dialogues keeps none; "
            "raise it."
        )
    returns = np.array([t.total_reward for t in trajectories])
    best = np.sort(np.argsort(-returns, kind="stable")[:keep])
    return [trajectories[i] for i in best]


def gather(
    hidden: Float[Array, "batch time width"], index: Int[Array, "batch decisions"]
) -> Float[Array, "batch decisions width"]:
    """Hidden states at decisions."""
    return shard_batch(jnp.take_along_axis(hidden, index[..., None], axis=1))


def q_of_tokens(
    heads: QHeads, hidden: Float[Array, "batch time width"], batch: Batch
) -> Float[Array, "heads batch tokens"]:
    """Q of each agent token."""
    return heads.at_actions(gather(hidden, batch.by_token.state), batch.by_token.action)


def q_of_utterances(
    heads: QHeads, how: str, hidden: Float[Array, "batch time width"], batch: Batch
) -> Float[Array, "heads batch utterances"]:
    """Q of each agent utterance, read `how` the network does it (`ModelConfig.utterance_q`)."""
    utterances = batch.by_utterance
    if how == "last":
        return heads.at_actions(gather(hidden, utterances.state), utterances.action)
    shares = q_of_tokens(heads, hidden, batch)
    return _sum_by_utterance(shares * batch.by_token.is_real, batch)


def _utterance_of_token(batch: Batch) -> Int[Array, "batch tokens"]:
    """Which of the row's utterances each agent token belongs to."""
    is_last = batch.by_token.boundary != SAME_UTTERANCE
    return jnp.cumsum(is_last, axis=1) - is_last


def _of_own_utterance(
    values: Float[Array, "batch utterances"], batch: Batch
) -> Float[Array, "batch tokens"]:
    """What each agent token's utterance has."""
    return jnp.take_along_axis(values, _utterance_of_token(batch), axis=1, mode="clip")


def _sum_by_utterance(
    values: Float[Array, "... batch tokens"], batch: Batch
) -> Float[Array, "... batch utterances"]:
    """Sums over each utterance's tokens; slots without a token must hold zeros."""
    slots = batch.by_utterance.weight.shape[1]
    belongs = jax.nn.one_hot(_utterance_of_token(batch), slots, dtype=values.dtype)
    return jnp.einsum("...ba,bau->...bu", values, belongs)


def log_prob_of_tokens(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    batch: Batch,
    chunk: int = ObjectiveConfig.action_chunk,
) -> Float[Array, "batch tokens"]:
    """log π_β of each agent token; `chunk` is `ObjectiveConfig.action_chunk`."""

    def log_prob(states, actions):
        return -losses.policy_loss(model.trunk.logits(states), actions)

    tokens = batch.by_token
    return chunked_cross_entropy.each(log_prob, gather(hidden, tokens.state), tokens.action, chunk)


def _policy_loss(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    tokens: Transitions,
    weight: Float[Array, "batch tokens"],
    config: ObjectiveConfig,
    totals: Totals,
) -> Float[Array, ""]:
    """−log π_β of the agent's tokens, times these weights; over the sum of cloning weights."""

    states = gather(hidden, tokens.state)
    weight = weight / jnp.maximum(totals.cloned, 1e-8)
    return chunked_cross_entropy.cross_entropy(
        states[None],
        model.trunk.output_matrix()[None],
        None,
        tokens.action,
        weight,
        config.action_chunk,
        states.dtype,
    )


def _conservative(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    batch: Batch,
    config: ObjectiveConfig,
    totals: Totals,
    scale: float,
) -> Float[Array, ""]:
    """`scale · L_CQL`: the conservative term, summed over the heads; mean over decisions.

    A vocabulary's work for each token it looks at: of those whose Q the decision's is read from;
    with utterances as sums, it is their mean.
    """
    tokens, total = batch.by_token, totals.tokens
    weight = tokens.weight
    if config.credit == "utterance":
        total = totals.utterances
        if model.config.utterance_q == "last":
            tokens, weight = batch.by_utterance, batch.by_utterance.weight
        else:
            length = jnp.maximum(_sum_by_utterance(weight, batch), 1.0)
            weight = weight * _of_own_utterance(1 / length, batch)

    states = gather(hidden, tokens.state)
    weight = scale * weight / jnp.maximum(total, 1e-8)
    return chunked_cross_entropy.cross_entropy(
        *model.q.last_layer(states), tokens.action, weight, config.action_chunk, states.dtype
    )


def _traces(
    decisions: Transitions, config: ObjectiveConfig, progress: Float[Array, ""]
) -> Float[Array, "batch decisions"]:
    """λ of each decision: by what lies before the next one, faded in from 1."""
    start, end = config.trace_fade
    faded = jnp.clip((progress - start) / max(end - start, 1e-6), 0.0, 1.0) if end else 1.0

    def now(trace):
        return 1.0 + faded * (trace - 1.0)

    across = now(config.utterance_trace)  # windows are cut between utterances
    by_boundary = jnp.stack([now(config.token_trace), across, 0.0, across])
    assert (SAME_UTTERANCE, NEXT_UTTERANCE, END, CUT) == (0, 1, 2, 3)
    return by_boundary[decisions.boundary]


def _awac_weights(
    advantage: Float[Array, "batch decisions"], batch: Batch, config: ObjectiveConfig
) -> Float[Array, "batch tokens"]:
    """Factor of each agent token's cloning weight; an utterance's advantage counts for all of it.

    1 where the values do not learn from the decision: its advantage is not known.
    """
    credited = batch.by_token.weight
    if config.awac_temperature == 0:
        return jnp.ones_like(credited)
    if config.credit == "utterance":
        advantage = _of_own_utterance(advantage, batch)
        credited = _of_own_utterance(batch.by_utterance.weight, batch)
    weight = losses.awac_weights(advantage, 1 / config.awac_temperature, config.awac_max_weight)
    return jnp.where(credited > 0, weight, 1.0)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}.")


def _within(name: str, value: float, low: float, high: float, open_at_zero: bool = False) -> None:
    if not low <= value <= high or (open_at_zero and value == 0):
        raise ValueError(
            f"{name} is {value}, but must lie in {'(' if open_at_zero else '['}{low}, {high}]."
        )
