"""`Transport`: an SDK, its errors in our words, and the key kept out of all of them.

What fails on the way (408, 409, 429, 5xx, a broken connection) is sent again here, with back-off,
jitter and retry-after honoured, and not by the SDK: that would send a question again at once on
which a slow server is still computing. Such a time-out, the SDK's own or that of a proxy in between
(408, 504), is waited for as long again, once. What fails afterwards ends as one of two errors:
`NotDelivered` sets one request aside, `LLMError` stops the run.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import json
import logging
import os
import random
import re
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pydantic

from imagination.checks import without_surrogates
from imagination.llm.config import LLMConfig
from imagination.llm.requests import CUT_OFF, LLMError, NotDelivered, Request
from imagination.llm.secrets import (
    address_of,
    check_keys,
    environment_of,
    problem_of_address,
    without_password,
    without_secrets,
)
from imagination.llm.structured import begins_as_json, form_in_words, holds_to, json_wish
from imagination.plain_data import parse_json

PLACEHOLDER_KEY = "no-key-is-set"

# So many calls in a row that failed for good, with no answer in between: the service is down.
_GIVEN_UP_IN_A_ROW = 8
# A server that was too slow is given the time to come to an end, then asked once more.
_MOST_TIMEOUTS = 1
# As proxies say that they have waited long enough, while the server behind them computes on.
_TIMEOUTS = (408, 504)
_FOR_SLOW_SERVERS = "lower max_in_flight, for a slow server"
# What servers say of a schema that they cannot take; the last where its grammar fails inside. The
# official services name it.
_MAY_BE_OF_SCHEMA = (400, 422, 500)
_NAMES_SCHEMA = re.compile(
    r"output.?(config|format)|response.?format|json.?schema|structured.?output|grammar", re.I
)
_LONGEST_RETRY_AFTER = 60.0  # seconds; who says more is asked after the usual back-off

Schema = type[pydantic.BaseModel]
Dialect = Callable[[Schema], dict[str, Any]]

logger = logging.getLogger(__name__)


class Transport(abc.ABC):
    """Calls to one service in one wire format.

    Args:
        config: The model, the address and the limits.
        library: The SDK's module. Both SDKs have the same classes of errors.

    Attributes:
        sdk: The SDK's client; set by the subclass.
        key: The API key that is sent, or a placeholder for servers that need none.
        address: Address of the calls, for messages: without a password that stands in it.

    Raises:
        LLMError: No key where one is needed, or one that cannot be; no address.
    """

    name: ClassVar[str]  # of the wire format, for messages
    dialects: ClassVar[tuple[Dialect, ...]]  # forms of a schema, the tightest first
    shows_form: ClassVar[bool] = False  # servers other than the official one show models no schema
    way_out: ClassVar[str] = ""  # said where a server ignores schemas

    def __init__(self, config: LLMConfig, library: types.ModuleType):
        self.config = config
        self._library = library
        self._environment = environment_of(config.api)
        check_keys(config.api)
        self.full_address = address_of(config.base_url, config.api)
        self.address = without_password(self.full_address)
        if problem := problem_of_address(self.full_address):
            raise LLMError(f"The address of the LLM, {self.address!r}, {problem}.")
        self.key = self._find_key()
        self.sdk: Any = None
        self._was_reached = False
        self._told_of_waiting = False
        self._given_up_in_a_row = 0
        self._first_dialect = 0  # of schemas that are new; the number of `dialects` = words alone
        self._dialects: dict[Schema, int] = {}  # of those that were refused or answered
        self._taken: set[Schema] = set()  # were answered
        self._refused: dict[Schema, str] = {}  # what the server said
        self._told_of_words: set[str] = set()
        self._explained = False
        # The official services hold to schemas, or refuse them: nobody has to wait for the first
        # answer there.
        self._has_answered = self._is_checked = self.is_official
        self._first = asyncio.Lock()

    # What a wire format is

    @abc.abstractmethod
    def _body(
        self, request: Request, system: str, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The body of a call; `schema` None = none is sent."""

    @abc.abstractmethod
    async def _create(self, body: Mapping[str, Any]) -> Any:
        """Sends one call by the SDK; returns its raw response."""

    @abc.abstractmethod
    def _read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """`text`, `stop_reason`, `model` and `usage`, in the words of the Messages API.

        Raises:
            KeyError, TypeError, ValueError, IndexError: It is no message of this format.
        """

    # Calls

    def body(self, request: Request) -> dict[str, Any]:
        """The body of the call that asks a request, with its schema as this server takes it.

        Raises:
            LLMError: A schema that structured output cannot express.
        """
        system = without_surrogates(request.system)
        schema = self._sent_schema(request)
        if request.schema and (self._explained or schema is None):
            system = f"{system}\n\nAnswer with {json_wish(request)}".lstrip()
        elif request.schema and self.shows_form and not self.is_official:
            form = form_in_words(request.schema)
            system = f"{system}\n\nAnswer with one line of JSON: {form}".lstrip()
        return self._body(request, system, schema)

    def arguments(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as the arguments of its SDK, with the fields of sampling beside them.

        The newest SDK of the Messages API has none any more, as the newest models have none, and
        no SDK has those of other companies' servers.
        """
        sampling = {name: body[name] for name in self.config.sampling()}
        known = {name: value for name, value in body.items() if name not in sampling}
        return {**known, "extra_body": sampling}

    def chat(self, request: Request) -> list[dict[str, str]]:
        """The messages of a request as both wire formats have them."""
        return [
            {"role": role, "content": without_surrogates(content)}
            for role, content in request.messages
        ]

    @contextlib.asynccontextmanager
    async def turn_of(self, request: Request) -> AsyncIterator[None]:
        """Lets the first request with a schema go alone: its answer tells how to put the rest."""
        if request.schema is not None and not self._has_answered:
            async with self._first:
                if not self._has_answered:
                    yield
                    return
        yield

    async def ask(self, request: Request) -> tuple[dict[str, Any], int]:
        """Asks one request by a call of its own.

        A server that refuses a schema, or fails over it, before it has answered one of this class
        is asked with a simpler one, in the end with none but in words. One that fails at these,
        too, has failed for another reason, and is sent the schema as before by the next request.

        Returns:
            The message (see `read_message`), and how often it had to be sent again.

        Raises:
            NotDelivered: It failed on the way, or something else than a message came back.
            LLMError: The caller's fault, or a service that never answered.
        """
        retries, most_failures = 0, self.config.max_retries
        while True:
            dialect = self.dialect_of(request.schema)
            try:
                message, again = await self._send(self.body(request), most_failures)
            except self._library.APIStatusError as error:
                said = self.said_by(error)
                may_be_of_schema = error.status_code in _MAY_BE_OF_SCHEMA and (
                    names_schema(said) or not self.is_official
                )
                if not may_be_of_schema or not self.steps_down(request.schema, dialect, said):
                    if request.schema not in self._taken:
                        self._dialects.pop(request.schema, None)
                    raise self._of_status(error) from None
                if is_temporary(error):
                    most_failures = 0  # it had its retries
            else:
                self.took(request.schema, dialect)
                return message, retries + again
            retries += 1

    def read_message(self, content: bytes | Mapping[str, Any]) -> dict[str, Any]:
        """Returns `text`, `stop_reason`, `model` and `usage` of a message.

        The words are those of the Messages API in every format: `max_tokens` and `refusal` among
        the reasons, `input_tokens`, `output_tokens` and `cache_read_input_tokens` in the usage.

        Raises:
            NotDelivered: It is no message.
        """
        try:
            is_raw = isinstance(content, bytes)
            read = self._read(parse_json(content, "", ValueError) if is_raw else dict(content))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            shown = content if isinstance(content, bytes) else json.dumps(content).encode()
            raise NotDelivered(
                f"something that is not an answer of {self.name} came back: "
                + self.redact(repr(shown[:200].decode(errors="replace")))
            ) from None
        self._was_reached, self._given_up_in_a_row = True, 0
        return {
            "text": self.redact(read["text"]),
            "stop_reason": str(read["stop_reason"] or ""),
            "model": str(read["model"] or self.config.model),
            "usage": read["usage"] if isinstance(read["usage"], dict) else {},
        }

    def saw(self, request: Request, message: Mapping[str, Any]) -> None:
        """Takes a message as evidence of what the server does with schemas.

        Where the first whole answer does not hold to its schema, or any other is no JSON at all,
        the schema goes into the prompt from then on, in words.
        """
        text, reason = message["text"], message["stop_reason"]
        if request.schema is None or not text.strip() or reason == "refusal":
            return
        self._has_answered = True
        schema = self._sent_schema(request)
        if self._explained or schema is None:
            return
        # One that was asked again may have got the schema in words.
        was_told = json_wish(request) in request.messages[-1][1]
        is_check = not (self._is_checked or was_told or reason in CUT_OFF)
        self._is_checked |= is_check
        if not (holds_to(text, schema) if is_check else begins_as_json(text)):
            self._explained = True
            way_out = "" if self.is_official else self.way_out
            what = f"answered {request.step!r} in another form than its schema{way_out}"
            self._tell_of_words(what)

    def dialect_of(self, schema: Schema | None) -> int:
        """Number of the form in which a schema is sent; that of `dialects` = in words alone."""
        return self._dialects.get(schema, self._first_dialect)

    def steps_down(self, schema: Schema | None, dialect: int, said: str) -> bool:
        """Goes on to a simpler form of a schema that was refused.

        Args:
            schema: The schema; None = none was sent.
            dialect: Its form that was refused.
            said: The service's words.

        Returns:
            True if there is one, be it in words, to send the request with again.
        """
        if schema is None:
            return False
        if dialect < self.dialect_of(schema):
            return True  # meanwhile another call has found that
        if schema in self._taken or dialect == len(self.dialects):
            return False
        self._refused[schema] = said[:200]
        self._dialects[schema] = dialect + 1
        return True

    def took(self, schema: Schema | None, dialect: int) -> None:
        """Notes that a schema was answered in a dialect."""
        if schema is None or schema in self._taken:
            return
        if not self._taken:
            # Others are likely to be refused as the first one was.
            self._first_dialect = max(self._first_dialect, dialect)
        self._taken.add(schema)
        self._dialects[schema] = dialect
        if dialect == len(self.dialects) and schema in self._refused:
            name = "" if self._first_dialect == dialect else schema.__name__
            which = f"the schema {name}" if name else "a schema"
            self._tell_of_words(f"does not take {which} ({self._refused[schema]})", name)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the SDK raises into `NotDelivered` or `LLMError`, without the key."""
        try:
            yield
        except self._library.APIStatusError as error:
            raise self._of_status(error) from None
        except self._library.APIConnectionError as error:
            raise self._of_connection(error) from None
        except self._sdk_error as error:
            raise self._of_sdk(error) from None

    def said_by(self, error: Any) -> str:
        """Status and words of an error of the SDK, in one line, without the key."""
        words = self.redact(" ".join(words_of(error.body).split()))[:500]
        return f"status {error.status_code}" + (f": {words}" if words else "")

    def redact(self, text: str) -> str:
        """The text without the key."""
        return without_secrets(text, self.key)

    async def close(self) -> None:
        await self.sdk.close()

    @property
    def is_official(self) -> bool:
        """True where the calls go to the company that the wire format is of."""
        host = urlsplit(self.full_address).hostname or ""
        return any(host == own or host.endswith(f".{own}") for own in self._environment.hosts)

    async def _send(
        self, body: Mapping[str, Any], most_failures: int
    ) -> tuple[dict[str, Any], int]:
        """As `ask`; the status of a call that was refused is raised as the SDK has it.

        Args:
            body: The body of the call.
            most_failures: Retries after which a status is raised that may pass.
        """
        retries = odd = timeouts = 0
        while True:
            try:
                raw = await self._create(body)
            except self._library.APIStatusError as error:
                if not is_temporary(error) or retries >= most_failures:
                    raise
                if error.status_code in _TIMEOUTS and delay_asked_for(error) is None:
                    timeouts += 1
                    if timeouts > _MOST_TIMEOUTS:
                        raise
                    await self._wait_out(f"status {error.status_code}; {_FOR_SLOW_SERVERS}")
                else:
                    await asyncio.sleep(retry_delay(retries, error))
            except self._library.APITimeoutError:
                timeouts += 1
                if timeouts > min(_MOST_TIMEOUTS, self.config.max_retries):
                    raise self._given_up(self._too_slow(timeouts)) from None
                await self._wait_out(self._too_slow(1))
            except self._library.APIConnectionError as error:
                if retries >= self.config.max_retries:
                    raise self._of_connection(error) from None
                await asyncio.sleep(retry_delay(retries, error))
            except self._sdk_error as error:
                raise self._of_sdk(error) from None
            else:
                try:
                    return self.read_message(raw.http_response.content), retries
                except NotDelivered as error:
                    odd += 1
                    if odd > self.config.max_asks:
                        raise self._given_up(str(error)) from None
                await asyncio.sleep(0.1 * 2**odd)
            retries += 1

    @property
    def _sdk_error(self) -> type[Exception]:
        """The base of all that the SDK raises."""
        return self._library.APIError.__base__

    def _too_slow(self, times: int) -> str:
        return (
            f"no answer within {self.config.timeout:g} s"
            f"{', twice' if times > 1 else ''}; raise timeout, or {_FOR_SLOW_SERVERS}"
        )

    async def _wait_out(self, what: str) -> None:
        """Gives a server that was too slow the time to come to an end.

        Says so once: it looks as if the run stood still.
        """
        if not self._told_of_waiting:
            self._told_of_waiting = True
            logger.warning(
                "%s: %s. What it was too slow for is asked once more after %g s",
                self.address,
                what,
                self.config.timeout,
            )
        await asyncio.sleep(self.config.timeout)

    def _sent_schema(self, request: Request) -> dict[str, Any] | None:
        """The schema of a request as this server takes it; None = it has none, or in words."""
        dialect = self.dialect_of(request.schema)
        if request.schema is None or dialect == len(self.dialects):
            return None
        return self.dialects[dialect](request.schema)

    def _tell_of_words(self, what: str, name: str = "") -> None:
        """Says, once for each name of a schema ("" = all), that it goes into the prompt."""
        if name not in self._told_of_words:
            self._told_of_words.add(name)
            logger.warning(
                "%s %s; from now on %s goes into the prompt, in words",
                self.address,
                what,
                "this one" if name else "the schema",
            )

    def _of_status(self, error: Any) -> Exception:
        status, said = error.status_code, self.said_by(error)
        if is_temporary(error):
            if self.is_official:
                return self._given_up(said, "Run again later.")
            return self._given_up(
                said, "Look at its log, or at the server behind it if it is a proxy, and run again."
            )
        variable = self._environment.key
        is_set = "" if self.key != PLACEHOLDER_KEY else ", which is not set"
        advice = {
            400: f"Check the model {self.config.model!r}, max_tokens and the length of the prompt"
            # LiteLLM without a database has this status, and no word of it, for unknown keys.
            + ("" if self.is_official else f"; and the key in {variable}{is_set}"),
            401: f"Set the environment variable {variable} to a valid key",
            402: "Check the billing of the account that the key belongs to",
            403: f"The key in {variable} may not do this; use another, or another model",
            404: f"Is there a model {self.config.model!r}, and does {self.address} speak "
            f"{self.name}? Set model, base_url or api",
            413: "The request is too large; shorten the prompt or ask for less at once",
        }.get(status, "Check the model, base_url and the request")
        return LLMError(f"{self.address} did not accept the call ({said}). {advice}.")

    def _of_connection(self, error: Any) -> Exception:
        cause = f" ({error.__cause__})" if str(error.__cause__ or "") else ""
        return self._given_up(self.redact(f"{error}{cause}"))

    def _of_sdk(self, error: Exception) -> LLMError:
        return LLMError(self.redact(f"The call to {self.address} failed: {error}"))

    def _given_up(self, reason: str, advice: str = "") -> Exception:
        """`NotDelivered`, or `LLMError` where the next call would fare no better."""
        self._given_up_in_a_row += 1
        if not self._was_reached:
            advice = advice or f"Is base_url right, and does the server speak {self.name} (api)?"
            return LLMError(f"{self.address} gave no answer: {reason.rstrip('.')}. {advice}")
        if self._given_up_in_a_row >= _GIVEN_UP_IN_A_ROW:
            return LLMError(
                f"{self.address} has stopped answering: {reason}. Run again later; the run goes "
                "on where it was."
            )
        return NotDelivered(reason)

    def _find_key(self) -> str:
        key = os.environ.get(self._environment.key, "").strip()
        if not key and self.is_official:
            raise LLMError(
                f"No API key: set the environment variable {self._environment.key}, or give the "
                "base_url of a server that needs none."
            )
        return key or PLACEHOLDER_KEY


def words_of(body: Any) -> str:
    """The words in the body of an error, whichever of the usual fields they stand in."""
    if isinstance(body, Mapping):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return words_of(body[name])
    if isinstance(body, str):
        return body
    return json.dumps(body) if body else ""


def names_schema(said: str) -> bool:
    """True if a service's words are about the schema that was sent."""
    return bool(_NAMES_SCHEMA.search(said))


def is_temporary(error: Any) -> bool:
    """True where the same call may be accepted later."""
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def retry_delay(attempt: int, error: Exception) -> float:
    """Seconds to wait: what the service says, else back-off with jitter."""
    said = delay_asked_for(error)
    return min(0.5 * 2**attempt, 8.0) * random.uniform(0.75, 1.0) if said is None else said


def delay_asked_for(error: Exception) -> float | None:
    """Seconds that the service says to wait; None = it says none, or too many."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            said = float(headers[name]) * unit
        except (KeyError, ValueError, TypeError):
            continue
        if 0 <= said <= _LONGEST_RETRY_AFTER:
            return said
    return None
