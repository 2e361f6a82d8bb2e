"""`Exchange`: a request, the unusable replies to it, and the request that asks again.

First another sample is asked for, as most faults are slips, if that is not the last ask. After
that the question is put with the reply and its fault; a reply that was shown once and comes again
is not shown again, as that would make it likelier still. The same replies always lead to the same
exchange, so a cache of replies is all that a resumed run needs to go on in the middle of one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pydantic

from imagination.checks import without_surrogates
from imagination.llm.cache import Reply
from imagination.llm.requests import CUT_OFF, Answer, Declined, Failure, Request, Usage
from imagination.llm.structured import json_of, json_wish

# The API takes no empty message, so an empty answer needs a stand-in.
_NOTHING_SAID = "(no answer)"
_MOST_ERRORS = 5
_TOO_LONG = "it was cut off before its end because it was too long"
# Attempts of one run are counted from here on, times the runs that asked in vain before.
_ATTEMPTS_OF_A_RUN = 1000

# Escapes of JSON: a pair of halves, a half alone, any other (a backslash with what it escapes).
_PAIR, _HALF = r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", r"\\u[dD][89a-fA-F].."
_ESCAPE = re.compile(rf"{_PAIR}|(?P<half>{_HALF})|\\.", re.DOTALL)


def _whole_sign(escape: re.Match[str]) -> str:
    """Half of a sign, which a cut answer may hold, as "?"; other escapes as they are."""
    return "?" if escape["half"] else escape[0]


class Exchange:
    """One request on its way to an answer.

    Args:
        request: The request.
        max_asks: Repetitions after unusable replies.
        runs_before: Earlier runs that set the request aside; this one asks anew.
        has_samples: False where the same question always has the same answer.

    Attributes:
        tip: The request to send next.
        usage: Tokens and cost of all replies so far.
    """

    def __init__(
        self, request: Request, max_asks: int, runs_before: int = 0, has_samples: bool = True
    ):
        self.tip = dataclasses.replace(request, attempt=runs_before * _ATTEMPTS_OF_A_RUN)
        self._request = request
        self._max_asks = max_asks
        self._has_samples = has_samples
        self._faults: list[tuple[Reply, str]] = []
        self._shown: set[str] = set()
        self.usage = Usage()

    @property
    def asked_again(self) -> bool:
        """True where the tip asks again."""
        return bool(self._faults)

    def take(self, reply: Reply, from_cache: bool) -> Answer | Failure | None:
        """Takes the reply to the tip. None: it is unusable, and there is a new tip to send."""
        self.usage += reply.usage
        try:
            parsed, fault = parse_reply(self._request, reply)
        except Declined as error:
            # It is not argued with: other samples say whether it is meant.
            self._faults.append((reply, str(error)))
            if len(self._faults) > self._max_asks:
                return Failure(self._request, str(error), self.usage)
            self.tip = self._question()
            return None
        if not fault:
            return Answer(reply.text, parsed, reply.model, self.usage, from_cache)
        self._faults.append((reply, fault))
        if len(self._faults) > self._max_asks:
            times = len(self._faults)
            reason = f"no usable answer in {times} asks; the last: {fault}"
            return Failure(self._request, reason, self.usage)
        self.tip = self._put_again(reply, fault)
        return None

    def _question(self) -> Request:
        """The request itself, once more."""
        return dataclasses.replace(self._request, attempt=self.tip.attempt + 1)

    def _put_again(self, reply: Reply, fault: str) -> Request:
        is_first = len(self._faults) == 1 and self._max_asks > 1
        question = self._question()
        if is_first and self._has_samples and fault != _TOO_LONG:
            return question
        text = without_surrogates(reply.text).rstrip() or _NOTHING_SAID
        wish = f"cannot be used: {fault}. Answer again, in full"
        if fault == _TOO_LONG:
            wish += ", and keep it much shorter"
        if self._request.schema:
            wish += f", with {json_wish(self._request)}"
        messages = self._request.messages
        if text in self._shown:
            *before, (_, asked) = messages
            messages = (*before, ("user", f"{asked}\n\n(An answer given before {wish}.)"))
        else:
            self._shown.add(text)
            messages = (*messages, ("assistant", text), ("user", f"This answer {wish}."))
        return dataclasses.replace(question, messages=messages)

    def to_json(self) -> dict[str, Any]:
        """The exchange as a record of a failure."""
        return {
            "request": self._request.to_json(),
            "usage": dataclasses.asdict(self.usage),
            "replies": [
                {
                    "text": reply.text,
                    "stop_reason": reply.stop_reason,
                    "model": reply.model,
                    "wrong": fault,
                }
                for reply, fault in self._faults
            ],
        }


def parse_reply(request: Request, reply: Reply) -> tuple[pydantic.BaseModel | None, str]:
    """Returns the reply as the request's schema, and its fault ("" = none).

    Raises:
        Declined: By the request's check.
    """
    if reply.stop_reason in CUT_OFF:
        return None, _TOO_LONG
    if reply.stop_reason == "refusal":
        return None, "it was a refusal"
    if not reply.text.strip():
        return None, f"it was empty (stop reason {reply.stop_reason or 'unknown'})"
    if request.schema is None:
        return None, ""
    try:
        parsed = request.schema.model_validate_json(_json_of(reply.text))
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)[:_MOST_ERRORS]
        details = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in errors
        )
        return None, f"it did not fit the schema ({details})"
    try:
        if request.check:
            request.check(parsed)
    except Declined:
        raise
    except ValueError as error:
        return None, f"it is not what was asked for ({error})"
    return parsed, ""


def _json_of(text: str) -> str:
    return _ESCAPE.sub(_whole_sign, json_of(text))
