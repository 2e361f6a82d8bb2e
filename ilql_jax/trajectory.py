"""`Trajectory`: the contract that every source of data fills.

Whoever has tokens, a mask of who wrote them, and rewards can train; nothing else about the data
is known below this line. `batching.py` turns trajectories into packed batches of transitions.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from ilql_jax.errors import UserError


class TrajectoryError(UserError, ValueError):
    """A trajectory that cannot be trained on. The message names it, the field and the value."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One dialogue (or any token episode) as the learner sees it.

    Attributes:
        tokens: int32 [T], everything that was said, in order.
        is_action: bool [T], true where the agent wrote the token.
        rewards: float32 [T], received on writing that token; zero wherever the agent did not.
        terminal: False where the episode was cut off by length: values bootstrap past its end.
        name: How error messages call it.
    """

    tokens: Int[np.ndarray, "time"]
    is_action: Bool[np.ndarray, "time"]
    rewards: Float[np.ndarray, "time"]
    terminal: bool = True
    name: str = "trajectory"

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())

    def validate(self) -> Trajectory:
        """Returns itself, or raises `TrajectoryError` if the contract is broken."""
        shape = self.tokens.shape
        if len(shape) != 1 or self.is_action.shape != shape or self.rewards.shape != shape:
            self._fail(
                f"tokens, is_action and rewards must be vectors of one length, got shapes "
                f"{shape}, {self.is_action.shape}, {self.rewards.shape}"
            )
        if not np.issubdtype(self.tokens.dtype, np.integer) or self.is_action.dtype != bool:
            self._fail(
                f"tokens must be integers and is_action bool, got {self.tokens.dtype} and "
                f"{self.is_action.dtype}"
            )
        if not self.is_action.any():
            self._fail("no token was written by the agent, so there is nothing to learn; drop it")
        if self.is_action[0]:
            self._fail(
                "the first token is the agent's, but a decision needs a state before it; "
                "put a start token in front"
            )
        if not np.isfinite(self.rewards).all():
            at = int(np.flatnonzero(~np.isfinite(self.rewards))[0])
            self._fail(f"rewards[{at}] is {self.rewards[at]}; rewards must be finite")
        if self.rewards[~self.is_action].any():
            at = int(np.flatnonzero((self.rewards != 0) & ~self.is_action)[0])
            self._fail(
                f"rewards[{at}] is {self.rewards[at]}, but token {at} is not the agent's; "
                "put the reward on the agent token before it"
            )
        return self

    def _fail(self, problem: str) -> None:
        raise TrajectoryError(f"{self.name}: {problem}.")
