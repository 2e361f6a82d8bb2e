"""`Request`, `Answer` and `Failure`: questions to an LLM, their outcomes, and the errors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pydantic

from ilql_jax.errors import UserError

# Stop reasons of an answer that ends before its end.
CUT_OFF = ("max_tokens", "model_context_window_exceeded")


class LLMError(UserError, RuntimeError):
    """Stops the run. The message says what to change; answers already held stay usable."""


class CostLimitError(LLMError):
    """The next call could have passed `max_cost`."""


class Declined(ValueError):
    """Raised by a request's check for an answer that says no, and not how something is done.

    Other samples are asked for, without the reason: no other answer is wanted. Where all decline,
    the request is set aside, and asked anew by the next run.
    """


class NotDelivered(Exception):
    """A call that failed on the way, after all retries. Says why."""


class SchemaRefused(NotDelivered):
    """A call in a batch that was refused for the schema that it has."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one or more calls and their price in dollars.

    `input_tokens` are those charged in full; the ones written to or read from the prompt cache
    are counted apart.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """All of them, read and written."""
        read = self.input_tokens + self.cache_read_tokens + self.cache_write_tokens
        return read + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.cost + other.cost,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to an LLM.

    Attributes:
        step: Name of the prompt ("engine/script", ...); the meter counts by it.
        system: The prefix that all requests of the step share; cached by servers that can.
        messages: (role, content) in turn, role "user" or "assistant"; the user has the last word.
        schema: Type of the answer; None for plain text.
        max_tokens: Longest answer; 0 = the config's.
        prompt_version: Version of the prompt.
        resample: Another number asks for another answer to the same question.
        attempt: Number of times that it was asked in vain before; the client counts them.
        label: Subject of the request, for people. Not part of the key.
        check: Further condition on the parsed answer; raises `ValueError` with the
            reason, which goes back to the model, or `Declined`. Not part of the key: the same
            words, the same check.

    Raises:
        ValueError: Messages that no model could answer.
    """

    step: str
    system: str
    messages: tuple[tuple[str, str], ...]
    schema: type[pydantic.BaseModel] | None = None
    max_tokens: int = 0
    prompt_version: str = ""
    resample: int = 0
    attempt: int = 0
    label: str = ""
    check: Callable[[Any], Any] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        where = f"request {self.label!r} of step {self.step!r}"
        if not self.messages or self.messages[-1][0] != "user":
            raise ValueError(f"{where}: the last message must be the user's, got {self.messages}.")
        for role, content in self.messages:
            if role not in ("user", "assistant"):
                raise ValueError(f"{where}: a role is user or assistant, got {role!r}.")
            if not isinstance(content, str) or not content.strip():
                raise ValueError(f"{where}: the {role}'s message is empty: {content!r}.")
        if self.max_tokens < 0:
            raise ValueError(f"{where}: max_tokens must be 0 or more, got {self.max_tokens}.")

    def key(self, model: str, *asked: Any) -> str:
        """SHA-256 (hex, 64 characters) of everything that determines the answer.

        Args:
            model: Name of the model.
            *asked: Other settings that determine it (`LLMConfig.determining`).
        """
        determining = [
            model,
            self.system,
            self.messages,
            schema_json(self.schema) if self.schema else None,
            self.max_tokens,
            self.prompt_version,
            self.resample,
            *((self.attempt,) if self.attempt else ()),
            *asked,
        ]
        canonical = json.dumps(determining, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The request as it is kept on disk, for people to read."""
        return {
            "system": self.system,
            "messages": [list(message) for message in self.messages],
            "schema": self.schema.__name__ if self.schema else None,
            "max_tokens": self.max_tokens,
            "prompt_version": self.prompt_version,
            "resample": self.resample,
            "attempt": self.attempt,
            "label": self.label,
        }


@dataclasses.dataclass(frozen=True)
class Answer:
    """A usable answer.

    Attributes:
        text: The model's words.
        parsed: The text as the request's schema; None without a schema.
        model: The model that says it answered.
        usage: Tokens and cost of all calls for it, unusable answers before it included.
        from_cache: True where it cost nothing now; `usage` then says what was paid earlier.
    """

    text: str
    parsed: pydantic.BaseModel | None
    model: str
    usage: Usage
    from_cache: bool


@dataclasses.dataclass(frozen=True)
class Failure:
    """A request that was set aside (see `failed.jsonl`); the run goes on without it.

    Attributes:
        request: The request.
        reason: The last fault, in words.
        usage: Tokens and cost of the unusable answers to it.
    """

    request: Request
    reason: str
    usage: Usage = Usage()


@functools.cache
def schema_json(schema: type[pydantic.BaseModel]) -> str:
    """The JSON schema in one canonical form."""
    return json.dumps(schema.model_json_schema(), sort_keys=True, separators=(",", ":"))
