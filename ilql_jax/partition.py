"""What a training leaves as it was: told apart from what is learned, and known again.

With adapters all else in the trunks is frozen; with `TrainConfig.freeze_trunk` the policy's trunk
is. What is frozen is no part of the training state: no optimizer keeps anything of it and no
checkpoint holds it. It is made again by whoever made the start, and compared with what it was.
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
from ilql_jax.models import ModelConfig, Params, init_params
from ilql_jax.models.lora import ADAPTER

VALUE_HEADS = ("q", "v")
FROZEN = "frozen"  # where a checkpoint's metadata keep the fingerprint of what it does not hold


def split_params(config: ModelConfig, params: Params) -> tuple[Params, Params]:
    """What is frozen and what is learned of a network of which a part is frozen.

    Args:
        config: Shape of the network.
        params: Its parameters, or a tree like them (shapes, shardings).
    """
    if not config.decoder.lora_rank:
        learned = {name: part for name, part in params.items() if name != "trunk"}
        return {name: part for name, part in params.items() if name == "trunk"}, learned
    frozen, learned = _split_adapters({n: x for n, x in params.items() if n not in VALUE_HEADS})
    return frozen, learned | {name: params[name] for name in VALUE_HEADS if name in params}


def _split_adapters(part: Params) -> tuple[Params, Params]:
    rest, adapters = {}, {}
    for name, each in part.items():
        if name == ADAPTER:
            adapters[name] = each
        elif not isinstance(each, dict):
            rest[name] = each
        else:
            inner, adapters_inside = _split_adapters(each)
            rest[name] = inner
            if adapters_inside:
                adapters[name] = adapters_inside
    return rest, adapters


def join_params(frozen: Params, learned: Params) -> Params:
    """The whole network's parameters, of what `split_params` told apart."""
    joined = frozen | learned
    for name in frozen.keys() & learned.keys():
        joined[name] = join_params(frozen[name], learned[name])
    return joined


def check_start(config: ModelConfig, there_is: bool) -> None:
    """Raises `ValueError` for adapters without parameters to start from."""
    if config.decoder.lora_rank and not there_is:
        raise ValueError(
            f"lora_rank is {config.decoder.lora_rank}, but adapters need a network that can "
            "already do something to start from. Give a pretrained one, or set lora_rank to 0."
        )


def start_or_fresh(
    config: ModelConfig, seed: int, start_from: Callable[[], Params] | None, mesh: Mesh | None
) -> Params:
    """What a training starts from: what `start_from` makes, or where it is None a fresh network.

    A fresh one has the same bits on every mesh of one kind of device.

    Raises:
        ValueError: A fresh network with adapters.
    """
    check_start(config, start_from is not None)
    if start_from is not None:
        return start_from()
    # On one device: compiled for a mesh, the last bits could be others.
    fresh = jax.jit(lambda: init_params(config, seed))()
    if mesh is None:
        return fresh

    def place(whole: np.ndarray, layout: NamedSharding) -> Array:
        return jax.make_array_from_callback(whole.shape, layout, lambda index: whole[index])

    return jax.tree.map(place, jax.device_get(fresh), sharding.shardings(fresh, mesh))


def fingerprint(params: Params) -> str:
    """The same for the same names, shapes and bits, however the arrays are laid out.

    Sums of integers, so that no order of adding them shows.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.sha256()
    for (path, leaf), total in zip(leaves, _sums([leaf for _, leaf in leaves]), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {leaf.shape} {leaf.dtype} {int(total)};".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    """Of each array's bits, each number weighted by where it stands."""

    def total(x: Array) -> Any:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.ones(x.shape, jnp.uint32)
        for dimension in range(x.ndim):
            place = place * 31 + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, dimension)
        return jnp.sum(bits * place, dtype=jnp.uint32)

    return [total(leaf) for leaf in leaves]
