"""Small helpers for writing behaviours: distributions over acts, mixed."""

from __future__ import annotations

from collections.abc import Mapping


def mix(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """The mixture of distributions, each given with its weight."""
    mixed: dict[str, float] = {}
    for weight, part in parts:
        for option, probability in part.items():
            mixed[option] = mixed.get(option, 0.0) + weight * probability
    return mixed


def any_of(*options: str) -> dict[str, float]:
    """Each option equally likely."""
    return dict.fromkeys(options, 1.0 / len(options))
