"""The LLM client against a real server on loopback (`messages_server.py`)."""

import asyncio
import collections
import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pydantic
import pytest
from messages_server import MessagesServer, body_hash, wait_until

from ilql_jax.settings import SettingError
from imagination.llm import (
    Answer,
    Client,
    CostLimitError,
    Failure,
    LLMConfig,
    LLMError,
    Request,
    Usage,
    batches,
    journal,
)

KEY = "sk-ant-a-key-that-must-stay-secret-0123456789"


class Line(pydantic.BaseModel):
    """What the tests ask for."""

    text: str = pydantic.Field(max_length=200)
    length: int


def answer(body):
    """The words of the first question, as JSON where the body asks for it."""
    words = body["messages"][0]["content"]
    if "output_config" not in body:
        return f"You said: {words}"
    return json.dumps({"text": words, "length": len(words)})


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


def config(server, **settings):
    prices = {"price_input": 3.0, "price_output": 15.0, "price_cache_read": 0.3}
    defaults = {"model": "small", "batch_poll": 0.05, "timeout": 10.0, **prices}
    return LLMConfig(**{**defaults, "base_url": server.url, **settings})


def request(words="hello", schema=Line, **fields):
    fields = {"step": "imagine", "system": "You write.", "label": words, **fields}
    return Request(messages=(("user", words),), schema=schema, **fields)


def requests(count):
    return [request(f"question {number}") for number in range(count)]


def ask_all(settings, folder, asked, on_done=None):
    """Asks with a client of its own; returns the outcomes and the client's meter."""

    async def run():
        client = Client(settings, folder)
        try:
            return await client.ask_all(asked, on_done), client.meter
        finally:
            await client.close()

    return asyncio.run(run())


def ask(settings, folder, asked):
    async def run():
        client = Client(settings, folder)
        try:
            return await client.ask(asked)
        finally:
            await client.close()

    return asyncio.run(run())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def texts(outcomes):
    return [outcome.text for outcome in outcomes]


# One call


def test_a_text_answer_with_its_usage(tmp_path):
    with MessagesServer(answer) as server:
        found = ask(config(server), tmp_path, request(schema=None))
    prefix = len(json.dumps(server.calls[0].body["system"])) // 4
    assert found.text == "You said: hello" and found.parsed is None and not found.from_cache
    assert found.usage == Usage(1, 3, 0, prefix, pytest.approx((1 * 3 + 3 * 15) / 1e6))


def test_structured_output_and_the_cached_prefix_are_asked_for(tmp_path):
    with MessagesServer(answer) as server:
        found = ask(config(server), tmp_path, request("hi"))
    assert found.parsed == Line(text="hi", length=2)
    body = server.calls[0].body
    assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert set(body["output_config"]["format"]["schema"]["properties"]) == {"text", "length"}
    assert server.calls[0].key == KEY


def test_json_in_a_code_block_is_understood(tmp_path):
    with MessagesServer(lambda body: f"```json\n{answer(body)}\n```") as server:
        assert ask(config(server), tmp_path, request()).parsed.text == "hello"
    assert len(server.calls) == 1


def test_the_key_covers_what_determines_the_answer_and_nothing_else():
    base = request()
    others = [
        request("other"),
        request(system="You sing."),
        request(schema=None),
        request(max_tokens=5),
        request(prompt_version="2"),
        request(resample=1),
    ]
    keys = {each.key("small") for each in [base, *others]} | {base.key("large")}
    assert len(keys) == 8 and all(len(key) == 64 for key in keys)
    assert request(label="something else", step="another").key("small") == base.key("small")


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"model": " "}, "model"),
        ({"base_url": "localhost:80"}, "base_url"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": 2000}, "max_in_flight"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_asks": 1.5}, "max_asks"),
        ({"timeout": float("nan")}, "timeout"),
        ({"batch": "yes"}, "batch"),
        ({"batch_poll": 0}, "batch_poll"),
        ({"cache_max_megabytes": -1}, "cache_max_megabytes"),
        ({"max_cost": 1.0}, "max_cost"),
        ({"price_output": -1}, "price_output"),
        ({"batch_price_factor": "half"}, "batch_price_factor"),
    ],
)
def test_a_bad_setting_is_named(settings, field):
    with pytest.raises(SettingError, match=rf"{field} is .*, but must "):
        LLMConfig(**{"model": "m", **settings})


