"""Stage train: every method and seed, with the same compute, from the same start but for dpo.

The start is a fresh network, or the checkpoint `config.model.pretrained` with fresh value heads.

All learn from the same original dialogues; with rounds of hindsight, from their dialogues too; dpo
from the pairs of the first round, starting from what bc of its seed has learned, with the steps of
`config.dpo` on top.

Leaves `tokenizer/`, `checkpoints/<method>-seed<k>/` and `metrics/` (JSON Lines, and the same for
TensorBoard).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments.methods import PAIRS_START_FROM, parse_method
from experiments.parallel import Report, run_units, workers_for
from experiments.run_folder import RunError, RunFolder, Unit, write_atomically
from experiments.stages.hindsight import read_hindsight
from experiments.stages.imagine import is_for_training
from ilql_jax import PreferencePair, Trajectory, sharding
from ilql_jax.batching import PackingConfig, packing_for
from ilql_jax.checkpoint import read_metadata, restore_params
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.models.hugging_face.read import check_tensors, find, read_config, start_params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.objectives import select_trajectories
from ilql_jax.preferences import Preferences, packing_for_pairs
from ilql_jax.train import train
from imagination.dialogue import Dialogue, iterate_dialogues, read_dialogues
from imagination.tokenization import DialogueTokenizer, save_once


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
    tokenizer = check_dialogues(config, folder, dialogues, console)
    if not folder.tokenizer.exists() and _is_writer(config):
        save_once(tokenizer, folder.tokenizer)
    if config.machine.coordinator:
        sharding.wait_for_all("the tokenizer")
    _check_parameters(config, tokenizer.vocab_size, todo)
    learned = {parse_method(unit.method) for unit in todo}
    rounds = max((method.rounds for method in learned if not method.on_pairs), default=0)
    made = _regenerated(folder, tokenizer, rounds)
    _tell(config, len(todo), sum(map(is_for_training, dialogues)), made, console)
    if any(method.on_pairs for method in learned):
        pairs, left_out = preference_pairs(config, folder, tokenizer)
        packing_of_pairs(config, pairs)
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


def check_dialogues(
    config: ConfigDict, folder: RunFolder, dialogues: list[Dialogue], console: Console
) -> DialogueTokenizer:
    """The run's tokenizer, where all dialogues can be learned from as they are.

    Raises:
        RunError: A dialogue is too long. TrajectoryError: it breaks another rule.
    """
    if folder.tokenizer.exists():
        tokenizer = DialogueTokenizer.load(folder.tokenizer)
    else:
        tokenizer = _tokenizer(config, [d for d in dialogues if is_for_training(d)])
    trajectories = tokenizer.trajectories(dialogues)
    _check_lengths(config, trajectories, console)
    packing(config, trajectories)
    return tokenizer


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
        _tokenizer(config, [])


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
        too_long = sum(not _fits(config, each) for each in made)
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


CUT_OFF = 0.01  # share of utterances longer than an agent may speak that is worth telling


def _check_lengths(config: ConfigDict, trajectories: list[Trajectory], console: Console) -> None:
    """Dialogues have to fit in the context, and their utterances should fit in an agent's turn.

    Raises:
        RunError: A dialogue that is too long; the message says how much room they all need.
    """
    longest = max(trajectories, key=lambda trajectory: len(trajectory.tokens))
    needed, context = len(longest.tokens), config.model.max_positions
    if needed > context:
        count = sum(len(trajectory.tokens) > context for trajectory in trajectories)
        longest_there_is = _most_positions(config)
        way_out = f"Set config.model.max_positions to {needed} or more; or shorten or drop them."
        if longest_there_is is not None and longest_there_is < needed:
            way_out = (
                f"Shorten or drop them: {config.model.pretrained} reads at most {longest_there_is}."
            )
        raise RunError(
            f"{longest.name}: {needed} tokens do not fit in the context of {context}; {count:,} of "
            f"{len(trajectories):,} dialogues are too long. {way_out}"
        )
    utterances = np.concatenate([_utterance_lengths(trajectory) for trajectory in trajectories])
    cut_off = np.mean(utterances > config.decoding.max_utterance)
    if cut_off > CUT_OFF:
        console.print(
            f"{cut_off:.0%} of what agents say in the dialogues is longer than "
            f"config.decoding.max_utterance, {config.decoding.max_utterance} tokens, at which "
            f"agents will be cut off in conversation; the longest takes {utterances.max()}."
        )


def _most_positions(config: ConfigDict) -> int | None:
    """What a pretrained network reads at most; None = a fresh one, made for any length."""
    if not config.model.pretrained:
        return None
    return read_config(find(config.model.pretrained, weights=False)).max_positions


def _utterance_lengths(trajectory: Trajectory) -> np.ndarray:
    """Tokens of each of the agent's utterances, with the one that ends it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trajectory.is_action, [False]])))
    return edges[1::2] - edges[::2]


