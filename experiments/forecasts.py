"""Forecast of all that a run asks of LLMs: calls, tokens and dollars, by part, without a call.

Imagination and hindsight, rounds of imagination in which an LLM plays the humans, and the
evaluation with such humans or with prompted agents.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from experiments import llm_imagination
from experiments.build import Experiment
from experiments.evaluation.environment import load_environment
from experiments.evaluation.prompted import agent_settings
from experiments.networks import units
from experiments.run_folder import RunError, RunFolder
from experiments.stages import regenerate
from experiments.stages.evaluate import episodes_with_network, episodes_with_prompted
from experiments.tasks import given_task
from imagination.agents.cost import forecast_conversations
from imagination.agents.human import Background
from imagination.engine.details import draw_details
from imagination.engine.personas import Profiles, draw_personas
from imagination.engine.task_from_prompt import task_from, task_placeholders
from imagination.llm.cost import SAMPLE, Forecast, joined
from imagination.speakers import Conversation
from imagination.task import Task

OF_SEARCH = 2  # conversations that stand for all where a tree is searched at each turn


def print_forecasts(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Shows what the stages would ask of LLMs, and what it would cost.

    Raises:
        RunError: No LLM takes part.
    """
    parts = {}
    if experiment.imagines_with_llm:
        parts["imagination"] = llm_imagination.forecast(experiment, folder)
    looks_back = experiment.hindsight.llm is not None and experiment.rounds > 0
    if looks_back and folder.dialogues.exists():
        parts["hindsight"] = regenerate.forecast(experiment, folder)
    parts |= conversation_forecasts(experiment, folder)
    if not parts and not looks_back:
        raise RunError(
            "--dry_run shows what an LLM would be asked, and none takes part: set "
            "config.imagination.engine=anthropic; config.evaluation.human=prompted, or agents in "
            "config.evaluation.prompted; or config.hindsight.engine=anthropic with a method that "
            "learns from hindsight."
        )
    if looks_back and "hindsight" not in parts:
        console.print(
            "What hindsight would take depends on the dialogues, which are not there yet: "
            f"--stage=imagine --workdir={folder.path} makes them; then ask again."
        )
    if parts:
        console.print(joined(parts).to_markdown(), markup=False, highlight=False)


def conversation_forecasts(experiment: Experiment, folder: RunFolder) -> dict[str, Forecast]:
    """Forecasts of conversations that an LLM takes part in: of rounds, and of the evaluation."""
    evaluation = experiment.evaluation
    is_played = evaluation.config.human == "prompted"
    if experiment.data.source != "world" or evaluation.llm is None:
        return {}
    if not is_played and not experiment.task.world:  # nobody to talk with
        return {}
    made: dict[str, Forecast] = {}

    def add(part: str, number: int, agent: str = "") -> None:
        if not number:
            return
        task, people = _people(experiment, folder, OF_SEARCH if agent == "gdp_zero" else SAMPLE)
        human: dict[str, Any] | None = None
        if is_played:
            guidance = evaluation.config.human_guidance
            human = {"guidance": guidance, "speech": experiment.speech}
        made[f"{part}: {number:,} conversations"] = forecast_conversations(
            task,
            people[:number],
            number,
            evaluation.llm,
            agent=agent,
            settings=agent_settings(experiment, agent) if agent else None,
            human=human,
            player=evaluation.player,
        )

    if is_played:
        methods = [experiment.method(unit.method) for unit in units(experiment)]
        learners = sum(each.imagination_rounds > 0 for each in methods)
        add("rounds of imagination", learners * experiment.imagination.rounds.round_dialogues)
        add(
            "evaluation of the networks",
            sum(episodes_with_network(evaluation.config, each.decodings) for each in methods),
        )
    for agent in evaluation.config.prompted:
        add(
            f"evaluation of {agent}", sum(episodes_with_prompted(evaluation.config).values()), agent
        )
    return made


def _people(
    experiment: Experiment, folder: RunFolder, number: int
) -> tuple[Task, list[Conversation]]:
    """The task of the evaluation with some of its humans; stand-ins for what is not there yet."""
    is_played = experiment.evaluation.config.human == "prompted"
    if not (is_played and experiment.imagines_with_llm) or folder.dialogues.exists():
        environment = load_environment(experiment, folder)
        return environment.task, environment.humans("average", number, experiment.seed)
    task = folder.load_task()
    if task is None:
        name, given = given_task(experiment.task, folder.experiment)
        task = task_from(name, {**task_placeholders(given), **given})
    [typical] = Profiles.placeholder().profiles
    has_details = experiment.imagination.engine.details
    details = draw_details(experiment.seed, 0, task.persona_axes) if has_details else {}
    background = Background(
        typical.profile, typical.reveals, typical.situations[0], tuple(details.items())
    )
    personas = draw_personas(task.persona_axes, number, experiment.seed)
    return task, [
        Conversation(str(index), persona, index, human_memory=background)
        for index, persona in enumerate(personas)
    ]
