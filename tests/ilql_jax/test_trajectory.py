"""A trajectory says what is cloned and what is credited, and refuses what makes no sense."""

import dataclasses

import numpy as np
import pytest

from ilql_jax import Trajectory, TrajectoryError
from ilql_jax.trajectory import validate_all

IS_ACTION = np.array([False, True, True, False, True, True])
TALK = Trajectory(
    tokens=np.arange(6, dtype=np.int32),
    is_action=IS_ACTION,
    rewards=np.float32([0, 1, 0, 0, 0, 2]),
    name="dialogue 7",
)
CREDIT_LAST = np.array([False, False, False, False, True, True])


def test_by_default_every_agent_token_is_cloned_and_credited():
    assert TALK.validate() is TALK
    np.testing.assert_array_equal(TALK.clone_weight, np.float32(IS_ACTION))
    assert TALK.clone_weight.dtype == np.float32
    np.testing.assert_array_equal(TALK.credited, IS_ACTION)
    assert TALK.total_reward == 3


def test_a_token_can_be_cloned_but_not_credited_and_the_other_way_round():
    clone = np.float32([0, 1, 0.5, 0, 0, 0])
    talk = dataclasses.replace(TALK, clone=clone, credit=CREDIT_LAST).validate()
    np.testing.assert_array_equal(talk.clone_weight, clone)
    np.testing.assert_array_equal(talk.credited, CREDIT_LAST)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clone": np.float32([0, 1])}, r"clone must be a float vector of 6 weights.*\(2,\)"),
        ({"clone": np.ones(6, bool)}, "clone must be a float vector.*bool"),
        ({"clone": np.float32([0, -1, 1, 0, 1, 1])}, r"clone\[1\] is -1.0; .*at least 0"),
        ({"clone": np.float32([0, 1, np.nan, 0, 1, 1])}, r"clone\[2\] is nan"),
        ({"clone": np.float32([0, 1, 1, 2, 1, 1])}, r"clone\[3\] is 2.0, but token 3 is not the"),
        ({"credit": np.float32(IS_ACTION)}, "credit must be a bool vector.*float32"),
        ({"credit": np.ones(5, bool)}, r"credit must be a bool vector of 6 entries.*\(5,\)"),
        ({"credit": np.ones(6, bool)}, r"credit\[0\] is True, but token 0 is not the agent's"),
        (
            {"clone": np.zeros(6, np.float32), "credit": np.zeros(6, bool)},
            "clone and credit leave no token",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_named_with_field_and_value(fields, message):
    with pytest.raises(TrajectoryError, match=f"dialogue 7: {message}"):
        dataclasses.replace(TALK, **fields).validate()


def test_what_is_no_array_or_no_trajectory_is_told():
    with pytest.raises(
        TrajectoryError, match="dialogue 7: tokens is of type list, but must be a Nu"
    ):
        dataclasses.replace(TALK, tokens=[1] * 6).validate()
    with pytest.raises(TrajectoryError, match=r"trajectories\[1\] is of type dict, but must be"):
        validate_all([TALK, {"tokens": [1]}])


def window(**fields):
    first = {name: getattr(TALK, name)[:4] for name in ("tokens", "is_action", "rewards")}
    return Trajectory(**{**first, "terminal": False, "name": "window", "episode": TALK, **fields})


def test_a_windows_return_is_that_of_its_episode():
    assert window().validate().total_reward == 3
    assert window().later == slice(4, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rewards": np.float32([0, 5, 0, 0])}, "rewards differ from those of dialogue 7"),
        ({"start": 1}, "tokens differ from those of dialogue 7 from token 1"),
        ({"terminal": True}, "terminal is true, but dialogue 7 goes on"),
        (
            {n: getattr(TALK, n)[:5] for n in ("tokens", "is_action", "rewards")},
            r"ends inside an utterance \(at token 5 of dialogue 7\)",
        ),
    ],
)
def test_a_window_that_does_not_fit_its_episode_is_refused(fields, message):
    with pytest.raises(TrajectoryError, match=f"window: .*{message}"):
        window(**fields).validate()
