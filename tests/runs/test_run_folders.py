"""Run folders that were damaged: files drawn from seeds end in a message, or are made again."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml
from in_process import SMALLEST, run

from experiments.run_folder import RunFolder, Unit
from experiments.stages import evaluate
from ilql_jax.checkpoint import read_metadata

UNIT = Unit("bc", 0)
REFERENCES = {"behaviour": 0.25, "best_behaviour": 0.5, "optimum": 0.75, "uniform": 0.125}


@pytest.fixture(scope="module", autouse=True)
def quick_references():
    """The world is solved in other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "reference_values", lambda *_: REFERENCES)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    ended = run(folder, *SMALLEST, "--stage=evaluate")
    assert ended.status == 0, ended
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def damaged(rng: random.Random, content: bytes) -> bytes:
    kind = rng.choice(["half", "empty", "flip", "type", "noise", "fields", "deep"])
    if kind == "half":
        return content[: rng.randrange(max(1, len(content)))]
    if kind == "empty":
        return b""
    if kind == "flip":
        place = rng.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :]
    if kind == "type":
        return rng.choice([b"null", b"[]", b'"text"', b"7", b"{}", b"[[1], {}]", b"1e999", b"NaN"])
    if kind == "noise":
        return rng.randbytes(40)
    if kind == "deep":
        return b"[" * 20_000
    try:
        record = yaml.safe_load(content)  # JSON too
        place = record
        while isinstance(place[name := rng.choice(sorted(place))], dict) and rng.random() < 0.8:
            place = place[name] or place
        place[name] = rng.choice([None, [], {"a": 1}, "text", -1, True, 10**400, [[1]], "a/b.py"])
        return json.dumps(record).encode()
    except (ValueError, TypeError, yaml.YAMLError):
        return content[:-3] + b"\xff"


