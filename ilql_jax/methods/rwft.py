"""Reward-weighted fine-tuning (arXiv 2506.06964): cloning, each dialogue weighted by its return.

`L = −E[ w(G) Σ_t log π(a_t | h_t) ]`, an offline lower bound of the online objective (sec. 3). Two
weights of the paper: the return itself (ReFit, for returns that are not negative: here they are
shifted and scaled to [0, 1] over the data), and the standardized return (SWiFt). Here that is cut
off at 0: negative weights, which push away from poor dialogues, have a loss without a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from ilql_jax.batching import Batch
from ilql_jax.methods.loss_terms import Normalizers, observation_loss, policy_loss
from ilql_jax.methods.method import DialogueConfig, Method, Metrics
from ilql_jax.models import ActorCritic
from ilql_jax.settings import setting
from ilql_jax.trajectory import Trajectory, TrajectoryError


@dataclasses.dataclass(frozen=True)
class RWFTConfig(DialogueConfig):
    """Settings of reward-weighted fine-tuning."""

    weights: str = setting(
        "Weight of a dialogue. return: its return, shifted and scaled to [0, 1] over the data "
        "(ReFit); standardized: (return − mean) / standard deviation, at least 0 (SWiFt).",
        "return",
        choices=("return", "standardized"),
    )


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: RWFTConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """`Σ weight · (−log π)` over the agent's tokens, divided by their number, not their weights.

    Divided by the weights, a batch of poor dialogues would count as much as one of good ones.
    """
    del target, progress
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    by_count = normalizers._replace(cloned=normalizers.tokens)
    cloning = policy_loss(
        model, hidden, batch.by_token, batch.clone_weight, config.action_chunk, by_count
    )
    observed, metrics = observation_loss(model, (hidden,), batch, config, normalizers)
    value = cloning + observed
    return value, {"loss": value, "policy_loss": cloning} | metrics


def weight_by_return(trajectories: Sequence[Trajectory], config: RWFTConfig) -> list[Trajectory]:
    """Copies of the trajectories whose cloning weights are multiplied by the weight of the return.

    Those of weight 0 are left out. Returns are undiscounted and those of whole episodes.

    Raises:
        TrajectoryError: All returns are the same, so that they tell nothing apart.
    """
    returns = np.array([trajectory.total_reward for trajectory in trajectories])
    lowest, spread = returns.min(), np.ptp(returns)
    if spread < 1e-8:
        raise TrajectoryError(
            f"reward-weighted fine-tuning: all {len(returns)} dialogues have the return "
            f"{lowest:g}, so that their weights would all be the same; use bc."
        )
    if config.weights == "return":
        weights = (returns - lowest) / spread
    else:
        weights = np.maximum((returns - returns.mean()) / returns.std(), 0.0)
    return [
        dataclasses.replace(t, clone=np.float32(weight) * t.clone_weight)
        for t, weight in zip(trajectories, weights, strict=True)
        if weight > 0
    ]


METHOD = Method(
    name="rwft",
    title="reward-weighted",
    config=RWFTConfig(),
    loss=loss,
    select=weight_by_return,
    color="#7a5195",
    marker="v",
)
