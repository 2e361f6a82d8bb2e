"""Implicit language Q-learning (ILQL, arXiv 2206.11871): the policy is cloned, and valued.

`L = c · (L_Q + L_V + cql_weight · L_CQL) + L_π`. Q regresses on r + γ V(h') or a λ-return, V on an
upper expectile of the target network's Q, so that values are those of the best behaviour that the
data has, without ever asking for an action that it has not. At test time the values choose among
utterances of the policy, or steer its tokens. Where the state is not shown, observations are
predicted, too (`loss_terms.observation_loss`, ours).

What a *decision* is, and so how far a reward has to travel, is `credit`: every token (the paper),
or every utterance, which makes the horizon that of the conversation. How many steps are taken
before bootstrapping are the λs, one for each kind of boundary between decisions.

`value_losses` is shared with `mc.py`; the formulas are in `losses.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ilql_jax import losses
from ilql_jax.batching import Batch
from ilql_jax.losses import CUT, END, NEXT_UTTERANCE, SAME_UTTERANCE, Transitions
from ilql_jax.methods.loss_terms import (
    Normalizers,
    awac_token_weights,
    conservative_loss,
    gather,
    observation_loss,
    policy_loss,
    q_of_tokens,
    q_of_utterances,
)
from ilql_jax.methods.method import DialogueConfig, Method, Metrics
from ilql_jax.models import ActorCritic, ModelConfig, QHeads
from ilql_jax.settings import SettingError, setting


@dataclasses.dataclass(frozen=True)
class ValueConfig(DialogueConfig):
    """Settings of methods that learn values beside the policy."""

    credit: str = setting(
        "Decisions that are valued. utterance: Q of an utterance (read as model.utterance_q says), "
        "V at its start; token (the paper): both at every token.",
        "utterance",
        choices=("utterance", "token"),
    )
    cql_weight: float = setting(
        "Weight of the conservative term; needed for steering tokens, not for re-ranking.",
        0.0,
        least=0,
    )
    value_loss_weight: float = setting(
        "Weight of all value losses against the policy's loss.", 0.1, least=0
    )
    awac_temperature: float = setting(
        "The policy's loss is weighted by exp(advantage / temperature), for rewards of unit "
        "spread; 0 = plain cloning.",
        0.5,
        least=0,
    )
    awac_max_weight: float = setting("Cap of that weight.", 20.0, above=0)


@dataclasses.dataclass(frozen=True)
class ILQLConfig(ValueConfig):
    """Settings of ILQL."""

    expectile: float = setting(
        "τ of V's loss: 0.5 = mean of the data, towards 1 = best of it.", 0.8, above=0, below=1
    )
    token_trace: float = setting(
        "λ between tokens of one utterance (credit token).", 0.0, least=0, most=1
    )
    utterance_trace: float = setting("λ across the human's turn.", 0.0, least=0, most=1)
    trace_fade: tuple[float, float] = setting(
        "Both λ start at 1 (Monte Carlo) and reach the values above between these fractions of the "
        "training: values start from real outcomes before they bootstrap. (0, 0) = no fade, which "
        "takes the place of other fractions where a training goes on from another.",
        (0.15, 0.45),
        least=0,
        most=1,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.trace_fade[0] > self.trace_fade[1]:
            raise SettingError("trace_fade", self.trace_fade, "must be two rising fractions")


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: ILQLConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of ILQL's losses over the decisions that `config.credit` names (sec. 4)."""
    decisions = decisions_of(batch, config)
    lambdas = traces(decisions, config, progress)
    return value_losses(model, target, batch, config, lambdas, config.expectile, normalizers)


