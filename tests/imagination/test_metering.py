"""Costs of calls: counted, limited and shown, against a server on loopback."""

import pytest
from llm_questions import KEY, answer, ask_all, config, lines, request, requests
from messages_server import MessagesServer

from imagination.llm import (
    CostLimitError,
)


@pytest.fixture(autouse=True)
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


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
