"""Choice of a decoding, and of the policy alone where values do harm."""

import numpy as np
import pytest

from experiments.evaluation.decoding_choice import choose, tried
from ilql_jax.decoding_config import DecodingConfig

LOW, HIGH, ALONE = map(
    DecodingConfig.parse, ("sampled at 0.4, best of 8", "sampled at 0.6, best of 16", "greedy")
)
HUMANS = np.random.default_rng(0).uniform(0, 0.5, 40)


def chosen(means: dict[str, float | None], choices=(LOW, HIGH)) -> tuple[str, list[str]]:
    """The decoding that is chosen where each has these rewards beside the humans' own."""
    asked = []

    def judge(decoding: DecodingConfig) -> list[float | None]:
        asked.append(str(decoding))
        more = means[str(decoding)]
        return [None if more is None else human + more for human in HUMANS]

    choice = choose(choices, judge)
    assert asked == list(choice.validation)
    assert len(asked) == tried(choices)
    for decoding, mean in choice.validation.items():
        more = means[decoding]
        assert mean == (None if more is None else pytest.approx(HUMANS.mean() + more))
    return str(choice.decoding), asked


def test_the_best_is_taken_and_its_policy_alone_is_tried():
    means = {str(LOW): 0.2, str(HIGH): 0.3, "sampled at 0.6": 0.1}
    assert chosen(means) == (str(HIGH), [str(LOW), str(HIGH), "sampled at 0.6"])
    means = {str(LOW): 0.3, str(HIGH): 0.2, "sampled at 0.4": 0.1}
    assert chosen(means)[0] == str(LOW)


def test_values_that_do_harm_are_not_asked():
    means = {str(LOW): 0.2, str(HIGH): 0.3, "sampled at 0.6": 0.4}
    assert chosen(means)[0] == "sampled at 0.6"


def test_the_policy_alone_has_to_be_better_by_more_than_chance():
    noise = np.random.default_rng(1).normal(0.01, 0.3, len(HUMANS))

    def judge(decoding):
        return list(HUMANS + (0 if decoding.reads_values else noise))

    choice = choose((LOW, HIGH), judge)
    assert choice.validation["sampled at 0.4"] > choice.validation[str(LOW)]
    assert choice.decoding == LOW


def test_a_policy_among_the_choices_is_one_of_them():
    means = {str(LOW): 0.2, "greedy": 0.2001}
    assert chosen(means, (LOW, ALONE)) == ("greedy", [str(LOW), "greedy"])


def test_what_was_never_rated_is_the_worst():
    means = {str(LOW): None, str(HIGH): 0.1, "sampled at 0.6": None}
    assert chosen(means)[0] == str(HIGH)


def test_a_single_one_is_taken_unseen():
    assert chosen({}, (HIGH,)) == (str(HIGH), [])
