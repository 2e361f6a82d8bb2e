"""`Batches`: Message Batches that survive a restart without being paid for twice.

`batches.jsonl` remembers, in this order: what is about to be sent (an *intent*: the keys), the id
that it got, and that its results were taken. A process killed between sending and learning the id
leaves an intent without an id; the next one looks among the service's recent batches for it. While
a batch runs the API does not tell what is in it, so there it goes by size and time, and by the
results once there are some.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anthropic

from ilql_jax.errors import shown
from imagination.llm.config import LLMConfig
from imagination.llm.journal import Journal
from imagination.llm.requests import LLMError, NotDelivered, SchemaRefused
from imagination.llm.transports.base import is_temporary, names_schema, retry_delay
from imagination.llm.transports.messages import MessagesTransport

# Limits of one batch; the API's own are 100,000 requests and 256 MB.
MOST_REQUESTS = 10_000
MOST_BYTES = 100_000_000

# Requests that are made together end up in one batch: it is sent when none came for this long.
_QUIET_SECONDS = 0.1

# Largest difference between the clocks here and there, creation of a batch included.
_CLOCK_SLACK = datetime.timedelta(minutes=5)

logger = logging.getLogger(__name__)

# Takes a message (see `Transport.read_message`), stores it, returns what was made of it.
Store = Callable[[dict[str, Any]], Any]


@dataclasses.dataclass
class _Waiting:
    """Somebody waits for the result of one key."""

    body: dict[str, Any]
    store: Store
    future: asyncio.Future[Any]


@dataclasses.dataclass
class _Batch:
    """A batch that was sent; `id` is "" until the service has named it."""

    intent: str
    keys: frozenset[str]
    time: datetime.datetime
    id: str = ""
    task: asyncio.Task[None] | None = None


class Batches:
    """Sends requests in batches, and takes results of earlier batches where there are some."""

    def __init__(self, config: LLMConfig, folder: Path, transport: MessagesTransport):
        self._config = config
        self._transport = transport
        self._sdk = transport.sdk.with_options(max_retries=config.max_retries)
        self._journal = Journal(folder / "batches.jsonl")
        self._waiting: dict[str, _Waiting] = {}
        self._queue: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._known_ids: set[str] = set()
        self._open: dict[str, _Batch] = {}
        self._unnamed: list[_Batch] = []
        self._recovery: asyncio.Task[None] | None = None
        self._load()

    def holds(self, key: str) -> bool:
        """True where a batch sent earlier holds the key, so that it is paid for already."""
        return key in self._open or any(key in batch.keys for batch in self._unnamed)

    async def send(self, key: str, body: dict[str, Any], store: Store) -> Any:
        """Puts a request into the next batch, or waits for the batch that holds it.

        Args:
            key: Identifies the request; not to be in flight already.
            store: Called with the message as soon as it is read, before the batch counts as done.

        Returns:
            What `store` returned.

        Raises:
            SchemaRefused: The service does not take the schema in the body.
            NotDelivered: It came back errored, expired or canceled, or not at all.
            LLMError: Nothing more can be sent.
        """
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())
        await asyncio.shield(self._recovery)
        future = asyncio.get_running_loop().create_future()
        self._waiting[key] = _Waiting(body, store, future)
        if key in self._open:
            self._collect_later(self._open[key])
        else:
            self._queue.append(key)
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._send_queue)
        try:
            return await future
        finally:
            self._waiting.pop(key, None)

    async def close(self) -> None:
        """Stops waiting. Batches on their way are found again by the next process."""
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.cancel()
        self._journal.close()

    # Sending

    def _send_queue(self) -> None:
        queue, self._queue = self._queue, []
        for keys in self._groups(key for key in queue if key in self._waiting):
            self._start(self._create(keys), keys)

    def _groups(self, keys: Iterable[str]) -> Iterable[list[str]]:
        group: list[str] = []
        size = 0
        for key in keys:
            length = len(json.dumps(self._waiting[key].body))
            if group and (len(group) == MOST_REQUESTS or size + length > MOST_BYTES):
                yield group
                group, size = [], 0
            group.append(key)
            size += length
        if group:
            yield group

    async def _create(self, keys: list[str]) -> None:
        batch = _Batch(uuid.uuid4().hex, frozenset(keys), _now())
        requests = [{"custom_id": key, "params": self._waiting[key].body} for key in keys]
        self._journal.append(
            {"intent": batch.intent, "time": batch.time.isoformat(), "keys": sorted(keys)}
        )
        # Where it is not certain that nothing was made of it, the service is asked before it is
        # sent again.
        sdk = self._transport.sdk
        for attempt in itertools.count():
            try:
                created = await sdk.messages.batches.create(requests=requests)
                if not getattr(created, "id", None):
                    raise LLMError(
                        f"{self._transport.address} answered a Message Batch with something else. "
                        "Set base_url to a service that has batches, or batch to false."
                    )
                self._named(batch, created.id)
                break
            except anthropic.APIError as error:
                last, refused = attempt >= self._config.max_retries, _was_refused(error)
                if refused and (last or not is_temporary(error)):
                    self._journal.append({"intent": batch.intent, "given_up": True})
                    if names_schema(said := self._transport.said_by(error)):
                        raise SchemaRefused(said) from None
                    with self._transport.errors():
                        raise
                if not refused:
                    adopted = await self._find(batch)
                    if adopted:
                        self._named(batch, adopted)
                        break
                    if last:
                        with self._transport.errors():
                            raise
                await asyncio.sleep(retry_delay(attempt, error))
        await self._collect(batch)

    # Collecting

    def _collect_later(self, batch: _Batch) -> None:
        if batch.task is None or batch.task.done():
            batch.task = self._start(self._collect(batch), batch.keys)

    async def _collect(self, batch: _Batch) -> None:
        """Waits for the end of the batch and hands out its results."""
        batch.task = asyncio.current_task()
        if not await self._ended(batch):
            return
        # Requests that belong to the batch may still be on their way here after a restart.
        await asyncio.sleep(_QUIET_SECONDS)
        seen = await self._read_results(batch)
        if seen.isdisjoint(batch.keys):
            self._close_batch(batch, f"batch {batch.id} is not one of ours, or has no results")
            return
        missing = batch.keys - seen
        self._release(batch, missing)
        self._fail(missing, NotDelivered(f"batch {batch.id} brought no result"))
        rest = [key for key in batch.keys if self._open.get(key) is batch]
        if not rest:
            self._close_batch(batch)
        elif any(key in self._waiting for key in rest):
            batch.task = None  # they came too late for this reading
            self._collect_later(batch)
        # Otherwise nobody has asked for the rest yet; whoever does has the results read again.

    async def _ended(self, batch: _Batch) -> bool:
        while True:
            try:
                with self._transport.errors():
                    try:
                        state = await self._sdk.messages.batches.retrieve(batch.id)
                    except anthropic.NotFoundError:
                        self._close_batch(batch, f"batch {batch.id} is gone")
                        return False
            except NotDelivered as error:
                logger.warning("batch %s could not be looked at: %s", batch.id, error)
            else:
                if state.processing_status == "ended":
                    return True
            await asyncio.sleep(self._config.batch_poll)

    async def _read_results(self, batch: _Batch) -> set[str]:
        """Hands out all results, in whatever order they come; returns the keys that have one."""
        seen: set[str] = set()
        for attempt in itertools.count():
            try:
                with self._transport.errors():
                    async for line in await self._sdk.messages.batches.results(batch.id):
                        seen.add(line.custom_id)
                        self._hand_out(batch, line.custom_id, line.to_dict()["result"])
                return seen
            except LLMError:
                raise
            except Exception as error:
                # A stream that broke off half way: what was read is stored, the rest comes again.
                reason = self._transport.redact(f"{type(error).__name__}: {error}")
                if attempt >= self._config.max_retries:
                    raise NotDelivered(f"results of batch {batch.id}: {reason}") from None
                await asyncio.sleep(retry_delay(attempt, error))

    def _hand_out(self, batch: _Batch, key: str, result: dict[str, Any]) -> None:
        """Gives a result to whoever waits for it, once. Duplicates and strangers are ignored."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.future.done() or self._open.get(key) is not batch:
            return
        self._release(batch, [key])
        try:
            if result["type"] != "succeeded":
                error = (result.get("error") or {}).get("error") or {}
                said = f"{result['type']} in its batch {error.get('message', '')}"
                is_of_schema = error.get("type") == "invalid_request_error" and names_schema(said)
                kind = SchemaRefused if is_of_schema else NotDelivered
                raise kind(self._transport.redact(said))
            message = self._transport.read_message(result["message"])
            waiting.future.set_result(waiting.store(message))
        except (NotDelivered, LLMError) as error:
            waiting.future.set_exception(error)
            if isinstance(error, LLMError):
                raise

    def _release(self, batch: _Batch, keys: Iterable[str]) -> None:
        """From now on these keys wait for another batch."""
        for key in keys:
            if self._open.get(key) is batch:
                del self._open[key]

    def _fail(self, keys: Iterable[str], error: Exception) -> None:
        for key in keys:
            waiting = self._waiting.get(key)
            if waiting and not waiting.future.done():
                waiting.future.set_exception(error)

    def _start(self, work: Any, keys: Iterable[str]) -> asyncio.Task[None]:
        """Runs `work`; if it fails, everybody who waits for the keys is told."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._fail(keys, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Remembering

    def _load(self) -> None:
        batches: dict[str, _Batch] = {}
        for _, record in self._journal.read():
            try:
                self._take(record, batches)
            except (KeyError, TypeError, ValueError) as error:
                # As somebody may leave it who edits the file by hand.
                logger.warning(
                    "%s: a line that is no batch is ignored (%s)", self._journal.path, error
                )
        for batch in batches.values():
            if batch.id:
                self._open |= dict.fromkeys(batch.keys, batch)
            else:
                self._unnamed.append(batch)

    def _take(self, record: dict[str, Any], batches: dict[str, _Batch]) -> None:
        """One line of the journal; a `KeyError`, `TypeError` or `ValueError` is none of ours."""
        intent = str(record["intent"])
        if "keys" in record:
            if not isinstance(record["keys"], list):
                raise ValueError(f"keys: {shown(record['keys'])!r}")
            time = datetime.datetime.fromisoformat(record["time"])
            time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
            batches[intent] = _Batch(intent, frozenset(map(str, record["keys"])), time)
        elif "batch" in record and intent in batches:
            if not isinstance(record["batch"], str) or not record["batch"]:
                raise ValueError(f"batch: {shown(record['batch'])!r}")
            batches[intent].id = record["batch"]
            self._known_ids.add(record["batch"])
        elif "done" in record or "given_up" in record:
            batches.pop(intent, None)

    def _named(self, batch: _Batch, batch_id: str) -> None:
        batch.id = batch_id
        self._known_ids.add(batch_id)
        self._journal.append({"intent": batch.intent, "batch": batch_id})
        self._open |= dict.fromkeys(batch.keys, batch)

    def _close_batch(self, batch: _Batch, trouble: str = "") -> None:
        self._journal.append({"intent": batch.intent, "done": trouble or "all results taken"})
        self._release(batch, batch.keys)
        if trouble:
            logger.warning("%s; what it should have held is sent again", trouble)
            self._fail(batch.keys, NotDelivered(trouble))

    async def _recover(self) -> None:
        """Looks for the batches of intents that a killed process left without an id."""
        for batch in self._unnamed:
            adopted = await self._find(batch)
            if adopted:
                self._named(batch, adopted)
                logger.info("batch %s, sent by a process that was killed, is taken over", adopted)
            else:
                self._journal.append({"intent": batch.intent, "given_up": True})
        self._unnamed = []

    async def _find(self, batch: _Batch) -> str:
        """The id of the batch that an intent became, or "" if it became none.

        Raises:
            LLMError: The service cannot tell; sending again could pay twice.
        """
        possible = ""
        try:
            with self._transport.errors():
                async for found in self._sdk.messages.batches.list(limit=100):
                    if found.created_at < batch.time - _CLOCK_SLACK:
                        break
                    counts = found.request_counts.to_dict().values()
                    if found.id in self._known_ids or sum(counts) != len(batch.keys):
                        continue
                    if found.processing_status != "ended":
                        possible = possible or found.id
                        continue
                    if found.results_url and await self._first_key(found.id) in batch.keys:
                        return found.id
        except LLMError:
            raise
        except Exception as error:
            reason = self._transport.redact(f"{type(error).__name__}: {error}")
            raise LLMError(
                f"A batch of {len(batch.keys)} requests was on its way to "
                f"{self._transport.address} and the service cannot tell whether it arrived "
                f"({reason}). Run again later; or, to send it again at the risk of paying twice, "
                f"delete the line of intent {batch.intent} in {self._journal.path}."
            ) from None
        if possible:
            logger.warning("batch %s has the size of one that was lost sight of", possible)
        return possible

    async def _first_key(self, batch_id: str) -> str:
        """The key of any result of a batch that ended."""
        results = await self._sdk.messages.batches.results(batch_id)
        try:
            async for line in results:
                return line.custom_id
        finally:
            await results.close()
        return ""


def _was_refused(error: anthropic.APIError) -> bool:
    """True where the service said that it made no batch."""
    return isinstance(error, anthropic.APIStatusError) and (
        error.status_code < 500 or error.status_code == 529
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
