"""LLMs in the evaluation: prompted agents as baselines, and humans who are played by one.

All calls go through one client in one process: a limit on calls and on cost holds for the whole
stage, and every answer is in `<run folder>/llm` before it is used. The speakers themselves are in
`imagination/agents`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.build import Evaluation, Experiment
from experiments.evaluation.environment import Environment
from experiments.evaluation.summary import HumanPlayer, PlayedHuman, PromptedAgent, UnitResult
from experiments.run_folder import RunError, RunFolder, Unit
from imagination.agents import SLIPS, PromptedHuman, run_async, spending
from imagination.dialogue import Dialogue
from imagination.llm.routing import RoutedClient
from imagination.llm.watching import WatchedClient
from imagination.simulation import SimulatedHuman
from imagination.speakers import Human

PLAYER = "player"  # purpose of the LLM that plays the humans


def prompted_units(experiment: Experiment) -> list[Unit]:
    """Prompted agents of the settings; nothing is trained, so there is one unit of each."""
    return [Unit(name, 0) for name in experiment.evaluation.config.prompted]


def is_prompted(experiment: Experiment, unit: Unit) -> bool:
    """True for a prompted agent, false for a trained network."""
    return unit.method in experiment.evaluation.config.prompted


def agent_settings(experiment: Experiment, agent: str) -> dict[str, Any]:
    """Settings of a prompted agent, beside client and task."""
    evaluation, speech = experiment.evaluation, {"speech": experiment.speech}
    if agent != "gdp_zero":
        return speech
    return {**speech, **vars(evaluation.search), "acts": evaluation.acts}


def has_prices(evaluation: Evaluation) -> bool:
    """True if the cost of the LLM's answers is known."""
    llm = evaluation.llm
    return llm is not None and llm.is_priced


@contextlib.contextmanager
def open_client(experiment: Experiment, folder: RunFolder) -> Iterator[RoutedClient]:
    """Opens the run's client; in the end, calls in flight are awaited and stored."""
    evaluation = experiment.evaluation
    models = {PLAYER: evaluation.player} if evaluation.player else {}
    client = RoutedClient(evaluation.llm, folder.answers(experiment.answers), models)
    try:
        yield client
    finally:
        run_async(client.close())


def human_for(experiment: Experiment, environment: Environment, progress: Progress) -> Human:
    """Makes the human that agents talk with."""
    if experiment.evaluation.config.human == "prompted":
        guidance = experiment.evaluation.config.human_guidance
        client = progress.watched(PLAYER)
        return PromptedHuman(client, environment.task, guidance, experiment.speech)
    return SimulatedHuman(environment.world)


def player_of(human: Human) -> HumanPlayer | None:
    """The LLM that plays the human; None for the human of an embedded world."""
    return HumanPlayer(**human.model_and_version) if isinstance(human, PromptedHuman) else None


# --- results ------------------------------------------------------------------------------------


def common_human(results: Mapping[Unit, UnitResult]) -> HumanPlayer | None:
    """The LLM that played the humans of all units; None for those of an embedded world.

    Raises:
        RunError: Not the same for all units, since a prompt changed in between.
    """
    units: dict[HumanPlayer | None, list[str]] = {}
    for unit, result in results.items():
        units.setdefault(result.human, []).append(unit.name)
    if len(units) > 1:
        groups = "; ".join(
            f"{', '.join(names)}: {_described(human)}" for human, names in units.items()
        )
        raise RunError(
            f"agents talked with different humans, so their scores cannot be compared ({groups}). "
            "Delete evaluation/<name>.json of those that should be judged again."
        )
    return next(iter(units))


def _described(human: HumanPlayer | None) -> str:
    if human is None:
        return "the embedded world's"
    return ", ".join(f"{name} {value!r}" for name, value in dataclasses.asdict(human).items())


def agent_scores(
    result: UnitResult, dialogues: Sequence[Dialogue], has_prices: bool
) -> PromptedAgent:
    """Calls and cost of a prompted agent in these conversations."""
    calls, cost = _spent_by("agent", dialogues)
    return PromptedAgent(
        model=result.agent.model,
        prompt=result.agent.prompt,
        calls=calls,
        cost=cost if has_prices else None,
        setup_calls=result.setup_calls,
        setup_cost=result.setup_cost if has_prices else None,
        search=result.agent.search,
    )


def human_scores(dialogues: Sequence[Dialogue], has_prices: bool) -> PlayedHuman:
    """Calls, cost and slips of the played humans in these conversations."""
    calls, cost = _spent_by("human", dialogues)
    return PlayedHuman(calls, cost if has_prices else None, slips_in(dialogues))


def _spent_by(speaker: str, dialogues: Sequence[Dialogue]) -> tuple[float, float]:
    """Mean calls and dollars of a conversation."""
    spent = [spending(dialogue) for dialogue in dialogues]
    calls, cost = (
        float(np.mean([each[f"{speaker}_{unit}"] for each in spent])) for unit in ("calls", "cost")
    )
    return calls, cost


def slips_in(dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """Kind of slip of a played human -> how often."""
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        for turn in dialogue.turns:
            counts.update(turn.annotations.get("slips", {}))
    return {kind: counts[kind] for kind in SLIPS}


# --- progress -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Progress:
    """Counts the finished conversations of a unit and shows them.

    Attributes:
        report: Moves the unit's bar.
        total: Conversations in all.
        client: LLM client whose calls and cost are shown; None without LLM.
    """

    report: Callable[[int, int | None, str], None]
    total: int
    client: RoutedClient | None = None
    done: int = 0
    note: str = ""

    def watched(self, purpose: str = "") -> WatchedClient:
        """The client of a purpose, with the bar's note kept up to date."""
        return WatchedClient(self.client.of(purpose), lambda *_: self.show())

    def begin(self, note: str) -> None:
        self.note = note
        self.show()

    def advance(self, finished: int) -> None:
        self.done += finished
        self.show()

    def show(self) -> None:
        spent = f"{self.client.meter.line()} | " if self.client else ""
        self.report(self.done, self.total, f"{spent}{self.note}")
