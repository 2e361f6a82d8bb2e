"""Answers that several steps ask for: a line of a conversation, and a rating.

The JSON schema of these classes goes to the model, their docstrings included. Each has a
`placeholder`, an answer of ordinary size from which `cost.py` forecasts tokens.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic

from imagination.task import RATING_STEPS

TYPICAL_UTTERANCE = "This is what somebody might say here in one or two sentences of ordinary size."

_SENTENCE_END = re.compile(r"[.!?…](?=\s)|[。！？]")


def _end_within(text: str, most: int) -> str:
    """Cuts a longer text to so many characters, at the last sentence end in their second half."""
    if len(text) <= most:
        return text
    ends = [each.end() for each in _SENTENCE_END.finditer(text, most // 2, most)]
    return text[: ends[-1] if ends else most]


def _asked_for(length: int) -> pydantic.WithJsonSchema:
    """JSON schema of a text of so many characters at most."""
    return pydantic.WithJsonSchema({"type": "string", "maxLength": length})


def _cut(length: int) -> pydantic.AfterValidator:
    return pydantic.AfterValidator(functools.partial(_end_within, most=length))


# Texts end somewhere: a weak model that a grammar holds would else write to its limit of tokens.
# Others may write more than is asked for, and what was paid for is used: four times as much as it
# stands, and of still longer sentences and paragraphs the beginning. A name or an utterance of that
# length comes from a model that finds no end, and is asked for again.
Name = Annotated[str, pydantic.Field(max_length=240), _asked_for(60)]
Sentence = Annotated[str, _cut(1600), _asked_for(400)]
Utterance = Annotated[str, pydantic.Field(max_length=4000), _asked_for(1000)]
Paragraph = Annotated[str, _cut(6000), _asked_for(1500)]

Schema = TypeVar("Schema", bound=pydantic.BaseModel)


class Bounded(pydantic.BaseModel):
    """An answer whose JSON schema says the limits of one request too.

    They come from class variables (see `specialize`); the validators check them again, and use
    what can be used: of more items than asked for, the first.
    """

    @classmethod
    def bounds(cls) -> Mapping[str, Mapping[str, Any]]:
        """Field -> further keywords of JSON Schema."""
        return {}

    @classmethod
    def items(cls) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Field -> for each item of its list, the schemas of fields that are known beforehand."""
        return {}

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        schema = super().model_json_schema(*args, **kwargs)
        properties = schema["properties"]
        for field, keywords in cls.bounds().items():
            if field in properties:
                properties[field] |= keywords
        for field, known in cls.items().items():
            name = properties[field]["items"]["$ref"].rpartition("/")[2]
            item = schema["$defs"][name]
            properties[field] |= {
                "minItems": len(known),
                "maxItems": len(known),
                "prefixItems": [
                    {**item, "properties": {**item["properties"], **each}} for each in known
                ],
            }
        return schema


@functools.cache
def specialize(schema: type[Schema], **limits: Any) -> type[Schema]:
    """Subclasses an answer's schema with other class variables, the limits of one request.

    Equal limits give the same class.
    """
    return type(schema.__name__, (schema,), {**limits, "__module__": schema.__module__})


def numbers_known(count: int) -> list[dict[str, Any]]:
    """Items numbered from 1, for `Bounded.items`."""
    return [{"number": {"const": number}} for number in range(1, count + 1)]


def first_of_each(items: Sequence[Any], count: int, what: str) -> list[Any]:
    """The first item of each number from 1 to `count`, in their order.

    Raises:
        ValueError: A number without an item.
    """
    by_number = {item.number: item for item in reversed(items)}
    if missing := [number for number in range(1, count + 1) if number not in by_number]:
        raise ValueError(f"{what} 1 to {count} are asked for, and {missing} are not there")
    return [by_number[number] for number in range(1, count + 1)]


class EndableLine(pydantic.BaseModel):
    """The next words of one speaker, and whether the conversation is over with them."""

    text: Utterance
    ends: bool

    @pydantic.model_validator(mode="after")
    def _not_empty(self) -> EndableLine:
        if not has_words(self.text) and not self.ends:
            raise ValueError("text has no words; say something, or set ends to true")
        return self

    @classmethod
    def placeholder(cls) -> EndableLine:
        # Forecasts count conversations to their limit.
        return cls(text=TYPICAL_UTTERANCE, ends=False)


def says_something(line: EndableLine) -> None:
    """Raises `ValueError` for a line without words; for `Request.check`."""
    if not has_words(line.text):
        raise ValueError("text has no words; say something")


def has_words(text: str) -> bool:
    """True for a text of more than punctuation; an emoji is a word."""
    return any(each.isalnum() or unicodedata.category(each) == "So" for each in text)


class Rating(Bounded):
    """A rating on the task's scale, the reason first: it is better thought of that way."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    reason: Sentence
    rating: float

    @classmethod
    def bounds(cls) -> dict[str, dict[str, Any]]:
        # Steps and not a minimum and a maximum, which grammars seldom have for fractions.
        size = (cls.high - cls.low) / RATING_STEPS
        steps = [float(f"{cls.low + i * size:.6g}") for i in range(RATING_STEPS + 1)]
        return {"rating": {"enum": [int(step) if step.is_integer() else step for step in steps]}}

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
