"""One training step: its settings, the state that it changes, the optimizer, and the jitted step.

`make_train_step` turns the loss of any `Method` into one compiled function with donated state,
`make_train_steps` into one that takes several steps.
`train.py` is the loop around it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from ilql_jax import sharding
from ilql_jax.batching import Batch
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.methods.method import Method, Metrics
from ilql_jax.models import ModelConfig, Params, abstract_params, init_params, with_params
from ilql_jax.partition import combine, partition
from ilql_jax.preferences import PreferenceBatch
from ilql_jax.settings import SettingError, Settings, setting

AnyBatch = Batch | PreferenceBatch


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Length and speed of a training. The defaults are for small networks trained from scratch."""

    steps: int = setting("Optimizer steps.", least=1)
    learning_rate: float = setting(
        "Peak of the schedule: linear warm-up, then a cosine down to zero.", 3e-3, above=0
    )
    optimizer: str = setting(
        "muon: the trunks' matrices move along their orthogonalized momentum (Jordan et al., "
        "2024), all else by AdamW; or adamw.",
        "muon",
        choices=("adamw", "muon"),
    )
    muon_learning_rate: float = setting("Peak for those matrices.", 0.01, above=0)
    warmup_steps: int = setting("Length of the warm-up.", 200, least=0)
    weight_decay: float = setting("Weight decay of matrices.", 0.01, least=0)
    max_gradient_norm: float = setting(
        "Gradients are clipped to this global norm; those of policy and values each to it where "
        "the values have a trunk of their own.",
        1.0,
        above=0,
    )
    polyak_rate: float = setting(
        "Step of the target network towards the one that learns (ILQL: 0.005).",
        0.005,
        above=0,
        most=1,
    )
    checkpoint_every: int = setting(
        "Steps between checkpoints.", 1000, least=1, shapes_result=False
    )
    log_every: int = setting("Steps between log entries.", 50, least=1, shapes_result=False)
    gradient_accumulation: int = setting(
        "Parts that a batch's rows are processed in, one after the other, for one optimizer step: "
        "the same gradient (to rounding) with a part's activations in memory.",
        1,
        least=1,
        shapes_result=False,
    )
    steps_per_dispatch: int = setting(
        "Optimizer steps in one call of the device; results are the same to rounding. Saves the "
        "host's time between calls: for small networks on an accelerator. Metrics arrive a call at "
        "a time. Has to divide checkpoint_every.",
        1,
        least=1,
        shapes_result=False,
    )
    freeze_trunk: bool = setting(
        "Keep the policy as the training started from: values alone are learned, with their own "
        "trunk where they have one, to steer or re-rank it.",
        False,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint_every % self.steps_per_dispatch:
            raise SettingError(
                "steps_per_dispatch",
                self.steps_per_dispatch,
                f"must divide checkpoint_every ({self.checkpoint_every}), before which a call has "
                "to end. Change one of the two",
            )


class TrainState(NamedTuple):
    """Arrays that a step changes.

    Attributes:
        step: Steps taken.
        params: Trainable parameters of the `ActorCritic` (see `partition.py`), nested dicts.
        targets: Moving averages of the groups that the method names `polyak_averaged`; none for a
            method that names none.
        optimizer: optax's state.
    """

    step: Int[Array, ""]
    params: Params
    targets: Params
    optimizer: optax.OptState


def train_config_of(method: Method, shared: TrainConfig) -> TrainConfig:
    """An experiment's shared training with the changes that belong to a method."""
    if method.train is None:
        return shared
    factor = method.train.learning_rate_factor
    return dataclasses.replace(
        shared,
        steps=method.train.steps,
        learning_rate=factor * shared.learning_rate,
        muon_learning_rate=factor * shared.muon_learning_rate,
    )


# --- checks -------------------------------------------------------------------------------------


def check_step(model_config: ModelConfig, method: Method, config: TrainConfig) -> None:
    """Checks that network, method and training fit together.

    Raises:
        SettingError: Nothing is left to learn, or adapters in a frozen trunk.
        MethodError: A part of the network would be carried along for nothing.
    """
    check_learns(method, config)
    check_adapters(model_config, config)
    method.check_network(model_config)


def check_learns(method: Method, config: TrainConfig) -> None:
    """Raises `SettingError` if the method has nothing left to learn."""
    if config.freeze_trunk and not method.learns_values:
        raise SettingError(
            "freeze_trunk",
            True,
            f"{method.name} learns the policy alone, which is in the trunk. Train a method that "
            "learns values (ilql, mc), or set it to false",
        )


def check_adapters(model_config: ModelConfig, config: TrainConfig) -> None:
    """Raises `SettingError` if there are adapters that could not learn."""
    if config.freeze_trunk and model_config.decoder.lora_rank:
        raise SettingError(
            "freeze_trunk",
            True,
            f"lora_rank is {model_config.decoder.lora_rank}: adapters learn in the trunk, which is "
            "frozen beside them. Set one of the two back",
        )


def check_accumulation(rows: int, parts: int) -> None:
    """Raises `SettingError` if a batch of so many rows cannot be split into so many parts."""
    if rows % parts:
        raise SettingError(
            "gradient_accumulation", parts, f"must divide the {rows} rows of a batch"
        )


# --- state --------------------------------------------------------------------------------------


def init_state(
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    seed: int,
    start: Params | None = None,
    donate_start: bool = False,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state of a fresh network, or of a copy of the parameters `start`.

    Args:
        model_config: Shape of the network.
        method: Method that is trained; its Polyak-averaged groups start as copies.
        config: Optimizer; where a part of the network is frozen, the state holds the rest alone.
        seed: Seed of a fresh network.
        start: All parameters of the network; None = fresh ones.
        donate_start: Take over the arrays of `start`, so that memory never holds them twice.
        mesh: Each device initializes its own shard; values equal single-device initialization.
    """

    def trainable(params: Params) -> Params:
        freezes = is_partly_frozen(model_config, config)
        return partition(model_config, params)[1] if freezes else params

    def create(start: Params | None) -> TrainState:
        if start is None:
            params = trainable(init_params(model_config, seed))
        else:
            params = jax.tree.map(jnp.copy, start)  # steps donate the state that they are given
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            targets=jax.tree.map(jnp.copy, averaged_groups(method, params)),
            optimizer=make_optimizer(config).init(params),
        )

    start = None if start is None else trainable(start)
    donated = 0 if donate_start else ()
    if mesh is None:
        return jax.jit(create, donate_argnums=donated)(start)
    layout = sharding.shardings(jax.eval_shape(create, start), mesh)
    return jax.jit(create, out_shardings=layout, donate_argnums=donated)(start)


def averaged_groups(method: Method, params: Params) -> Params:
    """Groups of trainable parameters that have a slowly moving copy; a frozen one needs none."""
    return {name: params[name] for name in method.polyak_averaged if name in params}


def abstract_state(model_config: ModelConfig, method: Method, config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the training state."""
    # From the parameters' shapes, which are known once traced: their initialization is the slow
    # part of tracing a fresh state.
    shapes = abstract_params(model_config)
    return jax.eval_shape(lambda start: init_state(model_config, method, config, 0, start), shapes)


def abstract_frozen(model_config: ModelConfig, config: TrainConfig) -> Params | None:
    """Shapes and dtypes of the frozen parameters, None where there are none."""
    if not is_partly_frozen(model_config, config):
        return None
    return partition(model_config, abstract_params(model_config))[0]


def is_partly_frozen(model_config: ModelConfig, config: TrainConfig) -> bool:
    """Tells whether there are parameters that are not trained."""
    return config.freeze_trunk or model_config.decoder.lora_rank > 0


# --- step ---------------------------------------------------------------------------------------


def make_train_step(
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles one step of a method: `step(state, batch)` gives the next state and metrics.

    The state passed in is donated. Where a part of the network is frozen, that part is an argument
    too, `step(state, batch, frozen)`, and stays.

    With a mesh, the state is laid out by `sharding.RULES`, the batch by rows, and the metrics are
    on every device.

    Raises:
        SettingError, MethodError: See `check_step`.
    """
    step = _step_of(model_config, method, config)
    return _compiled(step, model_config, method, config, mesh, stacked=False)


def make_train_steps(
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles several steps as one program: `steps(state, batches)`, like `make_train_step`.

    Batches are stacked along a new first axis, a step each (`stack_batches`); so are the metrics.
    """
    step = _step_of(model_config, method, config)

    def steps(state: TrainState, batches: AnyBatch, *frozen: Params) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch, *frozen), state, batches)

    return _compiled(steps, model_config, method, config, mesh, stacked=True)


def stack_batches(batches: Sequence[AnyBatch]) -> AnyBatch:
    """Stacks batches (numpy) along a new first axis, for `make_train_steps`."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def _step_of(
    model_config: ModelConfig, method: Method, config: TrainConfig
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One step as a pure function, not compiled."""
    check_step(model_config, method, config)
    freezes = is_partly_frozen(model_config, config)
    optimizer = make_optimizer(config)

    def step(
        state: TrainState, batch: AnyBatch, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        if freezes != (frozen is not None):
            raise ValueError(
                f"a step takes frozen parameters exactly where there are any: freeze_trunk is "
                f"{config.freeze_trunk}, lora_rank {model_config.decoder.lora_rank}."
            )

        def network(trainable: Params):
            params = combine(frozen, trainable) if freezes else trainable
            return with_params(model_config, params)

        target = network(state.params | state.targets)
        progress = state.step / config.steps
        normalizers = normalizers_of(batch)

        def loss_of(params: Params, part: AnyBatch):
            return method.loss(
                network(params),
                target,
                part,
                method.config,
                progress=progress,
                normalizers=normalizers,
            )

        def gradients_of(part: AnyBatch) -> tuple[Params, Metrics]:
            (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, part
            )
            return gradients, metrics | {"loss": loss}

        gradients, metrics = accumulated(gradients_of, batch, config.gradient_accumulation)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradients),
            # Of the new parameters: one that is not finite must be seen before it is saved.
            "parameter_norm": optax.tree.norm(params),
        }
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            targets=optax.incremental_update(
                averaged_groups(method, params), state.targets, config.polyak_rate
            ),
            optimizer=optimizer_state,
        )
        return new_state, metrics

    return step


