"""Stage evaluate: every trained network talks with fresh simulated humans, and is compared.

Per network: each decoding setting of its method is tried on validation episodes, the best one is
kept (`decoding_choice.py`) and judged on the test episodes of both populations. Episode i of a
population is the same human for every method and seed. Prompted agents talk with them too, and the
humans may be played by an LLM (`prompted.py`). `summary.py` compares. Where there is no world (a
corpus), `heldout.py` judges on dialogues that were set apart instead.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments.build import Experiment
from experiments.config import EvaluationConfig
from experiments.evaluation import decoding_choice, heldout, prompted
from experiments.evaluation.comparison import compare_units, read_references
from experiments.evaluation.diagnosis import Diagnosis, diagnose
from experiments.evaluation.environment import (
    TEST_SEED,
    VALIDATION_SEED,
    Environment,
    load_environment,
)
from experiments.evaluation.logged import log_evaluation, log_heldout
from experiments.evaluation.prompted import Progress
from experiments.evaluation.summary import AgentPlayer, Heldout, UnitResult
from experiments.files import read_or_none, write_atomically
from experiments.networks import in_turn, load_agent, units
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunFolder, Unit
from ilql_jax.decoding_config import DecodingConfig
from imagination.agents import GdpZeroAgent, prompted_agent
from imagination.dialogue import Dialogue, json_line, read_dialogues
from imagination.llm.routing import RoutedClient
from imagination.simulation import (
    POPULATIONS,
    World,
    load_world,
    reference_values,
)
from imagination.speakers import Agent, Human, converse


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Judges what is not judged yet, and compares all of it."""
    if experiment.data.source != "world":
        before = _content(folder.heldout)
        heldout.run(experiment, folder, console)
        if _content(folder.heldout) != before:
            log_heldout(experiment, folder, Heldout.read(folder.heldout))
        return
    if experiment.task.description and experiment.evaluation.config.human == "world":
        console.print(
            f"Judged by the humans of the embedded world {experiment.task.world!r}, who understand "
            "its words alone. --config.evaluation.human=prompted has those of task.yaml played."
        )
    wanted = [*units(experiment), *prompted.prompted_units(experiment)]
    todo = [unit for unit in wanted if not _is_evaluated(folder, unit, console)]
    with_llm = [unit for unit in todo if _talks_with_llm(experiment, unit)]
    without = [unit for unit in todo if unit not in with_llm]
    _evaluate_without_llm(experiment, folder, without, console)
    if with_llm:
        _evaluate_with_llm(experiment, folder, with_llm, console)
    conversations = "".join(folder.unit_conversations(u).read_text("utf-8") for u in wanted)
    write_atomically(folder.conversations, conversations)
    environment = load_environment(experiment, folder)
    evaluation = compare_units(
        folder,
        wanted,
        environment.task,
        seed=experiment.seed,
        has_prices=prompted.has_prices(experiment.evaluation),
        methods=experiment.method_by_name,
    )
    before = _content(folder.evaluation)
    evaluation.write(folder.evaluation)
    if _content(folder.evaluation) != before:
        folder.diagnosis.unlink(missing_ok=True)
        log_evaluation(experiment, folder, evaluation)
    if environment.world is not None and experiment.evaluation.config.human == "world":
        _diagnose(experiment, folder, environment.world, console)


def _diagnose(experiment: Experiment, folder: RunFolder, world: World, console: Console) -> None:
    """Splits what is lost, where that is asked for and not done yet."""
    episodes = experiment.evaluation.config.diagnosed_episodes
    read = functools.partial(Diagnosis.read, folder.diagnosis)
    done = read_or_none(folder.diagnosis, read, console)
    if done is None:
        folder.diagnosis.unlink(missing_ok=True)
    if episodes and (done is None or done.episodes != episodes):
        console.print(f"Looking for what is lost, in {episodes} conversations each.")
        diagnose(world, read_dialogues(folder.conversations), episodes).write(folder.diagnosis)


def _is_evaluated(folder: RunFolder, unit: Unit, console: Console) -> bool:
    def read() -> UnitResult:
        read_dialogues(folder.unit_conversations(unit))
        return UnitResult.read(folder.unit_result(unit))

    return read_or_none(folder.unit_result(unit), read, console) is not None


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _talks_with_llm(experiment: Experiment, unit: Unit) -> bool:
    return experiment.evaluation.config.human == "prompted" or prompted.is_prompted(
        experiment, unit
    )


def _evaluate_without_llm(
    experiment: Experiment, folder: RunFolder, todo: list[Unit], console: Console
) -> None:
    if todo:
        console.print(f"Evaluating {len(todo)} networks in conversation.")
    todo = in_turn(experiment, todo)
    jobs = [(evaluate_network, experiment, folder.path, unit, None) for unit in todo]
    names = [unit.name for unit in todo]
    if experiment.evaluation.config.human == "world" and not _has_references(folder, console):
        jobs.append((solve_world, experiment, folder.path))
        names.append("optimum")
    run_units(_call, jobs, names, workers_for(experiment.run.workers, len(jobs)), console)


def _has_references(folder: RunFolder, console: Console) -> bool:
    read = functools.partial(read_references, folder)
    return read_or_none(folder.references, read, console) is not None


