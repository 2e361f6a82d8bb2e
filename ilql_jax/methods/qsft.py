"""Q-SFT (arXiv 2411.05193): Q-learning as supervised fine-tuning, values as token probabilities.

Beside the cloned policy π_β a second language model p learns by a weighted cross-entropy (sec. 4)

    L = −E[ w(s, a) log p(a|s) + (1 − w(s, a)) log p(none|s) ]
    w(s, a) = r + γ max_a' p̄(a'|s') / π_β(a'|s'),  at the end of an episode r

with p̄ a slowly moving copy of p, and "none" an outcome that is no token. Its minimum is
p(a|s) = w(s, a) π_β(a|s), so that p / π_β is Q, without value heads and without a regression loss.
The policy is π(a|s) ∝ π_β(a|s) exp(β p(a|s) / π_β(a|s)), which is steering by Q.

Probabilities hold returns in [0, 1]: those of the data are shifted and scaled to that. So are Q
and V of this method: fractions of the way from the data's lowest return to its highest. The maximum
is over tokens that π_β may well say (`support`), where the ratio is not one of two tiny numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ilql_jax import losses
from ilql_jax.batching import Batch
from ilql_jax.chunked_cross_entropy import chunked_cross_entropy, map_in_chunks
from ilql_jax.methods.loss_terms import Normalizers, gather, observation_loss, policy_loss
from ilql_jax.methods.method import DialogueConfig, Method, Metrics
from ilql_jax.models import ActorCritic, ModelConfig
from ilql_jax.models.heads import q_from_log_probs
from ilql_jax.settings import setting
from ilql_jax.sharding import embedding_lookup
from ilql_jax.trajectory import Trajectory, TrajectoryError


@dataclasses.dataclass(frozen=True)
class QSFTConfig(DialogueConfig):
    """Settings of Q-SFT."""

    support: float = setting(
        "Tokens that the maximum over the next state's values looks at: those that the policy says "
        "at least this often, compared with its likeliest token.",
        0.05,
        above=0,
        most=1,
    )
    value_loss_weight: float = setting(
        "Weight of the value model's loss against the policy's.", 1.0, above=0
    )


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: QSFTConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """The policy's cross-entropy, and the weighted one of the value model (sec. 4)."""
    del progress
    rows = batch.tokens, batch.segment_ids, batch.positions
    hidden, of_values = model.hidden_states(*rows)
    tokens = batch.by_token
    next_v = best_value(
        model, target, hidden, target.value_trunk(*rows), batch, config.support, config.action_chunk
    )
    weight = jnp.clip(tokens.reward + tokens.discount * next_v, 0.0, 1.0)
    value_loss = weighted_cross_entropy(
        model, of_values, batch, weight, config.value_loss_weight, config.action_chunk, normalizers
    )
    cloning = policy_loss(
        model, hidden, tokens, batch.clone_weight, config.action_chunk, normalizers
    )
    observed, of_observations = observation_loss(
        model, (hidden, of_values), batch, config, normalizers
    )
    value = cloning + value_loss + observed
    metrics = {
        "loss": value,
        "policy_loss": cloning,
        "q_loss": value_loss / config.value_loss_weight,
        "return_mean": losses.weighted_mean(weight, tokens.weight, normalizers.tokens),
    }
    return value, metrics | of_observations


def best_value(
    model: ActorCritic,
    target: ActorCritic,
    hidden: Float[Array, "batch time width"],
    of_target: Float[Array, "batch time width"],
    batch: Batch,
    support: float,
    chunk: int,
) -> Float[Array, "batch tokens"]:
    """`max_a' p̄(a'|s') / π_β(a'|s')` over the policy's support, for each agent token; no gradient.

    Args:
        model: Has the policy.
        target: Has p̄.
        hidden: States of the policy.
        of_target: States of p̄.
        batch: Packed dialogues.
        support: See `QSFTConfig`.
        chunk: `MethodConfig.action_chunk`.
    """

    def best(states, actions):
        del actions
        of_policy, of_values = jnp.split(states, 2, axis=-1)
        log_policy = jax.nn.log_softmax(model.trunk.logits(of_policy))
        q = q_from_log_probs(target.q.log_probs(of_values)[0], log_policy)
        is_likely = log_policy >= log_policy.max(axis=-1, keepdims=True) + jnp.log(support)
        return jnp.max(jnp.where(is_likely, q, 0.0), axis=-1)

    next_state = batch.by_token.next_state
    states = jnp.concatenate([gather(hidden, next_state), gather(of_target, next_state)], axis=-1)
    values = map_in_chunks(best, jax.lax.stop_gradient(states), batch.by_token.action, chunk)
    return jax.lax.stop_gradient(values)


