"""Small networks of Hugging Face's families with random weights, for tests against torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ilql_jax.fitting import small_network
from ilql_jax.models import DecoderConfig, ModelConfig

VOCAB, POSITIONS = 50, 64
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_NEOX = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
_GPT2 = {"vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": 32, "n_layer": 3, "n_head": 4}

# Name -> model type and fields of its config.
FAMILIES = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2, untied": ("gpt2", _GPT2 | {"tie_word_embeddings": False}),
    "llama2": ("llama", _SIZES | {"num_key_value_heads": 4}),
    "llama3": ("llama", _SIZES | {"rope_parameters": _LLAMA3}),
    "llama with biases": ("llama", _SIZES | {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("llama", _SIZES | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", _SIZES | {"tie_word_embeddings": True}),
    "qwen2.5, yarn": ("qwen2", _SIZES | {"rope_parameters": _YARN}),
    "qwen3": ("qwen3", _SIZES | {"head_dim": 16}),
    "smollm3": ("smollm3", _SIZES | {"num_hidden_layers": 4}),
    "gemma3": (
        "gemma3_text",
        _SIZES
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 7,
            "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {k: x for k, x in _SIZES.items() if k != "num_key_value_heads"}
        | {
            "hidden_act": "gelu_new",
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "rope_parameters": _NEOX,
        },
    ),
}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def random_model(name: str):
    """A network in torch, random everywhere: biases and norms too."""
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra 'parity'")
    transformers = pytest.importorskip("transformers")
    kind, fields = FAMILIES[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **fields, **_NO_TOKENS)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    """Logits of one dialogue alone."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].numpy()


def pack(dialogues: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions of one packed row."""
    tokens, segments, positions = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for number, dialogue in enumerate(dialogues, 1):
        here = slice(start, start + len(dialogue))
        tokens[0, here], segments[0, here] = dialogue, number
        positions[0, here] = np.arange(len(dialogue))
        start += len(dialogue)
    return tokens, segments, positions


OURS = small_network(vocab_size=60)  # no family's first choice
LLAMA = ModelConfig(
    DecoderConfig(
        300,
        16,
        2,
        4,
        24,
        256,
        position_encoding="rotary",
        num_kv_heads=2,
        head_dim=4,
        norm="rms_norm",
        mlp="swiglu",
        fused_qkv=False,
        qkv_bias=False,
        attention_bias=False,
        mlp_bias=False,
        initializer_range=0.1,
    ),
    8,
    "last",
)
GEMMA = dataclasses.replace(
    LLAMA,
    decoder=dataclasses.replace(
        LLAMA.decoder,
        num_layers=3,
        mlp="geglu",
        qk_norm=True,
        post_norms=True,
        scaled_embedding=True,
        query_pre_attn_scalar=6.0,
        sliding_layers=(0, 2),
        sliding_window=5,
        sliding_rotary_base=50.0,
        scan_layers=True,
    ),
)
SCANNED = dataclasses.replace(LLAMA, decoder=dataclasses.replace(LLAMA.decoder, scan_layers=True))
ROW = pack([np.arange(17) * 3 % 60, np.arange(9) * 7 % 60], 28)


def transformers_model(folder):
    pytest.importorskip("torch", reason="parity with torch needs the extra 'parity'")
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()
