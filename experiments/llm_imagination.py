"""Imagination with an LLM: from a description to `task.yaml`, dialogues and their card.

Every answer is on disk (`llm/` in the run's folder, if not elsewhere) before it is used, so a run
that was stopped goes on with the same command and asks nothing twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from typing import Any

from rich.console import Console

from experiments.build import Experiment
from experiments.files import write_atomically
from experiments.run_folder import RunError, RunFolder
from experiments.stamps import begin_stage
from experiments.tasks import given_task
from ilql_jax.progress import LiveNote, ProgressBars
from imagination.dataset_card import dataset_card, warnings_of
from imagination.dialogue import Dialogue
from imagination.engine import (
    PURPOSE_OF_STEP,
    Imagined,
    derive_task,
    forecast_imagination,
    imagination_forecast,
    imagine_dialogues,
    recalled_forecast,
)
from imagination.engine.task_from_prompt import missing_fields
from imagination.llm import Answer, Failure, Request
from imagination.llm.cost import SAMPLE, Forecast, LearnedForecast
from imagination.llm.routing import RoutedClient
from imagination.llm.session import DroppedDialogue
from imagination.llm.watching import RecallingClient, WatchedClient
from imagination.prompts import other_versions
from imagination.task import Task
from imagination.transcript import transcript

SECONDS_BETWEEN = 0.1  # of two states of the bar


def run(experiment: Experiment, folder: RunFolder, console: Console) -> tuple[Imagined, str]:
    """Imagines the dialogues; returns them with their card."""
    return asyncio.run(_run(experiment, folder, console))


async def _run(experiment: Experiment, folder: RunFolder, console: Console) -> tuple[Imagined, str]:
    client = _open_client(experiment, folder)
    if others := other_versions(client.prompt_versions):
        listed = ", ".join(f"{version} ({count:,})" for version, count in others.items())
        console.print(
            f"{sum(others.values()):,} of the answers there are were given to other versions of "
            f"the prompts: {listed}. They are kept and not used, so these questions are asked "
            "anew; what they cost counts for config.llm.max_cost.",
            markup=False,
            highlight=False,
        )
    try:
        task = await _task(experiment, folder, client, console)
        begin_stage(folder, "imagine", experiment)  # stamped with the task, now that it is known
        console.print(f"Task: {folder.task} [dim](--stage=derive ends here)[/dim]")
        imagined, costs = await _imagine(experiment, task, client, console)
    finally:
        await client.close()
    console.print(imagined.line(), client.meter.line())
    notes = [costs.line()] if costs.line() else []
    if imagined.unpaid:
        notes.append(
            f"To imagine the other {imagined.unpaid:,} later, delete {folder.dialogues} and run "
            "with a higher config.llm.max_cost; nothing is paid for twice."
        )
    for note in [*notes, *warnings_of([*imagined.dialogues, *imagined.rejected])]:
        console.print(note.replace("*", ""), markup=False, highlight=False)
    return imagined, dataset_card(
        imagined.dialogues,
        task,
        meter=client.meter.summary(),
        dropped=imagined.dropped,
        rejected=imagined.rejected,
        unpaid=imagined.unpaid,
        costs=costs.line(),
        seed=experiment.seed,
    )


def _open_client(experiment: Experiment, folder: RunFolder, **changes: Any) -> RoutedClient:
    imagination, answers = experiment.imagination, folder.answers(experiment.answers)
    config = dataclasses.replace(imagination.llm, **changes)
    return RoutedClient(config, answers, imagination.models, PURPOSE_OF_STEP)


async def _task(
    experiment: Experiment, folder: RunFolder, client: RoutedClient, console: Console
) -> Task:
    """Reads `task.yaml`; the first time, derives the task and writes it there."""
    if (task := folder.load_task()) is not None:
        return task
    name, given = given_task(experiment.task, folder.experiment)
    if missing_fields(given):
        with ProgressBars(console) as bars:
            bar = bars.add_task("derive: answers", total=1, note=LiveNote(client.meter.line))
            watched = WatchedClient(client, lambda *_: bars.advance(bar))
            task = await derive_task(watched, name, given)
    else:
        task = await derive_task(client, name, given)
    write_atomically(folder.task, task.to_yaml())
    return task


def derive(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Stage derive: `task.yaml` and nothing else, to be read and edited before it costs more."""

    async def run() -> None:
        client = _open_client(experiment, folder)
        try:
            await _task(experiment, folder, client, console)
        finally:
            await client.close()

    asyncio.run(run())
    console.print(folder.task.read_text("utf-8"), markup=False, highlight=False)
    console.print(f"The task is in {folder.task}; what it says when the dialogues are made counts.")


def preview(experiment: Experiment, folder: RunFolder, number: int, console: Console) -> None:
    """Imagines the first dialogues and shows them, before the others are paid for.

    They are the run's own: their answers are kept, and the run begins with them.

    Raises:
        RunError: All dialogues are there already.
    """
    if folder.dialogues.exists():
        raise RunError(
            f"--preview={number} shows dialogues before all are imagined, but they are there: "
            f"{folder.dialogues}. Leave it out."
        )
    in_all = experiment.imagination.dialogues

    async def run() -> tuple[Task, Imagined, LearnedForecast]:
        client = _open_client(experiment, folder)
        try:
            task = await _task(experiment, folder, client, console)
            return task, *await _imagine(experiment, task, client, console, min(number, in_all))
        finally:
            await client.close()

    task, imagined, costs = asyncio.run(run())
    for dialogue in sorted([*imagined.dialogues, *imagined.rejected], key=_number):
        console.print(_shown(dialogue, task), markup=False, highlight=False)
    money = f" They cost ${costs.spent:,.4f}, all of them will cost about ${costs.cost:,.2f}."
    console.print(
        f"{imagined.line(has_card=False)} of {in_all:,}.{money if costs.spent else ''} Run the "
        "same command without --preview for the others; these are not paid for again, unless the "
        f"task is edited ({folder.task}).",
        markup=False,
        highlight=False,
    )


