"""Reads what the stages before the report left in a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.evaluation.diagnosis import Diagnosis
from experiments.evaluation.returns import Discount, returns_by_turn
from experiments.evaluation.summary import Evaluation, Heldout, UnitResult
from experiments.hindsight_records import Hindsight, read_hindsight
from experiments.looks import Look, look_of, ordered
from experiments.metrics import read_log
from experiments.networks import load_tokenizer
from experiments.provenance import Session, read_sessions
from experiments.run_folder import RunFolder, Unit
from imagination.dialogue import Dialogue, read_dialogues


@dataclasses.dataclass(frozen=True)
class HeldRound:
    """Conversations of a round of imagination, over the trainings of a method.

    Attributes:
        method: Learns from them.
        agent: Took part in them.
        rewards: Rewards of those that were rated.
        calls: Mean number of calls a conversation of the LLM that played the humans; None where
            none did.
        cost: Mean dollars of these; None where no prices are set, too.
    """

    method: str
    agent: str
    rewards: Sequence[float]
    calls: float | None = None
    cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """Facts of a method's training that its numbers are read by.

    Attributes:
        discount: That of its values; None where it learns none.
        steps_before: Optimizer steps of the trainings that its own goes on from.
    """

    discount: Discount | None = None
    steps_before: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """Content of a run's folder; empty or None where a file is not there.

    Attributes:
        evaluation: Results in conversation.
        heldout: Results on dialogues that were set apart.
        conversations: Conversations of the evaluation.
        dialogues: Training data.
        metrics: (method, seed) -> records of the training's log.
        config: Text of config.yaml.
        hindsight: Rounds of hindsight.
        sessions: By which command, code and machine the stages were made.
        diagnosis: Losses from the optimum, where they were looked for.
        held: Rounds of imagination.
        trained: Facts of the training of methods, by name.
        choices: Method -> choices of a decoding, one of each training.
        returns: Id of a conversation -> return from each of the agent's turns on, discounted as the
            values are; of methods whose discount is known.
    """

    evaluation: Evaluation | None
    heldout: Heldout | None
    conversations: Sequence[Dialogue]
    dialogues: Sequence[Dialogue]
    metrics: Mapping[tuple[str, int], Sequence[Mapping[str, float]]]
    config: str
    hindsight: Hindsight | None = None
    sessions: Sequence[Session] = ()
    diagnosis: Diagnosis | None = None
    held: Sequence[HeldRound] = ()
    trained: Mapping[str, Trained] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Sequence[UnitResult]] = dataclasses.field(default_factory=dict)
    returns: Mapping[str, Float[np.ndarray, " turns"]] = dataclasses.field(default_factory=dict)

    @property
    def discounts(self) -> dict[str, Discount]:
        """Method that has conversations -> discount of its values, where it is known."""
        trained = {
            name: self.trained.get(name, Trained()) for name in by_method(self.conversations)
        }
        return {name: each.discount for name, each in trained.items() if each.discount}

    @property
    def steps_before(self) -> dict[str, int]:
        """Method -> steps of the trainings that its own goes on from, where they are known."""
        return {name: each.steps_before for name, each in self.trained.items()}

    @property
    def task(self) -> str:
        return (self.evaluation or self.heldout).task

    @property
    def looks(self) -> dict[str, Look]:
        """Look of each method that appears anywhere: as evaluated, else by its name."""
        names = {method for method, _ in self.metrics}
        names |= {dialogue.source["method"] for dialogue in self.conversations}
        looks = {name: look_of(name) for name in sorted(names)}
        if self.heldout is not None:
            looks |= {name: each.look for name, each in self.heldout.methods.items()}
        if self.evaluation is not None:
            for population in self.evaluation.population.values():
                looks |= {name: each.look for name, each in population.methods.items()}
        return looks


def read_run(path: Path, trained: Mapping[str, Trained] | None = None) -> Run:
    """Reads the files of a run's folder.

    Args:
        path: The folder.
        trained: Facts of the training of methods, by name. Values of a method whose discount is not
            among them are not held against what came of its conversations.

    Raises:
        FileNotFoundError: The run has no results yet; the message says which stage to run.
        ResultsError: A damaged or foreign file of results.
        DialogueError: A damaged file of dialogues.
    """
    folder = RunFolder(path)
    if not folder.evaluation.exists() and not folder.heldout.exists():
        raise FileNotFoundError(
            f"{path}: no evaluation.json and no heldout.json, so there is nothing to report. "
            f"Run the evaluation first: --stage=evaluate --workdir={path}"
        )
    dialogues, conversations = _dialogues(folder.dialogues), _dialogues(folder.conversations)
    config, trained = folder.config_file, trained or {}
    evaluation = Evaluation.read(folder.evaluation) if folder.evaluation.exists() else None
    return Run(
        evaluation=evaluation,
        heldout=Heldout.read(folder.heldout) if folder.heldout.exists() else None,
        conversations=conversations,
        dialogues=dialogues,
        metrics=_metrics(path / "metrics"),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        hindsight=read_hindsight(path, dialogues),
        sessions=read_sessions(folder.sessions),
        diagnosis=Diagnosis.read(folder.diagnosis) if folder.diagnosis.exists() else None,
        held=_held_rounds(path / "imagination"),
        trained=trained,
        choices={} if evaluation is None else _choices(folder, evaluation),
        returns=_returns(folder, conversations, trained),
    )


def by_method(
    conversations: Iterable[Dialogue], population: str | None = None
) -> dict[str, list[Dialogue]]:
    """Rated conversations of each method, of one population or (None) of all."""
    groups: dict[str, list[Dialogue]] = {}
    for dialogue in conversations:
        source = dialogue.source
        if dialogue.reward is not None and population in (None, source["population"]):
            groups.setdefault(source["method"], []).append(dialogue)
    return {name: groups[name] for name in ordered(groups)}


def _returns(
    folder: RunFolder, conversations: Sequence[Dialogue], trained: Mapping[str, Trained]
) -> dict[str, Float[np.ndarray, " turns"]]:
    """Id of a conversation -> returns; without those of tokens where the tokenizer is gone."""
    found: dict[str, Float[np.ndarray, " turns"]] = {}
    for method, own in by_method(conversations).items():
        discount = trained.get(method, Trained()).discount
        if discount and (folder.tokenizer.exists() or not discount.by_token):
            tokenizer = load_tokenizer(folder) if discount.by_token else None
            each = returns_by_turn(own, discount, tokenizer)
            found |= {d.id: returns for d, returns in zip(own, each, strict=True)}
    return found


def _choices(folder: RunFolder, evaluation: Evaluation) -> dict[str, list[UnitResult]]:
    """Evaluated method -> results of the trainings whose decoding was chosen among several."""
    found: dict[str, list[UnitResult]] = {}
    evaluated = {name for each in evaluation.population.values() for name in each.methods}
    for path in sorted((folder.path / "evaluation").glob("*.json")):
        unit = Unit.parse(path.stem)
        if unit and unit.method in evaluated and (result := UnitResult.read(path)).validation:
            found.setdefault(unit.method, []).append(result)
    return found


def _held_rounds(folder: Path) -> list[HeldRound]:
    """The rounds of imagination, from `<method>-seed<k>.jsonl`."""
    dialogues: dict[str, list[Dialogue]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if unit := Unit.parse(path.stem):
            dialogues.setdefault(unit.method, []).extend(read_dialogues(path))
    return [
        HeldRound(
            method,
            str(next((d.source.get("method") for d in held), "")),
            [d.total_reward for d in held if d.reward is not None],
            _mean_of("human_calls", held),
            _mean_of("human_cost", held),
        )
        for method, held in dialogues.items()
    ]


def _mean_of(field: str, dialogues: Sequence[Dialogue]) -> float | None:
    """Mean of a number that the sources of dialogues have; None where one has none."""
    values = [dialogue.source.get(field) for dialogue in dialogues]
    return None if not values or None in values else sum(values) / len(values)


def _dialogues(path: Path) -> list[Dialogue]:
    return read_dialogues(path) if path.exists() else []


def _metrics(folder: Path) -> dict[tuple[str, int], list[Mapping[str, float]]]:
    """(method, seed) -> records, from `<method>-seed<k>.jsonl`."""
    logs = {Unit.parse(path.stem): path for path in sorted(folder.glob("*.jsonl"))}
    return {(unit.method, unit.seed): read_log(path) for unit, path in logs.items() if unit}
