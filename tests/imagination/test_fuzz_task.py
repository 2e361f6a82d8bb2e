"""Damaged task.yaml: told with the file and the field, or a task that survives YAML."""

import random
import time

import pytest
from fuzzing import damaged_bytes, held, with_odd_yaml
from imagination_client import TASK

from imagination.engine.personas import draw_personas
from imagination.task import Task, TaskError

TEXT = TASK.to_yaml()


def load(path):
    task = Task.load(path)
    assert Task.from_yaml(task.to_yaml()) == task
    draw_personas(task.persona_axes, 50, seed=0)


def test_an_odd_value_is_told_with_the_file_or_read(tmp_path):
    path = tmp_path / "task.yaml"
    for seed in range(240):
        path.write_text(with_odd_yaml(random.Random(seed), TEXT), encoding="utf-8")
        with held("task.yaml", seed, names="task.yaml"):
            load(path)


def test_a_damaged_file_is_told_or_read(tmp_path):
    path = tmp_path / "task.yaml"
    for seed in range(60):
        path.write_bytes(damaged_bytes(random.Random(seed), TEXT.encode()))
        with held("task.yaml", f"file {seed}", names="task.yaml"):
            load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("success: 2024-01-01", r"task\.yaml: field 'success': a date .*put it in quotes"),
        ("success: !!set {a, b}", r"field 'success': a value of type set"),
        ("success: .inf", r"field 'success': expected a finite number"),
        ("success: 2001-99-99", r"line \d+ cannot be read \(month must be in 1\.\.12\)"),
        ("name: again", r"the key 'name' stands twice, in line 1 and in line \d+"),
        ("criteria: {1: a}", r"field 'criteria': the key '1' is no text; put it in quotes"),
        (
            "max_turns: 1000000000000",
            r"field 'max_turns': .*at most 1,000,000, got '1000000000000'",
        ),
        ("reward_range: [0, 1.0e+37]", r"field 'reward_range': .*at most 1e\+36 up or down"),
    ],
)
def test_what_parses_into_something_else_is_told(line, message, tmp_path):
    field = line.partition(":")[0]
    path = tmp_path / "task.yaml"
    record = [] if field == "name" else [field]
    lines = [x for x in TEXT.splitlines() if x.partition(":")[0] not in record]
    if field in ("criteria", "reward_range"):  # what was listed below it
        lines = [x for x in lines if not x.startswith("- ")]
        lines = [x for x in lines if x.partition(":")[0] not in ("criteria", "reward_range")]
        other = {"criteria": "reward_range: [0, 1]", "reward_range": "criteria: []"}[field]
        lines.append(other)
    path.write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match=message):
        Task.load(path)


@pytest.mark.parametrize(
    "field, text",
    [
        ("description", "1" * 200_000),
        ("description", "scale" + " " * 100_000 + "x"),
        ("success", "score" * 40_000),
        ("success", "rating of " + "1" * 200_000),
    ],
)
def test_a_long_text_is_checked_at_once(field, text, tmp_path):
    start = time.monotonic()
    with held("task.yaml", field, names="task"):
        Task.from_yaml(TEXT.replace(f"{field}:", f"{field}: {text!r}\nold_{field}:"))
    assert time.monotonic() - start < 5


def test_axes_of_many_values_take_no_more_room_than_personas():
    """Sizes without common factors have walks of millions of steps."""
    axes = {str(size): tuple(map(str, range(size))) for size in (97, 101, 103, 107, 109)}
    personas = draw_personas(axes, 1000, seed=0)
    assert len({tuple(each.items()) for each in personas}) == 1000
    assert draw_personas(axes, 10, seed=0) == personas[:10]
