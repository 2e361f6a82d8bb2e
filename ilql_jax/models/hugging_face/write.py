"""Writes Hugging Face checkpoints: folders that `transformers` loads, and this project too.

    config.json  model.safetensors (or several, with an index)   the policy
    value_heads.safetensors                                      Q and V with their shape, and their
                                                                 trunk, if they have their own
    README.md                                                    the model card

The tokenizer's files are written beside them by the caller, who has the tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from ilql_jax.models.actor_critic import abstract_params
from ilql_jax.models.config import DecoderConfig, ModelConfig, Params
from ilql_jax.models.hugging_face.families import (
    Family,
    Layout,
    PretrainedError,
    Table,
    hugging_face_config,
)
from ilql_jax.models.hugging_face.read import (
    INDEX,
    SINGLE,
    Shardings,
    check_tensors,
    flat,
    for_each,
    load_trunk,
    load_trunk_named,
    name_of,
    read_config,
    read_family,
    trunk_shapes,
    under,
    unstacked,
)
from ilql_jax.models.lora import merge_adapters

VALUE_HEADS = "value_heads.safetensors"
VALUE_TRUNK = "value_trunk/"  # before the names that the family has for its tensors
_OF_TENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def save_pretrained(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    *,
    card: str,
    dtype: str = "float32",
    special_tokens: Mapping[str, int] | None = None,
    about: Mapping[str, Any] | None = None,
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Writes a network in Hugging Face's format; the host holds the tensors of one file at a time.

    Args:
        folder: Folder that is written to; made if it is not there. Tensors of an older network in
            it, by the names that this function gives them, are removed; other files stay.
        config: Shape of the network.
        params: Its parameters; adapters are merged into their matrices.
        card: Text of the model card.
        dtype: Dtype of the trunks' tensors: float32 or bfloat16; the value heads stay float32.
        special_tokens: Fields for `config.json`: `eos_token_id`, `pad_token_id`, ...
        about: Plain JSON that is kept with the value heads.
        max_file_bytes: Largest file of the policy's tensors.

    Raises:
        PretrainedError: None of the families has this shape. Nothing is written then.
    """
    from safetensors.numpy import save_file

    if dtype not in DTYPES:
        raise PretrainedError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
    config, params = merge_adapters(config, params)
    family, fields = hugging_face_config(config.decoder)
    fields |= {"dtype": dtype, **(special_tokens or {})}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes, table = trunk_shapes(unstacked(config.decoder)), _table(family, config.decoder)
    sizes = {
        name: int(np.prod(shapes[path].shape)) * DTYPES[dtype].itemsize
        for name, (path, _) in table.items()
    }
    files = _files(sizes, max_file_bytes)
    _remove_older(folder)
    trunk = flat(params["trunk"])
    for file, names in files.items():
        tensors = _tensors(trunk, {name: table[name] for name in names}, dtype)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        where = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1), "utf-8")
    heads = {
        path: np.asarray(x)
        for path, x in flat({n: params[n] for n in ("q", "v") if n in params}).items()
    }
    if config.value_trunk == "separate":
        table = _table(family, config.value_decoder)
        tensors = _tensors(flat(params["value_trunk"]), table, dtype)
        heads |= {VALUE_TRUNK + name: tensor for name, tensor in tensors.items()}
    metadata = {"heads": _head_fields(config), "about": dict(about or {})}
    save_file(heads, folder / VALUE_HEADS, metadata={k: json.dumps(v) for k, v in metadata.items()})
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
    for file in (*files, VALUE_HEADS):  # safetensors lets nobody else read, whatever the umask says
        shutil.copymode(folder / "config.json", folder / file)
    if special_tokens:
        (folder / "generation_config.json").write_text(json.dumps(dict(special_tokens)), "utf-8")
    (folder / "README.md").write_text(card, "utf-8")


