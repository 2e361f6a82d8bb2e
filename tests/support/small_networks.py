"""Parameters, outputs and dialogues for tests of small networks.

Outputs come from one program each: operation by operation, each would be compiled on its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ilql_jax import Trajectory
from ilql_jax.models import abstract_params, with_params


def random_params(config, scale, seed=0):
    """Random everywhere: fresh value heads are zero, fresh norms one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        is_norm = path[-1].key == "scale"
        return jnp.asarray(is_norm + rng.normal(0, scale, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


@functools.partial(jax.jit, static_argnames="config")
def outputs(config, params, row):
    """Logits, Q and V of every token of rows: tokens, segment ids, positions."""
    model = with_params(config, params)
    hidden, of_values = model.hidden_states(*row)
    return model.trunk.logits(hidden), model.q(of_values), model.v(of_values)


@functools.partial(jax.jit, static_argnames="config")
def logits(config, params, row):
    """Logits of every token of rows."""
    trunk = with_params(config, params).trunk
    return trunk.logits(trunk(*row))


@functools.partial(jax.jit, static_argnames=("config", "method"))
def loss_of(config, method, params, target, batch, progress, normalizers):
    """Loss and metrics of a method on a batch."""
    model, target = (with_params(config, each) for each in (params, target))
    return method.loss(
        model, target, batch, method.config, progress=progress, normalizers=normalizers
    )


def random_dialogues(vocab_size, count=12):
    """Dialogues of 10 to 19 tokens; the agent says two of five, each with a reward."""
    rng = np.random.default_rng(0)
    found = []
    for length in rng.integers(10, 20, count):
        is_action = np.arange(length) % 5 >= 3
        rewards = np.where(is_action, rng.normal(size=length), 0).astype(np.float32)
        tokens = rng.integers(4, vocab_size, length).astype(np.int32)
        found.append(Trajectory(tokens, is_action, rewards))
    return found
