"""The losses of ILQL as pure functions on arrays: no model, no config object, no state.

This is the file that research code imports (`from ilql_jax import losses` needs jax and nothing
else). Every function reads like its formula; gradients stop where the method says so. Where each is
used is in `methods/`, a file a method.

Slots that are masked out may hold anything, NaN and infinities too: where the weight is 0, so are
value and gradient, as long as losses are averaged by `weighted_mean`. That takes a gradient rule of
their own (`jax.custom_vjp`), so `jax.grad` and `jax.hessian` work, and `jax.jvp` alone does not.

Sources: ILQL is Snell et al. 2022 (arXiv 2206.11871), the expectile is IQL, Kostrikov et al. 2021
(arXiv 2110.06169), the CQL term is Kumar et al. 2020 (arXiv 2006.04779), AWAC weights are Nair et
al. 2020 (arXiv 2006.09359), DPO is Rafailov et al. 2023 (arXiv 2305.18290).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped


class Transitions(NamedTuple):
    """Decisions of the agent, and where their states lie in the row of tokens.

    All arrays are [B, A]. A decision is a token or, for values over utterances, a whole utterance
    (then `state` and `action` are those of its last token, and `value_state` is its start).

    Attributes:
        state: int32, index of the hidden state that predicts the action.
        value_state: int32, index of the hidden state at which V of the decision is read: before
            anything of it was written. Equal to `state` for tokens.
        action: int32, the token written.
        reward: float32, received on it.
        next_state: int32, index of the hidden state of the next decision (of the same dialogue).
        discount: float32, γ, or 0 at a terminal end.
        weight: float32, that of the dialogue (1 in most data) where values learn from the
            decision; 0 where they do not, though returns pass through it, and where the slot is
            padding.
        boundary: int32, what lies between this decision and the next: `SAME_UTTERANCE`,
            `NEXT_UTTERANCE` (the human spoke), `END` (of the dialogue) or `CUT` (the dialogue goes
            on, but not in this row).
        tail: float32, at `CUT` the Monte-Carlo return of the decisions that follow; elsewhere 0.
    """

    state: Int[Array, "batch decisions"]
    value_state: Int[Array, "batch decisions"]
    action: Int[Array, "batch decisions"]
    reward: Float[Array, "batch decisions"]
    next_state: Int[Array, "batch decisions"]
    discount: Float[Array, "batch decisions"]
    weight: Float[Array, "batch decisions"]
    boundary: Int[Array, "batch decisions"]
    tail: Float[Array, "batch decisions"]

    @property
    def is_real(self) -> Bool[Array, "batch decisions"]:
        """True where the slot holds a decision: its next state lies behind its state."""
        return self.next_state > self.state


SAME_UTTERANCE, NEXT_UTTERANCE, END, CUT = 0, 1, 2, 3


def expectile_loss(
    predictions: Float[Array, "..."], targets: Float[Array, "..."], expectile: float
) -> Float[Array, "..."]:
    """`|τ − 1(target < prediction)| (target − prediction)²`, elementwise (IQL, eq. 5).

    For τ = 0.5 half the squared error; towards τ = 1 the minimiser moves from the mean of the
    targets to their maximum. No gradient flows into the targets.

    Args:
        predictions: V(h), any shape.
        targets: Same shape; min over the target Q heads at the action taken.
        expectile: τ in (0, 1).

    Raises:
        ValueError: Shapes differ, or the expectile lies outside (0, 1).
    """
    _same_shape(predictions=predictions, targets=targets)
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must lie strictly between 0 and 1, got {expectile}.")

    def loss(predictions, targets):
        difference = lax.stop_gradient(targets) - predictions
        return jnp.abs(expectile - (difference < 0)) * jnp.square(difference)

    return _by_slot(loss, predictions, targets)


def td_loss(
    q: Float[Array, "..."],
    reward: Float[Array, "..."],
    discount: Float[Array, "..."],
    next_v: Float[Array, "..."],
) -> Float[Array, "..."]:
    """`(reward + discount · V(h') − Q(h, a))²`, elementwise; no gradient into V (ILQL, eq. 3).

    Args:
        q: Q of the action taken; may have leading axes (twin heads) that the others lack.
        reward: r.
        discount: γ, 0 after the last action.
        next_v: V at the next decision.

    Raises:
        ValueError: Shapes do not agree.
    """
    _same_shape(reward=reward, discount=discount, next_v=next_v)
    _trailing_shape(q, reward)

    def loss(q, reward, discount, next_v):
        return jnp.square(reward + discount * lax.stop_gradient(next_v) - q)

    return _by_slot(loss, q, reward, discount, next_v)


def cql_loss(
    q_logits: Float[Array, "... vocab"], actions: Int[Array, "..."]
) -> Float[Array, "..."]:
    """`logsumexp_a' Q(h, a') − Q(h, a)`, elementwise over decisions (CQL(H); ILQL, eq. 5).

    Args:
        q_logits: Q of every action; may have leading axes (twin heads) that `actions` lacks.
        actions: Integer index of the action taken.

    Raises:
        ValueError: Shapes do not agree. TypeError: actions are not integers.
    """
    return _cross_entropy(q_logits, actions)


def take_action(
    values: Float[Array, "... vocab"], actions: Int[Array, "..."]
) -> Float[Array, "..."]:
    """Picks the taken action's entry of a vocabulary-wide array, by a gather."""
    if not jnp.issubdtype(actions.dtype, jnp.integer):
        raise TypeError(f"actions must be integers, got dtype {actions.dtype}.")
    _trailing_shape(values[..., 0], actions)
    actions = jnp.broadcast_to(actions, values.shape[:-1])
    return jnp.take_along_axis(values, actions[..., None], axis=-1)[..., 0]


