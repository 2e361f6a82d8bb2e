"""Personas: drawn evenly, written by a client in this process."""

import collections
import re

import numpy as np
import pytest
from imagination_client import TASK, FakeClient, imagine, words

from imagination.engine import (
    EngineConfig,
)
from imagination.engine.personas import Profiles, draw_personas
from imagination.engine.run import assign
from imagination.engine.write import load_behaviours


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (3, 2, 3), (2, 4), (5, 4, 3, 2), (3, 3, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_personas_are_balanced_for_every_number(sizes, seed):
    axes = {f"a{i}": tuple(f"{i}-{j}" for j in range(k)) for i, k in enumerate(sizes)}
    combinations = int(np.prod(sizes))
    drawn = draw_personas(axes, 2 * combinations + 26, seed)
    for number in {*range(1, 26), combinations - 1, combinations, 2 * combinations + 1} - {0}:
        personas = drawn[:number]
        assert draw_personas(axes, number, seed) == personas  # more later, same first
        counts = collections.Counter(tuple(p.items()) for p in personas)
        assert len(counts) == min(len(personas), combinations)
        assert max(counts.values()) - min(counts.values()) <= 1
        for axis, values in axes.items():
            own = collections.Counter(p[axis] for p in personas)
            spread = [own[value] for value in values]
            assert max(spread) - min(spread) <= 1, (number, axis, spread)


def test_personas_are_another_order_with_another_seed():
    assert draw_personas(TASK.persona_axes, 18, 0) != draw_personas(TASK.persona_axes, 18, 1)


def test_personas_of_many_axes_need_no_list_of_all():
    axes = {f"a{i}": tuple(map(str, range(5))) for i in range(20)}
    assert len({tuple(p.values()) for p in draw_personas(axes, 100, 0)}) == 100


def test_behaviours_and_outcomes_are_balanced_too():
    number = len(load_behaviours()) * 3
    draws = assign(TASK, EngineConfig(dialogues=number, way="script", outcomes=3))
    assert set(collections.Counter(d.behaviour for d in draws).values()) == {3}
    assert collections.Counter(d.outcome for d in draws) == dict.fromkeys((0, 0.5, 1), number // 3)


def test_profiles_are_written_once_for_each_combination_several_a_call():
    client = FakeClient()
    imagine(client, dialogues=40, personas_per_call=5, critique_rounds=0)
    asked = [r for r in client.requests if r.step == "engine/personas"]
    assert len(asked) == 4  # 18 combinations
    assert sum(len(re.findall("Combination", words(r))) for r in asked) == 18


def test_a_refused_profile_leaves_the_others_of_its_call():
    def answer(request):
        combinations = words(request).split("Combination")[1:]
        if request.step == "engine/personas" and any("evasive" in each for each in combinations):
            return "refused"
        return None

    imagined = imagine(FakeClient(answer), dialogues=18, personas_per_call=6)
    assert len(imagined.dialogues) == 12 and len(imagined.dropped) == 6
    assert {d.step for d in imagined.dropped} == {"engine/personas"}
    assert "12 dialogues, 6 dropped (6 at engine/personas" in imagined.line()


def test_an_incomplete_answer_on_profiles_is_not_of_the_schema():
    client = FakeClient()
    imagine(client, dialogues=3)
    schema = client.requests[0].schema
    assert issubclass(schema, Profiles)
    whole = schema.placeholder().model_dump()
    with pytest.raises(ValueError, match="numbered 1 to 3"):
        schema.model_validate({"profiles": whole["profiles"][:2]})
