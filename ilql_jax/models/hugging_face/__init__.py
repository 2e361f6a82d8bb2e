"""Checkpoints of Hugging Face: `families` that are covered, `read`ing and `write`ing them."""

from ilql_jax.models.hugging_face.families import PretrainedError
from ilql_jax.models.hugging_face.read import (
    check_tensors,
    find,
    load_trunk,
    params_from_gpt2,
    read_config,
    start_params,
)
from ilql_jax.models.hugging_face.write import load_network, save_pretrained

__all__ = [
    "PretrainedError",
    "check_tensors",
    "find",
    "load_network",
    "load_trunk",
    "params_from_gpt2",
    "read_config",
    "save_pretrained",
    "start_params",
]
