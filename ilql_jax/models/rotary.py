"""Rotary position embedding (Su et al., 2021), and how families stretch it to longer contexts."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are changed, so that a network reads longer contexts.

    Frequencies that turn often within the original context stay, those that turn seldom are
    divided by `factor`, and there is a ramp between the two.

    Attributes:
        kind: "linear": all are divided (Chen et al., 2023). "llama3": the ramp is linear in the
            number of turns (Llama 3.1). "yarn": linear in the index of the frequency, and the
            rotated vectors grow by `attention_factor` (Peng et al., 2023).
        factor: How many times longer contexts become.
        original_max_positions: Context before that, in tokens; not read by "linear".
        few_turns: Fewer turns than this within the original context: divided.
        many_turns: More turns than this: unchanged.
        attention_factor: Read only by "yarn".
    """

    kind: str
    factor: float
    original_max_positions: int = 0
    few_turns: float = 1.0
    many_turns: float = 4.0
    attention_factor: float = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"rotary scaling of kind {self.kind!r} is not known; there are {', '.join(KINDS)}."
            )
        if not self.factor >= 1:
            raise ValueError(f"rotary scaling: factor is {self.factor}, but must be at least 1.")
        if self.kind != "linear" and self.original_max_positions < 1:
            raise ValueError(
                "rotary scaling: original_max_positions is "
                f"{self.original_max_positions}, but must be at least 1."
            )
        if not 0 < self.few_turns < self.many_turns:
            raise ValueError(
                f"rotary scaling: few_turns {self.few_turns} must be above 0 and below "
                f"many_turns {self.many_turns}."
            )


class Rotation(NamedTuple):
    """Sines and cosines of each token's angles, float32 [..., 1, head_size / 2]."""

    sin: Float[Array, "... 1 half"]
    cos: Float[Array, "... 1 half"]


def rotation(
    positions: Int[Array, "..."], head_size: int, base: float, scaling: RotaryScaling | None
) -> Rotation:
    """What the queries and keys at these positions are turned by."""
    angles = positions[..., None, None] * frequencies(head_size, base, scaling)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if scaling is not None and scaling.kind == "yarn":
        sin, cos = sin * scaling.attention_factor, cos * scaling.attention_factor
    return Rotation(sin, cos)


def rotate(
    x: Float[Array, "... heads head_size"], by: Rotation
) -> Float[Array, "... heads head_size"]:
    """Turns pairs of components, halves paired as in Llama; in float32, whatever `x` is."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def frequencies(head_size: int, base: float, scaling: RotaryScaling | None) -> Float[Array, "half"]:
    """Angle per token of each pair of components, in radians."""
    half = head_size // 2
    plain = base ** (-jnp.arange(half) / half)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_max_positions * plain / (2 * math.pi)
        kept = (turns - scaling.few_turns) / (scaling.many_turns - scaling.few_turns)
    else:
        first = max(math.floor(_index_of(scaling.many_turns, half, base, scaling)), 0)
        last = min(math.ceil(_index_of(scaling.few_turns, half, base, scaling)), head_size - 1)
        kept = 1 - (jnp.arange(half) - first) / max(last - first, 0.001)
    kept = jnp.clip(kept, 0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def _index_of(turns: float, half: int, base: float, scaling: RotaryScaling) -> float:
    """Which frequency makes so many turns within the original context; not rounded."""
    wavelength = scaling.original_max_positions / turns
    return half * math.log(wavelength / (2 * math.pi)) / math.log(base)
