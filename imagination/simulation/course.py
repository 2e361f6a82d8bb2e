"""`follow`: from the words of a dialogue to what happened in it, by the rules of its world."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from imagination.dialogue import Turn
from imagination.simulation.planning import Belief, Planner
from imagination.simulation.world import Act, State


@dataclasses.dataclass(frozen=True)
class Decision:
    """A turn of the agent's: its index, the state and belief before it, and its act."""

    turn: int
    turns_left: int
    state: State
    belief: Belief
    act: Act | None


@dataclasses.dataclass(frozen=True)
class Course:
    """Course of a dialogue; state, belief and last act are those at its end.

    Attributes:
        slots: Public slots that the human named.
        decisions: Turns of the agent's.
        state: State after what was heard.
        belief: Posterior over personas.
        act: The agent's last.
        unanswered: True where the agent had the last word.
    """

    slots: Mapping[str, str]
    decisions: tuple[Decision, ...]
    state: State
    belief: Belief
    act: Act | None
    unanswered: bool


def follow(planner: Planner, turns: Sequence[Turn]) -> Course | None:
    """Course of a dialogue, from its words alone; None where the form is not the world's.

    The form is that the human opens and the sides alternate.

    Args:
        planner: Planner of the world, and of the population whose prior the beliefs begin with.
        turns: The dialogue.
    """
    world = planner.world
    expected = ("human", "agent")
    if not turns or any(turn.speaker != expected[i % 2] for i, turn in enumerate(turns)):
        return None
    reply = world.hear_loosely(turns[0].text)
    slots = world.find_slots(turns[0].text)
    state, belief, act = world.begin(reply), planner.opened(reply), None
    decisions: list[Decision] = []
    unanswered = False
    for index, turn in enumerate(turns[1:], start=1):
        if world.is_over(state):
            break  # what people say after the end, the world knows nothing about
        unanswered = turn.speaker == "agent"
        if unanswered:
            act = world.understand_about(slots, turn.text)
            left = max(1, world.task.max_turns - len(decisions))
            decisions.append(Decision(index, left, state, belief, act))
        else:
            reply = world.hear_loosely(turn.text)
            belief = planner.updated(belief, state, act, reply)
            state = world.advance(state, act, reply)
    return Course(slots, tuple(decisions), state, belief, act, unanswered)
