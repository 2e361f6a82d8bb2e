"""The training loop: batches in, checkpoints and metrics out.

`train` feeds batches to the step of `train_step.py`, saves and resumes, and reads the metrics of a
call only after the next one has been started, so that the device does not wait for that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ilql_jax import sharding
from ilql_jax.batching import PackingConfig, check_trajectories, make_batches
from ilql_jax.checkpoint import Checkpoints
from ilql_jax.errors import UserError
from ilql_jax.methods.method import Method, MethodError, Metrics, check_method
from ilql_jax.models import ModelConfig, Params
from ilql_jax.partition import (
    FROZEN,
    check_shapes,
    check_start,
    combine,
    fingerprint,
    initialize,
    partition,
)
from ilql_jax.preferences import Preferences, check_pairs, make_preference_batches
from ilql_jax.progress import progress_bar
from ilql_jax.scoring import pair_log_probs
from ilql_jax.settings import SettingError, runtime_fields
from ilql_jax.train_step import (
    TrainConfig,
    TrainState,
    abstract_state,
    check_accumulation,
    check_step,
    init_state,
    is_partly_frozen,
    make_train_step,
    make_train_steps,
    stack_batches,
)
from ilql_jax.trajectory import Trajectory, TrajectoryError

OnMetrics = Callable[[int, dict[str, float]], None]


class NotFiniteError(UserError, FloatingPointError):
    """The loss became NaN or infinite. The last good checkpoint is untouched."""


def train(
    data: Sequence[Trajectory] | Preferences,
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    packing: PackingConfig,
    seed: int,
    folder: str | Path,
    *,
    metadata: dict[str, Any] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_metrics: OnMetrics | None = None,
    validate: Callable[[int, Params], dict[str, float]] | None = None,
    validate_every: int = 500,
    start_from: Callable[[], Params] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Params:
    """Trains one method from its start, or on from the folder's last checkpoint.

    The start is a fresh network or what `start_from` gives; for a method that learns from pairs,
    the reference.

    On several hosts every process calls this with the same arguments, `folder` on a file system
    that they share. Each packs the same rows and moves its own to its devices, so that batches,
    and the position that is saved, do not depend on how many hosts there are.

    Args:
        data: Trajectories, of which the method selects (`Method.select`); or preferences for one
            that learns from pairs.
        model_config: Shape of the network.
        method: Method that is learned by, with its settings (see `methods/`).
        config: Length and speed.
        packing: Shape of the batches (see `packing_for`, and for pairs `packing_for_pairs`).
        seed: Seed of the initial weights and of the order of the data.
        folder: Checkpoints go here.
        metadata: Plain JSON kept with every checkpoint, beside the configs.
        on_start: Called once with the number of steps already taken.
        on_metrics: Called every `log_every` steps with the step and its metrics, and with those of
            the validation.
        validate: Called with the step and the network's parameters every `validate_every` steps
            and after the last; its metrics go to `on_metrics`, named "validation/...". The training
            is the same with and without. Parameters are valid during the call only: the next step
            overwrites them.
        validate_every: Steps between validations.
        start_from: Makes the parameters to start from, e.g. of a pretrained network (see
            `hugging_face.read.start_params`); called only where nothing was saved yet, or where a
            part is frozen, which no checkpoint holds. Adapters need it, or a reference.
        mesh: Devices to train on (see `sharding.make_mesh`); None = the first. A run may go on on
            another mesh than it began on.
        progress: Show a bar in the terminal.

    Returns:
        The network's parameters, laid out on the mesh (see `sharding.on_host`).

    Raises:
        TrajectoryError: Data that breaks the contract, is longer than the network's context, or has
            tokens beyond its vocabulary; before anything is compiled, as the next three.
        MethodError: The data is not what the method learns from, or the network not what it trains.
        SettingError: Settings that exclude each other, or adapters without a start.
        MeshError: The mesh does not divide the rows or a parameter.
        CheckpointError: The folder holds a checkpoint of another run, or one made beside frozen
            parameters or a reference that were others. Settings that shape no result may differ.
        ParamsError: The reference, or what `start_from` gives, is a network of another shape.
        NotFiniteError: The loss became NaN or infinite.
    """
    check_method(method)
    check_accumulation(packing.batch_rows, config.gradient_accumulation)
    check_start(model_config, start_from is not None or isinstance(data, Preferences))
    check_step(model_config, method, config)
    if validate_every < 1:
        raise SettingError("validate_every", validate_every, "must be at least 1")
    if validate is not None and validate_every % config.steps_per_dispatch:
        raise SettingError(
            "validate_every",
            validate_every,
            f"must be a multiple of steps_per_dispatch ({config.steps_per_dispatch}). Change one "
            "of the two",
        )
    state_shapes = abstract_state(model_config, method, config)
    if mesh is not None:
        sharding.check_rows(packing.batch_rows, mesh, config.gradient_accumulation)
        state_shapes = sharding.with_shardings(state_shapes, mesh)
    batches = _make_batches(data, model_config, method, packing, seed, mesh)

    checkpoints = Checkpoints(
        folder,
        run_metadata(model_config, method, config, packing, seed) | (metadata or {}),
        runtime=runtime_metadata(model_config, method, config, packing),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        at_once = config.steps_per_dispatch
        one_step = make_train_step(model_config, method, config, mesh)
        several = make_train_steps(model_config, method, config, mesh) if at_once > 1 else one_step
        state, frozen = _start(
            data,
            model_config,
            method,
            config,
            seed,
            start_from,
            mesh,
            checkpoints,
            batches,
            state_shapes,
        )
        beside = () if frozen is None else (frozen,)
        first = int(state.step)
        if on_start:
            on_start(first)
        report = _Report(method, config, checkpoints, on_metrics)
        if progress and sharding.is_first_host():
            report.bar = stack.enter_context(progress_bar(method.title, config.steps))
            report.bar(first, "compiling")

        pending: tuple[int, int, Metrics] | None = None  # first step, number of steps, metrics
        step = first
        while step < config.steps:
            # Calls begin at multiples, so none reaches over a checkpoint or a validation.
            count = at_once if step % at_once == 0 and step + at_once <= config.steps else 1
            batch = next(batches)
            if count > 1:
                batch = stack_batches([batch, *(next(batches) for _ in range(count - 1))])
            if mesh is not None:
                batch = sharding.place_batch(batch, mesh, stacked=count > 1)
            state, metrics = (several if count > 1 else one_step)(state, batch, *beside)
            if pending is not None:
                report(*pending)
            pending = step + 1, count, metrics
            step += count
            is_last = step == config.steps
            validates = validate is not None and (step % validate_every == 0 or is_last)
            saves = step % config.checkpoint_every == 0 or is_last
            if validates or saves:
                report(*pending)  # nothing that is not finite may be saved
                pending = None
            if validates:
                report.validation(step, validate(step, _whole(frozen, state.params)))
            if saves:
                checkpoints.save(step, state, batches.get_state())
    return _whole(frozen, state.params)


class _Report:
    """Passes metrics on, after checking that they are finite."""

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        checkpoints: Checkpoints,
        on_metrics: OnMetrics | None,
    ):
        self.bar: Callable[[int, str], None] | None = None
        self._method, self._config = method, config
        self._checkpoints, self._on_metrics = checkpoints, on_metrics

    def __call__(self, first: int, count: int, metrics: Metrics) -> None:
        """Reports the metrics of a call, once it is done; those of several steps are stacked.

        Raises:
            NotFiniteError: One of them is NaN or infinite.
        """
        fetched = jax.device_get(metrics)
        for index in range(count):
            values = {
                name: float(value[index] if count > 1 else value) for name, value in fetched.items()
            }
            self._report(first + index, values)

    def _report(self, step: int, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            name = next(name for name, value in values.items() if not math.isfinite(value))
            raise NotFiniteError(
                f"{self._method.name}: {name} became {values[name]} at step {step}. The last good "
                f"checkpoint is step {self._checkpoints.latest_step() or 0}, in "
                f"{self._checkpoints.folder}. Lower the learning rate "
                f"({self._config.learning_rate}) or look at the data."
            )
        if self.bar:
            self.bar(step, f"loss {values['loss']:.3f}")
        logged = step % self._config.log_every == 0 or step in (1, self._config.steps)
        if self._on_metrics and logged:
            self._on_metrics(step, values)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Reports the metrics of a validation."""
        if self._on_metrics:
            named = {f"validation/{name}": float(value) for name, value in metrics.items()}
            self._on_metrics(step, named)