def _compiled(
    function: Callable[..., tuple[TrainState, Metrics]],
    model_config: ModelConfig,
    method: Method,
    config: TrainConfig,
    mesh: Mesh | None,
    stacked: bool,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles a step, or steps over stacked batches, for a mesh."""
    if mesh is None:
        return jax.jit(function, donate_argnums=0)

    # Keeps the name, by which the profiler and the machine plan find the program.
    @functools.wraps(function)
    def on_mesh(*arguments: Any) -> tuple[TrainState, Metrics]:
        with sharding.tracing_for(mesh):
            return function(*arguments)

    layout = sharding.shardings(abstract_state(model_config, method, config), mesh)
    rows = sharding.batch_sharding(mesh, stacked)
    frozen = abstract_frozen(model_config, config)
    frozen_layout = [] if frozen is None else [sharding.shardings(frozen, mesh)]
    return jax.jit(
        on_mesh,
        in_shardings=(layout, rows, *frozen_layout),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def accumulated(function: Callable[[AnyBatch], Any], batch: AnyBatch, parts: int) -> Any:
    """Sums a function over parts of the batch, processed one after the other.

    Raises:
        SettingError: The rows cannot be split evenly.
    """
    if parts == 1:
        return function(batch)
    rows = len(jax.tree.leaves(batch)[0])
    check_accumulation(rows, parts)

    def split(x: Array) -> Array:
        # Row by row in turn: so rows on several devices are spread over them in each part.
        return jnp.swapaxes(x.reshape(rows // parts, parts, *x.shape[1:]), 0, 1)

    stacked = jax.tree.map(split, batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], stacked))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, stacked)[0]


# --- optimizer ----------------------------------------------------------------------------------


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


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips to a norm over all; where policy and values share nothing, to one over each.

    optax's own selects between two forms of each gradient, and a second copy of it is made; one
    factor is fused into whatever reads the gradient.
    """

    def clipped(gradients: Params) -> Params:
        factor = max_norm / jnp.maximum(optax.tree.norm(gradients), max_norm)
        return jax.tree.map(lambda x: (x * factor).astype(x.dtype), gradients)

    def update(gradients, state, params=None):
        del params
        if "value_trunk" not in gradients:
            return clipped(gradients), state
        of_policy = {name: group for name, group in gradients.items() if name == "trunk"}
        of_values = {name: group for name, group in gradients.items() if name != "trunk"}
        return clipped(of_policy) | clipped(of_values), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _is_matrix(params: Params) -> Any:
    """Mask of weight decay: matrices; biases and norms are left alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key.endswith(("kernel", "embedding", "lora_a", "lora_b")), params
    )


def _trunk_matrices(params: Params) -> Any:
    """Labels of the two optimizers under Muon."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "trunk" if path[1].key == "blocks" and path[-1].key == "kernel" else "rest",
        params,
    )