def test_a_request_that_nobody_could_answer_is_refused():
    with pytest.raises(ValueError, match="last message must be the user's"):
        Request("a", "", (("user", "hi"), ("assistant", "ho")))
    with pytest.raises(ValueError, match="is empty"):
        Request("a", "", (("user", " "),))


# Many calls


def test_order_progress_and_one_call_for_identical_requests(tmp_path):
    seen = []
    asked = [*requests(5), *requests(5)]
    with MessagesServer(answer, latency=0.05) as server:
        found, meter = ask_all(config(server), tmp_path, asked, seen.append)
    assert [each.parsed.text for each in found] == [each.label for each in asked]
    assert seen == list(range(1, 11)) and len(server.calls) == 5
    assert meter.summary()[0]["calls"] == 5 and meter.summary()[0]["cache_hits"] == 5


def test_64_calls_stay_in_flight(tmp_path):
    with MessagesServer(answer, latency=1.0) as server:
        start = time.monotonic()
        found, _ = ask_all(config(server, max_in_flight=64), tmp_path, requests(128))
        seconds = time.monotonic() - start
    assert server.peak_in_flight == 64 and len(found) == 128
    assert seconds < 6  # 2 s of waiting, and a machine with other things to do


def test_no_more_calls_in_flight_than_allowed(tmp_path):
    with MessagesServer(answer, latency=0.02) as server:
        ask_all(config(server, max_in_flight=3), tmp_path, requests(20))
    assert server.peak_in_flight == 3


def test_mixed_faults_lose_nothing_and_repeat_nothing(tmp_path):
    kinds = ("429", "529", "500", "408", "cut", "shape", "max_tokens", "refusal", "wrong_schema")
    faults = {kind: 0.1 / len(kinds) for kind in kinds}
    asked = requests(500)
    with MessagesServer(answer, faults=faults, seed=3) as server:
        found, meter = ask_all(config(server, max_asks=9), tmp_path, asked)
        good = [call for call in server.calls if call.fault == ""]
    assert [each.parsed.text for each in found] == [each.label for each in asked]
    assert len(good) == 500
    assert max(server.answered.values()) == 1  # nothing that was answered was asked again
    assert sum(server.answered.values()) == meter.summary()[0]["calls"]
    assert len(server.calls) == 500 + server.fault_count(*kinds)  # and no call was needless
    assert server.fault_count(*kinds) > 25
    assert len(lines(tmp_path / "cache.jsonl")) == sum(server.answered.values())
    assert not (tmp_path / "failed.jsonl").exists()


@pytest.mark.parametrize("fault", ["408", "409", "429", "500", "529", "cut", "shape", "html"])
def test_a_call_that_fails_on_the_way_is_sent_again(tmp_path, fault):
    with MessagesServer(answer, schedule=[fault]) as server:
        found, meter = ask_all(config(server), tmp_path, requests(1))
    assert isinstance(found[0], Answer) and len(server.calls) == 2
    assert meter.summary()[0]["retries"] == 1


def test_retry_after_is_honoured(tmp_path):
    with MessagesServer(answer, schedule=["429"], retry_after_ms=900) as server:
        start = time.monotonic()
        ask(config(server), tmp_path, request())
    assert time.monotonic() - start >= 0.9


def test_a_slow_answer_times_out_and_is_asked_again(tmp_path):
    with MessagesServer(answer, schedule=["slow"], slow_seconds=5.0) as server:
        found = ask(config(server, timeout=0.3), tmp_path, request())
    assert isinstance(found, Answer) and len(server.calls) == 2


def test_a_call_that_never_gets_through_is_set_aside_and_asked_anew_later(tmp_path):
    with MessagesServer(answer) as server:
        settings = config(server, max_retries=1, max_in_flight=1)
        server.schedule.extend(["", "500", "500"])
        (first, lost, last), meter = ask_all(settings, tmp_path, requests(3))
        assert isinstance(first, Answer) and isinstance(last, Answer)
        assert isinstance(lost, Failure) and "500" in lost.reason
        assert meter.summary()[0]["failures"] == 1
        found, _ = ask_all(settings, tmp_path, requests(3))
    assert all(isinstance(each, Answer) for each in found) and len(server.calls) == 5


def test_a_service_that_stops_answering_stops_the_run(tmp_path):
    with MessagesServer(answer, schedule=[""] + ["529"] * 1000) as server:
        settings = config(server, max_retries=0, max_in_flight=4)
        with pytest.raises(LLMError, match="has stopped answering"):
            ask_all(settings, tmp_path, requests(100))
    assert len(server.calls) < 20


