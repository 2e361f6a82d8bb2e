"""`make_app`: agents behind /v1/chat/completions and /v1/messages, as chat programs know them.

No state: a conversation is its messages. An answer is computed before its first event is sent, so
an error has its status also where the answer was to be streamed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from experiments.serving import metrics as prometheus
from experiments.serving.agents import close_agents
from experiments.serving.answer import (
    FAILED,
    AgentError,
    Answer,
    ConversationError,
    HungError,
    OverloadedError,
    ServedAgent,
    TooLongError,
)
from experiments.serving.batching import Batcher
from experiments.serving.metrics import Metrics
from experiments.serving.web import BodyError, Strict, WebConfig, read_body
from experiments.serving.wire import EXTRA, Asked, Failing, RequestError, Wire, body_of
from experiments.serving.wire_chat import CHAT
from experiments.serving.wire_messages import MESSAGES
from ilql_jax.errors import shown
from imagination.checks import without_surrogates

logger = logging.getLogger(__name__)

_AT_ONCE = {"retry-after": "1", "x-should-retry": "true"}
_NOT_AGAIN = {"x-should-retry": "false"}  # the SDKs would ask for it twice more


def make_app(
    agents: Mapping[str, ServedAgent],
    batcher: Batcher,
    config: WebConfig,
    stuck_seconds: float = 60.0,
) -> ASGIApp:
    """The application; it closes the agents in the end.

    Args:
        agents: Name -> agent.
        batcher: Batcher of the agents that run here.
        config: Limits and names.
        stuck_seconds: A batch that takes longer makes the server unhealthy.
    """
    api = _Api(dict(agents), batcher, config, stuck_seconds)
    return Strict(api.app(), config)


class _Api:
    def __init__(
        self,
        agents: Mapping[str, ServedAgent],
        batcher: Batcher,
        config: WebConfig,
        stuck_seconds: float,
    ):
        self._agents, self._batcher, self._config = agents, batcher, config
        self._stuck_seconds = stuck_seconds
        self._started = int(time.time())
        self.metrics = Metrics(lambda: batcher.waiting)
        batcher.on_batch = self.metrics.batch_size.saw

    def app(self) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await close_agents(self._agents)

        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        handlers = {HTTPException: self._refused, Exception: self._broken}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)

    # questions

    async def _chat(self, request: Request) -> Response:
        return await self._respond(request, CHAT)

    async def _messages(self, request: Request) -> Response:
        return await self._respond(request, MESSAGES)

    async def _respond(self, request: Request, wire: Wire) -> Response:
        started, name = time.monotonic(), ""
        try:
            asked = wire.parse(await self._body(request))
            agent = self._agent(asked.model)
            name = asked.model
            answer = await self._answer(agent, asked)
            self.metrics.answer_seconds.saw(time.monotonic() - started)
            response = self._written(wire, asked, answer)
        except Exception as error:
            failing, headers = _failing(error)
            if failing.status == 500 and not isinstance(error, AgentError):
                logger.exception("a request failed")
            self.metrics.failed(wire.name, failing.code)
            response = JSONResponse(wire.error(failing), failing.status, headers)
        self.metrics.answered(wire.name, name, response.status_code)
        return response

    async def _answer(self, agent: ServedAgent, asked: Asked) -> Answer:
        if self.metrics.in_flight >= self._config.most_requests:
            raise OverloadedError("Too many questions at the same time; ask again later.")
        self.metrics.in_flight += 1
        try:
            return await agent.answer(asked.turns, asked.seed, asked.system)
        finally:
            self.metrics.in_flight -= 1

    def _written(self, wire: Wire, asked: Asked, answer: Answer) -> Response:
        if asked.stream:
            return StreamingResponse(
                iter(list(wire.events(asked, answer))), media_type="text/event-stream"
            )
        return JSONResponse(wire.reply(asked, answer))

    async def _body(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Pages of others may send forms and plain text to this machine, but no JSON.
            raise RequestError(
                "Send the body as JSON, with the header content-type: application/json.",
                status=415,
                code="unsupported_media_type",
            )
        try:
            content = await read_body(request, self._config.most_kilobytes * 1024)
        except BodyError as error:
            raise RequestError(str(error), status=error.status, code="body_not_read") from None
        return body_of(content)

    def _agent(self, name: str) -> ServedAgent:
        if name not in self._agents:
            raise RequestError(
                f"There is no model {without_surrogates(shown(name, 80, repr))}; there are "
                f"{', '.join(self._agents)}.",
                "model",
                404,
                "model_not_found",
            )
        return self._agents[name]

    # about the server

    async def _models(self, request: Request) -> Response:
        models = [self._about(agent) for agent in self._agents.values()]
        names = list(self._agents)
        first_and_last = {"first_id": names[0], "last_id": names[-1]}
        return JSONResponse({"object": "list", "data": models, "has_more": False, **first_and_last})

    async def _model(self, request: Request) -> Response:
        try:
            return JSONResponse(self._about(self._agent(request.path_params["name"])))
        except RequestError as error:
            failing, _ = _failing(error)
            return JSONResponse(_wire_of(request).error(failing), failing.status)

    def _about(self, agent: ServedAgent) -> dict[str, Any]:
        """The fields of both APIs: their paths are the same, and so are the clients' eyes."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started))
        name = next(name for name, each in self._agents.items() if each is agent)
        return {
            **{"id": name, "object": "model", "created": self._started, "owned_by": "ilql-jax"},
            **{"type": "model", "display_name": name, "created_at": created},
            EXTRA: {"speaks_first": agent.opens, "notice": agent.notice},
        }

    async def _health(self, request: Request) -> Response:
        seconds = self._batcher.busy_seconds
        if seconds > self._stuck_seconds:
            return JSONResponse({"status": "stuck", "seconds": round(seconds)}, 503)
        return JSONResponse({"status": "ok", "agents": len(self._agents)})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type=prometheus.CONTENT_TYPE)

    # what no route answers

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        path = without_surrogates(shown(request.url.path, 100))
        text = f"{error.detail}: there is no {request.method} {path} here."
        failing = Failing(error.status_code, text, "", "path")
        headers = dict(error.headers or {})
        return JSONResponse(_wire_of(request).error(failing), error.status_code, headers)

    async def _broken(self, request: Request, error: Exception) -> Response:
        return JSONResponse(_wire_of(request).error(Failing(500, "An error of the server.")), 500)


def _wire_of(request: Request) -> Wire:
    """The format that a client expects where it asked for nothing that there is."""
    is_messages = request.url.path.startswith("/v1/messages")
    return MESSAGES if is_messages or "anthropic-version" in request.headers else CHAT


def _failing(error: Exception) -> tuple[Failing, dict[str, str]]:
    """An error as it is told, with its headers."""
    text = str(error)
    if isinstance(error, RequestError):
        return Failing(error.status, text, error.field, error.code or "invalid_request"), {}
    if isinstance(error, ConversationError):
        is_long = isinstance(error, TooLongError)
        code = "context_length_exceeded" if is_long else "invalid_request"
        return Failing(400, text, "messages", code), {}
    if isinstance(error, OverloadedError):
        headers = {**_AT_ONCE, "retry-after": str(error.retry_after)}
        return Failing(503, text, "", "overloaded"), headers
    if isinstance(error, HungError):
        return Failing(504, text, "", "timeout"), _NOT_AGAIN
    if isinstance(error, AgentError):
        return Failing(500, text, "", "agent_failed"), _NOT_AGAIN
    return Failing(500, FAILED, "", "bug"), _NOT_AGAIN
