"""The HTTP API, by the clients that programs use, and by requests that no client sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx2
import openai
import pages
import pytest
from served import Parrot, serving_agents, trained_agent

from experiments.serving.agents import Guarded
from experiments.serving.answer import Answer, OverloadedError, TooLongError
from experiments.serving.batching import Batcher
from imagination.dialogue import Turn

HI = [{"role": "user", "content": "Hi!"}]


async def crash(_):
    raise RuntimeError("secret")


async def hang(_):
    await asyncio.sleep(60)


async def too_long(_):
    raise TooLongError("The conversation is too long.")


async def overloaded(_):
    raise OverloadedError("Ask again later.", 7)


async def silent(_):
    return Answer("")


@pytest.fixture(scope="module")
def parrot() -> Parrot:
    return Parrot("parrot")


@pytest.fixture(scope="module")
def address(parrot: Parrot):
    batcher = Batcher(8)
    agents = {
        "parrot": parrot,
        "ilql": Guarded(trained_agent(batcher), 60),
        "crash": Guarded(Parrot("crash", crash), 5),
        "hang": Guarded(Parrot("hang", hang), 0.05),
        "too_long": Guarded(Parrot("too_long", too_long), 5),
        "overloaded": Guarded(Parrot("overloaded", overloaded), 5),
        "silent": Parrot("silent", silent),
    }
    with serving_agents(agents, batcher, most_kilobytes=700) as address:
        yield address
    assert parrot.is_closed


@pytest.fixture(scope="module")
def chat(address: str):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages(address: str):
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


# One for all: each would read the system's certificates.
http = httpx2.Client(verify=False, timeout=20)


def post(address: str, body, path: str = "/v1/chat/completions", **headers) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    return http.post(f"{address}{path}", content=content, headers=headers)


# --- the clients as they are --------------------------------------------------------------------


def test_openai_gets_an_answer_with_values_and_usage(chat: openai.OpenAI):
    answer = chat.chat.completions.create(model="ilql", messages=HI, seed=4, temperature=0.2)
    again = chat.chat.completions.create(model="ilql", messages=HI, seed=4)
    assert answer.choices[0].finish_reason == "stop" and answer.model == "ilql"
    assert answer.choices[0].message.content == again.choices[0].message.content
    told = answer.model_extra["ilql"]
    assert told["decoding"] == "sampled, best of 2" and len(told["candidates"]) == 2
    assert told["seed"] == 4 and told["ignored_fields"] == ["temperature"]
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    # The conversation as it was: all of it was read before.
    assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens


def test_openai_streams_the_same_answer(chat: openai.OpenAI):
    asked = {"model": "ilql", "messages": HI, "seed": 4}
    whole = chat.chat.completions.create(**asked).choices[0].message.content
    options = {"include_usage": True}
    chunks = list(chat.chat.completions.create(**asked, stream=True, stream_options=options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert "q" in chunks[-2].model_extra["ilql"]
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    with chat.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole


def test_anthropic_gets_an_answer_with_values_and_usage(messages: anthropic.Anthropic):
    asked = {"model": "ilql", "messages": HI, "max_tokens": 50, "extra_body": {"seed": 4}}
    answer = messages.messages.create(**asked)
    again = messages.messages.create(**asked)
    assert answer.stop_reason == "end_turn" and answer.content[0].text == again.content[0].text
    assert answer.model_extra["ilql"]["decoding"] == "sampled, best of 2"
    assert again.usage.input_tokens == 0 < again.usage.cache_read_input_tokens
    assert answer.usage.output_tokens > 0


def test_anthropic_streams_the_same_answer(messages: anthropic.Anthropic):
    asked = {"model": "ilql", "messages": HI, "max_tokens": 50, "extra_body": {"seed": 4}}
    whole = messages.messages.create(**asked)
    with messages.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.model_extra["ilql"]["candidates"] == whole.model_extra["ilql"]["candidates"]
    kinds = [event.type for event in messages.messages.create(**asked, stream=True)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]


def test_both_clients_list_the_agents(chat: openai.OpenAI, messages: anthropic.Anthropic):
    names = [model.id for model in chat.models.list()]
    assert names == [model.id for model in messages.models.list()]
    assert "parrot" in names and chat.models.retrieve("ilql").model_extra["ilql"]["notice"] == ""
    assert messages.models.retrieve("ilql").display_name == "ilql"
    with pytest.raises(openai.NotFoundError, match="there are parrot"):
        chat.models.retrieve("nobody")


def test_an_empty_answer_is_an_answer(chat: openai.OpenAI, messages: anthropic.Anthropic):
    assert (
        chat.chat.completions.create(model="silent", messages=HI).choices[0].message.content == ""
    )
    with messages.messages.stream(model="silent", messages=HI, max_tokens=5) as stream:
        assert stream.get_final_message().content[0].text == ""


@pytest.mark.parametrize(
    ("agent", "error", "told"),
    [
        ("crash", openai.InternalServerError, "failed"),
        ("hang", openai.InternalServerError, "within 0.05 s"),
        ("too_long", openai.BadRequestError, "too long"),
        ("overloaded", openai.InternalServerError, "again"),
        ("nobody", openai.NotFoundError, "no model 'nobody'; there are parrot, ilql"),
    ],
)
def test_openai_is_told_what_went_wrong(chat: openai.OpenAI, agent, error, told):
    for stream in (False, True):
        with pytest.raises(error, match=told) as caught:
            chat.chat.completions.create(model=agent, messages=HI, stream=stream)
        assert "secret" not in str(caught.value) and caught.value.type
    headers = caught.value.response.headers
    status = caught.value.status_code
    assert status == {"overloaded": 503, "hang": 504, "crash": 500, "nobody": 404}.get(agent, 400)
    assert headers.get("retry-after") == ("7" if agent == "overloaded" else None)
    if agent in ("crash", "hang"):  # would be asked three times otherwise
        assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("agent", "error", "kind"),
    [
        ("crash", anthropic.InternalServerError, "api_error"),
        ("hang", anthropic.APIStatusError, "timeout_error"),
        ("too_long", anthropic.BadRequestError, "invalid_request_error"),
        ("overloaded", anthropic.APIStatusError, "overloaded_error"),
        ("nobody", anthropic.NotFoundError, "not_found_error"),
    ],
)
def test_anthropic_is_told_what_went_wrong(messages: anthropic.Anthropic, agent, error, kind):
    with pytest.raises(error) as caught:
        messages.messages.create(model=agent, messages=HI, max_tokens=5)
    assert caught.value.body["error"]["type"] == kind and caught.value.body["type"] == "error"


def test_the_clients_of_the_page_get_their_answers(address: str, capsys):
    page = pages.ROOT / "docs" / "serving.md"
    [code] = [block.text for block in pages.blocks(page) if block.language == "py"]
    exec(compile(code.replace("http://127.0.0.1:8000", address), str(page), "exec"), {})
    assert "'q': " in capsys.readouterr().out


# --- conversations ------------------------------------------------------------------------------


def heard(parrot: Parrot):
    turns, _, system = parrot.heard[-1]
    return [(turn.speaker, turn.text) for turn in turns], system


def test_system_messages_parts_and_messages_in_a_row_are_one_conversation(address, parrot):
    said = [
        {"role": "system", "content": "Teach."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "One."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "."}],
        },
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Three \ud800", "name": "me"},
    ]
    assert post(address, {"model": "parrot", "messages": said}).status_code == 200
    turns = [("agent", "Hello."), ("human", "One.\nTwo."), ("agent", "")]
    found, system = heard(parrot)
    assert found[:3] == turns and system == "Teach.\n\nBe kind."
    assert found[3][1].startswith("Three") and found[3][1].encode()
    body = {"model": "parrot", "system": "Teach.", "messages": said[2:], "max_tokens": 9}
    assert post(address, body, "/v1/messages").status_code == 200
    assert heard(parrot) == (found, "Teach.")


def test_100_000_characters_are_answered_or_told_to_be_too_many(address: str):
    for words in ("x" * 100_000, "word " * 20_000, "é" * 100_000):
        body = {"messages": [{"role": "user", "content": words}]}
        assert post(address, {"model": "parrot", **body}).status_code == 200
        refused = post(address, {"model": "ilql", **body})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_control_and_special_tokens_are_words(address: str):
    for words in ("<end><agent>\0", "\x1b[2J\r\n\u2028\u202e", '"}]}data: [DONE]\n\n'):
        body = {"model": "ilql", "messages": [{"role": "user", "content": words}], "seed": 1}
        assert post(address, body).status_code == 200
        parrot = post(address, {**body, "model": "parrot", "stream": True})
        data = [line[6:] for line in parrot.text.split("\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        deltas = [json.loads(each)["choices"][0]["delta"].get("content") for each in data[:-1]]
        assert "".join(filter(None, deltas)) == words


# --- bodies that no client sends ----------------------------------------------------------------

USER = {"role": "user", "content": "Hi!"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"model": "parr', "not valid JSON"),
        (b"\xff\xfe", "the body"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1]", "no JSON object"),
        (b'{"model": "parrot", "model": "ilql"}', "twice|repeated|more than once"),
        ({}, "messages"),
        ({"messages": []}, "say something|last"),
        ({"messages": "Hi!"}, "expected a list"),
        ({"messages": ["Hi!"]}, "expected a list"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content: expected text, got None"),
        ({"messages": [{"role": "user", "content": " \n"}]}, r"messages\[0\]\.content is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "expected text, got 3"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'tool'; expected system, user"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "expected system, user"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "before the first message"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "last one must be the user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            r"content\[0\]: agents here read text alone, not 'image_url'",
        ),
        ({"messages": [USER] * 10_001}, "10,000 at most"),
        ({"messages": [USER], "model": 3}, "model: name one"),
        ({"messages": [USER], "stream": "yes"}, "stream is 'yes'; expected true or false"),
        ({"messages": [USER], "seed": "x"}, "seed is 'x'; expected a whole number"),
        ({"messages": [USER], "seed": 10**300}, "seed is"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools is not supported"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice is not supported"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_bodies_that_cannot_be_answered_are_told_with_the_field(address, path, body, told):
    if isinstance(body, dict):
        body = {"model": "ilql", **body}
    response = post(address, body, path)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(told, error["message"]), error["message"]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "n", 2),
        ("/v1/chat/completions", "functions", [{}]),
        ("/v1/chat/completions", "logprobs", True),
        ("/v1/chat/completions", "response_format", {"type": "json_object"}),
        ("/v1/chat/completions", "stream_options", 3),
        ("/v1/messages", "thinking", {"type": "enabled", "budget_tokens": 9}),
        ("/v1/messages", "max_tokens", 0),
        ("/v1/messages", "system", [{"type": "image"}]),
    ],
)
def test_what_no_agent_does_is_refused(address: str, path: str, field: str, value):
    response = post(address, {"model": "parrot", "messages": HI, field: value}, path)
    assert response.status_code == 400 and field in response.json()["error"]["message"]
    usual = {"n": 1, "functions": [], "logprobs": False, "response_format": {"type": "text"}}
    usual |= {"thinking": {"type": "disabled"}, "max_tokens": 9, "system": "Hi."}
    body = {"model": "parrot", "messages": HI, field: usual.get(field)}
    assert post(address, body, path).status_code == 200


def test_other_kinds_sizes_and_paths_are_refused_in_the_apis_shape(address: str):
    form = post(address, b"{}", **{"content-type": "text/plain"})
    assert form.status_code == 415 and "application/json" in form.json()["error"]["message"]
    large = post(address, b"x" * 800_000, "/v1/messages")
    assert large.status_code == 413 and large.json()["error"]["type"] == "request_too_large"
    chunked = http.post(
        f"{address}/v1/chat/completions",
        content=(b"x" * 100_000 for _ in range(9)),
        headers={"content-type": "application/json"},
    )
    assert chunked.status_code == 413
    assert http.get(f"{address}/v1/messages").status_code == 405
    nowhere = post(address, {}, "/v1/responses")
    assert nowhere.status_code == 404 and "POST /v1/responses" in nowhere.json()["error"]["message"]


def test_headers_are_strict_and_other_names_are_not_answered(address: str):
    for path in ("/healthz", "/nowhere", "/v1/models"):
        headers = http.get(f"{address}{path}").headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers and "access-control-allow-origin" not in headers
    port = address.rpartition(":")[2]
    for host, status in (("evil.org", 421), (f"evil.org:{port}", 421), ("", 421)):
        found = http.get(f"{address}/healthz", headers={"host": host})
        assert found.status_code == status and "server" not in found.headers
    for host in (f"localhost:{port}", "LOCALHOST", "127.0.0.1", f"[::1]:{port}"):
        assert http.get(f"{address}/healthz", headers={"host": host}).status_code == 200


def test_words_that_are_no_http_end_the_connection_alone(address: str):
    host, _, port = address.removeprefix("http://").rpartition(":")
    for words in (
        b"\x16\x03\x01\0\xa5",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(words)
    assert http.get(f"{address}/healthz").json()["status"] == "ok"


# --- load ---------------------------------------------------------------------------------------


def test_a_flood_is_bounded_and_told_when_to_come_again():
    gate = asyncio.Event()
    begun: list[asyncio.AbstractEventLoop] = []

    async def wait(_):
        begun.append(asyncio.get_running_loop())
        await gate.wait()
        return Answer("Done.")

    agents = {"slow": Parrot("slow", wait)}
    with (
        serving_agents(agents, most_requests=3) as address,
        ThreadPoolExecutor(3) as pool,
    ):
        body = {"model": "slow", "messages": HI}
        held = [pool.submit(post, address, body) for _ in range(3)]
        while len(begun) < 3:
            pass
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = [post(address, body, path) for _ in range(4)]
            assert {each.status_code for each in refused} == {503}
            assert refused[0].headers["retry-after"] == "1"
        assert http.get(f"{address}/healthz").status_code == 200
        begun[0].call_soon_threadsafe(gate.set)
        assert [each.result().status_code for each in held] == [200] * 3
        assert post(address, body).status_code == 200


def test_metrics_count_requests_errors_seconds_and_batches():
    batcher = Batcher(8)
    agents = {"ilql": trained_agent(batcher), 'a"b': Parrot('a"b', crash)}
    with serving_agents(agents, batcher) as address:
        for agent in ("ilql", "nobody\n", 'a"b'):
            post(address, {"model": agent, "messages": HI})
        post(address, {"model": "ilql", "messages": HI, "max_tokens": 5}, "/v1/messages")
        response = http.get(f"{address}/metrics")
    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'ilql_requests_total{api="chat",agent="ilql",status="200"} 1',
        'ilql_requests_total{api="messages",agent="ilql",status="200"} 1',
        'ilql_requests_total{api="chat",agent="",status="404"} 1',
        'ilql_requests_total{api="chat",agent="a\\"b",status="500"} 1',
        'ilql_errors_total{api="chat",kind="model_not_found"} 1',
        "ilql_answer_seconds_count 2",
        'ilql_batch_size_bucket{le="1"} 2',
        "ilql_queue_length 0",
        "ilql_requests_in_flight 0",
    ):
        assert line in lines, line
    values = [line.rpartition(" ")[2] for line in lines if not line.startswith("#")]
    assert all(float(value) >= 0 for value in values)


def test_a_network_that_is_stuck_is_told_by_its_health():
    batcher = Batcher(8)
    with serving_agents({"parrot": Parrot("parrot")}, batcher) as address:
        assert http.get(f"{address}/healthz").status_code == 200
        batcher._busy_since = -1e9
        stuck = http.get(f"{address}/healthz")
        assert stuck.status_code == 503 and stuck.json()["status"] == "stuck"


def test_a_client_that_goes_away_leaves_nothing_behind(address: str, parrot: Parrot):
    with contextlib.suppress(httpx2.TimeoutException):
        http.post(
            f"{address}/v1/chat/completions", json={"model": "hang", "messages": HI}, timeout=0.01
        )
    answer = post(address, {"model": "parrot", "messages": HI})
    assert answer.json()["choices"][0]["message"]["content"] == "Hi!"
    assert parrot.heard[-1][0] == (Turn("human", "Hi!"),)
