"""Methods side by side in an environment of tokens: trainings, evaluation, table and figure.

For environments that are no dialogue (`maze.py`). Every method learns from the same episodes, once
for each seed, with `ilql_jax.fit`; its decoding is chosen on episodes of its own; then all play the
same episodes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from experiments import flags, launch, provenance
from experiments.config import ConfigError
from experiments.evaluation.statistics import Interval, bootstrap_mean, pairwise_tests
from experiments.evaluation.summary import Comparison
from experiments.files import DAMAGE, read_json_object, write_atomically
from experiments.looks import Look, look_of
from experiments.methods import file_digest, is_file
from experiments.provenance import Session
from experiments.report import wording
from experiments.run_folder import RunError
from ilql_jax import METHODS, Policy, TrainConfig, Trajectory, fit
from ilql_jax.environment import Environment, ScriptedPlayer, evaluate, rollout
from ilql_jax.fitting import decodings_tried, small_network
from ilql_jax.methods import DialogueConfig, Method, MethodError, load_method
from ilql_jax.settings import SettingError, Settings, setting
from imagination.simulation import normalized_score

VALIDATION_EPISODES, VALIDATION_SEED, TEST_SEED = 64, 10**6, 2 * 10**6
INTERRUPTED = "sessions.jsonl"  # of trainings that went on later


@dataclasses.dataclass(frozen=True)
class EnvironmentTask:
    """An environment, what was played in it, and the scale of its returns.

    Attributes:
        name: Name of folders and files.
        title: In tables and figures.
        make_environment: Makes one.
        data: `data(episodes, seed)` gives the episodes that are learned from.
        words: The vocabulary.
        stop_token: Ends every action.
        max_turns: Actions after which an episode is cut off.
        behaviour: Expected return of the data's players; the score 0.
        optimum: Expected return of the best policy; the score 1.
        others: Further expected returns that are shown beside the methods.
    """

    name: str
    title: str
    make_environment: Callable[[], Environment]
    data: Callable[[int, int], list[Trajectory]]
    words: Sequence[str]
    stop_token: int
    max_turns: int
    behaviour: float
    optimum: float
    others: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def score(self, returns: Float[np.ndarray, "*shape"] | float) -> Any:
        """Normalized score of returns."""
        return normalized_score(returns, {"behaviour": self.behaviour, "optimum": self.optimum})


def episodes_of(
    players: Sequence[tuple[ScriptedPlayer, int]],
    make_environment: Callable[[], Environment],
    seed: int,
    max_turns: int,
) -> list[Trajectory]:
    """Episodes of several players, to learn from.

    Args:
        players: Each with the number of its episodes.
        make_environment: Makes one.
        seed: Seed of all of it; each player has episodes of its own.
        max_turns: Actions after which an episode is cut off.
    """
    found: list[Trajectory] = []
    for number, (player, count) in enumerate(players):
        seeds = np.random.SeedSequence([seed, number]).generate_state(count).tolist()
        found += rollout(player, make_environment, seeds, max_turns=max_turns, progress=False)
    return found


_LEARN_FROM_EPISODES = tuple(
    name for name, method in METHODS.items() if method.learns_from == "dialogues"
)


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig(Settings):
    """Settings of such an experiment."""

    workdir: str = setting("Folder; runs/NAME if not given.", "")
    methods: tuple[str, ...] = setting(
        f"Methods that are trained, with commas between: {', '.join(_LEARN_FROM_EPISODES)}, or a "
        ".py file that defines METHOD.",
        ("bc", "fbc", "mc", "ilql"),
    )
    seeds: int = setting("Trainings of each method.", 5, least=1)
    seed: int = setting("Seed of the data; training k has seed + k.", 0, least=0)
    episodes: int = setting("Episodes that are learned from.", 1000, least=10)
    test_episodes: int = setting("Episodes that each trained agent plays.", 200, least=2)
    steps: int = setting("Optimizer steps of a training.", 1200, least=1)
    batch_rows: int = setting("Rows of a batch.", 12, least=1)
    hidden_size: int = setting("Width of the network.", 32, least=8)
    num_heads: int = setting("Attention heads of the network.", 2, least=1)
    max_positions: int = setting("Longest context, in tokens.", 32, least=8)
    expectile: float = setting(
        "Expectile of V, of methods that have this setting.", 0.9, above=0, below=1
    )
    polyak_rate: float = setting(
        "Share of the new parameters in the target network, a step.", 0.05, above=0, most=1
    )
    observation_loss_weight: float = setting(
        "Weight of the loss of predicting what is observed, against the policy's, of methods that "
        "have this setting.",
        1.0,
        least=0,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise SettingError("methods", self.methods, "must name one or more, each once")
        for name in self.methods:
            if not is_file(name) and name not in _LEARN_FROM_EPISODES:
                known = f"{', '.join(_LEARN_FROM_EPISODES)}, or a .py file that defines METHOD"
                raise SettingError("methods", self.methods, f"must be of {known}")

    def loaded(self) -> dict[str, Method]:
        """The methods by name, in order, those of files loaded and all with these settings.

        Raises:
            MethodError: A file cannot be used, or its method learns from no episodes.
        """
        found: dict[str, Method] = {}
        for entry in self.methods:
            method = load_method(entry, taken=found) if is_file(entry) else METHODS[entry]
            if method.learns_from != "dialogues":
                raise MethodError(
                    f"--methods: {entry} learns from {method.learns_from}, which an "
                    "environment does not have. Leave it out."
                )
            has_expectile = any(f.name == "expectile" for f in dataclasses.fields(method.config))
            found[method.name] = (
                method.configured(expectile=self.expectile) if has_expectile else method
            )
        return found


@dataclasses.dataclass(frozen=True)
class Result:
    """Returns of a method's trained agents.

    Attributes:
        method: Name.
        decodings: As chosen, one a training.
        returns: [seeds][episodes], undiscounted.
        sessions: In which they were trained; of trainings of before that was kept, none.
    """

    method: str
    decodings: list[str]
    returns: list[list[float]]
    sessions: Sequence[Session] = ()


def main(
    task: EnvironmentTask, about: str, settings: type[EnvironmentConfig] = EnvironmentConfig
) -> None:
    """Runs the experiment with the settings of the command line.

    Args:
        task: Environment that is played.
        about: Text above the help.
        settings: Settings with defaults that fit the environment.
    """

    def with_arguments(arguments: list[str], console: Console) -> None:
        parsed, overrides = flags.parse((settings,), arguments)
        if overrides:
            raise ConfigError(f"{overrides[0]}: settings here are flags, as --seeds=3; see --help.")
        config = parsed[settings]
        run(task, config, Path(config.workdir or f"runs/{task.name}"), console)

    launch.program(about, {task.title: settings}, with_arguments, opens_runs=False)


def run(task: EnvironmentTask, config: EnvironmentConfig, home: Path, console: Console) -> None:
    """All trainings and evaluations, as far as they are not done, and what they come to.

    Raises:
        RunError: The folder was made with other settings.
        MethodError: A method's file cannot be used.
    """
    methods = config.loaded()
    entries = zip(methods, config.methods, strict=True)
    files = {name: file_digest(entry) for name, entry in entries if is_file(entry)}
    _bind(home, task, config, files)
    data = task.data(config.episodes, config.seed)
    mean = np.mean([episode.total_reward for episode in data])
    console.print(f"{len(data):,} episodes to learn from, with a return of {mean:.1f} on average")
    results = [_result(task, config, each, data, home, console) for each in methods.values()]
    found = summary(task, results, config.seed, methods)
    write_atomically(home / f"{task.name}.json", json.dumps(found, indent=1))
    write_atomically(home / f"{task.name}.md", markdown(found))
    from experiments.report.figures import style

    write_atomically(home / f"{task.name}.png", style.to_png(draw(found)))
    console.print(table(found))
    console.print(made_with(found), style="dim", markup=False, highlight=False)
    console.print(f"{home / task.name}.md, .json and .png have it, too.", highlight=False)


def _bind(
    home: Path, task: EnvironmentTask, config: EnvironmentConfig, files: Mapping[str, str]
) -> None:
    """Keeps the settings; those of trainings that are there must not change.

    Args:
        home: Folder of the run.
        task: Environment that is played.
        config: The settings.
        files: Name of a method of one's own -> fingerprint of its file.
    """
    path = home / "config.json"
    own = dataclasses.asdict(config) | {"task": task.name}
    del own["workdir"]
    free = ("methods", "seeds")  # more of them may be added
    if path.exists():
        try:
            before = read_json_object(path)
        except DAMAGE:
            raise RunError(
                f"{path} is damaged. Delete {home}, or give another --workdir."
            ) from None
        for name, value in own.items():
            if name not in free and before.get(name) != value:
                raise RunError(
                    f"{home}: --{name} was {before.get(name)!r}, now {value!r}. Give another "
                    "--workdir, or the same settings."
                )
        known = before.get("files", {})
        for name, digest in files.items():
            if known.get(name, digest) != digest and any(home.glob(f"{name}-seed*")):
                raise RunError(
                    f"{home}: the file of the method {name} was edited, or is another. Give "
                    f"another --workdir, or delete {name}-seed* there."
                )
        files = {**known, **files}
    write_atomically(path, json.dumps({**own, "files": files}, indent=1))


def _result(
    task: EnvironmentTask,
    config: EnvironmentConfig,
    method: Method,
    data: list[Trajectory],
    home: Path,
    console: Console,
) -> Result:
    name, decodings, returns, sessions = method.name, [], [], []
    for seed in range(config.seeds):
        path = home / f"{name}-seed{seed}.json"
        found = _read(path, config.test_episodes)
        if found is None:
            console.print(f"{method.title}, training {seed + 1} of {config.seeds}")
            start = time.monotonic()
            with provenance.recorded_if_interrupted(home / INTERRUPTED, name, sys.argv):
                found = _trained(task, config, method, data, seed, home / f"{name}-seed{seed}")
            made = provenance.session(name, sys.argv, time.monotonic() - start)
            found["session"] = dataclasses.asdict(made)
            write_atomically(path, json.dumps(found))
        decodings.append(found["decoding"])
        returns.append(found["returns"])
        sessions.append(provenance.from_json(found.get("session")))
    interrupted = [
        each for each in provenance.read_sessions(home / INTERRUPTED) if each.stage == name
    ]
    made = [*interrupted, *(each for each in sessions if each is not None)]
    return Result(name, decodings, returns, made)


def _read(path: Path, episodes: int) -> dict[str, Any] | None:
    """Result of a training; None where there is none, or a damaged one."""
    try:
        found = read_json_object(path)
        if len(found["returns"]) == episodes and np.isfinite(found["returns"]).all():
            kept = {"returns": list(found["returns"]), "session": found.get("session")}
            return {"decoding": str(found["decoding"]), **kept}
    except (FileNotFoundError, *DAMAGE):
        pass
    return None


def _trained(
    task: EnvironmentTask,
    config: EnvironmentConfig,
    method: Method,
    data: list[Trajectory],
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Trains, chooses the decoding on validation episodes, and plays the test's."""
    size = len(task.words)
    fit(
        trajectories=data,
        vocab_size=size,
        stop_token=task.stop_token,
        method=method,
        training=TrainConfig(steps=config.steps, polyak_rate=config.polyak_rate),
        network=small_network(
            size,
            config.max_positions,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
        ),
        observation_loss_weight=(
            config.observation_loss_weight if isinstance(method.config, DialogueConfig) else None
        ),
        context=config.max_positions // 3,
        batch_rows=config.batch_rows,
        seed=config.seed + seed,
        folder=folder,
    )
    texts = dict.fromkeys([*method.decodings, *map(str, decodings_tried(method))])
    players = {text: Policy.load(folder, decoding=text, steer=method.steer) for text in texts}
    validated = {
        text: _play(task, player, VALIDATION_EPISODES, VALIDATION_SEED).mean()
        for text, player in players.items()
    }
    best = max(validated, key=validated.__getitem__)
    returns = _play(task, players[best], config.test_episodes, TEST_SEED)
    return {"decoding": best, "returns": returns.tolist()}


