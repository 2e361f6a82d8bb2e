"""LLMs in the evaluation: prompted agents as baselines, and a human who is played by one.

All of it goes through one client in one process: a limit on calls and on cost holds for the whole
stage, and every answer is in `<run folder>/llm` before it is used. See `imagination/agents`
for the speakers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import config as settings
from experiments.evaluation.environment import Scene
from experiments.run_folder import RunError, RunFolder, Unit
from imagination.agents import SLIPS, PromptedHuman, run_async, spending
from imagination.dialogue import Dialogue
from imagination.llm import Answer, Client, Failure, LLMConfig, Request
from imagination.simulation import SimulatedHuman
from imagination.speakers import Human


def prompted_units(config: ConfigDict) -> list[Unit]:
    """The prompted agents that the settings ask for; nothing is trained, so one of each."""
    return [Unit(name, 0) for name in config.evaluation.prompted]


def is_prompted(config: ConfigDict, unit: Unit) -> bool:
    """Whether the unit is a prompted agent, not a trained one."""
    return unit.method in config.evaluation.prompted


@contextlib.contextmanager
def open_client(config: ConfigDict, folder: RunFolder) -> Iterator[Client]:
    """The run's client. However it ends, calls in flight are awaited and stored."""
    client = Client(settings.llm_config(config), folder.answers(config.llm))
    try:
        yield client
    finally:
        run_async(client.close())


class WatchedClient:
    """A client that tells after each answer."""

    def __init__(self, client: Client, on_answer: Callable[[], None]):
        self.config: LLMConfig = client.config
        self._client = client
        self._on_answer = on_answer

    async def ask(self, request: Request) -> Answer | Failure:
        answer = await self._client.ask(request)
        self._on_answer()
        return answer


def human_for(config: ConfigDict, scene: Scene, progress: Progress) -> Human:
    """Who the agents talk with."""
    if config.evaluation.human == "prompted":
        guidance = config.evaluation.human_guidance
        return PromptedHuman(progress.watched_client, scene.task, guidance)
    return SimulatedHuman(scene.world)


def made_with(human: Human) -> dict[str, Any]:
    """What a unit's result keeps of its human: nothing for that of the world."""
    return {"human": human.model_and_version} if isinstance(human, PromptedHuman) else {}


# --- what evaluation.json says of it ------------------------------------------------------------


def describe_human(config: ConfigDict, results: Mapping[Unit, Mapping[str, Any]]) -> dict[str, Any]:
    """Who the humans were.

    Raises:
        RunError: Not the same for all units, since a prompt changed in between.
    """
    if config.evaluation.human == "world":
        return {"kind": "world"}
    versions: dict[str, list[str]] = {}
    for unit, result in results.items():
        versions.setdefault(json.dumps(result.get("human"), sort_keys=True), []).append(unit.name)
    if len(versions) > 1:
        groups = "; ".join(f"{', '.join(names)}: {text}" for text, names in versions.items())
        raise RunError(
            f"agents talked with different humans, so their scores cannot be compared ({groups}). "
            "Delete evaluation/<name>.json of those that should be judged again."
        )
    return {"kind": "prompted", **json.loads(next(iter(versions)))}


def spent_by(
    config: ConfigDict, speaker: str, dialogues: Sequence[Dialogue]
) -> dict[str, float | None]:
    """Mean calls and dollars of a conversation; the latter None where no prices are given."""
    spent = [spending(dialogue) for dialogue in dialogues]
    calls, cost = (
        float(np.mean([each[f"{speaker}_{what}"] for each in spent])) for what in ("calls", "cost")
    )
    return {"calls": calls, "cost": cost if _has_prices(config) else None}


def _has_prices(config: ConfigDict) -> bool:
    return bool(config.llm.price_input or config.llm.price_output)


def of_prompted_agent(
    config: ConfigDict, result: Mapping[str, Any], dialogues: Sequence[Dialogue]
) -> dict[str, Any]:
    """Model, prompts, calls and cost of an agent; a training is what it has not."""
    found = {**result["agent"], **spent_by(config, "agent", dialogues)}
    if "setup_calls" in result:
        found["setup_calls"] = result["setup_calls"]
        found["setup_cost"] = result["setup_cost"] if _has_prices(config) else None
    found["broken_off"] = sum(spending(d)["agent_failures"] > 0 for d in dialogues)
    return found


def of_prompted_human(config: ConfigDict, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Calls, cost and slips (counts by kind) of the humans in these conversations."""
    spent = spent_by(config, "human", dialogues)
    return {f"human_{key}": value for key, value in spent.items()} | {"slips": slips_in(dialogues)}


def slips_in(dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """Counts by kind."""
    found: Counter[str] = Counter()
    for dialogue in dialogues:
        for turn in dialogue.turns:
            found.update(turn.annotations.get("slips", {}))
    return {kind: found[kind] for kind in SLIPS}


# --- progress -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Progress:
    """Finished conversations of a unit.

    Attributes:
        report: Moves the unit's bar.
        total: Conversations in all.
        client: The LLM's, whose calls and cost are shown; None without LLM.
    """

    report: Callable[[int, int | None, str], None]
    total: int
    client: Client | None = None
    done: int = 0
    note: str = ""

    @property
    def watched_client(self) -> WatchedClient:
        """The client, with the bar's note kept up to date."""
        return WatchedClient(self.client, self.show)

    def begin(self, note: str) -> None:
        self.note = note
        self.show()

    def advance(self, finished: int) -> None:
        self.done += finished
        self.show()

    def show(self) -> None:
        spent = f"{self.client.meter.line()} | " if self.client else ""
        self.report(self.done, self.total, f"{spent}{self.note}")
