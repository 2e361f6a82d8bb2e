"""Rotary position embedding (Su et al., 2021), and its stretching to longer contexts."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ilql_jax.settings import SettingError, Settings, setting


@dataclasses.dataclass(frozen=True)
class RotaryScaling(Settings):
    """Change of rotary frequencies that lets a network read longer contexts.

    Frequencies that turn often within the original context stay, those that turn seldom are
    divided by `factor`, and there is a ramp between the two.

    Raises:
        SettingError: A value out of bounds.
    """

    kind: str = setting(
        "linear: all frequencies are divided (Chen et al., 2023). llama3: the ramp is linear in "
        "the number of turns (Llama 3.1). yarn: linear in the index of the frequency, and the "
        "rotated vectors grow by attention_factor (Peng et al., 2023).",
        choices=("linear", "llama3", "yarn"),
    )
    factor: float = setting("Longest context as a multiple of the original one.", least=1)
    original_max_positions: int = setting(
        "Original longest context, in tokens; not read by linear.", 0, least=0
    )
    few_turns: float = setting(
        "Frequencies of fewer turns within the original context are divided.", 1.0, above=0
    )
    many_turns: float = setting(
        "Frequencies of more turns within the original context are unchanged.", 4.0, above=0
    )
    attention_factor: float = setting("Growth of the rotated vectors; read by yarn.", 1.0)

    def __post_init__(self):
        super().__post_init__()
        if self.kind != "linear" and self.original_max_positions < 1:
            raise SettingError(
                "original_max_positions", self.original_max_positions, "must be at least 1"
            )
        if self.few_turns >= self.many_turns:
            raise SettingError(
                "few_turns", self.few_turns, f"must be below many_turns {self.many_turns}"
            )


class Rotation(NamedTuple):
    """Sines and cosines of each token's angles, float32 [..., 1, head_size / 2]."""

    sin: Float[Array, "... 1 half"]
    cos: Float[Array, "... 1 half"]


def rotation(
    positions: Int[Array, "..."], head_size: int, base: float, scaling: RotaryScaling | None
) -> Rotation:
    """Computes the rotation of queries and keys at these positions."""
    angles = positions[..., None, None] * frequencies(head_size, base, scaling)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if scaling is not None and scaling.kind == "yarn":
        sin, cos = sin * scaling.attention_factor, cos * scaling.attention_factor
    return Rotation(sin, cos)


def rotate(
    x: Float[Array, "... heads head_size"], rotation: Rotation
) -> Float[Array, "... heads head_size"]:
    """Rotates pairs of components, halves paired as in Llama; in float32, whatever `x` is."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    sin, cos = rotation
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def frequencies(
    head_size: int, base: float, scaling: RotaryScaling | None
) -> Float[Array, " half"]:
    """Returns the angle per token of each pair of components, in radians."""
    half = head_size // 2
    plain = base ** (-jnp.arange(half) / half)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_max_positions * plain / (2 * math.pi)
        unchanged = (turns - scaling.few_turns) / (scaling.many_turns - scaling.few_turns)
    else:
        first = max(math.floor(_index_of(scaling.many_turns, half, base, scaling)), 0)
        last = min(math.ceil(_index_of(scaling.few_turns, half, base, scaling)), head_size - 1)
        unchanged = 1 - (jnp.arange(half) - first) / max(last - first, 0.001)
    unchanged = jnp.clip(unchanged, 0, 1)
    return plain * unchanged + plain / scaling.factor * (1 - unchanged)


def _index_of(turns: float, half: int, base: float, scaling: RotaryScaling) -> float:
    """Index, not rounded, of the frequency that makes so many turns in the original context."""
    wavelength = scaling.original_max_positions / turns
    return half * math.log(wavelength / (2 * math.pi)) / math.log(base)
