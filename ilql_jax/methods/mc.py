"""Monte-Carlo values: Q regressed on the returns that followed, V its mean.

ILQL without bootstrap and without maximum: the value of the behaviour in the data, beside the
cloned policy. One step of improvement, by re-ranking or steering.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ilql_jax.batching import Batch
from ilql_jax.losses import END
from ilql_jax.methods.ilql import (
    ValueConfig,
    decisions_of,
    network_for,
    value_losses,
    values_by_token,
)
from ilql_jax.methods.loss_terms import Normalizers
from ilql_jax.methods.method import Method, Metrics
from ilql_jax.models import ActorCritic


def loss(
    model: ActorCritic,
    target: ActorCritic,
    batch: Batch,
    config: ValueConfig,
    *,
    progress: Float[Array, ""],
    normalizers: Normalizers,
) -> tuple[Float[Array, ""], Metrics]:
    """The losses of ILQL with λ = 1 inside a dialogue and τ = 0.5."""
    del progress
    lambdas = (decisions_of(batch, config).boundary != END).astype(jnp.float32)
    return value_losses(model, target, batch, config, lambdas, 0.5, normalizers)


METHOD = Method(
    name="mc",
    title="MC",
    config=ValueConfig(),
    loss=loss,
    learns_values=True,
    polyak_averaged=("q",),
    network=network_for,
    values_by_token=values_by_token,
    # The policy alone, too: values of the behaviour may choose worse than it.
    decodings=("sampled at 0.4, best of 8", "sampled at 0.4", "sampled at 0.6, best of 16"),
    color="#009e73",
    marker="^",
)
