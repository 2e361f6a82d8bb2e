"""Damaged checkpoints of Hugging Face: told before anything is made, or read."""

import json
import random
import struct

import numpy as np
import pytest
from fuzzing import damaged_bytes, held, with_odd_value

from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.models.hugging_face.read import INDEX, check_tensors, flat, load_trunk, read_config
from ilql_jax.models.hugging_face.write import load_network, save_pretrained

LLAMA = DecoderConfig(
    **{"vocab_size": 12, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 8},
    **{"max_positions": 16, "position_encoding": "rotary", "norm": "rms_norm", "mlp": "swiglu"},
    **dict.fromkeys(("fused_qkv", "qkv_bias", "attention_bias", "mlp_bias", "tied_output"), False),
)
EXTRA = [
    *((name,) for name in ("rope_scaling", "rope_parameters", "layer_types", "sliding_window")),
    *((name,) for name in ("quantization_config", "auto_map", "head_dim", "partial_rotary_factor")),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Content of each file of a checkpoint in several parts, with value heads."""
    folder = tmp_path_factory.mktemp("llama")
    config = ModelConfig(LLAMA, 4)
    save_pretrained(folder, config, init_params(config, 0), card="", max_file_bytes=1000)
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.suffix != ".md"}


def damaged_header(rng, content):
    """The file with something odd in its header: names, dtypes, shapes, places, its length."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    text = with_odd_value(rng, header).encode(errors="replace")
    length = rng.choice([len(text)] * 4 + [0, 1, len(text) - 1, 2**40, 2**63])
    return struct.pack("<Q", length) + text + data[: rng.choice([len(data), len(data) - 1])]


def damaged(kind, rng, files):
    """A file that is damaged so, and its content."""
    tensors = sorted(name for name in files if name.endswith(".safetensors"))
    if kind == "header":
        name = rng.choice(tensors)
        return name, damaged_header(rng, files[name])
    if kind == "bytes":
        name = rng.choice(sorted(files))
        if name not in tensors:
            return name, damaged_bytes(rng, files[name])
        place = rng.randrange(len(files[name]))
        return name, files[name][:place] + files[name][place + rng.randrange(9) :]
    name, extra = {"config": ("config.json", EXTRA), "index": (INDEX, ())}[kind]
    odd = with_odd_value(rng, json.loads(files[name]), extra)
    return name, odd.encode(errors="replace")


def use(folder):
    check_tensors(folder)
    trunk = load_trunk(folder, read_config(folder))
    assert all(np.isfinite(x).all() for x in flat(trunk).values())
    load_network(folder)


@pytest.mark.parametrize("kind", ["config", "index", "header", "bytes"])
def test_a_damaged_checkpoint_is_told_or_read(kind, saved, tmp_path):
    assert len(saved) > 4
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    use(tmp_path)
    for seed in range(50):
        name, content = damaged(kind, random.Random(f"{kind} {seed}"), saved)
        (tmp_path / name).write_bytes(content)
        with held("pretrained checkpoints", f"{kind} {seed}"):
            use(tmp_path)
        (tmp_path / name).write_bytes(saved[name])