# Unusable answers


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("max_tokens", "cut off"),
        ("refusal", "refusal"),
        ("wrong_schema", "did not fit the schema"),
        ("empty", "empty"),
    ],
)
def test_an_unusable_answer_is_asked_again_with_the_reason(tmp_path, fault, reason):
    with MessagesServer(answer, schedule=[fault]) as server:
        found, meter = ask_all(config(server), tmp_path, requests(1))
    again = server.calls[1].body["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert reason in again[2]["content"] and again[1]["content"].strip()
    assert found[0].parsed.text == "question 0"
    (count,) = meter.summary()
    assert (count["calls"], count["re_asks"], count["failures"]) == (2, 1, 0)
    # Both were paid for, and both are counted.
    assert found[0].usage.cost == pytest.approx(meter.usage.cost)


def test_an_answer_that_fails_the_requests_own_check_is_asked_again(tmp_path):
    def shorter(line):
        if line.length > 2:
            raise ValueError(f"{line.length} letters are too many")

    def obeys(body):
        again = len(body["messages"]) > 1
        return json.dumps({"text": "ho", "length": 2}) if again else answer(body)

    asked = request("hello", check=shorter)
    assert asked.key("small") == request("hello").key("small")
    with MessagesServer(obeys) as server:
        assert ask(config(server), tmp_path, asked).parsed.text == "ho"
        again = server.calls[1].body["messages"][2]["content"]
        assert "5 letters are too many" in again
        # Judged again when it is read from disk: the same way leads to the same answer.
        assert ask(config(server), tmp_path, asked).parsed.text == "ho"
        assert len(server.calls) == 2


def test_what_never_becomes_usable_is_set_aside_with_everything(tmp_path):
    settings = {"max_asks": 2, "max_in_flight": 1}
    with MessagesServer(answer, schedule=["refusal", "wrong_schema", "max_tokens"]) as server:
        found, meter = ask_all(config(server, **settings), tmp_path, requests(1))
        assert isinstance(found[0], Failure) and "cut off" in found[0].reason
        assert found[0].request == requests(1)[0]
        ask_all(config(server, **settings), tmp_path, requests(2))  # the run goes on
        # A resumed run repeats no call, and does not write the failure down twice.
        again, resumed = ask_all(config(server, **settings), tmp_path, requests(2))
        assert again[0] == found[0] and len(server.calls) == 4
        # With more asks allowed it goes on where the chain ended.
        more, _ = ask_all(config(server, max_asks=3), tmp_path, requests(2))
        assert isinstance(more[0], Answer) and len(server.calls) == 5
    assert meter.summary()[0]["failures"] == resumed.summary()[0]["failures"] == 1
    assert resumed.usage.cost == 0 and resumed.summary()[0]["cached_cost"] > 0
    (failed,) = lines(tmp_path / "failed.jsonl")
    assert failed["step"] == "imagine" and failed["request"]["label"] == "question 0"
    assert [each["stop_reason"] for each in failed["replies"]] == [
        "refusal",
        "end_turn",
        "max_tokens",
    ]
    assert failed["replies"][1]["text"] == '{"wrong": true}'


def test_a_higher_max_tokens_asks_anew_what_was_cut_off_and_nothing_else(tmp_path):
    with MessagesServer(answer, schedule=["max_tokens"]) as server:
        settings = {"max_asks": 0, "max_in_flight": 1}
        found, _ = ask_all(config(server, **settings), tmp_path, requests(3))
        assert isinstance(found[0], Failure)
        settings["max_tokens"] = 8192
        found, _ = ask_all(config(server, **settings), tmp_path, requests(3))
        assert isinstance(found[0], Answer) and len(server.calls) == 4
        ask_all(config(server, **settings), tmp_path, requests(3))
    assert len(server.calls) == 4


# The caller's fault


@pytest.mark.parametrize(
    "fault, advice",
    [
        ("400", "max_tokens"),
        ("401", "ANTHROPIC_API_KEY"),
        ("403", "another"),
        ("404", "'small'.*base_url"),
        ("413", "too large"),
    ],
)
def test_the_callers_fault_stops_at_once_and_keeps_what_arrives(tmp_path, fault, advice):
    schedule = ["", "", fault, "", ""]
    with MessagesServer(answer, schedule=schedule, latency=0.1) as server:
        with pytest.raises(LLMError, match=advice):
            ask_all(config(server, max_in_flight=4), tmp_path, requests(50))
        assert len(server.calls) < 12
        assert len(lines(tmp_path / "cache.jsonl")) == sum(server.answered.values())


def test_answers_already_held_stay_usable_after_a_stop(tmp_path):
    async def run():
        client = Client(config(server), tmp_path)
        await client.ask(request("one"))
        with pytest.raises(LLMError):
            await client.ask(request("two"))
        assert (await client.ask(request("one"))).from_cache
        with pytest.raises(LLMError):
            await client.ask(request("three"))
        await client.close()

    with MessagesServer(answer, schedule=["", "401"]) as server:
        asyncio.run(run())
    assert len(server.calls) == 2


@pytest.mark.parametrize("fault", ["html", "shape"])
def test_a_base_url_that_is_no_messages_api_is_named(tmp_path, fault):
    with (
        MessagesServer(answer, faults={fault: 1.0}) as server,
        pytest.raises(LLMError, match=server.url),
    ):
        ask(config(server, max_asks=1), tmp_path, request())


def test_an_address_where_nobody_listens_is_named(tmp_path):
    settings = LLMConfig(model="small", base_url="http://127.0.0.1:9", max_retries=0)
    with pytest.raises(LLMError, match=r"http://127\.0\.0\.1:9 gave no answer"):
        ask(settings, tmp_path, request())


def test_without_a_key_nothing_is_sent_to_the_service(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(LLMError, match="ANTHROPIC_API_KEY"):
        ask(LLMConfig(model="small"), tmp_path, request())


def test_a_local_server_gets_a_placeholder_for_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with MessagesServer(answer) as server:
        assert isinstance(ask(config(server), tmp_path, request()), Answer)
    assert server.calls[0].key == "no-key-is-set"


def test_the_key_is_in_no_file_and_no_message(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    said = []

    def gossip(body):
        return f"My key is {KEY}" if "output_config" not in body else answer(body)

    async def run():
        client = Client(config(server), tmp_path)
        said.append((await client.ask(request(schema=None))).text)
        said.append(str(await client.ask(request("fails"))))
        with pytest.raises(LLMError) as error:
            await client.ask(request("stops"))
        said.extend([str(error.value), repr(error.value), repr(client), repr(vars(client))])
        assert error.value.__cause__ is None and "[key]" in said[2]
        await client.close()

    with MessagesServer(gossip, echo_key=True) as server:
        server.schedule.extend(["", *["refusal"] * 4, "401"])
        asyncio.run(run())
    said += [caplog.text, *capsys.readouterr(), pickle.dumps(config(server)).decode("latin1")]
    said += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    assert not any(KEY in text for text in said)


# Cost


def test_the_meter_counts_by_step_with_cached_input_apart(tmp_path):
    asked = [request("a", step="derive"), request("b"), request("c")]
    with MessagesServer(answer) as server:
        found, meter = ask_all(config(server, max_in_flight=1), tmp_path, asked)
    derive, imagine = meter.summary()
    assert (derive["step"], derive["calls"], imagine["calls"]) == ("derive", 1, 2)
    assert derive["cache_write_tokens"] > 0 and imagine["cache_read_tokens"] > 0
    costs = [each.usage.cost for each in found]
    assert meter.usage.cost == pytest.approx(sum(costs)) and min(costs) > 0
    assert "3 calls" in meter.line() and "cached" in meter.line() and "$" in meter.line()


def test_max_cost_is_never_passed_and_what_was_sent_is_kept(tmp_path):
    with MessagesServer(answer, latency=0.01) as server:
        limited = config(server, max_cost=0.02, max_tokens=300)
        with pytest.raises(CostLimitError, match="max_cost"):
            ask_all(limited, tmp_path, requests(500))
        stored = lines(tmp_path / "cache.jsonl")
        spent = sum(line["usage"]["cost"] for line in stored)
        assert len(stored) == len(server.calls) == sum(server.answered.values())
        # Waiting for calls in flight to settle uses the money up to the worst case of one call.
        assert 0.014 < spent <= 0.02
        # What earlier runs spent in this folder counts.
        with pytest.raises(CostLimitError):
            ask_all(limited, tmp_path, requests(500))
        assert len(server.calls) == len(stored)
        found, _ = ask_all(config(server), tmp_path, requests(500))
    assert len(found) == len(server.calls) == 500


# The cache


def test_cached_answers_come_back_fast_and_without_a_call(tmp_path):
    with MessagesServer(answer) as server:
        asked = requests(300)
        found, _ = ask_all(config(server), tmp_path, asked)

        async def run():
            client = Client(config(server), tmp_path)
            start = time.perf_counter()
            again = [each for _ in range(10) for each in await client.ask_all(asked)]
            seconds = time.perf_counter() - start
            await client.close()
            return again, len(again) / seconds

        again, rate = asyncio.run(run())
    assert texts(again[:300]) == texts(found) and all(each.from_cache for each in again)
    assert len(server.calls) == 300
    assert rate > 10_000


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
        asking = asyncio.create_task(client.ask_all(requests(10)))
        await asyncio.to_thread(wait_until, lambda: len(server.calls) == 2)
        asking.cancel()
        await client.close()

    with MessagesServer(answer, latency=0.3) as server:
        asyncio.run(run())
    # The two in flight were paid for, so they were awaited and stored.
    assert len(server.calls) == 2 == len(lines(tmp_path / "cache.jsonl"))


# Being killed

KILLED = """
    import asyncio, pathlib, sys
    sys.path[:0] = {folders!r}
    from test_llm import Client, LLMConfig, requests

    async def run():
        client = Client(LLMConfig(**{settings!r}), pathlib.Path({folder!r}))
        await client.ask_all(requests({count}))

    asyncio.run(run())
"""


def start_process(folder, count, **settings):
    script = textwrap.dedent(KILLED).format(
        folders=[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")],
        settings=settings,
        folder=str(folder),
        count=count,
    )
    return subprocess.Popen([sys.executable, "-c", script])


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_in_the_middle_and_resumed_gives_the_same_answers(tmp_path):
    faults = {"429": 0.02, "refusal": 0.05, "wrong_schema": 0.05}
    with MessagesServer(answer, faults=faults, latency=0.02) as server:
        # Asked often enough that no question runs out of asks by chance.
        settings = {"model": "small", "base_url": server.url, "max_in_flight": 8, "max_asks": 9}
        for until in (40, 90):
            process = start_process(tmp_path, 200, **settings)
            wait_until(lambda until=until: sum(server.answered.values()) >= until, 20)
            kill(process)
        found, _ = ask_all(LLMConfig(**settings), tmp_path, requests(200))
    assert not [each.reason for each in found if isinstance(each, Failure)]
    assert [each.parsed.text for each in found] == [each.label for each in requests(200)]
    # Only calls in flight at the two kills, whose answers nobody received, came a second time.
    repeated = sum(server.answered.values()) - len(server.answered)
    assert repeated <= 2 * 8
    keys = collections.Counter(line["key"] for line in lines(tmp_path / "cache.jsonl"))
    assert set(keys.values()) == {1} and len(keys) == len(server.answered)


# Batches


def test_a_batch_at_batch_price(tmp_path):
    asked = requests(30)
    with MessagesServer(answer, batch_looks=3) as server:
        found, meter = ask_all(config(server, batch=True), tmp_path / "batch", asked)
        assert len(server.batches) == 1 and not server.calls
        direct, full_price = ask_all(config(server), tmp_path / "direct", asked)
        again, cached = ask_all(config(server, batch=True), tmp_path / "batch", asked)
    assert texts(found) == texts(direct) == texts(again)
    assert meter.usage.cost == pytest.approx(full_price.usage.cost / 2, rel=0.1)
    assert cached.usage.cost == 0 and len(server.batches) == 1


def test_batches_are_no_larger_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_REQUESTS", 8)
    with MessagesServer(answer) as server:
        found, _ = ask_all(config(server, batch=True), tmp_path, requests(20))
    assert sorted(batch.size for batch in server.batches) == [4, 8, 8] and len(found) == 20


def test_batch_faults_lose_nothing_and_pay_for_nothing_twice(tmp_path):
    kinds = ("errored", "expired", "canceled", "missing", "refusal", "wrong_schema")
    faults = {**dict.fromkeys(kinds, 0.03), "duplicate": 0.2}
    asked = requests(200)
    with MessagesServer(
        answer,
        batch_faults=faults,
        create_schedule=["429", "cut"],
        results_schedule=["cut"],
    ) as server:
        found, meter = ask_all(config(server, batch=True, max_asks=9), tmp_path, asked)
    assert [each.parsed.text for each in found] == [each.label for each in asked]
    # The second creation arrived though its answer did not: it was found, not made again.
    assert server.batches[0].size == 200 and sum(b.size == 200 for b in server.batches) == 1
    stored = [line["key"] for line in lines(tmp_path / "cache.jsonl")]
    assert len(stored) == len(set(stored)) == meter.summary()[0]["calls"]
    assert meter.summary()[0]["calls"] == sum(server.answered.values()) == len(server.answered)


def test_an_entry_that_always_errs_is_set_aside(tmp_path):
    with MessagesServer(answer, batch_faults={"errored": 1.0}) as server:
        found, meter = ask_all(config(server, batch=True, max_asks=2), tmp_path, requests(1))
    assert isinstance(found[0], Failure) and "errored" in found[0].reason
    assert len(server.batches) == 3 and meter.usage.cost == 0
    assert len(lines(tmp_path / "failed.jsonl")) == 1


def test_a_restart_polls_the_batch_that_is_on_its_way(tmp_path):
    with MessagesServer(answer, batch_looks=10**6) as server:
        settings = {"model": "small", "base_url": server.url, "batch": True, "batch_poll": 0.05}
        process = start_process(tmp_path, 25, **settings)
        wait_until(lambda: bool(server.batches) and server.batches[0].looks > 0, 20)
        kill(process)
        server.batch_looks = 1
        found, meter = ask_all(LLMConfig(**settings), tmp_path, requests(25))
    assert len(server.batches) == 1 and meter.summary()[0]["calls"] == 25
    assert [each.parsed.text for each in found] == [each.label for each in requests(25)]


@pytest.mark.parametrize("has_ended", [True, False])
def test_an_intent_without_an_id_finds_its_batch(tmp_path, has_ended):
    settings = {"batch": True}
    with MessagesServer(answer) as server:
        # Somebody else's batch of the same size, and ours, whose id was never written down.
        ask_all(config(server, **settings), tmp_path / "other", requests(50)[25:])
        ask_all(config(server, **settings), tmp_path / "ours", requests(25))
        intent = lines(tmp_path / "ours" / "batches.jsonl")[0]
        assert set(intent) == {"intent", "time", "keys"}
        (tmp_path / "resumed").mkdir()
        (tmp_path / "resumed" / "batches.jsonl").write_text(json.dumps(intent) + "\n")
        if not has_ended:
            server.batches[1].looks, server.batch_looks = -1, 1
        found, _ = ask_all(config(server, **settings), tmp_path / "resumed", requests(25))
        assert len(server.batches) == 2 and all(isinstance(each, Answer) for each in found)


def test_an_intent_that_became_no_batch_is_sent_again(tmp_path):
    with MessagesServer(answer) as server:
        now = batches._now().isoformat()
        keys = [each.key("small") for each in requests(5)]
        line = json.dumps({"intent": "a", "time": now, "keys": keys})
        (tmp_path / "batches.jsonl").write_text(line + "\n")
        found, _ = ask_all(config(server, batch=True), tmp_path, requests(5))
    assert len(server.batches) == 1 and all(isinstance(each, Answer) for each in found)


def test_a_batch_that_the_service_lost_is_sent_again(tmp_path):
    with MessagesServer(answer) as server:
        keys = [each.key("small") for each in requests(5)]
        known = [
            {"intent": "a", "time": batches._now().isoformat(), "keys": keys},
            {"intent": "a", "batch": "msgbatch_gone"},
        ]
        (tmp_path / "batches.jsonl").write_text("".join(json.dumps(k) + "\n" for k in known))
        found, _ = ask_all(config(server, batch=True), tmp_path, requests(5))
    assert len(server.batches) == 1 and all(isinstance(each, Answer) for each in found)


def test_max_cost_holds_for_batches(tmp_path):
    with MessagesServer(answer) as server:
        settings = config(server, batch=True, max_cost=0.02, max_tokens=12)
        with pytest.raises(CostLimitError):
            ask_all(settings, tmp_path, requests(300))
        spent = sum(line["usage"]["cost"] for line in lines(tmp_path / "cache.jsonl"))
    assert 0.01 < spent <= 0.02 and len(server.batches) > 1


def test_a_service_without_batches_says_so(tmp_path):
    with MessagesServer(answer, create_schedule=["404"]) as server, pytest.raises(LLMError):
        ask_all(config(server, batch=True), tmp_path, requests(3))


def test_the_server_counts_bodies_apart():
    assert body_hash({"a": 1, "b": 2}) == body_hash({"b": 2, "a": 1}) != body_hash({"a": 2})
