"""Bodies of requests with something odd in them: told with what to change, or answered."""

from __future__ import annotations

import json
from random import Random

import pytest
from fuzzing import damaged_bytes, held, with_odd_value

from experiments.serving.answer import Answer
from experiments.serving.wire import Failing, RequestError, body_of
from experiments.serving.wire_chat import CHAT
from experiments.serving.wire_messages import MESSAGES

PARTS = [{"type": "text", "text": "With pictures,"}, {"type": "text", "text": " please."}]
SAID = [
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "How do you like to learn?"},
    {"role": "user", "content": PARTS},
]
BODIES = {
    CHAT: {
        "model": "ilql",
        "messages": [{"role": "system", "content": "Teach."}, *SAID],
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    },
    MESSAGES: {
        "model": "ilql",
        "messages": SAID,
        "system": PARTS,
        "max_tokens": 50,
        "seed": 1,
        "stream": False,
        "metadata": {"user_id": "me"},
    },
}
MORE = [("n",), ("tools",), ("tool_choice",), ("thinking",), ("response_format",), ("x",)]


def answered(wire, content: bytes) -> None:
    """Parses a body and writes its answer in all forms, or its error."""
    try:
        asked = wire.parse(body_of(content))
    except RequestError as error:
        failing = Failing(error.status, str(error), error.field, error.code)
        json.dumps(wire.error(failing), allow_nan=False, ensure_ascii=False).encode()
        raise
    assert not asked.turns or asked.turns[-1].speaker == "human"
    answer = Answer("It is a half.", details={"q": 0.5})
    json.dumps(wire.reply(asked, answer), allow_nan=False, ensure_ascii=False).encode()
    assert b"".join(wire.events(asked, answer)).endswith(b"\n\n")


@pytest.mark.parametrize("wire", BODIES, ids=lambda wire: wire.name)
def test_odd_bodies_are_told_or_answered(wire):
    for seed in range(150):
        rng = Random(seed)
        content = with_odd_value(rng, BODIES[wire], MORE).encode(errors="surrogatepass")
        if seed % 5 == 0:
            content = damaged_bytes(rng, json.dumps(BODIES[wire]).encode())
        with held("API requests", seed):
            answered(wire, content)
