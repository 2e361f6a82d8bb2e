"""Chat completions: the client's second wire format, against a server on loopback."""

import json
import logging
import sys

import messages_server
import pytest
from llm_questions import KEY, Line, answer, ask, ask_all, chat_config, config, lines, request
from llm_questions import requests as questions
from messages_server import MessagesServer

from ilql_jax.settings import SettingError
from imagination.llm import Answer, Failure, LLMConfig, LLMError
from imagination.llm.transports import open_transport


@pytest.fixture(autouse=True)
def keys_in_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-another-key-that-has-no-business-here")


def test_a_question_is_put_and_its_answer_read_and_counted(tmp_path):
    with MessagesServer(answer) as server:
        settings = chat_config(server, temperature=0.7, top_p=0.9)
        first = ask(settings, tmp_path, request("hi"))
        second = ask(settings, tmp_path, request("ho", schema=None))
        third = ask(settings, tmp_path, request("hu"))
    assert first.parsed == Line(text="hi", length=2) and second.text == "You said: ho"
    structured, plain, _ = (call.body for call in server.calls)
    told, said = structured["messages"]
    assert told["role"] == "system" and told["content"].startswith("You write.\n\nAnswer with")
    assert said == {"role": "user", "content": "hi"}
    assert (structured["temperature"], structured["top_p"]) == (0.7, 0.9)
    assert structured["response_format"]["json_schema"]["strict"]
    schema = structured["response_format"]["json_schema"]["schema"]
    assert schema["additionalProperties"] is False and schema["required"] == ["text", "length"]
    assert schema["properties"]["text"] == {"maxLength": 200, "type": "string"}
    assert "response_format" not in plain
    assert {call.key for call in server.calls} == {KEY}
    # A prefix that was cached is not counted twice.
    assert third.usage.input_tokens == 0 and third.usage.cache_read_tokens > 0
    assert second.usage.output_tokens == 3 and second.usage.cost > 0


CHAT_FIELDS = {"top_k": 40, "presence_penalty": 0.5, "frequency_penalty": -0.5}


@pytest.mark.parametrize(
    ("settings", "fields"), [(config, {"top_k": 40}), (chat_config, CHAT_FIELDS)]
)
def test_further_fields_of_sampling_are_sent_and_keep_answers_apart(tmp_path, settings, fields):
    more = {"extra_body": '{"min_p": 0.05, "logit_bias": {"5": -1}}'}
    with MessagesServer(answer) as server:
        ask(settings(server), tmp_path, request())
        for field, value in (fields | more).items():
            for _ in range(2):
                ask(settings(server, **{field: value}), tmp_path, request())
        ask(settings(server, **fields, **more), tmp_path, request())
    plain, *single, full = (call.body for call in server.calls)
    assert len(single) == len(fields) + 1
    assert full == plain | fields | {"min_p": 0.05, "logit_bias": {"5": -1}}


def test_each_sample_has_a_seed_of_its_own_and_the_same_in_another_run(tmp_path):
    asked = [request(), request(resample=1), request("other")]
    seeds = []
    for run in ("a", "b"):
        with MessagesServer(answer, schedule=["wrong_schema"]) as server:
            ask_all(chat_config(server, seed=3, max_in_flight=1), tmp_path / run, asked)
        by_words = [(said(call.body), call.body["seed"]) for call in server.calls]
        seeds.append(sorted(by_words))
    assert seeds[0] == seeds[1]
    of_hello = [seed for words, seed in seeds[0] if words == "hello"]
    assert len(of_hello) == len(set(of_hello)) == 3
    with MessagesServer(answer) as server:
        ask(chat_config(server, seed=4), tmp_path / "a", request())
    assert len(server.calls) == 1 and server.calls[0].body["seed"] not in of_hello


