"""Chips that can be planned for: peak figures, slices, and the memory limit of a device."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from ilql_jax.errors import UserError


class PlanError(UserError, ValueError):
    """A topology or command line that cannot be planned for. The message says what can."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public peak figures of one chip.

    Attributes:
        flops: Per second, of dense bfloat16 matrix products, with which JAX by default multiplies
            float32 matrices on a TPU too.
        memory_bandwidth: Bytes per second.
        interconnect: Bytes per second that it can send to other chips over all links: half of the
            bidirectional figure that is published.
        source: Address of the published figures.
    """

    flops: float
    memory_bandwidth: float
    interconnect: float
    source: str


_TPU_DOCS = "https://cloud.google.com/tpu/docs"

_NVIDIA = "https://www.nvidia.com/en-us/data-center"

# By JAX's name of the device.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 200e9, f"{_TPU_DOCS}/v5e"),
    "TPU v5": Chip(459e12, 2765e9, 600e9, f"{_TPU_DOCS}/v5p"),
    "TPU v6 lite": Chip(918e12, 1600e9, 400e9, f"{_TPU_DOCS}/v6e"),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 300e9, f"{_NVIDIA}/a100"),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3350e9, 450e9, f"{_NVIDIA}/h100"),
    "NVIDIA H200": Chip(989e12, 4800e9, 450e9, f"{_NVIDIA}/h200"),
}

# Slices that Google offers.
TOPOLOGIES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": (
        *("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
        *("16x16x16", "16x16x24"),
    ),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a TPU slice, e.g. "v5e:4x4", or of this machine, "local".

    Raises:
        PlanError: There is no such slice, or libtpu is not installed.
    """
    if topology == "local":
        return jax.local_devices()
    known = "; ".join(f"{kind}:{', '.join(sizes)}" for kind, sizes in TOPOLOGIES.items())
    name = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    if not name or name[1] not in TOPOLOGIES:
        raise PlanError(f"there is no topology {topology!r}; there are local, {known}.")
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"planning for {topology} needs the TPU compiler: pip install 'ilql-jax[tpu]'."
        )
    # Only the compiler is used: no TPU is looked for, and other processes may use libtpu too.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_ACCELERATOR_TYPE", f"{name[1]}-1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, ValueError) as error:
        raise PlanError(
            f"there is no topology {topology!r} ({error}); there are local, {known}."
        ) from None


def memory_limit(device: jax.Device) -> int | None:
    """Returns the bytes that programs may use on a device; None if not known (a CPU)."""
    if device.platform != "tpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    # The compiler names the limit when it refuses a program that fits on no chip.
    too_large = jax.ShapeDtypeStruct(
        (2**40,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if sizes := out_of_memory(str(error)):
            return sizes[1]
        raise
    return None


def out_of_memory(error: str) -> tuple[int, int] | None:
    """Reads bytes needed and available from the TPU compiler's message of a program too large."""
    size = r"([\d.]+)([KMGT])"
    match = re.search(rf"\({size}\) exceeds available HBM \({size}\)", error)
    match = match or re.search(rf"Used {size} of {size} hbm", error)
    if not match:
        return None
    needed, needed_unit, limit, limit_unit = match.groups()
    powers = {"K": 10, "M": 20, "G": 30, "T": 40}
    return (
        int(float(needed) * 2 ** powers[needed_unit]),
        int(float(limit) * 2 ** powers[limit_unit]),
    )
