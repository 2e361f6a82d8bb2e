"""Checkpoints by Orbax: training state, position in the data, and the identity of the run.

A checkpoint is written whole or not at all, so a process killed at any moment leaves the last
complete one. `metadata` is plain JSON (model config, method, reward scale, ...): it tells another
process how to rebuild the network, and this one whether the checkpoint is its own. Entries that
shape no result (named in `runtime`) may differ when a run goes on.

An array is saved by the devices that hold it, on every host, and read onto whatever mesh is asked
for. On several hosts each process makes these calls, on a folder that they share.

Checksums of its files are written beside a finished checkpoint, and compared before it is used. One
that was damaged since is set aside, under another name, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ilql_jax import sharding
from ilql_jax.disk import check_room, disk_error
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.partition import FROZEN, combine, fingerprint, initialize, partition
from ilql_jax.settings import runtime_fields

_OVERHEAD = 1_000_000  # bytes of a checkpoint beside its arrays, at most
CHECKSUMS = "checksums.json"
ASIDE = "damaged-"

Found = TypeVar("Found")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing or of another model. The message says what to do."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was set aside."""


class Checkpoints:
    """The checkpoints of one training run, in one folder.

    Args:
        folder: Folder of the run; made when first saved to.
        metadata: Plain JSON saved with each, and compared when one is restored.
        runtime: Entries that are not compared, nested ones as "outer.inner".
        keep: Number of the newest that stay.

    Raises:
        CheckpointError: The folder's name is one that files cannot be read back from.
        DiskError: A file stands in the way, the disk is read-only, ...
    """

    def __init__(
        self,
        folder: str | Path,
        metadata: Mapping[str, Any],
        runtime: Collection[str] = (),
        keep: int = 2,
    ):
        check_folder(folder)
        self.folder = Path(folder).absolute()
        if sharding.is_first_host():
            _warn(set_aside_damaged(self.folder))
            for begun in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(begun, ignore_errors=True)
        if jax.process_count() > 1:
            sharding.wait_for_all(f"damaged checkpoints of {self.folder}")
        self.metadata = dict(metadata)
        self.runtime = frozenset(runtime)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise disk_error(error, self.folder) or error from None

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_position: Mapping[str, Any]) -> None:
        """Saves the state (a pytree of arrays) and the input pipeline's `get_state()`.

        Raises:
            DiskError: The disk is full, read-only, ...; the checkpoint before it stays.
        """
        wanted = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(dict(data_position)),
            metadata=ocp.args.JsonSave(self.metadata),
        )
        if sharding.is_first_host():
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            check_room(self.folder, int(1.05 * size) + _OVERHEAD)
        try:
            with _quiet():
                self._manager.save(step, args=wanted)
            if sharding.is_first_host():
                _write_checksums(self.folder / str(step))
        except Exception as error:
            raise disk_error(error, self.folder) or error from None

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state and data position, or None where nothing was saved yet.

        Args:
            abstract_state: Shapes and dtypes of the state, e.g. from `jax.eval_shape`, with the
                layout of arrays on a mesh if there is one (see `sharding.with_shardings`).

        Raises:
            CheckpointError: The checkpoint was made from other metadata; the message names the
                entries that differ. Or it cannot be read.
        """
        step = self.latest_step()
        if step is None:
            return None
        saved = read_metadata(self.folder)
        saved.setdefault("unit", self.metadata.get("unit"))  # older ones do not say it
        differing = _differences(saved, self.metadata, self.runtime)
        if differing:
            raise CheckpointError(
                f"{self.folder} holds a checkpoint of another run: {'; '.join(differing)}. "
                "Use another folder, or set these back."
            )
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore(_on_this_device(abstract_state)),
            data=ocp.args.JsonRestore(),
        )
        restored = _read(self.folder, step, lambda: self._manager.restore(step, args=wanted))
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of the newest checkpoint in a folder.

    Raises:
        CheckpointError: There is none, or it is of no use.
    """
    folder = Path(folder).absolute()
    with _open_for_reading(folder) as manager:
        step = manager.latest_step()
        wanted = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        metadata = _read(folder, step, lambda: manager.restore(step, args=wanted)["metadata"])
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{folder / str(step)} does not say what it holds. Train again.")
    if "model" in metadata:
        # Fields that were added to the config since have their defaults.
        model = _read(folder, step, lambda: ModelConfig.from_dict(metadata["model"]))
        metadata["model"] = dataclasses.asdict(model)
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
        folder: Folder of a training run.
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
    layouts = jax.tree.map(
        lambda x: ocp.ArrayRestoreArgs(global_shape=x.shape, dtype=x.dtype, sharding=x.sharding),
        wanted,
    )
    asked = ocp.args.PyTreeRestore(wanted, restore_args=layouts, partial_restore=True)
    with _open_for_reading(folder) as manager:
        step = manager.latest_step()
        restored = _read(
            folder, step, lambda: manager.restore(step, args=ocp.args.Composite(state=asked))
        )
    trainable = restored["state"]["params"]
    return combine(frozen, trainable) if FROZEN in metadata else trainable


