"""Stage evaluate: every trained network talks with fresh simulated humans, and is compared.

Per network: each decoding setting of its method is tried on validation episodes, the best one is
kept and judged on the test episodes of both populations. Episode i of a population is the same
human for every method and seed. Where there is no world (a corpus), `heldout.py` judges on
dialogues that were set apart instead.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunFolder, Unit, write_atomically
from experiments.stages import heldout, tables
from experiments.stages.statistics import bootstrap_mean, normalize, pairwise_tests
from experiments.stages.train import train_seconds, units
from ilql_jax.checkpoint import read_metadata, restore_params
from ilql_jax.objectives import LEARNS_VALUES
from ilql_jax.policy import DecodingConfig, Policy
from imagination.dialogue import Dialogue, json_line, read_dialogues
from imagination.policy_agent import PolicyAgent
from imagination.simulation import (
    POPULATIONS,
    SimulatedHuman,
    World,
    load_world,
    reference_values,
    sample_conversations,
)
from imagination.speakers import converse
from imagination.tokenization import DialogueTokenizer

# Far from each other and from the seeds of the data.
VALIDATION_SEED, TEST_SEED = 10_000_019, 20_000_003


def run(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Judges what is not judged yet, and compares all of it."""
    if config.data.source != "world":
        heldout.run(config, folder, console)
        return
    wanted = units(config)
    todo = [unit for unit in wanted if not folder.unit_result(unit).exists()]
    console.print(f"Evaluating {len(todo)} networks in conversation.") if todo else None
    jobs = [(evaluate_unit, config, folder.path, unit) for unit in todo]
    names = [unit.name for unit in todo]
    if not folder.references.exists():
        jobs.append((solve_world, config, folder.path))
        names.append("optimum")
    run_units(_call, jobs, names, workers_for(config.workers, len(jobs)), console)
    conversations = "".join(folder.unit_conversations(u).read_text("utf-8") for u in wanted)
    write_atomically(folder.conversations, conversations)
    evaluation = summarize(config, folder, wanted)
    write_atomically(folder.evaluation, json.dumps(evaluation, indent=1))


def _call(function: Callable[..., None], *arguments) -> None:
    function(*arguments)


def solve_world(config: ConfigDict, path: Path, report: Report) -> None:
    """Computes the exact values of the world's behaviours and of its optimum."""
    world = load_world(config.task.world)
    values = {}
    for index, population in enumerate(POPULATIONS):
        report(index, len(POPULATIONS), population)
        values[population] = reference_values(world, population)
    report(len(POPULATIONS), len(POPULATIONS), "")
    write_atomically(RunFolder(path).references, json.dumps(values, indent=1))


def print_results(folder: RunFolder, console: Console) -> None:
    """The table at the end of a run."""
    if folder.evaluation.exists():
        tables.print_results(console, json.loads(folder.evaluation.read_text()))
    if folder.heldout.exists():
        tables.print_heldout(console, json.loads(folder.heldout.read_text()))


def load_agent(
    config: ConfigDict,
    folder: RunFolder,
    unit: Unit,
    decoding: DecodingConfig,
    batch_size: int | None = None,
) -> PolicyAgent:
    """The trained network of a unit as an agent that speaks in `batch_size` conversations."""
    tokenizer = DialogueTokenizer.load(folder.tokenizer)
    shape = settings.model_config(config, tokenizer.vocab_size)
    policy = Policy(
        shape,
        restore_params(folder.checkpoints(unit), shape),
        decoding,
        stop_token=tokenizer.end,
        allowed=tokenizer.writable(),
        max_utterance=config.decoding.max_utterance,
        batch_size=batch_size or config.decoding.batch_size,
    )
    scale = None
    if unit.method in LEARNS_VALUES:
        scale = read_metadata(folder.checkpoints(unit))["reward_scale"]
    return PolicyAgent(policy, tokenizer, scale, keep_candidates=4)


