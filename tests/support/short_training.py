"""A training of twelve steps on dialogues of mostly the human's words, with each method."""

import dataclasses
import functools

import numpy as np

from ilql_jax import Trajectory, packing_for
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.train_step import TrainConfig, make_train_step, make_train_steps

VOCAB = 101  # a number that nothing else here has
MODEL = ModelConfig(DecoderConfig(VOCAB, 8, 1, 2, 16, 32, initializer_range=0.08), 8)
LAST = dataclasses.replace(MODEL, utterance_q="last")
ILQL = METHODS["ilql"].configured(
    cql_weight=0.1,
    value_loss_weight=1.0,
    utterance_trace=0.5,
    trace_fade=(0.0, 0.0),
    awac_temperature=1.0,
)
MC = METHODS["mc"].configured(cql_weight=0.1, value_loss_weight=1.0, awac_temperature=1.0)
BC, FBC = METHODS["bc"], METHODS["fbc"]
SHORT = TrainConfig(
    steps=12,
    learning_rate=1e-2,
    optimizer="adamw",
    warmup_steps=2,
    polyak_rate=0.25,
    checkpoint_every=4,
    log_every=1,
)


def dataset(count=40, seed=0):
    """Mostly the human's words: one or two utterances of the agent in dialogues of 10 to 30."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        length = int(rng.integers(10, 31))
        is_action = np.zeros(length, bool)
        is_action[3:6] = is_action[length - 3 :] = True
        tokens = rng.integers(1, VOCAB, length).astype(np.int32)
        tokens[is_action] = 1 + np.arange(is_action.sum()) % 5
        rewards = np.zeros(length, np.float32)
        rewards[-1] = rng.normal() + 1
        result.append(Trajectory(tokens, is_action, rewards, name=f"dialogue {number}"))
    return result


DATA = dataset()
PACKING = packing_for(DATA, batch_rows=2, row_length=32)


@functools.cache
def compiled_step(*arguments):
    """The step of a network, a method and its schedule, compiled once in a process."""
    return make_train_step(*arguments)


@functools.cache
def compiled_steps(*arguments):
    """As `compiled_step`, for several steps at one call."""
    return make_train_steps(*arguments)