# --- data ---------------------------------------------------------------------------------------


def _make_batches(
    data: Sequence[Trajectory] | Preferences,
    model_config: ModelConfig,
    method: Method,
    packing: PackingConfig,
    seed: int,
    mesh: Mesh | None,
) -> grain.DatasetIterator:
    """Checks the data, then lays it out for the method."""
    on_pairs = isinstance(data, Preferences)
    if on_pairs != (method.learns_from == "pairs"):
        raise MethodError(
            f"method {method.name!r} learns from {method.learns_from}, but got "
            f"{'`Preferences`' if on_pairs else 'no `Preferences`'}."
        )
    # Positions are counted in each trajectory, so rows may be longer than the network's context.
    longest = min(packing.row_length, model_config.decoder.max_positions)
    vocab_size = model_config.decoder.vocab_size
    if not on_pairs:
        check_trajectories(data, longest)
        check_tokens(data, vocab_size)
        selected = method.select_trajectories(data)
        return make_batches(selected, packing, seed)
    check_pairs(data.pairs, longest)
    check_tokens([half for pair in data.pairs for half in (pair.chosen, pair.rejected)], vocab_size)
    check_shapes(model_config, data.reference, "reference")
    rows = 4 * packing.batch_rows
    log_prob = pair_log_probs(data.pairs, model_config, data.reference, rows, mesh)
    return make_preference_batches(data.pairs, log_prob, packing, seed)