def said(body):
    return body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty is 0.5, but must be 0 where api is messages"),
        ({"frequency_penalty": 1}, "frequency_penalty is 1.0, but must be 0 where api is messages"),
        ({"seed": 0}, "seed is 0, but must be -1 where api is messages"),
        ({"seed": -2}, "seed is -2"),
        ({"top_k": -1}, "top_k is -1"),
        ({"extra_body": "min_p=1"}, "extra_body is 'min_p=1', but must be a JSON object"),
        ({"extra_body": "[]"}, "must be a JSON object"),
        ({"extra_body": '{"min_p": NaN}'}, "must be a JSON object"),
        ({"extra_body": '{"stream": true, "model": "n"}'}, "must not name model, stream"),
        ({"extra_body": '{"temperature": 1}'}, "must not name temperature"),
    ],
)
def test_fields_that_an_api_has_not_are_refused(settings, problem):
    with pytest.raises(SettingError) as refused:
        LLMConfig("m", **settings)
    assert problem in str(refused.value)


def test_the_official_service_has_no_top_k():
    with pytest.raises(LLMError, match=r"top_k is 5, but https://api\.openai\.com"):
        open_transport(LLMConfig("m", api="chat_completions", top_k=5))


def test_answers_of_one_wire_format_are_not_taken_for_the_other(tmp_path):
    with MessagesServer(answer) as server:
        for settings in (config(server), chat_config(server)):
            for _ in range(2):
                ask(settings, tmp_path, request())
        ask(config(server, temperature=0.5), tmp_path, request())
    assert len(server.calls) == 3 and len(lines(tmp_path / "cache.jsonl")) == 3


@pytest.mark.parametrize("fault", ["429", "500", "cut", "shape", "html"])
def test_a_call_that_fails_on_the_way_is_sent_again(tmp_path, fault):
    with MessagesServer(answer, schedule=[fault]) as server:
        found, meter = ask_all(chat_config(server), tmp_path, questions(1))
    assert isinstance(found[0], Answer) and len(server.calls) == 2
    assert meter.summary()[0]["retries"] == 1


def test_faults_lose_nothing_and_repeat_nothing(tmp_path):
    kinds = ("429", "529", "cut", "shape", "max_tokens", "refusal", "wrong_schema", "empty")
    faults = dict.fromkeys(kinds, 0.02)
    with MessagesServer(answer, faults=faults, seed=3) as server:
        found, meter = ask_all(chat_config(server, max_asks=9), tmp_path, questions(100))
        good = [call for call in server.calls if call.fault == ""]
    assert [each.parsed.text for each in found] == [each.label for each in questions(100)]
    assert len(good) == 100 and len(server.calls) == 100 + server.fault_count(*kinds)
    assert meter.summary()[0]["calls"] == len(lines(tmp_path / "cache.jsonl"))


def test_the_cost_limit_holds(tmp_path):
    with MessagesServer(answer) as server:
        settings = chat_config(server, max_cost=0.0035, max_tokens=100, max_in_flight=4)
        with pytest.raises(LLMError, match="max_cost"):
            ask_all(settings, tmp_path, questions(100))
    spent = sum(line["usage"]["cost"] for line in lines(tmp_path / "cache.jsonl"))
    assert 0 < spent <= 0.0035


@pytest.mark.parametrize(
    "message",
    [
        "no JSON",
        "[]",
        '"text"',
        "{}",
        '{"choices": []}',
        '{"choices": {}}',
        '{"choices": [{}]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": 3}}]}',
        '{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
        '{"error": {"message": "quota"}}',
    ],
)
def test_what_is_no_answer_ends_in_a_message(message):
    transport = open_transport(LLMConfig("m", api="chat_completions", base_url="http://host/v1"))
    with pytest.raises(Exception, match="not an answer of chat completions") as caught:
        transport.read_message(message.encode())
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None}, ""),
        ({"content": f"My key is {KEY}"}, "My key is [key]"),
    ],
)
def test_forms_of_content(fields, read):
    transport = open_transport(LLMConfig("m", api="chat_completions", base_url="http://host/v1"))
    message = {
        "choices": [{"message": fields, "finish_reason": 3}],
        "usage": {"prompt_tokens": "x"},
    }
    found = transport.read_message(json.dumps(message).encode())
    assert found["text"] == read and found["model"] == "m" and found["stop_reason"] == "3"
    assert found["usage"]["cache_read_input_tokens"] == 0


