"""`Cache`: every reply that was paid for, on disk before it is used, usable or not.

Replies are stored as the model wrote them and parsed when they are read (`retry.py`). So a resumed
run walks through the same requests as the run before it, and makes a call only where none was
answered.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from pathlib import Path
from typing import Any

from ilql_jax.errors import shown
from imagination.checks import is_finite, is_whole, without_surrogates
from imagination.llm.journal import Journal
from imagination.llm.requests import Request, Usage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reply:
    """The message of one call. `max_tokens` is what the call allowed.

    Halves of signs, as in an answer that was cut off, become "?" here: no question that quotes
    them could be sent, and no file could hold them.

    Raises:
        ValueError: A field of another type.
    """

    text: str
    stop_reason: str
    model: str
    max_tokens: int
    usage: Usage

    def __post_init__(self) -> None:
        for name in ("text", "stop_reason", "model"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} is {shown(value)!r}, but must be text")
            object.__setattr__(self, name, without_surrogates(value))
        if not is_whole(self.max_tokens):
            raise ValueError(f"max_tokens is {shown(self.max_tokens)!r}, but must be whole")


class Cache:
    """Replies by key, in `cache.jsonl`: read once when it is opened, then kept in memory.

    Args:
        folder: Folder of the file.
        max_megabytes: The oldest replies above this size are dropped; 0 = none.
        enabled: False = nothing is kept.
        keeps_words: False = of new replies the file gets the cost alone, and no word of anybody.

    Attributes:
        earlier_cost: Dollars spent for what the file held when it was opened, dropped lines
            included.
        prompt_versions: Version of a prompt -> number of these replies to it.
    """

    def __init__(
        self,
        folder: Path,
        max_megabytes: float = 0,
        enabled: bool = True,
        keeps_words: bool = True,
    ):
        self.earlier_cost = 0.0
        self._keeps_words = keeps_words
        self.prompt_versions: collections.Counter[str] = collections.Counter()
        self._replies: dict[str, Reply] = {}
        self._journal = Journal(folder / "cache.jsonl") if enabled else None
        if self._journal:
            self._load(self._journal, max_megabytes)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str, max_tokens: int) -> Reply | None:
        """The reply, or None. One that was cut off below `max_tokens` is worth another call."""
        reply = self._replies.get(key)
        if reply and reply.stop_reason == "max_tokens" and reply.max_tokens < max_tokens:
            return None
        return reply

    def put(self, key: str, request: Request, reply: Reply) -> None:
        """Stores a reply.

        Raises:
            LLMError: It could not be written. It is held in memory all the same.
        """
        if self._journal is None:
            return
        self._replies[key] = reply
        if not self._keeps_words:
            self._journal.append({"dropped_cost": reply.usage.cost})
            return
        self._journal.append(
            {
                "key": key,
                "step": request.step,
                "request": request.to_json(),
                "answer": {
                    "text": reply.text,
                    "stop_reason": reply.stop_reason,
                    "model": reply.model,
                    "max_tokens": reply.max_tokens,
                },
                "usage": dataclasses.asdict(reply.usage),
            }
        )

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def _load(self, journal: Journal, max_megabytes: float) -> None:
        sizes: dict[str, int] = {}
        dropped_cost = 0.0
        for size, record in journal.read():
            try:
                if "dropped_cost" in record:
                    dropped_cost += _dollars(record["dropped_cost"])
                    continue
                key, reply = str(record["key"]), _reply(record)
            except (KeyError, TypeError, ValueError) as error:
                # As somebody may leave it who edits the file by hand.
                logger.warning("%s: a line that is no answer is ignored (%s)", journal.path, error)
                continue
            asked = record.get("request")
            if isinstance(asked, dict) and isinstance(asked.get("prompt_version"), str):
                self.prompt_versions[asked["prompt_version"]] += 1
            sizes[key] = sizes.get(key, 0) + size
            self._replies[key] = reply
            self.earlier_cost += reply.usage.cost
        self.earlier_cost += dropped_cost
        if max_megabytes and sum(sizes.values()) > max_megabytes * 1e6:
            self._drop_oldest(journal, sizes, max_megabytes * 1e6, dropped_cost)

    def _drop_oldest(
        self, journal: Journal, sizes: dict[str, int], bound: float, dropped_cost: float
    ) -> None:
        total, dropped = sum(sizes.values()), set()
        for key, size in sizes.items():
            if total <= bound:
                break
            dropped.add(key)
            total -= size
        dropped_cost += sum(self._replies[key].usage.cost for key in dropped)
        lines = [journal.line({"dropped_cost": dropped_cost})]
        lines += [
            journal.line(record)
            for _, record in journal.read()
            if record.get("key") in self._replies and record["key"] not in dropped
        ]
        if journal.rewrite(lines):
            for key in dropped:
                del self._replies[key]
            logger.info("%s: the oldest %d answers were dropped", journal.path, len(dropped))


def _reply(record: dict[str, Any]) -> Reply:
    counts = {**record["usage"], "cost": 0.0}
    usage = dataclasses.replace(Usage(**counts), cost=_dollars(record["usage"]["cost"]))
    if not all(is_whole(count) and is_finite(count) for count in counts.values() if count != 0.0):
        raise ValueError(f"usage is {shown(counts)}, but must be whole numbers")
    return Reply(**record["answer"], usage=usage)


def _dollars(value: Any) -> float:
    """Cost so far, by which the limit on it is held."""
    if not is_finite(value) or value < 0:
        raise ValueError(f"a cost is {shown(value)!r}, but must be a number from 0 up")
    return float(value)
