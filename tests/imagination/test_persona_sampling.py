"""Personas that dialogues are imagined with: shares, the prior, and the way back to it."""

import collections

import numpy as np
import pytest
from imagination_client import TASK, FakeClient, imagine, words

from experiments.stages.imagine import play_chunk
from ilql_jax.settings import SettingError
from imagination.dataset_card import dataset_card
from imagination.engine import EngineConfig, EngineError, forecast_imagination
from imagination.engine.personas import balance
from imagination.llm.config import LLMConfig
from imagination.persona_sampling import PersonaSampling, importance_weights, persona_key
from imagination.simulation import imagine_conversations, load_world, sample_conversations

PRIOR = {("easy", "a"): 0.6, ("easy", "b"): 0.2, ("hard", "a"): 0.15, ("hard", "b"): 0.05}


def is_hard(persona):
    return persona[0] == "hard"


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (PersonaSampling(), [0.6, 0.2, 0.15, 0.05]),
        (PersonaSampling("balanced"), [0.375, 0.125, 0.375, 0.125]),
        (PersonaSampling("balanced", 0.2), [0.6, 0.2, 0.15, 0.05]),
        (PersonaSampling("balanced", 1), [0, 0, 0.75, 0.25]),
        (PersonaSampling("uniform"), [0.25] * 4),
    ],
)
def test_shares_are_as_asked_for_and_each_kind_keeps_its_prior(sampling, expected):
    assert list(sampling.distribution(PRIOR, is_hard).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"personas": "all"}, "personas is 'all', but must be prior, balanced or uniform"),
        ({"difficult_share": 1.2}, r"difficult_share is 1.2, but must lie in \[0, 1\]"),
        ({"personas": "balanced"}, "none of the 2 personas is difficult, so prior and uniform"),
    ],
)
def test_what_cannot_be_is_told(settings, message):
    with pytest.raises(SettingError, match=message):
        PersonaSampling(**settings).distribution({"a": 0.5, "b": 0.5}, lambda persona: False)


def test_a_world_without_others_may_have_difficult_humans_alone():
    def always(persona):
        return True

    assert PersonaSampling("balanced", 1).distribution({"a": 1.0}, always) == {"a": 1.0}
    with pytest.raises(SettingError, match="none of the 1 personas is not difficult"):
        PersonaSampling("balanced").distribution({"a": 1.0}, always)


def test_humans_of_the_prior_are_those_of_the_average_population():
    world = load_world("teaching")
    average = sample_conversations(world, "average", 30, 0, "d")
    assert imagine_conversations(world, PersonaSampling(), 30, 0, "d") == average


def test_the_data_of_a_world_keeps_the_prior_and_can_be_weighted_back_to_it():
    world = load_world("teaching")
    sampling = PersonaSampling("balanced", 0.4)
    conversations = imagine_conversations(world, sampling, 800, 0, "d")
    assert imagine_conversations(world, sampling, 800, 0, "d") == conversations
    dialogues = play_chunk(world, conversations)
    prior = world.population("average")
    for dialogue in dialogues:
        persona = world.persona(dialogue.persona)
        assert dialogue.source["prior_probability"] == prior[persona]
        assert dialogue.source["difficult"] == world.is_difficult(persona)
    difficult = np.array([dialogue.source["difficult"] for dialogue in dialogues])
    assert difficult.mean() == pytest.approx(0.4, abs=0.05)
    expected = sum(p for persona, p in prior.items() if world.is_difficult(persona))
    weighted = np.average(difficult, weights=importance_weights(dialogues))
    assert weighted == pytest.approx(expected, abs=0.01)
    card = dataset_card(dialogues, world.task)
    share = f"Difficult personas: {difficult.mean():.1%} of dialogues, "
    assert f"{share}{weighted:.1%} of the prior." in card
    assert "| axis | value | dialogues | share | mean reward | prior |" in card
    assert "Weighted to the prior of the personas: " in card


def test_dialogues_of_unknown_prior_have_no_weights():
    (dialogue,) = imagine(FakeClient(), dialogues=1).dialogues
    assert importance_weights([dialogue]) == pytest.approx([1])
    dialogue.source.pop("prior_probability")
    assert importance_weights([dialogue]) is None
    assert "of the prior" not in dataset_card([dialogue], TASK)


def of_manner(*difficult):
    """Profiles in which these manners are difficult."""

    def answer(request):
        if request.step != "engine/personas":
            return None
        parsed = request.schema.placeholder()
        combinations = words(request).split("Combination ")[1:]
        for profile, combination in zip(parsed.profiles, combinations, strict=True):
            profile.difficult = any(manner in combination for manner in difficult)
        return parsed

    return answer


def test_the_engine_imagines_difficult_personas_with_their_share():
    sampling = PersonaSampling("balanced", 0.6)
    few, many = (
        imagine(FakeClient(of_manner("evasive")), dialogues=n, sampling=sampling).dialogues
        for n in (30, 60)
    )
    assert [d.to_json() for d in many[:30]] == [d.to_json() for d in few]  # more keep those
    for dialogues in (few, many):
        kinds = collections.Counter(d.source["difficult"] for d in dialogues)
        assert kinds[True] / len(dialogues) == pytest.approx(0.6, abs=0.03)
        assert all(("evasive" in d.persona.values()) == d.source["difficult"] for d in dialogues)
        assert {d.source["prior_probability"] for d in dialogues} == {1 / 18}
    counts = collections.Counter(persona_key(d.persona) for d in many)
    for manners, count in ((("evasive",), 6), (("plainspoken", "contrarian"), 2)):
        own = [n for key, n in counts.items() if dict(key)["manner"] in manners]
        assert set(own) == {count}


def test_an_engine_without_difficult_personas_stops_before_it_writes():
    client = FakeClient(of_manner())
    with pytest.raises(EngineError, match=r"config\.imagination\.personas is 'balanced', but none"):
        imagine(client, dialogues=20, sampling=PersonaSampling("balanced"))
    assert set(client.steps()) == {"engine/personas"}


def test_the_forecast_needs_not_know_who_is_difficult():
    llm = LLMConfig(model="m")
    counts = [
        forecast_imagination(TASK, EngineConfig(dialogues=30, sampling=sampling), llm).calls
        for sampling in (PersonaSampling(), PersonaSampling("balanced"))
    ]
    assert counts[0] == counts[1]


def test_balance_without_one_kind_takes_the_other():
    personas = [{"a": "1"}, {"a": "2"}, {"a": "1"}, {"a": "2"}]
    assert balance(personas, dict.fromkeys(map(persona_key, personas), False), 0.5) == personas
