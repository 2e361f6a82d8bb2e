"""The losses against numbers worked out by hand and an independent numpy version."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilql_jax import Trajectory, losses
from ilql_jax.batching import token_transitions
from ilql_jax.chunked_cross_entropy import chunked_cross_entropy
from ilql_jax.losses import END, NEXT_UTTERANCE, SAME_UTTERANCE

SEEDS = pytest.mark.parametrize("seed", range(5))
# One program each: one by one, their operations take ten times as long to compile.
transitions_from_mask = jax.jit(losses.transitions_from_mask, static_argnames="max_actions")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numpy_log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# --- expectile ----------------------------------------------------------------------------------


def test_expectile_loss_by_hand():
    # u = target - prediction = 2, -2, 0; weights 0.8 above, 0.2 below.
    loss = losses.expectile_loss(jnp.zeros(3), jnp.array([2.0, -2.0, 0.0]), 0.8)
    close(loss, [0.8 * 4, 0.2 * 4, 0.0])


@SEEDS
@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_loss_agrees_with_numpy(seed, expectile):
    v, target = normal(seed, 3, 4), normal(seed + 100, 3, 4)
    u = target - v
    close(
        losses.expectile_loss(v, target, expectile),
        np.where(u < 0, 1 - expectile, expectile) * u**2,
    )


def test_expectile_one_half_is_half_the_squared_error():
    close(losses.expectile_loss(jnp.array([1.0]), jnp.array([4.0]), 0.5), [4.5])


def test_expectile_minimiser_moves_from_mean_to_maximum():
    targets = jnp.array([0.0, 0.0, 0.0, 1.0])
    grid = jnp.linspace(0, 1, 1001)

    def minimiser(expectile):
        loss = jax.vmap(lambda v: losses.expectile_loss(jnp.full(4, v), targets, expectile).sum())
        return float(grid[jnp.argmin(loss(grid))])

    # τ (1 - v) = 3 (1 - τ) v  =>  v = τ / (3 - 2 τ)
    assert minimiser(0.5) == pytest.approx(0.25, abs=1e-3)
    assert minimiser(0.9) == pytest.approx(0.75, abs=1e-3)
    assert minimiser(0.999) > 0.99


def test_expectile_targets_get_no_gradient():
    def loss(v, target):
        return losses.expectile_loss(v, target, 0.8).sum()

    to_v, to_target = jax.grad(loss, (0, 1))(jnp.array([1.0]), jnp.array([3.0]))
    close(to_v, [-2 * 0.8 * 2])
    close(to_target, [0.0], 0)


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.5, float("nan")])
def test_expectile_outside_its_range_is_named(expectile):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {expectile}"):
        losses.expectile_loss(jnp.zeros(2), jnp.zeros(2), expectile)


# --- TD -----------------------------------------------------------------------------------------


def test_td_loss_by_hand():
    # 1 + 0.5 * 4 - 2 = 1; at a terminal end 1 + 0 * 4 - 3 = -2.
    loss = losses.td_loss(
        jnp.array([2.0, 3.0]), jnp.ones(2), jnp.array([0.5, 0.0]), jnp.array([4.0, 4.0])
    )
    close(loss, [1.0, 4.0])


@SEEDS
def test_td_loss_of_twin_heads_agrees_with_numpy(seed):
    q, reward, next_v = normal(seed, 2, 3, 4), normal(seed + 1, 3, 4), normal(seed + 2, 3, 4)
    discount = np.random.default_rng(seed).choice([0, 0.99], (3, 4)).astype(np.float32)
    expected = np.stack([(reward + discount * next_v - head) ** 2 for head in q])
    close(losses.td_loss(q, reward, discount, next_v), expected)


def test_td_loss_gives_no_gradient_to_next_v():
    def loss(q, next_v):
        return losses.td_loss(q, jnp.ones(1), jnp.full(1, 0.9), next_v).sum()

    to_q, to_next_v = jax.grad(loss, (0, 1))(jnp.zeros(1), jnp.ones(1))
    close(to_q, [-2 * 1.9])
    close(to_next_v, [0.0], 0)


# --- DPO ----------------------------------------------------------------------------------------


def test_dpo_loss_by_hand():
    # Implied rewards 0.5 (−2 + 4) = 1 and 0.5 (−7 + 3) = −2, a margin of 3; and none at all.
    chosen, rejected = jnp.array([-2.0, -4.0]), jnp.array([-7.0, -3.0])
    reference = jnp.array([-4.0, -4.0]), jnp.array([-3.0, -3.0])
    close(losses.implied_reward(chosen, reference[0], 0.5), [1.0, 0.0])
    loss = losses.dpo_loss(chosen, rejected, *reference, 0.5)
    close(loss, [np.log(1 + np.exp(-3)), np.log(2)])


@SEEDS
@pytest.mark.parametrize("kl_weight", [0.05, 1.0])
def test_dpo_loss_agrees_with_numpy(seed, kl_weight):
    arrays = [10 * normal(seed + i, 3, 4) for i in range(4)]
    chosen, rejected, reference_chosen, reference_rejected = arrays
    # Bradley and Terry's probability of the order, from the ratios of the paper's eq. 7.
    ratio = np.exp(np.float64(chosen) - reference_chosen) ** kl_weight
    other = np.exp(np.float64(rejected) - reference_rejected) ** kl_weight
    close(losses.dpo_loss(*arrays, kl_weight), -np.log(ratio / (ratio + other)))


def test_dpo_raises_the_chosen_lowers_the_rejected_and_leaves_the_reference():
    gradients = jax.grad(lambda *x: losses.dpo_loss(*x, 0.5).sum(), (0, 1, 2, 3))(
        jnp.array([-2.0]), jnp.array([-7.0]), jnp.array([-4.0]), jnp.array([-3.0])
    )
    # −β σ(−margin): the more certain the order is already, the less is done.
    slope = 0.5 / (1 + np.exp(3))
    close(gradients, [[-slope], [slope], [0.0], [0.0]])


def test_dpo_stays_finite_however_wrong_the_order():
    loss = losses.dpo_loss(jnp.array([-1e4]), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), 1.0)
    close(loss, [1e4])


@pytest.mark.parametrize("kl_weight", [0.0, -1.0, float("nan")])
def test_a_kl_weight_that_makes_no_sense_is_named(kl_weight):
    with pytest.raises(ValueError, match=f"above 0, got {kl_weight}"):
        losses.dpo_loss(*[jnp.zeros(2)] * 4, kl_weight)


def test_implied_reward_names_shapes_that_differ():
    with pytest.raises(ValueError, match=r"log_prob \(2,\), reference_log_prob \(1,\)"):
        losses.implied_reward(jnp.zeros(2), jnp.zeros(1), 1.0)


def test_dpo_names_shapes_that_differ():
    with pytest.raises(ValueError, match=r"chosen \(2,\), rejected \(3,\)"):
        losses.dpo_loss(jnp.zeros(2), jnp.zeros(3), jnp.zeros(2), jnp.zeros(3), 1.0)


# --- CQL, policy, picking -----------------------------------------------------------------------


def test_cql_and_policy_loss_by_hand():
    # exp: 1, 2, 5, sum 8. Action 2 has 5 of 8, action 0 has 1 of 8.
    scores = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    actions = jnp.array([2, 0])
    expected = [np.log(8 / 5), np.log(8)]
    close(losses.cql_loss(scores, actions), expected)
    close(losses.policy_loss(scores, actions), expected)
    close(losses.take_action(scores, actions), [np.log(5), 0.0])


@SEEDS
def test_cql_of_twin_heads_agrees_with_numpy(seed):
    q = normal(seed, 2, 3, 4, 7) * 5
    actions = np.random.default_rng(seed).integers(7, size=(3, 4))
    picked = np.empty((2, 3, 4))
    for index in np.ndindex(2, 3, 4):
        picked[index] = -numpy_log_softmax(q[index])[actions[index[1:]]]
    close(losses.cql_loss(q, jnp.asarray(actions)), picked, 1e-4)


def test_large_scores_do_not_overflow():
    scores = jnp.array([[1e4, 0.0], [-1e4, 0.0]])
    close(losses.cql_loss(scores, jnp.array([0, 1])), [0.0, 0.0])


def test_actions_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match="integers, got dtype float32"):
        losses.cql_loss(jnp.zeros((2, 3)), jnp.zeros(2))


# --- AWAC ---------------------------------------------------------------------------------------


def test_awac_weights_by_hand():
    weights = losses.awac_weights(jnp.array([0.0, np.log(3.0), -np.log(2.0), 1e6]), 2.0, 20.0)
    close(weights, [1.0, 9.0, 0.25, 20.0])


def test_awac_beta_zero_is_plain_cloning():
    close(losses.awac_weights(jnp.array([-3.0, 5.0]), 0.0, 20.0), [1.0, 1.0], 0)


def test_awac_weights_give_no_gradient():
    gradient = jax.grad(lambda a: losses.awac_weights(a, 1.0, 20.0).sum())(jnp.array([0.3, 9.0]))
    close(gradient, [0.0, 0.0], 0)


# --- returns ------------------------------------------------------------------------------------


def returns_by_loop(rewards, discounts, values, traces):
    result = np.zeros_like(rewards)
    for row in range(len(rewards)):
        following = 0.0
        for t in reversed(range(rewards.shape[1])):
            mixed = (1 - traces[row, t]) * values[row, t] + traces[row, t] * following
            following = rewards[row, t] + discounts[row, t] * mixed
            result[row, t] = following
    return result


def test_lambda_returns_by_hand():
    # From the back: 4 (terminal); 2 + 0.5 (0.5 * 6 + 0.5 * 4) = 4.5; 1 + 0.5 (10) = 6 (λ = 0).
    returns = losses.lambda_returns(
        jnp.array([1.0, 2.0, 4.0]),
        jnp.array([0.5, 0.5, 0.0]),
        jnp.array([10.0, 6.0, 99.0]),
        jnp.array([0.0, 0.5, 1.0]),
    )
    close(returns, [6.0, 4.5, 4.0])


def test_monte_carlo_returns_by_hand_with_two_episodes_in_a_row():
    returns = losses.monte_carlo_returns(
        jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0.5, 0.0, 0.5, 0.0])
    )
    close(returns, [2.0, 2.0, 8.0, 8.0])


@SEEDS
def test_lambda_returns_agree_with_a_loop_over_packed_and_truncated_episodes(seed):
    rng = np.random.default_rng(seed)
    shape = (4, 15)
    rewards, values = normal(seed, *shape), normal(seed + 1, *shape)
    discounts, traces = np.full(shape, 0.9, np.float32), rng.random(shape).astype(np.float32)
    ends = rng.random(shape) < 0.3
    ends[:, -1] = True
    traces[ends] = 0
    discounts[ends & (rng.random(shape) < 0.5)] = 0  # the other ends were cut off by length
    actual = losses.lambda_returns(rewards, discounts, values, traces)
    close(actual, returns_by_loop(rewards, discounts, values, traces))


def test_an_episode_does_not_reach_into_the_one_before_it():
    discounts, traces = jnp.array([0.9, 0.9, 0.9, 0.0]), jnp.array([1.0, 0.0, 1.0, 0.0])

    def first_episode(reward):
        rewards = jnp.array([1.0, 1.0, reward, reward])
        values = jnp.array([5.0, 5.0, reward, reward])
        return losses.lambda_returns(rewards, discounts, values, traces)[:2]

    close(first_episode(0.0), first_episode(1e6), 0)
    close(first_episode(0.0)[1], 1 + 0.9 * 5)  # the truncated end bootstraps


def test_returns_give_no_gradient():
    def total(rewards, values):
        half = jnp.full(3, 0.5)
        return losses.lambda_returns(rewards, half, values, half).sum()

    to_rewards, to_values = jax.grad(total, (0, 1))(jnp.ones(3), jnp.ones(3))
    close(to_rewards, np.zeros(3), 0)
    close(to_values, np.zeros(3), 0)


def test_returns_across_the_ends_of_windows_by_hand():
    """Behind a cut the Monte-Carlo return of what follows stands for the λ-return."""
    kinds = [losses.NEXT_UTTERANCE, losses.CUT, losses.SAME_UTTERANCE, losses.END]
    assert len(set(kinds)) == 4
    row = jnp.zeros((1, 4), jnp.int32)
    transitions = losses.Transitions(
        state=row,
        value_state=row,
        action=row,
        reward=jnp.array([[1.0, 2.0, 3.0, 4.0]]),
        next_state=row + 1,
        discount=jnp.array([[0.5, 0.5, 0.5, 0.0]]),
        weight=jnp.ones((1, 4)),
        boundary=jnp.array([kinds]),
        tail=jnp.array([[0.0, 10.0, 0.0, 0.0]]),
    )
    next_v, traces = jnp.array([[6.0, 8.0, 2.0, 9.0]]), jnp.array([[0.5, 0.25, 1.0, 0.0]])
    cut = 2 + 0.5 * (0.75 * 8 + 0.25 * 10)
    expected = [1 + 0.5 * (0.5 * 6 + 0.5 * cut), cut, 3 + 0.5 * 4, 4]
    close(losses.returns_of(transitions, next_v, traces), [expected])


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 64), (2, 2, 33)])
def test_accelerators_solve_the_same_recurrence_in_parallel(shape):
    rng = np.random.default_rng(len(shape))
    constants = rng.normal(size=shape).astype(np.float32)
    factors = np.where(rng.random(shape) < 0.2, 0, rng.random(shape)).astype(np.float32)
    constants[..., -1] = np.nan  # padding behind an end
    if shape[-1] > 1:
        factors[..., -2] = 0
    one_by_one = losses._recurrence_one_by_one(constants, factors)
    parallel = jax.jit(losses._recurrence_in_parallel)(constants, factors)
    np.testing.assert_allclose(parallel, one_by_one, rtol=1e-5, atol=1e-5)
    assert np.isfinite(parallel[..., :-1]).all()


def test_a_program_for_an_accelerator_has_no_loop_over_decisions():
    rows = jax.ShapeDtypeStruct((4, 512), jnp.float32)
    for platform, has_loop in (("cpu", True), ("tpu", False), ("cuda", False)):
        exported = jax.export.export(jax.jit(losses.lambda_returns), platforms=[platform])
        assert ("while" in exported(rows, rows, rows, rows).mlir_module()) == has_loop


@SEEDS
def test_lambda_returns_agree_with_rlax(seed):
    rlax = pytest.importorskip("rlax", reason="parity with rlax needs the extra 'parity'")
    rewards, values = normal(seed, 9), normal(seed + 1, 9)
    rng = np.random.default_rng(seed)
    discounts, traces = rng.random((2, 9)).astype(np.float32)
    # rlax bootstraps the last entry from its value in full; we say so with a trace of zero.
    traces[-1] = 0
    close(
        losses.lambda_returns(rewards, discounts, values, traces),
        rlax.lambda_returns(rewards, discounts, values, jnp.asarray(traces)),
    )


# --- the sum ------------------------------------------------------------------------------------


def ilql_arguments(**changes):
    """Three decisions, the last one padding."""
    return {
        "q": jnp.array([[1.0, 2.0, 50.0], [3.0, 2.0, 60.0]]),
        "target_q": jnp.array([[2.0, 5.0, 70.0], [4.0, 1.0, 80.0]]),
        "v": jnp.array([1.0, 3.0, 90.0]),
        "returns": jnp.array([2.0, 4.0, 0.0]),
        "weight": jnp.array([1.0, 1.0, 0.0]),
        "expectile": 0.8,
        "value_loss_weight": 2.0,
    } | changes


def test_ilql_loss_by_hand():
    loss, metrics = losses.ilql_loss(**ilql_arguments())
    # L_Q: (1 + 4 + 1 + 4) / 2 = 5. min Q̂ = 2, 1: u = 1, -2: L_V = (0.8 * 1 + 0.2 * 4) / 2 = 0.8.
    expected = {"q_loss": 5, "v_loss": 0.8, "q_mean": 1.5, "v_mean": 2, "loss": 2 * (5 + 0.8)}
    close(loss, expected["loss"])
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        close(metrics[name], value)


def test_ilql_loss_of_a_part_is_divided_by_the_total_of_the_whole():
    _, metrics = losses.ilql_loss(**ilql_arguments(total=jnp.float32(8)))
    close(metrics["q_loss"], 10 / 8)
    close(metrics["v_loss"], 1.6 / 8)


def test_ilql_loss_gradients_stop_at_targets_and_padding():
    names = ("q", "v", "target_q", "returns")

    def loss(*arrays):
        return losses.ilql_loss(**ilql_arguments(**dict(zip(names, arrays, strict=True))))[0]

    arrays = [ilql_arguments()[name] for name in names]
    to_q, to_v, to_target, to_returns = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arrays)
    close(to_target, np.zeros((2, 3)), 0)
    close(to_returns, np.zeros(3), 0)
    close(to_q[:, 2], [0, 0], 0)
    close(to_q[:, :2], [[-2, -4], [2, -4]])  # c / 2 decisions * 2 (q - return)
    close(to_v, [2 / 2 * -2 * 0.8 * 1, 2 / 2 * -2 * 0.2 * -2, 0])


# --- steering and means -------------------------------------------------------------------------


def test_steer_logits_by_hand():
    # π_β = 1/4, 3/4 and Q - V = 0.5, -0.5: one more of Q is worth e at strength 1.
    steered = losses.steer_logits(
        jnp.log(jnp.array([[2.0, 6.0]])), jnp.array([[1.5, 0.5]]), jnp.array([1.0]), 1.0
    )
    close(steered, [[np.log(0.25) + 0.5, np.log(0.75) - 0.5]])


@SEEDS
def test_steering_multiplies_probabilities_by_exponentiated_advantage(seed):
    logits, q, v = normal(seed, 3, 5), normal(seed + 1, 3, 5), normal(seed + 2, 3)
    weights = np.exp(numpy_log_softmax(logits)) * np.exp(2 * (q - v[:, None]))
    actual = jax.nn.softmax(losses.steer_logits(logits, q, v, 2.0))
    close(actual, weights / weights.sum(-1, keepdims=True))


def test_weighted_mean_ignores_padding_and_survives_nothing_at_all():
    values = jnp.array([1.0, 3.0, 100.0])
    close(losses.weighted_mean(values, jnp.array([1.0, 1.0, 0.0])), 2.0)
    close(losses.weighted_mean(values, jnp.zeros(3)), 0.0, 0)
    close(losses.weighted_mean(values, jnp.full(3, 0.125)), 104 / 3)
    assert losses.weighted_mean(values, jnp.full(3, 1e-9)) == pytest.approx(104e-9 / 1e-8)


@pytest.mark.parametrize("junk", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("name", ["expectile", "td", "cql", "policy", "dpo", "ilql", "chunked"])
def test_masked_slots_may_hold_anything(name, junk):
    rng = np.random.default_rng(0)
    slots = rng.normal(size=(4, 2, 3, 5)).astype(np.float32)
    weight = jnp.array([[1.0, 1, 0], [0, 1, 0]])
    actions = jnp.array([[0, 1, 2], [3, 4, 0]])
    matrix = jnp.asarray(rng.normal(size=(1, 7, 5)), jnp.float32)

    def loss(slots, matrix):
        a, b, c, d = slots[..., 0]
        if name == "ilql":
            q, target_q = jnp.stack([a, b]), jnp.stack([c, d])
            given = {"q": q, "target_q": target_q, "v": a, "returns": d, "expectile": 0.7}
            return losses.ilql_loss(**given, weight=weight)[0]
        if name == "chunked":
            return chunked_cross_entropy(slots[:1], matrix, None, actions, weight, 100)
        each = {
            "expectile": lambda: losses.expectile_loss(a, b, 0.7),
            "td": lambda: losses.td_loss(jnp.stack([a, b]), b, c, d).sum(axis=0),
            "cql": lambda: losses.cql_loss(slots[0], actions),
            "policy": lambda: losses.policy_loss(slots[0], actions),
            "dpo": lambda: losses.dpo_loss(a, b, c, d, 0.1),
        }[name]()
        return losses.weighted_mean(each, weight)

    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    plain = compute(jnp.asarray(slots), matrix)
    masked = compute(jnp.where(weight[None, :, :, None] == 0, junk, slots), matrix)
    jax.tree.map(np.testing.assert_array_equal, masked, plain)
    assert np.isfinite(plain[0]) and np.any(plain[1][0])


def test_losses_that_count_tell_of_nan():
    bad = jnp.array([jnp.nan, 1.0])
    assert np.isnan(losses.weighted_mean(bad, jnp.ones(2)))
    assert np.isnan(jax.grad(lambda x: losses.expectile_loss(x, bad, 0.7).sum())(jnp.ones(2))[0])


def test_masked_returns_and_ends_let_nothing_through():
    given = jnp.array([[1.0, 2.0, jnp.nan, jnp.nan]])
    discounts = jnp.array([[0.5, 0.0, 0.5, 0.5]])
    returns = losses.monte_carlo_returns(given, discounts)
    np.testing.assert_allclose(returns[0, :2], [2.0, 2.0])
    ones = jnp.ones_like(given)
    unread = jnp.full_like(given, jnp.nan)
    np.testing.assert_allclose(
        losses.lambda_returns(ones, discounts, unread, ones)[0, :2], [1.5, 1]
    )


def test_what_is_not_allowed_stays_so_however_it_is_valued():
    logits, q = jnp.array([0.0, -jnp.inf, -jnp.inf]), jnp.array([1.0, jnp.inf, -jnp.inf])
    for strength in (0.0, 1.0, 1e30):
        steered = losses.steer_logits(logits, q, jnp.array(0.5), strength)
        assert np.isfinite(steered[0]) and np.isneginf(steered[1:]).all()


def test_weighted_mean_of_a_part_is_divided_by_the_total_of_the_whole():
    values, weight = jnp.array([1.0, 3.0, 100.0]), jnp.array([1.0, 2.0, 0.0])
    close(losses.weighted_mean(values, weight, jnp.float32(14.0)), 0.5)


def test_twin_heads_may_stand_before_the_axes_that_have_to_agree():
    ones = jnp.ones((3, 2))
    close(losses.td_loss(jnp.zeros((5, 3, 2)), ones, ones, ones), np.full((5, 3, 2), 4.0))
    for shape in ((3, 5), (2,), (2, 3)):
        with pytest.raises(ValueError, match=r"must end in \(3, 2\)"):
            losses.td_loss(jnp.zeros(shape), ones, ones, ones)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.expectile_loss(jnp.zeros(2), jnp.zeros(3), 0.8),
        lambda: losses.td_loss(jnp.zeros(2), jnp.zeros(2), jnp.zeros(3), jnp.zeros(2)),
        lambda: losses.td_loss(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2), jnp.zeros(2)),
        lambda: losses.cql_loss(jnp.zeros((2, 5)), jnp.zeros(3, int)),
        lambda: losses.lambda_returns(jnp.zeros(2), jnp.zeros(2), jnp.zeros(1), jnp.zeros(2)),
        lambda: losses.monte_carlo_returns(jnp.zeros(2), jnp.zeros(1)),
        lambda: losses.steer_logits(jnp.zeros((2, 5)), jnp.zeros((2, 4)), jnp.zeros(2), 1.0),
        lambda: losses.weighted_mean(jnp.zeros(2), jnp.zeros((2, 1))),
        lambda: losses.ilql_loss(**ilql_arguments(returns=jnp.zeros(2))),
        lambda: losses.ilql_loss(**ilql_arguments(q=jnp.zeros((2, 4)))),
        lambda: losses.transitions_from_mask(
            jnp.zeros((2, 5), int), jnp.zeros((2, 4), bool), jnp.zeros((2, 5))
        ),
    ],
)
def test_shapes_that_do_not_agree_are_shown(call):
    with pytest.raises(ValueError, match=r"\(\d"):
        call()


# --- transitions --------------------------------------------------------------------------------


def episode(seed, time, terminal=True):
    rng = np.random.default_rng(seed)
    is_action = rng.random(time) < 0.5
    is_action[0], is_action[rng.integers(1, time)] = False, True
    rewards = np.where(is_action, rng.normal(size=time), 0).astype(np.float32)
    return Trajectory(rng.integers(9, size=time).astype(np.int32), is_action, rewards, terminal)


def test_dense_arrays_of_another_kind_are_told():
    mask = np.array([[False, True, True]])
    with pytest.raises(
        ValueError, match=r"tokens must be integers \[B, T\], .*, got float32 \[1, 3\]"
    ):
        losses.transitions_from_mask(jnp.ones((1, 3)), mask, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"tokens must be integers \[B, T\], .* \[3\]"):
        losses.transitions_from_mask(jnp.ones(3, int), mask[0], jnp.ones(3))
    assert losses.monte_carlo_returns(jnp.ones((2, 0)), jnp.ones((2, 0))).shape == (2, 0)


def test_transitions_from_mask_by_hand():
    # human 7, agent 1 2, human 8, agent 3
    result = transitions_from_mask(
        jnp.array([[7, 1, 2, 8, 3]]),
        jnp.array([[False, True, True, False, True]]),
        jnp.array([[0.0, 0.0, 0.5, 0.0, 1.0]]),
        discount=0.9,
    )
    assert result.state.tolist() == [[0, 1, 3, 0]]
    assert result.is_real.tolist() == [[True, True, True, False]]
    assert result.action.tolist() == [[1, 2, 3, 0]]
    assert result.next_state.tolist() == [[1, 3, 4, 0]]
    assert result.boundary.tolist() == [[SAME_UTTERANCE, NEXT_UTTERANCE, END, END]]
    close(result.reward, [[0, 0.5, 1, 0]])
    close(result.discount, [[0.9, 0.9, 0, 0]])
    close(result.weight, [[1, 1, 1, 0]], 0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("terminal", [True, False])
def test_transitions_from_mask_agree_with_those_of_a_trajectory(seed, terminal):
    trajectory = episode(seed, time=12, terminal=terminal)
    count, padding = int(trajectory.is_action.sum()), 4

    def pad(array):
        return jnp.pad(jnp.asarray(array), (0, padding))[None]

    dense = transitions_from_mask(
        pad(trajectory.tokens),
        pad(trajectory.is_action),
        pad(trajectory.rewards),
        0.9,
        jnp.array([terminal]),
        lengths=jnp.array([12]),
    )
    for name, expected in token_transitions(trajectory, 0.9)._asdict().items():
        np.testing.assert_array_equal(getattr(dense, name)[0, :count], expected, err_msg=name)
    assert not dense.weight[0, count:].any()


def test_transitions_beyond_the_width_are_left_out_and_the_rest_stays_right():
    tokens, is_action = jnp.arange(6)[None], jnp.array([[False, True, False, True, False, True]])
    result = transitions_from_mask(tokens, is_action, jnp.zeros((1, 6)), 0.9, max_actions=2)
    assert result.state.tolist() == [[0, 2]]
    assert result.next_state.tolist() == [[2, 4]]
    assert result.boundary.tolist() == [[NEXT_UTTERANCE, END]]
    close(result.discount, [[0.9, 0.9]])


def test_transitions_of_rows_that_differ_in_length_decisions_and_end():
    # human 7, agent 1 2, human 8, agent 3, human 5 | human 6, agent 4, cut off; then padding
    result = transitions_from_mask(
        jnp.array([[7, 1, 2, 8, 3, 5], [6, 4, 9, 9, 9, 9]]),
        jnp.array([[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]], bool),
        jnp.array([[0.0, 1.0, 2.0, 0.0, 3.0, 0.0], [0.0, 4.0, 0.0, 0.0, 0.0, 0.0]]),
        terminal=jnp.array([True, False]),
        max_actions=4,
        lengths=jnp.array([6, 2]),
    )
    assert result.state.tolist() == [[0, 1, 3, 0], [0, 0, 0, 0]]
    assert result.value_state.tolist() == result.state.tolist()
    assert result.action.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert result.next_state.tolist() == [[1, 3, 5, 0], [1, 0, 0, 0]]
    assert result.boundary.tolist() == [
        [SAME_UTTERANCE, NEXT_UTTERANCE, END, END],
        [END, END, END, END],
    ]
    close(result.reward, [[1, 2, 3, 0], [4, 0, 0, 0]], 0)
    close(result.discount, [[0.99, 0.99, 0, 0], [0.99, 0, 0, 0]])
    close(result.weight, [[1, 1, 1, 0], [1, 0, 0, 0]], 0)
    assert result.weight.dtype == jnp.float32


def test_full_rows_do_not_reach_into_each_other():
    tokens, is_action = jnp.arange(6).reshape(2, 3), jnp.array([[False, True, True]] * 2)
    result = transitions_from_mask(tokens, is_action, jnp.zeros((2, 3)), 0.5)
    assert result.next_state.tolist() == [[1, 2], [1, 2]]
    assert result.boundary.tolist() == [[SAME_UTTERANCE, END]] * 2


def test_transitions_are_as_many_as_a_row_may_hold_unless_told_otherwise():
    tokens, is_action = jnp.arange(3)[None], jnp.array([[False, True, True]])
    result = transitions_from_mask(tokens, is_action, jnp.array([[0.0, 0.5, 1.0]]))
    assert result.state.tolist() == [[0, 1]]
    assert result.boundary.tolist() == [[SAME_UTTERANCE, END]]
    close(result.discount, [[0.99, 0]])


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError, match="is_action must be bool, got int32"):
        zeros = jnp.zeros((1, 3), jnp.int32)
        losses.transitions_from_mask(zeros, zeros, jnp.zeros((1, 3)))


def test_importing_losses_pulls_in_jax_and_nothing_of_the_rest():
    program = (
        "import sys; from ilql_jax import losses; "
        "print([m for m in ('jax', 'flax', 'optax', 'orbax', 'grain', 'transformers', "
        "'tokenizers', 'imagination') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "['jax']"
