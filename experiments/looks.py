"""Title, colour and marker of each method in tables and figures.

Trained methods bring theirs (`ilql_jax.methods.METHODS`, or a `Method` of somebody's own); prompted
agents have them here. A method with rounds of hindsight or of imagination, `ilql_hindsight1`,
derives its look from the method that it is named after. One without a colour gets a colour that
depends on its name alone. The evaluation keeps the looks with its results, so that a report needs
nothing else.
"""

from __future__ import annotations

import colorsys
import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping

from ilql_jax.methods import METHODS, Method

_MARKERS = "osD^pvPX*hd"
_MARKERS_OF_ROUNDS = {"hindsight": {1: "<", 2: ">"}, "imagination": {1: "8", 2: "H"}}
_HUE_OF_ROUNDS = {"hindsight": 0.0, "imagination": 0.12}  # of a turn
_WITH_ROUNDS = re.compile(r"(.+)_(hindsight|imagination)([1-9]\d*)")
_NO_COLOR = {field.name: field.default for field in dataclasses.fields(Method)}["color"]


@dataclasses.dataclass(frozen=True)
class Look:
    """Appearance of a method.

    Attributes:
        title: In tables and figures.
        color: As `#rrggbb`, on light paper.
        marker: One of Matplotlib's markers.
    """

    title: str
    color: str
    marker: str

    @property
    def color_on_dark(self) -> str:
        """The same hue, lighter."""
        hue, lightness, saturation = colorsys.rgb_to_hls(*_rgb(self.color))
        return _hex(colorsys.hls_to_rgb(hue, 0.35 + 0.65 * lightness, saturation))


PROMPTED_AGENTS = {
    "plain": Look("plain prompt", "#d55e00", "P"),
    "reasoning": Look("reasoning prompt", "#8a5a2b", "h"),
    "clam": Look("CLAM", "#2f6f7e", "d"),
    "gdp_zero": Look("GDP-ZERO", "#41505f", "*"),
}


def look_of(name: str, methods: Mapping[str, Method] = METHODS) -> Look:
    """Returns the look of a method or prompted agent, whatever its name.

    Args:
        name: As in results and folder names.
        methods: Method by name; one that is not in there is titled by its name.
    """
    if name in PROMPTED_AGENTS:
        return PROMPTED_AGENTS[name]
    if name in methods:
        method = methods[name]
        has_color = re.fullmatch("#[0-9a-fA-F]{6}", method.color) and method.color != _NO_COLOR
        color = method.color.lower() if has_color else _color_by_name(name)
        return Look(method.title, color, method.marker)
    base, kind, rounds = split_rounds(name)
    if rounds:
        look = look_of(base, methods)
        title = f"{look.title} + {rounds} round{'s' * (rounds > 1)} of {kind}"
        marker = _MARKERS_OF_ROUNDS[kind].get(rounds, look.marker)
        return Look(title, _shade(look.color, kind, rounds), marker)
    marker = _MARKERS[zlib.crc32(name.encode()) % len(_MARKERS)]
    return Look(name.replace("_", " "), _color_by_name(name), marker)


def ordered(names: Iterable[str]) -> list[str]:
    """Sorts methods: those that learn values, the other trained ones, prompted agents, others."""
    trained = sorted(METHODS, key=lambda name: not METHODS[name].learns_values)
    places = {name: place for place, name in enumerate([*trained, *PROMPTED_AGENTS])}

    def place(name: str) -> tuple[int, str, int, str]:
        base, kind, rounds = (name, "", 0) if name in places else split_rounds(name)
        return places.get(base, len(places)), kind, rounds, name

    return sorted(names, key=place)


def split_rounds(name: str) -> tuple[str, str, int]:
    """Splits `ilql_hindsight2` into `ilql`, `hindsight` and 2."""
    parts = _WITH_ROUNDS.fullmatch(name)
    return (parts[1], parts[2], int(parts[3])) if parts else (name, "", 0)


def _shade(color: str, kind: str, rounds: int) -> str:
    """A lighter colour for odd rounds, a darker one for even rounds; of another hue by kind."""
    towards = 1.0 if rounds % 2 else 0.0
    share = min(0.8, 0.3 + 0.12 * rounds)
    hue, *rest = colorsys.rgb_to_hls(*_rgb(color))
    turned = colorsys.hls_to_rgb((hue + _HUE_OF_ROUNDS[kind]) % 1, *rest)
    return _hex([x + share * (towards - x) for x in turned])


def _color_by_name(name: str) -> str:
    hue = (zlib.crc32(name.encode()) % 360) / 360
    return _hex(colorsys.hls_to_rgb(hue, 0.42, 0.6))


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))


def _hex(rgb: Iterable[float]) -> str:
    return "#" + "".join(f"{round(255 * x):02x}" for x in rgb)
