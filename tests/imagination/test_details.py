"""Details of imagined humans, and how their prompts use them."""

from collections import Counter

import pytest
from imagination_client import TASK, FakeClient, imagine, words

from ilql_jax.settings import SettingError
from imagination.engine import EngineConfig, EngineError
from imagination.engine.details import draw_details
from imagination.flaws import OTHER_LANGUAGE, RECITES

SCRIPT = {"way": "script", "rewards": "outcome"}


def test_ten_thousand_dialogues_share_few_details():
    drawn = [draw_details(0, index) for index in range(10_000)]
    assert len({tuple(each.items()) for each in drawn}) == 10_000
    begins = Counter(each["first words"] for each in drawn)
    assert len(begins) > 400 and max(begins.values()) < 100
    talks = Counter(each["way of talking"] for each in drawn)
    assert len(talks) > 1000 and max(talks.values()) < 100
    assert drawn[:9] == [draw_details(0, index) for index in range(9)]
    assert drawn[0] != draw_details(1, 0)


def test_what_a_persona_decides_is_not_drawn():
    kept = draw_details(0, 0, ("age group", "Manner", "travel style"))
    assert set(kept) == {"name", "home", "today", "first words"}
    assert kept.items() <= draw_details(0, 0).items()


@pytest.mark.parametrize(("settings", "step"), [({}, "engine/human"), (SCRIPT, "engine/script")])
def test_humans_of_one_persona_differ_in_the_prompt(settings, step):
    client = FakeClient()
    imagined = imagine(client, dialogues=36, critique_rounds=0, **settings)
    asked = {r.label: words(r) for r in reversed(client.requests) if r.step == step}
    for dialogue in imagined.dialogues:
        details = dialogue.source["details"]
        assert details["name"] and "way of talking" not in details  # that is the axis "manner"
        assert all(f"- {what}: {text}" in asked[dialogue.id] for what, text in details.items())
    first, twin = imagined.dialogues[0], imagined.dialogues[18]
    assert first.persona == twin.persona and first.source["details"] != twin.source["details"]
    plain = FakeClient()
    imagine(plain, dialogues=1, details=False, **settings)
    assert not any("as far as it fits" in words(r) for r in plain.requests)


@pytest.mark.parametrize("settings", [{}, SCRIPT])
def test_both_sides_speak_as_the_settings_say(settings):
    client = FakeClient()
    speech = {"language": "German", "style": "slang", "length": "ten words at most"}
    imagine(client, dialogues=1, examples=("Na, alles klar?",), **speech, **settings)
    writing = [r for r in client.requests if r.step in ("engine/script", "engine/human")]
    writing += [r for r in client.requests if r.step == "engine/agent"]
    assert writing
    for request in writing:
        assert "ten words at most, slang in German" in words(request)
        assert "- Na, alles klar?" in words(request)
    with pytest.raises(SettingError, match="style"):
        EngineConfig(dialogues=1, style=" ")


def test_an_example_that_is_said_again_is_a_flaw():
    example = "This is what somebody might say here in one or two sentences of ordinary size."
    with pytest.raises(EngineError, match=RECITES):
        imagine(FakeClient(), dialogues=1, examples=(example,), flaws="drop")


def test_another_language_than_asked_for_is_a_flaw():
    with pytest.raises(EngineError, match=OTHER_LANGUAGE):
        imagine(FakeClient(), dialogues=1, language="German", flaws="drop")
    (dialogue,) = imagine(FakeClient(), dialogues=1, language="German").dialogues
    assert dialogue.source["language"] == "German" and TASK.description.startswith("Somebody")
