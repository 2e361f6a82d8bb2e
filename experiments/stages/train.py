"""Stage train: every method and seed, from the same start.

The start is a fresh network, or the checkpoint `config.model.pretrained` with fresh value heads; a
method that goes on from another (`TrainedMethod.starts_from`) starts from what that has learned
with the same seed. All take the same steps, but for those whose method or rounds say otherwise.

All learn from the same original dialogues; with rounds of hindsight, from their dialogues too; from
pairs, from those of the first round. With rounds of imagination, the agent that was trained before
holds conversations first (`imagination_rounds.py`), which are learned from beside the originals.

Leaves `tokenizer/`, `checkpoints/<method>-seed<k>/`, `imagination/` and `metrics/` (JSON Lines, and
the loggers of `config.logging`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import imagination_rounds, training_data
from experiments.build import Experiment, errors_of
from experiments.evaluation.learning_curve import validation
from experiments.files import write_atomically
from experiments.methods import TrainedMethod, in_order
from experiments.metrics import Composite, Logger, TrainingLog, open_logger
from experiments.networks import (
    check_checkpoints,
    check_identity,
    in_turn,
    is_trained,
    is_used_up,
    pretrained_start,
    units,
    value_unit,
)
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunFolder, Unit, is_for_training
from experiments.training_data import TrainingData
from ilql_jax import Trajectory, sharding
from ilql_jax.checkpoint import restore_params
from ilql_jax.models import Params, abstract_params
from ilql_jax.models.hugging_face.read import check_tensors, find
from ilql_jax.preferences import Preferences
from ilql_jax.rehearsal import rehearse
from ilql_jax.train import train
from imagination.dialogue import read_dialogues
from imagination.tokenization import DialogueTokenizer, save_once


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Trains what is not trained yet."""
    if _is_writer(experiment):
        _check_checkpoints(experiment, folder, console)
    if experiment.machine.coordinator:
        sharding.wait_for_all("the checkpoints that are there")
    todo = [unit for unit in units(experiment) if not is_trained(folder, unit)]
    if not todo:
        return
    if experiment.network.pretrained:
        check_tensors(find(experiment.network.pretrained))
    # Everything that can be wrong with the data is told before anything is written or started.
    _check_mesh(experiment)
    dialogues = read_dialogues(folder.dialogues)
    tokenizer = training_data.check_dialogues(experiment, folder, dialogues, console)
    if not folder.tokenizer.exists() and _is_writer(experiment):
        save_once(tokenizer, folder.tokenizer)
    if experiment.machine.coordinator:
        sharding.wait_for_all("the tokenizer")
    _check_parameters(experiment, tokenizer.vocab_size, todo)
    _rehearse_own(experiment, tokenizer.vocab_size)
    _tell(experiment, folder, tokenizer, todo, sum(map(is_for_training, dialogues)), console)
    missing = imagination_rounds.missing_rounds(experiment, folder, todo)
    if missing:
        count = experiment.imagination.rounds.round_dialogues
        learners = ", ".join(unit.name for unit in missing)
        console.print(f"Agents hold {count:,} conversations each, for {learners} to learn from.")
    by_llm = bool(missing) and experiment.evaluation.config.human == "prompted"
    # An LLM is asked by this process alone: between the trainings of one wave and of the next.
    for wave in in_order(experiment.methods) if by_llm else [experiment.methods]:
        names = {method.name for method in wave}
        jobs = _longest_chain_first(experiment, [unit for unit in todo if unit.method in names])
        if by_llm:
            to_hold = imagination_rounds.missing_rounds(experiment, folder, jobs)
            imagination_rounds.hold_with_llm(experiment, folder, to_hold, console)
        told = run_units(
            learn_unit,
            [(experiment, folder.path, unit) for unit in jobs],
            [unit.name for unit in jobs],
            0 if experiment.is_on_mesh else workers_for(experiment.run.workers, len(jobs)),
            console,
            _needed_before_each(experiment, jobs),
        )
        for line in filter(None, told):
            console.print(line)
    training_data.forget()


def check_settings(experiment: Experiment, folder: RunFolder) -> None:
    """Checks what can be wrong with a training still to be done, whatever the dialogues are.

    Raises:
        MeshError, ConfigError: The devices or the rows of a batch do not fit the mesh.
        DialogueError: The tokenizer cannot be read, or is of no use.
    """
    if all(is_trained(folder, unit) for unit in units(experiment)):
        return
    _check_mesh(experiment)
    named = experiment.tokenizer.pretrained or experiment.network.pretrained
    if named and not folder.tokenizer.exists():
        training_data.make_tokenizer(experiment, [])


