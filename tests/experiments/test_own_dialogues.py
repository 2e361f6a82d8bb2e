"""Dialogues of a user's own: what is read, how it is split, and what is told."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from experiments import own_dialogues
from experiments.build import Network
from experiments.config import DataConfig, TaskConfig
from experiments.run_folder import RunError
from experiments.training_data import check_words
from ilql_jax.errors import UserError


def record(number: int, **fields):
    messages = [
        {"role": "user", "content": f"Hello {number}."},
        {"role": "assistant", "content": "How can I help?"},
    ]
    return {"messages": messages, "reward": number % 3, "id": f"d{number}", **fields}


def write(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def read(path: Path | str, **settings):
    return own_dialogues.read(DataConfig(source="jsonl", path=str(path), **settings))


def parts_of(dialogues) -> dict[str, str]:
    return {d.id: d.source["part"] for d in dialogues}


def test_the_part_of_a_dialogue_depends_on_its_id_alone(tmp_path: Path):
    records = [record(i) for i in range(60)]
    all_of_them, facts = read(write(tmp_path / "all.jsonl", *records))
    fewer, _ = read(write(tmp_path / "fewer.jsonl", *reversed(records[:40])))
    parts = parts_of(all_of_them)
    assert {d: parts[d] for d in parts_of(fewer)} == parts_of(fewer)
    tests = sum(part == "test" for part in parts.values())
    assert 4 <= tests <= 20 and f"{60 - tests:,} to learn from, {tests:,} set apart" in facts[0]


def test_a_field_split_goes_before(tmp_path: Path):
    records = [record(i, split="test" if i < 3 else "train") for i in range(9)]
    dialogues, _ = read(write(tmp_path / "d.jsonl", *records))
    assert [d.id for d in dialogues if d.source["part"] == "test"] == ["d0", "d1", "d2"]


def test_rewards_may_lie_on_turns(tmp_path: Path):
    rated = record(1, reward=None)
    rated["messages"][1]["reward"] = 0.5
    dialogues, _ = read(write(tmp_path / "d.jsonl", rated, *(record(i) for i in range(2, 30))))
    assert dialogues[0].reward == 0.0 and dialogues[0].total_reward == 0.5


def test_a_folder_is_all_of_its_files(tmp_path: Path):
    for name, numbers in (("a", range(15)), ("b", range(15, 30))):
        write(tmp_path / f"{name}.jsonl", *(record(i) for i in numbers))
    assert len(read(tmp_path)[0]) == 30


def test_ids_that_are_missing_are_places_in_their_files(tmp_path: Path):
    records = [{k: v for k, v in record(i).items() if k != "id"} for i in range(30)]
    dialogues, _ = read(write(tmp_path / "d.jsonl", *records))
    assert dialogues[4].id == "d.jsonl:5"


def test_a_dataset_has_the_parts_of_its_splits(monkeypatch):
    splits = {"train": [record(1), record(2)], "test": [record(3, persona=None)]}
    module = types.SimpleNamespace(load_dataset=lambda name: splits)
    monkeypatch.setitem(sys.modules, "datasets", module)
    dialogues, _ = read("someone/dialogues")
    assert parts_of(dialogues) == {"d1": "train", "d2": "train", "d3": "test"}


def without(field: str):
    return {key: value for key, value in record(7).items() if key != field}


def said_by(*roles: str):
    return record(7, messages=[{"role": role, "content": "Hm."} for role in roles])


def with_fields(place: int, role: str = "", **fields):
    wrong = record(7)
    wrong["messages"][place] |= fields | ({"role": role} if role else {})
    return wrong


def test_fields_that_nothing_reads_are_told_once_with_what_was_meant(tmp_path: Path):
    records = [record(i, terminl=False, tools=[]) for i in range(30)]
    records[3]["messages"][1]["lern"] = True
    _, facts = read(write(tmp_path / "d.jsonl", *records))
    assert facts[1].startswith("Fields that are not read, and in how many dialogues: ")
    assert "terminl in 30 (did you mean terminal?)" in facts[1] and "tools in 30," in facts[1]
    assert "messages[].lern in 1 (did you mean messages[].learn?)" in facts[1]
    (tmp_path / "d.jsonl").unlink()
    known = {"terminal": False, "persona": {}, "source": {}, "task": "t", "split": None}
    records = [record(i, **known) for i in range(30)]
    records[3]["messages"][1] |= {"learn": True, "clone": True, "credit": False, "annotations": {}}
    assert len(read(write(tmp_path / "d.jsonl", *records))[1]) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (with_fields(0, learn=True), r"line 3, field 'messages\[0\]\.learn'.* of the user"),
        (with_fields(0, clone=True), r"line 3, field 'messages\[0\]\.clone'.* of the user"),
        (with_fields(0, credit=True), r"messages\[0\]\.credit'.* assistant are learned from"),
        (with_fields(0, reward=1), r"messages\[0\]\.reward'.* assistant are rewarded"),
        (with_fields(0, "system", learn=True), r"messages\[0\]\.learn'.* of the system"),
        (without("messages"), r"d\.jsonl, line 3, field 'messages'"),
        (without("reward"), r"line 3: no reward\. Give the dialogue a field 'reward'"),
        (record(7, reward="good"), r"line 3, field 'reward': expected a finite number"),
        (said_by("user", "robot"), r"line 3, field 'messages\[1\]\.role'"),
        (said_by("user", "user"), r"line 3, field 'messages': no message has the role assistant"),
        (record(7, split="dev"), r"line 3, field 'split': 'dev', but must be train or test"),
        (record(1), r"line 3, field 'id': 'd1' is the id of .*line 2 too"),
        ([1, 2], r"line 3.*expected a JSON object"),
    ],
)
def test_what_cannot_be_learned_from_is_told_with_file_line_and_field(wrong, message, tmp_path):
    path = write(tmp_path / "d.jsonl", record(0), record(1), wrong, *map(record, range(8, 40)))
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "is in the part 'test'. Raise"), ("test", "is in the part 'train'. Lower")],
)
def test_an_empty_part_is_told(split, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "d.jsonl", *(record(i, split=split) for i in range(5))))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"config\.data\.path is empty"),
        ("nowhere.jsonl", r"there is no file 'nowhere\.jsonl'"),
        ("/no/such/folder", "there is no file"),
    ],
)
def test_nothing_there_is_told(path, message):
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_broken_line_is_told(tmp_path: Path):
    (tmp_path / "d.jsonl").write_text(json.dumps(record(1)) + '\n{"messages": [\n')
    with pytest.raises(UserError, match=r"line 2: not valid JSON"):
        read(tmp_path / "d.jsonl")


def test_the_task_follows_from_the_dialogues_unless_it_is_set(tmp_path: Path):
    dialogues, _ = read(write(tmp_path / "d.jsonl", *(record(i) for i in range(30))))
    task = own_dialogues.task_of(dialogues, TaskConfig(), "mine")
    assert (task.name, task.reward_range, task.success_reward) == ("mine", (0.0, 2.0), 1.0)
    given = TaskConfig(agent_role="clerk", description="A clerk answers what customers ask.")
    assert own_dialogues.task_of(dialogues, given, "mine").agent_role == "clerk"
    scale = TaskConfig(reward_range=(-1, 5), success_reward=0, reward_unit="sales")
    task = own_dialogues.task_of(dialogues, scale, "mine")
    assert (task.reward_range, task.success_reward) == ((-1.0, 5.0), 0.0)
    assert (task.reward_unit, task.success) == ("sales", "")
    with pytest.raises(UserError, match=r"reward_range is 0 to 1, but the rewards .* from 0 to 2"):
        own_dialogues.task_of(dialogues, TaskConfig(reward_range=(0, 1)), "mine")


@pytest.mark.parametrize(
    ("text", "least"), [("on and " * 700, "1,404"), ("o" * 300_000, "1,171")], ids=["words", "word"]
)
def test_what_cannot_fit_is_told_before_a_tokenizer_is_trained(tmp_path: Path, text, least):
    long = record(7)
    long["messages"][0]["content"] = text
    dialogues, _ = read(write(tmp_path / "d.jsonl", *(record(i) for i in range(7)), long))
    network = Network({"pretrained": "", "max_positions": 1024})
    told = rf"d7: {least} tokens or more do not fit in the context of 1024\. Set config\.model\.max"
    with pytest.raises(RunError, match=told):
        check_words(network, dialogues)
    check_words(network, dialogues[:-1])
