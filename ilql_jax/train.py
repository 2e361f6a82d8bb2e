"""Training: the state, one jitted step, and the loop around it.

`make_train_step` turns any objective of `objectives.py` into one compiled function with donated
state. `train` feeds it batches, saves and resumes, and reads the metrics of a step only after the
next one has been started, so that the device never waits for the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from ilql_jax import sharding
from ilql_jax.batching import Batch, PackingConfig, check_trajectories, make_batches
from ilql_jax.checkpoint import Checkpoints
from ilql_jax.errors import UserError
from ilql_jax.models import (
    ModelConfig,
    Params,
    abstract_params,
    init_params,
    target_q_heads,
    with_params,
)
from ilql_jax.objectives import (
    LEARNS_FROM_PAIRS,
    LEARNS_VALUES,
    OBJECTIVES,
    ObjectiveConfig,
    check_network,
    totals_of,
)
from ilql_jax.partition import (
    FROZEN,
    check_start,
    fingerprint,
    join_params,
    split_params,
    start_or_fresh,
)
from ilql_jax.preferences import (
    PreferenceBatch,
    Preferences,
    check_pairs,
    make_preference_batches,
)
from ilql_jax.scoring import pair_log_probs
from ilql_jax.trajectory import Trajectory

AnyBatch = Batch | PreferenceBatch


class NotFiniteError(UserError, FloatingPointError):
    """The loss became NaN or infinite. The last good checkpoint is untouched."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how fast.

    Attributes:
        steps: Optimizer steps.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine down to zero.
        optimizer: "adamw", or "muon": the trunks' matrices are moved along their orthogonalized
            momentum (Jordan et al., 2024), everything else by AdamW.
        muon_learning_rate: Peak for those matrices; read only if `optimizer` is "muon".
        warmup_steps: Length of the warm-up.
        weight_decay: AdamW's.
        max_gradient_norm: Gradients are clipped to this global norm; those of policy and values
            each to it where the values have a trunk of their own.
        polyak_rate: Step of the target Q heads towards the Q heads (ILQL: 0.005).
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between log entries.
        gradient_accumulation: Parts that a batch's rows are looked at in, one after the other, for
            one optimizer step: the same gradient (to rounding) with a part's activations in memory.
        freeze_trunk: The policy's trunk does not learn, and neither optimizer nor checkpoints keep
            anything of it (see `frozen.py`): the policy stays what the training started from, and
            is steered or re-ranked by the value heads, which learn, with their own trunk where
            they have one.
    """

    steps: int
    learning_rate: float
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.01
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    polyak_rate: float = 0.005
    checkpoint_every: int = 500
    log_every: int = 20
    gradient_accumulation: int = 1
    freeze_trunk: bool = False

    def __post_init__(self):
        for name in ("steps", "checkpoint_every", "log_every", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is {self.optimizer!r}, but must be adamw or muon.")
        for name in ("learning_rate", "muon_learning_rate", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0.")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must not be negative.")
        if not 0 < self.polyak_rate <= 1:
            raise ValueError(f"polyak_rate is {self.polyak_rate}, but must lie in (0, 1].")


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: Steps taken.
        params: Of the `ActorCritic`, nested dicts of arrays (see `models.actor_critic`); those
            that are learned (see `frozen.py`).
        target_q: Of the target copy of the Q heads.
        optimizer: optax's state.
    """

    step: Int[Array, ""]
    params: Params
    target_q: Params
    optimizer: optax.OptState


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW or Muon with clipping, a linear warm-up and a cosine decay to zero."""
    warmup = min(config.warmup_steps, config.steps // 2)

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.steps, end_value=0.0)

    update = optax.adamw(
        schedule(config.learning_rate), weight_decay=config.weight_decay, mask=_is_matrix
    )
    if config.optimizer == "muon":
        # Without optax's own AdamW beside it: that would take the embeddings and heads in too.
        muon = optax.contrib.muon(
            schedule(config.muon_learning_rate),
            weight_decay=config.weight_decay,
            # The last two axes: layers may be stacked in front of them.
            muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
        )
        update = optax.partition({"trunk": muon, "rest": update}, _trunk_matrices)
    return optax.chain(_clip_by_global_norm(config.max_gradient_norm), update)


def init_state(
    model_config: ModelConfig,
    train_config: TrainConfig,
    seed: int,
    start: Params | None = None,
    give_up_start: bool = False,
    mesh: Mesh | None = None,
) -> TrainState:
    """A fresh network, or a copy of the parameters `start`; its target Q heads start as a copy.

    With `give_up_start` they are taken instead (donated), so that memory never holds them twice. On
    a mesh every device makes its own part alone; the values are those of one device. Of a network
    of which a part is frozen, the state has what is learned alone.
    """

    def learned(params: Params) -> Params:
        freezes = is_partly_frozen(model_config, train_config)
        return split_params(model_config, params)[1] if freezes else params

    def create(start: Params | None) -> TrainState:
        if start is None:
            params = learned(init_params(model_config, seed))
        else:
            # A copy, since steps give up the state that they are given.
            params = jax.tree.map(jnp.copy, start)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_q=jax.tree.map(jnp.copy, params["q"]),
            optimizer=make_optimizer(train_config).init(params),
        )

    start = None if start is None else learned(start)
    donated = 0 if give_up_start else ()
    if mesh is None:
        return jax.jit(create, donate_argnums=donated)(start)
    layout = sharding.shardings(jax.eval_shape(create, start), mesh)
    return jax.jit(create, out_shardings=layout, donate_argnums=donated)(start)


def abstract_state(model_config: ModelConfig, train_config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the training state."""
    return jax.eval_shape(lambda: init_state(model_config, train_config, 0))


