"""Plain records of a study: who takes part, what was said, how far somebody is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ilql_jax.errors import UserError

# Reasons for which a conversation is set aside: it is kept, counted, and never rated.
FAILED, TOO_SHORT = "failed", "too short"
TALKER, RATER = "talker", "rater"


class StudyError(UserError, RuntimeError):
    """A study that cannot begin or go on. The message names the place and the way out."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """Ids that a platform such as Prolific gave with the address; "" where it gave none."""

    participant: str = ""
    study: str = ""
    session: str = ""


@dataclasses.dataclass(frozen=True)
class Participant:
    """Somebody who has agreed to take part.

    Attributes:
        number: Counted from 1; stands in all that is exported.
        kind: `TALKER`, or `RATER` of the conversations of others.
        platform: Ids of the platform.
        row: Row of the design.
        order: Agents in the order in which they are met.
        persona: Trait -> value on the scenario card; empty = themselves.
        code: Completion code.
        agreed_at, instructed_at, finished_at, withdrawn_at, seen_at: Seconds since 1970; None =
            not yet.
        comment: The free comment.
        ranking: Agents from best to worst; empty = not ranked.
    """

    number: int
    kind: str
    platform: Platform
    row: int
    order: tuple[str, ...]
    persona: Mapping[str, str]
    code: str
    agreed_at: float
    seen_at: float
    instructed_at: float | None = None
    finished_at: float | None = None
    withdrawn_at: float | None = None
    comment: str = ""
    ranking: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Message:
    """One utterance; `speaker` is `"human"` or `"agent"`."""

    number: int
    speaker: str
    text: str
    at: float
    token: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Talk:
    """A conversation of a participant with the agent at one place of their order.

    Attributes:
        number: Unique in the study.
        participant: Number of the participant.
        position: Place in the order, from 0.
        agent: Its name, which no page shows.
        seed: Seed of its random choices.
        messages: In order.
        begun_at, ended_at, told_at, rated_at: Seconds since 1970; None = not yet.
        ended_by: human, agent, limit or failure; "" = open.
        aside: Reason for which it is set aside; "" = it counts.
        failure: Error of the agent, for the researcher.
    """

    number: int
    participant: int
    position: int
    agent: str
    seed: int
    begun_at: float
    messages: tuple[Message, ...] = ()
    ended_at: float | None = None
    told_at: float | None = None
    rated_at: float | None = None
    ended_by: str = ""
    aside: str = ""
    failure: str = ""

    @property
    def human_turns(self) -> int:
        return sum(message.speaker == "human" for message in self.messages)

    @property
    def agent_turns(self) -> int:
        return len(self.messages) - self.human_turns


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A conversation of somebody else that a rater was given, in `position`."""

    position: int
    talk: int
    rated_at: float | None = None


@dataclasses.dataclass(frozen=True)
class Rating:
    """An answer to a question about a conversation, by its participant or by a rater."""

    rater: int
    talk: int
    question: str
    value: int
    at: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """Everything that decides what may come next for a participant."""

    participant: Participant
    talks: tuple[Talk, ...] = ()
    judgements: tuple[Judgement, ...] = ()
