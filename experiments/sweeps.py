"""Sweeps: experiments in several variants, each answering a question by one command.

    python experiments/sweeps.py --sweep=gain                      what carries the gain
    python experiments/sweeps.py --sweep=coverage --size=small     with fewer dialogues and steps
    python experiments/sweeps.py --sweep=data --seeds=5
    python experiments/sweeps.py --sweep=steps --experiment=travel

A sweep trains what is missing, goes on where it was stopped, and ends with a table and a figure in
its folder. Each variant is a run of its own there, with its report.

gain       choosing by Q x advantage weights x bootstrapping, and what credit by token changes
coverage   share of difficult humans among those who are imagined
personas   whom to imagine: balanced, evenly, as they come; balanced, but weighted back (not there
           where hindsight is)
data       number of imagined dialogues
steps      length of the training
width      width of the network
methods    every method that learns from dialogues, in all four worlds or in one
hindsight  rounds, what the controller knows, its errors; and as many dialogues without hindsight
critique   planted flaws in 0 to 50 % of the dialogues, with and without a critique

In counseling and persuasion every method of these sweeps learns from a round of hindsight, too:
their data alone holds little to learn.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments import flags, launch, provenance, variants
from experiments.config import ConfigError
from experiments.files import write_atomically
from experiments.methods import entry_name
from experiments.provenance import Session
from experiments.variants import Sweep, Variant
from ilql_jax.methods import METHODS
from ilql_jax.settings import SettingError, Settings, setting

# Fewer steps, and as many dialogues at most. A narrower network, or still fewer steps, learns no
# English.
SMALL_STEPS, SMALL_DIALOGUES = 2000, 8000
SMALL_EVALUATION: Mapping[str, Any] = {
    "evaluation.average_episodes": 100,
    "evaluation.difficult_episodes": 100,
    "evaluation.diagnosed_episodes": 0,
}
PLAIN = '("sampled", "sampled at 0.5", "greedy")'  # by the policy alone, no values asked
BY_Q = '("sampled at 0.4, best of 8", "sampled at 0.6, best of 16")'
ALL = "all"
WITH_HINDSIGHT = ("counseling", "persuasion")
WORLDS = ("teaching", "travel", *WITH_HINDSIGHT)


@dataclasses.dataclass(frozen=True)
class Base:
    """The experiment that a sweep varies.

    Attributes:
        experiment: Its file, without its ending.
        dialogues: Number of dialogues, where it is not varied.
        steps: Steps of a training, where they are not varied.
        is_small: Smaller than the experiment by default.
    """

    experiment: str
    dialogues: int
    steps: int
    is_small: bool

    @classmethod
    def of(cls, experiment: str, is_small: bool) -> Base:
        """The experiment in one of the two sizes."""
        defaults = importlib.import_module(f"experiments.{experiment}").get_config()
        dialogues, steps = defaults.imagination.dialogues, defaults.train.steps
        if is_small:
            dialogues, steps = min(dialogues, SMALL_DIALOGUES), min(steps, SMALL_STEPS)
        return cls(experiment, dialogues, steps, is_small)

    def methods(self, names: str) -> dict[str, Any]:
        """Setting of methods, with commas between, that learn from all the experiment has."""
        rounds = int(self.experiment in WITH_HINDSIGHT)
        entries = (entry_name(name, "hindsight", rounds) for name in names.split(","))
        return {"methods": ",".join(entries)}

    def variant(self, label: str, settings: Mapping[str, Any], **fields: Any) -> Variant:
        """A variant of the experiment, in its size."""
        own = {"imagination.dialogues": self.dialogues, "train.steps": self.steps}
        size = own if self.is_small else {}
        return Variant(label, size | dict(settings), experiment=self.experiment, **fields)


def by_token() -> dict[str, Any]:
    """Settings of ILQL as its paper has it (docs/algorithms.md): five things at once."""
    return {
        "method.ilql.credit": "token",
        "model.utterance_q": "last",
        "method.ilql.cql_weight": 0.1,
        "method.ilql.token_trace": 0.98,
        "decoding.ilql": '("greedy, steered by 10",)',
    }


def gain(base: Base) -> Sweep:
    """Advantage weights, choice by Q and bootstrapping crossed; credit by token in steps."""
    ilql = base.methods("ilql")
    at_last_token = ilql | {"model.utterance_q": "last"}
    return Sweep(
        "gain",
        "What carries the gain of ILQL?",
        (
            *_crossed(
                base,
                "ilql",
                ("ILQL", "no choice by Q", "no advantage weights", "neither"),
            ),
            *_crossed(
                base,
                "mc",
                (
                    "no bootstrapping (MC)",
                    "MC, no choice by Q",
                    "MC, no advantage weights",
                    "MC, neither",
                ),
            ),
            base.variant("Q read at the last token", at_last_token),
            base.variant("credit by token", at_last_token | {"method.ilql.credit": "token"}),
            base.variant("credit by token, steered", ilql | by_token()),
            base.variant("cloning (BC)", base.methods("bc")),
        ),
    )


def _crossed(base: Base, name: str, labels: tuple[str, str, str, str]) -> tuple[Variant, ...]:
    """A method with and without choice by Q and advantage weights: both, one, the other, none."""
    weighted = base.methods(name) | {f"decoding.{name}": BY_Q}
    unweighted = weighted | {f"method.{name}.awac_temperature": 0.0}
    plain = {f"decoding.{name}": PLAIN}
    return (
        base.variant(labels[0], weighted),
        base.variant(labels[1], weighted | plain, trained_as=labels[0]),
        base.variant(labels[2], unweighted),
        base.variant(labels[3], unweighted | plain, trained_as=labels[2]),
    )


def coverage(base: Base) -> Sweep:
    """Shares of difficult humans from none to most; 12 % come in teaching, 20 % in travel."""
    return _along(
        base,
        "coverage",
        "What does the share of difficult humans in the data do?",
        "share of difficult humans",
        "imagination.difficult_share",
        (0.4, 0.0, 0.12, 0.25, 0.6),
        settings={"imagination.personas": "balanced"},
    )


def personas(base: Base) -> Sweep:
    """Ways to choose whom to imagine; weights tell what is seen often from what counts much."""
    ilql, key = base.methods("ilql"), "imagination.personas"
    balanced = ilql | {key: "balanced", "imagination.difficult_share": 0.4}
    back = "balanced, weighted back"
    variants = {
        "balanced": balanced,
        back: balanced | {"data.importance_weights": True},
        "each as often": ilql | {key: "uniform"},
        "as they come": ilql | {key: "prior"},
    }
    if base.experiment in WITH_HINDSIGHT:  # of whose dialogues nobody knows the probability
        del variants[back]
    made = tuple(base.variant(label, each) for label, each in variants.items())
    return Sweep("personas", "Whom to imagine?", made)


def data(base: Base) -> Sweep:
    """Numbers of dialogues, factors of two to four apart; that of the experiment first."""
    numbers = (1000, 2000, 4000) if base.is_small else (1000, 3000, 9000, 100_000)
    others = [each for each in numbers if each != base.dialogues and each <= 5 * base.dialogues]
    return _along(
        base,
        "data",
        "How many dialogues does it take?",
        "imagined dialogues",
        "imagination.dialogues",
        (base.dialogues, *others),
        methods="fbc,ilql",
        is_logarithmic=True,
    )


def steps(base: Base) -> Sweep:
    """Lengths of the training, factors of two apart, with a schedule of its own each."""
    factors = (1, 0.25, 0.5, 2) if base.is_small else (1, 0.25, 0.5, 2, 4)
    return _along(
        base,
        "steps",
        "How long must be trained?",
        "optimizer steps",
        "train.steps",
        tuple(int(factor * base.steps) for factor in factors),
        methods="fbc,ilql",
        is_logarithmic=True,
    )


def width(base: Base) -> Sweep:
    """Widths of the network, all its parts in proportion."""
    widths = (64, 16, 32) if base.is_small else (64, 16, 32, 128)
    return Sweep(
        "width",
        "How large a network does it take?",
        tuple(
            base.variant(
                str(each),
                base.methods("fbc,ilql")
                | {
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


def methods(*bases: Base) -> Sweep:
    """Everything in `METHODS`, hindsight where it is the experiment's, and ILQL by token."""
    names = [name for name, each in METHODS.items() if each.learns_from == "dialogues"]
    looking_back = ("ilql_hindsight1", "ilql_hindsight2", "dpo")
    variants = []
    for base in bases:
        more = looking_back if base.experiment in WITH_HINDSIGHT else ()
        variants += [
            base.variant(base.experiment, {"methods": ",".join((*names, *more))}),
            base.variant(f"{base.experiment} by token", base.methods("ilql") | by_token()),
        ]
    return Sweep("methods", "Which method does best, where?", tuple(variants), between_methods=True)