def _number(dialogue: Dialogue) -> int:
    return int(dialogue.id.rpartition("-")[2])


def _shown(dialogue: Dialogue, task: Task) -> str:
    persona = "; ".join(f"{axis} = {value}" for axis, value in dialogue.persona.items())
    against = "; ".join(dialogue.source["rejected"])
    head = [f"--- {dialogue.id}: {persona}", f"The agent: {dialogue.source['behaviour']}."]
    end = [f"Reward: {dialogue.reward:g}" + (f"; kept apart: {against}" if against else "")]
    return "\n".join([*head, transcript(dialogue.turns, task), *end, ""])


async def _imagine(
    experiment: Experiment, task: Task, client: RoutedClient, console: Console, first: int = 0
) -> tuple[Imagined, LearnedForecast]:
    """Imagines with a bar of calls, whose number is learned on the way."""
    engine, llm = experiment.imagination.engine, experiment.imagination.llm
    beforehand = await imagination_forecast(task, engine, llm, experiment.imagination.models)
    ids = [f"{task.name}-{index}" for index in range(engine.dialogues)]
    costs = LearnedForecast(beforehand, ids, first or SAMPLE)
    limit = _Limit(experiment, costs, console)
    limit.tell()
    with ProgressBars(console) as bars:
        bar = _Bar(bars, costs, client, first or engine.dialogues, len(ids))

        def answered(request: Request, answer: Answer | Failure) -> None:
            costs.saw(request, answer)
            if costs.answers >= SAMPLE:
                limit.tell()
            bar.show()

        def settled(dialogue: Dialogue | DroppedDialogue) -> None:
            costs.finished(dialogue.id)
            bar.settled += 1

        watched = WatchedClient(client, answered)
        price = beforehand.cost / engine.dialogues
        imagined = await imagine_dialogues(watched, task, engine, settled, first, price)
        bar.end()
    return imagined, costs


class _Limit:
    """Tells once that the limit on cost will be reached, as soon as it is forecast."""

    def __init__(self, experiment: Experiment, costs: LearnedForecast, console: Console):
        self._limit = experiment.imagination.llm.max_cost
        self._goes_on = experiment.imagination.engine.at_limit == "use"
        self._costs, self._console = costs, console
        self._was_told = False

    def tell(self) -> None:
        """Compares the forecast as it is now."""
        if self._was_told or not self._limit or self._costs.cost <= self._limit:
            return
        self._was_told = True
        learned = ", learned from the answers so far" if self._costs.answers else ""
        ends = "go on with the dialogues that are finished" if self._goes_on else "stop"
        use = "" if self._goes_on else ", or config.imagination.at_limit=use for those finished"
        self._console.print(
            f"Forecast{learned}: about ${self._costs.cost:,.2f}, more than config.llm.max_cost, "
            f"${self._limit:,.2f}. The run will {ends} there. To imagine all, end it and run it "
            f"again with a higher limit{use}; nothing is paid for twice.",
            style="yellow",
            markup=False,
            highlight=False,
        )


class _Bar:
    """Bar of the calls, with dialogues, tokens and dollars beside it; moves from the first call."""

    def __init__(
        self,
        bars: ProgressBars,
        costs: LearnedForecast,
        client: RoutedClient,
        number: int,
        in_all: int,
    ):
        self._bars, self._costs, self._client = bars, costs, client
        self._number, self._share = number, number / in_all
        self._task = bars.add_task("imagine: calls", total=self._total(), note="")
        self._shown = -math.inf
        self.settled = 0

    def _total(self) -> int:
        return max(self._costs.answers, round(self._costs.calls * self._share))

    def show(self) -> None:
        """Brings the bar up to date, if some time has passed since it was."""
        if time.monotonic() - self._shown < SECONDS_BETWEEN:
            return
        self._shown = time.monotonic()
        about = f" of about ${self._costs.cost * self._share:,.2f}" if self._costs.spent else ""
        note = f"{self.settled:,} of {self._number:,} dialogues | {self._client.meter.line()}"
        self._bars.update(
            self._task, completed=self._costs.answers, total=self._total(), note=note + about
        )

    def end(self) -> None:
        """Shows the last state, full."""
        self._shown = -math.inf
        self.show()
        self._bars.update(self._task, total=self._costs.answers)


def forecast(experiment: Experiment, folder: RunFolder) -> Forecast:
    """Prompts, calls, tokens and what they would cost, without a call.

    What is answered in the folder already tells what the others will take.
    """
    task = folder.load_task()
    if task is None:
        name, given = given_task(experiment.task, folder.experiment)
        task = {"name": name, **given}
    imagination = experiment.imagination
    planned = forecast_imagination(task, imagination.engine, imagination.llm, imagination.models)
    if not isinstance(task, Task):
        return planned

    async def recalled() -> Forecast:
        client = _open_client(experiment, folder, cache_max_megabytes=0)  # none is dropped
        try:
            return await recalled_forecast(
                planned, task, imagination.engine, RecallingClient(client)
            )
        finally:
            await client.close()

    return asyncio.run(recalled())
