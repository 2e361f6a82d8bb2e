"""Behaviour cloning: the policy imitates the agent of all dialogues."""

from __future__ import annotations

from jaxtyping import Array, Float

from ilql_jax.batching import Batch
from ilql_jax.methods.loss_terms import Normalizers, observation_loss, policy_loss
from ilql_jax.methods.method import DialogueConfig, Method, MethodConfig, Metrics
from ilql_jax.models import ActorCritic


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: MethodConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """−log π_β, averaged over the agent's tokens by their cloning weights, + `observation_loss`."""
    del target, progress
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    cloning = policy_loss(
        model, hidden, batch.by_token, batch.clone_weight, config.action_chunk, normalizers
    )
    observed, metrics = observation_loss(model, (hidden,), batch, config, normalizers)
    value = cloning + observed
    return value, {"loss": value, "policy_loss": cloning} | metrics


METHOD = Method(
    name="bc", title="BC", config=DialogueConfig(), loss=loss, color="#c2669a", marker="D"
)
