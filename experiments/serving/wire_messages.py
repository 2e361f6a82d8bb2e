"""The Messages API: POST /v1/messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.serving import wire
from experiments.serving.answer import Answer
from experiments.serving.wire import EXTRA, Asked, Failing, RequestError, Wire
from imagination.checks import is_whole

_USED = ("model", "messages", "system", "stream", "seed")
_REFUSED = {
    "tools": bool,
    "tool_choice": lambda choice: choice != {"type": "none"},
    "mcp_servers": bool,
    "container": bool,
    "output_format": bool,
    "output_config": lambda config: bool(isinstance(config, dict) and config.get("format")),
    "thinking": lambda thinking: thinking != {"type": "disabled"},
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _parse(body: Mapping[str, Any]) -> Asked:
    wire.refuse(body, _REFUSED)
    longest = body.get("max_tokens")
    if longest is not None and (not is_whole(longest) or longest < 1):
        raise RequestError("max_tokens: expected a whole number, at least 1.", "max_tokens")
    turns, inner = wire.conversation(body.get("messages"))
    if inner is not None:
        raise RequestError(
            "messages: no role system here; the system message has a field of its own, system.",
            "messages",
        )
    system = body.get("system")
    text = None if system is None else wire.text_of(system, "system").strip() or None
    return Asked(
        wire.model_of(body),
        turns,
        text,
        wire.seed_of(body),
        wire.truth(body, "stream"),
        wire.ignored(body, _USED),
    )


def _reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    return {
        **_head(asked),
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": "end_turn",
        "usage": _usage(answer, wire.count(answer, "completion_tokens")),
        EXTRA: asked.extra(answer),
    }


def _events(asked: Asked, answer: Answer) -> Iterator[bytes]:
    written = wire.count(answer, "completion_tokens")
    begun = {
        **_head(asked),
        "content": [],
        "stop_reason": None,
        "usage": _usage(answer, 0),
        EXTRA: asked.extra(answer),
    }
    block = {"type": "text", "text": ""}
    parts: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
    ]
    parts += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in wire.pieces(answer.text)
    ]
    parts += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": written},
        },
        {"type": "message_stop"},
    ]
    for part in parts:
        yield wire.event(part, part["type"])


def _error(failing: Failing) -> dict[str, Any]:
    kind = "api_error" if failing.status >= 500 else "invalid_request_error"
    error = {"type": _TYPES.get(failing.status, kind), "message": failing.message}
    return {"type": "error", "error": error, "request_id": None}


def _head(asked: Asked) -> dict[str, Any]:
    return {
        "id": wire.new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "stop_sequence": None,
    }


def _usage(answer: Answer, written: int) -> dict[str, Any]:
    read, cached = (wire.count(answer, f"{part}_tokens") for part in ("prompt", "cached"))
    return {
        "input_tokens": read - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": written,
    }


MESSAGES = Wire("messages", _parse, _reply, _events, _error)
