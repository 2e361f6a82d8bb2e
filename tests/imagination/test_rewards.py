"""Rewards of imagined dialogues: outcomes and ratings."""

import dataclasses

import pytest
from imagination_client import TASK, FakeClient, imagine, secret_profile, words

from imagination.engine import (
    rewards,
)


def test_judge_votes_are_resamples_with_mean_and_spread():
    def answer(request):
        if request.step == "judge/rating":
            return request.schema(reason="Because.", rating=(1.0, 0.5, 0.0)[request.resample])
        if request.step == "engine/rating":
            return request.schema(reason="Because.", rating=0.75)
        return None

    client = FakeClient(answer)
    config = {"way": "script", "rewards": "judge", "also_rewards": ("human", "outcome")}
    (dialogue,) = imagine(client, dialogues=1, **config).dialogues
    found = dialogue.source["rewards"]
    assert dialogue.reward == found["judge"] == 0.5
    assert found["judge_votes"] == [1.0, 0.5, 0.0]
    assert found["judge_spread"] == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["human"] == 0.75 and found["outcome"] in (0.0, 1.0)


def test_the_human_rates_knowing_its_persona_and_the_judge_without():
    client = FakeClient(secret_profile)
    imagine(client, dialogues=1, also_rewards=("judge",), judge_votes=2)
    by_step = {r.step: words(r) for r in client.requests}
    assert "Why you were there: SECRET situation." in by_step["engine/rating"]
    assert "SECRET profile." in by_step["engine/rating"] and "SECRET" not in by_step["judge/rating"]
    assert client.steps()["judge/rating"] == 2


def test_raters_know_the_middle_of_the_scale_and_its_unit():
    task = dataclasses.replace(
        TASK, reward_range=(0, 2), success_reward=1.0, reward_unit="dollars that are given"
    )
    for each, expected in (
        (TASK, "0.5 = some of it was met, something that matters was not; 0.8 or more = a success"),
        (task, "1 or more = a success (The customer leaves with a bicycle that suits them)"),
    ):
        client = FakeClient()
        settings = {"way": "script", "also_rewards": ("judge",), "judge_votes": 1}
        imagine(client, each, dialogues=1, **settings)
        by_step = {r.step: words(r) for r in client.requests}
        for step in ("engine/rating", "judge/rating"):
            assert expected in by_step[step]
            assert ("The scale counts dollars" in by_step[step]) == (each is task)
        assert ("(dollars that are given)" in by_step["engine/script"]) == (each is task)


def test_ratings_off_the_scale_are_not_of_the_schema():
    task = dataclasses.replace(TASK, reward_range=(1, 5), success_reward=4)
    client = FakeClient()
    imagine(client, task, dialogues=1)
    (schema,) = {r.schema for r in client.requests if r.step == "engine/rating"}
    assert schema(reason="", rating=5).rating == 5
    for rating in (0.9, 6, float("nan")):
        with pytest.raises(ValueError, match="from 1 to 5"):
            schema(reason="", rating=rating)


def test_mean_pairwise_difference_by_hand():
    assert rewards.mean_pairwise_difference([0, 1, 4]) == pytest.approx((1 + 4 + 3) / 3)
    assert rewards.mean_pairwise_difference([3]) == 0