def _check_mesh(experiment: Experiment) -> None:
    """Raises `MeshError` or `ConfigError` if the devices or a batch's rows do not fit the mesh."""
    if not experiment.is_on_mesh:
        return
    mesh = sharding.make_mesh(experiment.mesh)
    accumulation = experiment.train.gradient_accumulation
    rows = experiment.batches.batch_rows
    with errors_of("train"):
        sharding.check_rows(rows, mesh, accumulation)
    if any(each.learns_from_pairs for each in experiment.methods):
        with errors_of(f"train.batch_rows is {rows}, half of which are rows of pairs"):
            sharding.check_rows(experiment.rows_of_pairs, mesh, accumulation)


def _check_parameters(experiment: Experiment, vocab_size: int, todo: list[Unit]) -> None:
    """Raises `MeshError` if a parameter cannot be split as the mesh has it."""
    if not experiment.is_on_mesh:
        return
    mesh = sharding.make_mesh(experiment.mesh)
    shape = experiment.network.shape(vocab_size)
    for name in dict.fromkeys(unit.method for unit in todo):
        of_method = experiment.method(name).method.network_for(shape)
        sharding.shardings(abstract_params(of_method), mesh)


def _rehearse_own(experiment: Experiment, vocab_size: int) -> None:
    """Rehearses methods of somebody's own where several hosts train.

    On one host the settings' checks have done it, before any work; hosts have to meet before JAX
    does anything.

    Raises:
        ConfigError: One breaks; the message names its file and line.
    """
    if not experiment.machine.coordinator:
        return
    shape = experiment.network.shape(vocab_size)
    for each in experiment.methods:
        if each.file:
            with errors_of("methods"):
                rehearse(each.method, each.method.network_for(shape), each.train)