def test_a_refusal_is_one_whatever_else_is_said():
    transport = open_transport(LLMConfig("m", api="chat_completions", base_url="http://host/v1"))
    message = {"choices": [{"message": {"content": None, "refusal": "No."}}]}
    assert transport.read_message(message)["stop_reason"] == "refusal"


def test_the_key_of_each_wire_format_is_its_own(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with MessagesServer(answer, schedule=["401"], echo_key=True) as server:
        with pytest.raises(LLMError, match="OPENAI_API_KEY") as caught:
            ask(chat_config(server), tmp_path, request())
        ask(config(server), tmp_path, request())
        assert [call.key == KEY for call in server.calls] == [True, False]
        monkeypatch.delenv("OPENAI_API_KEY")
        ask(chat_config(server), tmp_path, request())
        assert server.calls[-1].key == "no-key-is-set"
    with pytest.raises(LLMError, match="environment variable OPENAI_API_KEY"):
        ask(LLMConfig("m", api="chat_completions"), tmp_path, request())
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in str(caught.value) + caplog.text + written


@pytest.mark.parametrize("settings", [config, chat_config])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "No connected\n db.", "code": "400"}}, ": No connected db."),
        ({"message": "No such field"}, ": No such field"),
        ({"detail": "Unexpected fields: {'top_k'}"}, ": Unexpected fields: {'top_k'}"),
        ({"detail": [{"loc": ["body", "n"]}]}, ': [{"loc": ["body", "n"]}]'),
        ({"error": "busy"}, ": busy"),
        ({"fault": KEY}, ': {"fault": "[key]"}'),
        ({}, ""),
    ],
)
def test_the_words_of_a_refusal_are_told_wherever_they_stand(
    tmp_path, settings, body, said, monkeypatch
):
    def refuse(status, _):
        return int(status), json.dumps(body).encode(), {"content-type": "application/json"}, False

    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(messages_server, "_error", refuse)
    with (
        MessagesServer(answer, faults={"422": 1.0}) as server,
        pytest.raises(LLMError, match="did not accept the call") as caught,
    ):
        ask(settings(server), tmp_path, request())
    assert f"(status 422{said})" in str(caught.value)


def test_a_key_that_is_not_set_is_told_where_a_call_is_refused(tmp_path, monkeypatch):
    with MessagesServer(answer, faults={"400": 1.0}) as server:
        with pytest.raises(LLMError, match=r"the key in OPENAI_API_KEY\.$"):
            ask(chat_config(server), tmp_path, request())
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(LLMError, match=r"the key in OPENAI_API_KEY, which is not set\.$"):
            ask(chat_config(server), tmp_path, request())


def test_message_batches_are_refused_where_there_are_none():
    with pytest.raises(SettingError, match="batch is True, but must be false where api is chat_"):
        LLMConfig("m", api="chat_completions", batch=True)


def test_without_the_package_its_installation_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LLMError, match=r"pip install 'ilql-jax\[openai\]'"):
        ask(LLMConfig("m", api="chat_completions", base_url="http://host/v1"), tmp_path, request())


def test_an_address_of_another_kind_is_named(tmp_path):
    with MessagesServer(answer) as server:
        settings = chat_config(server, base_url=f"{server.url}/other")
        with pytest.raises(LLMError, match=r"chat completions.*base_url or api"):
            ask(settings, tmp_path, request())


def test_what_is_never_usable_is_set_aside(tmp_path):
    with MessagesServer(answer, faults={"refusal": 1.0}) as server:
        found = ask(chat_config(server, max_asks=1), tmp_path, request())
    assert isinstance(found, Failure) and "refusal" in found.reason
