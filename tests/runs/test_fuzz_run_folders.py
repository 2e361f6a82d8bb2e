"""Run folders that were damaged: files drawn from seeds end in a message, or are made again."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from coffee import coffee_file
from fuzzing import COUNTS
from in_process import SMALLEST, run
from messages_server import MessagesServer
from rich.console import Console
from world_llm import WorldLLM

from experiments.report import page
from experiments.run_folder import RunFolder, Unit
from experiments.stages import evaluate, regenerate
from ilql_jax.checkpoint import read_metadata
from imagination.agents.policy import PolicyAgent

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
    "metrics/bc-seed0.finished.json": (2, ()),
    "metrics/bc-seed0.jsonl": (12, ()),
    "metrics/results.summary.json": (12, ()),
    "evaluation/references.json": (12, ()),
    "evaluation/bc-seed0.json": (2, ()),
    "evaluation/bc-seed0.jsonl": (2, ()),
    "evaluation.json": (12, ()),
}


# The rest is read by the same code as one of these.
OFTEN = ("config.yaml", "stages/train.json", "metrics/bc-seed0.jsonl", "evaluation/bc-seed0.jsonl")


@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SMALL]
)
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
        COUNTS["run folders", "told" if ended.status else "accepted"] += 1
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


# --- hindsight ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A run up to hindsight on a world of its own, and how it is called again."""
    folder = tmp_path_factory.mktemp("hindsight")
    again = (f"--config.task.world={coffee_file(folder)}", "--stage=regenerate")
    arguments = (*SMALLEST, "--config.methods=ilql_hindsight1")
    ended = run(folder / "run", *arguments, "--config.hindsight.calibration_dialogues=5", *again)
    assert ended.status == 0, ended
    return folder / "run", again


@pytest.mark.parametrize("name", ["calibration.json", "rejected.jsonl", "round1.jsonl"])
def test_damaged_files_of_hindsight_are_made_again_or_named(looked_back, tmp_path, name):
    folder, again = looked_back
    content = (folder / "hindsight" / name).read_bytes() or b'{"round": 1, "problem": "empty"}\n'
    copy = shutil.copytree(folder, tmp_path / "run")
    for seed in range(10):
        spoiled = damaged(random.Random(f"{name}/{seed}"), content)
        (copy / "hindsight" / name).write_bytes(spoiled)
        (copy / "hindsight/card.md").unlink(missing_ok=True)  # else nothing is read
        ended = run(copy, *again)
        assert not ended.traceback, (seed, spoiled[:60], ended.traceback)
        COUNTS["run folders", "told" if ended.status else "accepted"] += 1
        assert name in ended.output or ended.status == 0, (seed, ended)
        if ended.status == 0 and name != "rejected.jsonl":  # which may be empty
            kept = (copy / "hindsight" / name).read_bytes()
            assert kept == content or kept == spoiled != b"", (seed, spoiled[:60], ended)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record["source"].pop("parent"), "line 2: source is"),
        (lambda record: record["source"].update(turn=0), "line 2: source is"),
        (lambda record: record["source"].update(parent="x"), "line 2: made from turn 1 of 'x'"),
    ],
)
def test_a_regenerated_dialogue_of_no_known_origin_is_told(looked_back, tmp_path, change, told):
    folder, again = looked_back
    copy = shutil.copytree(folder, tmp_path / "run")
    lines = (copy / "hindsight/round1.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    change(record)
    lines[1] = json.dumps(record)
    (copy / "hindsight/round1.jsonl").write_text("\n".join(lines))
    (copy / "hindsight/card.md").unlink()
    ended = run(copy, *again)
    assert (ended.status, ended.traceback) == (1, ""), ended
    assert told in ended.output and "--stage=regenerate makes it again" in ended.output


# --- signals ------------------------------------------------------------------------------------

STOPPED = "Stopped. The same command goes on from here."


def stop_at(monkeypatch, place, name: str, number: int, call: int = 1) -> None:
    """Lets a function raise a signal, once, when it is called for the nth time."""
    original, calls = getattr(place, name), itertools.count(1)

    def stopping(*arguments, **options):
        if next(calls) == call:
            signal.raise_signal(number)
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, stopping)


SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)

FEWER_SIGNALS = pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["ctrl-c", "term"],
)


def told_once(ended, status: int) -> None:
    assert (ended.status, ended.traceback) == (status, ""), ended
    assert ended.output.count(STOPPED) == 1 and "Error" not in ended.output


@SIGNALS
def test_a_signal_in_hindsight(looked_back, tmp_path, monkeypatch, number, status):
    folder, again = looked_back
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(copy / "hindsight")
    monkeypatch.setattr(regenerate, "CHUNK", 10)
    stop_at(monkeypatch, regenerate, "regenerate", number, call=3)
    told_once(run(copy, *again), status)
    assert len((copy / "hindsight/round1.chunks.jsonl").read_text().splitlines()) == 2
    assert run(copy, *again).status == 0
    for path in (folder / "hindsight").iterdir():
        assert (copy / "hindsight" / path.name).read_bytes() == path.read_bytes()


