"""`DecoderConfig`: everything that families of transformers do differently, as fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ilql_jax.models.rotary import RotaryScaling

Params = dict[str, Any]  # nested dicts of arrays

COMPUTE_DTYPES = ("float32", "bfloat16")
VALUE_HEAD_KINDS = ("mlp", "linear", "tied")
VALUE_TRUNKS = ("shared", "separate")
# Say how the network is computed, not which network it is.
HOW_COMPUTED = ("compute_dtype", "attention", "remat", "scan_layers")
# What a pretrained checkpoint says nothing of.
LEFT_OPEN = (*HOW_COMPUTED, "lora_rank", "lora_scale")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of the transformer; the names are Hugging Face's where it has one.

    The defaults are GPT-2's. `families.py` reads those of the others from a `config.json`.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream.
        num_layers: Blocks.
        num_heads: Attention heads.
        mlp_size: Width inside a block's MLP.
        max_positions: Longest context.
        norm_epsilon: Of the norms.
        position_encoding: "learned" (GPT-2) or "rotary".
        rotary_base: Rotary wavelengths go from 2π to nearly 2π times this, in tokens.
        initializer_range: Standard deviation of the initial weights.
        num_kv_heads: Heads of keys and values, each shared by as many query heads; 0 =
            `num_heads`. Read `kv_heads`.
        head_dim: Width of a head; 0 = `hidden_size / num_heads`. Read `head_size`.
        rotary_scaling: How rotary positions are stretched to longer contexts, or None.
        layers_without_rotary: Layers, counted from 0, that see no positions (SmolLM3).
        norm: "layer_norm", or "rms_norm" (Llama, Qwen).
        mlp: "gelu" (GPT-2; its tanh form), or "swiglu" (Llama, Qwen).
        fused_qkv: Queries, keys and values are one matrix (GPT-2), or three.
        qk_norm: Queries and keys are normalized per head before they are rotated (Qwen 3).
        qkv_bias: Whether queries, keys and values have biases.
        attention_bias: Whether the projection out of the attention has one.
        mlp_bias: Whether the MLP has biases.
        tied_output: Whether the output matrix is the embedding.
        compute_dtype: float32 or bfloat16. Parameters, softmax, norms and logits are float32 in
            any case.
        attention: On accelerators: "xla", or "cudnn" (flash attention on GPUs, in bfloat16). On
            CPU there is one way.
        remat: The backward pass computes each block again instead of keeping what is inside.
        scan_layers: Blocks are one computation over parameters [layers, ...], so that compile time
            does not grow with depth.
        lora_rank: Width of the adapters beside the matrices of attention and MLP, which are frozen
            then, as all else in the trunk (LoRA; Hu et al., 2021); 0 = none.
        lora_scale: What the adapters' part is multiplied by (the paper's α / r).
        transposed_kernels: Matrices of the blocks lie as [out, in]; not for training (see
            `few_rows.decoding_layout`).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    max_positions: int
    norm_epsilon: float = 1e-5
    position_encoding: str = "learned"
    rotary_base: float = 10_000.0
    initializer_range: float = 0.02
    num_kv_heads: int = 0
    head_dim: int = 0
    rotary_scaling: RotaryScaling | None = None
    layers_without_rotary: tuple[int, ...] = ()
    norm: str = "layer_norm"
    mlp: str = "gelu"
    fused_qkv: bool = True
    qk_norm: bool = False
    qkv_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    tied_output: bool = True
    compute_dtype: str = "float32"
    attention: str = "xla"
    remat: bool = False
    scan_layers: bool = False
    lora_rank: int = 0
    lora_scale: float = 1.0
    transposed_kernels: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "mlp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name, bound in (("max_positions", 1), ("rotary_base", 1), ("initializer_range", 0)):
            if not getattr(self, name) > bound:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above {bound}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, but must not be negative.")
        if not 0 < self.lora_scale < float("inf"):
            raise ValueError(f"lora_scale is {self.lora_scale}, but must be above 0.")
        self._check_choices()
        self._check_heads()
        self._check_rotary()

    def _check_choices(self) -> None:
        for name, allowed in (
            ("position_encoding", ("learned", "rotary")),
            ("norm", ("layer_norm", "rms_norm")),
            ("mlp", ("gelu", "swiglu")),
            ("compute_dtype", COMPUTE_DTYPES),
            ("attention", ("xla", "cudnn")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be {_either(allowed)}."
                )
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise ValueError(
                f"attention is 'cudnn', which computes in bfloat16, but compute_dtype is "
                f"{self.compute_dtype}."
            )

    def _check_heads(self) -> None:
        for name in ("num_kv_heads", "head_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must not be negative.")
        if not self.head_dim and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}."
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}."
            )
        if self.fused_qkv and self.kv_heads != self.num_heads:
            raise ValueError(
                f"fused_qkv needs as many heads of keys as of queries, but num_kv_heads is "
                f"{self.kv_heads} and num_heads {self.num_heads}."
            )

    def _check_rotary(self) -> None:
        if self.position_encoding == "rotary":
            if self.head_size % 2:
                raise ValueError(f"rotary positions need an even head size, got {self.head_size}.")
            outside = [n for n in self.layers_without_rotary if not 0 <= n < self.num_layers]
            if outside:
                raise ValueError(
                    f"layers_without_rotary names {outside}, but layers go from 0 to "
                    f"{self.num_layers - 1}."
                )
        elif self.rotary_scaling or self.layers_without_rotary:
            raise ValueError(
                "rotary_scaling and layers_without_rotary need position_encoding 'rotary', not "
                f"{self.position_encoding!r}."
            )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @classmethod
    def from_dict(cls, fields: dict) -> DecoderConfig:
        """What `dataclasses.asdict` made of one, also by way of JSON."""
        scaling = fields.get("rotary_scaling")
        without = fields.get("layers_without_rotary", ())
        return cls(
            **fields
            | {
                "rotary_scaling": scaling and RotaryScaling(**scaling),
                "layers_without_rotary": tuple(without),
            }
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of an `ActorCritic`.

    Attributes:
        decoder: Shape of the trunk.
        value_inner_size: Width of the hidden layer of the value heads (`linear` has none).
        utterance_q: How the value of an utterance is read from the Q heads. "sum": each token
            adds a share, Q(s, u) = Σ_t q(h_t, a_t), so that the word that matters is judged where
            it is chosen, by a row of its own. "last": Q of the last token, which has to remember
            all of it (the value of a token's own decision; needed for credit "token").
        value_heads: Kind of the value heads: mlp (the papers), linear, or tied, which have no
            vocabulary-sized matrix of their own (see `heads.py`).
        value_trunk: What the value heads read. "shared": the policy's trunk. "separate": one of
            their own, for methods that learn values. It starts as a copy of the policy's, so that
            a training differs from one with a shared trunk in its gradients alone.
    """

    decoder: DecoderConfig
    value_inner_size: int
    utterance_q: str = "sum"
    value_heads: str = "mlp"
    value_trunk: str = "shared"

    def __post_init__(self):
        if self.utterance_q not in ("sum", "last"):
            raise ValueError(f"utterance_q is {self.utterance_q!r}, but must be sum or last.")
        if self.value_heads not in VALUE_HEAD_KINDS:
            raise ValueError(
                f"value_heads is {self.value_heads!r}, but must be one of "
                f"{', '.join(VALUE_HEAD_KINDS)}."
            )
        if self.value_trunk not in VALUE_TRUNKS:
            raise ValueError(
                f"value_trunk is {self.value_trunk!r}, but must be {' or '.join(VALUE_TRUNKS)}."
            )
        if self.value_inner_size < 1:
            raise ValueError(
                f"value_inner_size is {self.value_inner_size}, but must be at least 1."
            )

    @property
    def value_decoder(self) -> DecoderConfig:
        """Shape of a trunk of the values' own: without an output matrix, since it says no words."""
        return dataclasses.replace(self.decoder, tied_output=True)

    @property
    def num_trunks(self) -> int:
        """Transformers that read a conversation."""
        return 2 if self.value_trunk == "separate" else 1

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """What `dataclasses.asdict` made of one, also by way of JSON; new fields have defaults."""
        return cls(**fields | {"decoder": DecoderConfig.from_dict(fields["decoder"])})


def _either(allowed: Sequence[str]) -> str:
    return " or ".join([", ".join(allowed[:-1]), allowed[-1]])
