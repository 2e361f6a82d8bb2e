"""`Batcher`: what is asked at the same time is answered together, in one thread that owns JAX.

The asyncio side puts questions into a queue and waits; the thread takes the oldest and all others
for the same agent, as many as its network decodes together. While it computes, the next gather.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.serving.answer import FAILED, AgentError, OverloadedError

logger = logging.getLogger(__name__)

# Answers questions together: a result each, or the exception that this question deserves.
Speaker = Callable[[Sequence[Any]], Sequence[Any]]


@dataclasses.dataclass(eq=False)
class _Question:
    """A question in the queue, with the loop that waits for its answer."""

    speaker: Speaker
    asked: Any
    most: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Batcher:
    """Answers questions in a thread of its own, those of the same speaker together.

    Args:
        most_waiting: Longest queue; a further question is refused.

    Attributes:
        on_batch: Called with the size of each batch, in the thread; for metrics.
    """

    def __init__(self, most_waiting: int):
        self.most_waiting = most_waiting
        self.on_batch: Callable[[int], None] = lambda size: None
        self._waiting: collections.deque[_Question] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._users = 0
        self._busy_since: float | None = None
        self._seconds = 0.1  # of a batch, lately

    @property
    def waiting(self) -> int:
        """Length of the queue."""
        return len(self._waiting)

    @property
    def busy_seconds(self) -> float:
        """Seconds that the batch which is computed now has taken so far; 0 = none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def ask(self, speaker: Speaker, asked: Any, most: int) -> Any:
        """Returns the speaker's answer to a question.

        Args:
            speaker: Called in the thread with the questions of a batch.
            asked: The question.
            most: Largest batch of this speaker.

        Raises:
            OverloadedError: The queue is full.
            AgentError: The speaker raised for the whole batch; of its own for this question,
                whatever it returned as an exception.
        """
        loop = asyncio.get_running_loop()
        question = _Question(speaker, asked, most, loop, loop.create_future())
        with self._changed:
            if len(self._waiting) >= self.most_waiting:
                wait = 1 + int(self._seconds * self.most_waiting / max(1, most))
                raise OverloadedError(
                    f"{self.most_waiting} questions are waiting already; ask again later.",
                    min(wait, 60),
                )
            self._waiting.append(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agents", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            return await question.future
        except asyncio.CancelledError:  # nobody waits for it any more
            with self._changed:
                if question in self._waiting:
                    self._waiting.remove(question)
            raise

    def enter(self) -> None:
        """Counts somebody who asks; the thread ends when all have left."""
        self._users += 1

    def leave(self) -> None:
        """Counts somebody who asks no more."""
        self._users -= 1
        if self._users <= 0:
            with self._changed:
                self._users = 0
                thread, self._thread = self._thread, None
                self._changed.notify_all()
            if thread is not None and self._busy_since is None:
                thread.join(5)

    def _run(self) -> None:
        own = threading.current_thread()
        while True:
            with self._changed:
                while self._thread is own and not self._waiting:
                    self._changed.wait()
                if self._thread is not own:
                    return
                batch = self._next_batch()
            started = self._busy_since = time.monotonic()
            try:
                answers = self._answers(batch)
            finally:
                self._busy_since = None
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - started)
            for question, answer in zip(batch, answers, strict=True):
                _deliver(question, answer)

    def _next_batch(self) -> list[_Question]:
        """Takes the oldest question and those of the same speaker, in their order."""
        first = self._waiting[0]
        batch = [q for q in self._waiting if q.speaker == first.speaker][: first.most]
        for question in batch:
            self._waiting.remove(question)
        return batch

    def _answers(self, batch: Sequence[_Question]) -> Sequence[Any]:
        self.on_batch(len(batch))
        try:
            return batch[0].speaker([question.asked for question in batch])
        except Exception:
            logger.exception("an agent failed")
            return [AgentError(FAILED)] * len(batch)


def _deliver(question: _Question, answer: Any) -> None:
    def settle() -> None:
        if question.future.done():  # given up meanwhile
            return
        if isinstance(answer, Exception):
            question.future.set_exception(answer)
        else:
            question.future.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        question.loop.call_soon_threadsafe(settle)
