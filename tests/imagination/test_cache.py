"""Answers on disk: asked once, whatever breaks or is killed, against a server on loopback."""

import asyncio
import collections
import errno
import json
import os

import pytest
from llm_questions import (
    KEY,
    answer,
    ask,
    ask_all,
    config,
    kill,
    lines,
    request,
    requests,
    start_process,
    texts,
)
from messages_server import MessagesServer, wait_until

from imagination.llm import (
    Answer,
    Client,
    Failure,
    LLMConfig,
    LLMError,
    journal,
)


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


def test_cached_answers_come_back_without_a_call(tmp_path):
    with MessagesServer(answer) as server:
        asked = requests(300)
        found, _ = ask_all(config(server), tmp_path, asked)

        async def run():
            client = Client(config(server), tmp_path)
            again = [each for _ in range(2) for each in await client.ask_all(asked)]
            await client.close()
            return again

        again = asyncio.run(run())
    assert texts(again[:300]) == texts(found) and all(each.from_cache for each in again)
    assert len(again) == 600 and len(server.calls) == 300


def test_the_cache_can_be_read_and_holds_no_headers(tmp_path):
    with MessagesServer(answer) as server:
        ask(config(server), tmp_path, request("hi", prompt_version="v3"))
    (line,) = lines(tmp_path / "cache.jsonl")
    assert line["key"] == request("hi", prompt_version="v3").key("small")
    assert line["step"] == "imagine" and line["request"]["messages"] == [["user", "hi"]]
    assert json.loads(line["answer"]["text"])["length"] == 2 and line["usage"]["output_tokens"]
    assert set(line) == {"key", "step", "request", "answer", "usage"}


def test_the_cache_can_be_switched_off_and_moved(tmp_path):
    with MessagesServer(answer) as server:
        for _ in range(2):
            ask(config(server, cache=False), tmp_path, request())
        assert len(server.calls) == 2 and not (tmp_path / "cache.jsonl").exists()
        ask(config(server), tmp_path / "a", request())
        (tmp_path / "a").rename(tmp_path / "b")
        ask(config(server), tmp_path / "b", request())
        assert len(server.calls) == 3
        ask(config(server), tmp_path / "b", request(resample=1))
    assert len(server.calls) == 4


def test_a_line_cut_in_half_is_cut_off_and_only_it_is_asked_again(tmp_path):
    path = tmp_path / "cache.jsonl"
    with MessagesServer(answer) as server:
        ask_all(config(server, max_in_flight=1), tmp_path, requests(5))
        whole = path.read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        path.write_bytes(whole[: -len(last) // 2])
        found, _ = ask_all(config(server), tmp_path, requests(5))
        assert len(found) == 5 and len(server.calls) == 6
        assert path.read_bytes()[: -len(last)] == whole[: -len(last)]
        # A whole last line that lacks only its newline is kept.
        path.write_bytes(path.read_bytes()[:-1])
        ask_all(config(server), tmp_path, requests(6))
        assert len(server.calls) == 7
        # So is everything around a line that was broken in the middle.
        broken = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([broken[0], b'{"key": \n', *broken[1:]]))
        ask_all(config(server), tmp_path, requests(6))
        assert len(server.calls) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"key": ["a"]},
        {"answer": "Hello."},
        {"answer": {"text": "Hello."}},
        {"usage": None},
        {"usage": {"cost": "much"}},
        {"dropped_cost": None},
    ],
)
def test_a_line_that_was_edited_into_something_else_is_ignored(tmp_path, change, caplog):
    path = tmp_path / "cache.jsonl"
    with MessagesServer(answer) as server:
        ask_all(config(server), tmp_path, requests(3))
        first, *rest = lines(path)
        path.write_text("".join(json.dumps(line) + "\n" for line in [first | change, *rest]))
        found, _ = ask_all(config(server), tmp_path, requests(3))
    assert [each.parsed.text for each in found] == [each.label for each in requests(3)]
    assert len(server.calls) == 4


def test_a_bounded_cache_drops_the_oldest_and_remembers_their_cost(tmp_path):
    path = tmp_path / "cache.jsonl"
    with MessagesServer(answer) as server:
        ask_all(config(server, max_in_flight=1), tmp_path, requests(20))
        spent = sum(line["usage"]["cost"] for line in lines(path))
        bound = path.stat().st_size / 2 / 1e6
        _, meter = ask_all(config(server, cache_max_megabytes=bound), tmp_path, requests(20)[-9:])
        assert meter.summary()[0]["cache_hits"] == 9 and len(server.calls) == 20
        assert path.stat().st_size <= bound * 1e6 + 100
        dropped, *kept = lines(path)
        kept_cost = sum(line["usage"]["cost"] for line in kept)
        assert dropped["dropped_cost"] + kept_cost == pytest.approx(spent)
        ask_all(config(server), tmp_path, requests(1))
    assert len(server.calls) == 21


