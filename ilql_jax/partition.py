"""Splits parameters into frozen and trainable ones, and fingerprints the frozen part.

With adapters all of the trunks but the adapters is frozen; with `TrainConfig.freeze_trunk` the
policy's trunk is. Frozen parameters are in no training state: no optimizer holds moments of them
and no checkpoint holds them. On resume they are rebuilt from the start, e.g. the pretrained model,
and checked against the fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, UInt32

from ilql_jax import sharding
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params, abstract_params, init_params
from ilql_jax.models.lora import ADAPTER
from ilql_jax.settings import SettingError

VALUE_HEADS = ("q", "v")
FROZEN = "frozen"  # key of the fingerprint in a checkpoint's metadata


class ParamsError(UserError, ValueError):
    """Parameters of a network of another shape."""


def partition(config: ModelConfig, params: Params) -> tuple[Params, Params]:
    """Frozen and trainable parameters of a network of which a part is frozen.

    Args:
        config: Shape of the network: with adapters, all else in the trunks is frozen; without, the
            policy's trunk is.
        params: Its parameters, or a tree like them (shapes, shardings); groups may be missing.
    """
    if not config.decoder.lora_rank:
        trainable = {name: part for name, part in params.items() if name != "trunk"}
        return {name: part for name, part in params.items() if name == "trunk"}, trainable
    frozen, trainable = _partition_adapters(
        {name: part for name, part in params.items() if name not in VALUE_HEADS}
    )
    return frozen, trainable | {name: params[name] for name in VALUE_HEADS if name in params}


def _partition_adapters(params: Params) -> tuple[Params, Params]:
    frozen, adapters = {}, {}
    for name, part in params.items():
        if name == ADAPTER:
            adapters[name] = part
        elif not isinstance(part, dict):
            frozen[name] = part
        else:
            frozen[name], adapters_inside = _partition_adapters(part)
            if adapters_inside:
                adapters[name] = adapters_inside
    return frozen, adapters


def combine(frozen: Params, trainable: Params) -> Params:
    """All parameters of a network again; the inverse of `partition`."""
    combined = frozen | trainable
    for name in frozen.keys() & trainable.keys():
        combined[name] = combine(frozen[name], trainable[name])
    return combined


def check_start(config: ModelConfig, has_start: bool) -> None:
    """Raises `SettingError` for adapters without parameters to start from."""
    if config.decoder.lora_rank and not has_start:
        raise SettingError(
            "lora_rank",
            config.decoder.lora_rank,
            "adapters need a network that can already do something to start from. Give a "
            "pretrained one, or set lora_rank to 0",
        )


def check_shapes(config: ModelConfig, params: Params, source: str) -> None:
    """Raises `ParamsError` if parameters are not those of a network of this shape.

    Args:
        config: The shape.
        params: The parameters.
        source: Their origin, for the message.
    """
    given, expected = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, abstract_params(config)))
    )
    for name in sorted({*given, *expected}):
        if given.get(name) != expected.get(name):
            raise ParamsError(
                f"{source}{name} has shape {given.get(name)}, but the network's has "
                f"{expected.get(name)} (None = no such array). Give the parameters of a network of "
                "the same `ModelConfig`."
            )


def initialize(
    config: ModelConfig, seed: int, start_from: Callable[[], Params] | None, mesh: Mesh | None
) -> Params:
    """Parameters that a training starts from: those of `start_from()`, or fresh ones.

    Fresh ones have the same bits on every mesh of one kind of device.

    Raises:
        SettingError: Fresh ones, for a network with adapters.
        ParamsError: Those of `start_from()` are of a network of another shape.
    """
    check_start(config, start_from is not None)
    if start_from is not None:
        start = start_from()
        check_shapes(config, start, "start_from()")
        return start
    # On one device: compiled for a mesh, the last bits could be others.
    fresh = jax.jit(lambda: init_params(config, seed))()
    if mesh is None:
        return fresh

    def place(whole: np.ndarray, layout: NamedSharding) -> Array:
        return jax.make_array_from_callback(whole.shape, layout, lambda index: whole[index])

    return jax.tree.map(place, jax.device_get(fresh), sharding.shardings(fresh, mesh))


def fingerprint(params: Params) -> str:
    """Sixteen hex digits, equal for equal names, shapes and bits, however the arrays are sharded.

    Sums of integers, so that the order of adding makes no difference.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.sha256()
    for (path, leaf), total in zip(leaves, _sums([leaf for _, leaf in leaves]), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {leaf.shape} {leaf.dtype} {int(total)};".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    """Sum of each array's bits, every number weighted by its position."""

    def total(x: Array) -> Any:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        position = jnp.ones(x.shape, jnp.uint32)
        for dimension in range(x.ndim):
            position = position * 31 + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, dimension)
        return jnp.sum(bits * position, dtype=jnp.uint32)

    return [total(leaf) for leaf in leaves]
