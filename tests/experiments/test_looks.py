"""Titles, colours and markers of methods, known or not."""

from __future__ import annotations

import colorsys
import dataclasses

from experiments.looks import PROMPTED_AGENTS, Look, look_of, ordered
from ilql_jax.methods import METHODS


def saturation(color: str) -> float:
    return colorsys.rgb_to_hls(*(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)))[2]


def test_methods_have_titles_and_an_order():
    rounds = ["ilql", "ilql_hindsight1", "ilql_hindsight2"]
    expected = [*rounds, "bc", "dpo", "plain", "mine_hindsight1"]
    assert ordered(sorted(expected)) == ordered(expected[::-1]) == expected
    assert [look_of(name).title for name in expected] == [
        "ILQL",
        "ILQL + 1 round of hindsight",
        "ILQL + 2 rounds of hindsight",
        "BC",
        "DPO",
        "plain prompt",
        "mine + 1 round of hindsight",
    ]


def test_no_two_methods_look_the_same():
    with_rounds = [f"ilql_{kind}{n}" for kind in ("hindsight", "imagination") for n in (1, 2)]
    names = [*METHODS, *with_rounds, *PROMPTED_AGENTS]
    looks = [look_of(name) for name in names]
    for part in ("title", "color", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(names), part
    for look in looks:
        assert look.color_on_dark != look.color


def test_a_method_that_is_handed_in_brings_its_look():
    mine = dataclasses.replace(METHODS["bc"], name="mine", title="My way", color="#AA5500")
    assert look_of("mine", {"mine": mine}) == Look("My way", "#aa5500", "D")
    assert look_of("mine_hindsight1", {"mine": mine}).title == "My way + 1 round of hindsight"
    default = {field.name: field.default for field in dataclasses.fields(mine)}["color"]
    grey = dataclasses.replace(mine, color=default)
    assert saturation(look_of("mine", {"mine": grey}).color) > 0.5


def test_a_method_of_ones_own_has_a_stable_colour_that_is_not_grey():
    mine, yours = look_of("my_method"), look_of("your_method")
    assert mine.title == "my method" and mine == look_of("my_method")
    assert mine.color != yours.color
    assert min(saturation(mine.color), saturation(yours.color)) > 0.5
    assert saturation(look_of("my_method_hindsight1").color) > 0.3
