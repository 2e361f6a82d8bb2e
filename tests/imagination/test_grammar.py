"""Templates of phrasings: their forms, their number, and what is wrong with a broken one."""

from __future__ import annotations

import pytest

from imagination.simulation import grammar
from imagination.simulation.dice import Dice
from imagination.simulation.grammar import GrammarError, Phrasing
from imagination.simulation.world import Behaviour


def test_template_forms_are_counted_and_tidied():
    template = "[Sure|of [course|late]|], {topic} [is|was] fun ."
    assert grammar.count_forms(template) == 8
    found = list(grammar.forms(template))
    assert len(set(found)) == 8
    assert "Of course, {topic} was fun." in found
    assert grammar.expand("{topic} it is", Dice(0), {"topic": "gravity"}) == "Gravity it is"


@pytest.mark.parametrize("template", ["[a|b", "a|b", "a]", "[a|[b]"])
def test_broken_template_is_named(template: str):
    with pytest.raises(GrammarError, match="template"):
        grammar.parse(template)


def test_phrasing_and_behaviour_are_plain_data():
    assert Phrasing(["[a|b]", "c"]).count == 3
    assert Behaviour(1.0, lambda state: {"ask": 1.0}).listens
