"""Who rates a finished dialogue: the outcome it was written for, an LLM judge, the human."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic

from imagination.asking import Correspondence, load_prompt, transcript
from imagination.dialogue import Turn
from imagination.llm import Request
from imagination.task import Task


class Rating(pydantic.BaseModel):
    """A rating on the task's scale, the reason first: it is better thought of that way."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    reason: str
    rating: float

    @pydantic.model_validator(mode="after")
    def _on_the_scale(self) -> Rating:
        if not self.low <= self.rating <= self.high or not math.isfinite(self.rating):
            raise ValueError(f"the rating goes from {self.low:g} to {self.high:g}")
        return self

    @classmethod
    def placeholder(cls) -> Rating:
        """An answer of ordinary size, for `plan`."""
        reason = "Some of what was needed came up, and something that matters did not."
        return cls(reason=reason, rating=(cls.low + cls.high) / 2)


@functools.cache
def _schema(low: float, high: float) -> type[Rating]:
    body = {"low": low, "high": high, "__module__": __name__}
    body["__annotations__"] = {"low": ClassVar[float], "high": ClassVar[float]}
    return type("Rating", (Rating,), body)


@dataclasses.dataclass(frozen=True)
class Ratings:
    """All ratings of one dialogue that were computed; None where one was not.

    Attributes:
        outcome: What the dialogue was written for.
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
    """Asks the judge, who knows what anybody could read, once for every vote."""
    return [
        load_prompt("rate_judge").request(
            "rate judge", _schema(*_range(task)), _values(task, turns), resample=vote, label=label
        )
        for vote in range(votes)
    ]


def human_request(
    task: Task,
    turns: Sequence[Turn],
    persona: Mapping[str, str],
    profile: pydantic.BaseModel,
    label: str,
) -> Request:
    """Asks the human who was there, and knows who they are."""
    values = {**_values(task, turns), "persona": persona, "profile": profile}
    return load_prompt("rate_human").request(
        "rate human", _schema(*_range(task)), values, label=label
    )


async def rate(
    letters: Correspondence,
    sources: Sequence[str],
    task: Task,
    turns: Sequence[Turn],
    persona: Mapping[str, str],
    profile: pydantic.BaseModel,
    outcome: float | None,
    judge_votes: int,
    label: str = "",
) -> Ratings:
    """Rates a finished dialogue.

    Args:
        letters: Where to ask.
        sources: Which ratings to ask for, of `judge` and `human`.
        task: Its scale and what counts as success.
        turns: The dialogue.
        persona: What is hidden about the human.
        profile: How this human behaves (fields `profile` and `reveals`).
        outcome: What the dialogue was written for, if for anything; taken over.
        judge_votes: How often the judge is asked.
        label: What it is about, for people.
    """
    asked: list[Request] = []
    if "human" in sources:
        asked.append(human_request(task, turns, persona, profile, label))
    if "judge" in sources:
        asked += judge_requests(task, turns, judge_votes, label)
    answers: list[Rating] = await letters.ask_all(asked) if asked else []
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


def _range(task: Task) -> tuple[float, float]:
    low, high = task.reward_range
    return float(low), float(high)


def _values(task: Task, turns: Sequence[Turn]) -> dict[str, Any]:
    low, high = task.reward_range
    return {
        "task": task,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "success_reward": f"{task.success_reward:g}",
        "transcript": transcript(turns, task.agent_role, task.human_role),
    }
