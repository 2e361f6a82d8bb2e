"""`Client`: asks an LLM many questions at once, and pays for none of them twice.

The way of a request: replies on disk (`cache.py`) -> a slot among the calls in flight and money
from the budget (`metering.py`) -> the service (`transports/`, or `batches.py`) -> disk ->
parsed, and asked again if it cannot be used (`retry.py`) -> `Answer`, or `Failure` and
`failed.jsonl`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagination.llm.cache import Cache, Reply
from imagination.llm.config import LLMConfig
from imagination.llm.journal import Journal
from imagination.llm.metering import Budget, Meter
from imagination.llm.requests import (
    Answer,
    Failure,
    LLMError,
    NotDelivered,
    Request,
    SchemaRefused,
    Usage,
)
from imagination.llm.retry import Exchange

if TYPE_CHECKING:  # the SDK behind these is loaded with the first call
    from imagination.llm.batches import Batches
    from imagination.llm.transports import Transport

# A long list of cached answers lets others have a turn after this many.
_HELD_IN_ONE_GO = 200


@dataclasses.dataclass
class _Asking:
    """A request on its way, and how many are waiting for its answer."""

    task: asyncio.Task[Answer | Failure]
    waiting: int = 0


class Client:
    """Asks one model.

    Attributes:
        config: The model, limits and prices.
        folder: Folder of `cache.jsonl`, `failed.jsonl` and `batches.jsonl`.
        meter: Counts and costs by step.

    Args:
        config: The model, limits and prices.
        folder: For its files.
        beside: Another client, of another model: answers, limit on cost and meter are that one's,
            which is to be closed last. Only `batches.jsonl` is in the folder then.
        keeps_words: False = nothing of what is asked and answered goes to disk, but what it cost.

    Raises:
        LLMError: The folder's files cannot be put in order.
    """

    def __init__(
        self,
        config: LLMConfig,
        folder: Path,
        beside: Client | None = None,
        keeps_words: bool = True,
    ):
        self.config = config
        self._keeps_words = keeps_words
        self.folder = Path(folder)
        self._beside = beside
        if beside is None:
            self.meter = Meter()
            self._cache = Cache(
                self.folder, config.cache_max_megabytes, config.cache, keeps_words=keeps_words
            )
            self._failed = Journal(self.folder / "failed.jsonl")
            # What earlier runs set aside is asked anew, and set aside once more at most now.
            self._runs_before = collections.Counter(
                str(record.get("key")) for _, record in self._failed.read()
            )
            self._set_aside_now: set[str] = set()
            self._budget = Budget(config.max_cost, self._cache.earlier_cost)
        else:
            self.meter, self._cache, self._failed = beside.meter, beside._cache, beside._failed
            self._runs_before, self._set_aside_now = beside._runs_before, beside._set_aside_now
            self._budget = beside._budget
        self._asking: dict[str, _Asking] = {}
        self._stopped: LLMError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._left_behind: list[Transport | None] = []
        self._batches: Batches | None = None
        self._slots = asyncio.Semaphore(config.max_in_flight)

    @property
    def prompt_versions(self) -> Mapping[str, int]:
        """Version of a prompt -> replies to it that earlier runs left."""
        return self._cache.prompt_versions

    @property
    def money_left(self) -> float:
        """Dollars that the limit on cost leaves; infinite without one."""
        return self._budget.left

    async def ask(self, request: Request) -> Answer | Failure:
        """Asks one question, by a call of its own (in batch mode too).

        Returns:
            The answer; or a `Failure` if no usable one came, which is then in `failed.jsonl`.

        Raises:
            LLMError: The run has to stop; the message says why and what to do.
        """
        self._enter_loop()
        return self._held(request) or await self._join(request, batch=False)

    async def ask_all(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[Answer | Failure]:
        """Asks many questions; in batch mode as Message Batches.

        Args:
            requests: In any number.
            on_done: Called with the number of settled requests whenever it changes.

        Returns:
            An answer or a failure for each request, in their order.

        Raises:
            LLMError: The run has to stop. What was in flight is awaited and stored before.
        """
        self._enter_loop()
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if on_done:
                on_done(done)

        async def finish(request: Request) -> Answer | Failure:
            outcome = await self._join(request, self.config.batch)
            count()
            return outcome

        outcomes: list[Answer | Failure | None] = []
        for request in requests:
            outcomes.append(self._held(request))
            if outcomes[-1]:
                count()
            if len(outcomes) % _HELD_IN_ONE_GO == 0:
                await asyncio.sleep(0)
        open_places = [place for place, outcome in enumerate(outcomes) if outcome is None]
        awaited = await asyncio.gather(
            *(finish(requests[place]) for place in open_places), return_exceptions=True
        )
        for place, outcome in zip(open_places, awaited, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[place] = outcome
        return outcomes

    def recall(self, request: Request) -> Answer | None:
        """The answer that is on disk, at the prices of now; asks nobody and writes nothing."""
        answer = self._held(request, sets_aside=False)
        if not isinstance(answer, Answer):
            return None
        tokens = dataclasses.asdict(answer.usage)
        del tokens["cost"]
        usage = Usage(**tokens, cost=self.config.cost(tokens, self.config.batch))
        return dataclasses.replace(answer, usage=usage)

    async def close(self) -> None:
        """Awaits and stores the calls in flight; sends nothing more. Batches stay on their way."""
        self._stopped = self._stopped or LLMError("The LLM client is closed.")
        if self._loop is asyncio.get_running_loop():
            if self._batches:
                await self._batches.close()
            tasks = [asking.task for asking in self._asking.values()]
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._transport:
                await self._transport.close()
        if self._beside is None:
            self._cache.close()
            self._failed.close()

    def _enter_loop(self) -> None:
        """Connections and locks belong to one event loop; a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Kept: the SDK would try to close them in the wrong loop when they are collected.
            self._left_behind.append(self._transport)
            self._loop, self._transport, self._batches = loop, None, None
            self._slots = asyncio.Semaphore(self.config.max_in_flight)
            self._asking = {}

    def _held(self, request: Request, sets_aside: bool = True) -> Answer | Failure | None:
        """The outcome as far as it follows from replies on disk alone."""
        exchange, replies = self._exchange(request), []
        while (reply := self._stored(exchange.tip)) is not None:
            replies.append(reply)
            outcome = exchange.take(reply, from_cache=True)
            if outcome:
                for each in replies:
                    self.meter.hit(request.step, each.usage)
                if isinstance(outcome, Failure) and sets_aside:
                    self._set_aside(exchange, outcome)
                return outcome
        return None

    async def _join(self, request: Request, batch: bool) -> Answer | Failure:
        """Asks, or waits for the same question that is being asked already."""
        key = self._key(request)
        asking = self._asking.get(key)
        is_first = asking is None
        if asking is None:
            asking = _Asking(asyncio.create_task(self._pursue(request, key, batch)))
            self._asking[key] = asking
            asking.task.add_done_callback(lambda task: self._forget(key, task))
        asking.waiting += 1
        try:
            # Shielded: a call that was sent is paid for, so it runs to its end and is stored.
            outcome = await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
        if is_first:
            return outcome
        if isinstance(outcome, Failure):
            return dataclasses.replace(outcome, request=request)
        self.meter.hit(request.step, outcome.usage)
        return dataclasses.replace(outcome, from_cache=True)

    def _forget(self, key: str, task: asyncio.Task[Any]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as lost

    async def _pursue(self, request: Request, key: str, batch: bool) -> Answer | Failure:
        exchange = self._exchange(request)
        try:
            while True:
                reply = self._stored(exchange.tip)
                from_cache = reply is not None
                if reply is None:
                    reply = await self._call(exchange, key, batch)
                else:
                    self.meter.hit(request.step, reply.usage)
                outcome = exchange.take(reply, from_cache)
                if outcome:
                    break
        except NotDelivered as error:
            outcome = Failure(request, str(error), exchange.usage)
        except LLMError as error:
            self._stopped = self._stopped or error
            raise
        if isinstance(outcome, Failure):
            self._set_aside(exchange, outcome)
        return outcome

    async def _call(self, exchange: Exchange, key: str, batch: bool) -> Reply:
        if not batch:
            async with self._slots:
                return await self._call_now(exchange, key)
        transport, schema, again = self._service(), exchange.tip.schema, 0
        while True:
            dialect = transport.dialect_of(schema)
            try:
                return await self._call_in_batch(exchange, key)
            except NotDelivered as error:
                # Errored or expired in its batch: not paid for, so into the next one.
                is_of_schema = isinstance(error, SchemaRefused)
                if is_of_schema and transport.steps_down(schema, dialect, str(error)):
                    continue
                again += 1
                if again > self.config.max_asks:
                    raise

    async def _call_now(self, exchange: Exchange, key: str) -> Reply:
        self._check_going_on(key)
        request, transport = exchange.tip, self._service()
        limit = self.config.answer_limit(request)
        async with transport.turn_of(request):
            worst = self.config.worst_cost(transport.body(request), limit)
            ticket = await self._budget.reserve(worst)
            cost = 0.0
            try:
                self._check_going_on(key)
                message, retries = await transport.ask(request)
                reply = self._reply(message, limit)
                cost = reply.usage.cost
                self._keep(exchange, reply, retries)
                transport.saw(request, message)
                return reply
            finally:
                self._budget.settle(ticket, cost)

    async def _call_in_batch(self, exchange: Exchange, key: str) -> Reply:
        self._check_going_on(key)
        transport = self._service()
        limit, body = self.config.answer_limit(exchange.tip), transport.body(exchange.tip)
        schema, dialect = exchange.tip.schema, transport.dialect_of(exchange.tip.schema)
        if self._batches is None:
            from imagination.llm.batches import Batches

            self._batches = Batches(self.config, self.folder, transport)
        tip_key = self._key(exchange.tip)
        worst = self.config.worst_cost(body, limit, batch=True)
        is_held = self._batches.holds(tip_key)
        ticket = await self._budget.reserve(worst, anyway=is_held)
        cost = 0.0

        def store(message: dict[str, Any]) -> Reply:
            nonlocal cost
            reply = self._reply(message, limit, batch=True)
            cost = reply.usage.cost
            self._keep(exchange, reply)
            transport.saw(exchange.tip, message)
            return reply

        try:
            self._check_going_on(key)
            reply = await self._batches.send(tip_key, body, store)
            if not is_held:  # else it is not known in what form it was sent
                transport.took(schema, dialect)
            return reply
        finally:
            self._budget.settle(ticket, cost)

    def _service(self) -> Transport:
        # Not before the first call: a run whose answers are all on disk needs no key.
        if self._transport is None:
            from imagination.llm.transports import open_transport

            self._transport = open_transport(self.config)
        return self._transport

    def _check_going_on(self, key: str) -> None:
        if self._stopped:
            raise type(self._stopped)(str(self._stopped))
        asking = self._asking.get(key)
        if asking is None or not asking.waiting:
            raise asyncio.CancelledError  # nobody wants to know any more

    def _exchange(self, request: Request) -> Exchange:
        config, runs_before = self.config, self._runs_before[self._key(request)]
        return Exchange(request, config.max_asks, runs_before, has_samples=config.temperature != 0)

    def _stored(self, request: Request) -> Reply | None:
        return self._cache.get(self._key(request), self.config.answer_limit(request))

    def _key(self, request: Request) -> str:
        return request.key(self.config.model, *self.config.determining)

    def _reply(self, message: dict[str, Any], limit: int, batch: bool = False) -> Reply:
        usage = self.config.usage(message["usage"], batch)
        return Reply(**{**message, "usage": usage}, max_tokens=limit)

    def _keep(self, exchange: Exchange, reply: Reply, retries: int = 0) -> None:
        """Counts a reply that was paid for and writes it to disk."""
        self.meter.called(exchange.tip.step, reply.usage, retries, exchange.asked_again)
        self._cache.put(self._key(exchange.tip), exchange.tip, reply)

    def _set_aside(self, exchange: Exchange, failure: Failure) -> None:
        request = failure.request
        self.meter.failed(request.step)
        key = self._key(request)
        if key not in self._set_aside_now:
            self._set_aside_now.add(key)
            what = {"key": key, "step": request.step, "model": self.config.model}
            if self._keeps_words:
                what |= {"reason": failure.reason, **exchange.to_json()}
            self._failed.append(what)
