"""Imagination with an LLM: from a description to `task.yaml`, dialogues and their card.

Every answer is on disk (`llm/` in the run's folder, if not elsewhere) before it is used, so a run
that was stopped goes on with the same command and asks nothing twice.
"""

from __future__ import annotations

import asyncio

from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments.files import write_atomically
from experiments.run_folder import RunFolder
from experiments.tasks import given_task
from experiments.terminal import progress_bars
from imagination.dataset_card import dataset_card
from imagination.dialogue import Dialogue
from imagination.engine import (
    Imagined,
    derive_task,
    forecast_imagination,
    imagine_dialogues,
)
from imagination.llm import Client
from imagination.task import Task


def run(config: ConfigDict, folder: RunFolder, console: Console) -> tuple[list[Dialogue], str]:
    """Imagines the dialogues; returns them with their card."""
    return asyncio.run(_run(config, folder, console))


async def _run(
    config: ConfigDict, folder: RunFolder, console: Console
) -> tuple[list[Dialogue], str]:
    client = _open_client(config, folder)
    try:
        task = await _task(config, folder, client)
        folder.begin_stage("imagine", config)  # stamped with the task, now that it is known
        console.print(f"Task: {folder.task} [dim](--stage=derive ends here)[/dim]")
        imagined = await _imagine(config, task, client, console)
    finally:
        await client.close()
    console.print(imagined.line(), client.meter.line())
    return imagined.dialogues, dataset_card(
        imagined.dialogues,
        task,
        meter=client.meter.summary(),
        dropped=imagined.dropped,
        seed=config.seed,
    )


def _open_client(config: ConfigDict, folder: RunFolder) -> Client:
    return Client(settings.imagination_llm(config), folder.answers(config.imagination))


async def _task(config: ConfigDict, folder: RunFolder, client: Client) -> Task:
    """The task as it stands in `task.yaml`; derived and written there the first time."""
    if (task := folder.load_task()) is not None:
        return task
    name, given = given_task(config, folder)
    task = await derive_task(client, name, given)
    write_atomically(folder.task, task.to_yaml())
    return task


def derive(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Stage derive: `task.yaml` and nothing else, to be read and edited before it costs more."""

    async def run() -> None:
        client = _open_client(config, folder)
        try:
            await _task(config, folder, client)
        finally:
            await client.close()

    asyncio.run(run())
    console.print(folder.task.read_text("utf-8"), markup=False, highlight=False)
    console.print(f"The task is in {folder.task}; what it says when the dialogues are made counts.")


async def _imagine(config: ConfigDict, task: Task, client: Client, console: Console) -> Imagined:
    engine = settings.engine_config(config)
    with progress_bars(console) as bars:
        bar = bars.add_task("imagine", total=engine.dialogues, note="")

        def advance(_) -> None:
            bars.update(bar, advance=1, note=client.meter.line())

        return await imagine_dialogues(client, task, engine, advance)


def print_plan(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Shows the prompts, how many calls and tokens, and what they would cost, without a call."""
    task = folder.load_task()
    if task is None:
        name, given = given_task(config, folder)
        task = {"name": name, **given}
    forecast = forecast_imagination(
        task, settings.engine_config(config), settings.imagination_llm(config)
    )
    console.print(forecast.to_markdown(), markup=False, highlight=False)
