"""`forecast_imagination`: calls, tokens and dollars that a dataset takes.

The engine itself runs, against a stand-in for the model. Requests for personas are counted in
full, those for dialogues from the first few of them, which differ in words alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from imagination.dialogue import Dialogue
from imagination.engine.config import PURPOSE_OF_STEP, EngineConfig, EngineError
from imagination.engine.personas import STEP as PERSONAS
from imagination.engine.personas import write_profiles
from imagination.engine.run import assign, imagine_dialogues
from imagination.engine.task_from_prompt import (
    derive_request,
    missing_fields,
    task_from,
    task_placeholders,
)
from imagination.llm.config import LLMConfig
from imagination.llm.cost import SAMPLE, Call, Forecast, LearnedForecast, StandInLLM, forecast
from imagination.llm.session import DroppedDialogue
from imagination.llm.watching import RecallingClient
from imagination.persona_sampling import PersonaSampling
from imagination.task import Task

RECALLED = 100  # dialogues of earlier runs that stand for all


def forecast_imagination(
    task: Task | Mapping[str, Any],
    config: EngineConfig,
    llm: LLMConfig,
    models: Mapping[str, LLMConfig] | None = None,
) -> Forecast:
    """Counts and prices the calls. Not to be called from a running event loop.

    The usual course: no dialogue is rewritten, and none ends before its limit of turns. The worst:
    every dialogue is rewritten as often as allowed.

    Args:
        task: The task, or those of its fields that are given (`description` at least, perhaps
            `name`); fields still to be derived have placeholders in the prompts.
        config: Number and kind of the dialogues.
        llm: Prices, and whether batches are used.
        models: The same of purposes that have a model of their own.
    """
    return asyncio.run(imagination_forecast(task, config, llm, models))


async def imagination_forecast(
    task: Task | Mapping[str, Any],
    config: EngineConfig,
    llm: LLMConfig,
    models: Mapping[str, LLMConfig] | None = None,
) -> Forecast:
    """Does what `forecast_imagination` does, in a running event loop."""
    notes = [
        "At most: every dialogue rewritten as often as critique_rounds allows; without answers "
        "that have to be asked for again."
    ]
    once: list[Call] = []
    if not isinstance(task, Task):
        given = {field: value for field, value in task.items() if field != "name"}
        name = task.get("name") or "task"
        if missing := missing_fields(given):
            request = derive_request(name, given)
            once = [Call(request, len(request.schema.placeholder().model_dump_json()))]
            notes.append(f"Still to be derived, with stand-ins below: {', '.join(missing)}.")
        task = task_from(name, {**task_placeholders(given), **given})
    if config.way == "rollout":
        notes.append(
            f"A conversation is counted to its limit of {config.turn_limit(task)} agent turns; "
            "the human ends most of them earlier."
        )
    once += await _persona_calls(task, config)
    usual = await _dialogue_calls(task, config, failing=False)
    worst = await _dialogue_calls(task, config, failing=True)
    factor = config.dialogues / min(SAMPLE, config.dialogues)
    own = {step: (models or {}).get(purpose) for step, purpose in PURPOSE_OF_STEP.items()}
    return forecast(once, usual, worst, factor, llm, notes, own)


async def recalled_forecast(
    beforehand: Forecast, task: Task, config: EngineConfig, llm: RecallingClient
) -> Forecast:
    """Puts what earlier runs were answered in the place of estimates.

    Args:
        beforehand: The forecast without any answer.
        task: The task.
        config: Number and kind of the dialogues.
        llm: Has the answers.
    """
    finished: list[str] = []

    def done(result: Dialogue | DroppedDialogue) -> None:
        if isinstance(result, Dialogue):
            finished.append(result.id)

    number = min(RECALLED, config.dialogues)
    with contextlib.suppress(EngineError):  # none is finished
        await imagine_dialogues(llm, task, config, done, number)
    if not llm.recalled:
        return beforehand
    ids = [f"{task.name}-{index}" for index in range(config.dialogues)]
    costs = LearnedForecast(
        beforehand, list(dict.fromkeys([*finished, *ids])), len(finished) or SAMPLE
    )
    for request, answer in llm.recalled:
        costs.saw(request, answer)
    for dialogue in finished:
        costs.finished(dialogue)
    of = f", of {len(finished):,} finished dialogues" if finished else ""
    note = (
        f"Steps of imagination that have answers already are forecast from these{of}; what is "
        "answered is not paid for again."
    )
    return dataclasses.replace(costs.forecast(), notes=(*beforehand.notes, note))


async def _persona_calls(task: Task, config: EngineConfig) -> list[Call]:
    llm = StandInLLM()
    personas = [each.persona for each in assign(task, config)]
    await write_profiles(llm, task, personas, config.personas_per_call, config.conversations)
    return llm.calls


async def _dialogue_calls(task: Task, config: EngineConfig, failing: bool) -> list[Call]:
    """Calls for the sample of dialogues, without those for their personas."""
    llm = StandInLLM(failing)
    few = dataclasses.replace(
        config,
        dialogues=min(SAMPLE, config.dialogues),
        sampling=PersonaSampling(),  # who is difficult is not known yet, and changes no count
        # Stand-ins are full of flaws, and none of them is to be learned from.
        flaws="count",
        failed_critique="keep",
    )
    await imagine_dialogues(llm, task, few)
    return [call for call in llm.calls if call.request.step != PERSONAS]
