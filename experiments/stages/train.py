"""Stage train: every method and seed, with the same compute, from the same start but for dpo.

The start is a fresh network, or the checkpoint `config.model.pretrained` with fresh value heads.

All learn from the same original dialogues; with rounds of hindsight, from their dialogues too; dpo
from the pairs of the first round, starting from what bc of its seed has learned, with the steps of
`config.dpo` on top.

Leaves `tokenizer/`, `checkpoints/<method>-seed<k>/` and `metrics/` (JSON Lines, and
what the backends of `config.logging` keep).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments import training_data
from experiments.files import write_atomically
from experiments.methods import PAIRS_START_FROM, parse_method
from experiments.metrics import Composite, Logger, TrainingLog, open_logger
from experiments.networks import is_trained, pretrained_start, units
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunFolder, Unit, is_for_training
from experiments.training_data import TrainingData
from ilql_jax import Trajectory, sharding
from ilql_jax.checkpoint import restore_params
from ilql_jax.models import abstract_params
from ilql_jax.models.hugging_face.read import check_tensors, find
from ilql_jax.preferences import Preferences
from ilql_jax.train import train
from imagination.dialogue import read_dialogues
from imagination.tokenization import save_once


def run(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Trains what is not trained yet."""
    todo = [unit for unit in units(config) if not is_trained(folder, unit)]
    if not todo:
        return
    if config.model.pretrained:
        check_tensors(find(config.model.pretrained))
    # Everything that can be wrong with the data is told before anything is written or started.
    _check_mesh(config)
    dialogues = read_dialogues(folder.dialogues)
    tokenizer = training_data.check_dialogues(config, folder, dialogues, console)
    if not folder.tokenizer.exists() and _is_writer(config):
        save_once(tokenizer, folder.tokenizer)
    if config.machine.coordinator:
        sharding.wait_for_all("the tokenizer")
    _check_parameters(config, tokenizer.vocab_size, todo)
    learned = {parse_method(unit.method) for unit in todo}
    rounds = max((method.rounds for method in learned if not method.on_pairs), default=0)
    made = training_data.regenerated(folder, tokenizer, rounds)
    _tell(config, len(todo), sum(map(is_for_training, dialogues)), made, console)
    if any(method.on_pairs for method in learned):
        pairs, left_out = training_data.preference_pairs(config, folder, tokenizer)
        training_data.packing_of_pairs(config, pairs)
        told = f"dpo goes on from bc, on {len(pairs):,} pairs of utterances"
        console.print(f"{told} ({left_out})." if left_out else f"{told}.")
    for wave in _waves(todo):
        run_units(
            train_unit,
            [(config, folder.path, unit) for unit in wave],
            [unit.name for unit in wave],
            0 if _on_mesh(config) else workers_for(config.workers, len(wave)),
            console,
        )


def check_settings(config: ConfigDict, folder: RunFolder) -> None:
    """What can be wrong with a training that is still to be done, whatever the dialogues are.

    Raises:
        MeshError: The devices or the rows of a batch do not fit the mesh.
        DialogueError: The tokenizer cannot be read, or is of no use.
    """
    if all(is_trained(folder, unit) for unit in units(config)):
        return
    _check_mesh(config)
    if (config.tokenizer.pretrained or config.model.pretrained) and not folder.tokenizer.exists():
        training_data.make_tokenizer(config, [])


def _on_mesh(config: ConfigDict) -> bool:
    """Whether a training takes more than one device."""
    return bool(config.machine.coordinator) or not settings.mesh_config(config).is_single


def _check_mesh(config: ConfigDict) -> None:
    """Raises `MeshError` if the devices or the rows of a batch do not fit the mesh."""
    if not _on_mesh(config):
        return
    mesh = sharding.make_mesh(settings.mesh_config(config))
    accumulation = config.train.gradient_accumulation
    sharding.check_rows(config.train.batch_rows, mesh, accumulation)
    if any(parse_method(name).on_pairs for name in config.methods):
        sharding.check_rows(settings.rows_of_pairs(config), mesh, accumulation)