# File -> draws, and text of which one part is in the output where it is not made again.
SMALL = {
    "config.yaml": (80, ("config.yaml", "config.")),
    "stages/imagine.json": (30, ("imagine.json", "made from other settings (imagine)")),
    "stages/train.json": (30, ("train.json", "made from other settings (train)")),
    "stages/evaluate.json": (30, ("evaluate.json", "made from other settings (evaluate)")),
    "metrics/bc-seed0.finished.json": (4, ()),
    "metrics/bc-seed0.jsonl": (12, ()),
    "metrics/results.summary.json": (12, ()),
    "evaluation/references.json": (12, ()),
    "evaluation/bc-seed0.json": (3, ()),
    "evaluation/bc-seed0.jsonl": (3, ()),
    "evaluation.json": (12, ()),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_damaged_small_file_is_made_again_or_named(finished, copy, name):
    draws, named = SMALL[name]
    content = (finished / name).read_bytes()
    for seed in range(draws):
        spoiled = damaged(random.Random(f"{name}/{seed}"), content)
        (copy / name).write_bytes(spoiled)
        before = time.process_time()
        ended = run(copy, "--stage=evaluate")
        assert not ended.traceback, (seed, spoiled[:60], ended.traceback)
        assert time.process_time() - before < 20
        if ended.status:
            assert any(text in ended.output for text in named), (seed, spoiled[:60], ended.output)
            assert ended.output.count("Error: ") == 1
        (copy / name).write_bytes(content)
    assert run(copy, "--stage=evaluate").status == 0
    for each in ("evaluation.json", "conversations.jsonl", "dialogues.jsonl"):
        assert (copy / each).read_bytes() == (finished / each).read_bytes(), each


def test_a_damaged_checkpoint_of_a_finished_training_is_trained_again(finished, copy):
    """With what was made from it gone, so that it is needed."""
    (copy / "evaluation" / "bc-seed0.json").unlink()
    file = next(iter(sorted((copy / "checkpoints/bc-seed0/4/state").rglob("d/*"))))
    file.write_bytes(file.read_bytes()[:-1])
    ended = run(copy, "--stage=evaluate")
    assert ended.status == 0, ended
    assert "set aside as damaged-4, the one of step 2 is used" in ended.output
    assert sorted(p.name for p in (copy / "checkpoints/bc-seed0").iterdir()) == [
        "2",
        "4",
        "damaged-4",
    ]
    for each in ("conversations.jsonl", "metrics/bc-seed0.jsonl"):
        before, after = (
            [json.loads(line) for line in (folder / each).open()] for folder in (finished, copy)
        )
        for record in (*before, *after):
            record.pop("seconds", None)
        assert before == after


def test_export_uses_the_checkpoint_before_a_damaged_one_and_says_so(copy):
    (copy / "checkpoints/bc-seed0/4/metadata/metadata").write_text("{")
    ended = run(copy, "--stage=export", "--config.export.method=bc")
    assert ended.status == 0, ended
    assert "checkpoints/bc-seed0/4 is damaged" in ended.output
    assert "is not trained to the end any more: --stage=train does it" in ended.output
    (copy / "checkpoints/bc-seed0/2/state/_METADATA").unlink()
    ended = run(copy, "--stage=export", "--config.export.method=bc")
    assert ended.status == 1 and not ended.traceback and "Error: " in ended.output


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("method", {"name": "fbc"}, "method 'fbc' instead of 'bc'"),
        ("method", "bc", "method None instead of 'bc'"),
        ("seed", 5, "seed 5 instead of 0"),
        ("unit", "bc_hindsight1-seed0", "unit 'bc_hindsight1-seed0' instead of 'bc-seed0'"),
        ("model", {}, "cannot be read"),
        ("model", 7, "cannot be read"),
    ],
)
def test_a_checkpoint_of_another_training_under_this_name_is_refused(copy, field, value, told):
    for step in ("2", "4"):
        path = copy / "checkpoints/bc-seed0" / step
        saved = json.loads((path / "metadata/metadata").read_text())
        (path / "metadata/metadata").write_text(json.dumps(saved | {field: value}))
        (path / "checksums.json").unlink()
    ended = run(copy, "--stage=export", "--config.export.method=bc")
    assert (ended.status, ended.traceback) == (1, ""), ended
    assert told in ended.output


def test_a_damaged_tokenizer_is_named_with_the_stage_to_run_again(copy):
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    ended = run(copy, "--stage=export", "--config.export.method=bc")
    assert (ended.status, ended.traceback) == (1, ""), ended
    assert f"{copy / 'tokenizer'} is damaged" in ended.output and "--stage=train" in ended.output


def test_files_of_the_users_own_in_an_export_stay(copy):
    arguments = ("--stage=export", "--config.export.method=bc")
    assert run(copy, *arguments).status == 0
    target = RunFolder(copy).export(UNIT)
    own = {"notes.md": "mine", "sub/more.txt": "mine too", "model-notes.safetensors": "no tensors"}
    for name, text in own.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text)
    stale = target / "model-00001-of-00002.safetensors"
    stale.write_text("of an older export")
    first = {p.name: p.read_bytes() for p in target.iterdir() if p.suffix in (".json", ".jinja")}
    assert run(copy, *arguments).status == 0
    assert {name: (target / name).read_text() for name in own} == own
    assert not stale.exists() and not target.with_name("bc-seed0.partial").exists()
    assert (
        first.items() <= {p.name: p.read_bytes() for p in target.iterdir() if p.is_file()}.items()
    )


def test_a_folder_that_could_not_be_read_back_is_refused_before_any_work(tmp_path):
    for name in ("lr[1e-3]", "a*b", "back\\slash"):
        ended = run(tmp_path / name, *SMALLEST)
        assert (ended.status, ended.traceback) == (1, "")
        assert "--workdir: " in ended.output and "cannot be read back" in ended.output
        assert not (tmp_path / name).exists()


def test_metadata_names_the_training(finished):
    assert read_metadata(finished / "checkpoints/bc-seed0")["unit"] == "bc-seed0"
