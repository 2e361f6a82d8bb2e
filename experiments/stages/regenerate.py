"""Stage regenerate: finished dialogues looked back on, put better and replayed, round by round.

Only where a method learns from it. First the reward model is compared with the known outcomes of
the originals (`hindsight/calibration.json`): one that does not foretell them stops the run. Round
1 looks back on the originals that may be learned from, round n on the dialogues of round n - 1.
What came of each is in `hindsight/round<n>.jsonl`, what cannot be learned from in
`hindsight/rejected.jsonl`, the counts in `hindsight/card.md`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import hindsight_records, training_data
from experiments.build import Experiment, HindsightSettings
from experiments.files import DAMAGE, read_or_none, write_atomically
from experiments.run_folder import RunError, RunFolder, is_for_training
from experiments.tasks import load_task
from ilql_jax.progress import LiveNote, ProgressBars
from imagination.dialogue import Dialogue, read_dialogues
from imagination.hindsight import Hindsight, calibrate, regenerate
from imagination.llm.cost import Forecast
from imagination.simulation import load_world
from imagination.task import Task

CHUNK = 50  # dialogues that a world looks back on together; a killed run loses at most these
_ALL = 2**31


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Does the rounds that are not done yet.

    Raises:
        RunError: The reward model does not foretell the known outcomes, or nothing came of it.
    """
    rounds = range(1, experiment.rounds + 1)
    calibration = _calibration(folder, console)
    if calibration is not None:
        _check_agreement(experiment.hindsight, folder, calibration)
    if calibration is None or not all(folder.hindsight_round(number).exists() for number in rounds):
        folder.hindsight_card.unlink(missing_ok=True)  # it tells of all rounds
        _do_rounds(experiment, folder, rounds, calibration is not None, console)
    if not folder.hindsight_card.exists():
        found = hindsight_records.read_hindsight(folder.path, _to_look_back_on(folder))
        for each in found.rounds:
            console.print(hindsight_records.describe_round(each))
        write_atomically(folder.hindsight_card, hindsight_records.card(found))


def _do_rounds(
    experiment: Experiment,
    folder: RunFolder,
    rounds: Sequence[int],
    is_calibrated: bool,
    console: Console,
) -> None:
    """Makes what is missing: the comparison with known outcomes, then each round."""
    if experiment.hindsight.llm is not None:
        # What could not be learned from should be told before its hindsight is paid for.
        training_data.check_dialogues(experiment, folder, read_dialogues(folder.dialogues), console)
    parents = _to_look_back_on(folder)
    task = load_task(experiment, folder)
    with open_hindsight(experiment, folder, task) as hindsight:
        if not is_calibrated:
            found = _compare_with_outcomes(experiment, folder, parents, hindsight, console)
            _check_agreement(experiment.hindsight, folder, found)
        for number in rounds:
            if not folder.hindsight_round(number).exists():
                _do_round(experiment, folder, number, parents, task, hindsight, console)
            _journal(folder, number).unlink(missing_ok=True)
            parents = hindsight_records.read_round(folder, number)


def _to_look_back_on(folder: RunFolder) -> list[Dialogue]:
    return [dialogue for dialogue in read_dialogues(folder.dialogues) if is_for_training(dialogue)]


def forecast(experiment: Experiment, folder: RunFolder) -> Forecast:
    """Prompts, calls, tokens and what they would cost, without a call; the dialogues are there."""
    from imagination.hindsight.cost import forecast_hindsight

    return forecast_hindsight(
        load_task(experiment, folder),
        _to_look_back_on(folder),
        experiment.hindsight.llm,
        max_changes=experiment.hindsight.config.max_changes,
        rounds=experiment.rounds,
        config=experiment.hindsight.by_llm,
    )


# --- who looks back -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenHindsight:
    """Hindsight at work.

    Attributes:
        parts: Its controller, forward model and reward model.
        chunk: Dialogues that are looked back on at once.
        note: Shown beside the bar meanwhile.
    """

    parts: Hindsight
    chunk: int
    note: object = ""


