"""Reads Hugging Face checkpoints: safetensors straight onto the devices, tensor by tensor.

`families.py` has the names and options. A file's tensors are read slice by slice, as each device
needs them, so the host never holds more than one of them; a checkpoint is checked before anything
big is allocated. `write.py` writes such folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from ilql_jax.errors import shown
from ilql_jax.models.actor_critic import abstract_params, copy_for_values, init_params
from ilql_jax.models.config import DecoderConfig, ModelConfig, Params
from ilql_jax.models.decoder import Decoder
from ilql_jax.models.hugging_face.families import (
    BUFFERS,
    FAMILIES,
    OUTPUTS,
    Family,
    Index,
    PretrainedError,
    Table,
    decoder_config,
    family_of,
    shape_alone,
)
from ilql_jax.models.lora import ADAPTER

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYER = re.compile(r"(?:^|\.)(?:h|layers)\.(\d{1,9})\.")
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt")  # configs and tokenizers

_EMBEDDING = "token_embedding/embedding"
_LISTED = 40  # tensors at fault in a message
_ROWS = 8192  # of a matrix that are compared at a time

# One sharding for all parameters, or one for each, as a tree like the parameters.
Shardings = Sharding | Params | None


def find(name: str | os.PathLike[str], weights: bool = True) -> Path:
    """Returns the folder of a checkpoint; one named as on the hub is downloaded, unless cached.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        weights: False downloads config and tokenizer alone.

    Raises:
        PretrainedError: There is neither, or it cannot be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [*_SMALL, "*.safetensors"] if weights else list(_SMALL)
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PretrainedError(
            f"no checkpoint {str(name)!r}: give a folder with config.json and safetensors, or a "
            f"name on the Hugging Face hub ({message})."
        ) from None


def read_config(folder: str | os.PathLike[str]) -> DecoderConfig:
    """Reads the shape of the network in a folder.

    Raises:
        PretrainedError: No config, or one that is not supported.
    """
    return decoder_config(_config_fields(Path(folder)))


def shape_for(name: str | os.PathLike[str], max_positions: int) -> DecoderConfig:
    """Reads the shape of a checkpoint (see `find`), and checks that its context is long enough.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        max_positions: Tokens that it has to be able to read.

    Raises:
        PretrainedError: It reads fewer; or there is none, or one that is not supported.
    """
    config = read_config(find(name, weights=False))
    if max_positions > config.max_positions:
        raise PretrainedError(
            f"max_positions is {max_positions}, but {name} reads at most "
            f"{config.max_positions} tokens."
        )
    return config


def read_family(folder: str | os.PathLike[str]) -> Family:
    """Reads the family of the network in a folder; raises `PretrainedError` like `read_config`."""
    return family_of(_config_fields(Path(folder)))


def check_tensors(folder: str | os.PathLike[str]) -> None:
    """Checks the tensors of a checkpoint by names and shapes; no data is read.

    But for an output matrix that is said to be the embedding: the two are compared.

    Raises:
        PretrainedError: Tensors that are missing, unknown or of another shape: all of them.
    """
    folder = Path(folder)
    family, checkpoint = read_family(folder), read_config(folder)
    with _open_tensors(folder) as tensors:
        _matched(tensors, family, checkpoint)


def load_trunk(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    sharding: Shardings = None,
    seed: int = 0,
) -> Params:
    """Reads the trunk's parameters from a checkpoint, in the dtype of `blocks.param_dtype`.

    Args:
        folder: With `config.json` and safetensors, one file or several.
        config: Shape of the trunk: that of `read_config`, but for `NOT_IN_CONFIG_JSON`. Its
            vocabulary may be larger: new tokens start near the mean of the others. Adapters are
            initialized, and change nothing yet.
        sharding: Sharding of the parameters; None = all on the first device.
        seed: For new tokens and adapters.

    Raises:
        PretrainedError: Tensors that are missing, unknown or of another shape: all of them; or a
            config of another network.
    """
    folder = Path(folder)
    family, checkpoint = read_family(folder), read_config(folder)
    with _open_tensors(folder) as tensors:
        return _load(tensors, family, checkpoint, config, sharding, seed)