def check_tokens(trajectories: Sequence[Trajectory], vocab_size: int) -> None:
    """Raises `TrajectoryError` on the first token that the network's vocabulary does not have."""
    for trajectory in trajectories:
        outside = (trajectory.tokens < 0) | (trajectory.tokens >= vocab_size)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise TrajectoryError(
                f"{trajectory.name}: tokens[{at}] is {trajectory.tokens[at]}, but the network's "
                f"vocabulary has {vocab_size:,} tokens, 0 to {vocab_size - 1}. Use the tokenizer "
                "that belongs to the network, or raise vocab_size."
            )


# --- start --------------------------------------------------------------------------------------


def _start(
    data: Sequence[Trajectory] | Preferences,
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    seed: int,
    start_from: Callable[[], Params] | None,
    mesh: Mesh | None,
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator,
    state_shapes: TrainState,
) -> tuple[TrainState, Params | None]:
    """State of the first step or of the last checkpoint, and the frozen parameters beside it."""
    reference = data.reference if isinstance(data, Preferences) else None
    if reference is not None:
        checkpoints.metadata["reference"] = fingerprint(reference)
    start, frozen = None, None
    if is_partly_frozen(model_config, config):
        start = reference or initialize(model_config, seed, start_from, mesh)
        if mesh is not None:  # moves nothing that lies there already
            start = jax.device_put(start, sharding.shardings(start, mesh))
        frozen, _ = partition(model_config, start)
        checkpoints.metadata[FROZEN] = fingerprint(frozen)
    restored = checkpoints.restore(state_shapes)
    if restored is not None:
        state, position = restored
        batches.set_state(position)
        return state, frozen
    start = start or reference
    if start is None and start_from is not None:
        start = initialize(model_config, seed, start_from, mesh)
    donates = reference is None
    return init_state(model_config, method, config, seed, start, donates, mesh), frozen


def _whole(frozen: Params | None, trainable: Params) -> Params:
    """All parameters of the network."""
    return trainable if frozen is None else combine(frozen, trainable)


# --- metadata -----------------------------------------------------------------------------------


def run_metadata(
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    packing: PackingConfig,
    seed: int,
) -> dict[str, Any]:
    """Identity of a training run, as plain JSON."""
    return {
        "model": dataclasses.asdict(model_config),
        "method": {"name": method.name, **dataclasses.asdict(method.config)},
        "train": dataclasses.asdict(config),
        "packing": dataclasses.asdict(packing),
        "seed": seed,
    }


def runtime_metadata(
    model_config: ModelConfig, method: Method, config: TrainConfig, packing: PackingConfig
) -> frozenset[str]:
    """Entries of `run_metadata` that shape no result, as "train.log_every"."""
    sections = {"model": model_config, "method": method.config, "train": config, "packing": packing}
    return frozenset(
        f"{section}.{name}"
        for section, settings in sections.items()
        for name in runtime_fields(type(settings))
    )
