"""Chat completions: POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.serving import wire
from experiments.serving.answer import Answer
from experiments.serving.wire import EXTRA, Asked, Failing, RequestError, Wire

_USED = ("model", "messages", "stream", "stream_options", "seed", "n")
# Field -> true for a value that asks for what no agent here does. What only shapes how words are
# chosen is ignored, and told: chat programs send it with every question.
_REFUSED = {
    "n": lambda n: n != 1,
    "tools": bool,
    "functions": bool,
    "tool_choice": lambda choice: choice not in ("none", "auto"),
    "function_call": lambda choice: choice not in ("none", "auto"),
    "response_format": lambda form: form != {"type": "text"},
    "logprobs": bool,
    "top_logprobs": bool,
    "audio": bool,
    "modalities": lambda kinds: kinds != ["text"],
    "prediction": bool,
    "web_search_options": lambda _: True,
}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def _parse(body: Mapping[str, Any]) -> Asked:
    wire.refuse(body, _REFUSED)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options: expected an object.", "stream_options")
    turns, system = wire.conversation(body.get("messages"))
    return Asked(
        wire.model_of(body),
        turns,
        system,
        wire.seed_of(body),
        wire.truth(body, "stream"),
        wire.ignored(body, _USED),
        wire.truth(options or {}, "include_usage"),
    )


def _reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        **_head(asked, "chat.completion"),
        "choices": [choice],
        "usage": _usage(answer),
        EXTRA: asked.extra(answer),
    }


def _events(asked: Asked, answer: Answer) -> Iterator[bytes]:
    head = _head(asked, "chat.completion.chunk")
    no_usage = {"usage": None} if asked.usage_at_end else {}

    def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return wire.event({**head, "choices": [choice], **no_usage, **more})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in wire.pieces(answer.text):
        yield chunk({"content": piece})
    yield chunk({}, "stop", **{EXTRA: asked.extra(answer)})
    if asked.usage_at_end:
        yield wire.event({**head, "choices": [], "usage": _usage(answer)})
    yield wire.event("[DONE]")


def _error(failing: Failing) -> dict[str, Any]:
    kind = "server_error" if failing.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": failing.message,
            "type": _TYPES.get(failing.status, kind),
            "param": failing.field or None,
            "code": failing.code or None,
        }
    }


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {
        "id": wire.new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": None,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    read, written = (wire.count(answer, f"{part}_tokens") for part in ("prompt", "completion"))
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": wire.count(answer, "cached_tokens")},
    }


CHAT = Wire("chat", _parse, _reply, _events, _error)