def _check_parameters(config: ConfigDict, vocab_size: int, todo: list[Unit]) -> None:
    """Raises `MeshError` if a parameter cannot be split as the mesh has it."""
    if not _on_mesh(config):
        return
    mesh = sharding.make_mesh(settings.mesh_config(config))
    for method in dict.fromkeys(unit.method for unit in todo):
        shape = settings.model_config(config, vocab_size, method)
        sharding.shardings(abstract_params(shape), mesh)


def _is_writer(config: ConfigDict) -> bool:
    """Whether this process writes what is written once (the checkpoints are written by all)."""
    return not config.machine.coordinator or sharding.is_first_host()


def _tell(
    config: ConfigDict, networks: int, originals: int, made: list[Trajectory], console: Console
) -> None:
    told = f"Training {networks} networks on {originals:,} dialogues"
    if made:
        too_long = sum(not training_data.fits(config, each) for each in made)
        told += f" and {len(made) - too_long:,} regenerated ones"
        if too_long:
            told += (
                f" ({too_long:,} more are longer than config.model.max_positions, "
                f"{config.model.max_positions} tokens, and are left out)"
            )
    console.print(f"{told}.")


def _waves(todo: list[Unit]) -> list[list[Unit]]:
    """First what starts from nothing, then what goes on from it."""
    waves = ([], [])
    for unit in todo:
        waves[parse_method(unit.method).on_pairs].append(unit)
    return [wave for wave in waves if wave]


def train_unit(config: ConfigDict, path: Path, unit: Unit, report: Report) -> None:
    """Trains one network; runs in a process of its own, on a mesh in that of each host."""
    folder = RunFolder(path)
    mesh = sharding.make_mesh(settings.mesh_config(config)) if _on_mesh(config) else None
    method = parse_method(unit.method)
    learned = settings.method_of(config, unit.method)
    train_config = settings.train_config(config, unit.method)
    data = TrainingData.load(config, folder, 0 if method.on_pairs else method.rounds)
    shape = settings.model_config(config, data.tokenizer.vocab_size, unit.method)
    start_from = pretrained_start(config, shape, unit.seed, mesh)
    if method.on_pairs:
        before = folder.checkpoints(Unit(PAIRS_START_FROM, unit.seed))
        pairs, _ = training_data.preference_pairs(config, folder, data.tokenizer)
        learned_from = Preferences(pairs, restore_params(before, shape, mesh, start_from))
        shapes = training_data.packing_of_pairs(config, pairs)
    else:
        learned_from = data.trajectories
        selected = learned.select_trajectories(learned_from)
        shapes = training_data.packing(config, selected)
    writes = _is_writer(config)
    opened: contextlib.AbstractContextManager[Logger] = contextlib.nullcontext(Composite(()))
    if writes:
        logging = settings.logging_config(config)
        opened = open_logger(logging, folder.metrics(unit), settings.to_log(config))
    report(0, train_config.steps, "compiling")
    with opened as logger:
        log = TrainingLog(logger, folder.metrics(unit))

        def on_start(step: int) -> None:
            log.resume(step)
            if step:
                report(step, train_config.steps, f"goes on from step {step}")

        def on_metrics(step: int, values: dict[str, float]) -> None:
            log.write(step, values)
            report(step, train_config.steps, f"loss {values['loss']:.3f}")

        train(
            learned_from,
            shape,
            learned,
            train_config,
            shapes,
            seed=config.seed + unit.seed,
            folder=folder.checkpoints(unit),
            metadata={"unit": unit.name, "reward_scale": data.reward_scale},
            on_start=on_start,
            on_metrics=on_metrics,
            start_from=start_from,
            mesh=mesh,
            progress=False,
        )
    if writes:
        seconds = {"train_seconds": round(log.seconds, 1)}
        write_atomically(folder.finished(unit), json.dumps(seconds))
