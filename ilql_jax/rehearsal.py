"""`rehearse`: one training step of a method, traced but not computed, on a few made-up dialogues.

It tells within seconds what would else come out after hours of imagining dialogues.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ilql_jax.batching import make_batches, packing_for
from ilql_jax.methods import Method, MethodError
from ilql_jax.models import ModelConfig
from ilql_jax.preferences import PreferencePair, make_preference_batches, packing_for_pairs
from ilql_jax.train_step import TrainConfig, abstract_frozen, abstract_state, make_train_step
from ilql_jax.trajectory import Trajectory

_DIALOGUES, _ROWS = 8, 2


def rehearse(method: Method, model_config: ModelConfig, config: TrainConfig) -> None:
    """Selects from made-up dialogues and traces a step on them; nothing is compiled.

    Args:
        method: Raises errors of its own here; one read by `load_method` raises `MethodError`s.
        model_config: Shape of the network, as the method trains it (`Method.network_for`).
        config: Optimizer.

    Raises:
        MethodError: By the method's `select`, `loss` or `steer`; the message names file and line.
    """
    config = dataclasses.replace(config, gradient_accumulation=1)
    if method.learns_from == "pairs":
        pairs = _pairs()
        packing = packing_for_pairs(pairs, _ROWS, 16)
        log_prob = np.full((len(pairs), 2), -1.0, np.float32)
        batch = next(make_preference_batches(pairs, log_prob, packing, 0))
    else:
        made_up = _dialogues()
        # A selection may rightly find nothing among these few.
        selected = method.select_trajectories(made_up) or made_up
        packing = packing_for(selected, batch_rows=_ROWS, row_length=16)
        batch = next(make_batches(selected, packing, 0))
    step = make_train_step(model_config, method, config)
    state = abstract_state(model_config, method, config)
    frozen = abstract_frozen(model_config, config)
    jax.eval_shape(step, state, batch, *([] if frozen is None else [frozen]))
    if method.values_every_token:
        scores = jax.ShapeDtypeStruct((_ROWS, model_config.decoder.vocab_size), jnp.float32)
        v, strength = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((_ROWS,), ()))
        steered = jax.eval_shape(method.steer, scores, scores, v, strength)
        if getattr(steered, "shape", None) != scores.shape:
            raise MethodError(
                f"{method.name}: steer gives {steered} for scores {scores}, but must give scores "
                "of that shape."
            )


def _dialogues() -> list[Trajectory]:
    """Dialogues of two utterances with returns from 0 to 1."""
    return [
        _dialogue(number, number / (_DIALOGUES - 1), utterances=2) for number in range(_DIALOGUES)
    ]


def _pairs() -> list[PreferencePair]:
    """Pairs that say something different after the same words."""
    return [
        PreferencePair(_dialogue(1, 1.0, utterances=1), _dialogue(0, 0.0, utterances=1))
        for _ in range(_DIALOGUES // 2)
    ]


def _dialogue(number: int, reward: float, utterances: int) -> Trajectory:
    tokens = np.int32([0, 1, 0, 1, number % 2, 1])
    is_action = np.array([False, utterances == 2, utterances == 2, False, True, True])
    rewards = np.zeros(len(tokens), np.float32)
    rewards[-1] = reward
    return Trajectory(tokens, is_action, rewards, name=f"made-up dialogue {number}")