@contextlib.contextmanager
def open_hindsight(
    experiment: Experiment, folder: RunFolder, task: Task
) -> Iterator[OpenHindsight]:
    """Opens hindsight by the world or an LLM. However it ends, an LLM's answers are stored."""
    settings = experiment.hindsight
    if settings.llm is None:
        from imagination.hindsight.world import WorldHindsight

        world = load_world(experiment.task.world)
        controller = {"error_rate": settings.world.error_rate, "belief": settings.world.belief}
        yield OpenHindsight(WorldHindsight(world, **controller, seed=experiment.seed), CHUNK)
        return
    # The LLM client is loaded only where it is used.
    from imagination.hindsight.llm import LLMHindsight
    from imagination.llm import Client
    from imagination.llm.session import run_async

    client = Client(settings.llm, folder.answers(experiment.answers))
    # A batch takes its time however small it is; every answer is kept anyway.
    chunk = _ALL if settings.llm.batch else settings.by_llm.conversations
    try:
        hindsight = LLMHindsight(task, client, settings.by_llm)
        yield OpenHindsight(hindsight, chunk, LiveNote(client.meter.line))
    finally:
        run_async(client.close())


# --- the reward model against what is known -----------------------------------------------------


def _compare_with_outcomes(
    experiment: Experiment,
    folder: RunFolder,
    originals: Sequence[Dialogue],
    hindsight: OpenHindsight,
    console: Console,
) -> dict[str, Any]:
    count = min(experiment.hindsight.config.calibration_dialogues, len(originals))
    chosen = random.Random(f"{experiment.seed}/calibration").sample(range(len(originals)), count)
    sample = [originals[index] for index in sorted(chosen)]
    console.print(f"Rating {count:,} original dialogues, to compare with their known rewards.")
    with _watched(experiment, sample, hindsight, console) as reward_model:
        remembering = _Remembering(reward_model)
        found = dataclasses.asdict(calibrate(sample, remembering))
    record = {
        **{name: None if value != value else value for name, value in found.items()},  # no NaN
        "ratings": [
            {"id": dialogue.id, "known": dialogue.reward, "rated": rating}
            for dialogue, rating in remembering.ratings
        ],
    }
    write_atomically(folder.calibration, json.dumps(record, indent=1))
    console.print(hindsight_records.describe_calibration(record))
    return record


@contextlib.contextmanager
def _watched(
    experiment: Experiment,
    sample: Sequence[Dialogue],
    hindsight: OpenHindsight,
    console: Console,
) -> Iterator[Hindsight]:
    """The reward model, with a bar of its answers where an LLM gives them."""
    settings, parts = experiment.hindsight, hindsight.parts
    if settings.llm is None:
        yield parts
        return
    from imagination.hindsight.llm import LLMHindsight
    from imagination.llm.watching import WatchedClient

    rated = sum(dialogue.reward is not None for dialogue in sample)
    with ProgressBars(console) as bars:
        bar = bars.add_task(
            "calibration: answers", total=rated * settings.by_llm.judge_votes, note=hindsight.note
        )
        client = WatchedClient(parts.client, lambda *_: bars.advance(bar))
        yield LLMHindsight(parts.task, client, settings.by_llm)


class _Remembering:
    """A reward model whose ratings can be looked at afterwards."""

    def __init__(self, model: Hindsight):
        self._model = model
        self.ratings: list[tuple[Dialogue, float | None]] = []

    def rate(self, dialogues: Sequence[Dialogue]) -> list[float | None]:
        ratings = self._model.rate(dialogues)
        self.ratings = list(zip(dialogues, ratings, strict=True))
        return ratings


def _calibration(folder: RunFolder, console: Console) -> dict[str, Any] | None:
    read = functools.partial(hindsight_records.read_calibration, folder)
    return read_or_none(folder.calibration, read, console)


