"""Filtered behaviour cloning: BC on the dialogues of highest return."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ilql_jax.methods import bc
from ilql_jax.methods.method import DialogueConfig, Method
from ilql_jax.settings import setting
from ilql_jax.trajectory import Trajectory, TrajectoryError


@dataclasses.dataclass(frozen=True)
class FBCConfig(DialogueConfig):
    """Settings of filtered BC."""

    fraction: float = setting("Share of the dialogues that is kept.", 0.25, above=0, most=1)


def select_best(trajectories: Sequence[Trajectory], config: FBCConfig) -> list[Trajectory]:
    """The configured share of highest undiscounted return, in the order given.

    Ties at the threshold are broken by order, so that exactly that share is kept.

    Raises:
        TrajectoryError: The share holds no dialogue.
    """
    keep = int(len(trajectories) * config.fraction)
    if keep == 0:
        raise TrajectoryError(
            f"filtered BC: fraction {config.fraction} of {len(trajectories)} dialogues keeps none; "
            "raise it."
        )
    returns = np.array([trajectory.total_reward for trajectory in trajectories])
    best = np.sort(np.argsort(-returns, kind="stable")[:keep])
    return [trajectories[i] for i in best]


METHOD = Method(
    name="fbc",
    title="filtered BC",
    config=FBCConfig(),
    loss=bc.loss,
    select=select_best,
    color="#d98b00",
    marker="s",
)
