"""Agents to be served in tests: tiny random networks, a run's folder of them, and a server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from small_networks import random_params

from experiments.build import build
from experiments.run_folder import RunFolder, Unit
from experiments.serving.answer import Answer, ServedAgent
from experiments.serving.app import make_app
from experiments.serving.batching import Batcher
from experiments.serving.trained import TrainedAgent
from experiments.serving.web import WebConfig, address_of, listen, server
from experiments.teaching import get_config
from ilql_jax.checkpoint import Checkpoints
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.models import ModelConfig
from ilql_jax.policy import Policy
from imagination.agents.policy import PolicyAgent
from imagination.dialogue import Dialogue, Turn, write_dialogues
from imagination.tokenization import DialogueTokenizer

TINY = {
    "model.hidden_size": 16,
    "model.mlp_size": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.value_inner_size": 8,
    "model.max_positions": 70,  # one bucket of columns: fewer programs
    "decoding.max_utterance": 6,
    "decoding.ilql": ("sampled, best of 2",),
    "decoding.bc": ("greedy",),
    "tokenizer.vocab_size": 300,
    "methods": ("bc", "ilql"),
}
SAID = (
    Turn("human", "Hi! Can you teach me fractions?"),
    Turn("agent", "Sure. How do you like to learn?"),
    Turn("human", "With pictures, please."),
    Turn("agent", "Then look at this cake: a half is a piece of it."),
)


def config(**changes):
    """Settings of teaching at tiny size."""
    found = get_config()
    found.update_from_flattened_dict({**TINY, **changes})
    return found


@functools.cache
def tokenizer() -> DialogueTokenizer:
    return DialogueTokenizer.train([Dialogue("0", "teaching", SAID, 1.0)], 300, min_frequency=1)


@functools.cache
def network() -> tuple[ModelConfig, dict]:
    """Random everywhere, so that its values differ; bound to its device, as what is restored."""
    shape = build(config()).network.shape(tokenizer().vocab_size)
    return shape, jax.device_put(random_params(shape, 0.3), jax.devices()[0])


def policy_agent(decoding: str = "sampled, best of 2", batch_size: int = 4) -> PolicyAgent:
    shape, params = network()
    words = tokenizer()
    policy = Policy(
        shape,
        params,
        DecodingConfig.parse(decoding),
        stop_token=words.end,
        allowed=words.writable(shape.decoder.vocab_size),
        max_utterance=6,
        batch_size=batch_size,
        cache_megabytes=1.0,
        few_programs=True,
        replies=words.replies(6, shape.decoder.vocab_size),
    )
    return PolicyAgent(policy, words, 1.0, keep_candidates=32)


def trained_agent(batcher: Batcher, **settings) -> TrainedAgent:
    return TrainedAgent("ilql", policy_agent(), batcher, method="ilql", **settings)


def run_folder(path: Path, units: Sequence[Unit] = (Unit("ilql", 0),), **changes) -> RunFolder:
    """The folder of a run that was trained, as it seems: its networks are random."""
    folder, settings = RunFolder(path), config(**changes)
    folder.save_config("teaching", settings)
    write_dialogues(folder.dialogues, [Dialogue("0", "teaching", SAID, 1.0)])
    tokenizer().save(folder.tokenizer)
    shape, params = network()
    experiment = build(settings)
    for unit in units:
        metadata = {
            "model": dataclasses.asdict(shape),
            "method": {"name": experiment.method(unit.method).method.name},
            "seed": experiment.seed + unit.seed,
            "unit": unit.name,
            "reward_scale": 1.0,
            "packing": {"baseline": 0.0},
        }
        with contextlib.closing(Checkpoints(folder.checkpoints(unit), metadata)) as checkpoints:
            checkpoints.save(experiment.train.steps, {"params": params}, {})
        folder.metrics(unit).parent.mkdir(exist_ok=True)
        folder.finished(unit).write_text(json.dumps({"train_seconds": 1.0}))
    return folder


class Parrot:
    """Says what was said last, with some details; or what a function makes of it."""

    opens, notice = False, ""

    def __init__(self, name: str, answer=None):
        self.name = name
        self.heard: list[tuple[tuple[Turn, ...], int, str | None]] = []
        self.is_closed = False
        self._answer = answer

    async def answer(self, dialogue_turns, seed, system=None) -> Answer:
        self.heard.append((tuple(dialogue_turns), seed, system))
        if self._answer is not None:
            return await self._answer(dialogue_turns)
        last = dialogue_turns[-1].text if dialogue_turns else "Hello."
        return Answer(last, details={"agent": "parrot"})

    async def close(self) -> None:
        self.is_closed = True


@contextlib.contextmanager
def serving(app, config: WebConfig) -> Iterator[str]:
    """Serves an application on a free port, in a thread; gives its address."""
    with listen(config) as listening:
        running = server(app, config)
        thread = threading.Thread(target=lambda: running.run(sockets=[listening]), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield address_of(listening)
        running.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def serving_agents(
    agents: Mapping[str, ServedAgent], batcher: Batcher | None = None, **settings
) -> Iterator[str]:
    config = WebConfig(port=0, **settings)
    with serving(make_app(agents, batcher or Batcher(8), config), config) as address:
        yield address


def run(coroutine):
    return asyncio.run(coroutine)