def hindsight(base: Base) -> Sweep:
    """Rounds of hindsight, and without it as many dialogues of the behaviours."""
    one, dialogues = {"methods": "ilql_hindsight1"}, 3000
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
            base.variant(label, {"imagination.dialogues": dialogues} | each)
            for label, each in variants.items()
        ),
    )


def critique(base: Base) -> Sweep:
    """Shares of dialogues with a planted flaw, mended by a critique or not."""
    ilql = base.methods("ilql")
    variants = [base.variant("no flaws", ilql)]
    for share in (0.1, 0.25, 0.5):
        flawed = ilql | {"imagination.planted_flaws": share}
        variants += [
            base.variant(f"{share:.0%} flawed", flawed),
            base.variant(
                f"{share:.0%} flawed, critique", flawed | {"imagination.mend_flaws": True}
            ),
        ]
    return Sweep("critique", "What does the critique step bring?", tuple(variants))


def _along(
    base: Base,
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
    shared = {**(settings or {}), **base.methods(methods)}
    return Sweep(
        name,
        question,
        tuple(base.variant(f"{each:,}", shared | {key: each}, at=each) for each in values),
        axis=axis,
        is_logarithmic=is_logarithmic,
    )


class Kind(NamedTuple):
    """A sweep of the command line.

    Attributes:
        make: Makes it for one experiment; that of methods for any number.
        experiments: Those in which it makes sense; the first is the default.
    """

    make: Callable[..., Sweep]
    experiments: tuple[str, ...] = WORLDS


SWEEPS: Mapping[str, Kind] = {
    "gain": Kind(gain),
    "coverage": Kind(coverage),
    "personas": Kind(personas),
    "data": Kind(data),
    "steps": Kind(steps),
    "width": Kind(width),
    "methods": Kind(methods, (ALL, *WORLDS)),
    "hindsight": Kind(hindsight, WITH_HINDSIGHT[::-1]),
    # Hindsight would put flawed dialogues better, too.
    "critique": Kind(critique, ("teaching", "travel")),
}


@dataclasses.dataclass(frozen=True)
class SweepConfig(Settings):
    """Choice of a sweep and its size."""

    sweep: str = setting("Name of the sweep.", choices=tuple(SWEEPS))
    experiment: str = setting(
        "Experiment that is varied: teaching, travel, counseling or persuasion. If not given: "
        "teaching; of the sweep hindsight persuasion; of methods all of them.",
        "",
    )
    size: str = setting(
        "full: the default run of the experiment; small: fewer dialogues and steps.",
        "full",
        choices=("full", "small"),
    )
    seeds: int = setting("Trainings of each method in each variant.", 3, least=1)
    seed: int = setting("Seed of the dialogues; training k has seed + k.", 0, least=0)
    workdir: str = setting(
        "Folder; runs/sweeps/NAME if not given, with -EXPERIMENT and -small where they are asked "
        "for.",
        "",
    )

    def __post_init__(self):
        super().__post_init__()
        known = SWEEPS[self.sweep].experiments
        if self.experiment and self.experiment not in known:
            raise SettingError(
                "experiment",
                self.experiment,
                f"must be {', '.join(known[:-1])} or {known[-1]} in the sweep {self.sweep}",
            )


def chosen(config: SweepConfig) -> Sweep:
    """The sweep that the settings say; it has the experiment in its name if not the default."""
    kind, is_small = SWEEPS[config.sweep], config.size == "small"
    default = kind.experiments[0]
    experiment = config.experiment or default
    names = WORLDS if experiment == ALL else (experiment,)
    sweep = kind.make(*(Base.of(name, is_small) for name in names))
    shared = {"seeds": config.seeds, "seed": config.seed, **(SMALL_EVALUATION if is_small else {})}
    sweep = dataclasses.replace(sweep, settings=shared | dict(sweep.settings))
    if experiment == default:
        return sweep
    question = f"{sweep.question.removesuffix('?')}, in {experiment}?"
    return dataclasses.replace(sweep, name=f"{sweep.name}-{experiment}", question=question)


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
    made_with = provenance.made_with(_under_one_command(result.sessions, arguments))
    page = "\n\n".join([*map(to_markdown, tables), made_with])
    write_atomically(home / f"{sweep.name}.md", f"{page.rstrip()}\n")
    write_atomically(home / f"{sweep.name}.png", style.to_png(variants.draw(result)))
    for table in tables:
        print_table(console, table)
    console.print(f"\n{made_with}", style="dim", markup=False, highlight=False)
    console.print(f"{home / sweep.name}.md, .json and .png have it, too.", highlight=False)


def _under_one_command(sessions: Sequence[Session], arguments: Sequence[str]) -> list[Session]:
    """The runs' sessions with the sweep's command; each run's own stands in its report."""
    command = provenance.command(arguments)
    return [dataclasses.replace(each, command=command) for each in sessions]


if __name__ == "__main__":
    main()
