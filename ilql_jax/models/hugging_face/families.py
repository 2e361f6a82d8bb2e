"""Families of Hugging Face that the decoder covers: their configs and the names of their tensors.

A family is a pair of functions between its `config.json` and a `DecoderConfig`, and a table from
the names of its tensors to the paths of our trunk's parameters. The structure is in
`models/blocks.py`; `read.py` reads files and `write.py` writes them.
tests/ilql_jax/test_families.py compares the networks with Hugging Face's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ilql_jax.errors import UserError, shown
from ilql_jax.models.config import NOT_IN_CONFIG_JSON, DecoderConfig
from ilql_jax.models.rotary import RotaryScaling

Index = tuple[slice, ...]

MOST_LAYERS, MOST_OF_ALL = 1_000, 2**40  # of a network; the largest published have 126 layers


class PretrainedError(UserError, ValueError):
    """A checkpoint that cannot be used. The message names all that is wrong with it."""


class Layout(NamedTuple):
    """Conversion between one of our arrays and their tensor.

    Attributes:
        shape: Maps our shape to theirs.
        read: Maps their tensor (anything with slices) and an index into ours to that part of ours.
        write: Maps our array to theirs.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[[Any, Index], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda ours: ours, lambda theirs, index: theirs[index], lambda ours: ours)
# PyTorch's `Linear` keeps kernels as [out, in], Flax's as [in, out].
TRANSPOSED = Layout(
    lambda ours: ours[::-1], lambda theirs, index: theirs[index[::-1]].T, lambda ours: ours.T
)


# Gemma's norms multiply by 1 + weight.
ONE_LESS = Layout(
    lambda ours: ours,
    lambda theirs, index: theirs[index].astype(np.float32) + 1,
    lambda ours: ours - 1,
)


def by_head(heads: int) -> Layout:
    """Layout of GPT-NeoX's queries, keys and values, which are interleaved by head."""

    def write(ours: np.ndarray) -> np.ndarray:
        parts = ours.reshape(*ours.shape[:-1], 3, heads, -1)
        return np.swapaxes(parts, -3, -2).reshape(ours.shape).T

    def read(theirs: Any, index: Index) -> np.ndarray:
        whole = theirs[(slice(None),) * len(index)].T
        parts = whole.reshape(*whole.shape[:-1], heads, 3, -1)
        return np.swapaxes(parts, -3, -2).reshape(whole.shape)[index]

    return Layout(lambda ours: ours[::-1], read, write)


Table = dict[str, tuple[str, Layout]]

