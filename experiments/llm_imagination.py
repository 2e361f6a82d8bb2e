"""Imagination with an LLM: from a description to `task.yaml`, dialogues and their card.

Every answer is on disk (`llm/` in the run's folder, if not elsewhere) before it is used, so a run
that was stopped goes on with the same command and asks nothing twice.
"""

from __future__ import annotations

import asyncio

from rich.console import Console

from experiments.build import Experiment
from experiments.files import write_atomically
from experiments.run_folder import RunFolder
from experiments.stamps import begin_stage
from experiments.tasks import given_task
from experiments.terminal import progress_bars
from imagination.dataset_card import dataset_card, warnings_of
from imagination.engine import (
    EngineConfig,
    Imagined,
    derive_task,
    forecast_imagination,
    imagine_dialogues,
)
from imagination.llm import Client
from imagination.task import Task


def run(experiment: Experiment, folder: RunFolder, console: Console) -> tuple[Imagined, str]:
    """Imagines the dialogues; returns them with their card."""
    return asyncio.run(_run(experiment, folder, console))


async def _run(experiment: Experiment, folder: RunFolder, console: Console) -> tuple[Imagined, str]:
    client = _open_client(experiment, folder)
    try:
        task = await _task(experiment, folder, client)
        begin_stage(folder, "imagine", experiment)  # stamped with the task, now that it is known
        console.print(f"Task: {folder.task} [dim](--stage=derive ends here)[/dim]")
        imagined = await _imagine(experiment.imagination.engine, task, client, console)
    finally:
        await client.close()
    console.print(imagined.line(), client.meter.line())
    for warning in warnings_of([*imagined.dialogues, *imagined.rejected]):
        console.print(warning.replace("*", ""), style="yellow", markup=False, highlight=False)
    return imagined, dataset_card(
        imagined.dialogues,
        task,
        meter=client.meter.summary(),
        dropped=imagined.dropped,
        rejected=imagined.rejected,
        seed=experiment.seed,
    )


def _open_client(experiment: Experiment, folder: RunFolder) -> Client:
    return Client(experiment.imagination.llm, folder.answers(experiment.answers))


async def _task(experiment: Experiment, folder: RunFolder, client: Client) -> Task:
    """Reads `task.yaml`; the first time, derives the task and writes it there."""
    if (task := folder.load_task()) is not None:
        return task
    name, given = given_task(experiment.task, folder.experiment)
    task = await derive_task(client, name, given)
    write_atomically(folder.task, task.to_yaml())
    return task


def derive(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Stage derive: `task.yaml` and nothing else, to be read and edited before it costs more."""

    async def run() -> None:
        client = _open_client(experiment, folder)
        try:
            await _task(experiment, folder, client)
        finally:
            await client.close()

    asyncio.run(run())
    console.print(folder.task.read_text("utf-8"), markup=False, highlight=False)
    console.print(f"The task is in {folder.task}; what it says when the dialogues are made counts.")


async def _imagine(engine: EngineConfig, task: Task, client: Client, console: Console) -> Imagined:
    with progress_bars(console) as bars:
        bar = bars.add_task("imagine", total=engine.dialogues, note="")

        def advance(_) -> None:
            bars.update(bar, advance=1, note=client.meter.line())

        return await imagine_dialogues(client, task, engine, advance)


def print_forecast(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Shows prompts, calls, tokens and what they would cost, without a call."""
    task = folder.load_task()
    if task is None:
        name, given = given_task(experiment.task, folder.experiment)
        task = {"name": name, **given}
    imagination = experiment.imagination
    forecast = forecast_imagination(task, imagination.engine, imagination.llm)
    console.print(forecast.to_markdown(), markup=False, highlight=False)
