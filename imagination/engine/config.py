"""`EngineConfig`: how many dialogues are imagined, and how."""

from __future__ import annotations

import dataclasses
from typing import Any

from imagination.task import Task

WAYS = ("script", "rollout")
REWARDS = ("outcome", "judge", "human")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Settings of the imagination engine.

    Attributes:
        dialogues: How many are imagined. More of them later keep those that are there.
        way: `script`, a whole dialogue in one call towards an outcome fixed beforehand, or
            `rollout`, agent and human played in turn.
        rewards: Whose rating is a dialogue's reward: `outcome` (what a script was written for),
            `judge` or `human` (see `imagination/engine/rewards.py`).
        also_rewards: Ratings that are computed beside it, for the card's table of agreement.
        outcomes: Values of the reward that scripts are written for, evenly spaced over the
            task's range; 2 = failure and success, as in the paper.
        personas_per_call: Personas described in one call.
        critique_rounds: A dialogue is rewritten at most this often; 0 = no critique.
        judge_votes: Ratings of which the judge's is the mean.
        max_turns: Agent turns of a dialogue at most; 0 = the task's.
        conversations: Dialogues under way at the same time (all of them in batches).
        seed: Of personas, outcomes and behaviours.

    Raises:
        ValueError: A value that cannot be; the message names the field and what it may be.
    """

    dialogues: int
    way: str = "rollout"
    rewards: str = "human"
    also_rewards: tuple[str, ...] = ()
    outcomes: int = 2
    personas_per_call: int = 8
    critique_rounds: int = 1
    judge_votes: int = 3
    max_turns: int = 0
    conversations: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "dialogues": 1,
            "outcomes": 2,
            "personas_per_call": 1,
            "critique_rounds": 0,
            "judge_votes": 1,
            "max_turns": 0,
            "conversations": 1,
            "seed": 0,
        }
        for field, smallest in least.items():
            value = getattr(self, field)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or value < smallest:
                self._refuse(field, f"a whole number >= {smallest}")
        if self.way not in WAYS:
            self._refuse("way", " or ".join(WAYS))
        if self.rewards not in REWARDS:
            self._refuse("rewards", ", ".join(REWARDS))
        if any(source not in REWARDS for source in self.also_rewards):
            self._refuse("also_rewards", f"some of {', '.join(REWARDS)}")
        if self.way == "rollout" and "outcome" in self.reward_sources:
            field = "rewards" if self.rewards == "outcome" else "also_rewards"
            self._refuse(
                field,
                "judge or human with way='rollout', where no outcome is fixed beforehand "
                "(way='script' fixes one)",
            )

    @property
    def reward_sources(self) -> tuple[str, ...]:
        """All ratings that are computed, the one that counts first."""
        return tuple(dict.fromkeys((self.rewards, *self.also_rewards)))

    def turn_limit(self, task: Task) -> int:
        """Agent turns of a dialogue at most."""
        return self.max_turns or task.max_turns

    def _refuse(self, field: str, expected: str) -> None:
        value: Any = getattr(self, field)
        raise ValueError(f"EngineConfig.{field} must be {expected}, got {value!r}.")
