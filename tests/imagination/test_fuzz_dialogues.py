"""Damaged dialogues.jsonl: told with file, line and field, or accepted and of use in training."""

import random

import pytest
from fuzzing import damaged_bytes, held, with_odd_value

from imagination.dataset_card import dataset_card
from imagination.dialogue import (
    Dialogue,
    DialogueError,
    Turn,
    json_line,
    place_of,
    read_dialogues,
    write_dialogues,
)
from imagination.plain_data import MOST_BYTES
from imagination.simulation import teaching

RECORD = Dialogue(
    id="d1",
    task="teaching",
    turns=(
        Turn("human", "What is a force?"),
        Turn(
            "agent", "It pulls or pushes. Café 😀", 0.5, {"act": "explain", "q": 0.25}, learn=True
        ),
        Turn("human", "Thank you!", annotations={"understood_as": "explain"}),
        Turn("agent", "You are welcome."),
    ),
    reward=1.0,
    persona={"level": "beginner", "style": "hands-on"},
    source={
        "kind": "imagined",
        "behaviour": "lecturer",
        "difficult": False,
        "ended_by": "human",
        "outcome": 1.0,
        "models": {"engine/script": "small"},
        "critique": {
            "rounds": 1,
            "verdicts": [[{"criterion": "It is polite.", "fulfilled": True}]],
            "changed": [["It is polite."]],
        },
        "rewards": {"outcome": 1.0, "judge": 0.5, "judge_votes": [0.5]},
        "part": "train",
    },
    system="You are a tutor.",
).to_json()
GOOD = [json_line(Dialogue.from_json({**RECORD, "id": f"g{i}"})) for i in range(2)]
EXTRA = [
    *((field,) for field in ("split", "turn", "parent", "unknown")),
    *(("source", field) for field in ("turn", "round", "parent", "prompts", "method")),
    *(("messages", 1, field) for field in ("clone", "credit", "name", "tool_calls")),
    ("messages", 2, "reward"),
    ("messages", 0, "reward"),
]


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_value_is_told_with_file_and_line_or_can_be_learned_from(part, tmp_path):
    path, accepted = tmp_path / "dialogues.jsonl", []
    for seed in range(60 * part, 60 * part + 60):
        rng = random.Random(seed)
        line = with_odd_value(rng, RECORD, EXTRA)
        path.write_text(GOOD[0] + line + "\n" + GOOD[1], encoding="utf-8")
        with held("dialogues.jsonl", seed, names="dialogues.jsonl, line 2"):
            accepted += read_dialogues(path)
    assert len(accepted) > 30
    # Nothing that was let in breaks what comes after.
    write_dialogues(path, accepted)
    assert read_dialogues(path) == accepted
    assert dataset_card(accepted, teaching.TASK)


def test_a_damaged_file_is_told_or_read_whole(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    for seed in range(80):
        rng = random.Random(seed)
        path.write_bytes(damaged_bytes(rng, "".join(GOOD).encode()))
        with held("dialogues.jsonl", f"file {seed}", names="dialogues.jsonl"):
            write_dialogues(tmp_path / "again.jsonl", read_dialogues(path))


def test_byte_order_marks_and_line_ends_of_windows_are_accepted(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    lines = "".join("\ufeff" + line.replace("\n", "\r\n") for line in GOOD)
    path.write_bytes(lines.encode())
    assert [dialogue.id for dialogue in read_dialogues(path)] == ["g0", "g1"]


def test_halves_of_signs_become_question_marks_wherever_they_stand(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    text = GOOD[0].replace("lecturer", "lecturer\\ud83d").replace("hands-on", "hands\\udfff")
    path.write_text(text.replace('"explain"', '"explain\\ud800"').replace('"g0"', '"g\\ud8ff0"'))
    (dialogue,) = read_dialogues(path)
    assert dialogue.source["behaviour"] == "lecturer?" and dialogue.persona["style"] == "hands?"
    assert dialogue.turns[1].annotations["act"] == "explain?" and dialogue.id == "g?0"


def test_a_huge_line_is_told_without_reading_it_whole(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    path.write_bytes(GOOD[0].encode() + b'{"a": "' + b"x" * (2 * MOST_BYTES))
    with pytest.raises(DialogueError, match=r"dialogues\.jsonl, line 2: longer than 10 MB"):
        read_dialogues(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"reward": 1.0', '"reward": 1e999', r"line 1, field 'reward': expected a finite number"),
        ('"reward": 1.0', '"reward": 1e31', r"line 1, field 'reward': .*at most 1e\+30"),
        ('"q": 0.25', '"q": NaN', r"field 'messages\[2\]\.annotations\.q': expected a finite"),
        ('"level": "beginner"', '"level": ["a"]', r"field 'persona\.level': expected text"),
        ('"kind": "imagined"', '"kind": 5', r"field 'source\.kind': expected text, got '5'"),
        ('"difficult": false', '"difficult": "no"', r"field 'source\.difficult': expected true or"),
        ('"id": "g0"', '"id": ["g0"]', r"field 'id': expected text or a whole number"),
        ('"task": "teaching"', '"task": 1', r"field 'task': expected text"),
        ('"task"', '"id": "g1", "task"', r"line 1: the key 'id' stands twice"),
        (
            '"Thank you!"',
            '"Thank you!", "reward": 1',
            r"field 'messages\[3\]\.reward': .*only those",
        ),
    ],
)
def test_values_that_cannot_be_are_told_with_the_field(before, after, message, tmp_path):
    path = tmp_path / "dialogues.jsonl"
    assert before in GOOD[0]
    path.write_text(GOOD[0].replace(before, after), encoding="utf-8")
    with pytest.raises(DialogueError, match=message):
        read_dialogues(path)


def test_numbers_and_truths_about_a_persona_are_text(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    text = GOOD[0].replace('"beginner"', "34").replace('"hands-on"', "true")
    path.write_text(text, encoding="utf-8")
    assert read_dialogues(path)[0].persona == {"level": "34", "style": "true"}


def test_the_place_of_a_dialogue_counts_empty_lines(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    path.write_text("\n\n".join(GOOD), encoding="utf-8")
    assert place_of(path, 1) == f"{path}, line 4"
