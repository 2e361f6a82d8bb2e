"""Parameters and dialogues for tests of small networks."""

import jax
import jax.numpy as jnp
import numpy as np

from ilql_jax import Trajectory
from ilql_jax.models import abstract_params


def random_params(config, scale, seed=0):
    """Random everywhere: fresh value heads are zero, fresh norms one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        is_norm = path[-1].key == "scale"
        return jnp.asarray(is_norm + rng.normal(0, scale, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


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