def units(config: ConfigDict) -> list[Unit]:
    """All trainings that the settings ask for."""
    return [Unit(method, seed) for seed in range(config.seeds) for method in config.methods]


def _tokenizer(config: ConfigDict, dialogues: list[Dialogue]) -> DialogueTokenizer:
    if config.tokenizer.pretrained:
        return DialogueTokenizer.load(config.tokenizer.pretrained)
    if config.model.pretrained:
        return DialogueTokenizer.load(find(config.model.pretrained, weights=False))
    return DialogueTokenizer.train(dialogues, config.tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a method learns from as trajectories, with rewards of unit spread.

    The spread is that of the original dialogues, whatever is learned from beside them: so all
    methods of a run have the same settings.
    """

    trajectories: list[Trajectory]
    tokenizer: DialogueTokenizer
    reward_scale: float

    @classmethod
    def load(cls, config: ConfigDict, folder: RunFolder, rounds: int = 0) -> TrainingData:
        originals = [d for d in read_dialogues(folder.dialogues) if is_for_training(d)]
        tokenizer = DialogueTokenizer.load(folder.tokenizer)
        scale = reward_scale(originals)
        made = _regenerated(folder, tokenizer, rounds, scale)
        trajectories = tokenizer.trajectories(originals, scale)
        trajectories += [each for each in made if _fits(config, each)]
        return cls(trajectories, tokenizer, scale)


def _regenerated(
    folder: RunFolder, tokenizer: DialogueTokenizer, rounds: int, scale: float = 1.0
) -> list[Trajectory]:
    """The dialogues of the first rounds of hindsight."""
    files = (folder.hindsight_round(number) for number in range(1, rounds + 1))
    dialogues = [d for file in files for d in iterate_dialogues(file) if is_for_training(d)]
    return tokenizer.trajectories(dialogues, scale)


def _fits(config: ConfigDict, trajectory: Trajectory) -> bool:
    """An original that is too long is an error; one that was played on may well become so."""
    return len(trajectory.tokens) <= config.model.max_positions


def reward_scale(dialogues: list[Dialogue]) -> float:
    """One over the standard deviation of the returns, so that settings fit any rating scale."""
    spread = float(np.std([d.total_reward for d in dialogues if d.reward is not None]))
    return 1.0 / spread if spread > 1e-6 else 1.0


def packing(config: ConfigDict, trajectories: list[Trajectory]) -> PackingConfig:
    return packing_for(
        trajectories,
        config.train.batch_rows,
        config.model.max_positions,
        config.train.token_discount,
        config.train.utterance_discount,
    )


def preference_pairs(
    config: ConfigDict, folder: RunFolder, tokenizer: DialogueTokenizer
) -> tuple[list[PreferencePair], str]:
    """What was put better in the first round, against what was said there.

    Which is better is the controller's word; how the dialogues ended is not asked. Pairs that are
    too long are left out, and those whose difference the tokenizer does not see.

    Returns:
        The pairs, and in words what was left out, or nothing.

    Raises:
        RunError: No pair is left.
    """
    originals = read_dialogues(folder.dialogues)
    found = read_hindsight(folder.path, originals).rounds[0].pairs
    turns = [made.source["turn"] for _, made in found]
    rejected, chosen = (
        tokenizer.utterances(list(zip(dialogues, turns, strict=True)))
        for dialogues in zip(*found, strict=True)
    )
    pairs = [PreferencePair(*halves) for halves in zip(chosen, rejected, strict=True)]
    differing = [pair for pair in pairs if not pair.says_the_same]
    fitting = [p for p in differing if _fits(config, p.chosen) and _fits(config, p.rejected)]
    counts = {
        "longer than config.model.max_positions": len(differing) - len(fitting),
        "the same to the tokenizer": len(pairs) - len(differing),
    }
    left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
    left_out = left_out and f"left out: {left_out}"
    if not fitting:
        raise RunError(
            f"none of the {len(pairs):,} pairs of utterances of {folder.hindsight_round(1)} can be "
            f"learned from ({left_out}). Raise config.model.max_positions, or leave out dpo."
        )
    return fitting, left_out


def packing_of_pairs(config: ConfigDict, pairs: list[PreferencePair]) -> PackingConfig:
    """Half as many rows of twice the length: both halves of any pair fit."""
    rows = settings.rows_of_pairs(config)
    return packing_for_pairs(pairs, rows, 2 * config.model.max_positions)


def train_unit(config: ConfigDict, path: Path, unit: Unit, report: Report) -> None:
    """Trains one network; runs in a process of its own, on a mesh in that of each host."""
    folder = RunFolder(path)
    mesh = sharding.make_mesh(settings.mesh_config(config)) if _on_mesh(config) else None
    method = parse_method(unit.method)
    objective = settings.objective_config(config, unit.method)
    train_config = settings.train_config(config, unit.method)
    data = TrainingData.load(config, folder, 0 if method.on_pairs else method.rounds)
    shape = settings.model_config(config, data.tokenizer.vocab_size, unit.method)
    start_from = pretrained_start(config, shape, unit.seed, mesh)
    if method.on_pairs:
        before = folder.checkpoints(Unit(PAIRS_START_FROM, unit.seed))
        pairs, _ = preference_pairs(config, folder, data.tokenizer)
        chosen = Preferences(pairs, restore_params(before, shape, mesh, start_from))
        shapes = packing_of_pairs(config, pairs)
    else:
        chosen = select_trajectories(data.trajectories, objective)
        shapes = packing(config, chosen)
    metrics = MetricsLog(folder.metrics(unit), config.train.log_every)
    writes = _is_writer(config)
    report(0, train_config.steps, "compiling")

    def on_start(step: int) -> None:
        if writes:
            metrics.go_on_after(step)
        if step:
            report(step, train_config.steps, f"goes on from step {step}")

    def on_metrics(step: int, values: dict[str, float]) -> None:
        if writes:
            metrics.write(step, values)
        report(step, train_config.steps, f"loss {values['loss']:.3f}")

    train(
        chosen,
        shape,
        objective,
        train_config,
        shapes,
        seed=config.seed + unit.seed,
        folder=folder.checkpoints(unit),
        metadata={"method": unit.method, "reward_scale": data.reward_scale},
        on_start=on_start,
        on_metrics=on_metrics,
        start_from=start_from,
        mesh=mesh,
    )
    if writes:
        metrics.finish()


def pretrained_start(
    config: ConfigDict, shape: ModelConfig, seed: int, mesh: Mesh | None = None
) -> Callable[[], Params] | None:
    """Makes what trainings of this seed start from; None = a fresh network."""
    if not config.model.pretrained:
        return None

    def start() -> Params:
        layout = sharding.shardings(abstract_params(shape), mesh) if mesh else None
        return start_params(find(config.model.pretrained), shape, config.seed + seed, layout)

    return start


def trained_network(
    config: ConfigDict, folder: RunFolder, unit: Unit
) -> tuple[ModelConfig, Params]:
    """What a unit has learned, as a network like any other: adapters are merged into it.

    Its parameters lie on one device, or where `sharding.mesh_to_use` says. What it was trained from
    is needed only where that is frozen in it.
    """
    shape = ModelConfig.from_dict(read_metadata(folder.checkpoints(unit))["model"])
    mesh = sharding.mesh_to_use(settings.mesh_config(config))
    start_from = pretrained_start(config, shape, unit.seed, mesh)
    params = restore_params(folder.checkpoints(unit), shape, mesh, start_from)
    return merge_adapters(shape, params)


def is_trained(folder: RunFolder, unit: Unit) -> bool:
    return _finished(folder.metrics(unit)).exists()


def train_seconds(folder: RunFolder, unit: Unit) -> float:
    """Time the training took, over all the sessions that it needed."""
    return json.loads(_finished(folder.metrics(unit)).read_text())["train_seconds"]


def _finished(metrics: Path) -> Path:
    return metrics.with_suffix(".finished.json")


class MetricsLog:
    """Metrics as JSON Lines and for TensorBoard; a resumed run goes on where it was saved."""

    def __init__(self, path: Path, log_every: int):
        self.path = path
        self.log_every = log_every
        self._before = 0.0
        self._start = time.monotonic()
        self._writer: Any = None  # of TensorBoard

    def go_on_after(self, step: int) -> None:
        """Forgets what was logged after this step, which will be done again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                record = _parsed(line)
                if record and record["step"] <= step:
                    kept.append(line + "\n")
                    self._before = record["seconds"]
        write_atomically(self.path, "".join(kept))
        self._start = time.monotonic()
        # TensorBoard's files lose what was not flushed: they are made again from ours.
        board = self.path.with_suffix("")
        shutil.rmtree(board, ignore_errors=True)
        # Only now: where torch is installed this loads it, which takes a second in every process.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(board))
        for line in kept:
            record = json.loads(line)
            self._show(record.pop("step"), record)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the metrics of a step."""
        record: dict[str, Any] = {"step": step, **values, "seconds": round(self._seconds(), 2)}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._show(step, values)

    def finish(self) -> None:
        """Marks the training as done."""
        self._writer.close()
        seconds = {"train_seconds": round(self._seconds(), 1)}
        write_atomically(_finished(self.path), json.dumps(seconds))

    def _show(self, step: int, values: dict[str, float]) -> None:
        for name in values.keys() - {"seconds"}:
            self._writer.add_scalar(name, values[name], step)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the line that was being written when the process was killed
        return None
