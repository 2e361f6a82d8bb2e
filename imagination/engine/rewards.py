"""Step rewards: a finished dialogue is rated by an LLM judge, by the human, or by its outcome."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from imagination.dialogue import Turn
from imagination.llm.requests import Request
from imagination.llm.schemas import Rating, rating_schema
from imagination.llm.session import Session
from imagination.prompts import load_prompt
from imagination.task import Task
from imagination.transcript import transcript

JUDGE = "judge/rating"


@dataclasses.dataclass(frozen=True)
class Ratings:
    """All ratings of one dialogue that were computed; None where one was not.

    Attributes:
        outcome: The reward that the dialogue was written for.
        judge: Mean of the judge's votes.
        human: The simulated human's, who knows its persona.
        judge_votes: The judge's votes.
        judge_spread: Mean absolute difference between two votes, as a fraction of the scale:
            0 = all alike.
    """

    outcome: float | None = None
    judge: float | None = None
    human: float | None = None
    judge_votes: tuple[float, ...] = ()
    judge_spread: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As they are kept in a dialogue's source."""
        return {**dataclasses.asdict(self), "judge_votes": list(self.judge_votes)}


def judge_requests(task: Task, turns: Sequence[Turn], votes: int, label: str) -> list[Request]:
    """Asks the judge, who knows the conversation alone, once for every vote."""
    schema, values = rating_schema(task.reward_range), _values(task, turns)
    return [
        load_prompt(JUDGE).request(schema, values, resample=vote, label=label)
        for vote in range(votes)
    ]


def human_request(
    task: Task,
    turns: Sequence[Turn],
    persona: Mapping[str, str],
    profile: pydantic.BaseModel,
    situation: str,
    label: str,
) -> Request:
    """Asks the human of the conversation, who knows the persona and the occasion."""
    known = {"persona": persona, "profile": profile, "situation": situation}
    values = {**_values(task, turns), **known}
    return load_prompt("engine/rating").request(
        rating_schema(task.reward_range), values, label=label
    )


async def rate(
    session: Session,
    sources: Sequence[str],
    task: Task,
    turns: Sequence[Turn],
    persona: Mapping[str, str],
    profile: pydantic.BaseModel,
    situation: str,
    outcome: float | None,
    judge_votes: int,
    label: str = "",
) -> Ratings:
    """Rates a finished dialogue.

    Args:
        session: Session that asks.
        sources: Ratings to ask for, of `judge` and `human`.
        task: Gives the scale and the meaning of success.
        turns: The dialogue.
        persona: Hidden traits of the human.
        profile: Behaviour of this human (fields `profile` and `reveals`).
        situation: Occasion of the conversation.
        outcome: The reward that the dialogue was written for; None for a rollout. Taken over.
        judge_votes: Votes of the judge.
        label: Subject of the requests, for people.

    Raises:
        NoAnswer: A rating could not be had.
    """
    requests: list[Request] = []
    if "human" in sources:
        requests.append(human_request(task, turns, persona, profile, situation, label))
    if "judge" in sources:
        requests += judge_requests(task, turns, judge_votes, label)
    answers: list[Rating] = await session.ask_all(requests) if requests else []
    human = answers.pop(0).rating if "human" in sources else None
    if "judge" not in sources:
        return Ratings(outcome=outcome, human=human)
    votes = tuple(answer.rating for answer in answers)
    low, high = task.reward_range
    return Ratings(
        outcome=outcome,
        judge=sum(votes) / len(votes),
        human=human,
        judge_votes=votes,
        judge_spread=mean_pairwise_difference(votes) / (high - low),
    )


def mean_pairwise_difference(values: Sequence[float]) -> float:
    """Mean of |a − b| over all pairs; 0 for fewer than two values."""
    differences = [abs(a - b) for a, b in itertools.combinations(values, 2)]
    return sum(differences) / len(differences) if differences else 0.0


def _values(task: Task, turns: Sequence[Turn]) -> dict[str, Any]:
    low, high = task.reward_range
    return {
        "task": task,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "anchors": task.anchors(),
        "transcript": transcript(turns, task),
    }
