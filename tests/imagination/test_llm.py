"""The LLM client against a real server on loopback (`messages_server.py`)."""

import asyncio
import json
import logging
import pickle
import time

import pytest
from llm_questions import KEY, Line, answer, ask, ask_all, config, lines, request, requests
from messages_server import MessagesServer

from ilql_jax.settings import SettingError
from imagination.llm import (
    Answer,
    Client,
    Failure,
    LLMConfig,
    LLMError,
    Request,
    Usage,
)
from imagination.llm.requests import Declined


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


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
    with MessagesServer(answer, latency=0.5, gather=64) as server:
        settings = config(server, max_in_flight=64, timeout=60.0)
        found, _ = ask_all(settings, tmp_path, requests(128))
    assert server.peak_in_flight == 64 and len(found) == 128


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


def test_a_slow_answer_times_out_and_is_asked_again(tmp_path, caplog):
    with MessagesServer(answer, schedule=["slow"], slow_seconds=20.0) as server:
        found = ask(config(server, timeout=1.5), tmp_path, request())
    assert isinstance(found, Answer) and len(server.calls) == 2
    # Nothing happens for a while, and that is said.
    (said,) = [record.getMessage() for record in caplog.records]
    assert "no answer within 1.5 s" in said and "asked once more" in said


@pytest.mark.parametrize("fault", [pytest.param("408", marks=pytest.mark.slow), "504"])
def test_a_proxys_time_out_is_waited_out_once(tmp_path, fault, caplog):
    settings = {"timeout": 1.5, "max_in_flight": 1}
    schedule = ["", fault, "", fault, fault]
    with MessagesServer(answer, schedule=schedule, retry_after_ms=0) as server:
        start = time.monotonic()
        (*found, lost), _ = ask_all(config(server, **settings), tmp_path, requests(3))
        assert time.monotonic() - start >= 3.0 and len(server.calls) == 5
    assert all(isinstance(each, Answer) for each in found)
    assert isinstance(lost, Failure) and fault in lost.reason
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"status {fault}; lower max_in_flight" in said and "once more after 1.5 s" in said
    with MessagesServer(answer, schedule=["", fault]) as server:  # it says when to come again
        start = time.monotonic()
        ask_all(config(server, timeout=100.0), tmp_path / "told", requests(2))
    assert time.monotonic() - start < 50


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
        settings = config(server, max_retries=0, max_in_flight=1)
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
        found, meter = ask_all(config(server, max_asks=1), tmp_path, requests(1))
    again = server.calls[1].body["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert reason in again[2]["content"] and again[1]["content"].strip()
    assert found[0].parsed.text == "question 0"
    (count,) = meter.summary()
    assert (count["calls"], count["re_asks"], count["failures"]) == (2, 1, 0)
    # Both were paid for, and both are counted.
    assert found[0].usage.cost == pytest.approx(meter.usage.cost)


def said(call):
    return [message["content"] for message in call.body["messages"]]


def test_first_another_sample_is_asked_for_then_with_the_reason(tmp_path):
    replies = iter(['{"text": "one"}', '{"text": "two"}', '{"text": "two"}', '{"text": "three"}'])
    settings = {"max_asks": 4, "max_in_flight": 1}
    with MessagesServer(lambda body: next(replies, None) or answer(body)) as server:
        assert ask(config(server, **settings), tmp_path, request()).parsed.text == "hello"
        first, sample, shown, not_shown, other = map(said, server.calls)
        assert first == sample == ["hello"]
        assert shown[:2] == ["hello", '{"text": "two"}'] and "length: Field required" in shown[2]
        # It came again, so it is not shown again; what came then is.
        (asked,) = not_shown
        assert asked.startswith("hello") and "Field required" in asked and "two" not in asked
        assert other[1] == '{"text": "three"}' and len(other) == 3
        # A resumed run walks the same way, without a call.
        assert ask(config(server, **settings), tmp_path, request()).from_cache
    assert len(server.calls) == 5


def test_without_samples_the_reason_is_told_at_once(tmp_path):
    with MessagesServer(answer, schedule=["wrong_schema"]) as server:
        ask(config(server, temperature=0.0), tmp_path, request())
    assert "did not fit" in said(server.calls[1])[-1]


def test_an_answer_that_declines_is_not_argued_with_and_asked_anew_by_the_next_run(tmp_path):
    def check(line):
        if line.text == "hello":
            raise Declined("nobody to talk with")

    words = iter(["hello"] * 5 + ["welcome"])

    def judge(body):
        return json.dumps({"text": next(words), "length": 5})

    with MessagesServer(judge) as server:
        for run in (1, 2):
            found = ask(config(server, max_asks=1), tmp_path, request(check=check))
            assert isinstance(found, Failure) and found.reason == "nobody to talk with"
            paid = [line["usage"]["cost"] for line in lines(tmp_path / "cache.jsonl")]
            assert found.usage.cost == pytest.approx(sum(paid[-2:])) and found.usage.cost > 0
            assert len(server.calls) == 2 * run
            assert len(lines(tmp_path / "failed.jsonl")) == run
        for _ in range(2):
            found = ask(config(server, max_asks=1), tmp_path, request(check=check))
            assert found.parsed.text == "welcome" and len(server.calls) == 6
    assert {tuple(said(call)) for call in server.calls} == {("hello",)}


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
        again = server.calls[2].body["messages"][2]["content"]
        assert "5 letters are too many" in again
        # Judged again when it is read from disk: the same way leads to the same answer.
        assert ask(config(server), tmp_path, asked).parsed.text == "ho"
        assert len(server.calls) == 3


def test_what_never_becomes_usable_is_set_aside_with_everything(tmp_path):
    settings = {"max_asks": 2, "max_in_flight": 1}
    with MessagesServer(answer, schedule=["refusal", "wrong_schema", "max_tokens"]) as server:
        found, meter = ask_all(config(server, **settings), tmp_path, requests(1))
        assert isinstance(found[0], Failure) and "cut off" in found[0].reason
        assert found[0].request == requests(1)[0]
        assert found[0].usage == meter.usage and meter.usage.cost > 0  # all three were paid for
        # The next run asks anew, and the one after it takes what that brought.
        for _ in range(2):
            more, _ = ask_all(config(server, **settings), tmp_path, requests(2))
            assert isinstance(more[0], Answer) and len(server.calls) == 5
    assert meter.summary()[0]["failures"] == 1
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


def test_a_server_that_fails_from_the_start_is_told_from_one_that_is_not_there(tmp_path):
    with (
        MessagesServer(answer, faults={"500": 1.0}) as server,
        pytest.raises(LLMError, match=r"gave no answer: status 500: fault 500\. Look at its log"),
    ):
        ask(config(server, max_retries=0), tmp_path, request())


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
