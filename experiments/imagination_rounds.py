"""Rounds of imagination: newly imagined conversations in which a trained agent takes part itself.

`ilql_imagination1` learns from the original dialogues and from those that `ilql` of the same seed
holds with new humans; `ilql_imagination2` from those of `ilql_imagination1` beside them. So the
data comes to hold what an agent that has learned does, and where that leads. Each is trained from
the same start as a method without rounds, or goes on from the agent of the round before, for as
many steps or a share of them (`RoundsConfig`).

The humans are those of the world, drawn like those of the data and never those of the test; or an
LLM plays them, as in the evaluation. What a training learns from last is in
`imagination/<method>-seed<k>.jsonl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.build import Experiment
from experiments.evaluation import prompted
from experiments.evaluation.environment import (
    ROUND_SEED,
    SEED_STEP,
    Environment,
    about_imagined,
    humans_like_imagined,
    load_environment,
)
from experiments.evaluation.prompted import Progress
from experiments.files import written_in_chunks
from experiments.methods import TrainedMethod, entry_name
from experiments.networks import load_agent
from experiments.parallel import Report, run_units
from experiments.run_folder import RunError, RunFolder, Unit
from imagination.agents.speaker import spending
from imagination.dialogue import Dialogue, DialogueError, Turn, json_line, read_dialogues
from imagination.llm.routing import RoutedClient
from imagination.simulation import about_personas, as_data, imagine_conversations
from imagination.speakers import FAILURE, Conversation, converse, failure_of

CHUNK = 500  # conversations held together; a killed run loses at most these


def missing_rounds(experiment: Experiment, folder: RunFolder, wanted: Sequence[Unit]) -> list[Unit]:
    """Trainings whose own round has yet to be held, of those that these learn from."""
    learned = (each for unit in wanted for each in learned_from(experiment, unit))
    return [each for each in dict.fromkeys(learned) if not folder.imagined(each).exists()]


def hold_with_llm(
    experiment: Experiment, folder: RunFolder, todo: Sequence[Unit], console: Console
) -> None:
    """Holds conversations with humans whom an LLM plays; the agents that take part are trained."""
    if not todo:
        return
    with prompted.open_client(experiment, folder) as client:
        jobs = [(experiment, folder.path, unit, client) for unit in todo]
        run_units(hold_round, jobs, [unit.name for unit in todo], 0, console)


def hold_round(
    experiment: Experiment, path: Path, unit: Unit, client: RoutedClient | None, report: Report
) -> None:
    """Holds the conversations of a training's last round, with the agent of the round before."""
    folder, method = RunFolder(path), experiment.method(unit.method)
    speaker = Unit(method.takes_part, unit.seed)
    source = {
        "kind": "round of imagination",
        "method": speaker.method,
        "seed": speaker.seed,
        "round": method.imagination_rounds,
    }
    agent = load_agent(experiment, folder, speaker, experiment.decoding_of_rounds(method))
    environment = load_environment(experiment, folder)
    conversations = _conversations(experiment, folder, environment, unit)
    if environment.world is None:
        about = about_imagined(environment.task, folder)
    else:
        about = about_personas(environment.world)
    progress = Progress(report, len(conversations), client, note="in conversation")
    human = prompted.human_for(experiment, environment, progress)
    with written_in_chunks(folder.imagined(unit), CHUNK) as (done, write):
        progress.advance(done)
        for start in range(done, len(conversations), CHUNK):
            chunk = conversations[start : start + CHUNK]
            for index, each in enumerate(chunk, start):
                each.id = f"{unit.name}-{index}"
            held = converse(agent, human, chunk, environment.task, on_finished=progress.advance)
            sources = ({**source, **_noted(experiment, each)} for each in held)
            write(map(json_line, as_data(held, sources, about)))


def _noted(experiment: Experiment, dialogue: Dialogue) -> dict[str, Any]:
    """Notes for which turns as data have no room: failure, calls and cost of an LLM."""
    noted = {FAILURE: failure_of(dialogue.turns)}
    if experiment.evaluation.config.human != "prompted":
        return noted
    spent = spending(dialogue)
    cost = spent["human_cost"] if prompted.has_prices(experiment.evaluation) else None
    return {**noted, "human_calls": spent["human_calls"], "human_cost": cost}


def _conversations(
    experiment: Experiment, folder: RunFolder, environment: Environment, unit: Unit
) -> list[Conversation]:
    """Conversations that have yet to begin; the same for all methods of a seed and round."""
    number = experiment.method(unit.method).imagination_rounds
    count = experiment.imagination.rounds.round_dialogues
    seed = ROUND_SEED + SEED_STEP * (number - 1) + experiment.seed + unit.seed
    sampling = experiment.imagination.sampling
    if environment.world is None:
        return humans_like_imagined(environment.task, folder, sampling, count, seed)
    return imagine_conversations(environment.world, sampling, count, seed, unit.name)


# --- what was held ------------------------------------------------------------------------------


def learned_from(experiment: Experiment, unit: Unit) -> list[Unit]:
    """Trainings whose conversations one learns from: its own round and those before it."""
    method = experiment.method(unit.method)
    rounds = range(1, method.imagination_rounds + 1)
    names = [entry_name(method.method.name, "imagination", number) for number in rounds]
    return [Unit(name, unit.seed) for name in names]


def dialogues_of(experiment: Experiment, folder: RunFolder, unit: Unit) -> list[Dialogue]:
    """Conversations of rounds that a training learns from, beside the original dialogues.

    The values alone learn from what the agent said, unless `RoundsConfig.round_clone` has it cloned
    or the method can do no other.
    """
    held = [d for each in learned_from(experiment, unit) for d in read_round(folder, each)]
    method = experiment.method(unit.method).method
    needs_cloning = method.values_need_cloning or not method.learns_values
    if experiment.imagination.rounds.round_clone or needs_cloning:
        return held
    return [dataclasses.replace(d, turns=tuple(map(_not_cloned, d.turns))) for d in held]


def _not_cloned(turn: Turn) -> Turn:
    return dataclasses.replace(turn, clone=False) if turn.speaker == "agent" else turn


def read_round(folder: RunFolder, unit: Unit) -> list[Dialogue]:
    """The rated conversations of a training's last round in which the agent always answered.

    Raises:
        RunError: The file is damaged or not there, or holds no such conversation; the
            message says what to do.
    """
    path = folder.imagined(unit)
    try:
        held = read_dialogues(path)
    except (DialogueError, FileNotFoundError) as error:
        raise RunError(
            f"{error} These are conversations of a round of imagination: put the file back, or "
            "delete it and run --stage=train again, which has them held anew."
        ) from None
    # What stands where an answer is missing is nothing to learn to say.
    rated = [d for d in held if d.reward is not None and not d.source.get(FAILURE)]
    if not rated:
        raise RunError(
            f"{path}: no conversation was rated and always answered, so there is nothing to learn "
            f"from. Delete it, and run --stage=train again; or leave {unit.method} out of "
            "config.methods."
        )
    return rated


def described(method: TrainedMethod, unit: Unit, dialogues: Sequence[Dialogue]) -> str:
    """Tells in a sentence which agent held these conversations, and how they ended."""
    speaker = Unit(method.takes_part, unit.seed)
    mean = np.mean([dialogue.total_reward for dialogue in dialogues])
    return (
        f"Round {method.imagination_rounds} of imagination: {speaker.name} "
        f"held {len(dialogues):,} rated conversations, mean reward {mean:.2f}."
    )