# Their name without the prefix -> path in our trunk, layout. {} is the number of the block. Paths
# that a network does not have (biases, say) are left out by `read.py` and `write.py`.
GPT2: Table = {
    "wte.weight": ("token_embedding/embedding", SAME),
    "wpe.weight": ("position_embedding/embedding", SAME),
    "h.{}.ln_1.weight": ("blocks/{}/attention_norm/scale", SAME),
    "h.{}.ln_1.bias": ("blocks/{}/attention_norm/bias", SAME),
    # `Conv1D` keeps kernels as [in, out] and q, k, v side by side, as we do.
    "h.{}.attn.c_attn.weight": ("blocks/{}/attention/qkv/kernel", SAME),
    "h.{}.attn.c_attn.bias": ("blocks/{}/attention/qkv/bias", SAME),
    "h.{}.attn.c_proj.weight": ("blocks/{}/attention/out/kernel", SAME),
    "h.{}.attn.c_proj.bias": ("blocks/{}/attention/out/bias", SAME),
    "h.{}.ln_2.weight": ("blocks/{}/mlp_norm/scale", SAME),
    "h.{}.ln_2.bias": ("blocks/{}/mlp_norm/bias", SAME),
    "h.{}.mlp.c_fc.weight": ("blocks/{}/mlp_in/kernel", SAME),
    "h.{}.mlp.c_fc.bias": ("blocks/{}/mlp_in/bias", SAME),
    "h.{}.mlp.c_proj.weight": ("blocks/{}/mlp_out/kernel", SAME),
    "h.{}.mlp.c_proj.bias": ("blocks/{}/mlp_out/bias", SAME),
    "ln_f.weight": ("final_norm/scale", SAME),
    "ln_f.bias": ("final_norm/bias", SAME),
    "lm_head.weight": ("output_embedding/embedding", SAME),
}
LLAMA: Table = {
    "embed_tokens.weight": ("token_embedding/embedding", SAME),
    "layers.{}.input_layernorm.weight": ("blocks/{}/attention_norm/scale", SAME),
    "layers.{}.self_attn.q_proj.weight": ("blocks/{}/attention/q/kernel", TRANSPOSED),
    "layers.{}.self_attn.q_proj.bias": ("blocks/{}/attention/q/bias", SAME),
    "layers.{}.self_attn.k_proj.weight": ("blocks/{}/attention/k/kernel", TRANSPOSED),
    "layers.{}.self_attn.k_proj.bias": ("blocks/{}/attention/k/bias", SAME),
    "layers.{}.self_attn.v_proj.weight": ("blocks/{}/attention/v/kernel", TRANSPOSED),
    "layers.{}.self_attn.v_proj.bias": ("blocks/{}/attention/v/bias", SAME),
    "layers.{}.self_attn.o_proj.weight": ("blocks/{}/attention/out/kernel", TRANSPOSED),
    "layers.{}.self_attn.o_proj.bias": ("blocks/{}/attention/out/bias", SAME),
    "layers.{}.self_attn.q_norm.weight": ("blocks/{}/attention/q_norm/scale", SAME),
    "layers.{}.self_attn.k_norm.weight": ("blocks/{}/attention/k_norm/scale", SAME),
    "layers.{}.post_attention_layernorm.weight": ("blocks/{}/mlp_norm/scale", SAME),
    "layers.{}.mlp.gate_proj.weight": ("blocks/{}/mlp_gate/kernel", TRANSPOSED),
    "layers.{}.mlp.gate_proj.bias": ("blocks/{}/mlp_gate/bias", SAME),
    "layers.{}.mlp.up_proj.weight": ("blocks/{}/mlp_in/kernel", TRANSPOSED),
    "layers.{}.mlp.up_proj.bias": ("blocks/{}/mlp_in/bias", SAME),
    "layers.{}.mlp.down_proj.weight": ("blocks/{}/mlp_out/kernel", TRANSPOSED),
    "layers.{}.mlp.down_proj.bias": ("blocks/{}/mlp_out/bias", SAME),
    "norm.weight": ("final_norm/scale", SAME),
    "lm_head.weight": ("output_embedding/embedding", SAME),
}


def _gemma3_table(config: DecoderConfig) -> Table:
    """Names after the order of the norms, of which there are two more; they count from -1."""
    norms = {
        "post_attention_layernorm": "attention_post_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_post_norm",
    }
    table = LLAMA | {
        f"layers.{{}}.{theirs}.weight": (f"blocks/{{}}/{ours}/scale", SAME)
        for theirs, ours in norms.items()
    }
    return {
        name: (path, ONE_LESS if path.endswith("/scale") else layout)
        for name, (path, layout) in table.items()
    }


def _gpt_neox_table(config: DecoderConfig) -> Table:
    qkv = by_head(config.num_heads)
    return {
        "embed_in.weight": ("token_embedding/embedding", SAME),
        "layers.{}.input_layernorm.weight": ("blocks/{}/attention_norm/scale", SAME),
        "layers.{}.input_layernorm.bias": ("blocks/{}/attention_norm/bias", SAME),
        "layers.{}.attention.query_key_value.weight": ("blocks/{}/attention/qkv/kernel", qkv),
        "layers.{}.attention.query_key_value.bias": ("blocks/{}/attention/qkv/bias", qkv),
        "layers.{}.attention.dense.weight": ("blocks/{}/attention/out/kernel", TRANSPOSED),
        "layers.{}.attention.dense.bias": ("blocks/{}/attention/out/bias", SAME),
        "layers.{}.post_attention_layernorm.weight": ("blocks/{}/mlp_norm/scale", SAME),
        "layers.{}.post_attention_layernorm.bias": ("blocks/{}/mlp_norm/bias", SAME),
        "layers.{}.mlp.dense_h_to_4h.weight": ("blocks/{}/mlp_in/kernel", TRANSPOSED),
        "layers.{}.mlp.dense_h_to_4h.bias": ("blocks/{}/mlp_in/bias", SAME),
        "layers.{}.mlp.dense_4h_to_h.weight": ("blocks/{}/mlp_out/kernel", TRANSPOSED),
        "layers.{}.mlp.dense_4h_to_h.bias": ("blocks/{}/mlp_out/bias", SAME),
        "final_layer_norm.weight": ("final_norm/scale", SAME),
        "final_layer_norm.bias": ("final_norm/bias", SAME),
        "embed_out.weight": ("output_embedding/embedding", SAME),
    }


