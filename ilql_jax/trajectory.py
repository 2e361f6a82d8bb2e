"""`Trajectory`: the contract that every source of data fills.

Whoever has tokens, a mask of who wrote them, and rewards can train; nothing else about the data
is known below this line. `batching.py` turns trajectories into packed batches of transitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from ilql_jax.errors import UserError


class TrajectoryError(UserError, ValueError):
    """A trajectory that cannot be trained on. The message names it, the field and the value."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One dialogue (or any token episode) as the learner sees it, or a window of a long one.

    Every agent token is a decision: it has a state, may bear a reward, and returns pass through
    it. Two masks say what is learned from it. `clone` without `credit`: the policy imitates it,
    the values do not learn from it (e.g. words put in the agent's mouth). `credit` without
    `clone`: the values learn what it is worth, the policy does not imitate it (e.g. a bad move).

    Attributes:
        tokens: int32 [T], observations and actions, in order.
        is_action: bool [T], true where the agent wrote the token.
        rewards: float32 [T], received on writing that token; zero wherever the agent did not.
        terminal: False where the episode was cut off by length: values bootstrap past its end.
        name: Used in error messages.
        clone: float32 [T], weight of the token's cloning loss, zero wherever the agent did not
            write; None = 1 at every agent token.
        credit: bool [T], true where the values learn from the decision, false wherever the agent
            did not write; None = every agent token. An utterance is credited if one of its tokens
            is.
        weight: Factor of all that is learned from it, above 0: with weight 2 it counts as if it
            were there twice. For data that was drawn otherwise than it should be learned from
            (importance sampling).
        episode: The whole episode that this is a window of (see `windows.py`); None = this is a
            whole episode.
        start: Index of the window's first token in the episode.
    """

    tokens: Int[np.ndarray, " time"]
    is_action: Bool[np.ndarray, " time"]
    rewards: Float[np.ndarray, " time"]
    terminal: bool = True
    name: str = "trajectory"
    clone: Float[np.ndarray, " time"] | None = None
    credit: Bool[np.ndarray, " time"] | None = None
    weight: float = 1.0
    episode: Trajectory | None = None
    start: int = 0

    @property
    def total_reward(self) -> float:
        """The undiscounted return of the whole episode, for a window too."""
        return float((self.episode or self).rewards.sum())

    @property
    def clone_weight(self) -> Float[np.ndarray, " time"]:
        """Weight of each token's cloning loss, float32, but for that of the dialogue."""
        return np.asarray(self.is_action if self.clone is None else self.clone, np.float32)

    @property
    def credited(self) -> Bool[np.ndarray, " time"]:
        """True where the values learn from the decision."""
        return self.is_action if self.credit is None else self.credit

    @property
    def later(self) -> slice | None:
        """The rest of the episode behind a window's end; None where no decision is left there."""
        if self.episode is None:
            return None
        rest = slice(self.start + len(self.tokens), None)
        return rest if self.episode.is_action[rest].any() else None

    def validate(self) -> Trajectory:
        """Returns itself, or raises `TrajectoryError` if the contract is broken."""
        for name in ("tokens", "is_action", "rewards"):
            if not hasattr(value := getattr(self, name), "dtype"):
                self._fail(f"{name} is of type {type(value).__name__}, but must be a NumPy array")
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
        self._check_clone()
        self._check_credit()
        if not (np.isfinite(self.weight) and self.weight > 0):
            self._fail(
                f"weight is {self.weight}, but must be finite and above 0; drop dialogues that "
                "should not count"
            )
        if not self.clone_weight.any() and not self.credited.any():
            self._fail("clone and credit leave no token to learn from; drop it")
        if self.episode is not None:
            self._check_window(self.episode)
        return self

    def _check_clone(self) -> None:
        if self.clone is None:
            return
        if self.clone.shape != self.tokens.shape or not np.issubdtype(
            self.clone.dtype, np.floating
        ):
            self._fail(
                f"clone must be a float vector of {len(self.tokens)} weights, got shape "
                f"{self.clone.shape} of {self.clone.dtype}"
            )
        wrong = ~(np.isfinite(self.clone) & (self.clone >= 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            self._fail(f"clone[{at}] is {self.clone[at]}; weights must be finite and at least 0")
        self._check_is_agents("clone", self.clone)

    def _check_credit(self) -> None:
        if self.credit is None:
            return
        if self.credit.shape != self.tokens.shape or self.credit.dtype != bool:
            self._fail(
                f"credit must be a bool vector of {len(self.tokens)} entries, got shape "
                f"{self.credit.shape} of {self.credit.dtype}"
            )
        self._check_is_agents("credit", self.credit)

    def _check_is_agents(self, field: str, values: np.ndarray) -> None:
        wrong = (values != 0) & ~self.is_action
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            self._fail(
                f"{field}[{at}] is {values[at]}, but token {at} is not the agent's; set it to "
                f"{values.dtype.type(0)}"
            )

    def _check_window(self, episode: Trajectory) -> None:
        end = self.start + len(self.tokens)
        for field in ("tokens", "is_action", "rewards"):
            if not np.array_equal(getattr(self, field), getattr(episode, field)[self.start : end]):
                self._fail(
                    f"{field} differ from those of {episode.name} from token {self.start} on, "
                    "which this is a window of; change the episode and cut it again"
                )
        if self.later is not None and self.terminal:
            self._fail(
                f"terminal is true, but {episode.name} goes on behind this window of it; set it to "
                "false"
            )
        if end < len(episode.tokens) and self.is_action[-1] and episode.is_action[end]:
            self._fail(
                f"the window ends inside an utterance (at token {end} of {episode.name}); cut it "
                "in front of one"
            )

    def _fail(self, problem: str) -> None:
        raise TrajectoryError(f"{self.name}: {problem}.")


def validate_all(trajectories: Sequence[Trajectory]) -> None:
    """Raises `TrajectoryError` for the first that is none, or breaks the contract."""
    for index, each in enumerate(trajectories):
        if not isinstance(each, Trajectory):
            raise TrajectoryError(
                f"trajectories[{index}] is of type {type(each).__name__}, but must be a "
                "`Trajectory`."
            )
        each.validate()
