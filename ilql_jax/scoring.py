"""Log-probabilities and values of given trajectories under a trained network.

For evaluation on held-out data: perplexity, and how well V and Q foretell the outcome.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ilql_jax import sharding
from ilql_jax.batching import Batch, PackingConfig, one_per_row, packing_for
from ilql_jax.methods.loss_terms import gather, log_prob_of_tokens, q_of_utterances
from ilql_jax.methods.method import MethodConfig
from ilql_jax.models import ModelConfig, Params, with_params
from ilql_jax.preferences import PreferencePair
from ilql_jax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Scores:
    """Log-probabilities and values of one trajectory.

    Attributes:
        log_prob: float32 [A], log π_β of each agent token.
        v: float32 [U], V before each agent utterance.
        q: float32 [U], Q of each agent utterance, min over the twin heads.
    """

    log_prob: Float[np.ndarray, " tokens"]
    v: Float[np.ndarray, " utterances"]
    q: Float[np.ndarray, " utterances"]


def score(
    trajectories: Sequence[Trajectory],
    config: ModelConfig,
    params: Params,
    packing: PackingConfig,
    mesh: Mesh | None = None,
) -> list[Scores]:
    """Scores every trajectory.

    Args:
        trajectories: Those to score; each has to fit in a row.
        config: Shape of the network.
        params: Its parameters.
        packing: Only the shapes are read; the trajectories get a row each.
        mesh: Devices that the parameters are laid out on, if there are several; rows are split over
            them.

    Raises:
        MeshError: The rows of the packing cannot be split evenly.
    """
    if mesh is not None:
        sharding.check_rows(packing.batch_rows, mesh)
    results: list[Scores] = []
    for batch in one_per_row(trajectories, packing):
        placed = batch if mesh is None else sharding.place_batch(batch, mesh)
        log_prob, v, q = sharding.on_host(_score_batch(config, mesh, params, placed))
        for row in range(packing.batch_rows):
            tokens = batch.by_token.is_real[row]
            utterances = batch.by_utterance.is_real[row]
            if tokens.any():
                results.append(
                    Scores(log_prob[row, tokens], v[row, utterances], q[row, utterances])
                )
    return results


def pair_log_probs(
    pairs: Sequence[PreferencePair],
    config: ModelConfig,
    params: Params,
    batch_rows: int,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "pairs 2"]:
    """log π of the better and of the worse utterance of each pair, summed over its tokens."""
    halves = [half for pair in pairs for half in (pair.chosen, pair.rejected)]
    packing = packing_for(halves, batch_rows, max(len(half.tokens) for half in halves))
    sums = [scores.log_prob.sum() for scores in score(halves, config, params, packing, mesh)]
    return np.asarray(sums, np.float32).reshape(len(pairs), 2)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _score_batch(
    config: ModelConfig, mesh: Mesh | None, params: Params, batch: Batch
) -> tuple[Float[Array, "batch a"], Float[Array, "batch u"], Float[Array, "batch u"]]:
    with sharding.tracing_for(mesh):
        model = with_params(config, params)
        hidden, of_values = model.hidden_states(batch.tokens, batch.segment_ids, batch.positions)
        log_prob = log_prob_of_tokens(model, hidden, batch, MethodConfig.action_chunk)
        v = model.state_value(gather(of_values, batch.by_utterance.value_state))
        if config.utterance_q == "last":
            last = batch.by_utterance
            states = (gather(x, last.state) for x in (hidden, of_values))
            q = model.q_at_actions(*states, last.action)
        else:
            q = q_of_utterances(model.q, config.utterance_q, of_values, batch)
        return log_prob, v, jnp.min(q, axis=0)
