"""Whole runs through the launcher, at tiny size: results, resuming after a kill, bad input."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import warm_start
import yaml
from launching import TINY as TINIEST
from launching import command, flattened, launch, write_corpus

from ilql_jax.checkpoint import read_metadata
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.models.hugging_face.write import load_network
from imagination.dialogue import read_dialogues

# More than are played together, so that a run can be killed between.
TINY = tuple(
    "--config.imagination.dialogues=600" if "dialogues=" in each else each for each in TINIEST
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = launch(f"--workdir={folder}", *TINY)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


def test_a_run_leaves_everything_it_promises(finished: Path):
    for name in (
        "config.yaml",
        "dialogues.jsonl",
        "dataset_card.md",
        "tokenizer/tokenizer.json",
        "checkpoints/ilql-seed0",
        "metrics/ilql-seed0.jsonl",
        "evaluation.json",
        "conversations.jsonl",
        "report.html",
    ):
        assert (finished / name).exists(), name
    assert list((finished / "figures").glob("*.png"))
    output = (finished / "output.txt").read_text()
    assert "ILQL" in output and "optimum" in output and "report.html" in output


def test_evaluation_holds_what_the_table_shows(finished: Path):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["task"] == "teaching"
    for population, episodes in (("average", 4), ("difficult", 3)):
        part = evaluation["population"][population]
        assert set(part["references"]) == {"behaviour", "best_behaviour", "optimum", "uniform"}
        scores = part["methods"]["ilql"]
        [training] = scores["trainings"]
        assert (scores["episodes"], training["seed"]) == (episodes, 0)
        assert training["mean_reward"] == scores["mean_reward"]
        low, high = scores["ci95"]
        assert low <= scores["mean_reward"] <= high
        behaviour, optimum = part["references"]["behaviour"], part["references"]["optimum"]
        expected = (scores["mean_reward"] - behaviour) / (optimum - behaviour)
        assert scores["normalized"] == pytest.approx(expected)
        assert training["seconds"] > 0
        assert {"a", "b", "difference", "p", "p_holm"} <= set(part["tests"][0])


def test_the_same_human_meets_every_method(finished: Path):
    personas: dict[tuple, dict] = {}
    for line in (finished / "conversations.jsonl").read_text().splitlines():
        dialogue = json.loads(line)
        source = dialogue["source"]
        key = (source["population"], source["episode"])
        assert personas.setdefault(key, dialogue["persona"]) == dialogue["persona"]
        # The human opens; what they say first cannot depend on the agent.
        assert (
            personas.setdefault((*key, "opening"), dialogue["messages"][0]["content"])
            == (dialogue["messages"][0]["content"])
        )


def test_a_finished_run_is_not_done_again(finished: Path):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("checkpoints/**/*") if p.is_file()}
    dialogues = (finished / "dialogues.jsonl").stat().st_mtime_ns
    result = launch(f"--workdir={finished}")
    assert result.returncode == 0, result.stdout
    after = {p: p.stat().st_mtime_ns for p in finished.glob("checkpoints/**/*") if p.is_file()}
    assert after == before
    assert (finished / "dialogues.jsonl").stat().st_mtime_ns == dialogues


@pytest.mark.slow
def test_seeds_can_be_added_to_a_finished_run(finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    result = launch(f"--workdir={folder}", "--config.seeds=2", "--stage=train")
    assert result.returncode == 0, result.stdout
    assert (folder / "checkpoints" / "ilql-seed1").exists()


def test_another_task_keeps_out_of_a_used_folder(finished: Path):
    result = launch(f"--workdir={finished}", task="travel")
    assert result.returncode == 1
    assert "holds a run of 'teaching', not of 'travel'" in flattened(result.stdout)


def test_other_settings_in_a_used_folder_are_an_error_that_names_them(finished: Path):
    result = launch(f"--workdir={finished}", "--config.train.learning_rate=0.1")
    assert result.returncode == 1
    output = flattened(result.stdout)
    assert "config.train.learning_rate was 0.003, now 0.1" in output
    assert "--workdir" in output


def test_chat_answers_and_shows_values(finished: Path):
    hello = "Hi, can you explain recursion?"
    words = f"/values\n{hello}\n/new\n0.5\n/nonsense\n<agent> hello <end>\n/quit\n\n"
    result = launch(f"--workdir={finished}", "--stage=chat", text=words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("agent:") == 2
    assert "Q " in result.stdout and "V " in result.stdout
    assert "understood as asks" in result.stdout and "You are the student" in result.stdout


def test_a_chat_ends_with_a_rating_and_is_kept(finished: Path):
    words = "Hi, can you explain recursion?\nbanana xyzzy\nThanks, bye!\n0.8\nnot read any more\n"
    result = launch(f"--workdir={finished}", "--stage=chat", text=words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Not understood: no student says such a thing" in result.stdout
    dialogue = read_dialogues(finished / "chats.jsonl")[-1]
    assert (dialogue.reward, dialogue.source["ended_by"]) == (0.8, "human")
    assert (dialogue.task, dialogue.source["agent"]) == ("teaching", "ilql-seed0")
    assert [t.text for t in dialogue.turns if t.speaker == "human"] == words.split("\n")[:3]


@pytest.fixture(scope="module")
def killed_in_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed (SIGKILL) while it imagined, and again while it trained."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    _kill(folder, folder / "dialogues.jsonl.partial")
    _kill(folder, folder / "metrics" / "ilql-seed0.jsonl", lines=15)
    return folder


def _kill(folder: Path, sign: Path, lines: int = 1) -> None:
    """Starts the run, and kills it when this file has so many lines."""
    process = warm_start.start(
        command(f"--workdir={folder}", *TINY), env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    deadline = time.monotonic() + 300
    while not _has_content(sign, lines):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_a_run_killed_in_every_stage_goes_on_to_the_same_result(
    killed_in_training: Path, finished: Path, tmp_path: Path
):
    """The same command then ends as if nothing had happened."""
    folder = shutil.copytree(killed_in_training, tmp_path / "killed")
    _kill(folder, folder / "evaluation" / "ilql-seed0.jsonl")  # the first of the two
    assert not (folder / "evaluation.json").exists()
    result = launch(f"--workdir={folder}", *TINY)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("dialogues.jsonl", "evaluation.json"):
        assert _without_times(folder / name) == _without_times(finished / name), name
    for unit in ("bc-seed0", "ilql-seed0"):
        assert _losses(folder, unit) == _losses(finished, unit)


@pytest.mark.slow  # as in test_train.py
def test_after_a_kill_memory_may_be_saved_and_the_run_goes_on(
    killed_in_training: Path, finished: Path, tmp_path: Path
):
    """As after an out-of-memory: smaller chunks, parts, remat; and nothing is done again."""
    folder = shutil.copytree(killed_in_training, tmp_path / "killed")
    before = (folder / "metrics/ilql-seed0.jsonl").read_text().splitlines()[:10]
    result = launch(
        f"--workdir={folder}",
        "--stage=train",
        "--config.method.ilql.action_chunk=64",
        "--config.train.gradient_accumulation=2",
        "--config.train.checkpoint_every=7",
        "--config.model.remat=true",
        "--config.logging.backends=()",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    after = (folder / "metrics/ilql-seed0.jsonl").read_text().splitlines()
    assert after[:10] == before  # to the checkpoint of step 10, with the seconds of then
    ours, theirs = _losses(folder, "ilql-seed0"), _losses(finished, "ilql-seed0")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-3)


def _has_content(path: Path, lines: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= lines


def _losses(folder: Path, unit: str) -> list[dict]:
    lines = (folder / "metrics" / f"{unit}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, 31))
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def _without_times(path: Path):
    if path.suffix != ".json":
        return path.read_text()
    evaluation = json.loads(path.read_text())
    for part in evaluation["population"].values():
        for scores in part["methods"].values():
            for training in scores["trainings"]:
                training.pop("seconds")
    return evaluation


@pytest.mark.slow
def test_workers_side_by_side_give_what_one_gives(finished: Path, tmp_path: Path):
    folder = tmp_path / "parallel"
    arguments = [a for a in TINY if "workers" not in a]
    result = launch(f"--workdir={folder}", *arguments, "--config.workers=2", "--stage=train")
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = _losses(folder, "bc-seed0"), _losses(finished, "bc-seed0")
    # Threads may sum in another order, so not to the bit across numbers of workers.
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_failing_worker_says_why(finished: Path, tmp_path: Path):
    folder = tmp_path / "failing"
    arguments = [a for a in TINY if "workers" not in a]
    result = launch(
        f"--workdir={folder}", *arguments, "--config.workers=2", "--config.train.learning_rate=1e30"
    )
    assert result.returncode == 1
    output = flattened(result.stdout)
    assert "at step" in output and "last good checkpoint" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.train.stepz=5"], "Did you mean config.train.steps?"),
        (["--config.train.steps=many"], "config.train.steps='many' is not of the right type"),
        (["--config.nonsense=5"], "unknown setting config.nonsense"),
        (["--config.method.ilql.expectile=1.5"], "config.method.ilql.expectile is 1.5"),
        (["--config.method.ilql.credit=sentence"], "must be utterance or token"),
        (["--config.model.num_heads=3"], "multiple of num_heads 3"),
        (["--config.methods=sarsa"], "sarsa"),
        (["--config.methods=bc,bc"], "name each method once"),
        (["--config.train.learning_rate=nan"], "learning_rate is nan"),
        (["--config.model.num_heads=0"], "num_heads is 0"),
        (["--config.method.ilql.trace_fade=(0.1,)"], "trace_fade"),
        (["--config.train.token_discount=2.0"], "config.train.token_discount is 2.0"),
        (['--config.decoding.bc=("sampled, best of 4",)'], "bc learns none"),
        (['--config.decoding.ilql=("greedy, steered by 8",)'], "set its credit to 'token'"),
        (['--config.decoding.ilql=("hottest",)'], "'hottest' is not understood"),
        (["--config.train.steps=0"], "steps is 0"),
        (["--config.task.world=atlantis"], "config.task.world: unknown world 'atlantis'"),
        (["--config.task.world=nowhere/world.py"], "nowhere/world.py"),
        (["--config.tokenizer.pretrained=/no/such/folder"], "no tokenizer"),
        (["--config.data.path=mine.jsonl"], "config.data.path is 'mine.jsonl', but the dialogues"),
        (["--stage=dance"], "dance"),
        (["--stage=chat"], "no trained"),
        (["surprise"], "unexpected argument 'surprise'"),
    ],
)
def test_bad_settings_are_told_before_any_work(arguments: list[str], expected: str, tmp_path: Path):
    result = launch(f"--workdir={tmp_path / 'run'}", *TINY, *arguments)
    output = flattened(result.stdout)
    assert result.returncode == 1, output + result.stderr
    assert expected in output
    assert "Traceback" not in output + result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_was_refused_is_not_kept_with_the_run(tmp_path: Path):
    result = launch(f"--workdir={tmp_path / 'run'}", *TINY, "--config.mesh.data=3")
    assert result.returncode == 1
    assert "the mesh data 3 x fsdp 1 x tensor 1 does not divide" in flattened(result.stdout)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def imagined(tmp_path_factory) -> Path:
    """A run that has imagined its dialogues and nothing else."""
    folder = tmp_path_factory.mktemp("imagined") / "run"
    assert launch(f"--workdir={folder}", *TINY, "--stage=imagine").returncode == 0
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line[: len(line) // 2], "line 3: not valid JSON"),
        (lambda line: json.dumps({**json.loads(line), "reward": None}), "reward is null"),
        (lambda line: line.replace('"reward": ', '"reward": Infinity, "was": '), "finite number"),
        (lambda line: line.replace('"role": "assistant"', '"role": "user"'), "agent never speaks"),
        (lambda line: line.replace('"role": "user"', '"role": "robot"'), "'messages[0].role'"),
        (
            lambda line: line.replace('"content": "', '"content": "' + "word " * 300),
            "do not fit in the context of 240",
        ),
    ],
)
def test_broken_dialogues_are_told_before_training(
    change, expected: str, imagined: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    shutil.copytree(imagined, folder)
    lines = (folder / "dialogues.jsonl").read_text().splitlines()
    lines[2] = change(lines[2])
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    result = launch(f"--workdir={folder}")
    output = flattened(result.stdout)
    assert result.returncode == 1, output + result.stderr
    assert expected in output
    assert not (folder / "checkpoints").exists()


def test_a_second_process_keeps_out(tmp_path: Path):
    folder = tmp_path / "run"
    first = warm_start.start(command(f"--workdir={folder}", *TINY), env=os.environ)
    try:
        while not (folder / "config.yaml").exists():
            assert first.poll() is None
            time.sleep(0.01)
        result = launch(f"--workdir={folder}", *TINY)
        assert result.returncode == 1
        assert "another process is working" in flattened(result.stdout)
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow  # dialogues of one's own go the same way (test_own_data.py)
def test_persuasion_trains_on_real_dialogues_and_judges_on_held_out_ones(tmp_path: Path):
    corpus = write_corpus(tmp_path / "corpus")
    folder = tmp_path / "run"
    tiny = [a for a in TINY if "decoding" not in a and "workers" not in a]
    result = launch(
        f"--workdir={folder}",
        *tiny,
        "--config.data.source=persuasionforgood",
        f"--config.data.path={corpus}",
        "--config.model.max_positions=128",
        "--config.tokenizer.vocab_size=400",
        task="persuasion",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    heldout = json.loads((folder / "heldout.json").read_text())
    assert sum(heldout["sizes"].values()) == 40
    assert heldout["methods"]["ilql"]["perplexity"] > 1
    points = heldout["value_prediction"]["ilql"]
    assert all(0 <= point["auroc_v"] <= 1 for point in points)
    rewards = [json.loads(x)["reward"] for x in (folder / "dialogues.jsonl").open()]
    assert max(rewards) == 2.0  # 700 dollars are capped
    assert "<html" in (folder / "report.html").read_text()


def test_persuasion_without_its_data_says_where_to_get_it(tmp_path: Path):
    source = "--config.data.source=persuasionforgood"
    result = launch(
        f"--workdir={tmp_path / 'run'}", source, "--config.data.path=nowhere", task="persuasion"
    )
    output = flattened(result.stdout)
    assert result.returncode == 1
    assert "persuasionforgood" in output and "--config.data.path" in output
    # The way out that the message names leads on, in the same folder.
    corpus = write_corpus(tmp_path / "corpus")
    result = launch(
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.path={corpus}",
        "--stage=imagine",
        task="persuasion",
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_config_on_disk_is_plain_yaml(finished: Path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["train"]["steps"] == 30


@pytest.mark.slow
def test_values_with_a_trunk_of_their_own_leave_the_others_as_they_are(
    finished: Path, tmp_path: Path
):
    separate = (f"--workdir={tmp_path}", *TINY, "--config.model.value_trunk=separate")
    result = launch(*separate, '--config.decoding.ilql=("greedy", "sampled, best of 2")')
    assert result.returncode == 0, result.stdout + result.stderr
    shapes, seen = {}, {}
    for folder in (finished, tmp_path):
        for method in ("bc", "ilql"):
            metadata = read_metadata(folder / "checkpoints" / f"{method}-seed0")
            shapes[folder, method] = metadata["model"]["value_trunk"]
            lines = (folder / "metrics" / f"{method}-seed0.jsonl").read_text().splitlines()
            seen[folder, method] = [json.loads(line)["policy_loss"] for line in lines]
    assert shapes == {
        (finished, "bc"): "shared",
        (finished, "ilql"): "shared",
        (tmp_path, "bc"): "shared",  # learns no values: neither computed, nor kept, nor saved
        (tmp_path, "ilql"): "separate",
    }
    assert seen[finished, "bc"] == seen[tmp_path, "bc"]
    assert seen[finished, "ilql"][0] == pytest.approx(seen[tmp_path, "ilql"][0], abs=1e-5)
    assert seen[finished, "ilql"][-1] != seen[tmp_path, "ilql"][-1]
    result = launch(*separate[:1], "--stage=export")
    assert result.returncode == 0, result.stdout + result.stderr
    card = (tmp_path / "export" / "ilql-seed0" / "README.md").read_text()
    assert "the trunk that they read: a transformer of their own" in card
    exported, _, about = load_network(tmp_path / "export" / "ilql-seed0")
    assert exported.value_trunk == "separate" and DecodingConfig.parse(about["decoding"])