def _check_checkpoints(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Sets damaged checkpoints aside, of networks that something of the run still asks for.

    The last ones first: one that has to be trained asks for what it starts from, and for the agent
    that holds its conversations.
    """
    asked_for: set[Unit] = set()
    for wave in reversed(in_order(experiment.methods)):
        names = {method.name for method in wave}
        of_wave = [unit for unit in units(experiment) if unit.method in names]
        used = [unit for unit in of_wave if unit in asked_for or not is_used_up(folder, unit)]
        check_checkpoints(experiment, folder, used, console)
        for unit in of_wave:
            if not is_trained(folder, unit):
                needed = _needed(experiment.method(unit.method))
                asked_for |= {Unit(name, unit.seed) for name in needed}


def _is_writer(experiment: Experiment) -> bool:
    """True for the process that writes single files (checkpoints are written by all)."""
    return not experiment.machine.coordinator or sharding.is_first_host()


def _tell(
    experiment: Experiment,
    folder: RunFolder,
    tokenizer: DialogueTokenizer,
    todo: list[Unit],
    originals: int,
    console: Console,
) -> None:
    """Tells what is learned from, and checks that there are pairs for methods that need them."""
    limit = experiment.network.max_positions
    methods = [experiment.method(name) for name in dict.fromkeys(unit.method for unit in todo)]
    rounds = max((each.rounds for each in methods if not each.learns_from_pairs), default=0)
    made = training_data.regenerated(folder, tokenizer, rounds)
    told = f"Training {len(todo)} networks on {originals:,} dialogues"
    if made:
        too_long = sum(not training_data.fits(each, limit) for each in made)
        told += f" and {len(made) - too_long:,} regenerated ones"
        if too_long:
            told += (
                f" ({too_long:,} more are longer than config.model.max_positions, {limit} tokens, "
                "and are left out)"
            )
    console.print(f"{told}.")
    for each in methods:
        before = each.starts_from
        if before and not each.learns_from_pairs:
            told = f"{each.name} goes on from {before}, for {each.train.steps:,} steps"
            console.print(f"{told}{replaced_settings(experiment, each)}.", highlight=False)
        if each.learns_from_pairs:
            pairs, left_out = training_data.preference_pairs(folder, tokenizer, limit)
            training_data.packing_of_pairs(pairs, experiment.rows_of_pairs, limit)
            goes_on = f"goes on from {before}, on" if before else "learns from"
            told = f"{each.name} {goes_on} {len(pairs):,} pairs of utterances"
            console.print(f"{told} ({left_out})." if left_out else f"{told}.")


def replaced_settings(experiment: Experiment, method: TrainedMethod) -> str:
    """Settings of a method that are others in a training that goes on, in words; "" = none are."""
    name, now = method.method.name, method.method.config
    given = experiment.library[name].method.config
    replaced = [
        f"config.method.{name}.{field.name} {getattr(now, field.name)} in place of {value}"
        for field in dataclasses.fields(now)
        if (value := getattr(given, field.name)) != getattr(now, field.name)
    ]
    return f", with {', '.join(replaced)}" if replaced else ""


def _longest_chain_first(experiment: Experiment, todo: Sequence[Unit]) -> list[Unit]:
    """Trainings with the most that follow, one after another, before the others."""
    following: dict[str, int] = {}
    for wave in reversed(in_order(experiment.methods)):
        for method in wave:
            later = [each for each in experiment.methods if method.name in _needed(each)]
            following[method.name] = max((1 + following[each.name] for each in later), default=0)
    return in_turn(experiment, sorted(todo, key=lambda unit: -following[unit.method]))


def _needed(method: TrainedMethod) -> set[str]:
    """Methods whose trainings have to end before one of this method begins."""
    return {name for name in (method.starts_from, method.takes_part) if name}


def _needed_before_each(experiment: Experiment, jobs: Sequence[Unit]) -> list[list[int]]:
    """For each training the places of those, of these, that have to end before it begins."""
    place = {unit: index for index, unit in enumerate(jobs)}
    needed = ([Unit(n, u.seed) for n in _needed(experiment.method(u.method))] for u in jobs)
    return [[place[each] for each in before if each in place] for before in needed]


# --- one training -------------------------------------------------------------------------------


def learn_unit(experiment: Experiment, path: Path, unit: Unit, report: Report) -> str:
    """Holds the conversations that a training learns from, where there are none, and trains.

    Returns:
        How the conversations of its last round ended, in a sentence; "" without rounds.
    """
    folder, method = RunFolder(path), experiment.method(unit.method)
    for each in imagination_rounds.missing_rounds(experiment, folder, [unit]):
        imagination_rounds.hold_round(experiment, path, each, None, report)
    train_unit(experiment, path, unit, report)
    if not method.imagination_rounds:
        return ""
    held = imagination_rounds.read_round(folder, unit)
    return imagination_rounds.described(method, unit, held)


def train_unit(experiment: Experiment, path: Path, unit: Unit, report: Report) -> None:
    """Trains one network; runs in a process of its own, on a mesh in that of each host."""
    folder, method = RunFolder(path), experiment.method(unit.method)
    seed = experiment.seed + unit.seed
    mesh = sharding.make_mesh(experiment.mesh) if experiment.is_on_mesh else None
    limit = experiment.network.max_positions
    rounds = 0 if method.learns_from_pairs else method.rounds
    how = experiment.data
    imagined = imagination_rounds.dialogues_of(experiment, folder, unit)
    with_ends = method.method.predicts_observations
    read = (limit, rounds, how.loss_on, how.importance_weights, with_ends)
    if imagined:
        data = TrainingData.load(folder, *read, imagined)
    else:
        data = training_data.load_once(folder, *read)
    shape = method.method.network_for(experiment.network.shape(data.tokenizer.vocab_size))
    start_from = pretrained_start(experiment.network, shape, seed, mesh)
    before = method.starts_from

    def restored() -> Params:
        earlier = Unit(before or "", unit.seed)
        check_identity(experiment, folder, earlier)
        return restore_params(folder.checkpoints(earlier), shape, mesh, start_from)

    chosen: Preferences | list[Trajectory]
    if method.learns_from_pairs:
        pairs, _ = training_data.preference_pairs(folder, data.tokenizer, limit)
        chosen = Preferences(pairs, restored())
        packing = training_data.packing_of_pairs(pairs, experiment.rows_of_pairs, limit)
    else:
        chosen = data.trajectories
        selected = method.method.select_trajectories(chosen)
        if before:  # its values are differences from this one
            baseline = value_unit(folder, Unit(before, unit.seed))[1]
        else:
            batches = experiment.batches
            baseline = training_data.start_value(method.method, shape, batches, selected)
        packing = training_data.packing(experiment.batches, limit, selected, baseline)
    steps = method.train.steps
    report(0, steps, "compiling")
    writes = _is_writer(experiment)
    opened: contextlib.AbstractContextManager[Logger] = contextlib.nullcontext(Composite(()))
    if writes:
        opened = open_logger(experiment.logging, folder.metrics(unit), experiment.settings)
    with opened as logger:
        log = TrainingLog(logger, folder.metrics(unit))

        def on_start(step: int) -> None:
            log.resume(step)
            if step:
                report(step, steps, f"goes on from step {step}")

        def on_metrics(step: int, values: dict[str, float]) -> None:
            log.write(step, values)
            if "loss" in values:
                report(step, steps, f"loss {values['loss']:.3f}")

        train(
            chosen,
            shape,
            method.method,
            method.train,
            packing,
            seed=seed,
            folder=folder.checkpoints(unit),
            metadata={"reward_scale": data.reward_scale, "unit": unit.name},
            on_start=on_start,
            on_metrics=on_metrics,
            validate=validation(experiment, folder, unit, shape),
            validate_every=method.train.checkpoint_every,
            start_from=restored if before and not method.learns_from_pairs else start_from,
            mesh=mesh,
            progress=False,
        )
    if writes:
        seconds = {"train_seconds": round(log.seconds, 1)}
        write_atomically(folder.finished(unit), json.dumps(seconds))
