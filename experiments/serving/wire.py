"""A wire format: what a body asks, and how the answer or an error is written.

`wire_chat.py` and `wire_messages.py` are the two; here is what they have in common.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.serving.answer import Answer
from ilql_jax.errors import UserError, shown
from imagination.checks import is_whole, without_surrogates
from imagination.dialogue import SPEAKER_OF_ROLE, Turn
from imagination.plain_data import parse_json

EXTRA = "ilql"  # field of values, candidates and decoding in every answer
_MOST_MESSAGES = 10_000
_MOST_SEED = 2**63


class RequestError(UserError, ValueError):
    """A request that is not answered; the message says what to change.

    Attributes:
        status: Status of HTTP.
        field: Field of the body, "" = none alone.
        code: Short name of the error, in snake case.
    """

    def __init__(self, message: str, field: str = "", status: int = 400, code: str = ""):
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, as either format has it.

    Attributes:
        model: Name of the agent.
        turns: The conversation.
        system: System message, if any.
        seed: Determines the answer, with the conversation.
        stream: True for the answer as events.
        ignored: Fields of the body that change nothing here.
        usage_at_end: True where the last event counts the tokens (chat completions alone).
    """

    model: str
    turns: tuple[Turn, ...]
    system: str | None
    seed: int
    stream: bool = False
    ignored: tuple[str, ...] = ()
    usage_at_end: bool = False

    def extra(self, answer: Answer) -> dict[str, Any]:
        """The extra field of an answer."""
        told = {**answer.details, "seed": self.seed, "is_over": answer.is_over}
        return told | ({"ignored_fields": list(self.ignored)} if self.ignored else {})


@dataclasses.dataclass(frozen=True)
class Failing:
    """An error as it is told.

    Attributes:
        status: Status of HTTP.
        message: In words.
        field: Field of the body, "" = none alone.
        code: Short name.
    """

    status: int
    message: str
    field: str = ""
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Wire:
    """A wire format.

    Attributes:
        name: In metrics.
        parse: Body (an object) -> question. Raises `RequestError`.
        reply: The answer to a question as one object.
        events: The same as server-sent events.
        error: An error as an object.
    """

    name: str
    parse: Callable[[Mapping[str, Any]], Asked]
    reply: Callable[[Asked, Answer], dict[str, Any]]
    events: Callable[[Asked, Answer], Iterator[bytes]]
    error: Callable[[Failing], dict[str, Any]]


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def event(data: Mapping[str, Any] | str, name: str = "") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


def pieces(text: str) -> list[str]:
    """The text word by word; joined they are the text."""
    return re.findall(r"\s*\S+|\s+\Z", text)


# --- fields of a body ---------------------------------------------------------------------------


def body_of(content: bytes) -> dict[str, Any]:
    """The object that a body is. Raises `RequestError`."""
    try:
        body = parse_json(content, "the body", ValueError)
    except ValueError as error:
        problem = str(error).removesuffix(" Repair or delete this line.")
        raise RequestError(without_surrogates(problem)) from None
    if not isinstance(body, dict):
        raise RequestError("The body is no JSON object.")
    return body


def model_of(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("model: name one of those that GET /v1/models lists.", "model")
    return without_surrogates(model)


def truth(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{field} is {_shown(value)}; expected true or false.", field)
    return bool(value)


def seed_of(body: Mapping[str, Any]) -> int:
    """The seed, or one that was drawn."""
    seed = body.get("seed")
    if seed is None:
        return secrets.randbits(31)
    if not is_whole(seed) or abs(seed) >= _MOST_SEED:
        raise RequestError(f"seed is {_shown(seed)}; expected a whole number.", "seed")
    return int(seed)


def refuse(body: Mapping[str, Any], refused: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raises `RequestError` for fields that ask for what no agent here does.

    Args:
        body: The body.
        refused: Field -> true for values that ask for it.
    """
    for field, asks in refused.items():
        if body.get(field) is not None and asks(body[field]):
            raise RequestError(
                f"{field} is not supported: an agent gives one answer, in words. Leave it out.",
                field,
                code="unsupported_parameter",
            )


def ignored(body: Mapping[str, Any], used: Sequence[str]) -> tuple[str, ...]:
    """Fields that are given and change nothing; their names shortened, most of them."""
    given = [name for name, value in body.items() if name not in used and value is not None]
    return tuple(shown(without_surrogates(name), 40) for name in sorted(given)[:20])


def conversation(messages: Any) -> tuple[tuple[Turn, ...], str | None]:
    """Turns and system message of a body's `messages`.

    Several messages in a row of one side are one turn.

    Raises:
        RequestError: Another role, content that is no text, a user's message without words, a
            system message behind others, or the last word is not the user's.
    """
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise RequestError('messages: expected a list of {"role", "content"}.', "messages")
    if len(messages) > _MOST_MESSAGES:
        raise RequestError(f"messages: {_MOST_MESSAGES:,} at most.", "messages")
    said: list[tuple[str, list[str]]] = []
    system: list[str] = []
    for place, message in enumerate(messages):
        field, role = f"messages[{place}]", message.get("role")
        if role in ("system", "developer"):
            if said:
                raise RequestError(
                    f"{field}.role is {role!r}; expected before the first message of the user.",
                    f"{field}.role",
                )
            system.append(text_of(message.get("content"), f"{field}.content"))
            continue
        if not isinstance(role, str) or role not in SPEAKER_OF_ROLE:
            raise RequestError(
                f"{field}.role is {_shown(role)}; expected system, user or assistant.",
                f"{field}.role",
            )
        speaker = SPEAKER_OF_ROLE[role]
        if speaker == "agent" and message.get("tool_calls"):
            raise RequestError(
                f"{field}.tool_calls: no agent here calls a tool.", f"{field}.tool_calls"
            )
        is_silent = speaker == "agent" and message.get("content") is None
        text = "" if is_silent else text_of(message.get("content"), f"{field}.content")
        if speaker == "human" and not text.strip():
            raise RequestError(f"{field}.content is empty; say something.", f"{field}.content")
        if said and said[-1][0] == speaker:
            said[-1][1].append(text)
        else:
            said.append((speaker, [text]))
    turns = tuple(Turn(speaker, "\n".join(texts)) for speaker, texts in said)
    if turns and turns[-1].speaker != "human":
        raise RequestError(
            "messages: the last one must be the user's; no agent here goes on with words of its "
            "own.",
            "messages",
        )
    return turns, "\n\n".join(filter(str.strip, system)) or None


def text_of(content: Any, field: str) -> str:
    """The text of a message: as it is, or in parts.

    Raises:
        RequestError: Anything else than text.
    """
    if isinstance(content, str):
        return without_surrogates(content)
    if not isinstance(content, list):
        raise RequestError(f"{field}: expected text, got {_shown(content)}.", field)
    texts = []
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise RequestError(
                f"{field}[{place}]: agents here read text alone, not {_shown(kind)}.",
                f"{field}[{place}]",
            )
        texts.append(without_surrogates(text))
    return "".join(texts)


def count(answer: Answer, name: str) -> int:
    """Tokens of an answer, 0 where nobody counted."""
    return int(answer.details.get(name) or 0)


def _shown(value: Any) -> str:
    return without_surrogates(shown(value, 60, repr))