def abstract_frozen(model_config: ModelConfig, train_config: TrainConfig) -> Params | None:
    """Shapes and dtypes of what is frozen, None where nothing is."""
    if not is_partly_frozen(model_config, train_config):
        return None
    return split_params(model_config, abstract_params(model_config))[0]


def is_partly_frozen(model_config: ModelConfig, train_config: TrainConfig) -> bool:
    """Whether there are parameters that are not learned."""
    return train_config.freeze_trunk or model_config.decoder.lora_rank > 0


def make_train_step(
    model_config: ModelConfig,
    objective: ObjectiveConfig,
    config: TrainConfig,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One step of a method, compiled: `step(state, batch)` gives the next state and metrics.

    The state passed in is given up (donated). Where a part of the network is frozen, that part is
    given too, `step(state, batch, frozen)`, and stays.

    With a mesh, the state is laid out as `sharding.RULES` say, the batch by rows, and the metrics
    are on every device.
    """
    check_learns(objective.method, config)
    check_adapters(model_config, config)
    check_network(objective.method, model_config)
    freezes = is_partly_frozen(model_config, config)
    optimizer = make_optimizer(config)
    compute_loss = OBJECTIVES[objective.method]

    def step(
        state: TrainState, batch: AnyBatch, frozen: Params | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        if freezes != (frozen is not None):
            raise ValueError(
                f"a step takes what is frozen exactly where something is: freeze_trunk is "
                f"{config.freeze_trunk}, lora_rank {model_config.decoder.lora_rank}."
            )

        def whole(params: Params) -> Params:
            return join_params(frozen, params) if freezes else params

        target_q = target_q_heads(model_config, state.target_q, whole(state.params))
        progress = state.step / config.steps
        totals = totals_of(batch)

        def loss_of(params, part):
            model = with_params(model_config, whole(params))
            return compute_loss(model, target_q, part, objective, progress, totals)

        gradients, metrics = accumulated(
            lambda part: jax.grad(loss_of, has_aux=True)(state.params, part),
            batch,
            config.gradient_accumulation,
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradients),
            # Of the new parameters: what is not finite must be seen before it is saved.
            "parameter_norm": optax.tree.norm(params),
        }
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            target_q=optax.incremental_update(params["q"], state.target_q, config.polyak_rate),
            optimizer=optimizer_state,
        )
        return new_state, metrics

    if mesh is None:
        return jax.jit(step, donate_argnums=0)

    def step_on_mesh(*arguments: Any) -> tuple[TrainState, dict[str, Array]]:
        with sharding.tracing_for(mesh):
            return step(*arguments)

    layout = sharding.shardings(abstract_state(model_config, config), mesh)
    frozen_layout = sharding.shardings(abstract_frozen(model_config, config), mesh)
    return jax.jit(
        step_on_mesh,
        in_shardings=(layout, sharding.batch_sharding(mesh), *([frozen_layout] if freezes else [])),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def accumulated(function: Callable[[AnyBatch], Any], batch: AnyBatch, parts: int) -> Any:
    """The sum of a function over parts of the batch, taken one after the other.

    Raises:
        ValueError: The rows cannot be dealt out evenly.
    """
    if parts == 1:
        return function(batch)
    rows = len(jax.tree.leaves(batch)[0])
    check_parts(rows, parts)

    def deal(x: Array) -> Array:
        # Row by row in turn: so rows that lie on several devices do so in each part.
        return jnp.swapaxes(x.reshape(rows // parts, parts, *x.shape[1:]), 0, 1)

    dealt = jax.tree.map(deal, batch)
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], dealt))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, dealt)[0]


def check_learns(method: str, config: TrainConfig) -> None:
    """Raises `ValueError` if the method has nothing left to learn."""
    if config.freeze_trunk and method not in LEARNS_VALUES:
        raise ValueError(
            f"freeze_trunk is true, but {method} learns the policy alone, which is in the trunk. "
            f"Train {' or '.join(LEARNS_VALUES)}, or set it to false."
        )


def check_adapters(model_config: ModelConfig, config: TrainConfig) -> None:
    """Raises `ValueError` if there are adapters that could not learn."""
    if config.freeze_trunk and model_config.decoder.lora_rank:
        raise ValueError(
            f"freeze_trunk is true, but lora_rank is {model_config.decoder.lora_rank}: adapters "
            "learn in the trunk, which is frozen beside them. Set one of the two back."
        )


def check_parts(rows: int, parts: int) -> None:
    """Raises `ValueError` if a batch of so many rows cannot be looked at in so many parts."""
    if rows % parts:
        raise ValueError(
            f"gradient_accumulation is {parts}, which does not divide the {rows} rows of a batch."
        )


def train(
    data: Sequence[Trajectory] | Preferences,
    model_config: ModelConfig,
    objective: ObjectiveConfig,
    config: TrainConfig,
    packing: PackingConfig,
    seed: int,
    folder: str | Path,
    metadata: dict[str, Any] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    start_from: Callable[[], Params] | None = None,
    mesh: Mesh | None = None,
) -> Params:
    """Trains one method from its start, or on from the folder's last checkpoint.

    The start is a fresh network or what `start_from` gives; for a method that learns from pairs,
    the reference.

    On several hosts every process calls this with the same arguments, `folder` on a file system
    that they share. Each packs the same rows and moves its own to its devices, so that batches,
    and the position that is saved, do not depend on how many hosts there are.

    Args:
        data: What the method sees: trajectories (see `objectives.select_trajectories`), or
            preferences for one that learns from pairs.
        model_config: Shape of the network.
        objective: Method and its settings.
        config: Length, learning rate.
        packing: Shape of the batches (see `packing_for`, and for pairs `packing_for_pairs`).
        seed: Of the initial weights and of the order of the data.
        folder: Where checkpoints go.
        metadata: Plain JSON kept with every checkpoint, beside the configs.
        on_start: Called once with the number of steps already taken.
        on_metrics: Called every `log_every` steps with the step and its metrics.
        start_from: Makes the parameters to start from, e.g. of a pretrained network (see
            `models.pretrained.start_params`); called only where nothing was saved yet, or where a
            part is frozen, which no checkpoint holds. Adapters need it, or a reference.
        mesh: Devices to train on (see `sharding.make_mesh`); None = the first. A run may go on on
            another mesh than it began on.

    Returns:
        The network's parameters, laid out on the mesh (see `sharding.on_host`).

    Raises:
        TrajectoryError: Data that breaks the contract or is longer than the network's context,
            before anything is compiled.
        CheckpointError: The folder holds a checkpoint of another run, or one made beside frozen
            parameters or a reference that were others.
        NotFiniteError: The loss became NaN or infinite.
        ValueError: The data is not what the method learns from, the reference is a network of
            another shape, or the rows of a batch are not a multiple of `gradient_accumulation`;
            or adapters have nothing to start from.
        MeshError: The mesh does not divide the rows or a parameter, before anything is compiled.
    """
    check_parts(packing.batch_rows, config.gradient_accumulation)
    check_adapters(model_config, config)
    freezes = is_partly_frozen(model_config, config)
    check_start(model_config, start_from is not None or isinstance(data, Preferences))
    wanted = abstract_state(model_config, config)
    if mesh is not None:
        sharding.check_rows(packing.batch_rows, mesh, config.gradient_accumulation)
        wanted = sharding.with_shardings(wanted, mesh)
    batches = _make_batches(data, model_config, objective, packing, seed, mesh)
    reference = data.reference if isinstance(data, Preferences) else None

    def make_start() -> Params | None:
        if reference is not None:
            return reference
        if freezes:
            return start_or_fresh(model_config, seed, start_from, mesh)
        return start_from() if start_from else None

    def new_state(start: Params | None) -> TrainState:
        own = reference is None
        return init_state(model_config, config, seed, start, give_up_start=own, mesh=mesh)

    checkpoints = Checkpoints(
        folder, run_metadata(model_config, objective, config, packing, seed) | (metadata or {})
    )
    with contextlib.closing(checkpoints):
        step_function = make_train_step(model_config, objective, config, mesh)
        if reference is not None:
            checkpoints.metadata["reference"] = fingerprint(reference)
        frozen, given = None, None
        if freezes:
            given = make_start()
            if mesh is not None:  # nothing is moved that lies there already
                given = jax.device_put(given, sharding.shardings(given, mesh))
            frozen, _ = split_params(model_config, given)
            checkpoints.metadata[FROZEN] = fingerprint(frozen)
        state = _restored_or_new(
            checkpoints, batches, wanted, lambda: new_state(given if freezes else make_start())
        )
        del given  # what is learned has either moved into the state or is not needed
        beside = (frozen,) if freezes else ()
        start = int(state.step)
        if on_start:
            on_start(start)

        def report(step: int, metrics: dict[str, Array]) -> None:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(map(math.isfinite, values.values())):
                raise NotFiniteError(
                    f"{objective.method}: {_first_bad(values)} at step {step}. The last good "
                    f"checkpoint is step {checkpoints.latest_step() or 0}, in {folder}. Lower the "
                    f"learning rate ({config.learning_rate}) or look at the data."
                )
            if on_metrics and (step % config.log_every == 0 or step in (1, config.steps)):
                on_metrics(step, values)

        pending: dict[str, Array] | None = None
        for step in range(start + 1, config.steps + 1):
            batch = next(batches)
            if mesh is not None:
                batch = sharding.place_batch(batch, mesh)
            state, metrics = step_function(state, batch, *beside)
            if pending is not None:
                report(step - 1, pending)
            pending = metrics
            if step % config.checkpoint_every == 0 or step == config.steps:
                report(step, pending)  # nothing that is not finite may be saved
                pending = None
                checkpoints.save(step, state, batches.get_state())
    return join_params(frozen, state.params) if freezes else state.params


def _make_batches(
    data: Sequence[Trajectory] | Preferences,
    model_config: ModelConfig,
    objective: ObjectiveConfig,
    packing: PackingConfig,
    seed: int,
    mesh: Mesh | None,
) -> grain.DatasetIterator:
    """Checks the data, then lays it out for the method."""
    on_pairs = isinstance(data, Preferences)
    if on_pairs != (objective.method in LEARNS_FROM_PAIRS):
        raise ValueError(
            f"method {objective.method!r} learns from {'trajectories' if on_pairs else 'pairs'}, "
            f"but got {'`Preferences`' if on_pairs else 'no `Preferences`'}."
        )
    # Positions are counted in each trajectory, so rows may be longer than the network's context.
    longest = min(packing.row_length, model_config.decoder.max_positions)
    if not on_pairs:
        check_trajectories(data, longest)
        return make_batches(data, packing, seed)
    check_pairs(data.pairs, longest)
    _check_shapes(data.reference, model_config)
    rows = 4 * packing.batch_rows
    log_prob = pair_log_probs(data.pairs, model_config, data.reference, rows, mesh)
    return make_preference_batches(data.pairs, log_prob, packing, seed)


def _check_shapes(reference: Params, model_config: ModelConfig) -> None:
    found, wanted = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(
            jax.tree_util.tree_leaves_with_path, (reference, abstract_params(model_config))
        )
    )
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"reference{name} has shape {found.get(name)}, but the network's has "
                f"{wanted.get(name)}. Give the parameters of a network of the same `ModelConfig`."
            )


def _restored_or_new(
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator,
    wanted: TrainState,
    new_state: Callable[[], TrainState],
) -> TrainState:
    """The last saved state, with the batches moved to where they were; or a new one."""
    restored = checkpoints.restore(wanted)
    if restored is None:
        return new_state()
    state, position = restored
    batches.set_state(position)
    return state


def run_metadata(
    model_config: ModelConfig,
    objective: ObjectiveConfig,
    config: TrainConfig,
    packing: PackingConfig,
    seed: int,
) -> dict[str, Any]:
    """What identifies a training run, as plain JSON."""
    return {
        "model": dataclasses.asdict(model_config),
        "objective": dataclasses.asdict(objective),
        "train": dataclasses.asdict(config),
        "packing": dataclasses.asdict(packing),
        "seed": seed,
    }


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips to a norm over all; where policy and values share nothing, to one over each.

    optax's own selects between two forms of each gradient, and a second copy of it is made; one
    factor becomes part of whatever reads the gradient.
    """

    def clipped(gradients: Params) -> Params:
        factor = max_norm / jnp.maximum(optax.tree.norm(gradients), max_norm)
        return jax.tree.map(lambda x: (x * factor).astype(x.dtype), gradients)

    def update(gradients, state, params=None):
        del params
        if "value_trunk" not in gradients:
            return clipped(gradients), state
        of_policy = {name: each for name, each in gradients.items() if name == "trunk"}
        of_values = {name: each for name, each in gradients.items() if name != "trunk"}
        return clipped(of_policy) | clipped(of_values), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _is_matrix(params: Params) -> Any:
    """Weight decay is for matrices; biases and norms are left alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key.endswith(("kernel", "embedding", "lora_a", "lora_b")), params
    )


def _trunk_matrices(params: Params) -> Any:
    """Which of the two optimizers under Muon moves what."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "trunk" if path[1].key == "blocks" and path[-1].key == "kernel" else "rest",
        params,
    )


def _first_bad(values: dict[str, float]) -> str:
    name = next(name for name, value in values.items() if not math.isfinite(value))
    return f"{name} became {values[name]}"
