"""Guards around the pages: headers, limits of size and rate, forms that cannot be forged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.human_study.store import Store
from experiments.human_study.words import ENGLISH, Words

MOST_BYTES = 256 * 1024  # of a form; the longest text that is kept has 5,000 characters
MOST_FIELDS = 200
MOST_ADDRESSES = 10_000  # remembered, in memory alone

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers would then hide the origin of forms, by which forged ones are known.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TooLarge(Exception):
    """A body of more bytes than a form can have."""


class Guard:
    """ASGI middleware: strict headers on everything, and limits before anything is read.

    Args:
        app: The pages.
        per_second: Requests from one address in the long run; ten times as many at once.
        words: Words of the study.
        clock: Seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        per_second: float,
        words: Words = ENGLISH,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._app, self._per_second, self._words, self._clock = app, per_second, words, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                is_file = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "max-age=3600" if is_file else "no-store")
            await send(message)

        if not self._allows(_network(scope["client"][0] if scope.get("client") else "")):
            text = self._words("too_many_requests")
            response = Response(text, 429, {"Retry-After": "2"}, "text/plain; charset=utf-8")
            await response(scope, receive, with_headers)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length[:12]) > MOST_BYTES:
            text = self._words("too_large")
            response = Response(text, 413, media_type="text/plain; charset=utf-8")
            await response(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _allows(self, address: str) -> bool:
        """Takes one from the address's bucket, which fills by `per_second`."""
        now, most = self._clock(), 10 * self._per_second
        left, at = self._buckets.pop(address, (most, now))
        left = min(most, left + (now - at) * self._per_second)
        self._buckets[address] = (max(0.0, left - 1), now)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return left >= 1


class Durable:
    """ASGI middleware: nothing is answered before what is committed is on disk.

    The disk is waited for outside of the event loop, once for all who wait at that time.

    Args:
        app: The pages.
        store: Store of the study.
    """

    def __init__(self, app: ASGIApp, store: Store):
        self._app, self._store = app, store
        self._flushing = asyncio.Lock()
        self._on_disk = 0  # of the store's commits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def once_kept(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._keep()
            await send(message)

        await self._app(scope, receive, once_kept)

    async def _keep(self) -> None:
        needed = self._store.commits
        if self._on_disk >= needed:
            return
        async with self._flushing:
            if self._on_disk < needed:  # else it went along with others
                there = self._store.commits
                await asyncio.to_thread(self._store.flush)
                self._on_disk = there


def _network(address: str) -> str:
    """The address; of IPv6 the network of 2^64 addresses that one subscriber has."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or int(parsed) >> 64)


async def read_form(request: Request) -> dict[str, str]:
    """Fields of a posted form; of a field that is given twice, the last.

    Raises:
        TooLarge: More bytes or fields than a form of ours has.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise TooLarge
    try:
        text = body.decode("utf-8", "replace")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise TooLarge from None


class Signer:
    """Signs tokens with the study's own key, so that forms cannot be forged.

    Args:
        key: The study's secret.
    """

    def __init__(self, key: str):
        self._key = key.encode()

    def sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def matches(self, text: str, signature: str) -> bool:
        """Compares in constant time."""
        given = signature.encode("utf-8", "replace")
        return hmac.compare_digest(self.sign(text).encode(), given)

    def fresh(self) -> str:
        """A token for a form of somebody who has no cookie yet."""
        token = secrets.token_urlsafe(18)
        return f"{token}.{self.sign(f'form {token}')}"

    def is_ours(self, form: str) -> bool:
        token, _, signature = form.partition(".")
        return self.matches(f"form {token}", signature)


def is_from_here(request: Request) -> bool:
    """False where the browser says that another site has sent the form."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or origin.rpartition("//")[2] == request.headers.get("host")