def _play(task: EnvironmentTask, player: Policy, episodes: int, seed: int) -> np.ndarray:
    return evaluate(
        player,
        task.make_environment,
        episodes=episodes,
        seed=seed,
        max_turns=task.max_turns,
        progress=False,
    ).returns


# --- what they come to --------------------------------------------------------------------------


def summary(
    task: EnvironmentTask,
    results: Sequence[Result],
    seed: int,
    methods: Mapping[str, Method] = METHODS,
) -> dict[str, Any]:
    """Scores with intervals over trainings and episodes, references, tests of all pairs, sessions.

    Args:
        task: Environment that was played.
        results: Results of each method.
        seed: Seed of the bootstrap.
        methods: Name -> method, whose look is kept with its scores.
    """
    scores = {each.method: task.score(np.array(each.returns)) for each in results}
    return {
        "task": task.title,
        "behaviour": task.behaviour,
        "optimum": task.optimum,
        "others": {name: float(task.score(value)) for name, value in task.others.items()},
        "methods": {
            each.method: {
                "look": dataclasses.asdict(look_of(each.method, methods)),
                "score": list(map(float, bootstrap_mean(scores[each.method], seed))),
                "mean_return": float(np.mean(each.returns)),
                "trainings": task.score(np.mean(each.returns, axis=1)).tolist(),
                "decodings": each.decodings,
            }
            for each in results
        },
        "tests": pairwise_tests(scores, seed),
        "sessions": [dataclasses.asdict(made) for each in results for made in each.sessions],
    }


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Method, score, mean return and decodings; best first, references last."""
    methods = found["methods"]
    rows = []
    for name in sorted(methods, key=lambda name: -methods[name]["score"][0]):
        each = methods[name]
        rows.append(
            (
                each["look"]["title"],
                "{:.2f} [{:.2f}, {:.2f}]".format(*each["score"]),
                f"{each['mean_return']:.1f}",
                " / ".join(sorted(set(each["decodings"]))),
            )
        )
    rows += [(name, f"{score:.2f}", "", "exact") for name, score in found["others"].items()]
    rows.append(("optimum", "1.00", f"{found['optimum']:.1f}", "exact"))
    rows.append(("the data's players", "0.00", f"{found['behaviour']:.1f}", "exact"))
    return rows


_COLUMNS = ("method", "normalized score", "mean return", "decoding")


def table(found: Mapping[str, Any]) -> Table:
    """The results for the terminal."""
    made = Table(*_COLUMNS, title=found["task"], title_style="bold", caption=_tests(found))
    for row in _rows(found):
        made.add_row(*row)
    return made


def markdown(found: Mapping[str, Any]) -> str:
    """The results as a page."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(found)]
    return "\n".join([*lines, "", _tests(found), "", made_with(found)])


