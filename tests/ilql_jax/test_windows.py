"""Windows: every decision is learned from once, and its return is that of the whole episode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilql_jax import Trajectory, TrajectoryError, cut_into_windows, make_batches, packing_for
from ilql_jax.batching import token_transitions, utterance_transitions
from ilql_jax.losses import CUT, END, SAME_UTTERANCE, returns_of

LEVELS = {"token": token_transitions, "utterance": utterance_transitions}


def episode(turns=20, seed=0, **fields):
    """Observations of 1 to 3 tokens, utterances of 1 to 4, a reward on any agent token."""
    rng = np.random.default_rng(seed)
    is_action = np.concatenate(
        [np.repeat([False, True], [rng.integers(1, 4), rng.integers(1, 5)]) for _ in range(turns)]
        + [[False, False]]
    )
    tokens = np.arange(len(is_action), dtype=np.int32)
    rewards = np.where(is_action, rng.normal(-1, 1, len(tokens)), 0).astype(np.float32)
    return Trajectory(tokens, is_action, rewards, name="walk", **fields)


compiled_returns_of = jax.jit(returns_of)


def by_hand(whole, level, discount):
    """Monte-Carlo return of every decision: token -> return, a plain loop over the episode."""
    decisions = []  # (first token, reward)
    for at in np.flatnonzero(whole.is_action):
        if level == "utterance" and whole.is_action[at - 1]:
            decisions[-1][1] += whole.rewards[at]
        else:
            decisions.append([at, float(whole.rewards[at])])
    returns, following = {}, 0.0
    for at, reward in reversed(decisions):
        following = reward + discount * following
        returns[at] = following
    return returns


def returns_in(window, level, discount, traces, next_values=None):
    """First token of each decision in the episode -> (λ-return, credited), of one window."""
    transitions = LEVELS[level](window, discount)
    count = len(transitions.state)
    values = np.zeros(count) if next_values is None else next_values
    returns = compiled_returns_of(transitions, jnp.float32(values), jnp.float32(traces))
    at = window.start + transitions.value_state + 1
    return dict(zip(at, zip(np.asarray(returns), transitions.weight > 0, strict=True), strict=True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "length", [12, 17, *(pytest.param(each, marks=pytest.mark.slow) for each in (30, 50)), 1000]
)
@pytest.mark.parametrize("context", [0, 5, None])
def test_monte_carlo_returns_are_those_of_the_whole_episode(level, length, context):
    whole = episode()
    expected = by_hand(whole, level, 0.9)
    learned = {}
    for window in cut_into_windows(whole, length, context):
        assert len(window.validate().tokens) <= max(length, 0)
        boundary = LEVELS[level](window, 0.9).boundary
        assert boundary[-1] == (END if window.terminal else CUT)
        for at, (value, credited) in returns_in(window, level, 0.9, boundary != END).items():
            assert value == pytest.approx(expected[at], abs=1e-4)
            if credited:
                assert at not in learned
                learned[at] = value
    assert learned.keys() == expected.keys()


def test_every_token_is_cloned_in_one_window_only_after_its_context():
    whole = episode()
    windows = cut_into_windows(whole, 20, 8)
    cloned = np.zeros(len(whole.tokens))
    for window in windows:
        np.testing.assert_array_equal(window.clone_weight > 0, window.credited)
        cloned[window.start : window.start + len(window.tokens)] += window.clone_weight
        own = np.flatnonzero(window.credited)[0]
        assert 0 < own <= 8 and not window.is_action[0]
        assert window.terminal == (window is windows[-1])
        # V of the next state is read in front of the next decision.
        end = window.start + len(window.tokens)
        assert window.terminal or (whole.is_action[end] and not whole.is_action[end - 1])
    np.testing.assert_array_equal(cloned, whole.is_action)
    assert len(windows) > 3


@pytest.mark.parametrize("level", LEVELS)
def test_lambda_returns_mix_the_value_at_the_cut_with_the_tail(level):
    whole = episode()
    window = cut_into_windows(whole, 20)[0]
    transitions = LEVELS[level](window, 0.9)
    rng = np.random.default_rng(1)
    values = rng.normal(size=len(transitions.state))
    traces = np.where(transitions.boundary == SAME_UTTERANCE, 0.7, 0.4)
    tail = by_hand(whole, level, 0.9)[window.start + len(window.tokens)]
    following = tail
    expected = []
    for reward, value, trace in zip(
        transitions.reward[::-1], values[::-1], traces[::-1], strict=True
    ):
        following = reward + 0.9 * ((1 - trace) * value + trace * following)
        expected.append(following)
    returns = [value for value, _ in returns_in(window, level, 0.9, traces, values).values()]
    np.testing.assert_allclose(returns, expected[::-1], rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_baseline_is_taken_from_every_return_and_value(level):
    for whole in (episode(), episode(terminal=False)):
        for window in cut_into_windows(whole, 20):
            plain, shifted = (LEVELS[level](window, 0.9, baseline) for baseline in (0.0, -7.0))
            values = np.random.default_rng(1).normal(size=len(plain.state)).astype(np.float32)
            traces = np.where(plain.boundary == END, 0.0, 0.6).astype(np.float32)
            expected = np.asarray(compiled_returns_of(plain, values, traces)) + 7
            assert not shifted.tail[plain.boundary != CUT].any()
            np.testing.assert_allclose(
                compiled_returns_of(shifted, values + 7, traces), expected, rtol=1e-4, atol=1e-4
            )


def test_windows_of_an_episode_that_was_cut_off_bootstrap_where_they_end():
    whole = episode(terminal=False)
    for window in cut_into_windows(whole, 20):
        transitions = utterance_transitions(window.validate(), 0.9)
        assert not window.terminal and transitions.boundary[-1] == END
        assert transitions.discount[-1] == np.float32(0.9) and not transitions.tail.any()
        assert transitions.next_state[-1] == len(window.tokens) - 1
    assert window.start + len(window.tokens) == len(whole.tokens)


def test_packed_windows_keep_their_tails():
    windows = [w for seed in range(6) for w in cut_into_windows(episode(seed=seed), 24)]
    batches = make_batches(windows, packing_for(windows, 2, 60, 0.9, 0.8), seed=0)
    expected = {
        level: sorted(float(v) for w in windows for v in LEVELS[level](w, discount).tail if v)
        for level, discount in (("token", 0.9), ("utterance", 0.8))
    }
    for level, tails in expected.items():
        seen = set()
        for _ in range(40):
            packed = getattr(next(batches), f"by_{level}")
            assert not packed.tail[packed.boundary != CUT].any()
            seen |= set(packed.tail[packed.tail != 0].tolist())
        assert sorted(seen) == pytest.approx(sorted(set(tails)))


def test_a_window_looks_at_the_return_of_its_episode():
    whole = episode()
    assert {w.total_reward for w in cut_into_windows(whole, 20)} == {whole.total_reward}


def test_an_episodes_own_masks_hold_in_its_windows():
    whole = episode()
    credit = whole.is_action & (np.arange(len(whole.tokens)) > 40)
    clone = np.where(whole.is_action, 0.25, 0).astype(np.float32)
    clone[:30] = 0
    windows = cut_into_windows(dataclasses.replace(whole, clone=clone, credit=credit), 20, 8)
    assert sum(w.clone_weight.sum() for w in windows) == pytest.approx(clone.sum())
    assert sum(w.credited.sum() for w in windows) == credit.sum()
    assert windows[0].start > 0  # nothing was to be learned before


def test_an_episode_that_fits_stays_as_it_is():
    whole = episode()
    assert cut_into_windows(whole, len(whole.tokens)) == [whole]


def test_what_cannot_be_cut_is_told():
    whole = episode()
    with pytest.raises(TrajectoryError, match=r"walk: turn \d+ .* takes \d+ tokens .* holds 6"):
        cut_into_windows(whole, 6)
    with pytest.raises(ValueError, match=r"context is 20, but must lie in \[0, 20\)"):
        cut_into_windows(whole, 20, 20)
    with pytest.raises(TrajectoryError, match="is a window of walk; cut the episode"):
        cut_into_windows(cut_into_windows(whole, 20)[0], 10)