def _open_for_reading(folder: Path) -> ocp.CheckpointManager:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of checkpoints. Train first.")
    if sharding.is_first_host():
        _warn(set_aside_damaged(folder))
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    if manager.latest_step() is None:
        raise CheckpointError(f"{folder}: holds no complete checkpoint. Train first.")
    return manager


# --- damage -------------------------------------------------------------------------------------


def check_folder(path: str | Path) -> None:
    """Raises `CheckpointError` for a folder from which checkpoints cannot be read back.

    Orbax looks for files by patterns, and takes a backslash for a slash.
    """
    whole = str(Path(path).absolute())
    odd = next((x for x in whole if x in "[]*?\\" or not (x.isprintable() or x.isspace())), None)
    odd = odd or next((x for x in "\n\r\v\f" if x in whole), None)
    odd = odd or next((x for x in ("gs:/", "s3:/") if x in f"{whole}/"), None)
    if odd is not None:
        raise CheckpointError(
            f"{whole!r} has {odd!r} in it: checkpoints that are written there cannot be read back. "
            "Give a folder whose name has other signs."
        )


def latest_step(folder: str | Path) -> int | None:
    """Step of the newest checkpoint in a folder, or None."""
    return max(_steps(Path(folder)), default=None)


def set_aside_damaged(folder: str | Path) -> list[str]:
    """Renames the newest checkpoints as long as they are damaged.

    Returns:
        A sentence on each, for people to read.

    Raises:
        CheckpointError: It cannot be renamed.
    """
    folder, told = Path(folder), []
    for step in sorted(_steps(folder), reverse=True):
        path = folder / str(step)
        problem = _damage(path)
        if problem is None:
            break
        told.append(_set_aside(path, problem))
    return told


def _set_aside(path: Path, problem: str) -> str:
    target = path.with_name(ASIDE + path.name)
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{ASIDE}{path.name}-{number}")
    try:
        path.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"{path} is damaged ({problem}) and cannot be set aside ({error.strerror}). Delete it."
        ) from None
    before = latest_step(path.parent)
    rest = f"the one of step {before} is used" if before is not None else "there is none before it"
    return f"{path} is damaged ({problem}): set aside as {target.name}, {rest}."


def _warn(told: list[str]) -> None:
    for each in told:
        warnings.warn(each, CheckpointWarning, stacklevel=3)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [
        int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()
    ]


def _files(path: Path) -> dict[str, Path]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    return {file.relative_to(path).as_posix(): file for file in sorted(files)}


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's threads from printing the traceback of what is raised anyway."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    # Where something was raised, more is told later, and the levels stay.
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def _write_checksums(path: Path) -> None:
    sums = {name: _checksum(file) for name, file in _files(path).items()}
    partial = path / f"{CHECKSUMS}.partial"
    partial.write_text(json.dumps(sums, indent=1))
    partial.replace(path / CHECKSUMS)


# Checkpoints that were compared with their checksums -> sizes and times of their files then.
_compared: dict[Path, list[tuple[str, int, int]]] = {}


def _damage(path: Path) -> str | None:
    """Names what is wrong with a checkpoint; None where nothing is.

    One without checksums is of an older version, or its process was killed before it could write
    them: only what must be there is looked for.
    """
    if not path.is_dir():
        return "it is no folder"
    files = _files(path)
    if not (path / CHECKSUMS).exists():
        needed = [name for name in ("metadata", "state") if not (path / name).is_dir()]
        return f"{needed[0]} is missing" if needed else None
    stats = {name: file.stat() for name, file in files.items()}
    signature = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    if _compared.get(path) == signature:
        return None
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        missing = [name for name in sums if name not in files]
        changed = [name for name, file in files.items() if sums.get(name) != _checksum(file)]
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    if missing or changed:
        return f"{missing[0]} is missing" if missing else f"{changed[0]} is not as it was written"
    _compared[path] = signature
    return None


def _read(folder: Path, step: int | None, read: Callable[[], Found]) -> Found:
    """Reads from a checkpoint; what a library stumbles on becomes a `CheckpointError`."""
    try:
        return read()
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        said = (str(error).strip() or repr(error)).splitlines()[0][:200]
        if "RESOURCE_EXHAUSTED" in said:  # out of memory: the checkpoint may be whole
            raise
        raise CheckpointError(
            f"{folder / str(step)} cannot be read: {said}. Rename or delete it: the training goes "
            "on from the checkpoint before it."
        ) from None


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