def policy_loss(
    policy_logits: Float[Array, "... vocab"], actions: Int[Array, "..."]
) -> Float[Array, "..."]:
    """`−log π_β(a | h)`, elementwise: the cross-entropy of the token written."""
    return _cross_entropy(policy_logits, actions)


def _cross_entropy(
    logits: Float[Array, "... vocab"], actions: Int[Array, "..."]
) -> Float[Array, "..."]:
    def loss(logits, actions):
        return jax.nn.logsumexp(logits, axis=-1) - take_action(logits, actions)

    return _by_slot(loss, logits, actions)


def awac_weights(
    advantage: Float[Array, "..."], beta: float, max_weight: float
) -> Float[Array, "..."]:
    """`min(exp(beta · advantage), max_weight)`, without gradient (AWAC, eq. 9).

    Args:
        advantage: min_k Q̂_k(h, a) − V(h).
        beta: Inverse temperature; 0 gives weight one everywhere (behaviour cloning).
        max_weight: Cap.
    """
    # The cap is applied to the exponent too, so that exp never overflows.
    exponent = jnp.minimum(beta * lax.stop_gradient(advantage), jnp.log(max_weight))
    return jnp.exp(exponent)


def implied_reward(
    log_prob: Float[Array, "..."], reference_log_prob: Float[Array, "..."], kl_weight: float
) -> Float[Array, "..."]:
    """`β (log π(y | x) − log π_ref(y | x))`, elementwise over utterances (DPO, sec. 4).

    The reward for which π would be the best policy, up to a term of x that all utterances share.
    No gradient flows into the reference.

    Args:
        log_prob: Log-probability of whole utterances under the policy, any shape.
        reference_log_prob: Same shape; under the frozen reference policy.
        kl_weight: β > 0, weight of the KL to the reference in what the policy is best at: the
            larger, the less it has to move to prefer one utterance to another.

    Raises:
        ValueError: Shapes differ, or the weight is not above 0.
    """
    _same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob)
    if not kl_weight > 0:
        raise ValueError(f"kl_weight must be above 0, got {kl_weight}.")
    return kl_weight * (log_prob - lax.stop_gradient(reference_log_prob))


def dpo_loss(
    chosen: Float[Array, "..."],
    rejected: Float[Array, "..."],
    reference_chosen: Float[Array, "..."],
    reference_rejected: Float[Array, "..."],
    kl_weight: float,
) -> Float[Array, "..."]:
    """`−log σ(r̂(x, y_w) − r̂(x, y_l))` with r̂ the implied reward, elementwise (DPO, eq. 7).

    log 2 where the policy is the reference; no gradient flows into the reference.

    Args:
        chosen: log π of the better utterance (y_w), summed over its tokens; any shape.
        rejected: log π of the worse utterance (y_l) in the same state.
        reference_chosen: log π_ref of the better.
        reference_rejected: log π_ref of the worse.
        kl_weight: β of `implied_reward`.

    Raises:
        ValueError: Shapes differ, or the weight is not above 0.
    """
    _same_shape(chosen=chosen, rejected=rejected)

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        better = implied_reward(chosen, reference_chosen, kl_weight)
        worse = implied_reward(rejected, reference_rejected, kl_weight)
        return jax.nn.softplus(worse - better)

    return _by_slot(loss, chosen, rejected, reference_chosen, reference_rejected)


