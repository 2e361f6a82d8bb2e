"""Humans of a task that an LLM imagined, as agents are judged by them."""

import dataclasses
import itertools
import types

import pytest
from imagination_client import TASK, FakeClient, imagine

from experiments.build import build
from experiments.config import base_config
from experiments.evaluation import environment
from experiments.evaluation.environment import (
    Environment,
    _humans_of_task,
    about_imagined,
    humans_like_imagined,
)
from experiments.evaluation.prompted import Progress, agent_settings, human_for
from experiments.run_folder import RunFolder
from imagination.agents import PromptedHuman
from imagination.dialogue import write_dialogues
from imagination.persona_sampling import PRIOR_PROBABILITY, PersonaSampling


def test_humans_get_what_the_imagined_ones_got(tmp_path):
    def profiles(request):
        if request.step != "engine/personas":
            return None
        answer = request.schema.placeholder()
        for each in answer.profiles:
            each.profile, each.situations = (
                f"PROFILE {request.label} {each.number}.",
                ["ONE.", "TWO."],
            )
        return answer

    folder = RunFolder(tmp_path)
    write_dialogues(folder.dialogues, imagine(FakeClient(profiles), dialogues=36).dialogues)
    humans = _humans_of_task(TASK, folder, "average", 36, 7)
    situations = {}
    for human in humans:
        assert human.human_memory.profile.startswith("PROFILE")
        situations.setdefault(tuple(human.persona.items()), set()).add(human.human_memory.situation)
    assert len(situations) == 18 and all(found == {"ONE.", "TWO."} for found in situations.values())
    client = PromptedClient()
    PromptedHuman(client, TASK).respond(humans[:1])
    (request,) = client.requests
    assert humans[0].human_memory.profile in request.system
    assert f"Why you are here: {humans[0].human_memory.situation}" in request.system
    told = [human.human_memory.details for human in humans]
    assert len(set(told)) == 36 and {what for what, _ in told[0]} >= {"name", "first words"}
    assert all(f"- {what}: {text}" in request.system for what, text in told[0])
    # Where the data has no such person, the traits are all there is.
    write_dialogues(folder.dialogues, imagine(FakeClient(profiles), dialogues=1).dialogues)
    known = [human.human_memory is not None for human in _humans_of_task(TASK, folder, "a", 18, 7)]
    assert known.count(True) == 1


@pytest.mark.parametrize("left", [{}, {"details": None}, {"details": {}}])
def test_people_of_older_dialogues_have_no_details(tmp_path, left):
    folder = RunFolder(tmp_path)
    older = imagine(FakeClient(), dialogues=18).dialogues
    for dialogue in older:
        del dialogue.source["details"]
        dialogue.source.update(left)
    write_dialogues(folder.dialogues, older)
    humans = _humans_of_task(TASK, folder, "average", 18, 7)
    assert all(human.human_memory.details == () for human in humans)
    client = PromptedClient()
    PromptedHuman(client, TASK).respond(humans[:1])
    assert "as far as it fits" not in client.requests[0].system


def test_people_of_dialogues_that_were_rejected_are_people_too(tmp_path):
    folder = RunFolder(tmp_path)
    imagined = imagine(FakeClient(), dialogues=36).dialogues
    hard = imagined[-1].persona
    marked = [
        dataclasses.replace(d, source={**d.source, "difficult": d.persona == hard})
        for d in imagined
    ]
    write_dialogues(folder.dialogues, [d for d in marked if d.persona != hard])
    write_dialogues(folder.rejected_dialogues, [d for d in marked if d.persona == hard])
    humans = _humans_of_task(TASK, folder, "average", 18, 7)
    assert all(human.human_memory is not None for human in humans)
    assert [h.persona for h in _humans_of_task(TASK, folder, "difficult", 3, 7)] == [hard] * 3


def test_humans_of_a_round_are_drawn_like_those_of_the_data(tmp_path):
    folder = RunFolder(tmp_path)
    imagined = imagine(FakeClient(), dialogues=36).dialogues
    hard = imagined[0].persona
    marked = [
        dataclasses.replace(d, source={**d.source, "difficult": d.persona == hard})
        for d in imagined
    ]
    write_dialogues(folder.dialogues, marked)

    def share(sampling: PersonaSampling) -> float:
        humans = humans_like_imagined(TASK, folder, sampling, 200, 7)
        assert all(human.human_memory is not None for human in humans)
        return sum(human.persona == hard for human in humans) / 200

    assert share(PersonaSampling(personas="balanced", difficult_share=0.4)) == pytest.approx(0.4)
    assert share(PersonaSampling(personas="prior")) == pytest.approx(1 / 18, abs=0.01)
    about = about_imagined(TASK, folder)
    for dialogue in marked:
        fields = ("difficult", PRIOR_PROBABILITY)
        assert about(dialogue.persona) == {each: dialogue.source[each] for each in fields}


def test_humans_and_agents_speak_as_was_imagined(tmp_path):
    settings = {
        "task.description": "A tutor explains recursion to a student.",
        "imagination.engine": "anthropic",
        "imagination.dialogues": 4,
        "evaluation.human": "prompted",
        "llm.model": "m",
    }

    def built(**more):
        config = base_config()
        config.update_from_flattened_dict(settings | more)
        return build(config)

    assert built().speech == {}
    german = built(**{"imagination.language": "German"})
    client = types.SimpleNamespace(config=None)
    client = types.SimpleNamespace(of=lambda purpose, only=client: only)
    progress = Progress(lambda *_: None, 1, client)
    human = human_for(german, Environment(TASK, None, None), progress)
    assert human.speech["language"] == "German"
    assert agent_settings(german, "plain")["speech"] == human.speech
    assert agent_settings(german, "gdp_zero")["speech"] == human.speech
    # Of a world's dialogues nobody was told how to speak.
    world = built(**{"imagination.engine": "world", "imagination.language": "German"})
    assert world.speech == {}


class PromptedClient(FakeClient):
    config = None

    async def ask(self, request):
        return await self._ask(request)


def test_seeds_of_humans_are_far_from_each_other():
    rounds = [environment.ROUND_SEED + environment.SEED_STEP * number for number in range(99)]
    own = (environment.VALIDATION_SEED, environment.TEST_SEED, environment.CURVE_SEED)
    seeds = sorted([0, *own, *rounds])
    assert min(b - a for a, b in itertools.pairwise(seeds)) >= 1_000_000
