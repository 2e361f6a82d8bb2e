"""Damaged JSONL of a user's own (config.data.source=jsonl), up to what training makes of it."""

import json
import random
import sys
import types

import pytest
from fuzzing import damaged_bytes, held, with_odd_value
from rich.console import Console

from experiments import own_dialogues, training_data
from experiments.build import build
from experiments.config import DataConfig, TaskConfig, base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stages import imagine
from ilql_jax.errors import UserError
from imagination.dataset_card import dataset_card
from imagination.dialogue import read_dialogues, write_dialogues
from imagination.task import Task
from imagination.tokenization import DialogueTokenizer


def record(number: int, **fields):
    return {
        "messages": [
            {"role": "system", "content": "You answer calls."},
            {"role": "user", "content": f"Parcel {number} has not come. é 😀"},
            {"role": "assistant", "content": "What is on the receipt?", "reward": 0.25},
            {"role": "user", "content": "Again?"},
            {"role": "assistant", "content": "Please wait.", "learn": True, "clone": False},
        ],
        "reward": number % 3,
        "id": f"d{number}",
        "split": "test" if number % 5 == 0 else "train",
        "persona": {"age": 34, "mood": "angry"},
        "source": {"kind": "human", "behaviour": "clerk", "difficult": True, "shop": 3},
        "terminal": True,
        **fields,
    }


LINES = [json.dumps(record(number)) for number in range(1, 12)]
EXTRA = [(field,) for field in ("task", "name", "source_id")]


def read(path, **settings):
    return own_dialogues.read(DataConfig(source="jsonl", path=str(path), **settings))[0]


@pytest.mark.parametrize("part", range(2))
def test_a_damaged_value_is_told_or_ends_in_trajectories(part, tmp_path):
    path, kept = tmp_path / "own.jsonl", tmp_path / "dialogues.jsonl"
    tokenizer = None
    for seed in range(60 * part, 60 * part + 60):
        line = with_odd_value(random.Random(seed), record(12), EXTRA)
        path.write_text("\n".join([*LINES[:4], line, *LINES[4:]]), encoding="utf-8")
        with held("own JSONL", seed, names="own.jsonl, line 5"):
            dialogues = read(path)
            task = own_dialogues.task_of(dialogues, TaskConfig(), "own_data")
            assert Task.from_yaml(task.to_yaml()) == task
            assert dataset_card(dialogues, task)
            write_dialogues(kept, dialogues)
            dialogues = read_dialogues(kept)
            tokenizer = tokenizer or DialogueTokenizer.train(dialogues, 300)
            scale = training_data.reward_scale(dialogues)
            assert scale > 0
            tokenizer.trajectories(dialogues[3:6], scale)


def test_a_damaged_file_is_told_or_read_whole(tmp_path):
    path = tmp_path / "own.jsonl"
    for seed in range(80):
        path.write_bytes(damaged_bytes(random.Random(seed), ("\n".join(LINES) + "\n").encode()))
        with held("own JSONL", f"file {seed}", names="own.jsonl"):
            read(path)


def test_any_path_is_told(tmp_path, monkeypatch):
    def load_dataset(name):
        raise RuntimeError(f"no dataset {name!r}")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "with" / "sub.jsonl").mkdir(parents=True)
    (tmp_path / "empty" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "here")  # what .. holds must not be chance
    paths = [
        "",
        " ",
        "a" * 5000,
        "\0",
        "a\0.jsonl",
        "~nobody-is-called-so/x",
        "..",
        "/dev/null",
        "\ud800.jsonl",
    ]
    paths += [tmp_path / name for name in ("folder.jsonl", "with", "empty", "none.jsonl")]
    for path in paths:
        with held("own JSONL", repr(path), names=("config.data.path", str(path), repr(path))):
            read(path)
            raise AssertionError("nothing is there")