@FEWER_SIGNALS
def test_a_signal_in_the_report(copy, monkeypatch, number, status):
    stop_at(monkeypatch, page, "render", number)
    told_once(run(copy, "--stage=report"), status)
    assert not (copy / "report.html").exists()
    assert run(copy, "--stage=report").status == 0
    assert (copy / "report.html").exists()


@SIGNALS
def test_a_signal_in_chat(copy, monkeypatch, number, status):
    """At the prompt Ctrl-C is how a chat ends; before and while an agent answers it is not."""
    chat = ("--stage=chat", "--config.chat.method=bc")
    with monkeypatch.context() as patch:
        stop_at(patch, Console, "input", number)
        ended = run(copy, *chat)
        assert (ended.status, ended.traceback) == (0 if number == signal.SIGINT else 143, "")
        assert ended.output.count(STOPPED) == (number == signal.SIGTERM)
    stop_at(monkeypatch, PolicyAgent, "respond", number)
    monkeypatch.setattr(Console, "input", lambda *_: "What do you know?")
    told_once(run(copy, *chat), status)


@SIGNALS
def test_a_signal_while_an_llm_imagines(tmp_path, monkeypatch, number, status):
    """Sent by the server, which runs beside it, when it is asked for the sixth time."""
    world, calls = coffee_file(tmp_path), itertools.count(1)
    llm = WorldLLM(str(world))

    def answer(body):
        if next(calls) == 6:
            os.kill(os.getpid(), number)
        return llm(body)

    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    with MessagesServer(answer) as server:
        arguments = (
            *SMALLEST,
            f"--config.task.world={world}",
            "--config.imagination.engine=anthropic",
            "--config.imagination.dialogues=4",
            "--config.imagination.personas=uniform",
            "--config.task.description=A waiter finds out what a guest would like to drink.",
            "--config.llm.model=m",
            f"--config.llm.base_url={server.url}",
            "--stage=imagine",
        )
        told_once(run(tmp_path / "run", *arguments), status)
        assert not (tmp_path / "run/dialogues.jsonl").exists()
        assert run(tmp_path / "run", *arguments).status == 0
    assert len((tmp_path / "run/dialogues.jsonl").read_text().splitlines()) == 4


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system in memory, and what sets its options; of root alone."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-o", options, str(place)], check=True, capture_output=True)

    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root alone, and not in every container")
    yield place, mount
    subprocess.run(["umount", "-l", str(place)], check=False)


def told_in_a_line(ended, path: Path, words: str) -> None:
    assert (ended.status, ended.traceback) == (1, ""), ended
    assert ended.output.count("Error: ") == 1 and "Traceback" not in ended.output
    assert str(path) in ended.output and words in ended.output


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in RunFolder(folder).metrics(UNIT).open()]


def test_a_disk_that_fills_up_again_and_again_is_told_and_nothing_is_lost(
    finished, small_disk, capfd
):
    place, mount = small_disk
    for options in (
        "size=8k,nr_inodes=9000",
        "size=2m,nr_inodes=11",
        "size=400k,nr_inodes=9000",
        "size=1400k",
    ):
        mount(f"remount,{options}")
        ended = run(place / "run", *SMALLEST, "--stage=train")
        told_in_a_line(ended, place / "run", "the disk is full")
    mount("remount,size=40m")
    assert run(place / "run", *SMALLEST, "--stage=train").status == 0
    for each in ("tokenizer/tokenizer.json", "dialogues.jsonl"):
        assert (place / "run" / each).read_bytes() == (finished / each).read_bytes(), each
    assert losses(place / "run") == losses(finished)
    assert "Traceback" not in capfd.readouterr().err


def test_a_disk_that_is_read_only_is_told_and_a_report_of_it_too(finished, small_disk):
    place, mount = small_disk
    mount("remount,size=40m")
    shutil.copytree(finished, place / "run")
    (place / "run/evaluation/bc-seed0.json").unlink()
    mount("remount,ro")
    for stage in ("train", "evaluate", "export", "report"):
        ended = run(place / "run", f"--stage={stage}", "--config.export.method=bc")
        told_in_a_line(ended, place / "run", "the disk is read-only")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: run.rmdir() or run.write_text(""), "a file stands where a folder is needed"),
        (lambda run: (run / ".lock").mkdir(), "a folder stands where a file"),
        (lambda run: (run / "config.yaml").mkdir(), "a folder stands where a file"),
        (lambda run: (run / "stages").write_text(""), "a file stands where a folder is needed"),
        (lambda run: (run / "checkpoints").write_text(""), "a file stands where a folder"),
        (lambda run: (run / "metrics").write_text(""), "a file stands where a folder"),
        (lambda run: (run / "dialogues.jsonl").mkdir(), "a directory"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path, spoil, words):
    folder = tmp_path / "run"
    folder.mkdir()
    spoil(folder)
    ended = run(folder, *SMALLEST, "--stage=train")
    told_in_a_line(ended, folder, words)


def test_a_name_that_is_too_long_is_told(tmp_path):
    told_in_a_line(run(tmp_path / ("x" * 300), *SMALLEST), tmp_path, "the name is too long")
