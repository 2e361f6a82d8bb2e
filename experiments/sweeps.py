"""Sweeps: experiments in several variants, each answering a question by one command.

    python experiments/sweeps.py --sweep=gain                    what carries the gain
    python experiments/sweeps.py --sweep=coverage --size=small   with fewer dialogues and steps
    python experiments/sweeps.py --sweep=data --seeds=5

A sweep trains what is missing, goes on where it was stopped, and ends with a table and a figure in
its folder. Each variant is a run of its own there, with its report.

gain       choosing by Q, advantage weights, bootstrapping, the credit of a token: what each adds
coverage   share of difficult humans among those who are imagined
personas   whom to imagine: balanced, evenly, as they come; and balanced, but weighted back
data       number of imagined dialogues
steps      length of the training
width      width of the network
methods    every method that learns from dialogues, in both worlds of the first two recipes
hindsight  rounds, what the controller knows, its errors; and as many dialogues without hindsight
critique   planted flaws in 0 to 50 % of the dialogues, with and without a critique
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import flags, launch, variants
from experiments.config import ConfigError
from experiments.files import write_atomically
from experiments.variants import Sweep, Variant
from ilql_jax.methods import METHODS
from ilql_jax.settings import Settings, setting

# A third of the data, fewer steps. A narrower network, or still fewer steps, learns no English.
SMALL: Mapping[str, Any] = {
    "imagination.dialogues": 8000,
    "train.steps": 2000,
    "evaluation.average_episodes": 100,
    "evaluation.difficult_episodes": 100,
    "evaluation.diagnosed_episodes": 0,
}
PLAIN = '("sampled", "sampled at 0.5", "greedy")'  # by the policy alone, no values asked


def gain(is_small: bool) -> Sweep:
    """ILQL without each of its parts, down to cloning."""
    ilql = {"methods": "ilql"}
    unweighted = ilql | {"method.ilql.awac_temperature": 0.0}
    # As the ILQL paper has it (docs/algorithms.md).
    by_token = ilql | {
        "method.ilql.credit": "token",
        "model.utterance_q": "last",
        "method.ilql.cql_weight": 0.1,
        "method.ilql.token_trace": 0.98,
        "decoding.ilql": '("greedy, steered by 10",)',
    }
    return Sweep(
        "gain",
        "What carries the gain of ILQL?",
        (
            Variant("ILQL", ilql),
            Variant("no choice by Q", ilql | {"decoding.ilql": PLAIN}, trained_as="ILQL"),
            Variant("no advantage weights", unweighted),
            Variant(
                "neither", unweighted | {"decoding.ilql": PLAIN}, trained_as="no advantage weights"
            ),
            Variant("no bootstrapping (MC)", {"methods": "mc"}),
            Variant("credit by token, steered", by_token),
            Variant("cloning (BC)", {"methods": "bc"}),
        ),
    )


def coverage(is_small: bool) -> Sweep:
    """Shares of difficult humans from none to most; 12 % come in teaching."""
    return _along(
        "coverage",
        "What does the share of difficult humans in the data do?",
        "share of difficult humans",
        "imagination.difficult_share",
        (0.4, 0.0, 0.12, 0.25, 0.6),
        settings={"imagination.personas": "balanced"},
    )


def personas(is_small: bool) -> Sweep:
    """Ways to choose whom to imagine; weights tell what is seen often from what counts much."""
    ilql, key = {"methods": "ilql"}, "imagination.personas"
    balanced = ilql | {key: "balanced"}
    return Sweep(
        "personas",
        "Whom to imagine?",
        (
            Variant("balanced", balanced),
            Variant("balanced, weighted back", balanced | {"data.importance_weights": True}),
            Variant("each as often", ilql | {key: "uniform"}),
            Variant("as they come", ilql | {key: "prior"}),
        ),
    )


def data(is_small: bool) -> Sweep:
    """Numbers of dialogues, factors of about three apart."""
    sizes = (8000, 1000, 2000, 4000) if is_small else (24_000, 1000, 3000, 9000, 100_000)
    return _along(
        "data",
        "How many dialogues does it take?",
        "imagined dialogues",
        "imagination.dialogues",
        sizes,
        methods="fbc,ilql",
        is_logarithmic=True,
    )


def steps(is_small: bool) -> Sweep:
    """Lengths of the training, with a schedule of its own each."""
    lengths = (2000, 500, 1000, 4000) if is_small else (3000, 750, 1500, 6000, 12_000)
    return _along(
        "steps",
        "How long must be trained?",
        "optimizer steps",
        "train.steps",
        lengths,
        methods="fbc,ilql",
        is_logarithmic=True,
    )


def width(is_small: bool) -> Sweep:
    """Widths of the network, all its parts in proportion."""
    widths = (64, 16, 32) if is_small else (64, 16, 32, 128)
    return Sweep(
        "width",
        "How large a network does it take?",
        tuple(
            Variant(
                str(each),
                {
                    "methods": "fbc,ilql",
                    "model.hidden_size": each,
                    "model.mlp_size": 4 * each,
                    "model.value_inner_size": 2 * each,
                },
                at=each,
            )
            for each in widths
        ),
        axis="width of the network",
        is_logarithmic=True,
    )


def methods(is_small: bool) -> Sweep:
    """Everything in `METHODS` that learns from dialogues."""
    names = ",".join(name for name, each in METHODS.items() if each.learns_from == "dialogues")
    return Sweep(
        "methods",
        "Which method does best, where?",
        (
            Variant("teaching", {"methods": names}),
            Variant("travel", {"methods": names}, experiment="travel"),
        ),
    )


def hindsight(is_small: bool) -> Sweep:
    """Hindsight on persuasion, and without it as many dialogues of the behaviours."""
    one, dialogues = {"methods": "ilql_hindsight1"}, 3000
    # What two rounds find takes longer to learn than the experiment's 3,000 steps.
    settings = {} if is_small else {"train.steps": 6000}
    variants = {
        "one round": one,
        "two rounds": {"methods": "ilql_hindsight2"},
        "by what all replies tell": one | {"hindsight.belief": "finished"},
        "controller wrong at 20 %": one | {"hindsight.error_rate": 0.2},
        "controller wrong at 40 %": one | {"hindsight.error_rate": 0.4},
        # At most: each dialogue is put better at two turns, and so are those of the first round.
        "no hindsight, as many as one round": {
            "methods": "ilql",
            "imagination.dialogues": 3 * dialogues,
        },
        "no hindsight, as many as two rounds": {
            "methods": "ilql",
            "imagination.dialogues": 7 * dialogues,
        },
    }
    return Sweep(
        "hindsight",
        "What does hindsight add?",
        tuple(
            Variant(label, {"imagination.dialogues": dialogues} | each, experiment="persuasion")
            for label, each in variants.items()
        ),
        settings,
    )


def critique(is_small: bool) -> Sweep:
    """Shares of dialogues with a planted flaw, mended by a critique or not."""
    variants = [Variant("no flaws", {"methods": "ilql"})]
    for share in (0.1, 0.25, 0.5):
        flawed = {"methods": "ilql", "imagination.planted_flaws": share}
        variants += [
            Variant(f"{share:.0%} flawed", flawed),
            Variant(f"{share:.0%} flawed, critique", flawed | {"imagination.mend_flaws": True}),
        ]
    return Sweep("critique", "What does the critique step bring?", tuple(variants))


def _along(
    name: str,
    question: str,
    axis: str,
    key: str,
    values: tuple[float, ...],
    *,
    methods: str = "ilql",
    settings: Mapping[str, Any] | None = None,
    is_logarithmic: bool = False,
) -> Sweep:
    """A sweep of one setting; the first value is what the others are compared with."""
    return Sweep(
        name,
        question,
        tuple(
            Variant(f"{each:,}", {**(settings or {}), "methods": methods, key: each}, at=each)
            for each in values
        ),
        axis=axis,
        is_logarithmic=is_logarithmic,
    )


SWEEPS: Mapping[str, Callable[[bool], Sweep]] = {
    each.__name__: each
    for each in (gain, coverage, personas, data, steps, width, methods, hindsight, critique)
}


@dataclasses.dataclass(frozen=True)
class SweepConfig(Settings):
    """Choice of a sweep and its size."""

    sweep: str = setting("Name of the sweep.", choices=tuple(SWEEPS))
    size: str = setting(
        "full: the default run of the experiment; small: fewer dialogues and steps.",
        "full",
        choices=("full", "small"),
    )
    seeds: int = setting("Trainings of each method in each variant.", 3, least=1)
    seed: int = setting("Of the dialogues; training k has seed + k.", 0, least=0)
    workdir: str = setting("Folder; runs/sweeps/NAME or NAME-small if not given.", "")


def chosen(config: SweepConfig) -> Sweep:
    """The sweep that the settings say."""
    is_small = config.size == "small"
    sweep = SWEEPS[config.sweep](is_small)
    settings = {"seeds": config.seeds, "seed": config.seed, **(SMALL if is_small else {})}
    return dataclasses.replace(sweep, settings=settings | dict(sweep.settings))


def main() -> None:
    """Runs the sweep of the command line."""
    launch.program(__doc__, {"Sweep": SweepConfig}, _run, opens_runs=False)


def _run(arguments: list[str], console: Console) -> None:
    from experiments.report.figures import style
    from experiments.report.tables import print_table, to_markdown

    parsed, overrides = flags.parse((SweepConfig,), arguments)
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: variants set settings of runs themselves; flags here are as "
            "--seeds=3, see --help."
        )
    config = parsed[SweepConfig]
    sweep = chosen(config)
    small = "-small" if config.size == "small" else ""
    home = Path(config.workdir or f"runs/sweeps/{sweep.name}{small}")
    result = variants.run(sweep, home, console)
    result.write(home / f"{sweep.name}.json")
    tables = variants.tables(result)
    write_atomically(home / f"{sweep.name}.md", "\n\n".join(map(to_markdown, tables)) + "\n")
    write_atomically(home / f"{sweep.name}.png", style.to_png(variants.draw(result)))
    for table in tables:
        print_table(console, table)
    console.print(f"{home / sweep.name}.md, .json and .png have it, too.", highlight=False)


if __name__ == "__main__":
    main()
