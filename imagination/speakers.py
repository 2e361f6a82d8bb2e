"""Speakers of either side, and `converse`, which lets two of them talk.

A speaker answers in *many conversations at once*: a neural agent decodes them as one batch, a
simulated human understands them with one matrix product, an LLM-played one would send its
requests concurrently. `converse` only passes the words between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from imagination.dialogue import Dialogue, Turn
from imagination.task import Task

# Text of a turn for which there was no answer: a turn is never silently empty.
NO_ANSWER = "(no answer)"
FAILURE = "failure"  # annotation of a turn for which there was no answer: the reason


@dataclasses.dataclass
class Conversation:
    """A conversation in progress.

    Attributes:
        id: Becomes the dialogue's id.
        turns: The turns so far: all that the other side may look at.
        persona: Hidden traits of the human; only the human reads it.
        seed: Source of every random choice made in this conversation. What is said in a
            conversation depends on its seed and its words, never on who else is in the batch.
        human_memory: The human's private state, kept here so that speakers hold none.
        agent_memory: The agent's private state, likewise.
        finished: True once either side has ended it.
        reward: The human's rating, set when the conversation ends; the worst there is where the
            agent had no answer, which is no conversation to be pleased with.
        system: System message for the agent, if any.
    """

    id: str
    persona: Mapping[str, str]
    seed: int
    turns: list[Turn] = dataclasses.field(default_factory=list)
    human_memory: Any = None
    agent_memory: Any = None
    finished: bool = False
    reward: float | None = None
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A speaker's answer: words and annotations of the turn, and whether it is the last."""

    text: str
    ends: bool = False
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def with_words(utterance: Utterance) -> Utterance:
    """The utterance; one without words is a failure, as of an agent that gave no answer."""
    if utterance.text.strip():
        return utterance
    reason = utterance.annotations.get(FAILURE, "it ended its turn without a word")
    return Utterance(NO_ANSWER, ends=True, annotations={**utterance.annotations, FAILURE: reason})


class Agent(Protocol):
    """Takes the agent's turn in each of the conversations; one without words is a failure."""

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]: ...


class Human(Protocol):
    """Takes the human's turn (the first one too) and rates what is finished.

    A rating is None where there is none to be had (an LLM that gave no answer).
    """

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]: ...

    def rate(self, conversations: Sequence[Conversation]) -> list[float | None]: ...


def converse(
    agent: Agent,
    human: Human,
    conversations: Sequence[Conversation],
    task: Task,
    source: Mapping[str, Any] | None = None,
    on_finished: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Plays all conversations to their end.

    The human opens a conversation; one that has begun goes on from where it stands.

    Args:
        agent: Takes the agent's turns.
        human: Takes the human's turns and rates the finished conversations.
        conversations: Begun or not; they are filled in place.
        task: Gives the name and the limit on agent turns.
        source: Becomes the dialogues' `source`.
        on_finished: Called with the number of conversations that ended in a round of turns.

    Returns:
        The finished dialogues, in the order of `conversations`.
    """
    _take_turn(human, "human", [c for c in conversations if _awaits_human(c)])
    while open_ones := [c for c in conversations if _awaits_agent(c, task.max_turns)]:
        _take_turn(agent, "agent", open_ones)
        _take_turn(human, "human", [c for c in open_ones if not c.finished])
        if on_finished:
            on_finished(sum(c.finished for c in open_ones))
    if on_finished:
        on_finished(sum(not c.finished for c in conversations))
    _rate(human, conversations, task)
    return [
        Dialogue(
            id=c.id,
            task=task.name,
            turns=tuple(c.turns),
            reward=c.reward,
            persona=c.persona,
            source=dict(source or {}),
            system=c.system,
        )
        for c in conversations
    ]


def _rate(human: Human, conversations: Sequence[Conversation], task: Task) -> None:
    answered = [c for c in conversations if not failure_of(c.turns)]
    for conversation in conversations:
        conversation.finished, conversation.reward = True, task.reward_range[0]
    for conversation, reward in zip(answered, human.rate(answered), strict=True):
        conversation.reward = reward


def failure_of(turns: Sequence[Turn]) -> str:
    """Reason why the agent was left without an answer; "" where it always had one."""
    reasons = (t.annotations.get(FAILURE, "") for t in turns if t.speaker == "agent")
    return next(filter(None, reasons), "")


def _awaits_human(conversation: Conversation) -> bool:
    turns = conversation.turns
    return not conversation.finished and (not turns or turns[-1].speaker == "agent")


def _awaits_agent(conversation: Conversation, max_turns: int) -> bool:
    agent_turns = sum(turn.speaker == "agent" for turn in conversation.turns)
    return not conversation.finished and agent_turns < max_turns


def _take_turn(speaker: Agent | Human, name: str, conversations: Sequence[Conversation]) -> None:
    if not conversations:
        return
    utterances = speaker.respond(conversations)
    for conversation, utterance in zip(conversations, utterances, strict=True):
        if name == "agent":
            utterance = with_words(utterance)
        if utterance.text or not utterance.ends:
            conversation.turns.append(
                Turn(name, utterance.text, annotations=dict(utterance.annotations))
            )
        conversation.finished = utterance.ends