# Names without the prefix. Files may hold them even where the output is tied.
OUTPUTS = ("lm_head.weight", "embed_out.weight")
# Masks and frequencies in old checkpoints, which are no weights.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
BUFFERS += ("rotary_emb.inv_freq",)
SLIDING = "sliding_attention"

# --- config.json --------------------------------------------------------------------------------


def _read_gpt2(hf: Mapping[str, Any]) -> DecoderConfig:
    _demand(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _demand(hf, "scale_attn_weights", True)
    _demand(hf, "scale_attn_by_inverse_layer_idx", False)
    _demand(hf, "add_cross_attention", False)
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["n_embd"],
        num_layers=hf["n_layer"],
        num_heads=hf["n_head"],
        mlp_size=hf["n_inner"] or 4 * hf["n_embd"],
        max_positions=hf["n_positions"],
        norm_epsilon=hf["layer_norm_epsilon"],
        initializer_range=hf["initializer_range"],
        tied_output=hf["tie_word_embeddings"],
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": config.initializer_range,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied_output,
    }


def _read_sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the fields that families since GPT-2 share."""
    for kind in hf.get("layer_types") or ():
        if kind != "full_attention":
            raise PretrainedError(
                f"config.json: attention of the kind {shown(kind, 80, repr)} is not supported."
            )
    return {
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "mlp_size": hf["intermediate_size"],
        "max_positions": hf["max_position_embeddings"],
        "initializer_range": hf["initializer_range"],
        "tied_output": hf["tie_word_embeddings"],
        "position_encoding": "rotary",
        **_read_rotary(hf["rope_parameters"], hf["max_position_embeddings"]),
    }


def _write_sizes(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied_output,
        "rope_parameters": _write_rotary(config),
    }


def _read_llama(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads Llama, and families that add biases, norms of queries, or layers without rotary."""
    _demand(hf, "hidden_act", "silu")
    kind = hf["model_type"]
    bias = hf.get("attention_bias", False)
    without = ()
    if kind == "smollm3":
        without = tuple(n for n, rotary in enumerate(hf["no_rope_layers"]) if not rotary)
    return DecoderConfig(
        **_read_sizes(hf),
        num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        norm_epsilon=hf["rms_norm_eps"],
        norm="rms_norm",
        mlp="swiglu",
        fused_qkv=False,
        qk_norm=kind == "qwen3",
        qkv_bias=bias or kind == "qwen2",
        attention_bias=bias,
        mlp_bias=hf.get("mlp_bias", False),
        layers_without_rotary=without,
    )


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    return _write_sizes(config) | {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    return _without(_write_llama(config), "attention_bias", "mlp_bias")


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    return _without(_write_llama(config), "mlp_bias")


def _write_smollm3(config: DecoderConfig) -> dict[str, Any]:
    rotary = [int(n not in config.layers_without_rotary) for n in range(config.num_layers)]
    return _write_llama(config) | {"no_rope_layers": rotary}


def _read_gemma3(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a text model: layers of two kinds, each with its rotary positions."""
    _demand(hf, "hidden_activation", "gelu_pytorch_tanh")
    _demand(hf, "use_bidirectional_attention", False, None)
    _demand(hf, "attn_logit_softcapping", None)
    _demand(hf, "final_logit_softcapping", None)
    kinds = hf["layer_types"]
    sliding = tuple(n for n, kind in enumerate(kinds) if kind == SLIDING)
    others = [kind for kind in kinds if kind != SLIDING]
    rotary = hf["rope_parameters"]
    _demand(rotary[SLIDING], "rope_type", "default")
    plain = {**hf, "layer_types": others, "rope_parameters": rotary["full_attention"]}
    return DecoderConfig(
        **_read_sizes(plain),
        num_kv_heads=hf["num_key_value_heads"],
        head_dim=hf["head_dim"],
        norm_epsilon=hf["rms_norm_eps"],
        norm="rms_norm",
        mlp="geglu",
        fused_qkv=False,
        qk_norm=True,
        qkv_bias=hf["attention_bias"],
        attention_bias=hf["attention_bias"],
        mlp_bias=False,
        post_norms=True,
        scaled_embedding=True,
        query_pre_attn_scalar=float(hf["query_pre_attn_scalar"]),
        sliding_layers=sliding,
        sliding_window=hf["sliding_window"] if sliding else 0,
        sliding_rotary_base=float(rotary[SLIDING]["rope_theta"]),
    )


def _write_gemma3(config: DecoderConfig) -> dict[str, Any]:
    layers = range(config.num_layers)
    sliding = {"rope_type": "default", "rope_theta": config.sliding_rotary_base}
    return _without(_write_llama(config), "hidden_act", "mlp_bias") | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(config.query_pre_attn_scalar or config.head_size),
        "layer_types": [
            SLIDING if n in config.sliding_layers else "full_attention" for n in layers
        ],
        "sliding_window": config.sliding_window or None,
        "rope_parameters": {"full_attention": _write_rotary(config), SLIDING: sliding},
    }


def _read_gpt_neox(hf: Mapping[str, Any]) -> DecoderConfig:
    _demand(hf, "hidden_act", "gelu_new", "gelu_pytorch_tanh")
    _demand(hf, "use_parallel_residual", False)
    return DecoderConfig(
        **_read_sizes(hf),
        norm_epsilon=hf["layer_norm_eps"],
        qkv_bias=hf["attention_bias"],
        attention_bias=hf["attention_bias"],
    )


def _write_gpt_neox(config: DecoderConfig) -> dict[str, Any]:
    sizes = _write_sizes(config)
    sizes["rope_parameters"] |= {"partial_rotary_factor": 1.0}
    return sizes | {
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu_new",
        "use_parallel_residual": False,
        "attention_bias": config.attention_bias,
        # The older name: transformers up to 5.4 reads it alone, and rotates a quarter without it.
        "rotary_pct": 1.0,
    }


def _read_rotary(rope: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1:
        raise PretrainedError(
            f"config.json: partial_rotary_factor is {shown(share)}; only 1 is supported."
        )
    scaling = None
    original = rope.get("original_max_position_embeddings") or max_positions
    if kind == "linear":
        scaling = RotaryScaling(kind, rope["factor"])
    elif kind == "llama3":
        few, many = rope["low_freq_factor"], rope["high_freq_factor"]
        scaling = RotaryScaling(kind, rope["factor"], original, few, many)
    elif kind == "yarn":
        if not rope.get("truncate", True):
            raise PretrainedError("config.json: YaRN with truncate false is not supported.")
        factor = rope["factor"] or max_positions / original
        few, many = rope.get("beta_slow") or 1.0, rope.get("beta_fast") or 32.0
        grown = _attention_factor(rope, factor)
        scaling = RotaryScaling(kind, factor, original, few, many, grown)
    elif kind != "default":
        raise PretrainedError(
            f"config.json: rotary positions of the type {shown(kind, 80, repr)} are not "
            "supported; default, linear, llama3 and yarn are."
        )
    return {"rotary_base": float(rope["rope_theta"]), "rotary_scaling": scaling}


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Returns the factor as set, else the paper's (YaRN, eq. 22) in DeepSeek's general form."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return growth(rope["mscale"]) / growth(rope["mscale_all_dim"])
    return growth(1.0)


def _write_rotary(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rotary_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rotary_base}
    fields = {"rope_type": scaling.kind, "rope_theta": config.rotary_base, "factor": scaling.factor}
    original = {"original_max_position_embeddings": scaling.original_max_positions}
    if scaling.kind == "llama3":
        turns = {"low_freq_factor": scaling.few_turns, "high_freq_factor": scaling.many_turns}
        return fields | original | turns
    if scaling.kind == "yarn":
        turns = {"beta_slow": scaling.few_turns, "beta_fast": scaling.many_turns}
        return fields | original | turns | {"attention_factor": scaling.attention_factor}
    return fields


def _demand(hf: Mapping[str, Any], key: str, *supported: Any) -> None:
    if hf.get(key) not in supported:
        allowed = " or ".join(map(repr, supported))
        raise PretrainedError(
            f"config.json: {key} is {shown(hf.get(key), 80, repr)}; only {allowed} is supported."
        )


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


# --- the families -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Family:
    """One of Hugging Face's architectures.

    Attributes:
        model_type: As in `config.json`.
        architecture: As in `config.json`.
        prefix: Begins all names but those of `OUTPUTS`; older files leave it out.
        read: Maps the fields of `config.json`, defaults filled in, to our config.
        write: The inverse of `read`.
        names: Maps our config to the names of the tensors.
    """

    model_type: str
    architecture: str
    prefix: str
    read: Callable[[Mapping[str, Any]], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    names: Callable[[DecoderConfig], Table]

    def table(self, config: DecoderConfig) -> Table:
        """Maps their names, with prefix, to paths of our trunk, for all blocks."""
        paths: Table = {}
        for name, (path, layout) in self.names(config).items():
            whole = name if name in OUTPUTS else self.prefix + name
            for layer in range(config.num_layers if "{}" in name else 1):
                paths[whole.format(layer)] = (path.format(layer), layout)
        return paths


def _llama_like(model_type: str, architecture: str, write=_write_llama) -> Family:
    return Family(model_type, architecture, "model.", _read_llama, write, lambda _: LLAMA)


FAMILIES = (
    Family("gpt2", "GPT2LMHeadModel", "transformer.", _read_gpt2, _write_gpt2, lambda _: GPT2),
    _llama_like("llama", "LlamaForCausalLM"),
    _llama_like("qwen2", "Qwen2ForCausalLM", _write_qwen2),
    _llama_like("qwen3", "Qwen3ForCausalLM", _write_qwen3),
    _llama_like("smollm3", "SmolLM3ForCausalLM", _write_smollm3),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "model.",
        _read_gemma3,
        _write_gemma3,
        _gemma3_table,
    ),
    # The networks that are trained from scratch here: GPT-2's blocks with rotary positions.
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "gpt_neox.",
        _read_gpt_neox,
        _write_gpt_neox,
        _gpt_neox_table,
    ),
)


def family_of(fields: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`; raises `PretrainedError` if it is not supported."""
    names = fields.get("architectures") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        raise PretrainedError(
            f"config.json: architectures is {str(names)[:80]!r}, no list of names."
        )
    for family in FAMILIES:
        if family.model_type == fields.get("model_type") and set(names) <= {
            family.architecture,
            family.architecture.replace("LMHeadModel", "Model").replace("ForCausalLM", "Model"),
        }:
            return family
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise PretrainedError(
        f"the architecture {shown(', '.join(names) or repr(fields.get('model_type')))} is not "
        "supported; "
        f"these are: {supported} (the last only without parallel residuals)."
    )


def decoder_config(fields: Mapping[str, Any]) -> DecoderConfig:
    """Returns the shape that a `config.json` describes.

    Raises:
        PretrainedError: An architecture that is not supported, or an option of one that is not.
    """
    from transformers import AutoConfig

    family = family_of(fields)
    if fields.get("quantization_config"):
        raise PretrainedError("config.json: quantized checkpoints are not supported.")
    _check_sizes(fields)
    options = _without(dict(fields), "model_type", "transformers_version")
    try:
        # Fields that are left out have Hugging Face's defaults, which differ by family.
        filled = AutoConfig.for_model(family.model_type, **options).to_dict()
        return family.read(filled)
    except PretrainedError:
        raise
    except Exception as error:  # whatever a damaged file makes the library stumble on
        message = shown(" ".join(str(error).split()), 500)
        raise PretrainedError(f"config.json of a {family.architecture}: {message}") from None


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Refuses sizes that no network has, before lists of that length are made."""
    for name, value in fields.items():
        most = MOST_LAYERS if name in ("num_hidden_layers", "n_layer") else MOST_OF_ALL
        if isinstance(value, int | float) and not abs(value) <= most:
            raise PretrainedError(
                f"config.json: {name} is {shown(value)}, but at most {most:,} can be. The file is "
                "damaged, or was made to do harm: take the one that belongs to the tensors."
            )


def hugging_face_config(config: DecoderConfig) -> tuple[Family, dict[str, Any]]:
    """Returns the family whose networks have this shape, and its `config.json`.

    Raises:
        PretrainedError: There is none.
    """
    for family in FAMILIES:
        fields = {"architectures": [family.architecture], "model_type": family.model_type}
        # Not the ids of the family's first model, which a vocabulary may not have.
        fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        fields |= family.write(config)
        try:
            same = shape_alone(decoder_config(fields)) == shape_alone(config)
        except PretrainedError:
            continue
        if same:
            return family, fields
    raise PretrainedError(
        f"none of {', '.join(family.architecture for family in FAMILIES)} has the shape of "
        f"{config}."
    )


def shape_alone(config: DecoderConfig) -> DecoderConfig:
    """Normalizes a config, so that those of one network are equal.

    Implied sizes are written out, and fields that a `config.json` leaves open have their defaults.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(DecoderConfig)}
    fields = {name: defaults[name] for name in NOT_IN_CONFIG_JSON}
    if config.position_encoding != "rotary":
        fields["rotary_base"] = defaults["rotary_base"]
    if not config.sliding_layers:
        fields["sliding_rotary_base"] = defaults["sliding_rotary_base"]
    return dataclasses.replace(
        config,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_size,
        query_pre_attn_scalar=config.query_pre_attn_scalar or config.head_size,
        **fields,
    )
