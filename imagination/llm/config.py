"""`LLMConfig`: a model, how it is spoken to, the limits on asking it, and its prices."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping
from typing import Any

from ilql_jax.settings import SettingError, Settings, setting
from imagination.llm.requests import Request, Usage
from imagination.llm.secrets import APIS, problem_of_address
from imagination.plain_data import parse_json

# The SDK's connection pool holds this many; more calls at once would only wait inside it.
MOST_IN_FLIGHT = 1000
_MOST_TOKENS = 10**9  # of one answer
# Fields of sampling, with the value at which none is sent.
_SAMPLING = {
    "temperature": -1,
    "top_p": 0,
    "top_k": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "seed": -1,
}
# Settings that an api has no use for, with the value that they must have there.
ABSENT = {
    "messages": {
        name: _SAMPLING[name] for name in ("presence_penalty", "frequency_penalty", "seed")
    },
    "chat_completions": {"batch": False},
}
# Fields of a call that the client writes itself, or whose answers it could not read.
_OWN_FIELDS = (
    *("model", "messages", "system", "max_tokens", "max_completion_tokens"),
    *("output_config", "response_format", "stream", "n"),
)


def price(tokens: str) -> Any:
    """The setting of a price, 0 = not known, of tokens of a kind."""
    return setting(f"Dollars per million {tokens}.", 0.0, least=0, shapes_result=False)


def penalty(tokens: str) -> Any:
    """The setting of a penalty, 0 = none is sent, that the Messages API has not."""
    return setting(f"Penalty on {tokens}, for chat completions.", 0.0, least=-2, most=2)


@dataclasses.dataclass(frozen=True)
class LLMConfig(Settings):
    """Settings of one model. The API key is not among them: the environment alone has it.

    Raises:
        SettingError: A value out of bounds; its message names the field and its bounds.
    """

    model: str = setting("Name of the model, as the service knows it.")
    base_url: str = setting(
        "Address of any server that speaks this api; empty = the company's own. A password in it "
        "(https://name:password@host) is written nowhere.",
        "",
    )
    api: str = setting(
        "Wire format: the Messages API, or chat completions, which most servers speak (needs the "
        "package openai, and a base_url with its /v1).",
        "messages",
        choices=APIS,
    )
    temperature: float = setting(
        "Sampling temperature; -1 = the service's own.", -1.0, least=-1, most=2
    )
    top_p: float = setting(
        "Probability of the tokens that are sampled from; 0 = the service's own.",
        0.0,
        least=0,
        most=1,
    )
    top_k: int = setting(
        "Number of likeliest tokens that are sampled from; 0 = the service's own. Most servers of "
        "chat completions have it, OpenAI's has not.",
        0,
        least=0,
    )
    presence_penalty: float = penalty("tokens that came before")
    frequency_penalty: float = penalty("tokens, by how often they came before")
    seed: int = setting(
        "Seed of sampling, for chat completions; each sample of a question has its own drawn from "
        "it; -1 = none is sent.",
        -1,
        least=-1,
    )
    extra_body: str = setting(
        "Further fields of a call that a server has of its own, as a JSON object, such as "
        '{"min_p": 0.05, "repeat_penalty": 1.1}.',
        "",
    )
    max_tokens: int = setting("Longest answer, where a request names none.", 4096, least=1)
    max_in_flight: int = setting(
        "Calls that wait for their answer at the same time.",
        64,
        least=1,
        most=MOST_IN_FLIGHT,
        shapes_result=False,
    )
    max_retries: int = setting(
        "Retries of a call that failed on the way (408, 409, 429, 5xx, connection).",
        6,
        least=0,
        shapes_result=False,
    )
    max_asks: int = setting("Repetitions of a question after an unusable answer.", 3, least=0)
    timeout: float = setting(
        "Seconds to wait for an answer. After as many more, so that a slow server can come to an "
        "end, it is asked once again; likewise where a proxy says 408 or 504.",
        120.0,
        above=0,
        shapes_result=False,
    )
    batch: bool = setting(
        "Ask by Message Batches, at batch price, where nothing waits for a single answer.",
        False,
        shapes_result=False,
    )
    batch_poll: float = setting(
        "Seconds between two looks at an unfinished batch.", 30.0, above=0, shapes_result=False
    )
    cache: bool = setting(
        "Keep answers on disk, and take them from there.", True, shapes_result=False
    )
    cache_max_megabytes: float = setting(
        "The oldest answers above this size are dropped; 0 = unbounded.",
        0.0,
        least=0,
        shapes_result=False,
    )
    max_cost: float = setting(
        "Dollars that one folder of answers may cost, earlier runs included; 0 = unbounded.",
        0.0,
        least=0,
        shapes_result=False,
    )
    price_input: float = price("input tokens")
    price_output: float = price("output tokens")
    price_cache_read: float = price("tokens read from the prompt cache")
    price_cache_write: float = price("tokens written to the prompt cache")
    batch_price_factor: float = setting(
        "Price of a batch as a fraction of these prices.", 0.5, least=0, shapes_result=False
    )
    price_date: str = setting("Date of these prices.", "", shapes_result=False)
    free: bool = setting(
        "The model costs nothing, as one on this machine: max_cost asks for no prices of it.",
        False,
        shapes_result=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.strip():
            raise SettingError("model", self.model, "must be the name of a model")
        if self.base_url and (problem := problem_of_address(self.base_url)):
            # Where the password ends in what is no address cannot be told.
            shown = f"...@{self.base_url.rpartition('@')[2]}"
            shown = shown if "@" in self.base_url else self.base_url
            raise SettingError("base_url", shown, problem)
        if -1 < self.temperature < 0:
            raise SettingError("temperature", self.temperature, "must be at least 0, or -1")
        for name, none in ABSENT[self.api].items():
            if (value := getattr(self, name)) != none:
                problem = f"must be {str(none).lower()} where api is {self.api}, which has none"
                raise SettingError(name, value, problem)
        self._further_fields()
        # Without prices every call would seem free and the limit would never hold.
        if self.max_cost and not self.is_priced:
            raise SettingError(
                "max_cost",
                self.max_cost,
                f"must be 0 where price_input and price_output of {self.model!r} are not both "
                "given; a model that costs nothing has free=true",
            )
        if self.free and (self.price_input or self.price_output):
            raise SettingError("free", True, f"must be false where {self.model!r} has prices")

    @property
    def is_priced(self) -> bool:
        """True where it is known what a call costs."""
        return self.free or (self.price_input > 0 and self.price_output > 0)

    @property
    def determining(self) -> tuple[Any, ...]:
        """Further settings that an answer depends on, beside the model; () = the usual ones."""
        sampling = self.sampling()
        return (self.api, sampling) if sampling or self.api != "messages" else ()

    def sampling(self, request: Request | None = None) -> dict[str, Any]:
        """The sampling fields of a call's body: those that are set.

        Args:
            request: Question whose seed is drawn; None = the seed as it is set.
        """
        fields = {name: getattr(self, name) for name in _SAMPLING}
        fields = {name: value for name, value in fields.items() if value != _SAMPLING[name]}
        if request is not None and "seed" in fields:
            # With one seed for all, another sample of a question would be the same again.
            drawn = random.Random(f"{self.seed} {request.resample} {request.attempt}")
            fields["seed"] = drawn.randrange(2**31)
        return fields | self._further_fields()

    def _further_fields(self) -> dict[str, Any]:
        """The fields of `extra_body`; raises `SettingError` for what is none."""
        if not self.extra_body:
            return {}
        try:
            fields = parse_json(self.extra_body, "", ValueError)
            json.dumps(fields, allow_nan=False)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            problem = 'must be a JSON object of finite values, such as {"min_p": 0.05}, or ""'
            raise SettingError("extra_body", self.extra_body, problem)
        if taken := sorted(fields.keys() & {*_OWN_FIELDS, *_SAMPLING}):
            problem = f"must not name {', '.join(taken)}, which the other settings of a model give"
            raise SettingError("extra_body", self.extra_body, problem)
        return fields

    def answer_limit(self, request: Request) -> int:
        """Tokens of the longest answer to a request."""
        return request.max_tokens or self.max_tokens

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

    def worst_cost(self, body: Mapping[str, Any], limit: int, batch: bool = False) -> float:
        """Dollars that a call will hardly pass: input estimated high, output up to the limit."""
        # A token is rarely shorter than three bytes, and the body has its JSON around the words.
        tokens = math.ceil(len(json.dumps(body, ensure_ascii=False).encode(errors="replace")) / 3)
        # The shared prefix may be charged as written to the prompt cache.
        kind = "input" if self.price_input >= self.price_cache_write else "cache_write"
        return self.cost(
            {f"{kind}_tokens": tokens, "output_tokens": limit},
            batch,
        )

    def usage(self, counted: Mapping[str, Any], batch: bool = False) -> Usage:
        """The `usage` figures of an answer, with their price. What is missing counts as 0."""

        def count(name: str) -> int:
            value = counted.get(name)
            # Some servers write what no answer can have cost.
            return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0

        tokens = {
            "input_tokens": count("input_tokens"),
            "output_tokens": count("output_tokens"),
            "cache_read_tokens": count("cache_read_input_tokens"),
            "cache_write_tokens": count("cache_creation_input_tokens"),
        }
        return Usage(**tokens, cost=self.cost(tokens, batch))