def _check_agreement(
    settings: HindsightSettings, folder: RunFolder, found: Mapping[str, Any]
) -> None:
    agreement, least = found["spearman"], settings.config.min_agreement
    if least == -1 or (agreement is not None and agreement >= least):
        return
    told = "no rank correlation" if agreement is None else f"a rank correlation of {agreement:.2f}"
    raise RunError(
        f"the reward model does not foretell the outcomes of the original dialogues: {told} over "
        f"{found['count']} of them, where config.hindsight.min_agreement asks for {least:g} "
        f"({folder.calibration}). What it says of regenerated dialogues would not be worth "
        "learning from. To go on nevertheless, set config.hindsight.min_agreement lower (-1 asks "
        "for nothing); for another reward model (config.hindsight.model), delete "
        f"{folder.hindsight}; or leave out the methods that learn from hindsight."
    )


# --- a round ------------------------------------------------------------------------------------


def _do_round(
    experiment: Experiment,
    folder: RunFolder,
    number: int,
    parents: Sequence[Dialogue],
    task: Task,
    hindsight: OpenHindsight,
    console: Console,
) -> None:
    """Looks back chunk by chunk; what comes of a dialogue depends on no other."""
    journal = _journal(folder, number)
    done = sum(chunk["looked_back_on"] for chunk in _read_journal(journal))
    with ProgressBars(console) as bars, journal.open("a", encoding="utf-8") as file:
        bar = bars.add_task(
            f"hindsight, round {number}", total=len(parents), completed=done, note=hindsight.note
        )
        for start in range(done, len(parents), hindsight.chunk):
            chunk = parents[start : start + hindsight.chunk]
            made = regenerate(
                chunk,
                hindsight.parts,
                round_number=number,
                max_changes=experiment.hindsight.config.max_changes,
                task=task,
            )
            record = {
                "looked_back_on": len(chunk),
                "dialogues": [dialogue.to_json() for dialogue in made.dialogues],
                "rejections": [
                    {"round": number, **dataclasses.asdict(each)} for each in made.rejections
                ],
            }
            file.write(_line(record))
            file.flush()
            bars.advance(bar, len(chunk))
    _finish_round(folder, number, len(parents))


def _finish_round(folder: RunFolder, number: int, parents: int) -> None:
    """From the journal to the files that stay; the dialogues last, which mark the round as done."""
    chunks = _read_journal(_journal(folder, number))
    rejections = [each for chunk in chunks for each in chunk["rejections"]]
    dialogues = [each for chunk in chunks for each in chunk["dialogues"]]
    if not dialogues and number == 1:
        problems = hindsight_records.count_problems(rejections) or "nothing was found to put better"
        raise RunError(
            f"of {parents:,} dialogues that were looked back on, none led to another one to learn "
            f"from ({problems}). Change config.hindsight and delete {folder.hindsight}, or leave "
            "out the methods that learn from hindsight."
        )
    before = [each for each in hindsight_records.read_rejections(folder) if each["round"] < number]
    write_atomically(folder.rejected, "".join(map(_line, [*before, *rejections])))
    write_atomically(folder.hindsight_round(number), "".join(map(_line, dialogues)))


def _journal(folder: RunFolder, number: int) -> Path:
    """Reads the results of an unfinished round's chunks, a line each."""
    return folder.hindsight / f"round{number}.chunks.jsonl"


def _read_journal(path: Path) -> list[Mapping[str, Any]]:
    """The whole chunks of an unfinished round; a line that was cut off, or is damaged, and what
    follows it are removed from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    chunks, kept = [], 0
    for line in whole.splitlines(keepends=True):
        try:
            chunk = json.loads(line)
            int(chunk["looked_back_on"]), list(chunk["dialogues"]), list(chunk["rejections"])
        except DAMAGE:
            break  # what follows is made again
        chunks.append(chunk)
        kept += len(line)
    os.truncate(path, kept)
    return chunks


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