def made_with(found: Mapping[str, Any]) -> str:
    """Command, code, versions, machine and dates of the trainings."""
    return provenance.made_with([Session(**each) for each in found["sessions"]])


def _tests(found: Mapping[str, Any]) -> str:
    """The best method against each of the others, and over what intervals and p generalise."""
    methods = found["methods"]
    best = max(methods, key=lambda name: methods[name]["score"][0])
    tests = [Comparison(**each) for each in found["tests"]]
    said = wording.describe_method(best, tests, {n: m["look"]["title"] for n, m in methods.items()})
    if said:
        said += (
            " Differences are in normalized score; p_holm speaks of other episodes, with the "
            "agents as trained. "
        )
    if min(len(each["trainings"]) for each in methods.values()) > 1:
        return (
            f"{said}Intervals cover other episodes, and other trainings on the same data; "
            "p_training_holm speaks of such trainings."
        )
    return (
        f"{said}With one training of each, intervals cover other episodes alone, and nothing is "
        "said of new trainings."
    )


def draw(found: Mapping[str, Any]):
    """Each method's score with its interval, its trainings as points, references as lines."""
    from experiments.report.figures import style

    methods = sorted(found["methods"], key=lambda name: found["methods"][name]["score"][0])
    with style.styled():
        panels = style.WIDE.panels(1, 1, 1.2 + 0.45 * len(methods))
        (axis,) = panels.all
        for place, name in enumerate(methods):
            each = found["methods"][name]
            look = Look(**each["look"])
            score = Interval(*each["score"])
            axis.plot([score.low, score.high], [place, place], color=look.color, lw=2.4)
            axis.plot(score.mean, place, look.marker, color=look.color, ms=9)
            axis.plot(each["trainings"], [place] * len(each["trainings"]), "|", color=look.color)
        lines = {"optimum": 1.0, "the data's players": 0.0, **found["others"]}
        for name, score in lines.items():
            axis.axvline(score, color=style.MUTED, ls=(0, (4, 2)), lw=1, zorder=1)
            axis.annotate(
                name, (score, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", ha="center", color=style.MUTED, fontsize=8,
            )  # fmt: skip
        titles = [found["methods"][name]["look"]["title"] for name in methods]
        axis.set_yticks(range(len(methods)), titles)
        axis.set_ylim(-0.6, len(methods) - 0.4)
        axis.set_xlabel("normalized score (0 = the data's players, 1 = optimum)")
    return panels.figure
