"""`plan`: which calls a dataset takes, what they cost and how they read, without one of them.

The engine itself runs, against a post that answers with stand-ins of ordinary size and keeps the
requests. So what is counted is what will be asked: in full for the personas, and for the
dialogues from the first few of them, which differ in words alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from imagination.asking import Answering
from imagination.engine.config import EngineConfig
from imagination.engine.critique import Verdicts
from imagination.engine.personas import write_profiles
from imagination.engine.run import draw, imagine_dialogues
from imagination.engine.task_from_prompt import (
    derive_request,
    missing_fields,
    task_from,
    task_placeholders,
)
from imagination.llm import Answer, LLMConfig, Request, Usage
from imagination.llm.requests import schema_json
from imagination.task import Task

SAMPLE = 16  # dialogues that stand for all
CHARACTERS_PER_TOKEN = 4  # of English, roughly


@dataclasses.dataclass(frozen=True)
class PlanStep:
    """One step of the plan; costs are in dollars, without the discount of prompt caching.

    Attributes:
        step: Its name, as the meter counts it.
        calls: How many, if no dialogue is rewritten and none ends before its limit of turns.
        calls_at_most: If every dialogue is rewritten as often as allowed.
        input_tokens, output_tokens: Estimates for `calls`.
        cost: Of these.
        cost_at_most: For `calls_at_most`.
        example: One request in full; None where only a rewriting asks for it.
    """

    step: str
    calls: int
    calls_at_most: int
    input_tokens: int
    output_tokens: int
    cost: float
    cost_at_most: float
    example: Request | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All steps, and what the numbers rest on."""

    steps: tuple[PlanStep, ...]
    notes: tuple[str, ...]

    @property
    def calls(self) -> int:
        return sum(step.calls for step in self.steps)

    @property
    def cost(self) -> float:
        return sum(step.cost for step in self.steps)

    @property
    def cost_at_most(self) -> float:
        return sum(step.cost_at_most for step in self.steps)

    def to_markdown(self, prompts: bool = True) -> str:
        """The plan as a table, and with `prompts` an example of every step."""
        lines = [
            "| step | calls | at most | tokens in | tokens out | $ | $ at most |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for s in self.steps:
            lines.append(
                f"| {s.step} | {s.calls:,} | {s.calls_at_most:,} | {s.input_tokens:,} "
                f"| {s.output_tokens:,} | {s.cost:.2f} | {s.cost_at_most:.2f} |"
            )
        tokens_in = sum(s.input_tokens for s in self.steps)
        tokens_out = sum(s.output_tokens for s in self.steps)
        at_most = sum(s.calls_at_most for s in self.steps)
        lines.append(
            f"| all | {self.calls:,} | {at_most:,} | {tokens_in:,} | {tokens_out:,} "
            f"| {self.cost:.2f} | {self.cost_at_most:.2f} |"
        )
        lines += ["", *(f"- {note}" for note in self.notes)]
        for s in self.steps if prompts else ():
            if s.example:
                lines += ["", f"## {s.step} ({s.example.prompt_version})", "", _readable(s.example)]
        return "\n".join(lines) + "\n"


def plan(task: Task | Mapping[str, Any], config: EngineConfig, llm: LLMConfig) -> Plan:
    """Counts and prices the calls. Not to be called from a running event loop.

    Args:
        task: The task, or what is given of it (`description` at least, perhaps `name`); what
            would be derived then has stand-ins in the prompts.
        config: How many dialogues, and how.
        llm: Prices, and whether batches are used.
    """
    return asyncio.run(_plan(task, config, llm))


async def _plan(task: Task | Mapping[str, Any], config: EngineConfig, llm: LLMConfig) -> Plan:
    notes = [
        f"Tokens are estimated at {CHARACTERS_PER_TOKEN} characters each, answers at an ordinary "
        "size; cached input would be cheaper.",
        "At most: every dialogue rewritten as often as critique_rounds allows; without answers "
        "that have to be asked for again.",
    ]
    derived: list[tuple[Request, int]] = []
    if not isinstance(task, Task):
        given, name = dict(task), task.get("name") or "task"
        if missing := missing_fields(given):
            request = derive_request(name, given)
            derived = [(request, len(request.schema.placeholder().model_dump_json()))]
            notes.append(f"Still to be derived, with stand-ins below: {', '.join(missing)}.")
        task = task_from(name, {**task_placeholders(given), **_filled(given)})
    if config.way == "rollout":
        notes.append(
            f"A conversation is counted to its limit of {config.turn_limit(task)} agent turns; "
            "the human ends most of them earlier."
        )
    if not (llm.price_input and llm.price_output):
        notes.append("No prices are configured: the cost is not known, not zero.")
    elif llm.price_date:
        notes.append(f"Prices as of {llm.price_date}.")
    usual = [*derived, *await _personas(task, config)]
    rehearsed = await _rehearse(task, config, failing=False)
    worst = await _rehearse(task, config, failing=True)
    factor = config.dialogues / min(SAMPLE, config.dialogues)
    steps = dict.fromkeys(r.step for r, _ in [*usual, *worst])
    return Plan(
        tuple(plan_step(step, usual, rehearsed, worst, factor, llm) for step in steps), tuple(notes)
    )


def _filled(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k != "name"}


class Stage:
    """A post that answers with stand-ins and keeps what it was asked."""

    def __init__(self, failing: bool = False):
        """`failing`: every criterion of every dialogue fails."""
        self.failing = failing
        self.asked: list[tuple[Request, int]] = []  # with the characters of its answer

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        parsed: Any = request.schema.placeholder()
        if self.failing and isinstance(parsed, Verdicts):
            parsed = parsed.failing()
        text = parsed.model_dump_json()
        self.asked.append((request, len(text)))
        return Answer(text=text, parsed=parsed, model="", usage=Usage(), from_cache=False)


async def _personas(task: Task, config: EngineConfig) -> list[tuple[Request, int]]:
    stage = Stage()
    personas = [each.persona for each in draw(task, config)]
    await write_profiles(Answering(stage), task, personas, config.personas_per_call)
    return stage.asked


async def _rehearse(task: Task, config: EngineConfig, failing: bool) -> list[tuple[Request, int]]:
    stage = Stage(failing)
    few = dataclasses.replace(config, dialogues=min(SAMPLE, config.dialogues))
    await imagine_dialogues(stage, task, few)
    return [(request, size) for request, size in stage.asked if request.step != "reason"]


def plan_step(
    step: str,
    once: list[tuple[Request, int]],
    rehearsed: list[tuple[Request, int]],
    worst: list[tuple[Request, int]],
    factor: float,
    llm: LLMConfig,
) -> PlanStep:
    """Adds up one step: what is asked once as it is, what each dialogue asks times `factor`."""

    def total(asked: list[tuple[Request, int]]) -> tuple[int, int, int]:
        own = [(r, size) for r, size in asked if r.step == step]
        return (
            len(own),
            sum(_input_tokens(request) for request, _ in own),
            sum(_tokens(size) for _, size in own),
        )

    def all_of(dialogues: list[tuple[Request, int]]) -> tuple[int, int, int]:
        pairs = zip(total(once), total(dialogues), strict=True)
        return tuple(a + round(b * factor) for a, b in pairs)

    calls, tokens_in, tokens_out = all_of(rehearsed)
    most, most_in, most_out = all_of(worst)
    example = next((r for r, _ in [*once, *rehearsed, *worst] if r.step == step), None)
    return PlanStep(
        step,
        calls,
        most,
        tokens_in,
        tokens_out,
        _cost(llm, tokens_in, tokens_out),
        _cost(llm, most_in, most_out),
        example,
    )


def _cost(llm: LLMConfig, tokens_in: int, tokens_out: int) -> float:
    dollars = (tokens_in * llm.price_input + tokens_out * llm.price_output) / 1e6
    return dollars * (llm.batch_price_factor if llm.batch else 1.0)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _input_tokens(request: Request) -> int:
    words = len(request.system) + sum(len(content) for _, content in request.messages)
    return _tokens(words + len(schema_json(request.schema)))


def _readable(request: Request) -> str:
    parts = [("system", request.system), *request.messages]
    return "\n\n".join(f"**{role}**\n\n{text}" for role, text in parts)