def _evaluate_with_llm(
    experiment: Experiment, folder: RunFolder, todo: list[Unit], console: Console
) -> None:
    """One after the other in this process: the conversations of each are held at once.

    That leaves some of `config.llm.max_in_flight` unused while a network finds its words and when
    few conversations of a unit are left (with 200 and 100 conversations, 64 in flight and answers
    after a second, 44 % on two busy cores). More at once would hold several networks in memory,
    and most services limit the calls a minute before that.
    """
    models = " and ".join(_models(experiment, todo))
    console.print(f"Evaluating {len(todo)} agents in conversation, with {models}.")
    with prompted.open_client(experiment, folder) as client:
        jobs = []
        for unit in todo:
            is_prompted = prompted.is_prompted(experiment, unit)
            function = evaluate_prompted_agent if is_prompted else evaluate_network
            jobs.append((function, experiment, folder.path, unit, client))
        run_units(_call, jobs, [unit.name for unit in todo], 0, console)


def _models(experiment: Experiment, todo: Sequence[Unit]) -> list[str]:
    """Names of the LLMs that take part in the conversations of these units."""
    evaluation = experiment.evaluation
    speaks = any(prompted.is_prompted(experiment, unit) for unit in todo)
    is_played = evaluation.config.human == "prompted"
    models = [evaluation.llm] * speaks + [evaluation.player or evaluation.llm] * is_played
    return list(dict.fromkeys(each.model for each in models))


def _call(function: Callable[..., None], *arguments) -> None:
    function(*arguments)


def solve_world(experiment: Experiment, path: Path, report: Report) -> None:
    """Computes the exact values of the world's behaviours and of its optimum."""
    world = load_world(experiment.task.world)
    values = {}
    for index, population in enumerate(POPULATIONS):
        report(index, len(POPULATIONS), population)
        values[population] = reference_values(world, population)
    report(len(POPULATIONS), len(POPULATIONS), "")
    write_atomically(RunFolder(path).references, json.dumps(values, indent=1))


def evaluate_network(
    experiment: Experiment, path: Path, unit: Unit, client: RoutedClient | None, report: Report
) -> None:
    """Judges one network; in a process of its own where there is no client of an LLM."""
    folder, counts = RunFolder(path), experiment.evaluation.config
    environment = load_environment(experiment, folder)
    choices = experiment.method(unit.method).decodings
    agent = load_agent(experiment, folder, unit, choices[0])
    episodes = {population: episodes_of(counts, population) for population in POPULATIONS}
    progress = Progress(report, episodes_with_network(counts, choices), client)
    human = prompted.human_for(experiment, environment, progress)

    def judge(choice: DecodingConfig) -> list[float | None]:
        agent.policy.decoding = choice
        progress.begin(f"validation: {choice}")
        talk = environment, agent, human, "average", counts.validation_episodes
        seed = VALIDATION_SEED + experiment.seed
        return [dialogue.reward for dialogue in play(*talk, seed, progress.advance)]

    chosen = decoding_choice.choose(choices, judge)
    agent.policy.decoding = chosen.decoding
    _talk(experiment, folder, unit, environment, agent, human, episodes, progress)
    result = UnitResult(
        decoding=str(chosen.decoding),
        validation=chosen.validation,
        agent=None,
        human=prompted.player_of(human),
        setup_calls=None,
        setup_cost=None,
    )
    result.write(folder.unit_result(unit))


def episodes_of(config: EvaluationConfig, population: str) -> int:
    """Test conversations with a population."""
    return getattr(config, f"{population}_episodes")


def episodes_with_network(config: EvaluationConfig, decodings: Sequence[DecodingConfig]) -> int:
    """All conversations with a network: those in which decodings are tried, and the test."""
    test = sum(episodes_of(config, population) for population in POPULATIONS)
    return decoding_choice.tried(decodings) * config.validation_episodes + test


def episodes_with_prompted(config: EvaluationConfig) -> dict[str, int]:
    """Test conversations of a prompted agent with each population."""
    episodes = {population: episodes_of(config, population) for population in POPULATIONS}
    most = config.prompted_episodes
    return {name: min(n, most) if most else n for name, n in episodes.items()}


def evaluate_prompted_agent(
    experiment: Experiment, path: Path, unit: Unit, client: RoutedClient, report: Report
) -> None:
    """Judges one prompted agent, with the first of the humans that the networks talk with."""
    folder = RunFolder(path)
    environment = load_environment(experiment, folder)
    episodes = episodes_with_prompted(experiment.evaluation.config)
    progress = Progress(report, sum(episodes.values()), client)
    how = prompted.agent_settings(experiment, unit.method)
    agent = prompted_agent(unit.method, progress.watched(), environment.task, **how)
    human = prompted.human_for(experiment, environment, progress)
    _talk(experiment, folder, unit, environment, agent, human, episodes, progress)
    searches = isinstance(agent, GdpZeroAgent)
    result = UnitResult(
        decoding=None,
        validation={},
        agent=AgentPlayer(**agent.model_and_version),
        human=prompted.player_of(human),
        setup_calls=agent.setup_calls if searches else None,
        setup_cost=agent.setup_cost if searches else None,
    )
    result.write(folder.unit_result(unit))


def _talk(
    experiment: Experiment,
    folder: RunFolder,
    unit: Unit,
    environment: Environment,
    agent: Agent,
    human: Human,
    episodes: Mapping[str, int],
    progress: Progress,
) -> None:
    """The test conversations of a unit, with both populations."""
    lines = []
    for population, count in episodes.items():
        progress.begin(population)
        seed = TEST_SEED + experiment.seed
        played = play(environment, agent, human, population, count, seed, progress.advance)
        for index, dialogue in enumerate(played):
            lines.append(json_line(_labelled(dialogue, unit, population, index)))
    write_atomically(folder.unit_conversations(unit), "".join(lines))


def play(
    environment: Environment,
    agent: Agent,
    human: Human,
    population: str,
    episodes: int,
    seed: int,
    on_finished: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Conversations of an agent with fresh humans of a population."""
    conversations = environment.humans(population, episodes, seed)
    return converse(agent, human, conversations, environment.task, on_finished=on_finished)


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
