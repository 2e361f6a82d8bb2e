"""Shapes of the networks: `DecoderConfig` for a transformer, `ModelConfig` for it with value heads.

Whatever families of transformers do differently is a field here, which `blocks.py`, `decoder.py`
and `kv_cache.py` read; `hugging_face/families.py` maps `config.json` files to these fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ilql_jax.models.rotary import RotaryScaling
from ilql_jax.settings import SettingError, Settings, setting

Params = dict[str, Any]  # nested dicts of arrays

COMPUTE_DTYPES = ("float32", "bfloat16")
GATED_MLPS = ("swiglu", "geglu")  # with a third matrix
VALUE_HEAD_KINDS = ("mlp", "linear", "tied")  # regressed on returns


def _run_setting(*arguments: Any, **options: Any) -> Any:
    """Declares a setting that no `config.json` holds: it is chosen when a checkpoint is loaded."""
    declared = setting(*arguments, **options)
    metadata = {**declared.metadata, "in_config_json": False}
    return dataclasses.field(default=declared.default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Settings):
    """Shape of a decoder-only transformer, and how it is computed. The defaults are GPT-2's.

    Names are Hugging Face's where it has one.

    Raises:
        SettingError: A value out of bounds, or two that exclude each other.
    """

    vocab_size: int = setting("Number of tokens.", least=1)
    hidden_size: int = setting("Width of the residual stream.", least=1)
    num_layers: int = setting("Number of blocks.", least=1)
    num_heads: int = setting("Number of attention heads.", least=1)
    mlp_size: int = setting("Width inside a block's MLP.", least=1)
    max_positions: int = setting("Longest context, in tokens.", least=2)
    norm_epsilon: float = setting("Added to the variance in norms.", 1e-5, above=0)
    position_encoding: str = setting(
        "Positions: learned embeddings (GPT-2), or rotary.",
        "learned",
        choices=("learned", "rotary"),
    )
    rotary_base: float = setting(
        "Rotary wavelengths go from 2π to nearly 2π times this, in tokens.", 10_000.0, above=1
    )
    initializer_range: float = setting(
        "Standard deviation of the initial weights. GPT-2's 0.02 is for a width of 768.",
        0.02,
        above=0,
    )
    num_kv_heads: int = setting(
        "Heads of keys and values, each shared by as many query heads; 0 = num_heads.", 0, least=0
    )
    head_dim: int = setting("Width of a head; 0 = hidden_size / num_heads.", 0, least=0)
    # Stretching of rotary positions to longer contexts. A dataclass: not set on a command line.
    rotary_scaling: RotaryScaling | None = None
    layers_without_rotary: tuple[int, ...] = setting(
        "Layers, counted from 0, that see no positions (SmolLM3).", (), least=0
    )
    sliding_layers: tuple[int, ...] = setting(
        "Layers, counted from 0, that see the last sliding_window tokens alone (Gemma 3).",
        (),
        least=0,
    )
    sliding_window: int = setting(
        "Tokens that those layers see, the one that is read included; 0 without such layers.",
        0,
        least=0,
    )
    sliding_rotary_base: float = setting(
        "rotary_base of those layers, which rotary_scaling leaves alone.", 10_000.0, above=1
    )
    query_pre_attn_scalar: float = setting(
        "Scores of attention are divided by its root; 0 = the width of a head.", 0.0, least=0
    )
    scaled_embedding: bool = setting(
        "Token embeddings are multiplied by the root of hidden_size (Gemma 3).", False
    )
    norm: str = setting(
        "Norms: layer_norm, or rms_norm (Llama, Qwen).",
        "layer_norm",
        choices=("layer_norm", "rms_norm"),
    )
    mlp: str = setting(
        "MLPs: gelu (GPT-2; its tanh form), swiglu (Llama, Qwen), or geglu (Gemma 3).",
        "gelu",
        choices=("gelu", *GATED_MLPS),
    )
    post_norms: bool = setting(
        "Output of attention and MLP is normalized before it is added (Gemma 3).", False
    )
    fused_qkv: bool = setting("Queries, keys and values are one matrix (GPT-2), not three.", True)
    qk_norm: bool = setting(
        "Queries and keys are normalized per head before they are rotated (Qwen 3).", False
    )
    qkv_bias: bool = setting("Queries, keys and values have biases.", True)
    attention_bias: bool = setting("The projection out of the attention has a bias.", True)
    mlp_bias: bool = setting("MLPs have biases.", True)
    tied_output: bool = setting("The output matrix is the token embedding.", True)
    compute_dtype: str = _run_setting(
        "Dtype of the layers' arithmetic. Trained parameters, softmax, norms and logits are "
        "float32 in any case.",
        "float32",
        choices=COMPUTE_DTYPES,
    )
    attention: str = _run_setting(
        "Attention on accelerators: xla, or cudnn (flash attention on GPUs, in bfloat16). CPUs "
        "have one implementation.",
        "xla",
        choices=("xla", "cudnn"),
        shapes_result=False,
    )
    remat: bool = _run_setting(
        "Compute each block again in the backward pass, instead of keeping its activations.",
        False,
        shapes_result=False,
    )
    # Changes results by rounding alone, but the layout of parameters in checkpoints with it: a
    # training cannot go on with another value, so it counts as shaping results.
    scan_layers: bool = _run_setting(
        "Compile one block for all: parameters are [layers, ...], and compile time does not grow "
        "with depth.",
        False,
    )
    lora_rank: int = _run_setting(
        "Width of adapters beside the matrices of attention and MLP, with all else in the trunk "
        "frozen (LoRA; Hu et al., 2021); 0 = none.",
        0,
        least=0,
    )
    lora_scale: float = _run_setting(
        "Factor of what the adapters add (the paper's α / r).", 1.0, above=0
    )
    # Matrices of the blocks lie as [out, in]. Set by `cpu_matmul.decoding_layout` alone.
    transposed_kernels: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise SettingError(
                "attention",
                self.attention,
                f"needs compute_dtype 'bfloat16', not {self.compute_dtype!r}",
            )
        self._check_heads()
        self._check_rotary()
        self._check_layers()
        narrowest = min(self.hidden_size, self.mlp_size, self.kv_heads * self.head_size)
        if self.lora_rank > narrowest:
            raise SettingError(
                "lora_rank",
                self.lora_rank,
                f"must be at most {narrowest}, the width of the narrowest matrix that has one",
            )

    def _check_heads(self) -> None:
        if not self.head_dim and self.hidden_size % self.num_heads:
            raise SettingError(
                "hidden_size", self.hidden_size, f"must be a multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise SettingError(
                "num_heads", self.num_heads, f"must be a multiple of num_kv_heads {self.kv_heads}"
            )
        if self.fused_qkv and self.kv_heads != self.num_heads:
            raise SettingError(
                "fused_qkv",
                self.fused_qkv,
                f"needs as many heads of keys as of queries, not num_kv_heads {self.kv_heads} and "
                f"num_heads {self.num_heads}",
            )

    def _check_rotary(self) -> None:
        if self.position_encoding != "rotary":
            for name in ("rotary_scaling", "layers_without_rotary"):
                if value := getattr(self, name):
                    raise SettingError(
                        name,
                        value,
                        f"needs position_encoding 'rotary', not {self.position_encoding!r}",
                    )
            return
        if self.head_size % 2 and self.head_dim:
            raise SettingError("head_dim", self.head_dim, "must be even for rotary positions")
        if self.head_size % 2:
            raise SettingError(
                "hidden_size",
                self.hidden_size,
                f"must be a multiple of twice num_heads {self.num_heads}: rotary positions need "
                "heads of an even width",
            )

    def _check_layers(self) -> None:
        for name in ("layers_without_rotary", "sliding_layers"):
            if any(layer >= self.num_layers for layer in getattr(self, name)):
                raise SettingError(
                    name, getattr(self, name), f"layers go from 0 to {self.num_layers - 1}"
                )
        if bool(self.sliding_layers) != bool(self.sliding_window):
            raise SettingError(
                "sliding_window",
                self.sliding_window,
                f"must be above 0 exactly where there are sliding_layers, not for "
                f"{self.sliding_layers}",
            )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def matrix_parameters(self) -> int:
        """Number of parameters in its matrices, nearly all that it has."""
        heads = 2 * (self.num_heads + self.kv_heads) * self.head_size
        mlp = (3 if self.mlp in GATED_MLPS else 2) * self.mlp_size
        rows = self.vocab_size * (1 if self.tied_output else 2)
        rows += self.max_positions if self.position_encoding == "learned" else 0
        return (self.num_layers * (heads + mlp) + rows) * self.hidden_size

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecoderConfig:
        """Rebuilds a config from its `dataclasses.asdict`, also by way of JSON."""
        scaling = fields.get("rotary_scaling")
        return cls(**{**fields, "rotary_scaling": scaling and RotaryScaling(**scaling)})


# Settings that a checkpoint's `config.json` leaves open, in order of declaration.
NOT_IN_CONFIG_JSON = tuple(
    field.name
    for field in dataclasses.fields(DecoderConfig)
    if not field.metadata.get("in_config_json", True)
)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """Shape of an `ActorCritic`: the trunk, `decoder`, and the value heads on it."""

    decoder: DecoderConfig
    value_inner_size: int = setting(
        "Width of the hidden layer of the value heads (linear ones have none).", 128, least=1
    )
    # "last" has to remember the whole utterance in one state; with "sum" the word that matters is
    # valued where it is chosen, by a row of its own.
    utterance_q: str = setting(
        "Value of an utterance from the Q heads: sum of its tokens' shares, Q(s, u) = Σ q(h, a); "
        "or last, Q of its last token (needed for credit token).",
        "sum",
        choices=("sum", "last"),
    )
    value_heads: str = setting(
        "Value heads: mlp (the papers), linear, tied, which have no vocabulary-sized matrix of "
        "their own, or probabilities: a second language model instead of heads (Q-SFT).",
        "mlp",
        choices=(*VALUE_HEAD_KINDS, "probabilities"),
    )
    # The separate trunk starts as a copy of the policy's, so that a training differs from one with
    # a shared trunk in its gradients alone.
    value_trunk: str = setting(
        "Trunk that the value heads read: shared with the policy, or separate, for methods that "
        "learn values.",
        "shared",
        choices=("shared", "separate"),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.value_heads == "probabilities":
            for name, needed in (("value_trunk", "separate"), ("utterance_q", "last")):
                if getattr(self, name) != needed:
                    raise SettingError(
                        name,
                        getattr(self, name),
                        f"must be {needed} for value_heads 'probabilities': the values are those "
                        "of a second language model, token by token",
                    )

    @property
    def value_decoder(self) -> DecoderConfig:
        """Shape of the values' own trunk: with an output matrix only if it is a language model."""
        if self.value_heads == "probabilities":
            return self.decoder
        return dataclasses.replace(self.decoder, tied_output=True)

    @property
    def num_trunks(self) -> int:
        """Number of transformers that read a conversation."""
        return 2 if self.value_trunk == "separate" else 1

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Rebuilds a config from its `dataclasses.asdict`, also by way of JSON.

        Fields added since it was written get their defaults.
        """
        return cls(**{**fields, "decoder": DecoderConfig.from_dict(fields["decoder"])})
