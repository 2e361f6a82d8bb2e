"""Hugging Face checkpoints in: one table from their names to ours.

`GPT2` lists every tensor of a GPT-2 with the place it has in our trunk and the transform between
the two. Structure is in `decoder.py`; tests/test_model.py holds the two networks against each
other. Reading safetensors files and the other families come on top of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from ilql_jax.models.actor_critic import ModelConfig, Params, abstract_params
from ilql_jax.models.decoder import DecoderConfig


class PretrainedError(ValueError):
    """Tensors that are not those of the network asked for. The message names each of them."""


def _same(tensor: np.ndarray) -> np.ndarray:
    return tensor


# Hugging Face's GPT-2 -> (path in our trunk, transform). {} is the number of the block. Its
# `Conv1D` keeps kernels as [in, out] and q, k, v side by side, as we do: nothing is transposed.
GPT2: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "wte.weight": ("token_embedding/embedding", _same),
    "wpe.weight": ("position_embedding/embedding", _same),
    "h.{}.ln_1.weight": ("blocks/{}/attention_norm/scale", _same),
    "h.{}.ln_1.bias": ("blocks/{}/attention_norm/bias", _same),
    "h.{}.attn.c_attn.weight": ("blocks/{}/attention/qkv/kernel", _same),
    "h.{}.attn.c_attn.bias": ("blocks/{}/attention/qkv/bias", _same),
    "h.{}.attn.c_proj.weight": ("blocks/{}/attention/out/kernel", _same),
    "h.{}.attn.c_proj.bias": ("blocks/{}/attention/out/bias", _same),
    "h.{}.ln_2.weight": ("blocks/{}/mlp_norm/scale", _same),
    "h.{}.ln_2.bias": ("blocks/{}/mlp_norm/bias", _same),
    "h.{}.mlp.c_fc.weight": ("blocks/{}/mlp_in/kernel", _same),
    "h.{}.mlp.c_fc.bias": ("blocks/{}/mlp_in/bias", _same),
    "h.{}.mlp.c_proj.weight": ("blocks/{}/mlp_out/kernel", _same),
    "h.{}.mlp.c_proj.bias": ("blocks/{}/mlp_out/bias", _same),
    "ln_f.weight": ("final_norm/scale", _same),
    "ln_f.bias": ("final_norm/bias", _same),
}
# Not weights of their own: the tied output, and the causal masks that old checkpoints carry.
_GPT2_DERIVED = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")


def params_from_gpt2(tensors: Mapping[str, np.ndarray], config: DecoderConfig) -> Params:
    """The trunk's parameters out of a GPT-2's tensors.

    Args:
        tensors: By Hugging Face's names, with or without `transformer.` in front.
        config: Shape of the trunk they shall fit.

    Raises:
        PretrainedError: Tensors that are missing, unknown or of another shape: all of them.
    """
    given = {
        name.removeprefix("transformer."): np.asarray(tensor)
        for name, tensor in tensors.items()
        if not name.endswith(_GPT2_DERIVED)
    }
    table = {
        name.format(i): (path.format(i), transform)
        for name, (path, transform) in GPT2.items()
        for i in range(config.num_layers if "{}" in name else 1)
    }
    shapes = _flatten(abstract_params(ModelConfig(config, value_inner_size=1))["trunk"])
    problems = [f"{name} is missing" for name in table if name not in given]
    problems += [f"{name} is not part of it" for name in given if name not in table]
    flat = {}
    for name in table.keys() & given.keys():
        path, transform = table[name]
        flat[path] = transform(given[name])
        if flat[path].shape != shapes[path].shape:
            problems.append(f"{name} gives {flat[path].shape}, but {shapes[path].shape} is needed")
    if problems:
        raise PretrainedError(
            f"these are not the tensors of {config}: {'; '.join(sorted(problems))}."
        )
    return _unflatten({path: flat[path].astype(shape.dtype) for path, shape in shapes.items()})


def _flatten(params: Params) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(flat: Mapping[str, np.ndarray]) -> Params:
    params: Params = {}
    for path, array in flat.items():
        *folders, leaf = [int(key) if key.isdigit() else key for key in path.split("/")]
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = array
    return params
