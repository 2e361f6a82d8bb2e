"""Odd answers of a service, and damaged files of answers: set aside, told or used, never lost."""

import asyncio
import copy
import functools
import json
import math
import random
import types

import pytest
from fuzzing import damaged_bytes, held, with_odd_value
from llm_questions import KEY, Line, request, requests

from imagination.dialogue import Dialogue, Turn, json_line
from imagination.llm import Answer, Client, Failure, LLMConfig, LLMError
from imagination.llm.batches import Batches
from imagination.llm.transports.messages import MessagesTransport

CONFIG = LLMConfig(
    model="small",
    base_url="http://127.0.0.1:9",
    max_asks=1,
    max_cost=5.0,
    price_input=3.0,
    price_output=15.0,
)
ANSWER = {"text": "Hello 😀, how are you?", "length": 22}
USAGE = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(0))


def message(text: str = json.dumps(ANSWER), **fields):
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "model": "small-1",
        "usage": USAGE,
        **fields,
    }


@functools.cache
def transport_of_all() -> MessagesTransport:
    """The SDK takes a tenth of a second to make a client."""
    return MessagesTransport(CONFIG)


class Service:
    """Stands in for the network; everything behind it is real."""

    def __init__(self, content: bytes):
        self.content, self.calls = content, 0

    async def create(self, **body):
        json.dumps(body, ensure_ascii=False).encode()  # as it would be sent
        self.calls += 1
        response = types.SimpleNamespace(content=self.content)
        return types.SimpleNamespace(http_response=response, retries_taken=0)

    async def close(self):
        pass

    def open(self, folder) -> Client:
        client, transport = Client(CONFIG, folder), copy.copy(transport_of_all())
        create = types.SimpleNamespace(create=self.create)
        messages = types.SimpleNamespace(with_raw_response=create)
        transport.sdk = types.SimpleNamespace(messages=messages, close=self.close)
        client._service = lambda: transport
        return client

    def ask(self, folder, questions) -> list[Answer | Failure]:
        async def run():
            client = self.open(folder)
            try:
                answers = await client.ask_all(questions)
                assert math.isfinite(client._budget.spent) and client._budget.spent >= 0
                return answers
            finally:
                await client.close()

        return asyncio.run(run())


def usable(outcome: Answer | Failure) -> Answer:
    """The answer, which every file and every further question can hold."""
    if isinstance(outcome, Failure):
        raise LLMError(outcome.reason)
    text = outcome.parsed.text if outcome.parsed else outcome.text
    json_line(Dialogue("d", "t", (Turn("agent", text),))).encode()
    outcome.text.encode()
    return outcome


@pytest.mark.parametrize("kind", ["message", "answer", "raw"])
def test_an_odd_answer_is_set_aside_or_used_and_found_again(kind, tmp_path):
    for seed in range(60):
        rng = random.Random(seed)
        if kind == "message":
            content = with_odd_value(rng, message()).encode()
        elif kind == "answer":
            content = json.dumps(message(with_odd_value(rng, ANSWER))).encode()
        else:
            content = damaged_bytes(rng, json.dumps(message(), ensure_ascii=False).encode())
        service, folder = Service(content), tmp_path / str(seed)
        question = request(schema=Line if seed % 3 else None)
        with held("LLM answers", (kind, seed)):
            answer = usable(service.ask(folder, [question])[0])
            calls = service.calls
            again = usable(service.ask(folder, [question])[0])
            assert (again.text, again.parsed) == (answer.text, answer.parsed)
            assert service.calls == calls, "paid for twice"


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "half \\ud83d", "length": 6}',
        '{"text": "half \ud83d", "length": 6}',
        '```json\n{"text": "half \\ud83d", "length": 6}\n```',
    ],
)
def test_half_a_sign_in_an_answer_becomes_a_question_mark(text, tmp_path):
    service = Service(json.dumps(message(text)).encode())
    for _ in range(2):
        (answer,) = service.ask(tmp_path, [request()])
        assert answer.parsed == Line(text="half ?", length=6)
    assert service.calls == 1


def test_half_a_sign_in_a_cache_of_before_ends_no_run(tmp_path):
    service = Service(json.dumps(message("Hello there")).encode())
    question = request(schema=None)
    service.ask(tmp_path, [question])
    path = tmp_path / "cache.jsonl"
    path.write_text(path.read_text().replace("Hello there", "Hello \\ud83d"))
    assert service.ask(tmp_path, [question])[0].text == "Hello ?" and service.calls == 1


def test_an_answer_of_blank_lines_is_read_at_once(tmp_path):
    service = Service(json.dumps(message("```json\n" + "\n" * 200_000)).encode())
    with held("LLM answers", "blank lines"):
        usable(service.ask(tmp_path, [request()])[0])


def test_a_damaged_cache_costs_no_more_than_what_was_damaged(tmp_path, caplog):
    whole = Service(json.dumps(message()).encode())
    whole.ask(tmp_path, requests(4))
    path = tmp_path / "cache.jsonl"
    lines = path.read_text().splitlines()
    for seed in range(120):
        rng = random.Random(seed)
        if seed < 80:
            lines[1], kept = with_odd_value(rng, json.loads(lines[1])), lines[1]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            lines[1] = kept
        else:
            path.write_bytes(damaged_bytes(rng, ("\n".join(lines) + "\n").encode()))
        service = Service(json.dumps(message()).encode())
        with held("LLM cache", seed):
            assert all(map(usable, service.ask(tmp_path, requests(4))))
            assert seed >= 80 or service.calls <= 1
            assert all(map(usable, Service(b"").ask(tmp_path, requests(4))))  # without a call


@pytest.mark.parametrize("name", ["failed.jsonl", "batches.jsonl"])
def test_other_damaged_journals_are_read(name, tmp_path):
    failed = {"key": "k1", "step": "imagine", "reason": "it was empty", "model": "small"}
    intent = {"intent": "i1", "time": "2025-01-01T10:00:00+00:00", "keys": ["k1", "k2"]}
    named = {"intent": "i1", "batch": "b1"}
    records = [failed] * 3 if name == "failed.jsonl" else [intent, named, {**named, "done": "all"}]
    for seed in range(60):
        rng = random.Random(seed)
        texts = list(map(json.dumps, records))
        place = rng.randrange(3)
        texts[place] = with_odd_value(rng, records[place])
        content = ("\n".join(texts) + "\n").encode()
        (tmp_path / name).write_bytes(content if seed % 2 else damaged_bytes(rng, content))
        with held("LLM journals", (name, seed)):
            Service(b"").open(tmp_path)
            Batches(CONFIG, tmp_path, transport_of_all()).holds("k1")