def monte_carlo_returns(
    rewards: Float[Array, "*batch time"], discounts: Float[Array, "*batch time"]
) -> Float[Array, "*batch time"]:
    """Discounted sums of the rewards to come: `G_t = r_t + discount_t · G_{t+1}`.

    A discount of zero ends an episode, so several may stand in a row. Computed along the last
    axis; the return after the last entry is zero.
    """
    _same_shape(rewards=rewards, discounts=discounts)
    ones = jnp.ones_like(rewards)
    return lambda_returns(rewards, discounts, jnp.zeros_like(rewards), ones)


def lambda_returns(
    rewards: Float[Array, "*batch time"],
    discounts: Float[Array, "*batch time"],
    next_values: Float[Array, "*batch time"],
    traces: Float[Array, "*batch time"],
) -> Float[Array, "*batch time"]:
    """Mixtures of n-step returns: `G_t = r_t + γ_t ((1 − λ_t) V(h_{t+1}) + λ_t G_{t+1})`.

    λ = 0 everywhere is one-step TD, λ = 1 Monte Carlo. λ is given per decision, since rewards
    should travel freely inside an utterance and be bootstrapped where the human spoke. No gradient
    flows through the returns. Computed along the last axis.

    Args:
        rewards: r_t.
        discounts: γ_t, 0 at a terminal end.
        next_values: V at the next decision.
        traces: λ_t in [0, 1]; 0 where the following entry belongs to another episode.
    """
    _same_shape(rewards=rewards, discounts=discounts, next_values=next_values, traces=traces)
    next_values = lax.stop_gradient(next_values)
    # As G_t = r_t + γ_t (1 − λ_t) V(h_{t+1}) + γ_t λ_t G_{t+1}, an affine recurrence.
    constants = rewards + _times(discounts, _times(1 - traces, next_values))
    factors = _times(discounts, traces)
    # A loop of one kernel for each decision would keep an accelerator waiting.
    returns = lax.platform_dependent(
        constants, factors, cpu=_recurrence_one_by_one, default=_recurrence_in_parallel
    )
    return lax.stop_gradient(returns)


def _recurrence_one_by_one(constants: Array, factors: Array) -> Array:
    """Solves `G_t = constant_t + factor_t · G_{t+1}` along the last axis, from its end."""

    def backwards(following, now):
        constant, factor = now
        result = constant + _times(factor, following)
        return result, result

    time_first = tuple(jnp.moveaxis(x, -1, 0) for x in (constants, factors))
    nothing = jnp.zeros(constants.shape[:-1], constants.dtype)
    _, returns = lax.scan(backwards, nothing, time_first, reverse=True)
    return jnp.moveaxis(returns, 0, -1)


def _recurrence_in_parallel(constants: Array, factors: Array) -> Array:
    """The same in a number of steps that grows with the logarithm of the length."""

    def joined(later, earlier):
        constant = earlier[0] + _times(earlier[1], later[0])
        return constant, _times(earlier[1], later[1])

    axis = constants.ndim - 1
    return lax.associative_scan(joined, (constants, factors), reverse=True, axis=axis)[0]


def returns_of(
    transitions: Transitions,
    next_values: Float[Array, "batch decisions"],
    traces: Float[Array, "batch decisions"],
) -> Float[Array, "batch decisions"]:
    """`lambda_returns` of packed decisions, across the ends of windows too.

    Behind a `CUT` the λ-return to come is not in the row; its Monte-Carlo return, `tail`, stands
    for it: `G_t = r_t + γ_t ((1 − λ_t) V(h_{t+1}) + λ_t tail_t)`. For λ = 1 that is exact.

    Args:
        transitions: Decisions in the order of the row.
        next_values: V at `next_state`.
        traces: λ of each decision, 0 at `END`.
    """
    is_cut = transitions.boundary == CUT
    mixed = _times(1 - traces, next_values) + _times(traces, transitions.tail)
    return lambda_returns(
        transitions.reward,
        transitions.discount,
        jnp.where(is_cut, mixed, next_values),
        jnp.where(is_cut, 0.0, traces),
    )


