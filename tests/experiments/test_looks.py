"""Titles, colours and markers of methods, known or not."""

from __future__ import annotations

import colorsys

from experiments.looks import PROMPTED_AGENTS, look_of, ordered


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
    known = ["ilql", "mc", "fbc", "bc", "dpo", "ilql_hindsight1", "ilql_hindsight2"]
    looks = [look_of(name) for name in [*known, *PROMPTED_AGENTS]]
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == 11
    for look in looks:
        assert look.color_on_dark != look.color


def test_a_method_of_ones_own_has_a_stable_colour_that_is_not_grey():
    mine, yours = look_of("my_method"), look_of("your_method")
    assert mine.title == "my method" and mine == look_of("my_method")
    assert mine.color != yours.color
    assert min(saturation(mine.color), saturation(yours.color)) > 0.5
    assert saturation(look_of("my_method_hindsight1").color) > 0.3