def weighted_cross_entropy(
    model: ActorCritic,
    hidden: Float[Array, "batch time width"],
    batch: Batch,
    weight: Float[Array, "batch tokens"],
    scale: float,
    chunk: int,
    normalizers: Normalizers,
) -> Float[Array, ""]:
    """`scale · mean of −w log p(a) − (1 − w) log p(none)` over the agent's tokens.

    With logits z that is `[logsumexp z − z(a)] + (1 − w) (z(a) − z(none))`: the first is the usual
    cross-entropy, the rest reads two rows of the output matrix.
    """
    tokens = batch.by_token
    states = gather(hidden, tokens.state)
    matrix, bias = model.q.last_layer()
    share = scale * tokens.weight / jnp.maximum(normalizers.tokens, 1e-8)
    usual = chunked_cross_entropy(
        states[None], matrix[None], bias[None], tokens.action, share, chunk, states.dtype
    )
    gap = embedding_lookup(model.q.output_matrix, tokens.action) - model.q.none_kernel[...]
    difference = jnp.sum(states * gap, axis=-1) - model.q.none_bias[...]
    return usual + jnp.sum(share * (1.0 - weight) * difference)


def returns_as_fractions(
    trajectories: Sequence[Trajectory], config: QSFTConfig
) -> list[Trajectory]:
    """Copies of the trajectories whose returns are shifted and scaled to [0, 1] over the data.

    What they are shifted by is received with an episode's last decision.

    Raises:
        TrajectoryError: All returns are the same, so that there is nothing to value.
    """
    del config
    returns = np.array([trajectory.total_reward for trajectory in trajectories])
    lowest, spread = float(returns.min()), float(np.ptp(returns))
    if spread < 1e-8:
        raise TrajectoryError(
            f"Q-SFT: all {len(returns)} dialogues have the return {lowest:g}, so that no word is "
            "worth more than another; use bc."
        )
    episodes: dict[int, Trajectory] = {}  # windows of one episode share it

    def scaled(trajectory: Trajectory) -> Trajectory:
        rewards = trajectory.rewards / np.float32(spread)
        rewards[np.flatnonzero(trajectory.is_action)[-1]] -= np.float32(lowest / spread)
        return dataclasses.replace(trajectory, rewards=rewards)

    def scaled_window(window: Trajectory) -> Trajectory:
        episode = episodes.setdefault(id(window.episode), scaled(window.episode))
        end = window.start + len(window.tokens)
        return dataclasses.replace(
            window, episode=episode, rewards=episode.rewards[window.start : end]
        )

    return [scaled(t) if t.episode is None else scaled_window(t) for t in trajectories]


def network_for(model_config: ModelConfig, config: QSFTConfig) -> ModelConfig:
    """The same policy, beside a second language model in place of value heads."""
    del config
    return dataclasses.replace(
        model_config, value_heads="probabilities", value_trunk="separate", utterance_q="last"
    )


METHOD = Method(
    name="qsft",
    title="Q-SFT",
    config=QSFTConfig(),
    loss=loss,
    learns_values=True,
    polyak_averaged=("value_trunk", "q"),
    select=returns_as_fractions,
    network=network_for,
    values_need_cloning=True,
    values_by_token=lambda config: True,
    # The policy alone, too: probabilities that are badly learned may steer it to worse.
    decodings=(
        "sampled, steered by 4",
        "sampled",
        "greedy",
        "sampled, steered by 16",
        "greedy, steered by 16",
    ),
    color="#c0392b",
    marker="X",
)
