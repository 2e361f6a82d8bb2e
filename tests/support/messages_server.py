"""`MessagesServer`: a small service on loopback, with faults on demand.

    with MessagesServer(answer, faults={"429": 0.02, "cut": 0.02}, seed=0) as server:
        ...  # base_url = server.url
    server.answered  # Counter: how often each distinct body was answered (and would be paid for)

`answer(body) -> str` writes the words; the server does the rest: the Messages API, Message Batches
and, at `server.url + "/v1"`, chat completions. It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Faults of a whole response; with these nothing is answered, and nothing would be paid for.
STATUS_FAULTS = {
    "400": "invalid_request_error",
    "401": "authentication_error",
    "403": "permission_error",
    "404": "not_found_error",
    "408": "timeout_error",
    "409": "conflict_error",
    "413": "request_too_large",
    "422": "unprocessable_entity",
    "429": "rate_limit_error",
    "500": "api_error",
    "504": "timeout_error",
    "529": "overloaded_error",
}
# "cut": connection closed half way; "slow": answers after `slow_seconds`; "shape": JSON that is no
# message; "html": a web page.
DELIVERY_FAULTS = (*STATUS_FAULTS, "cut", "slow", "shape", "html")
# Answered and paid for, but of no use.
ANSWER_FAULTS = ("max_tokens", "refusal", "wrong_schema", "empty")
# Of single entries of a batch.
BATCH_FAULTS = ("errored", "expired", "canceled", "duplicate", "missing", *ANSWER_FAULTS)


@dataclasses.dataclass(frozen=True)
class Call:
    """One POST of a question, as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    fault: str

    @property
    def key(self) -> str:
        """The API key: as a bearer token from SDK 2.11 on, as x-api-key before."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return bearer or self.headers.get("x-api-key", "")


@dataclasses.dataclass
class Batch:
    """One Message Batch and what its entries came to."""

    id: str
    created: datetime.datetime
    size: int
    results: list[dict[str, Any]]
    looks: int = 0


class MessagesServer:
    """Serves POST /v1/messages, Message Batches and POST /v1/chat/completions.

    Args:
        answer: Writes the answer to a body. With structured output it must be the JSON.
        faults: Probability of each fault of a call.
        schedule: Faults of the first calls in turn ("" = none), instead of by probability.
        batch_faults, batch_schedule: The same for entries of batches.
        create_schedule: Faults of the first creations of batches. "cut" makes the batch and closes
            the connection before its id is sent.
        results_schedule: Faults of the first readings of results ("cut").
        seed: Of the faults by probability; equal calls meet equal faults, in whatever order.
        latency: Seconds that an answer takes.
        gather: Number of calls that wait for each other before any of them is answered, however
            slowly they arrive; the first call alone does not wait. 0 = none do.
        slow_seconds: Seconds that a "slow" answer takes.
        retry_after_ms: What failures say; 0 = nothing.
        batch_looks: How often a batch is looked at before it has ended.
        echo_key: 401 repeats the key that it got, as careless servers do.
        refuses_schemas: What a 400 says to bodies with a schema; "" = they are answered.

    Attributes:
        calls: Every call with a question.
        answered: How often each body (by `body_hash`) got an answer that would be paid for, batches
            included; cut connections are not in it. One of no use is an entry of its own, as the
            same body may be sent for another sample.
        peak_in_flight: Most calls that waited for their answer at one time.
        batches: All batches, in the order of their creation.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str],
        *,
        faults: Mapping[str, float] | None = None,
        schedule: Iterable[str] = (),
        batch_faults: Mapping[str, float] | None = None,
        batch_schedule: Iterable[str] = (),
        create_schedule: Iterable[str] = (),
        results_schedule: Iterable[str] = (),
        seed: int = 0,
        latency: float = 0.0,
        gather: int = 0,
        slow_seconds: float = 1.0,
        retry_after_ms: int = 20,
        batch_looks: int = 1,
        echo_key: bool = False,
        refuses_schemas: str = "",
    ):
        self.answer = answer
        self.faults, self.batch_faults = dict(faults or {}), dict(batch_faults or {})
        self.schedule = collections.deque(schedule)
        self.batch_schedule = collections.deque(batch_schedule)
        self.create_schedule = collections.deque(create_schedule)
        self.results_schedule = collections.deque(results_schedule)
        self.latency, self.gather, self.slow_seconds = latency, gather, slow_seconds
        self.retry_after_ms, self.batch_looks, self.echo_key = retry_after_ms, batch_looks, echo_key
        self.refuses_schemas = refuses_schemas
        self.calls: list[Call] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.batches: list[Batch] = []
        self.in_flight = self.peak_in_flight = 0
        self._seed, self._random = seed, random.Random(seed)
        self._asked: collections.Counter[str] = collections.Counter()
        self._prefixes: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._started, self._gathered = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> MessagesServer:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def fault_count(self, *faults: str) -> int:
        """Number of calls that met one of these faults."""
        return sum(call.fault in faults for call in self.calls)

    # HTTP

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()
        open_connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_connections:
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while header := (await reader.readline()).decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(content) if content else {}
                response = await self._respond(method, path.split("?")[0], headers, body)
                if not await self._send(writer, *response):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content: bytes,
        headers: Mapping[str, str],
        cut: bool,
    ) -> bool:
        """Sends a response, half of it if `cut`. Returns whether the connection goes on."""
        head = f"HTTP/1.1 {status} -\r\ncontent-length: {len(content)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(head.encode() + b"\r\n" + content[: len(content) // 2 if cut else None])
        await writer.drain()
        return not cut

    async def _respond(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, bytes, dict[str, str], bool]:
        parts = path.strip("/").split("/")
        if method == "POST" and parts == ["v1", "messages"]:
            return await self._message(headers, body, self._answer)
        if method == "POST" and parts == ["v1", "chat", "completions"]:
            return await self._message(headers, body, self._completion)
        if parts[:3] == ["v1", "messages", "batches"]:
            if method == "POST":
                return self._create_batch(body)
            if len(parts) == 3:
                listed = [self._batch_json(batch) for batch in reversed(self.batches)]
                return _json(200, {"data": listed, "has_more": False, "first_id": None})
            for batch in self.batches:
                if batch.id == parts[3]:
                    return self._results(batch) if len(parts) > 4 else self._look_at(batch)
        return _error("404", f"nothing at {path}")

    # Messages

    async def _message(
        self,
        headers: dict[str, str],
        body: dict[str, Any],
        answer: Callable[[dict[str, Any], str], dict[str, Any]],
    ) -> tuple[int, bytes, dict[str, str], bool]:
        is_refused = self._refuses(body)
        fault = "400" if is_refused else self._fault(self.schedule, self.faults, body)
        call = Call(body, headers, fault)
        self.calls.append(call)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self.in_flight >= self.gather:
            self._gathered.set()
        try:
            if len(self.calls) > 1:
                await self._gathered.wait()
            await asyncio.sleep(self.slow_seconds if fault == "slow" else self.latency)
        finally:
            self.in_flight -= 1
        if fault in STATUS_FAULTS:
            said = self.refuses_schemas if is_refused else f"fault {fault}"
            if self.echo_key:
                said += f" for key {call.key}"
            status, content, extra, cut = _error(fault, said)
            if self.retry_after_ms:
                extra["retry-after-ms"] = str(self.retry_after_ms)
            return status, content, extra, cut
        if fault == "shape":
            return _json(200, {"choices": [], "content": [{"text": "hello"}]})
        if fault == "html":
            page = b"<html><body>Welcome to this router</body></html>"
            return 200, page, {"content-type": "text/html"}, False
        response = _json(200, answer(body, fault))
        if fault == "cut":
            return (*response[:3], True)
        self._count(body, fault)
        return response

    def _answer(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        text, stop_reason = self.answer(body), "end_turn"
        if fault == "max_tokens":
            text, stop_reason = text[: len(text) // 2], "max_tokens"
        elif fault == "refusal":
            text, stop_reason = "", "refusal"
        elif fault == "wrong_schema":
            text = '{"wrong": true}'
        elif fault == "empty":
            text = ""
        return {
            "id": f"msg_{len(self.calls)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": text}] if text else [],
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": self._usage(body, text),
        }

    def _completion(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        message = self._answer(body, fault)
        text = "".join(block["text"] for block in message["content"])
        reasons = {"end_turn": "stop", "max_tokens": "length", "refusal": "content_filter"}
        usage = message["usage"]
        cached = usage["cache_read_input_tokens"]
        return {
            "id": f"chatcmpl-{len(self.calls)}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text or None},
                    "finish_reason": reasons[message["stop_reason"]],
                }
            ],
            "usage": {
                "prompt_tokens": usage["input_tokens"] + cached,
                "completion_tokens": usage["output_tokens"],
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }

    def _usage(self, body: dict[str, Any], text: str) -> dict[str, int]:
        """Four characters a token; a prefix seen before is read from the prompt cache."""
        asked = [message for message in body["messages"] if message["role"] != "system"]
        system = [message for message in body["messages"] if message not in asked]
        prefix = json.dumps(body.get("system", system))
        words = sum(len(message["content"]) for message in asked)
        is_known = prefix in self._prefixes
        self._prefixes.add(prefix)
        return {
            "input_tokens": words // 4,
            "output_tokens": max(1, len(text) // 4),
            "cache_read_input_tokens": len(prefix) // 4 if is_known else 0,
            "cache_creation_input_tokens": 0 if is_known else len(prefix) // 4,
        }

    def _count(self, body: dict[str, Any], fault: str) -> None:
        unusable = f" {len(self.answered)}" if fault in ANSWER_FAULTS else ""
        self.answered[body_hash(body) + unusable] += 1

    def _fault(
        self,
        schedule: collections.deque[str],
        faults: Mapping[str, float],
        body: dict[str, Any],
    ) -> str:
        """The next fault of the schedule, or one drawn for this body and the time it comes.

        Not for its place among all calls: these arrive in an order of their own each time.
        """
        if schedule:
            return schedule.popleft()
        asked = body_hash(body)
        self._asked[asked] += 1
        draw = random.Random(f"{self._seed} {asked} {self._asked[asked]}").random()
        for fault, probability in faults.items():
            draw -= probability
            if draw < 0:
                return fault
        return ""

    def _refuses(self, body: Mapping[str, Any]) -> bool:
        has_schema = not {"output_config", "response_format"}.isdisjoint(body)
        return bool(self.refuses_schemas) and has_schema

    # Batches

    def _create_batch(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str], bool]:
        fault = self.create_schedule.popleft() if self.create_schedule else ""
        if fault in STATUS_FAULTS:
            return _error(fault, self.refuses_schemas or f"fault {fault}")
        results = []
        for entry in body["requests"]:
            entry_fault = self._fault(self.batch_schedule, self.batch_faults, entry["params"])
            if entry_fault == "missing":
                continue
            result: dict[str, Any] = {"type": entry_fault}
            if self._refuses(entry["params"]):
                error = {"type": STATUS_FAULTS["400"], "message": self.refuses_schemas}
                result = {"type": "errored", "error": {"type": "error", "error": error}}
            elif entry_fault == "errored":
                error = {"type": "api_error", "message": "fault errored"}
                result["error"] = {"type": "error", "error": error}
            elif entry_fault not in ("expired", "canceled"):
                message = self._answer(entry["params"], entry_fault)
                result = {"type": "succeeded", "message": message}
                self._count(entry["params"], entry_fault)
            line = {"custom_id": entry["custom_id"], "result": result}
            results += [line, line] if entry_fault == "duplicate" else [line]
        self._random.shuffle(results)
        now = datetime.datetime.now(datetime.UTC)
        batch = Batch(f"msgbatch_{len(self.batches)}", now, len(body["requests"]), results)
        self.batches.append(batch)
        return (*_json(200, self._batch_json(batch))[:3], fault == "cut")

    def _look_at(self, batch: Batch) -> tuple[int, bytes, dict[str, str], bool]:
        batch.looks += 1
        return _json(200, self._batch_json(batch))

    def _results(self, batch: Batch) -> tuple[int, bytes, dict[str, str], bool]:
        fault = self.results_schedule.popleft() if self.results_schedule else ""
        content = "".join(json.dumps(line) + "\n" for line in batch.results).encode()
        return 200, content, {"content-type": "application/x-jsonl"}, fault == "cut"

    def _batch_json(self, batch: Batch) -> dict[str, Any]:
        has_ended = batch.looks >= self.batch_looks
        counts = collections.Counter(
            {line["custom_id"]: line["result"]["type"] for line in batch.results}.values()
        )
        kinds = ("succeeded", "errored", "expired", "canceled")
        shown = {kind: counts[kind] if has_ended else 0 for kind in kinds}
        # An entry without a result counts as succeeded: it is the results file that is short.
        shown["succeeded"] += batch.size - sum(counts.values()) if has_ended else 0
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if has_ended else "in_progress",
            "request_counts": {
                "processing": 0 if has_ended else batch.size,
                **shown,
            },
            "created_at": batch.created.isoformat(),
            "expires_at": (batch.created + datetime.timedelta(days=1)).isoformat(),
            "ended_at": batch.created.isoformat() if has_ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch.id}/results"
            if has_ended
            else None,
        }


def body_hash(body: Mapping[str, Any]) -> str:
    """Identifies a body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something that a thread or another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.01)


def _json(status: int, value: Any) -> tuple[int, bytes, dict[str, str], bool]:
    return status, json.dumps(value).encode(), {"content-type": "application/json"}, False


def _error(status: str, message: str) -> tuple[int, bytes, dict[str, str], bool]:
    error = {"type": STATUS_FAULTS[status], "message": message}
    return _json(int(status), {"type": "error", "error": error})