def evaluate_unit(config: ConfigDict, path: Path, unit: Unit, report: Report) -> None:
    """Judges one network; runs in a process of its own."""
    folder = RunFolder(path)
    world = load_world(config.task.world)
    choices = settings.decodings(config, unit.method)
    agent = load_agent(config, folder, unit, choices[0])
    counts = config.evaluation
    per_choice = counts.validation_episodes if len(choices) > 1 else 0
    total = per_choice * len(choices) + counts.average_episodes + counts.difficult_episodes
    done = 0

    def talk(population: str, episodes: int, seed: int, note: str) -> list[Dialogue]:
        nonlocal done

        def advance(finished: int) -> None:
            nonlocal done
            done += finished
            report(done, total, note)

        report(done, total, note)
        return play(world, agent, population, episodes, seed + config.seed, advance)

    validation: dict[str, float] = {}
    for choice in choices if per_choice else ():
        agent.policy.decoding = choice
        played = talk("average", per_choice, VALIDATION_SEED, f"validation: {choice}")
        validation[str(choice)] = float(np.mean([d.reward for d in played]))
    chosen = max(choices, key=lambda c: validation.get(str(c), 0.0))
    agent.policy.decoding = chosen
    lines = []
    for population in POPULATIONS:
        episodes = counts[f"{population}_episodes"]
        for index, dialogue in enumerate(talk(population, episodes, TEST_SEED, f"{population}")):
            lines.append(json_line(_labelled(dialogue, unit, population, index)))
    write_atomically(folder.unit_conversations(unit), "".join(lines))
    result = {"decoding": str(chosen), "validation": validation}
    write_atomically(folder.unit_result(unit), json.dumps(result, indent=1))


def play(
    world: World, agent, population: str, episodes: int, seed: int, on_finished=None
) -> list[Dialogue]:
    """Conversations of an agent with fresh humans of a population."""
    conversations = sample_conversations(world, population, episodes, seed, prefix=population)
    human = SimulatedHuman(world)
    return converse(agent, human, conversations, world.task, on_finished=on_finished)


def _labelled(dialogue: Dialogue, unit: Unit, population: str, episode: int) -> Dialogue:
    source = {
        "kind": "simulated",
        "method": unit.method,
        "seed": unit.seed,
        "population": population,
        "episode": episode,
    }
    identifier = f"{unit.name}-{population}-{episode}"
    return dataclasses.replace(dialogue, id=identifier, source=source)


def summarize(config: ConfigDict, folder: RunFolder, wanted: list[Unit]) -> dict[str, Any]:
    """What `evaluation.json` holds: scores, intervals, tests, references."""
    world = load_world(config.task.world)
    played = {unit: read_dialogues(folder.unit_conversations(unit)) for unit in wanted}
    return {
        "task": world.name,
        "success_reward": world.task.success_reward,
        "population": {
            population: _summarize_population(config, folder, world, population, played)
            for population in POPULATIONS
        },
    }


def _summarize_population(
    config: ConfigDict,
    folder: RunFolder,
    world: World,
    population: str,
    played: dict[Unit, list[Dialogue]],
) -> dict[str, Any]:
    references = json.loads(folder.references.read_text())[population]
    methods, scores = {}, {}
    for method in config.methods:
        of_method = {
            unit: [d for d in dialogues if d.source["population"] == population]
            for unit, dialogues in played.items()
            if unit.method == method
        }
        rewards = np.array([[d.reward for d in group] for group in of_method.values()])
        scores[method] = rewards
        methods[method] = {
            **_scores(rewards, references, config.seed),
            **_habits(of_method, world),
            "train_seconds": float(np.mean([train_seconds(folder, unit) for unit in of_method])),
            "decoding": _decodings(folder, of_method),
        }
    tests = pairwise_tests(scores, seed=config.seed)
    return {"references": references, "methods": methods, "tests": tests}


def _scores(rewards: np.ndarray, references: dict[str, float], seed: int) -> dict[str, Any]:
    interval = bootstrap_mean(rewards, seed=seed)

    def normalized(value: float) -> float:
        return float(normalize(value, references["behaviour"], references["optimum"]))

    return {
        "mean_reward": float(interval.mean),
        "ci95": [float(interval.low), float(interval.high)],
        "normalized": normalized(interval.mean),
        "normalized_ci95": [normalized(interval.low), normalized(interval.high)],
        "episodes": rewards.shape[1],
        "seeds": rewards.shape[0],
        "per_seed": [float(mean) for mean in rewards.mean(axis=1)],
    }


def _habits(of_method: dict[Unit, list[Dialogue]], world: World) -> dict[str, float]:
    dialogues = [d for group in of_method.values() for d in group]
    successes = [d.reward >= world.task.success_reward for d in dialogues]
    return {
        "success_rate": float(np.mean(successes)),
        "turns": float(np.mean([len(d.agent_turns) for d in dialogues])),
        "not_understood": float(np.mean([_not_understood(d) for d in dialogues])),
    }


def _not_understood(dialogue: Dialogue) -> int:
    return sum(
        "understood_as" in turn.annotations and turn.annotations["understood_as"] is None
        for turn in dialogue.turns[1:]
        if turn.speaker == "human"
    )


def _decodings(folder: RunFolder, of_method: dict[Unit, list[Dialogue]]) -> str:
    """The setting chosen, or all of them where the seeds differ."""
    chosen = [json.loads(folder.unit_result(unit).read_text())["decoding"] for unit in of_method]
    return " / ".join(dict.fromkeys(chosen))