def value_losses(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: ValueConfig,
    lambdas: Float[Array, "batch decisions"],
    expectile: float,
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """The losses of Q, V and policy, with V's expectile and the λ of each decision.

    The target's Q heads read the hidden states of the trunk that is being trained: it is not copied
    (LMRL-Gym copies it), which saves a third pass over every batch.
    """
    by_utterance = config.credit == "utterance"
    hidden, of_values = model.hidden_states(batch.tokens, batch.segment_ids, batch.positions)
    decisions = decisions_of(batch, config)
    total = normalizers.utterances if by_utterance else normalizers.tokens

    def q_of_decisions(heads: QHeads) -> Float[Array, "heads batch decisions"]:
        if by_utterance:
            return q_of_utterances(heads, model.config.utterance_q, of_values, batch)
        return q_of_tokens(heads, of_values, batch)

    q = q_of_decisions(model.q)
    target_q = jax.lax.stop_gradient(q_of_decisions(target.q))
    v = model.v(gather(of_values, decisions.value_state))
    next_v = jax.lax.stop_gradient(model.v(gather(of_values, decisions.next_state)))
    returns = losses.returns_of(decisions, next_v, lambdas)
    value, metrics = losses.ilql_loss(
        q=q,
        target_q=target_q,
        v=v,
        returns=returns,
        weight=decisions.weight,
        expectile=expectile,
        value_loss_weight=config.value_loss_weight,
        total=total,
    )
    metrics["return_mean"] = losses.weighted_mean(returns, decisions.weight, total)
    # Sums over the vocabulary are added with their factors inside (see chunked_cross_entropy).
    cql_factor = config.value_loss_weight * config.cql_weight
    if cql_factor > 0:
        cql = conservative_loss(
            model, of_values, batch, by_utterance, cql_factor, config.action_chunk, normalizers
        )
        value += cql
        metrics["cql_loss"] = cql / cql_factor
    advantage = jnp.min(target_q, axis=0) - v
    token_weight = batch.clone_weight * awac_token_weights(
        advantage, batch, by_utterance, config.awac_temperature, config.awac_max_weight
    )
    metrics["policy_loss"] = policy_loss(
        model, hidden, batch.by_token, token_weight, config.action_chunk, normalizers
    )
    observed, of_observations = observation_loss(
        model, (hidden, of_values), batch, config, normalizers
    )
    value += metrics["policy_loss"] + observed
    return value, metrics | of_observations | {"loss": value}


def decisions_of(batch: Batch, config: ValueConfig) -> Transitions:
    """Transitions between the decisions that are valued."""
    return batch.by_utterance if config.credit == "utterance" else batch.by_token


def traces(
    decisions: Transitions, config: ILQLConfig, progress: Float[Array, ""]
) -> Float[Array, "batch decisions"]:
    """λ of each decision: by the boundary between it and the next one, faded in from 1."""
    start, end = config.trace_fade
    faded = jnp.clip((progress - start) / max(end - start, 1e-6), 0.0, 1.0) if end else 1.0

    def now(trace: float) -> Float[Array, ""]:
        return 1.0 + faded * (trace - 1.0)

    across = now(config.utterance_trace)  # windows are cut between utterances
    by_boundary = jnp.stack([now(config.token_trace), across, 0.0, across])
    assert (SAME_UTTERANCE, NEXT_UTTERANCE, END, CUT) == (0, 1, 2, 3)
    return by_boundary[decisions.boundary]


def network_for(model_config: ModelConfig, config: ValueConfig) -> ModelConfig:
    """The network as it is.

    Raises:
        SettingError: Values of tokens, read from heads that value an utterance as a sum.
    """
    if config.credit == "token" and model_config.utterance_q != "last":
        raise SettingError(
            "utterance_q",
            model_config.utterance_q,
            "must be last for credit 'token': there, Q of every token is a value of its own, not a "
            "share of one",
        )
    return model_config


def values_by_token(config: ValueConfig) -> bool:
    """True if Q is a value of every token, by which tokens can be steered."""
    return config.credit == "token"


def without_fade(config: ILQLConfig) -> ILQLConfig:
    """Bootstraps from the first step: values that go on have started from real outcomes before."""
    return dataclasses.replace(config, trace_fade=(0.0, 0.0))


METHOD = Method(
    name="ilql",
    title="ILQL",
    config=ILQLConfig(),
    loss=loss,
    learns_values=True,
    polyak_averaged=("q",),
    network=network_for,
    values_by_token=values_by_token,
    decodings=("sampled at 0.4, best of 8", "sampled at 0.6, best of 16"),
    color="#0072b2",
    marker="o",
    going_on=without_fade,
)