@pytest.mark.parametrize(
    "rewards", [[1e30] * 11, [-1e30] * 10 + [1e30], [0.0] * 11, [1e-300] * 10 + [0.0]]
)
def test_rewards_of_any_size_have_a_scale_and_a_range(rewards, tmp_path):
    lines = [json.dumps(record(n, reward=r)) for n, r in enumerate(rewards)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    dialogues = read(tmp_path / "own.jsonl")
    low, high = own_dialogues.task_of(dialogues, TaskConfig(), "own").reward_range
    assert low < high and 0 < training_data.reward_scale(dialogues) <= 1


# --- a run's dialogues.jsonl, before it is trained on -------------------------------------------


def checked(tmp_path, *records, **changes):
    """Checks these records as a run's dialogues.jsonl."""
    config = base_config()
    config.update({"methods": ("bc",)})
    config.data.source, config.tokenizer.vocab_size = "jsonl", 300
    config.update_from_flattened_dict(changes)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir(exist_ok=True)
    folder.dialogues.write_text("\n".join(map(json.dumps, records)))
    dialogues = read_dialogues(folder.dialogues)
    return training_data.check_dialogues(build(config), folder, dialogues, Console(quiet=True))


def in_part(number: int, part: str | None, **fields):
    return record(number, source={} if part is None else {"part": part}, **fields)


def test_dialogues_of_both_parts_can_be_trained_on(tmp_path):
    assert checked(tmp_path, in_part(1, "train"), in_part(2, "test"), in_part(3, None))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([in_part(1, "test"), in_part(2, "test")], "dialogues.jsonl: none of the 2 .* 'train'"),
        ([in_part(1, "train"), in_part(2, None)], "dialogues.jsonl: none of the 2 .* 'test'"),
        (
            [in_part(1, "train"), in_part(2, "test"), in_part(1, "train")],
            r"dialogues.jsonl, line 3, field 'id': 'd1' is the id of .*dialogues.jsonl, line 1 too",
        ),
        (
            [in_part(1, "train"), in_part(2, "dev")],
            r"line 2, field 'source.part': 'dev', but must be train or test",
        ),
    ],
)
def test_parts_and_ids_are_checked_before_training(records, message, tmp_path):
    with pytest.raises(RunError, match=message):
        checked(tmp_path, *records)


def test_rewards_that_are_all_zero_are_told_where_values_would_learn_from_them(tmp_path):
    said = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Hm."}]
    mine = [in_part(n, part, reward=0, messages=said) for n, part in ((1, "train"), (2, "test"))]
    with pytest.raises(RunError, match="all 2 dialogues have the reward 0, so ilql would learn no"):
        checked(tmp_path, *mine, methods=("bc", "ilql"))
    assert checked(tmp_path, *mine, methods=("bc",))


def test_dialogues_of_another_task_are_told_with_the_line(tmp_path):
    world = {"data.source": "world", "task.world": "teaching"}
    mine = [in_part(1, None, task="teaching"), in_part(2, None)]
    assert checked(tmp_path, *mine, **world)
    with pytest.raises(UserError, match=r"line 3, field 'task': 'travel', but .* 'teaching'"):
        checked(tmp_path, *mine, in_part(3, None, task="travel"), **world)


# --- parts of a published corpus ----------------------------------------------------------------


def read_corpus(tmp_path, count: int):
    """The dialogues of an ESConv.json of so many, all with the same outcome."""
    seeker = {"initial_emotion_intensity": "5", "final_emotion_intensity": "2"}
    said = [{"speaker": who, "content": "Hm.", "annotation": {}} for who in ("seeker", "supporter")]
    (tmp_path / "ESConv.json").write_text(
        json.dumps([{"dialog": said, "survey_score": {"seeker": seeker}}] * count)
    )
    data = DataConfig(source="esconv", path=str(tmp_path / "ESConv.json"))
    return imagine._read_corpus(data, seed=0)[0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_part_of_a_corpus_without_dialogues_is_told(count, tmp_path):
    with pytest.raises(UserError, match=f"of {count} rated dialogues none is left .* 'test'"):
        read_corpus(tmp_path, count)


def test_a_corpus_of_one_outcome_is_split(tmp_path):
    assert sum(d.source["part"] == "test" for d in read_corpus(tmp_path, 10)) == 2