def start_params(
    folder: str | os.PathLike[str], config: ModelConfig, seed: int, sharding: Shardings = None
) -> Params:
    """Loads the start of a training: the trunk of a checkpoint, and fresh value heads.

    The values' own trunk is copied from the first on the devices: the files are read once.

    Args:
        folder: See `load_trunk`.
        config: Shape of the network.
        seed: For the value heads, new tokens and adapters.
        sharding: Sharding of the parameters.
    """

    def heads() -> Params:
        # XLA removes the trunks, which are not used.
        return {name: x for name, x in init_params(config, seed).items() if name in ("q", "v")}

    names = [name for name in abstract_params(config) if name in ("q", "v")]
    shardings = {name: under(sharding, name) for name in names}
    trunk = load_trunk(folder, config.decoder, under(sharding, "trunk"), seed)
    started = {"trunk": trunk, **jax.jit(heads, out_shardings=shardings)()}
    if config.value_trunk == "separate":
        copy = jax.jit(
            functools.partial(copy_for_values, config),
            out_shardings=under(sharding, "value_trunk"),
        )
        started["value_trunk"] = copy(trunk)
    return started


def load_trunk_named(
    path: str | os.PathLike[str],
    prefix: str,
    family: Family,
    config: DecoderConfig,
    sharding: Shardings = None,
) -> Params:
    """Reads the parameters, float32, of a trunk in a file that also holds other tensors.

    Args:
        path: A safetensors file.
        prefix: Begins the names of its tensors, before the family's names.
        family: Family whose names they have.
        config: Shape of the trunk.
        sharding: See `load_trunk`.

    Raises:
        PretrainedError: Tensors that are missing, unknown or of another shape: all of them.
    """
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        tensors = {
            name.removeprefix(prefix): _Tensor(file.get_slice(name))
            for name in file.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }
        return _load(tensors, family, config, config, sharding, 0)


def params_from_gpt2(tensors: Mapping[str, np.ndarray], config: DecoderConfig) -> Params:
    """Converts a GPT-2's tensors to a trunk's parameters.

    Args:
        tensors: By Hugging Face's names, with or without `transformer.` in front.
        config: Shape of the trunk.

    Raises:
        PretrainedError: Tensors that are missing, unknown or of another shape: all of them.
    """
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return _load(arrays, FAMILIES[0], config, config, None, 0)


# --- names and shapes ---------------------------------------------------------------------------


def flat(params: Params) -> dict[str, Any]:
    """Returns the leaves by path, with slashes."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def name_of(path: Any) -> str:
    """Joins the keys of a path with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def trunk_shapes(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the trunk's parameters by path."""
    return flat(_abstract_trunk(config))


@functools.cache
def _abstract_trunk(config: DecoderConfig) -> Params:
    """Traces a trunk once per shape: it takes a tenth of a second to seconds."""
    return jax.eval_shape(lambda: _fresh_trunk(config))


def _fresh_trunk(config: DecoderConfig, seed: int = 0) -> Params:
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(seed))))


def unstacked(config: DecoderConfig) -> DecoderConfig:
    """Returns the shape with parameters of each block apart, as in files."""
    return dataclasses.replace(config, scan_layers=False)


def _matched(
    tensors: Mapping[str, Any], family: Family, checkpoint: DecoderConfig
) -> tuple[dict[str, Any], Table]:
    """Returns tensors by whole name, and their table; raises `PretrainedError` if any differ."""
    _check_layers(tensors, checkpoint)
    shapes = trunk_shapes(unstacked(checkpoint))
    table = {name: each for name, each in family.table(checkpoint).items() if each[0] in shapes}
    given, as_named, outputs = {}, {}, []
    for name, tensor in tensors.items():
        whole = name if name.startswith(family.prefix) or name in OUTPUTS else family.prefix + name
        if whole in OUTPUTS and checkpoint.tied_output:
            outputs.append(name)
        if name.endswith(BUFFERS) or name in outputs:
            continue
        given[whole], as_named[whole] = tensor, name
    problems = [
        f"{as_named.get(name, _as_given(name, family, tensors))} is missing"
        for name in table
        if name not in given
    ]
    problems += [f"{as_named[name]} is not part of it" for name in given if name not in table]
    for name in table.keys() & given.keys():
        path, layout = table[name]
        needed, shape = layout.shape(shapes[path].shape), tuple(given[name].shape)
        if shape != needed:
            problems.append(f"{as_named[name]} gives {shape}, but {needed} is needed")
    if problems:
        listed = [shown(each, 200) for each in sorted(problems)]
        if len(listed) > _LISTED:
            listed[_LISTED:] = [f"and {len(listed) - _LISTED} more"]
        raise PretrainedError(
            f"{'; '.join(listed)}: these are not the tensors of a network of "
            f"{checkpoint.num_layers} layers of width {checkpoint.hidden_size} with "
            f"{checkpoint.vocab_size} tokens."
        )
    [embedding] = (name for name, each in table.items() if each[0] == _EMBEDDING)
    for name in outputs:
        _check_tied(tensors[name], name, given[embedding], as_named[embedding])
    return given, table


