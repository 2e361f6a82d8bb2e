"""A task derived from a paragraph by a client in this process."""

import asyncio
import dataclasses

import pytest
from imagination_client import TASK, FakeClient, words

from imagination.engine import (
    EngineError,
    derive_task,
)
from imagination.engine.task_from_prompt import DerivedFields, derive_request
from imagination.task import Task, TaskError


def derive(client, **given):
    return asyncio.run(derive_task(client, "advice", {"description": TASK.description, **given}))


def test_a_paragraph_is_enough_for_a_task():
    client = FakeClient()
    task = derive(client)
    assert client.steps() == {"engine/task": 1}
    assert TASK.description in words(client.requests[0])
    assert len(task.persona_axes) == 3 and task.criteria and task.success
    assert Task.from_yaml(task.to_yaml()) == task


def test_what_is_given_is_kept_and_not_asked_for():
    given = {"agent_role": "seller", "persona_axes": {"use": ["sport", "work"]}, "max_turns": 5}
    client = FakeClient()
    task = derive(client, **given, criteria=(), success="", reward_range=(1, 5), success_reward=4)
    assert (task.agent_role, task.max_turns) == ("seller", 5)
    assert task.persona_axes == {"use": ("sport", "work")}
    assert (task.reward_range, task.success_reward) == ((1, 5), 4)
    asked = set(client.requests[0].schema.model_fields)
    assert asked == {"unusable_because", "human_role", "criteria", "success"}


def test_success_begins_at_the_same_place_of_any_scale():
    assert derive(FakeClient()).success_reward == 0.8
    assert derive(FakeClient(), reward_range=[0, 5]).success_reward == 4


def test_a_whole_task_takes_no_call():
    client = FakeClient()
    fields = {f.name: getattr(TASK, f.name) for f in dataclasses.fields(TASK) if f.name != "name"}
    assert derive(client, **fields) == TASK
    assert not client.requests


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"description": ""}, "description"),
        ({"description": "Sell."}, "description"),
        ({"persona_axes": {"use": ["sport"]}}, "persona_axes"),
        ({"criteria": ["rated on a scale of 1 to 5"]}, "criteria"),
        ({"success_reward": 3}, "success_reward"),
        ({"reward_range": (5, 1)}, "reward_range"),
        ({"reward_range": "0 to 1"}, "reward_range"),
    ],
)
def test_bad_input_is_told_before_anything_is_paid_for(given, field):
    client = FakeClient()
    with pytest.raises(TaskError, match=field):
        derive(client, **given)
    assert not client.requests


def test_an_absurd_description_stops_with_the_models_reason():
    def answer(request):
        return request.schema.placeholder().model_copy(
            update={"unusable_because": "There is nobody to talk with."}
        )

    with pytest.raises(EngineError, match="nobody to talk with"):
        derive(FakeClient(answer), description="Blue green seven over the under.")


def test_no_usable_answer_to_derive_says_the_way_out():
    with pytest.raises(EngineError, match=r"refused.*task\.yaml"):
        derive(FakeClient(lambda request: "refused."))


@pytest.mark.parametrize(
    "axes",
    [
        [],
        [{"name": "a", "values": ["x"]}, {"name": "b", "values": ["x", "y"]}],
        [{"name": "a", "values": ["x", "X"]}, {"name": "b", "values": ["x", "y"]}],
        [{"name": "a", "values": ["x", "y"]}] * 2,
    ],
)
def test_derived_axes_that_cannot_be_used_are_asked_for_again(axes):
    client = FakeClient()
    derive(client)
    schema = client.requests[0].schema
    good = schema.placeholder().model_dump()
    assert isinstance(schema.model_validate(good), DerivedFields)
    with pytest.raises(ValueError, match=r"ax[ie]s"):
        schema.model_validate({**good, "persona_axes": axes})


def verdict_of(reason):
    return DerivedFields(unusable_because=reason).verdict


@pytest.mark.parametrize(
    "nothing",
    [
        "",
        "...",
        "empty",
        "(empty)",
        '""',
        "'none'",
        "empty string",
        "An empty string.",
        "left blank",
        "None.",
        "none needed",
        "None at all",
        "N/A",
        "n/a - the description is usable",
        "No",
        "no reason",
        "No reason.",
        "No reason is given",
        "there is no reason",
        "No issues",
        "No issues were found.",
        "There are no problems here",
        "It has no ambiguities",
        "Nothing",
        "nothing is missing",
        "Nothing missing; no information is missing.",
        "nothing to add",
        "not applicable",
        "false",
        "usable",
        "The description is sufficient.",
        "None, the description is clear and complete.",
        "It is not unusable",
        "the task is fine as it is",
    ],
)
def test_words_for_nothing_are_no_verdict(nothing):
    assert verdict_of(nothing) == ""
    asked = derive_request("t", {"description": "A tutor teaches."})
    derived = asked.schema.placeholder().model_copy(update={"unusable_because": nothing})
    asked.check(asked.schema.model_validate(derived.model_dump()))


@pytest.mark.parametrize(
    "reason",
    [
        "Nobody talks.",
        "Nothing is said about who the agent is",
        "nothing is clear",
        "No reason to talk is given.",
        "No agent is named",
        "no problem is described",
        "no information",
        "No, the agent is missing.",
        "None of it names who talks",
        "not usable",
        "The description is not sufficient.",
        "The description is empty of roles",
        "missing",
        "It is empty.",
        "Es wird nicht gesagt, wer spricht.",
        "Нет собеседника.",
        "没有人说话",
    ],
)
def test_reasons_are_verdicts(reason):
    assert verdict_of(f" {reason} ") == reason
    asked = derive_request("t", {"description": "A tutor teaches."})
    derived = asked.schema.placeholder().model_copy(update={"unusable_because": reason})
    with pytest.raises(ValueError, match="the description is not enough"):
        asked.check(derived)
