"""`Transport`: the SDK, its errors in our words, and the key kept out of all of them.

The SDK itself retries 408, 409, 429, 5xx (529 among them) and broken connections, with back-off,
jitter and retry-after honoured. What still fails afterwards ends here as one of two errors:
`NotDelivered` sets one request aside, `LLMError` stops the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import anthropic

from imagination.llm.config import LLMConfig
from imagination.llm.requests import LLMError, NotDelivered
from imagination.llm.secrets import (
    KEY_VARIABLE,
    address_of,
    check_keys,
    problem_of_address,
    without_password,
    without_secrets,
)
from imagination.plain_data import parse_json

PLACEHOLDER_KEY = "no-key-is-set"
_OFFICIAL_HOSTS = ("anthropic.com", "claude.com")

# So many calls in a row that failed for good, with no answer in between: the service is down.
_GIVEN_UP_IN_A_ROW = 8


class Transport:
    """Calls to one service.

    Attributes:
        sdk: The SDK's client.
        address: Where the calls go, for messages: without a password that stands in it.

    Raises:
        LLMError: No key where one is needed, or one that cannot be; no address.
    """

    def __init__(self, config: LLMConfig):
        self.config = config
        check_keys()
        address = address_of(config.base_url)
        self.address = without_password(address)
        if problem := problem_of_address(address):
            raise LLMError(f"The address of the LLM, {self.address!r}, {problem}.")
        self._key = _key(address)
        self.sdk = anthropic.AsyncAnthropic(
            api_key=self._key,
            base_url=address,
            max_retries=config.max_retries,
            timeout=config.timeout,
        )
        self._was_reached = False
        self._given_up_in_a_row = 0

    async def message(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """One call of POST /v1/messages.

        Returns:
            The message (see `read_message`), and how often it had to be sent again.

        Raises:
            NotDelivered: It failed on the way, or something else than a message came back.
            LLMError: The caller's fault, or a service that never answered.
        """
        retries = 0
        for attempt in range(self.config.max_asks + 1):
            with self.errors():
                # Raw: no field that the SDK does not know, or has otherwise, can lose an answer.
                raw = await self.sdk.messages.with_raw_response.create(**body)
            retries += raw.retries_taken
            try:
                return self.read_message(raw.http_response.content), retries
            except NotDelivered as error:
                reason = str(error)
            retries += 1
            await asyncio.sleep(0.1 * 2**attempt)
        raise self._given_up(reason)

    def read_message(self, content: bytes | Mapping[str, Any]) -> dict[str, Any]:
        """Returns `text`, `stop_reason`, `model` and `usage` (as it came) of a message.

        Raises:
            NotDelivered: It is no message.
        """
        try:
            is_raw = isinstance(content, bytes)
            message = parse_json(content, "", ValueError) if is_raw else dict(content)
            blocks = [block for block in message["content"] if block["type"] == "text"]
            text = "".join(block["text"] for block in blocks)
        except (ValueError, KeyError, TypeError):
            shown = content if isinstance(content, bytes) else json.dumps(content).encode()
            raise NotDelivered(
                "something that is not an answer of the Messages API came back: "
                + self.redact(repr(shown[:200].decode(errors="replace")))
            ) from None
        self._was_reached, self._given_up_in_a_row = True, 0
        return {
            "text": self.redact(text),
            "stop_reason": str(message.get("stop_reason") or ""),
            "model": str(message.get("model") or self.config.model),
            "usage": message["usage"] if isinstance(message.get("usage"), dict) else {},
        }

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the SDK raises into `NotDelivered` or `LLMError`, without the key."""
        try:
            yield
        except anthropic.APIStatusError as error:
            raise self._of_status(error) from None
        except anthropic.APIConnectionError as error:
            cause = f" ({error.__cause__})" if str(error.__cause__ or "") else ""
            raise self._given_up(self.redact(f"{error}{cause}")) from None
        except anthropic.AnthropicError as error:
            raise LLMError(self.redact(f"The call to {self.address} failed: {error}")) from None

    def redact(self, text: str) -> str:
        """The text without the key."""
        return without_secrets(text, self._key)

    async def close(self) -> None:
        await self.sdk.close()

    def _of_status(self, error: anthropic.APIStatusError) -> Exception:
        status = error.status_code
        said = self.redact(f"status {status}: {(error.api_message or str(error))[:500]}")
        if status in (408, 409, 429) or status >= 500:
            return self._given_up(said)
        advice = {
            400: f"Check the model {self.config.model!r}, max_tokens and the length of the prompt",
            401: f"Set the environment variable {KEY_VARIABLE} to a valid key",
            402: "Check the billing of the account that the key belongs to",
            403: f"The key in {KEY_VARIABLE} may not do this; use another, or another model",
            404: f"Is there a model {self.config.model!r}, and does {self.address} speak the "
            "Messages API? Set model or base_url",
            413: "The request is too large; shorten the prompt or ask for less at once",
        }.get(status, "Check the model, base_url and the request")
        return LLMError(f"{self.address} did not accept the call ({said}). {advice}.")

    def _given_up(self, reason: str) -> Exception:
        """`NotDelivered`, or `LLMError` where the next call would fare no better."""
        self._given_up_in_a_row += 1
        if not self._was_reached:
            return LLMError(
                f"{self.address} gave no answer: {reason}. Is base_url right, and does the server "
                "speak the Messages API?"
            )
        if self._given_up_in_a_row >= _GIVEN_UP_IN_A_ROW:
            return LLMError(
                f"{self.address} has stopped answering: {reason}. Run again later; the run goes "
                "on where it was."
            )
        return NotDelivered(reason)


def _key(address: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key:
        return key
    host = urlsplit(address).hostname or ""
    if host.endswith(_OFFICIAL_HOSTS):
        raise LLMError(
            f"No API key: set the environment variable {KEY_VARIABLE}, or give the base_url of a "
            "server that needs none."
        )
    return PLACEHOLDER_KEY