def _check_tied(output: Any, name: str, embedding: Any, embedding_name: str) -> None:
    """Compares an output matrix that is said to be the embedding with it, some rows at a time.

    transformers 5 takes one that differs, whatever the config says; older ones took the embedding.
    """
    rows, width = embedding.shape
    is_same = tuple(output.shape) == (rows, width)
    for start in range(0, rows if is_same else 0, _ROWS):
        part = (slice(start, min(start + _ROWS, rows)), slice(0, width))
        is_same = is_same and np.array_equal(output[part], embedding[part])
    if not is_same:
        raise PretrainedError(
            f"tie_word_embeddings is true in config.json, but {name} is another matrix than "
            f"{embedding_name}. Set it to false for a network with an output of its own (as "
            f"transformers 5 loads it), or take {name} out of the file."
        )


def _check_layers(tensors: Mapping[str, Any], checkpoint: DecoderConfig) -> None:
    """Compares the number of layers that is claimed with the file's before any layer is made."""
    numbers = {int(found[1]) for name in tensors if (found := _LAYER.search(name))}
    if len(numbers) != checkpoint.num_layers:
        raise PretrainedError(
            f"config.json says {checkpoint.num_layers} layers of width {checkpoint.hidden_size}, "
            f"but the tensors are those of {len(numbers)}. Take the config.json that belongs to "
            "them."
        )


def _as_given(name: str, family: Family, tensors: Mapping[str, Any]) -> str:
    """Names a missing tensor in the style of the others in the file."""
    with_prefix = any(each.startswith(family.prefix) for each in tensors)
    return name if with_prefix else name.removeprefix(family.prefix)


# --- arrays -------------------------------------------------------------------------------------

Read = Callable[[Index], np.ndarray]


def _load(
    tensors: Mapping[str, Any],
    family: Family,
    checkpoint: DecoderConfig,
    wanted: DecoderConfig,
    sharding: Shardings,
    seed: int,
) -> Params:
    """Matches the tensors, then puts them on the devices one after the other."""
    grown = dataclasses.replace(
        checkpoint, vocab_size=max(wanted.vocab_size, checkpoint.vocab_size)
    )
    if shape_alone(wanted) != shape_alone(grown):
        raise PretrainedError(
            f"the checkpoint holds {checkpoint}, which is not the network asked for, {wanted}."
        )
    given, table = _matched(tensors, family, checkpoint)
    readers = {
        path: functools.partial(_finite, name, functools.partial(layout.read, given[name]))
        for name, (path, layout) in table.items()
    }
    vocabulary = checkpoint.vocab_size, wanted.vocab_size
    shapes = _abstract_trunk(wanted)
    layout = for_each(sharding, shapes)
    adapters = _fresh_adapters(wanted, layout, seed)

    def place(path, shape: jax.ShapeDtypeStruct, where: Sharding) -> jax.Array:
        name = name_of(path)
        if name in adapters:
            return adapters[name]
        if name in readers:
            read = readers[name]
            if name in (_EMBEDDING, "output_embedding/embedding"):
                read = _with_new_tokens(read, *vocabulary, shape.shape[1], wanted, seed)
        else:
            blocks, _, rest = name.partition("/")
            layers = [readers[f"{blocks}/{layer}/{rest}"] for layer in range(wanted.num_layers)]
            read = functools.partial(_stacked, layers)
        return _placed(read, shape, where)

    return jax.tree_util.tree_map_with_path(place, shapes, layout)


def _fresh_adapters(config: DecoderConfig, layout: Params, seed: int) -> dict[str, jax.Array]:
    """Initializes the adapters, by path; none without `lora_rank`."""
    if not config.lora_rank:
        return {}

    def chosen(trunk: Params) -> dict[str, Any]:
        return {path: x for path, x in flat(trunk).items() if f"/{ADAPTER}/" in path}

    # XLA removes all else.
    return jax.jit(lambda: chosen(_fresh_trunk(config, seed)), out_shardings=chosen(layout))()


