"""`Task`: what the agent is there for, in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Task:
    """A goal-directed dialogue task.

    Attributes:
        name: Short identifier, used in file names and tables.
        description: The task in a paragraph, as it would be told to a person.
        agent_role: Who the agent is ("tutor").
        human_role: Who the human is ("student").
        persona_axes: What may be hidden about the human: axis -> possible values.
        reward_range: Worst and best rating of a finished dialogue.
        success_reward: A dialogue rated at least this counts as a success.
        max_turns: Agent turns after which a conversation is over.
    """

    name: str
    description: str
    agent_role: str
    human_role: str
    persona_axes: Mapping[str, tuple[str, ...]]
    reward_range: tuple[float, float]
    success_reward: float
    max_turns: int
