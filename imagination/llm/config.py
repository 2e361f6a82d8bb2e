"""`LLMConfig`: which model, how it is asked, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from imagination.llm.requests import Usage

# The SDK's connection pool holds this many; more calls at once would only wait inside it.
MOST_IN_FLIGHT = 1000


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """How to talk to one model. The API key is not among these: the environment alone has it.

    Attributes:
        model: The model's name, as the service knows it.
        base_url: Any server that speaks the Messages API; "" = the SDK's default.
        max_tokens: Longest answer, where a request names none.
        max_in_flight: Calls that wait for their answer at the same time.
        max_retries: Retries of a call that failed on the way (408, 409, 429, 5xx, connection).
        max_asks: How often a question is put again after an unusable answer.
        timeout: Seconds to wait for an answer.
        batch: `Client.ask_all` sends Message Batches, at batch price.
        batch_poll: Seconds between two looks at an unfinished batch.
        cache: Keep answers on disk, and take them from there.
        cache_max_megabytes: The oldest answers above this size are dropped; 0 = unbounded.
        max_cost: Dollars that may be spent for one folder, earlier runs included; 0 = unbounded.
        price_input, price_output, price_cache_read, price_cache_write: Dollars per million tokens.
        batch_price_factor: What a batch costs as a fraction of these prices.
        price_date: When the prices were written down.

    Raises:
        ValueError: A value that cannot be; the message names the field and what it may be.
    """

    model: str
    base_url: str = ""
    max_tokens: int = 4096
    max_in_flight: int = 32
    max_retries: int = 6
    max_asks: int = 3
    timeout: float = 120.0
    batch: bool = False
    batch_poll: float = 30.0
    cache: bool = True
    cache_max_megabytes: float = 0
    max_cost: float = 0
    price_input: float = 0.0
    price_output: float = 0.0
    price_cache_read: float = 0.0
    price_cache_write: float = 0.0
    batch_price_factor: float = 0.5
    price_date: str = ""

    def __post_init__(self) -> None:
        for field in ("model", "base_url", "price_date"):
            _require(isinstance(getattr(self, field), str), self, field, "text")
        _require(bool(self.model.strip()), self, "model", "the name of a model")
        _require(
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            self,
            "base_url",
            'an address that starts with http:// or https://, or "" for the default',
        )
        for field, least in (("max_tokens", 1), ("max_retries", 0), ("max_asks", 0)):
            value = getattr(self, field)
            _require(_is_whole(value) and value >= least, self, field, f"a whole number >= {least}")
        _require(
            _is_whole(self.max_in_flight) and 1 <= self.max_in_flight <= MOST_IN_FLIGHT,
            self,
            "max_in_flight",
            f"a whole number from 1 to {MOST_IN_FLIGHT}",
        )
        for field in ("batch", "cache"):
            _require(isinstance(getattr(self, field), bool), self, field, "true or false")
        for field in ("timeout", "batch_poll"):
            value = getattr(self, field)
            _require(_is_number(value) and value > 0, self, field, "a positive number of seconds")
        for field in (
            *("cache_max_megabytes", "max_cost", "batch_price_factor"),
            *("price_input", "price_output", "price_cache_read", "price_cache_write"),
        ):
            value = getattr(self, field)
            _require(_is_number(value) and value >= 0, self, field, "a number >= 0")
        # Without prices every call would seem free and the limit would never hold.
        _require(
            not self.max_cost or (self.price_input > 0 and self.price_output > 0),
            self,
            "max_cost",
            "0 where price_input and price_output are not both given",
        )

    def cost(self, tokens: Mapping[str, int], batch: bool = False) -> float:
        """Dollars for token counts, keyed like the fields of `Usage`."""
        price = {
            "input_tokens": self.price_input,
            "output_tokens": self.price_output,
            "cache_read_tokens": self.price_cache_read,
            "cache_write_tokens": self.price_cache_write,
        }
        dollars = sum(count * price[kind] for kind, count in tokens.items()) / 1e6
        return dollars * (self.batch_price_factor if batch else 1.0)

    def worst_cost(self, body: Mapping[str, Any], batch: bool = False) -> float:
        """Dollars that a call will hardly pass: input estimated high, output up to max_tokens."""
        # A token is rarely shorter than three bytes, and the body has its JSON around the words.
        tokens = math.ceil(len(json.dumps(body, ensure_ascii=False).encode(errors="replace")) / 3)
        # The shared prefix may be charged as written to the prompt cache.
        kind = "input" if self.price_input >= self.price_cache_write else "cache_write"
        return self.cost(
            {f"{kind}_tokens": tokens, "output_tokens": body["max_tokens"]},
            batch,
        )

    def usage(self, counted: Mapping[str, Any], batch: bool = False) -> Usage:
        """The `usage` figures of an answer, with their price. What is missing counts as 0."""

        def count(name: str) -> int:
            value = counted.get(name)
            return max(0, value) if _is_whole(value) else 0

        tokens = {
            "input_tokens": count("input_tokens"),
            "output_tokens": count("output_tokens"),
            "cache_read_tokens": count("cache_read_input_tokens"),
            "cache_write_tokens": count("cache_creation_input_tokens"),
        }
        return Usage(**tokens, cost=self.cost(tokens, batch))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _require(condition: bool, config: LLMConfig, field: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"LLMConfig.{field} must be {expected}, got {getattr(config, field)!r}.")
