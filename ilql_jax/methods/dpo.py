"""Direct preference optimization (DPO, arXiv 2305.18290) on pairs of utterances.

The policy goes on from a reference, the one that BC has learned: the better of two utterances in
the same state is made likelier than the worse, relative to the reference. `preferences.py` packs
the pairs and has the reference's log-probabilities computed beforehand.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ilql_jax import losses
from ilql_jax.methods.loss_terms import Normalizers, log_prob_of_tokens, sum_by_utterance
from ilql_jax.methods.method import Method, MethodConfig, Metrics, TrainOverrides
from ilql_jax.models import ActorCritic
from ilql_jax.preferences import PreferenceBatch, split_pairs
from ilql_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class DPOConfig(MethodConfig):
    """Settings of DPO."""

    kl_weight: float = setting(
        "β, weight of the KL to the reference policy: the larger, the closer the policy stays to "
        "it.",
        0.1,
        above=0,
    )


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: PreferenceBatch,
    config: DPOConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """`dpo_loss`, averaged over pairs.

    Metrics beside the loss, of the implied rewards: `accuracy`, the share of the pairs where that
    of the better is higher; `margin`, by how much on average; and both means.
    """
    del target, progress
    pairs = normalizers.utterances / 2
    rows = batch.dialogues
    hidden = model.trunk(rows.tokens, rows.segment_ids, rows.positions)
    token_log_prob = log_prob_of_tokens(model, hidden, rows, config.action_chunk)
    log_prob = sum_by_utterance(token_log_prob * rows.by_token.is_real, rows)
    chosen, rejected = split_pairs(log_prob)
    reference_chosen, reference_rejected = split_pairs(batch.reference_log_prob)
    weight, _ = split_pairs(rows.by_utterance.weight)
    loss_of_pair = losses.dpo_loss(
        chosen, rejected, reference_chosen, reference_rejected, config.kl_weight
    )
    better = losses.implied_reward(chosen, reference_chosen, config.kl_weight)
    worse = losses.implied_reward(rejected, reference_rejected, config.kl_weight)
    of_pairs = {
        "loss": loss_of_pair,
        "accuracy": (better > worse).astype(jnp.float32),
        "margin": better - worse,
        "chosen_reward": better,
        "rejected_reward": worse,
    }
    metrics = {name: losses.weighted_mean(x, weight, pairs) for name, x in of_pairs.items()}
    return metrics["loss"], metrics


METHOD = Method(
    name="dpo",
    title="DPO",
    config=DPOConfig(),
    loss=loss,
    learns_from="pairs",
    color="#8c8700",
    marker="p",
    starts_from="bc",
    # Short and slow: pairs are soon learned by heart.
    train=TrainOverrides(steps=200, learning_rate_factor=0.01),
)
