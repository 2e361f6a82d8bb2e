"""ILQL stitches: on a small problem with a known optimum it finds what nobody in the data did.

Four stages, three rooms. At each stage the agent names the next room and ends its utterance; the
environment says where it now is. Each step has its reward, so 81 courses of action can be listed
and the optimum is exact. The data are walks at random, the optimal one taken out: each of its
steps is there, the whole is not.
"""

import dataclasses
import itertools

import numpy as np
import pytest

from ilql_jax import Trajectory, packing_for
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.policy import Policy
from ilql_jax.scoring import score
from ilql_jax.train import train
from ilql_jax.train_step import TrainConfig

STAGES, ROOMS = 4, 3
ROOM, GO, END, VOCAB = 0, 3, 6, 7  # tokens: 0-2 "you are in room", 3-5 "go to room", 6 end
# REWARD[stage][from][to]. Greed for the next reward leads astray: see the test of it.
REWARD = np.array(
    [
        [[0.25, 0.0, 0.0], [0.25, 0.5, 0.0], [0.5, 0.5, 0.25]],
        [[0.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.25]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    ]
)
COURSES = list(itertools.product(range(ROOMS), repeat=STAGES))
MODEL = ModelConfig(DecoderConfig(VOCAB, 32, 1, 2, 64, 24, initializer_range=0.08), 32)
LAST = dataclasses.replace(MODEL, utterance_q="last")
ILQL = METHODS["ilql"].configured(
    expectile=0.9, value_loss_weight=1.0, trace_fade=(0.0, 0.0), awac_temperature=0.0
)


def course_return(course):
    rooms = (0, *course)
    return sum(REWARD[t, rooms[t], rooms[t + 1]] for t in range(STAGES))


def trajectory(course):
    rooms = (0, *course)
    tokens, rewards = [], []
    for stage in range(STAGES):
        tokens += [ROOM + rooms[stage], GO + rooms[stage + 1], END]
        rewards += [0.0, 0.0, REWARD[stage, rooms[stage], rooms[stage + 1]]]
    is_action = np.tile([False, True, True], STAGES)
    return Trajectory(np.int32(tokens), is_action, np.float32(rewards))


RETURNS = np.array([course_return(course) for course in COURSES])
OPTIMUM = RETURNS.max()


def behaviour():
    """500 random walks, the optimal one not among them."""
    rng = np.random.default_rng(0)
    others = np.flatnonzero(RETURNS < OPTIMUM)
    return [trajectory(COURSES[i]) for i in rng.choice(others, 500)]


def learn(tmp_path, steps, method, model=MODEL):
    data = behaviour()
    return train(
        data,
        model,
        method,
        TrainConfig(
            steps, 3e-3, optimizer="adamw", warmup_steps=20, polyak_rate=0.1, checkpoint_every=steps
        ),
        packing_for(data, batch_rows=8, row_length=48, token_discount=1.0, utterance_discount=1.0),
        seed=0,
        folder=tmp_path / method.name,
    )


def play(params, decoding, seed=0, model=MODEL):
    """The return of the course that a policy takes."""
    policy = Policy(
        model,
        params,
        DecodingConfig.parse(decoding),
        stop_token=END,
        allowed=np.arange(VOCAB) >= GO,
        max_utterance=2,
        batch_size=1,
    )
    context, course = [ROOM], []
    for stage in range(STAGES):
        (answer,) = policy.respond([np.int32(context)], [1000 * seed + stage])
        room = int(answer.tokens[0]) - GO
        assert 0 <= room < ROOMS, f"stage {stage}: wrote {answer.tokens}"
        course.append(room)
        context += [*answer.tokens, ROOM + room]
    return course_return(course)


def mean_return(params):
    """Exact mean return of the cloned policy, sampled: every course with its probability."""
    every = [trajectory(course) for course in COURSES]
    packing = packing_for(every, batch_rows=len(every), row_length=3 * STAGES)
    probability = np.exp([s.log_prob.sum() for s in score(every, MODEL, params, packing)])
    assert probability.sum() > 0.9
    return float(probability @ RETURNS / probability.sum())


def test_the_problem_needs_stitching():
    greedy, room = [], 0
    for stage in range(STAGES):
        room = int(np.argmax(REWARD[stage, room]))
        greedy.append(room)
    best_in_data = max(t.total_reward for t in behaviour())
    assert course_return(greedy) < 0.5 * OPTIMUM
    assert best_in_data <= OPTIMUM - 0.25
    assert np.sum(np.isclose(RETURNS, OPTIMUM)) == 1


@pytest.mark.slow  # what it is compared with: not what is promised
def test_cloning_stays_at_the_behaviour_of_its_data(tmp_path):
    params = learn(tmp_path, 100, METHODS["bc"])
    behaviour_mean = np.mean([t.total_reward for t in behaviour()])
    assert mean_return(params) == pytest.approx(behaviour_mean, abs=0.15)
    assert play(params, "greedy") < OPTIMUM - 0.2


def test_ilql_over_tokens_steered_finds_the_optimum(tmp_path):
    method = ILQL.configured(credit="token", cql_weight=0.01, token_trace=1.0)
    params = learn(tmp_path, 300, method, LAST)
    for strength in (10, 50):
        found = play(params, f"greedy, steered by {strength}", model=LAST)
        assert found == pytest.approx(OPTIMUM)


@pytest.mark.slow  # over utterances the maze and its page need stitching, too
@pytest.mark.parametrize("model", [MODEL, LAST], ids=["sum", "last"])
def test_ilql_over_utterances_reranked_finds_the_optimum(tmp_path, model):
    params = learn(tmp_path, 300, ILQL, model)
    returns = [play(params, "sampled, best of 32", seed, model) for seed in range(3)]
    assert returns == pytest.approx([OPTIMUM] * 3)
