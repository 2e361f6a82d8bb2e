"""Q-SFT: the loss against its formula, values of a problem solved by hand, and its network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import loss_of, random_params

from ilql_jax import DecoderConfig, DecodingConfig, ModelConfig, Policy, TrainConfig, Trajectory
from ilql_jax.batching import make_batches, packing_for
from ilql_jax.methods import METHODS
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.methods.qsft import QSFTConfig, returns_as_fractions
from ilql_jax.models import init_params, with_params
from ilql_jax.settings import SettingError
from ilql_jax.train import train
from ilql_jax.trajectory import TrajectoryError

QSFT = METHODS["qsft"]
START, GOOD, BAD, OTHER, STOP = range(5)
SHAPE = ModelConfig(
    DecoderConfig(
        vocab_size=5,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        mlp_size=32,
        max_positions=12,
        initializer_range=0.1,
    ),
    value_inner_size=8,
)
DISCOUNT = 0.9


def episode(first, second, reward, unit=1.0, lowest=0.0):
    """Two decisions with an observation between them; a reward for the second."""
    tokens = np.array([START, first, OTHER, second], np.int32)
    is_action = np.array([False, True, False, True])
    rewards = np.array([0, 0, 0, lowest + unit * reward], np.float32)
    return Trajectory(tokens, is_action, rewards)


def every_episode(copies=1, **scale):
    """Good twice is worth 1, everything else 0; all four as often."""
    choices = [(a, b) for a in (GOOD, BAD) for b in (GOOD, BAD)]
    return [episode(a, b, float(a == b == GOOD), **scale) for a, b in choices * copies]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_loss_is_its_formula():
    config = QSFTConfig(support=0.3, value_loss_weight=0.7, action_chunk=3)
    shape = QSFT.network_for(SHAPE)
    params, other = (random_params(shape, 0.8, seed) for seed in (0, 1))
    data = every_episode(2)
    for each in data:
        each.rewards[1] = 1.0  # what follows makes it more than a probability can say
    packing = packing_for(data, batch_rows=2, row_length=12, token_discount=DISCOUNT)
    batch = next(make_batches(data, packing, seed=0))
    averaged = params | {name: other[name] for name in QSFT.polyak_averaged}
    learned_by = dataclasses.replace(QSFT, config=config)
    value, metrics = loss_of(
        shape, learned_by, params, averaged, batch, jnp.array(0.5), normalizers_of(batch)
    )

    model, target = with_params(shape, params), with_params(shape, averaged)
    hidden, of_values = model.hidden_states(batch.tokens, batch.segment_ids, batch.positions)
    log_policy = log_softmax(np.asarray(model.trunk.logits(hidden)))

    def log_p(network, states):
        logits = np.asarray(network.value_trunk.logits(states))
        none = np.asarray(states @ network.q.none_kernel[...] + network.q.none_bias[...])
        return log_softmax(np.concatenate([logits, none[..., None]], -1))

    learned = log_p(model, of_values)
    of_target = log_p(target, target.value_trunk(batch.tokens, batch.segment_ids, batch.positions))
    tokens, cloning, valued, total, count, clipped = batch.by_token, 0.0, 0.0, 0.0, 0, 0
    for row, slot in zip(*np.nonzero(tokens.weight), strict=True):
        state, after, action = (
            x[row, slot] for x in (tokens.state, tokens.next_state, tokens.action)
        )
        policy_after = log_policy[row, after]
        likely = policy_after >= policy_after.max() + np.log(config.support)
        ratio = np.minimum(np.exp(of_target[row, after, :-1] - policy_after), 1)
        w = tokens.reward[row, slot] + tokens.discount[row, slot] * ratio[likely].max()
        clipped, w = clipped + (w > 1), np.clip(w, 0, 1)
        cloning -= log_policy[row, state, action]
        total += w
        valued -= w * learned[row, state, action] + (1 - w) * learned[row, state, -1]
        count += 1
    assert count == tokens.weight.sum() > 4 and clipped
    np.testing.assert_allclose(metrics["policy_loss"], cloning / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["q_loss"], valued / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["return_mean"], total / count, rtol=1e-5)
    np.testing.assert_allclose(value, (cloning + 0.7 * valued) / count, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = every_episode(copies=50)
    packing = packing_for(data, batch_rows=4, row_length=12, token_discount=DISCOUNT)
    schedule = TrainConfig(
        steps=400, learning_rate=1e-2, optimizer="adamw", warmup_steps=20, polyak_rate=0.1
    )
    shape = QSFT.network_for(SHAPE)
    folder = tmp_path_factory.mktemp("qsft")
    params = train(data, shape, QSFT, schedule, packing, seed=0, folder=folder, progress=False)
    return shape, params


def test_values_are_those_of_the_problem(trained):
    """Q* of both decisions, by hand: the better first move is worth what the best second one is."""
    shape, params = trained

    @jax.jit
    def q_and_v(row):
        model = with_params(shape, params)
        states = model.hidden_states(row, jnp.ones_like(row), jnp.arange(row.shape[1])[None])
        policy_state, value_state = (x[0, -1] for x in states)
        _, q = model.logits_and_q(policy_state, value_state)
        return q[0, jnp.array([GOOD, BAD])], model.state_value(value_state)

    for context, q, v in (
        ((START,), (DISCOUNT, 0), DISCOUNT / 2),
        ((START, GOOD, OTHER), (1, 0), 0.5),
        ((START, BAD, OTHER), (0, 0), 0.0),
    ):
        learned_q, learned_v = q_and_v(np.int32([context]))
        np.testing.assert_allclose(learned_q, q, atol=0.1, err_msg=str(context))
        np.testing.assert_allclose(learned_v, v, atol=0.1, err_msg=str(context))


def test_steered_by_its_values_the_policy_is_the_best_one(trained):
    shape, params = trained
    steered = DecodingConfig(temperature=0.0, steering_strength=16.0)
    policy = Policy(
        shape, params, steered, stop_token=STOP, allowed=np.arange(5) < 4, max_utterance=2
    )
    for context in ((START,), (START, GOOD, OTHER)):
        answer = policy.respond([np.array(context, np.int32)], seeds=[0])[0]
        assert answer.tokens[0] == GOOD


def test_returns_become_fractions_of_the_range():
    data = every_episode(unit=4.0, lowest=-3.0)
    fractions = returns_as_fractions(data, QSFTConfig())
    assert [t.total_reward for t in fractions] == [1, 0, 0, 0]
    assert [t.total_reward for t in data] == [1, -3, -3, -3]
    close = returns_as_fractions(every_episode(unit=1e-4), QSFTConfig())
    assert [t.total_reward for t in close] == pytest.approx([1, 0, 0, 0])
    with pytest.raises(TrajectoryError, match="all 4 dialogues have the return 2"):
        returns_as_fractions(every_episode(unit=0.0, lowest=2.0), QSFTConfig())


def test_it_trains_a_second_language_model_instead_of_heads():
    shape = QSFT.network_for(SHAPE)
    params = init_params(shape, 0)
    assert set(params) == {"trunk", "value_trunk", "q"}
    assert set(params["q"]) == {"none_kernel", "none_bias"}
    with pytest.raises(SettingError, match="value_trunk is 'shared', but must be separate"):
        dataclasses.replace(SHAPE, value_heads="probabilities", utterance_q="last")


def test_its_values_may_steer_every_token():
    QSFT.check_decoding(DecodingConfig.parse("greedy, steered by 2"))
