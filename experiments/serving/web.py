"""Parts of every server here: its address, headers, bodies, its start and its end."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ilql_jax.errors import UserError
from ilql_jax.settings import Settings, setting

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_BACKLOG = 2048
_SECONDS_OF_A_BODY = 30.0
_SECONDS_TO_END = 5
# People think for longer than uvicorn's 5 s, and a connection that ends as they send costs a try.
_SECONDS_BETWEEN_REQUESTS = 75

# A program's answers show nothing; pages give a policy of their own.
NOTHING = "default-src 'none'; frame-ancestors 'none'"


class WebError(UserError):
    """A server that cannot be started. The message says why, and what would do."""


class BodyError(UserError, ValueError):
    """A body that is not read.

    Attributes:
        status: Status of HTTP.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class WebConfig(Settings):
    """Address of the server, and its limits."""

    host: str = setting(
        "Address that it listens on. Another than this machine's own: anybody who reaches it can "
        "talk with the agents; put TLS in front.",
        "127.0.0.1",
    )
    port: int = setting("Port; 0 = any that is free.", 8000, least=0, most=65535)
    names: str = setting(
        "Names by which browsers may call a server on this machine's own address, beside "
        "localhost: those of a proxy in front of it, with commas.",
        "",
    )
    most_requests: int = setting(
        "Questions that are worked on at the same time; one more is told to come again.",
        256,
        least=1,
    )
    most_kilobytes: int = setting("Largest body of a request.", 1024, least=1, most=100_000)


def require_extra() -> None:
    """Raises `WebError` where the packages of the extra `serve` are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise WebError(
            f"the package {error.name} is not installed, which a server needs. Install it: "
            "pip install -e '.[serve]'"
        ) from None


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host in _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Strict:
    """An application whose responses have strict headers, called by its own names alone.

    A page of somebody else's that a browser shows may send requests to this machine, under a name
    that leads here. On the machine's own address only its own names are answered.

    Args:
        app: The application.
        config: Says which names it has.
        policy: Content-Security-Policy of responses that have none.
    """

    def __init__(self, app: ASGIApp, config: WebConfig, policy: str = NOTHING):
        self._app = app
        self._headers = {
            b"content-security-policy": policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"x-frame-options": b"DENY",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-opener-policy": b"same-origin",
            b"cross-origin-resource-policy": b"same-origin",
            b"cache-control": b"no-store",
        }
        given = (name.strip().lower() for name in config.names.split(","))
        self._names: frozenset[str] | None = None
        if is_loopback(config.host):
            self._names = frozenset({*_LOOPBACK, config.host, *filter(None, given)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                there = {name.lower() for name, _ in own}
                more = [pair for pair in self._headers.items() if pair[0] not in there]
                message = {**message, "headers": own + more}
            await send(message)

        if self._names is not None and _host_of(scope) not in self._names:
            from starlette.responses import PlainTextResponse

            text = "This server has another name; --names adds one.\n"
            await PlainTextResponse(text, 421)(scope, receive, strictly)
            return
        await self._app(scope, receive, strictly)


def _host_of(scope: Scope) -> str:
    """The name in the header Host, without its port."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if ":" in text else text


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Args:
        request: The request.
        most: Bytes; a longer body is not read to its end.

    Raises:
        BodyError: It is longer, or takes too long to come.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > most:
        raise BodyError(413, f"The body is larger than {most:,} bytes.")
    parts, size = [], 0
    try:
        async with asyncio.timeout(_SECONDS_OF_A_BODY):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise BodyError(413, f"The body is larger than {most:,} bytes.")
                parts.append(part)
    except TimeoutError:
        raise BodyError(408, f"The body did not come within {_SECONDS_OF_A_BODY:g} s.") from None
    return b"".join(parts)


def listen(config: WebConfig) -> socket.socket:
    """The socket that the server listens on.

    Raises:
        WebError: The port is taken, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise WebError(f"--host={config.host!r} is no address of this machine ({error}).") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise WebError(
            f"cannot listen on {config.host}, port {config.port} ({error.strerror or error}). "
            "Give another --port, or --host."
        ) from None
    return listening


def address_of(listening: socket.socket) -> str:
    """The address for a browser, `http://127.0.0.1:8000`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: ASGIApp, config: WebConfig) -> Any:
    """A uvicorn server that tells nobody its name, and writes no addresses into a log."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            server_header=False,
            log_level="warning",
            proxy_headers=False,
            ws="none",
            limit_concurrency=8 * config.most_requests,
            backlog=_BACKLOG,
            timeout_keep_alive=_SECONDS_BETWEEN_REQUESTS,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
    )


def run(
    app: ASGIApp,
    config: WebConfig,
    listening: socket.socket,
    lines: Sequence[str],
    console: Console,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        app: The application.
        config: Limits.
        listening: From `listen`.
        lines: Told as soon as it listens.
        console: Console that tells it.
    """
    if not is_loopback(config.host):
        console.print(
            f"Warning: {config.host} can be reached from other machines. Everything is sent in the "
            "open, and nobody is asked for a key: put a server with TLS in front of it, and let "
            "this one listen on 127.0.0.1.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    server(app, config).run(sockets=[listening])
