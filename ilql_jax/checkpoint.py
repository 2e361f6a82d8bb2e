"""Checkpoints by Orbax: training state, position in the data, and the identity of the run.

A checkpoint is written whole or not at all, so a process killed at any moment leaves the last
complete one. `metadata` is plain JSON (model config, method, reward scale, ...): it tells another
process how to rebuild the network, and this one whether the checkpoint is its own. Entries that
shape no result (named in `runtime`) may differ when a run goes on.

An array is saved by the devices that hold it, on every host, and read onto whatever mesh is asked
for. On several hosts each process makes these calls, on a folder that they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ilql_jax import sharding
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.partition import FROZEN, combine, fingerprint, initialize, partition
from ilql_jax.settings import runtime_fields


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing or of another model. The message says what to do."""


class Checkpoints:
    """The checkpoints of one training run, in one folder.

    Args:
        folder: Of the run; made when first saved to.
        metadata: Plain JSON saved with each, and compared when one is restored.
        runtime: Entries that are not compared, nested ones as "outer.inner".
        keep: Number of the newest that stay.
    """

    def __init__(
        self,
        folder: str | Path,
        metadata: Mapping[str, Any],
        runtime: Collection[str] = (),
        keep: int = 2,
    ):
        self.folder = Path(folder).absolute()
        self.metadata = dict(metadata)
        self.runtime = frozenset(runtime)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_position: Mapping[str, Any]) -> None:
        """Saves the state (a pytree of arrays) and the input pipeline's `get_state()`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(dict(data_position)),
                metadata=ocp.args.JsonSave(self.metadata),
            ),
        )

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state and data position, or None where nothing was saved yet.

        Args:
            abstract_state: Shapes and dtypes of the state, e.g. from `jax.eval_shape`, with the
                layout of arrays on a mesh if there is one (see `sharding.with_shardings`).

        Raises:
            CheckpointError: The checkpoint was made from other metadata; the message names the
                entries that differ.
        """
        step = self.latest_step()
        if step is None:
            return None
        saved = read_metadata(self.folder)
        differing = _differences(saved, self.metadata, self.runtime)
        if differing:
            raise CheckpointError(
                f"{self.folder} holds a checkpoint of another run: {'; '.join(differing)}. "
                "Use another folder, or set these back."
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_on_this_device(abstract_state)),
                data=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of the newest checkpoint in a folder.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(folder).absolute()
    with _open_for_reading(folder) as manager:
        metadata = manager.restore(
            manager.latest_step(), args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )["metadata"]
    if "model" in metadata:
        # Fields that were added to the config since have their defaults.
        metadata["model"] = dataclasses.asdict(ModelConfig.from_dict(metadata["model"]))
    return metadata


def restore_params(
    folder: str | Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    start_from: Callable[[], Params] | None = None,
) -> Params:
    """The network's parameters alone, out of the newest training state in a folder.

    Parameters that were frozen in training are not in there: they are those of the start.

    Args:
        folder: Of a training run.
        config: Shape of the network.
        mesh: Devices that the parameters are laid out on; None = all on the first.
        start_from: As given to `train.train`; called only where a part was frozen.

    Raises:
        CheckpointError: No checkpoint there, or one of a network of another shape, or one made
            beside frozen parameters other than those of `start_from`.
        SettingError: Adapters, and no `start_from`.
    """
    folder = Path(folder).absolute()
    metadata = read_metadata(folder)
    differing = _differences(
        metadata["model"], dataclasses.asdict(config), runtime_fields(ModelConfig)
    )
    if differing:
        raise CheckpointError(
            f"{folder} holds a checkpoint of a network of another shape: {'; '.join(differing)}."
        )
    shapes = abstract_params(config)
    if FROZEN in metadata:
        start = initialize(config, metadata["seed"], start_from, mesh)
        frozen, _ = partition(config, start)
        del start
        if fingerprint(frozen) != metadata[FROZEN]:
            raise CheckpointError(
                f"{folder} holds what was learned beside frozen parameters that were others than "
                "those given now: the pretrained model has changed since, or another was given. "
                "Put it back, or train again."
            )
        _, shapes = partition(config, shapes)
    laid_out = _on_this_device(shapes) if mesh is None else sharding.with_shardings(shapes, mesh)
    wanted = {"params": laid_out}
    with _open_for_reading(folder) as manager:
        restored = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    wanted,
                    restore_args=jax.tree.map(
                        lambda x: ocp.ArrayRestoreArgs(
                            global_shape=x.shape, dtype=x.dtype, sharding=x.sharding
                        ),
                        wanted,
                    ),
                    partial_restore=True,
                )
            ),
        )
    trainable = restored["state"]["params"]
    return combine(frozen, trainable) if FROZEN in metadata else trainable


def _open_for_reading(folder: Path) -> ocp.CheckpointManager:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of checkpoints. Train first.")
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    if manager.latest_step() is None:
        raise CheckpointError(f"{folder}: holds no complete checkpoint. Train first.")
    return manager


def _on_this_device(abstract: Any) -> Any:
    """Puts arrays without a layout on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract
    )


def _differences(
    saved: Mapping, current: Mapping, runtime: Collection[str], prefix: str = ""
) -> list[str]:
    """Descriptions of the entries that differ, but for those named in `runtime`."""
    differences = []
    for name in sorted({*saved, *current}):
        path = f"{prefix}{name}"
        if path in runtime:
            continue
        old, new = saved.get(name), current.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += _differences(old, new, runtime, f"{path}.")
        elif _as_json(old) != _as_json(new):
            differences.append(f"{path} was {old!r}, now {new!r}")
    return differences


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
