"""Message batches: sent once, awaited, paid once, against a server on loopback."""

import json

import pytest
from llm_questions import KEY, answer, ask_all, config, kill, lines, requests, start_process, texts
from messages_server import MessagesServer, body_hash, wait_until

from imagination.llm import (
    Answer,
    CostLimitError,
    Failure,
    LLMConfig,
    LLMError,
    batches,
)


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


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
