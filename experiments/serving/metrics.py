"""`Metrics`: counts and times of a server, as Prometheus reads them."""

from __future__ import annotations

import bisect
import collections
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts by upper bound.

    Args:
        bounds: Rising; the last bucket, without bound, comes by itself.
    """

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def saw(self, value: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self, name: str) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, below = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {total:.6g}", f"{name}_count {below}"]


class Metrics:
    """Counts of a server of agents.

    Args:
        queue_length: Questions that wait for the networks.
    """

    def __init__(self, queue_length: Callable[[], int]):
        self._queue_length = queue_length
        self._requests: collections.Counter[tuple[str, str, int]] = collections.Counter()
        self._errors: collections.Counter[tuple[str, str]] = collections.Counter()
        self.answer_seconds = Histogram(_SECONDS)
        self.batch_size = Histogram(_SIZES)
        self.in_flight = 0

    def answered(self, api: str, agent: str, status: int) -> None:
        """Counts a request; `agent` is one that there is, "" = none was found."""
        self._requests[api, agent, status] += 1

    def failed(self, api: str, kind: str) -> None:
        """Counts an error by its kind."""
        self._errors[api, kind] += 1

    def text(self) -> str:
        """All of them in Prometheus's text format."""
        requests = [
            _sample("ilql_requests_total", count, api=api, agent=agent, status=status)
            for (api, agent, status), count in sorted(self._requests.items())
        ]
        errors = [
            _sample("ilql_errors_total", count, api=api, kind=kind)
            for (api, kind), count in sorted(self._errors.items())
        ]
        waiting = [f"ilql_queue_length {self._queue_length()}"]
        in_flight = [f"ilql_requests_in_flight {self.in_flight}"]
        memory = [f"process_resident_memory_bytes {resident_bytes()}"]
        groups = (
            ("ilql_requests_total", "counter", "Requests by their outcome.", requests),
            ("ilql_errors_total", "counter", "Errors by their kind.", errors),
            (
                *("ilql_answer_seconds", "histogram", "Seconds from a question to its answer."),
                self.answer_seconds.lines("ilql_answer_seconds"),
            ),
            (
                *("ilql_batch_size", "histogram", "Questions that were answered together."),
                self.batch_size.lines("ilql_batch_size"),
            ),
            ("ilql_queue_length", "gauge", "Questions that wait for the networks.", waiting),
            ("ilql_requests_in_flight", "gauge", "Questions that are worked on.", in_flight),
            ("process_resident_memory_bytes", "gauge", "Memory of the server.", memory),
        )
        lines = []
        for name, kind, about, values in groups:
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *values]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def _sample(name: str, value: float, **labels: str | int) -> str:
    """One line: `name{label="value"} 3`."""
    signs = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    told = ",".join(
        f'{label}="{"".join(signs.get(sign, sign) for sign in str(text))}"'
        for label, text in labels.items()
    )
    return f"{name}{{{told}}} {value}"
