"""Answers that several steps ask for: a line of a conversation, and a rating.

The JSON schema of these classes goes to the model, their docstrings included. Each has a
`placeholder`, an answer of ordinary size from which `cost.py` forecasts tokens.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, TypeVar

import pydantic

TYPICAL_UTTERANCE = "This is what somebody might say here in one or two sentences of ordinary size."

Schema = TypeVar("Schema", bound=pydantic.BaseModel)


@functools.cache
def specialize(schema: type[Schema], **limits: Any) -> type[Schema]:
    """Subclasses an answer's schema with other class variables, the limits of one request.

    Equal limits give the same class.
    """
    return type(schema.__name__, (schema,), {**limits, "__module__": schema.__module__})


class Line(pydantic.BaseModel):
    """The next words of one speaker."""

    text: str

    @pydantic.model_validator(mode="after")
    def _not_empty(self) -> Line:
        if not self.text.strip():
            raise ValueError("text is empty; say something")
        return self

    @classmethod
    def placeholder(cls) -> Line:
        return cls(text=TYPICAL_UTTERANCE)


class EndableLine(pydantic.BaseModel):
    """The next words of one speaker, and whether the conversation is over with them."""

    text: str
    ends: bool

    @pydantic.model_validator(mode="after")
    def _not_empty(self) -> EndableLine:
        if not self.text.strip() and not self.ends:
            raise ValueError("text is empty; say something, or set ends to true")
        return self

    @classmethod
    def placeholder(cls) -> EndableLine:
        # Forecasts count conversations to their limit.
        return cls(text=TYPICAL_UTTERANCE, ends=False)


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
        reason = "Some of what was needed came up, and something that matters did not."
        return cls(reason=reason, rating=(cls.low + cls.high) / 2)


def rating_schema(reward_range: tuple[float, float]) -> type[Rating]:
    """`Rating` on a scale from the worst to the best rating."""
    low, high = reward_range
    return specialize(Rating, low=float(low), high=float(high))
