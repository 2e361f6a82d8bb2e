"""Conversations a second of a trained agent with simulated humans, on all cores.

    python experiments/benchmarks/conversations.py --workdir=runs/teaching
    python experiments/benchmarks/conversations.py --workdir=runs/persuasion --method=bc

In as many processes as there are cores, each with one thread, as the evaluation has it; compiling
is not counted: as many episodes are played before. Every way of choosing words of the method
(`config.decoding`) is timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from rich.console import Console

from experiments import command_line, launch, networks
from experiments.build import Experiment, build
from experiments.evaluation.environment import load_environment
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunFolder, Unit
from experiments.stages import evaluate
from imagination.simulation import SimulatedHuman, load_world

SEED = 30_000_001  # far from the seeds of data, validation and test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a run that was trained")
    parser.add_argument("--method", default="ilql")
    parser.add_argument("--episodes", type=int, default=600, help="of each process")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    given = parser.parse_args()
    with launch.told_errors() as console:
        found = run(given.workdir, given.method, given.episodes, console)
    for decoding, rate in found.items():
        print(f"{given.method}, {decoding}: {rate:.0f} conversations a second")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def run(workdir: Path, method: str, episodes: int, console: Console) -> dict[str, float]:
    """Conversations a second, by way of choosing words."""
    folder = RunFolder(workdir)
    task = folder.known_experiment()
    defaults = importlib.import_module(f"experiments.{task}").get_config()
    experiment = build(command_line.with_saved(defaults, folder, {}))
    processes = max(1, workers_for(experiment.run.workers, 10_000))
    jobs = [(experiment, workdir, method, episodes, index) for index in range(processes)]
    names = [f"process {index}" for index in range(processes)]
    rates = run_units(_play, jobs, names, processes, console)
    return {decoding: sum(each[decoding] for each in rates) for decoding in rates[0]}


def _play(
    experiment: Experiment, workdir: Path, method: str, episodes: int, index: int, report: Report
) -> dict[str, float]:
    folder = RunFolder(workdir)
    environment, human = (
        load_environment(experiment, folder),
        SimulatedHuman(load_world(experiment.task.world)),
    )
    choices = experiment.method(method).decodings
    agent = networks.load_agent(experiment, folder, Unit(method, 0), choices[0])
    rates = {}
    for place, choice in enumerate(choices):
        report(place, len(choices), str(choice))
        agent.policy.decoding = choice
        evaluate.play(environment, agent, human, "average", episodes, SEED)
        start = time.perf_counter()
        evaluate.play(environment, agent, human, "average", episodes, SEED + episodes * (1 + index))
        rates[str(choice)] = episodes / (time.perf_counter() - start)
    report(len(choices), len(choices), "")
    return rates


if __name__ == "__main__":
    main()
