"""Tasks as YAML, and what is refused in them."""

import dataclasses
import json

import pytest
import yaml
from imagination_client import TASK

from imagination.simulation import teaching, travel
from imagination.task import Task, TaskError


@pytest.mark.parametrize("task", [TASK, teaching.TASK, travel.TASK])
def test_task_survives_yaml(task):
    assert Task.from_yaml(task.to_yaml()) == task


def test_task_with_odd_values_survives_yaml():
    odd = dataclasses.replace(
        TASK, persona_axes={"knows: it": ("yes", "no", "1"), "é": ("#a", "- b")}, success="a: b\nc"
    )
    assert Task.from_yaml(odd.to_yaml()) == odd


def test_the_unit_of_a_rating_survives_yaml_and_is_not_written_where_there_is_none():
    paid = dataclasses.replace(TASK, reward_unit="dollars")
    assert Task.from_yaml(paid.to_yaml()) == paid and "reward_unit" not in TASK.to_yaml()


@pytest.mark.parametrize(
    ("low", "bar", "high", "ratings"),
    [
        (0, 0.8, 1, ["0", "0.2", "0.5", "0.8", "0.9", "1"]),
        (1, 4, 5, ["1", "1.8", "2.8", "4", "4.6", "5"]),
        (0, 0.01, 2, ["0", "0.01", "1", "2"]),  # no step of the scale lies in between
        (0, 1, 1, ["0", "0.25", "0.6", "1"]),
    ],
)
def test_ratings_in_between_have_their_meaning(low, bar, high, ratings):
    task = dataclasses.replace(TASK, reward_range=(low, high), success_reward=bar)
    assert [rating for rating, _ in task.anchors()] == ratings
    assert len({meaning for _, meaning in task.anchors()}) == len(ratings)


BAD_TASKS = [
    ("reward_unit", 3),
    ("name", "../advice"),
    ("name", ""),
    ("name", "two words"),
    ("description", ""),
    ("description", "   "),
    ("description", "Sell bicycles"),
    ("description", "1 2 3 4 !! ?"),
    ("agent_role", " "),
    ("human_role", ""),
    ("persona_axes", {"use": ("sport",)}),
    ("persona_axes", {"use": ()}),
    ("persona_axes", {"use": ("sport", "Sport ")}),
    ("persona_axes", {"use": ("sport", "")}),
    ("persona_axes", {"use": (True, False)}),
    ("persona_axes", {"": ("a", "b")}),
    ("persona_axes", {"use": "sport"}),
    ("persona_axes", ["use"]),
    ("reward_range", (1.0, 0.0)),
    ("reward_range", (1.0, 1.0)),
    ("reward_range", (0.0,)),
    ("reward_range", (0.0, float("inf"))),
    ("success_reward", 1.5),
    ("success_reward", "high"),
    ("max_turns", 0),
    ("max_turns", 2.5),
    ("criteria", ("",)),
    ("criteria", "A bicycle is named."),
    ("criteria", ("The same.", "the same.")),
    ("criteria", ("The mood is good, on a scale from 1 to 10.",)),
    ("success", "Rated between 4 and 5."),
    ("success", "On a scale from 0 to 0.5, the best."),
    ("success", None),
]


@pytest.mark.parametrize(("field", "value"), BAD_TASKS)
def test_bad_task_names_the_field(field, value):
    with pytest.raises(TaskError, match=field):
        dataclasses.replace(TASK, **{field: value})


@pytest.mark.parametrize(("field", "value"), BAD_TASKS)
def test_bad_yaml_names_file_and_field(field, value):
    record = yaml.safe_load(TASK.to_yaml())
    record[field] = json.loads(json.dumps(value))
    with pytest.raises(TaskError, match=rf"my/task\.yaml.*{field}"):
        Task.from_yaml(yaml.safe_dump(record), "my/task.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b", "field: value"),
        ("", "field: value"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        (TASK.to_yaml() + "prize: 3\n", "'prize'"),
        (TASK.to_yaml().replace("max_turns: 4\n", ""), "'max_turns' is missing"),
    ],
)
def test_broken_yaml_says_what_to_do(text, message):
    with pytest.raises(TaskError, match=message):
        Task.from_yaml(text)


def test_a_criterion_on_the_tasks_own_scale_is_fine():
    dataclasses.replace(TASK, success="On a scale from 0 to 1, it is 0.8 or more.")
    dataclasses.replace(TASK, success="Rated between 0.8 and 1.")
