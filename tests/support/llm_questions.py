"""Questions to an LLM on loopback, and a client that asks them."""

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pydantic

from imagination.llm import (
    Client,
    LLMConfig,
    Request,
)

KEY = "sk-ant-a-key-that-must-stay-secret-0123456789"


class Line(pydantic.BaseModel):
    """Schema of the answers that the tests ask for."""

    text: str = pydantic.Field(max_length=200)
    length: int


def answer(body):
    """The words of the first question, as JSON where the body asks for it."""
    words = next(each["content"] for each in body["messages"] if each["role"] == "user")
    if "output_config" not in body and "response_format" not in body:
        return f"You said: {words}"
    return json.dumps({"text": words, "length": len(words)})


def config(server, **settings):
    prices = {"price_input": 3.0, "price_output": 15.0, "price_cache_read": 0.3}
    defaults = {"model": "small", "batch_poll": 0.05, "timeout": 10.0, **prices}
    return LLMConfig(**{**defaults, "base_url": server.url, **settings})


def chat_config(server, **settings):
    chat = {"api": "chat_completions", "base_url": f"{server.url}/v1"}
    return config(server, **{**chat, **settings})


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


KILLED = """
    import asyncio, pathlib, sys
    sys.path.insert(0, {support!r})
    from llm_questions import Client, LLMConfig, requests

    async def run():
        client = Client(LLMConfig(**{settings!r}), pathlib.Path({folder!r}))
        await client.ask_all(requests({count}))

    asyncio.run(run())
"""


def start_process(folder, count, **settings):
    """A process that asks so many questions, to be killed."""
    script = textwrap.dedent(KILLED).format(
        support=str(Path(__file__).parent),
        settings=settings,
        folder=str(folder),
        count=count,
    )
    return subprocess.Popen([sys.executable, "-c", script])


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
