"""Reward-weighted fine-tuning: weights and loss by hand, and the policy of a small problem."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from ilql_jax import DecoderConfig, ModelConfig, TrainConfig, Trajectory
from ilql_jax.batching import make_batches, packing_for
from ilql_jax.methods import METHODS
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.models import init_params
from ilql_jax.train import train
from ilql_jax.trajectory import TrajectoryError

RWFT = METHODS["rwft"]
SHAPE = ModelConfig(
    DecoderConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, mlp_size=32, max_positions=8
    ),
    value_inner_size=8,
)


def dialogue(action, reward):
    rewards = np.array([0, reward], np.float32)
    return Trajectory(np.array([0, action], np.int32), np.array([False, True]), rewards)


RETURNS = {1: -1.0, 2: 0.0, 3: 1.0, 4: 3.0}  # action -> return


def test_weights_are_returns_between_lowest_and_highest():
    weighted = RWFT.select_trajectories([dialogue(*each) for each in RETURNS.items()])
    assert [int(t.tokens[1]) for t in weighted] == [2, 3, 4]  # the worst has no weight
    assert [float(t.clone[1]) for t in weighted] == [0.25, 0.5, 1.0]
    assert [t.total_reward for t in weighted] == [0.0, 1.0, 3.0]


def test_standardized_weights_keep_what_is_above_the_mean():
    standardized = RWFT.configured(weights="standardized")
    weighted = standardized.select_trajectories([dialogue(*each) for each in RETURNS.items()])
    assert [int(t.tokens[1]) for t in weighted] == [3, 4]
    spread = np.std(list(RETURNS.values()))
    np.testing.assert_allclose([t.clone[1] for t in weighted], [0.25 / spread, 2.25 / spread])


def test_equal_returns_are_told():
    with pytest.raises(TrajectoryError, match="all 3 dialogues have the return 2"):
        RWFT.select_trajectories([dialogue(action, 2.0) for action in (1, 2, 3)])


def test_returns_that_differ_little_tell_as_much():
    """The unit of the rewards is the user's affair."""
    weighted = RWFT.select_trajectories([dialogue(a, 2.0 + 1e-3 * a) for a in (1, 2, 3)])
    np.testing.assert_allclose([t.clone[1] for t in weighted], [0.5, 1.0], rtol=1e-3)


def test_the_loss_is_divided_by_tokens_not_by_weights():
    data = RWFT.select_trajectories([dialogue(*each) for each in RETURNS.items()])
    packing = packing_for(data, batch_rows=1, row_length=6)
    batch = next(make_batches(data, packing, seed=0))
    params = init_params(SHAPE, 0)
    of_batch = jnp.array(0.0), normalizers_of(batch)
    value, _ = small_networks.loss_of(SHAPE, RWFT, params, params, batch, *of_batch)
    row = batch.tokens, batch.segment_ids, batch.positions
    logits = np.asarray(small_networks.logits(SHAPE, params, row))[0]
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weight = {2: 0.25, 3: 0.5, 4: 1.0}
    written = [(at, int(token)) for at, token in enumerate(batch.tokens[0]) if int(token) in weight]
    by_hand = -sum(weight[token] * log_prob[at - 1, token] for at, token in written)
    np.testing.assert_allclose(value, by_hand / len(written), rtol=1e-5)


def test_the_policy_says_each_action_as_often_as_its_weight(tmp_path):
    """The minimum of the loss: π(a) is the share of a's weight, 1/7, 2/7 and 4/7."""
    data = [dialogue(*each) for each in RETURNS.items()] * 20
    packing = packing_for(data, batch_rows=4, row_length=8)
    schedule = TrainConfig(steps=300, learning_rate=1e-2, optimizer="adamw", warmup_steps=10)
    params = train(data, SHAPE, RWFT, schedule, packing, seed=0, folder=tmp_path, progress=False)
    row = np.zeros((1, 1), np.int32)
    logits = np.asarray(small_networks.logits(SHAPE, params, (row, row + 1, row)))[0, 0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(probabilities[[2, 3, 4]], [1 / 7, 2 / 7, 4 / 7], atol=0.03)
