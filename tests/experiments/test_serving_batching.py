"""The queue between those who ask and the thread that owns the networks."""

from __future__ import annotations

import asyncio
import threading

import pytest

from experiments.serving.answer import AgentError, ConversationError, OverloadedError
from experiments.serving.batching import Batcher


class Slow:
    """A speaker that keeps its batches, and waits before the first until it is let go."""

    def __init__(self):
        self.batches: list[list[str]] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, asked):
        self.batches.append(list(asked))
        self.started.set()
        assert self.go_on.wait(10)
        return [each.upper() for each in asked]


async def begun(batcher: Batcher, slow: Slow, *asked: str, most: int = 4) -> list[asyncio.Task]:
    """Asks the first question, and when it is being answered the others."""
    first = asyncio.create_task(batcher.ask(slow, asked[0], most))
    await asyncio.to_thread(slow.started.wait, 10)
    tasks = [asyncio.create_task(batcher.ask(slow, each, most)) for each in asked[1:]]
    await asyncio.sleep(0)
    return [first, *tasks]


def test_what_waits_is_answered_together_in_its_order():
    async def talk():
        batcher, slow = Batcher(10), Slow()
        sizes: list[int] = []
        batcher.on_batch = sizes.append
        tasks = await begun(batcher, slow, *"abcdef")
        assert batcher.waiting == 5 and batcher.busy_seconds > 0
        slow.go_on.set()
        assert await asyncio.gather(*tasks) == list("ABCDEF")
        assert slow.batches == [["a"], list("bcde"), ["f"]] and sizes == [1, 4, 1]
        assert batcher.waiting == 0

    asyncio.run(talk())


def test_the_oldest_question_goes_first_whoever_is_asked():
    async def talk():
        batcher, slow, other = Batcher(10), Slow(), Slow()
        other.go_on.set()
        tasks = await begun(batcher, slow, "a")
        tasks += [asyncio.create_task(batcher.ask(s, w, 4)) for s, w in ((other, "x"), (slow, "b"))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.ask(other, "y", 4)))
        await asyncio.sleep(0)
        slow.go_on.set()
        await asyncio.gather(*tasks)
        assert other.batches == [["x", "y"]] and slow.batches == [["a"], ["b"]]

    asyncio.run(talk())


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def talk():
        batcher, slow = Batcher(2), Slow()
        tasks = await begun(batcher, slow, "a", "b", "c")
        with pytest.raises(OverloadedError, match="2 questions are waiting") as caught:
            await batcher.ask(slow, "d", 4)
        assert 1 <= caught.value.retry_after <= 60
        slow.go_on.set()
        assert await asyncio.gather(*tasks) == ["A", "B", "C"]

    asyncio.run(talk())


def test_who_waits_no_more_is_not_answered():
    async def talk():
        batcher, slow = Batcher(10), Slow()
        first, second, third = await begun(batcher, slow, "a", "b", "c")
        first.cancel()
        second.cancel()
        await asyncio.sleep(0)
        slow.go_on.set()
        assert await third == "C"
        assert slow.batches == [["a"], ["c"]]

    asyncio.run(talk())


def test_errors_are_of_one_question_or_of_the_batch_and_the_next_is_answered():
    def speaker(asked):
        if "crash" in asked:
            raise RuntimeError("a bug, with its secrets")
        return [ConversationError("too long") if each == "long" else each for each in asked]

    async def talk():
        batcher = Batcher(10)
        with pytest.raises(AgentError) as caught:
            await batcher.ask(speaker, "crash", 4)
        assert "secrets" not in str(caught.value)
        with pytest.raises(ConversationError, match="too long"):
            await batcher.ask(speaker, "long", 4)
        assert await batcher.ask(speaker, "fine", 4) == "fine"

    asyncio.run(talk())


def test_the_thread_ends_when_all_have_left_and_begins_again():
    async def talk():
        batcher = Batcher(10)
        batcher.enter()
        batcher.enter()
        assert await batcher.ask(list, "a", 4) == "a"
        thread = batcher._thread
        batcher.leave()
        assert thread.is_alive()
        batcher.leave()
        assert not thread.is_alive()
        assert await batcher.ask(list, "b", 4) == "b"

    asyncio.run(talk())