def _remove_older(folder: Path) -> None:
    """Removes what a reader could follow of a network that was written here before."""
    for name in ("config.json", INDEX, VALUE_HEADS, "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if _OF_TENSORS.fullmatch(path.name):
            path.unlink()


_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def load_network(
    folder: str | os.PathLike[str], sharding: Shardings = None, **run_settings: Any
) -> tuple[ModelConfig, Params, dict[str, Any]]:
    """Loads a network that `save_pretrained` wrote.

    Args:
        folder: Folder that it was written to.
        sharding: Sharding of the parameters (see `read.load_trunk`).
        **run_settings: Fields of `DecoderConfig` in `NOT_IN_CONFIG_JSON`, e.g. `remat`.

    Returns:
        Shape, parameters, and `about`.

    Raises:
        PretrainedError: A folder without value heads, or tensors that do not fit.
    """
    import safetensors

    path = Path(folder) / VALUE_HEADS
    if not path.exists():
        raise PretrainedError(
            f"{folder} holds no {VALUE_HEADS}. Start from a plain checkpoint with "
            "`read.start_params`, which makes fresh ones."
        )
    check_tensors(folder)  # first: a shape that its tensors do not have may be of any size
    decoder = dataclasses.replace(read_config(folder), **run_settings)
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(safetensors.safe_open(path, framework="np"))
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            config, about = ModelConfig(decoder, **metadata["heads"]), dict(metadata["about"])
        except (safetensors.SafetensorError, *_DAMAGE) as error:
            raise PretrainedError(f"{path} cannot be read: {error}. Export it again.") from None
        shapes = {name: x for name, x in abstract_params(config).items() if name in ("q", "v")}
        given = {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if config.value_trunk == "shared" or not name.startswith(VALUE_TRUNK)
        }
        _check_heads(given, shapes, path)

        def place(keys, shape: jax.ShapeDtypeStruct, where: Sharding) -> jax.Array:
            return jax.device_put(file.get_tensor(name_of(keys)).astype(shape.dtype), where)

        where = {name: for_each(under(sharding, name), each) for name, each in shapes.items()}
        heads = jax.tree_util.tree_map_with_path(place, shapes, where)
    params = {"trunk": load_trunk(folder, decoder, under(sharding, "trunk")), **heads}
    if config.value_trunk == "separate":
        params["value_trunk"] = load_trunk_named(
            path,
            VALUE_TRUNK,
            read_family(folder),
            config.value_decoder,
            under(sharding, "value_trunk"),
        )
    return config, params, about


def _check_heads(given: dict[str, tuple], shapes: Params, path: Path) -> None:
    needed = {name: each.shape for name, each in flat(shapes).items()}
    problems = [
        f"{name} has shape {given.get(name)}, but {needed.get(name)} is needed"
        for name in sorted({*given, *needed})
        if given.get(name) != needed.get(name)
    ]
    if problems:
        raise PretrainedError(f"{path}: {'; '.join(problems)}.")


def _head_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of the shape beside the trunk's."""
    return {name: x for name, x in dataclasses.asdict(config).items() if name != "decoder"}


def _table(family: Family, config: DecoderConfig) -> Table:
    """Returns the family's tensors that this network has."""
    shapes = trunk_shapes(unstacked(config))
    return {name: each for name, each in family.table(config).items() if each[0] in shapes}


def _tensors(trunk: Mapping[str, jax.Array], table: Table, dtype: str) -> dict[str, np.ndarray]:
    return {name: _tensor(trunk, *place).astype(DTYPES[dtype]) for name, place in table.items()}


def _tensor(trunk: Mapping[str, jax.Array], path: str, layout: Layout) -> np.ndarray:
    """Converts one tensor, of its own path or out of a stack of layers."""
    if path in trunk:
        ours = trunk[path]
    else:
        blocks, layer, rest = path.split("/", 2)
        ours = trunk[f"{blocks}/{rest}"][int(layer)]
    return np.ascontiguousarray(layout.write(np.asarray(ours)))


def _files(sizes: Mapping[str, int], max_bytes: int) -> dict[str, list[str]]:
    """Assigns tensors to files, in order."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    stem = SINGLE.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05}-of-{len(groups):05}.safetensors": names
        for number, names in enumerate(groups, 1)
    }
