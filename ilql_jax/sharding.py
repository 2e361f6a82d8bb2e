"""Many devices: the mesh, the sharding of each parameter, and starting on several hosts.

The mesh has three axes. Over `data` the rows of a batch are split and parameters replicated; over
`fsdp` rows and parameters are split, and parameters gathered layer by layer where they are needed
(ZeRO-3; Rajbhandari et al., 2020); over `tensor` the matrices themselves are split, as in
Megatron-LM (Shoeybi et al., 2019). `RULES` gives the sharding of parameters by name; XLA derives
the communication (GSPMD; Xu et al., 2021). The same code runs on one CPU, on the GPUs of a machine
and on a TPU pod, where every host runs the same program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ilql_jax.errors import UserError
from ilql_jax.settings import SettingError, Settings, setting

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that a batch's rows are split over
VOCABULARY = "vocabulary"  # in rules: `tensor` where that divides it, else whole on each device

# Regular expression for the end of a parameter's name -> mesh axes of its last dimensions; those
# before them (twin heads, layers stacked for a scan) are never split. The first match counts.
# Names in the optimizer's state end with the parameter's, so it is sharded like its parameter.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Value heads: [heads, width, inner] and [heads, vocabulary, inner]; V's [inner, 1].
    (r"q/inner_kernel", ("fsdp", "tensor")),
    (r"q/inner_bias", ("tensor",)),
    (r"q/out_kernel", (VOCABULARY, "fsdp")),
    (r"q/out_bias", (VOCABULARY,)),
    # Tied ones: [heads, inner, width] and [heads, inner].
    (r"q/map_kernel", ("tensor", "fsdp")),
    (r"q/shared_kernel", ("tensor",)),
    (r"v/inner/kernel", ("fsdp", "tensor")),
    (r"v/inner/bias", ("tensor",)),
    (r"v/out/kernel", ("tensor", None)),
    # Trunk: embeddings, and an output matrix of its own, [vocabulary, width].
    (r"position_embedding/embedding", (None, "fsdp")),
    (r"embedding", (VOCABULARY, "fsdp")),
    # Adapters are thin: [width, rank] and [rank, width].
    (r"lora_a", ("fsdp", None)),
    (r"lora_b", (None, "fsdp")),
    # Into attention and MLP by columns, out of them by rows: one sum over `tensor` for each.
    (r"(qkv|q|k|v|mlp_in|mlp_gate)/kernel", ("fsdp", "tensor")),
    (r"(qkv|q|k|v|mlp_in|mlp_gate)/bias", ("tensor",)),
    (r"(out|mlp_out)/kernel", ("tensor", "fsdp")),
    # Too small to be split.
    (r"(bias|scale)", ()),
)


class MeshError(UserError, ValueError):
    """A mesh that does not fit the devices, the network or the batch. The message says where."""


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings):
    """Number of devices along each axis of the mesh; one may be -1: all that are left.

    Raises:
        SettingError: A size that cannot be, or more than one axis left open.
    """

    data: int = setting(
        "Devices over which rows are split; parameters are replicated.", -1, shapes_result=False
    )
    fsdp: int = setting("Devices over which rows and parameters are split.", 1, shapes_result=False)
    tensor: int = setting("Devices over which matrices are split.", 1, shapes_result=False)

    def __post_init__(self):
        super().__post_init__()
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise SettingError(axis, size, "must be at least 1, or -1")
        left_open = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(left_open) > 1:
            raise SettingError(
                left_open[1], -1, f"{left_open[0]} is open (-1) too; only one may be -1"
            )

    @property
    def is_single(self) -> bool:
        """True if it asks for one device, that is, for no mesh at all."""
        return self.data == self.fsdp == self.tensor == 1


@dataclasses.dataclass(frozen=True)
class HostsConfig(Settings):
    """Rendezvous of the hosts of a cluster.

    Raises:
        SettingError: A host without a coordinator, an address of another form, or an index beyond
            the number of processes.
    """

    coordinator: str = setting(
        "host:port of process 0, the same on every host; auto: as the cluster says (TPU pods, "
        "Slurm, Open MPI); empty: this process works alone.",
        "",
        shapes_result=False,
    )
    processes: int = setting(
        "Number of processes; read with host:port.", 1, least=1, shapes_result=False
    )
    id: int = setting(
        "Index of this process, from 0; read with host:port.", 0, least=0, shapes_result=False
    )

    def __post_init__(self):
        super().__post_init__()
        if self.coordinator in ("", "auto"):
            for name, alone in (("processes", 1), ("id", 0)):
                if (value := getattr(self, name)) != alone:
                    raise SettingError(
                        name,
                        value,
                        f"must be {alone} while coordinator is {self.coordinator!r}: give the "
                        "host:port of process 0",
                    )
            return
        if not re.fullmatch(r".+:\d+", self.coordinator):
            raise SettingError("coordinator", self.coordinator, "must be host:port, auto, or empty")
        if not 0 <= self.id < self.processes:
            problem = f"must lie in [0, {self.processes - 1}] for {self.processes} processes"
            raise SettingError("id", self.id, problem)


def start_hosts(config: HostsConfig) -> None:
    """Joins the other processes. Call it once, before anything is computed.

    Returns when all are there (JAX waits five minutes). If one dies, the others end with an error;
    started again, all go on from the last checkpoint.
    """
    if config.coordinator == "auto":
        jax.distributed.initialize()
    elif config.coordinator:
        jax.distributed.initialize(config.coordinator, config.processes, config.id)


def is_first_host() -> bool:
    """Returns true for the process that writes what is written once: reports, metrics, prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has reached the barrier of this name."""
    multihost_utils.sync_global_devices(name)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh.

    On one host the mesh may be smaller than the machine: it takes the first devices. On several
    hosts it takes all.

    Args:
        config: Size of each axis.
        devices: By default all devices of all hosts.

    Raises:
        MeshError: The sizes do not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if len(devices) % known:
        raise MeshError(
            f"the mesh {shape} does not divide the {len(devices)} devices there are "
            f"({devices[0].device_kind}). The product of the sizes must be a divisor of it."
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    used = math.prod(sizes)
    if used < len(devices) and len({device.process_index for device in devices}) > 1:
        raise MeshError(
            f"the mesh {shape} takes {used} of {len(devices)} devices, but on several hosts all "
            "must take part. Set one axis to -1."
        )
    grid = mesh_utils.create_device_mesh(sizes, devices[:used], allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def mesh_to_use(config: MeshConfig) -> Mesh | None:
    """Makes the mesh for using a network that was trained on a mesh: split the same way, once.

    None, for one device, if its parameters were not split, or if this host has not as many devices
    as they were split over.
    """
    here = jax.local_devices()
    parts = math.prod(size for size in (config.fsdp, config.tensor) if size != -1)
    if config.fsdp == config.tensor == 1 or len(here) == 1 or len(here) % parts:
        return None
    return make_mesh(dataclasses.replace(config, data=1), here)


def partition_spec(name: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns the mesh axis of each dimension of an array, by its name.

    A matrix without a rule is split over `fsdp` along the longest dimension that allows it.

    Args:
        name: Path in the parameters or the optimizer's state, e.g. "trunk/final_norm/scale".
        shape: Shape of the array.
        mesh: Mesh that it lies on.

    Raises:
        MeshError: A rule splits a dimension that the mesh axis does not divide.
    """
    for ending, last in RULES:
        # A rule of two dimensions does not fit a vector, nor a vector made from a matrix.
        if _ends_with(ending, name) and len(last) <= len(shape):
            break
    else:
        last = _longest_over_fsdp(shape, mesh)
    spec = (None,) * (len(shape) - len(last)) + last
    if VOCABULARY in spec:
        vocabulary = spec.index(VOCABULARY)
        axis = None if shape[vocabulary] % mesh.shape["tensor"] else "tensor"
        spec = (*spec[:vocabulary], axis, *spec[vocabulary + 1 :])
    for dimension, axis in enumerate(spec):
        if axis and shape[dimension] % mesh.shape[axis]:
            raise MeshError(
                f"{name} has shape {tuple(shape)}: dimension {dimension}, {shape[dimension]}, is "
                f"split over mesh axis {axis!r}, but {mesh.shape[axis]} does not divide it. Choose "
                f"mesh.{axis} so that it does, or change the size."
            )
    return PartitionSpec(*spec)