def ilql_loss(
    *,
    q: Float[Array, " heads *batch"],
    target_q: Float[Array, " heads *batch"],
    v: Float[Array, "*batch"],
    returns: Float[Array, "*batch"],
    weight: Float[Array, "*batch"],
    expectile: float,
    value_loss_weight: float = 1.0,
    total: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`c · (L_Q + L_V)`: ILQL's losses of the values, averaged over decisions (ILQL, sec. 4).

    L_Q is summed over the twin heads. ILQL's other two terms, `cql_loss` and `policy_loss`, are as
    wide as the vocabulary: training adds both by `chunked_cross_entropy`, a chunk of decisions at a
    time.

    Args:
        q: Q of the action taken, one row a head.
        target_q: The target network's Q of it; no gradient reaches it.
        v: V at the decision's start.
        returns: Regression target of Q: r + γ V(h'), a λ-return or a Monte-Carlo return.
        weight: 0 for padding.
        expectile: τ of V's loss.
        value_loss_weight: c, weight of the value losses against the policy's.
        total: Divisor of the sums over decisions; the sum of `weight` where not given. For a batch
            that is processed in parts: the sum over all of them.

    Returns:
        The loss, and metrics: its parts `q_loss` and `v_loss`, and the means of Q and V.

    Raises:
        ValueError: Shapes do not agree, or the expectile lies outside (0, 1).
    """
    _same_shape(v=v, returns=returns, weight=weight)
    _trailing_shape(q, v)
    lowest = jnp.min(lax.stop_gradient(target_q), axis=0)
    zeros = jnp.zeros_like(returns)
    q_loss = td_loss(q, lax.stop_gradient(returns), zeros, zeros).sum(axis=0)
    metrics = {
        "q_loss": weighted_mean(q_loss, weight, total),
        "v_loss": weighted_mean(expectile_loss(v, lowest, expectile), weight, total),
        "q_mean": weighted_mean(lowest, weight, total),
        "v_mean": weighted_mean(v, weight, total),
    }
    loss = value_loss_weight * (metrics["q_loss"] + metrics["v_loss"])
    return loss, {"loss": loss, **metrics}


def steer_logits(
    policy_logits: Float[Array, "... vocab"],
    q: Float[Array, "... vocab"],
    v: Float[Array, "..."],
    beta: float | Float[Array, ""],
) -> Float[Array, "... vocab"]:
    """`log π_β(a | h) + β (Q(h, a) − V(h))`: logits of the steered policy (ILQL, eq. 6).

    Args:
        policy_logits: Logits of the cloned policy; normalised here.
        q: min over the twin heads.
        v: V(h). It shifts all logits alike; kept so that the exponent stays small.
        beta: Steering strength.
    """
    _same_shape(policy_logits=policy_logits, q=q)
    log_policy = jax.nn.log_softmax(policy_logits, axis=-1)
    # Whatever Q is of what is not allowed, it stays so: −inf + inf would be NaN.
    steered = log_policy + beta * (q - v[..., None])
    return jnp.where(jnp.isneginf(log_policy), -jnp.inf, steered)


def weighted_mean(
    values: Float[Array, "..."],
    weight: Float[Array, "..."],
    total: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """`Σ w x / Σ w`, and 0 (not NaN) where all weights are zero; or `Σ w x / total`.

    Where a weight is 0, the value may be anything, NaN too.
    """
    _same_shape(values=values, weight=weight)
    total = jnp.sum(weight) if total is None else total
    return jnp.sum(_times(weight, values)) / jnp.maximum(total, 1e-8)


def transitions_from_mask(
    tokens: Int[Array, "batch time"],
    is_action: Bool[Array, "batch time"],
    rewards: Float[Array, "batch time"],
    discount: float = 0.99,
    terminal: Bool[Array, " batch"] | None = None,
    max_actions: int | None = None,
    lengths: Int[Array, " batch"] | None = None,
) -> Transitions:
    """Dense arrays, one episode a row, to transitions, one per agent token.

    For users with data of their own; jit-compatible. The state of an agent token is the token in
    front of it; the next state is the state in front of the *next agent token*: whatever the
    environment says in between is skipped over.

    Args:
        tokens: int [B, T].
        is_action: bool [B, T], true where the agent wrote the token; false at column 0.
        rewards: float [B, T], received on writing that token.
        discount: γ per agent token.
        terminal: bool [B], false where the episode was cut off by length; all true by default.
        max_actions: A, the width of the result (static); T − 1 by default. Agent tokens beyond it
            are left out.
        lengths: int [B], tokens in each row before its padding; T by default. A row that was cut
            off bootstraps from its last token.

    Returns:
        Transitions [B, A], padded with weight 0.

    Raises:
        ValueError: Shapes differ, or tokens are no integers [B, T]. TypeError: is_action is not
            bool.
    """
    _same_shape(tokens=tokens, is_action=is_action, rewards=rewards)
    if is_action.dtype != bool:
        raise TypeError(f"is_action must be bool, got {is_action.dtype}.")
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens must be integers [B, T], one episode a row, got {tokens.dtype} "
            f"{list(tokens.shape)}."
        )
    batch, time = tokens.shape
    lengths = jnp.full(batch, time) if lengths is None else lengths
    terminal = jnp.ones(batch, bool) if terminal is None else terminal
    # A stable sort of the inverted mask brings the agent's columns to the front, in order.
    columns = jnp.argsort(~is_action[:, 1:], stable=True) + 1
    count = is_action[:, 1:].sum(axis=1, keepdims=True)
    slot = jnp.arange(columns.shape[1])[None]
    is_real, is_last = slot < count, slot == count - 1

    def pick(values):
        return jnp.take_along_axis(values, columns, axis=1)

    state = jnp.where(is_real, columns - 1, 0)
    following = jnp.roll(state, -1, axis=1)
    next_state = jnp.where(is_last, lengths[:, None] - 1, following)
    ends = is_last & terminal[:, None]
    boundary = jnp.where(
        is_last,
        END,
        jnp.where(following == state + 1, SAME_UTTERANCE, NEXT_UTTERANCE),
    )
    transitions = Transitions(
        state=state,
        value_state=state,
        action=jnp.where(is_real, pick(tokens), 0),
        reward=jnp.where(is_real, pick(rewards), 0.0),
        next_state=jnp.where(is_real, next_state, 0),
        discount=jnp.where(is_real & ~ends, discount, 0.0),
        weight=is_real.astype(jnp.float32),
        boundary=jnp.where(is_real, boundary, END),
        tail=jnp.zeros(columns.shape, rewards.dtype),
    )
    kept = jax.tree.map(lambda x: x[:, :max_actions], transitions)
    # Where decisions were left out, no return may pass on from the last one that is kept.
    return kept._replace(boundary=kept.boundary.at[:, -1].set(END))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_slot(
    loss: Callable[..., Float[Array, "..."]], *arrays: Shaped[Array, "..."]
) -> Float[Array, "..."]:
    """`loss(*arrays)`, elementwise; where no gradient comes in, none goes out, not NaN either.

    Args:
        loss: Elementwise over slots, the axes of its result.
        arrays: Values of the slots, with an axis more behind, or without leading axes.
    """
    return loss(*arrays)


def _by_slot_forward(loss, *arrays):
    value, backward = jax.vjp(loss, *arrays)
    return value, (backward, [jnp.ndim(each) for each in arrays])


def _by_slot_backward(loss, saved, gradient):
    backward, dimensions = saved

    def of_used(result, rank):
        if result.dtype == jax.dtypes.float0:  # of whole numbers
            return result
        used = gradient != 0
        used = used.any(axis=tuple(range(max(0, used.ndim - rank))))
        used = used.reshape(*used.shape, *[1] * (rank - used.ndim))
        return jnp.where(used, result, 0)

    return tuple(map(of_used, backward(gradient), dimensions))


_by_slot.defvjp(_by_slot_forward, _by_slot_backward)


def _times(factor: Float[Array, "..."], values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product, which is 0 where the factor is, whatever the value."""
    return factor * jnp.where(factor == 0, 0, values)


def _same_shape(**arrays: Array) -> None:
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal: {listed}.")


def _trailing_shape(array: Array, expected: Array) -> None:
    shape, tail = jnp.shape(array), jnp.shape(expected)
    if shape[len(shape) - len(tail) :] != tail:
        raise ValueError(f"shape {shape} must end in {tail}.")
