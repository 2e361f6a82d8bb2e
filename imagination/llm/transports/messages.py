"""`MessagesTransport`: the Messages API, by `anthropic`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import anthropic
import pydantic

from imagination.llm.config import LLMConfig
from imagination.llm.requests import LLMError, Request
from imagination.llm.structured import GRAMMAR_ONLY, full_schema, without_keywords
from imagination.llm.transports.base import Transport


@functools.cache
def _api_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The JSON schema in the dialect of the API, by the SDK's own translation.

    What the dialect lacks (lengths, bounds) becomes part of a description, and is checked when
    the answer is validated here.
    """
    try:
        return anthropic.transform_schema(
            without_keywords(schema.model_json_schema(), GRAMMAR_ONLY)
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise LLMError(
            f"The schema {schema.__name__} cannot be asked of an LLM: {error} Use plain fields, "
            "lists, Literal types and nested models."
        ) from None


class MessagesTransport(Transport):
    """Calls of POST /v1/messages. Message Batches go through its `sdk` (see `batches.py`)."""

    name = "the Messages API"
    dialects = (full_schema, _api_schema)
    way_out = " (over api = chat_completions it may hold to them)"

    def __init__(self, config: LLMConfig):
        super().__init__(config, anthropic)
        self.sdk = anthropic.AsyncAnthropic(
            api_key=self.key, base_url=self.full_address, max_retries=0, timeout=config.timeout
        )
        # What a batch refuses is known when it has ended, which may take a day.
        self._first_dialect = int(self.is_official or config.batch)

    def _body(
        self, request: Request, system: str, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "max_tokens": config.answer_limit(request),
            "messages": self.chat(request),
            **config.sampling(request),
        }
        if system:
            cached = {"type": "ephemeral"}
            body["system"] = [{"type": "text", "text": system, "cache_control": cached}]
        if schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return body

    async def _create(self, body: Mapping[str, Any]) -> Any:
        # Raw: no field that the SDK does not know, or has otherwise, can lose an answer.
        return await self.sdk.messages.with_raw_response.create(**self.arguments(body))

    def _read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        blocks = [block for block in message["content"] if block["type"] == "text"]
        return {
            "text": "".join(block["text"] for block in blocks),
            "stop_reason": message.get("stop_reason"),
            "model": message.get("model"),
            "usage": message.get("usage"),
        }
