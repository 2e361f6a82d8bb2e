"""Checkpoints by Orbax: training state, position in the data, and what the run was made from.

A checkpoint is written whole or not at all, so a process killed at any moment leaves the last
complete one. `metadata` is plain JSON (model config, method, reward scale, ...): it tells another
process how to rebuild the network, and this one whether the checkpoint is its own.

An array is saved by the devices that hold it, on every host, and read onto whatever mesh is asked
for. On several hosts each process makes these calls, on a folder that they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ilql_jax import sharding
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.partition import FROZEN, fingerprint, join_params, split_params, start_or_fresh


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing or of another model. The message says what to do."""


class Checkpoints:
    """The checkpoints of one training run, in one folder.

    Args:
        folder: Where they lie; made when first saved to.
        metadata: Plain JSON saved with each, and compared when one is restored.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: str | Path, metadata: Mapping[str, Any], keep: int = 2):
        self.folder = Path(folder).absolute()
        self.metadata = dict(metadata)
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
            abstract_state: The state's structure, e.g. from `jax.eval_shape`; where it says how an
                array is laid out (see `sharding.with_shardings`), it is read so.

        Raises:
            CheckpointError: The checkpoint was made from other metadata; the message names what
                differs.
        """
        step = self.latest_step()
        if step is None:
            return None
        saved = read_metadata(self.folder)
        differing = _differences(saved, self.metadata)
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
        """Lets go of the folder."""
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
        # Fields that the config has had only since have their defaults.
        metadata["model"] = dataclasses.asdict(ModelConfig.from_dict(metadata["model"]))
    return metadata


def restore_params(
    folder: str | Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    start_from: Callable[[], Params] | None = None,
) -> Params:
    """The network's parameters alone, out of the newest training state in a folder.

    What was frozen in training is not in there: it is what the training started from.

    Args:
        folder: Of a training run.
        config: Shape of the network.
        mesh: What they are laid out on; None = all on one device.
        start_from: What `train.train` was given; called only where a part was frozen.

    Raises:
        CheckpointError: No checkpoint there, or one of a network of another shape, or one made
            beside frozen parameters other than those of `start_from`.
        ValueError: Adapters, and no `start_from`.
    """
    folder = Path(folder).absolute()
    metadata = read_metadata(folder)
    differing = _differences(metadata["model"], dataclasses.asdict(config))
    if differing:
        raise CheckpointError(
            f"{folder} holds a checkpoint of a network of another shape: {'; '.join(differing)}."
        )
    shapes = abstract_params(config)
    if FROZEN in metadata:
        start = start_or_fresh(config, metadata["seed"], start_from, mesh)
        frozen, _ = split_params(config, start)
        del start
        if fingerprint(frozen) != metadata[FROZEN]:
            raise CheckpointError(
                f"{folder} holds what was learned beside frozen parameters that were others than "
                "those given now: the pretrained model has changed since, or another was given. "
                "Put it back, or train again."
            )
        _, shapes = split_params(config, shapes)
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
    learned = restored["state"]["params"]
    return join_params(frozen, learned) if FROZEN in metadata else learned


def _open_for_reading(folder: Path) -> ocp.CheckpointManager:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of checkpoints. Train first.")
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    if manager.latest_step() is None:
        raise CheckpointError(f"{folder}: holds no complete checkpoint. Train first.")
    return manager


def _on_this_device(abstract: Any) -> Any:
    """Where nothing is said, arrays go to the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract
    )


def _differences(saved: Mapping, current: Mapping, prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name}.")
        elif _plain(old) != _plain(new):
            found.append(f"{prefix}{name} was {old!r}, now {new!r}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
