"""`ChatCompletionsTransport`: chat completions, which most servers speak, by `openai`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pydantic

from imagination.llm.config import LLMConfig
from imagination.llm.requests import LLMError, Request
from imagination.llm.structured import GRAMMAR_ONLY, closed, full_schema, without_keywords
from imagination.llm.transports.base import Transport

# What strict structured output of the official service does not take; it is checked here.
_NOT_STRICT = (*GRAMMAR_ONLY, "minLength", "maxLength", "default", "title")
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal", "stop": "end_turn"}


@functools.cache
def _strict_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The part of the schema that strict structured output takes."""
    return closed(without_keywords(schema.model_json_schema(), _NOT_STRICT))


class ChatCompletionsTransport(Transport):
    """Calls of POST /chat/completions below the address, which ends in /v1 with most servers."""

    name = "chat completions"
    dialects = (full_schema, _strict_schema)
    shows_form = True

    def __init__(self, config: LLMConfig):
        try:
            import openai
        except ImportError:
            raise LLMError(
                "api = chat_completions needs the package openai. Install it: "
                "pip install 'ilql-jax[openai]' (or pip install openai)."
            ) from None
        super().__init__(config, openai)
        self.sdk = openai.AsyncOpenAI(
            api_key=self.key, base_url=self.full_address, max_retries=0, timeout=config.timeout
        )
        self._first_dialect = int(self.is_official)
        if self.is_official and config.top_k:
            raise LLMError(
                f"top_k is {config.top_k}, but {self.address} has no such field. Set it to 0, or "
                "base_url to a server that has it."
            )

    def _body(
        self, request: Request, system: str, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        # The official service calls it so for all models; others know the older name.
        limit = "max_completion_tokens" if self.is_official else "max_tokens"
        opening = [{"role": "system", "content": system}] if system else []
        body: dict[str, Any] = {
            "model": self.config.model,
            limit: self.config.answer_limit(request),
            "messages": [*opening, *self.chat(request)],
            **self.config.sampling(request),
        }
        if schema is not None:
            named = {"name": request.schema.__name__, "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    async def _create(self, body: Mapping[str, Any]) -> Any:
        return await self.sdk.chat.completions.with_raw_response.create(**self.arguments(body))

    def _read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        choice = message["choices"][0]
        said = choice["message"]
        reason = choice.get("finish_reason")
        usage = message.get("usage")
        return {
            "text": _text(said.get("content")),
            "stop_reason": "refusal" if said.get("refusal") else _STOP_REASONS.get(reason, reason),
            "model": message.get("model"),
            "usage": _usage(usage) if isinstance(usage, dict) else None,
        }


def _text(content: Any) -> str:
    """The words of a message: a text, none, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The counts by the names of the Messages API, where cached tokens are no input tokens."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt = usage.get("prompt_tokens")
    if type(cached) is not int or type(prompt) is not int or not 0 <= cached <= prompt:
        cached = 0
    return {
        "input_tokens": prompt - cached if type(prompt) is int else prompt,
        "output_tokens": usage.get("completion_tokens"),
        "cache_read_input_tokens": cached,
    }