def _ends_with(ending: str, name: str) -> bool:
    return re.search(rf"(^|[/_]){ending}$", name) is not None


def _longest_over_fsdp(shape: Sequence[int], mesh: Mesh) -> tuple[str | None, ...]:
    fitting = [d for d in range(len(shape)) if shape[d] % mesh.shape["fsdp"] == 0]
    if len(shape) < 2 or not fitting:
        return ()
    longest = max(fitting, key=lambda dimension: shape[dimension])
    return tuple("fsdp" if d == longest else None for d in range(len(shape)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of parameters or of a training state.

    Args:
        tree: Arrays, or their shapes from `jax.eval_shape`.
        mesh: Mesh that they lie on.

    Raises:
        MeshError: A dimension that a mesh axis does not divide.
    """

    def place(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the shapes of a tree of arrays, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Returns the sharding along the rows of a batch: its first dimension.

    Args:
        mesh: Devices.
        stacked: Batches are stacked in front of them, so that rows are the second dimension.
    """
    return NamedSharding(mesh, PartitionSpec(None, ROWS) if stacked else PartitionSpec(ROWS))


def check_rows(rows: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises `MeshError` if a batch of so many rows cannot be split evenly.

    Args:
        rows: Rows of a batch.
        mesh: Mesh that it lies on.
        accumulation: Parts of gradient accumulation, each of which is split.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (devices * accumulation):
        each = f" each of {accumulation} parts (gradient_accumulation)" if accumulation > 1 else ""
        raise MeshError(
            f"batch_rows is {rows}, but{each} is split over data x fsdp = {mesh.shape['data']} x "
            f"{mesh.shape['fsdp']}: it must be a multiple of {devices * accumulation}."
        )


def place_batch(batch: Any, mesh: Mesh, stacked: bool = False) -> Any:
    """Moves a batch (numpy, the same on every host) to the mesh; each host moves its own rows.

    Args:
        batch: One batch, or several stacked along a first axis.
        mesh: Devices.
        stacked: True where `batch` is several.
    """
    sharding = batch_sharding(mesh, stacked)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        batch,
    )


def on_host(tree: Any) -> Any:
    """Gathers arrays that are split over the mesh in the memory of every host (numpy)."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def tracing_for(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Sets the mesh that `shard_batch` and `embedding_lookup` constrain to, while tracing."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def shard_batch(x: Array) -> Array:
    """Constrains hidden states [rows, ...] to be split by rows alone; no-op without a mesh.

    Otherwise XLA may split their width like that of the parameters, and replicate the rows.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def embedding_lookup(
    table: Float[Array, "*stacked rows width"], index: Int[Array, " batch *index"]
) -> Float[Array, "*stacked batch *index width"]:
    """Returns `table[..., index, :]` of a table whose width may be split over `fsdp`.

    Each device looks up its part of the width for the whole batch, then they exchange: all of the
    width for its own rows of the batch. So none holds the table whole, nor the table's gradient;
    otherwise XLA would gather both on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return table[..., index, :]
    stacked, inner = (None,) * (table.ndim - 2), (None,) * (index.ndim - 1)
    index = jax.lax.with_sharding_constraint(index, PartitionSpec("data"))
    rows = table[..., index, :]
    rows = jax.lax.with_sharding_constraint(rows, PartitionSpec(*stacked, "data", *inner, "fsdp"))
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(*stacked, ROWS))


def row_parts() -> int:
    """Number of devices that a batch's rows are split over, while tracing for a mesh; or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROWS)


def tensor_parts() -> int:
    """Number of devices that matrices are split over, while tracing for a mesh; or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["tensor"]


def over_tensor(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Constrains an axis to be split over `tensor`, the others as XLA likes; no-op without it."""
    if tensor_parts() == 1:
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = "tensor"
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def platform() -> str:
    """Platform that is compiled for: "cpu", "gpu" or "tpu".

    Not always the one that is compiled on (see `plan/`).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def bytes_per_device(tree: Any) -> int:
    """Bytes that arrays, or shapes with shardings, take on each device."""

    def size(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))
