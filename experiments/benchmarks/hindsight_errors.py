"""Gain of hindsight against the error rate of its controller.

python experiments/benchmarks/hindsight_errors.py --task=counseling
python experiments/benchmarks/hindsight_errors.py --task=persuasion --rates=0,0.2,0.4,0.6 \\
    --config.seeds=3

In an embedded world, where the controller's error rate can be set. The original dialogues, and what
is learned from them alone, are made once (`<workdir>/originals`); each rate has one round of
hindsight on them in a run folder of its own (`<workdir>/error-0.2`). Ends with `errors.png`,
`errors.md` and `errors.json`. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import command_line, launch
from experiments.checks import checked
from experiments.config import ConfigError
from experiments.files import write_atomically
from experiments.run_folder import RunFolder
from imagination.simulation import normalized_score

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
ON_ORIGINALS = ("fbc", "ilql")
LOOKING_BACK = "ilql_hindsight1"
TASKS = ("counseling", "persuasion", "teaching", "travel")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="--config.* as with the task itself; see its --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--rates", type=_rates, default=RATES, help="rates with commas between")
    parser.add_argument("--workdir", help="runs/<task>-errors if not given")
    given, rest = parser.parse_known_args()
    home = Path(given.workdir or f"runs/{given.task}-errors")
    with launch.told_errors() as console:
        run(given.task, given.rates, home, read_config(given.task, rest), console)


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(float(part) for part in text.split(","))
    if not all(0 <= rate <= 1 for rate in rates) or len(set(rates)) < len(rates):
        raise argparse.ArgumentTypeError(f"{text!r}: different numbers from 0 to 1")
    return rates


def read_config(task: str, arguments: Sequence[str]) -> ConfigDict:
    """The task's settings, changed by `--config.*`.

    Raises:
        ConfigError: Another flag, or a setting that is not free here.
    """
    config = importlib.import_module(f"experiments.{task}").get_config()
    for argument in arguments:
        if not argument.startswith("--config."):
            raise ConfigError(f"unexpected argument {argument!r}; see --help.")
    line = command_line.parse(task, config, [sys.argv[0], *arguments])
    for key in ("methods", "hindsight.error_rate", "hindsight.engine", "data.source"):
        if key in line.overrides:
            raise ConfigError(f"config.{key} is what this experiment sets itself.")
    return line.config


def run(
    task: str, rates: Sequence[float], home: Path, config: ConfigDict, console: Console
) -> None:
    """All runs, as far as they are not done, and what they come to."""
    originals = RunFolder(home / "originals")
    _run(task, config, originals, {"methods": ON_ORIGINALS}, console)
    folders = {}
    for rate in rates:
        console.print(f"\nThe controller is wrong {100 * rate:g} % of the time:", style="bold")
        folders[rate] = RunFolder(home / f"error-{rate:g}")
        _share(originals, folders[rate])
        changes = {"methods": (LOOKING_BACK,), "hindsight.error_rate": rate}
        _run(task, config, folders[rate], changes, console)
    found = collect(originals, folders, config.seed)
    write_atomically(home / "errors.json", json.dumps([dataclasses.asdict(p) for p in found]))
    write_atomically(home / "errors.md", markdown(found))
    from experiments.report import figures

    (home / "errors.png").write_bytes(figures.to_png(draw(found, originals)))
    console.print(f"\n{markdown(found)}\nFigure: {home / 'errors.png'}", highlight=False)


def _run(
    task: str, config: ConfigDict, folder: RunFolder, changes: Mapping[str, Any], console: Console
) -> None:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    folder.check_experiment(task)
    launch.run_stages(task, config, checked(config), folder, "evaluate", console)


def _share(originals: RunFolder, folder: RunFolder) -> None:
    """The same dialogues in another folder, and the world's exact values; the dialogues last."""
    for name in ("stages/imagine.json", "evaluation/references.json", "dialogues.jsonl"):
        target = folder.path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            shutil.copyfile(originals.path / name, partial)
            partial.replace(target)


# --- what they come to --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    """ILQL after a round of hindsight with a controller of this error rate.

    Attributes:
        population: Population of the humans it talked with.
        error_rate: Error rate of the controller.
        score: Normalized, with its interval.
        gain: Its score minus that of ILQL on the originals, with the same humans.
    """

    population: str
    error_rate: float
    score: tuple[float, float, float]
    gain: tuple[float, float, float]


def collect(originals: RunFolder, folders: Mapping[float, RunFolder], seed: int) -> list[Point]:
    """The scores of all runs; intervals are over trainings and episodes."""
    from experiments.evaluation.statistics import bootstrap_mean

    points = []
    for population, references in json.loads(originals.references.read_text()).items():
        base = normalized_score(_rewards(originals, "ilql", population), references)
        for rate, folder in folders.items():
            scores = normalized_score(_rewards(folder, LOOKING_BACK, population), references)
            score = bootstrap_mean(scores, seed=seed)
            gain = bootstrap_mean(scores - base, seed=seed)
            points.append(Point(population, rate, tuple(score), tuple(gain)))
    return points


def _rewards(folder: RunFolder, method: str, population: str) -> np.ndarray:
    """[seeds, episodes]"""
    by_seed: dict[int, list[float]] = {}
    for line in folder.conversations.read_text("utf-8").splitlines():
        record = json.loads(line)
        source = record["source"]
        if (source["method"], source["population"]) == (method, population):
            by_seed.setdefault(source["seed"], []).append(record["reward"])
    return np.array([by_seed[seed] for seed in sorted(by_seed)])


def markdown(points: Sequence[Point]) -> str:
    """A table of all points."""
    lines = [
        "| population | error rate | normalized score | gain over ILQL |",
        "|---|---:|---:|---:|",
    ]
    for each in points:
        cells = (
            each.population,
            f"{100 * each.error_rate:g} %",
            *map(_shown, (each.score, each.gain)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(interval: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval)


def draw(points: Sequence[Point], originals: RunFolder):
    """Score against error rate, a panel for each population; what needs no hindsight as lines."""
    from experiments.evaluation.summary import Evaluation
    from experiments.looks import look_of
    from experiments.report.figures import style

    populations = Evaluation.read(originals.evaluation).population
    with style.styled():
        panels = style.WIDE.panels(len(populations), len(populations), 3.6, margin=0, sharey=True)
        for axis, (name, population) in zip(panels.all, populations.items(), strict=True):
            own = sorted((p for p in points if p.population == name), key=lambda p: p.error_rate)
            x = [100 * point.error_rate for point in own]
            y, low, high = np.array([point.score for point in own]).T
            look = look_of(LOOKING_BACK)
            axis.fill_between(x, low, high, color=look.color, alpha=0.2, lw=0)
            axis.plot(x, y, marker="o", ms=5, lw=1.8, color=look.color, label=look.title)
            for method in ON_ORIGINALS:
                scores = population.methods[method]
                look = scores.look
                axis.axhline(scores.normalized, color=look.color, ls=(0, (4, 2)), label=look.title)
            axis.set_title(f"{name} population")
            axis.set_xlabel("wrong proposals of the controller (%)")
        panels.all[0].set_ylabel("normalized score")
        handles, labels = panels.all[0].get_legend_handles_labels()
        panels.figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return panels.figure


if __name__ == "__main__":
    main()
