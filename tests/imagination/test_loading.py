"""Worlds from files: the page's example loads, and slips are named with their place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from coffee import COFFEE, coffee_file
from worlds import assert_mean, play

from imagination.simulation import (
    OptimalAgent,
    WorldError,
    load_world,
    optimal_value,
    policy_value,
)
from imagination.simulation.validation import validate


def test_example_of_the_page_is_a_world_outside_the_repository(tmp_path: Path):
    path = coffee_file(tmp_path)
    coffee = load_world(path)
    assert load_world(str(path)) is coffee
    # Offering finds out for certain at the cost of one bother.
    assert optimal_value(coffee) == pytest.approx(0.9)
    assert policy_value(coffee, "waiter") == pytest.approx(
        0.5 * 0.5 + 0.5 * (0.9 * 0.9 + 0.1 * 0.45)
    )
    assert_mean(play(coffee, OptimalAgent(coffee), 100), 0.9)
    assert coffee.understand(["Enjoy your tea!", "some coffee or tea, Ada?"]) == [
        "serve_tea",
        "offer",
    ]


def test_plain_words_of_a_world_of_ones_own_are_heard_as_a_whole(tmp_path: Path):
    coffee = load_world(coffee_file(tmp_path))
    assert coffee.hear_plainly("Yes!") == () and coffee.hear_loosely("¿Sí?") == "greets"
    words = {"shrugs": ["[Dunno|¿Qué]"], "pleased": ["Sí", "是", "..."], "greets": ["Hi"]}
    coffee = dataclasses.replace(coffee, plain_words=words)
    validate(coffee)
    assert coffee.hear_loosely("¿Sí?") == coffee.hear_loosely("是。") == "pleased"
    assert coffee.hear_loosely("hm, dunno") == "shrugs"
    assert coffee.hear_plainly("Sí, a tea") == coffee.hear_plainly("...") == ()


def test_world_may_come_from_make_world(tmp_path: Path):
    path = tmp_path / "made.py"
    path.write_text(COFFEE.replace("WORLD = World(", "made = World(") + MAKE)
    assert load_world(path).name == "coffee"


MAKE = "\n\ndef make_world():\n    return made\n"


def test_unknown_world_lists_the_known_ones(tmp_path: Path):
    for name in ("skiing", "no.such.module"):
        with pytest.raises(WorldError, match=r"unknown world .*teaching, travel"):
            load_world(name)
    with pytest.raises(WorldError, match="no world file"):
        load_world(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("X = 1\n")
    with pytest.raises(WorldError, match="Define WORLD"):
        load_world(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("X = 1 +\n")
    with pytest.raises(WorldError, match="could not be run"):
        load_world(tmp_path / "broken.py")


SLIPS = [
    ('"coffee", "open"): 0.45', '"coffee", "open"): 0.55', r"prior over personas.*sum to 1\.1"),
    ('("tea", "shy"): 0.05', '("juice", "shy"): 0.05', r"\(juice, shy\).*axis 'drink'.*coffee"),
    ('{"puzzled" if', '{"baffled" if', r"reply of persona .* to act None.*'baffled'"),
    ('"displeased": 1.0}', '"displeased": 0.7}', r"persona .*act 'serve_.*sum to 0\.7"),
    ('"ask": 0.5', '"ask": 0.4', r"behaviour 'waiter' in state Chat.*sum to 0\.9"),
    ('return {"ask"', 'return {"shout"', r"behaviour 'waiter'.*unknown 'shout'; known are ask"),
    ("share=1.0", "share=0.8", r"shares of the behaviours.*sum to 0\.8"),
    ("I am {name}", "I am {who}", r"reply 'greets'.*slot who; the world's slots are name"),
    ("[Oh|Well], I don't", "[Oh|Well, I don't", r"reply 'shrugs'.*not closed"),
    ("[A tea|Some tea]", "[A tea|A coffee]", r"'A coffee, please.'.*'wants_coffee'.*'wants_tea'"),
    ("0.1 * chat.bother)", "9 * chat.bother) - 1", r"rating of persona .* is -1"),
    ('guest[1] == "shy"', 'guest[1] == "rude"', r"no persona of the difficult population"),
    ('{"greets": 1.0}', '{"hugs": 1.0}', r"opening of persona .*unknown 'hugs'"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), SLIPS)
def test_slip_in_a_world_is_named(right: str, wrong: str, message: str, tmp_path: Path):
    assert right in COFFEE
    path = tmp_path / "slip.py"
    path.write_text(COFFEE.replace(right, wrong, 1))
    with pytest.raises(WorldError, match=message):
        load_world(path)


def test_planning_hint_that_hides_too_much_is_named():
    world = load_world("travel")
    with pytest.raises(WorldError, match="situation"):
        validate(dataclasses.replace(world, situation=lambda trip: trip._replace(offered=None)))
    with pytest.raises(WorldError, match="ceiling"):
        validate(dataclasses.replace(world, ceiling=lambda traveller, trip: 0.1))