def test_a_client_that_keeps_no_words_keeps_what_they_cost(tmp_path):
    def talk(asked, **more):
        async def run():
            client = Client(config(server, max_asks=0), tmp_path, **more)
            found = await client.ask_all(asked)
            await client.close()
            return found, client

        return asyncio.run(run())

    with MessagesServer(lambda body: "no JSON" if "odd" in str(body) else answer(body)) as server:
        before, _ = talk(requests(1))
        found, client = talk([*requests(3), *requests(3), request("odd")], keeps_words=False)
        assert len(server.calls) == 4, "asked once each, also without a file"
        assert isinstance(found[-1], Failure) and texts(found[:1]) == texts(before)
        spent = client.meter.usage.cost
        written = "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
        for word in ("odd", "no JSON", requests(3)[2].label):
            assert word not in written
        _, again = talk([])
    first = lines(tmp_path / "cache.jsonl")[0]["usage"]["cost"]
    assert again._budget.spent == pytest.approx(first + spent) and spent > first


def test_two_clients_share_a_folder(tmp_path):
    async def run():
        first, second = Client(config(server), tmp_path), Client(config(server), tmp_path)
        await asyncio.gather(first.ask_all(requests(10)), second.ask_all(requests(20)[10:]))
        await first.close()
        await second.close()

    with MessagesServer(answer) as server:
        asyncio.run(run())
        ask_all(config(server), tmp_path, requests(20))
    assert len(server.calls) == 20


def test_a_client_outlives_an_event_loop(tmp_path):
    with MessagesServer(answer) as server:
        client = Client(config(server), tmp_path)
        for each in requests(3):
            assert isinstance(asyncio.run(client.ask(each)), Answer)
        asyncio.run(client.close())


@pytest.mark.parametrize("code, said", [(errno.ENOSPC, "disk is full"), (errno.EIO, "written")])
def test_a_full_disk_stops_and_keeps_what_was_paid_for(tmp_path, monkeypatch, code, said):
    real_write = os.write

    def full_after_half_a_line(file, data):
        if not is_full:
            return real_write(file, data)
        if len(data) > 50:
            return real_write(file, data[:50])
        raise OSError(code, os.strerror(code))

    async def run():
        nonlocal is_full
        client = Client(config(server), tmp_path)
        await client.ask(request("before"))
        is_full = True
        with pytest.raises(LLMError, match=said):
            await client.ask(request("now"))
        assert (await client.ask(request("before"))).from_cache
        assert (await client.ask(request("now"))).from_cache
        is_full = False
        await client.close()

    is_full = False
    monkeypatch.setattr(journal.os, "write", full_after_half_a_line)
    with MessagesServer(answer) as server:
        asyncio.run(run())
        ask_all(config(server), tmp_path, [request("before"), request("after")])
    assert len(server.calls) == 3


def test_a_question_nobody_waits_for_any_more_is_not_sent(tmp_path):
    async def run():
        client = Client(config(server, max_in_flight=2), tmp_path)
        await client.ask(request())  # the first goes alone, to see what the server can
        asking = asyncio.create_task(client.ask_all(requests(10)))
        await asyncio.to_thread(wait_until, lambda: len(server.calls) == 3)
        asking.cancel()
        await client.close()

    with MessagesServer(answer, latency=0.3) as server:
        asyncio.run(run())
    # The two in flight were paid for, so they were awaited and stored.
    assert len(server.calls) == 3 == len(lines(tmp_path / "cache.jsonl"))


def test_killed_in_the_middle_and_resumed_gives_the_same_answers(tmp_path):
    faults = {"429": 0.02, "refusal": 0.1}
    with MessagesServer(answer, faults=faults, latency=0.02) as server:
        # Asked often enough that no question runs out of asks by chance.
        settings = {"model": "small", "base_url": server.url, "max_in_flight": 8, "max_asks": 9}
        for until in (40, 90):
            process = start_process(tmp_path, 200, **settings)
            wait_until(lambda until=until: sum(server.answered.values()) >= until, 120)
            kill(process)
        found, _ = ask_all(LLMConfig(**settings), tmp_path, requests(200))
    assert not [each.reason for each in found if isinstance(each, Failure)]
    assert [each.parsed.text for each in found] == [each.label for each in requests(200)]
    keys = collections.Counter(line["key"] for line in lines(tmp_path / "cache.jsonl"))
    assert set(keys.values()) == {1}
    # Only calls in flight at the two kills, whose answers nobody received, came a second time.
    assert 0 <= sum(server.answered.values()) - len(keys) <= 2 * 8