def _placed(read: Read, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """Lets each device read its own part, and waits for it."""

    def part(index: Index) -> np.ndarray:
        whole = tuple(slice(*each.indices(n)) for each, n in zip(index, shape.shape, strict=True))
        return np.ascontiguousarray(read(whole).astype(shape.dtype, copy=False))

    return jax.make_array_from_callback(shape.shape, sharding, part).block_until_ready()


def _finite(name: str, read: Read, index: Index) -> np.ndarray:
    """Reads a tensor; raises `PretrainedError` if it holds what is no number."""
    tensor = read(index)
    if not np.isfinite(tensor).all():
        raise PretrainedError(
            f"the checkpoint's tensor {name} holds NaN or infinity, so nothing can be learned from "
            "it. Get the checkpoint again, or an earlier one."
        )
    return tensor


def _stacked(layers: list[Read], index: Index) -> np.ndarray:
    """Stacks tensors of several layers."""
    chosen = layers[index[0]]
    first = chosen[0](index[1:])
    stack = np.empty((len(chosen), *first.shape), first.dtype)
    stack[0] = first
    for place, read in enumerate(chosen[1:], 1):
        stack[place] = read(index[1:])
    return stack


def _with_new_tokens(
    read: Read, known: int, wanted: int, width: int, config: DecoderConfig, seed: int
) -> Read:
    """Extends an embedding with rows near the mean of those it has."""
    if wanted == known:
        return read

    @functools.cache
    def new_rows() -> np.ndarray:
        mean = read((slice(0, known), slice(0, width))).mean(axis=0, dtype=np.float32)
        noise = np.random.default_rng(seed).normal(size=(wanted - known, width))
        return (mean + config.initializer_range * noise).astype(np.float32)

    def read_grown(index: Index) -> np.ndarray:
        rows, columns = index
        old = read((slice(min(rows.start, known), min(rows.stop, known)), columns))
        new = slice(max(rows.start - known, 0), max(rows.stop - known, 0))
        return np.concatenate([old.astype(np.float32), new_rows()[new, columns]])

    return read_grown


def for_each(sharding: Shardings, shapes: Params) -> Params:
    """Returns a sharding for each parameter."""
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda _: sharding, shapes)
    return sharding


def under(sharding: Shardings, name: str) -> Shardings:
    """Returns the sharding, or shardings, of the subtree `name`."""
    return sharding[name] if isinstance(sharding, Mapping) else sharding


# --- files --------------------------------------------------------------------------------------


def _config_fields(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a device would never end
        raise PretrainedError(f"{path} is no file. Put the one of the checkpoint there.")
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path} cannot be read: {shown(error, 300)}.") from None
    if not isinstance(fields, dict):
        raise PretrainedError(f"{path} holds {str(fields)[:60]!r}, no fields by name.")
    return fields


class _Tensor:
    """A tensor in a file, with its shape, that is read when it is sliced."""

    def __init__(self, in_file):
        self.shape = tuple(in_file.get_shape())
        self._in_file = in_file

    def __getitem__(self, index: Index) -> np.ndarray:
        return self._in_file[index]


@contextlib.contextmanager
def _open_tensors(folder: Path) -> Iterator[Mapping[str, _Tensor]]:
    """Opens the tensors of a folder, by name; their data is read when they are sliced."""
    import safetensors

    with contextlib.ExitStack() as stack:
        tensors: dict[str, _Tensor] = {}
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
                tensors |= {name: _Tensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            except (safetensors.SafetensorError, OSError) as error:
                raise PretrainedError(f"{path} cannot be read: {shown(error, 300)}.") from None
        yield tensors


def _check_inside(folder: Path, names: list[str]) -> None:
    """Raises `PretrainedError` for names of an index that lead out of its folder."""
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache, whose files are links to blobs/ in it
        root = root.parents[1]
    for name in names:
        path = Path(folder, str(name))
        is_plain = isinstance(name, str) and name.isprintable() and ".." not in path.parts
        if not is_plain or Path(name).is_absolute() or not path.resolve().is_relative_to(root):
            raise PretrainedError(
                f"{folder / INDEX} names {str(name)[:80]!r}, which is no file inside the folder. "
                "Only those are read: copy the file there and name it so."
            )


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a checkpoint's tensors; raises `PretrainedError` if any is missing."""
    if (folder / INDEX).exists():
        try:
            names = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise PretrainedError(
                f"{folder / INDEX} cannot be read: {shown(error, 300, repr)}."
            ) from None
        _check_inside(folder, names)
        if missing := [name for name in names if not (folder / name).exists()]:
            raise PretrainedError(f"{folder} lacks files that {INDEX} names: {', '.join(missing)}.")
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    raise PretrainedError(
        f"{folder} holds neither {SINGLE} nor {INDEX}. Checkpoints in other formats are not read; "
        "load and save it once with transformers, which writes safetensors."
    )
