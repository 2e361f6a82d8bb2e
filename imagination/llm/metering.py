"""`Meter`: calls, tokens and cost by step. `Budget`: the limit on cost."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
from typing import Any

from imagination.llm.requests import CostLimitError, Usage


@dataclasses.dataclass
class StepCount:
    """Counts of one step.

    Attributes:
        calls: Replies that came over the network and were paid for, unusable ones included.
        cache_hits: Replies taken from disk instead.
        re_asks: Calls that put a question again after an unusable reply.
        retries: Calls repeated because they failed on the way.
        failures: Requests set aside.
        usage: Tokens and cost of the calls.
        cached_cost: Dollars that the replies from disk had cost when they were paid for.
    """

    calls: int = 0
    cache_hits: int = 0
    re_asks: int = 0
    retries: int = 0
    failures: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)
    cached_cost: float = 0.0


class Meter:
    """Counts by step, in the order in which the steps first appeared."""

    def __init__(self) -> None:
        self.steps: dict[str, StepCount] = collections.defaultdict(StepCount)

    @property
    def usage(self) -> Usage:
        """Tokens and dollars of all steps in this process, without answers from the cache."""
        return sum((step.usage for step in list(self.steps.values())), Usage())

    def called(self, step: str, usage: Usage, retries: int = 0, re_ask: bool = False) -> None:
        count = self.steps[step]
        count.calls += 1
        count.retries += retries
        count.re_asks += re_ask
        count.usage += usage

    def hit(self, step: str, usage: Usage) -> None:
        count = self.steps[step]
        count.cache_hits += 1
        count.cached_cost += usage.cost

    def failed(self, step: str) -> None:
        self.steps[step].failures += 1

    def summary(self) -> list[dict[str, Any]]:
        """One flat dict a step: `step`, the counts, the tokens, `cost` and `cached_cost`."""
        rows = []
        for name, count in self.steps.items():
            row = {"step": name, **dataclasses.asdict(count)}
            rows.append({**row, **row.pop("usage")})
        return rows

    def line(self) -> str:
        """A short text for a progress bar."""
        counts, usage = list(self.steps.values()), self.usage
        text = f"{sum(c.calls for c in counts):,} calls"
        for number, what in (
            (sum(c.cache_hits for c in counts), "from cache"),
            (sum(c.re_asks for c in counts), "asked again"),
            (sum(c.failures for c in counts), "set aside"),
        ):
            text += f", {number:,} {what}" if number else ""
        read = usage.cache_read_tokens
        text += f" | {_short(usage.input_tokens + usage.cache_write_tokens + read)} tokens in"
        text += f" ({_short(read)} cached)" if read else ""
        return f"{text}, {_short(usage.output_tokens)} out | ${usage.cost:,.2f}"


class Budget:
    """Dollars that may be spent. A call reserves its worst price first and settles afterwards.

    Attributes:
        spent: Dollars spent so far, those of earlier runs included.
    """

    def __init__(self, limit: float, spent: float = 0.0):
        self.limit = limit
        self.spent = spent
        self._reserved: dict[object, float] = {}
        self._reserved_sum = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def left(self) -> float:
        """Dollars that are not spent yet, those set aside included; infinite without a limit."""
        return self.limit - self.spent if self.limit else math.inf

    async def reserve(self, worst: float, anyway: bool = False) -> object:
        """Sets money aside, waiting for calls in flight where only their worst price is in the way.

        Args:
            worst: Dollars.
            anyway: Do not check; for what is being paid already.

        Returns:
            What `settle` takes.

        Raises:
            CostLimitError: The limit could be passed.
        """
        while self.limit and not anyway and not self._fits(worst):
            if not self._reserved:
                raise CostLimitError(
                    f"max_cost = ${self.limit:,.2f} could be passed: ${self.spent:,.4f} are spent "
                    f"(earlier runs in this folder included) and the next call may cost up to "
                    f"${worst:,.4f}. Nothing more was sent. Give a higher max_cost and run again; "
                    "the run goes on where it was."
                )
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        ticket = object()
        self._reserved[ticket] = worst
        self._reserved_sum += worst
        return ticket

    def settle(self, ticket: object, cost: float) -> None:
        """Ends a reservation with what it did cost (0 = the call came to nothing)."""
        self._reserved_sum -= self._reserved.pop(ticket, 0.0)
        if not self._reserved:
            self._reserved_sum = 0.0  # no rounding error may outlive its reservation
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _fits(self, worst: float) -> bool:
        return self.spent + self._reserved_sum + worst <= self.limit


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
