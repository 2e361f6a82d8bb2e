"""Loggers: JSON Lines, TensorBoard and W&B; what a resume forgets; that no key is written."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import evaluations
import pytest

from experiments import metrics
from experiments.build import Experiment, build
from experiments.config import base_config
from experiments.evaluation import logged
from experiments.metrics import LoggerError, LoggingConfig, TrainingLog, open_logger, read_log
from experiments.run_folder import RunFolder
from ilql_jax.settings import SettingError

JSON_ONLY = LoggingConfig(backends=())


def log_file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics" / "ilql-seed0.jsonl"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, from all event files of a TensorBoard folder, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    values: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values


def test_json_lines_hold_what_was_logged(tmp_path):
    path = log_file(tmp_path)
    with open_logger(JSON_ONLY, path) as logger:
        logger.resume(0)
        logger.log(1, {"loss": 0.5})
        logger.log(2, {"loss": 0.25, "seconds": 1.5})
        logger.summary({"average/mean_reward": 3.0, "decoding": "greedy"})
        logger.summary({"average/mean_reward": 3.5})
        logger.table("average", ("method", "mean reward"), [("ILQL", "3.50")])
    assert read_log(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "seconds": 1.5}]
    summary = json.loads(path.with_suffix(".summary.json").read_text())
    assert summary == {"average/mean_reward": 3.5, "decoding": "greedy"}
    [row] = path.with_suffix(".average.jsonl").read_text().splitlines()
    assert json.loads(row) == {"method": "ILQL", "mean reward": "3.50"}


@pytest.mark.parametrize("backends", [(), ("tensorboard",)])
def test_a_resume_forgets_what_will_be_done_again(tmp_path, backends):
    path, config = log_file(tmp_path), LoggingConfig(backends=backends)
    with open_logger(config, path) as logger:
        logger.resume(0)
        for step in (1, 2, 3):
            logger.log(step, {"loss": 1.0 / step})
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
    with open_logger(config, path) as logger:
        logger.resume(2)
        logger.log(3, {"loss": 7.0})
    assert [(r["step"], r["loss"]) for r in read_log(path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    if backends:
        assert scalars(path.with_suffix(""))["loss"] == {1: 1.0, 2: 0.5, 3: 7.0}


def test_tensorboard_shows_scores_behind_the_training_and_the_latest_only(tmp_path):
    path = log_file(tmp_path)
    with open_logger(LoggingConfig(), path) as logger:
        logger.resume(0)
        logger.log(40, {"loss": 0.5})
    for score in (1.0, 2.0):  # evaluated twice
        with open_logger(LoggingConfig(), path) as logger:
            logger.summary({"average/mean_reward": score})
            logger.table("average", ("method",), [("a|b",)], title="Scores")
    shown = scalars(path.with_suffix(""))
    assert shown["loss"] == {40: 0.5}
    assert shown["average/mean_reward"] == {40: 2.0}
    files = b"".join(p.read_bytes() for p in path.with_suffix("").iterdir())
    assert files.count(b"a\\|b") == 1


def test_a_new_backend_is_a_class_and_a_line(tmp_path, monkeypatch):
    events = []

    class Memory:
        def __init__(self, config, path, settings):
            events.append(("open", settings))

        def resume(self, step):
            events.append(("resume", step))

        def log(self, step, values):
            events.append((step, values))

        def summary(self, values):
            events.append(values)

        def table(self, name, headers, rows, title=""):
            events.append((name, title))

        def close(self):
            events.append("closed")

    monkeypatch.setitem(metrics.BACKENDS, "memory", Memory)
    opened = open_logger(LoggingConfig(backends=("memory",)), log_file(tmp_path), {"seed": 3})
    with pytest.raises(ZeroDivisionError), opened as logger:
        logger.resume(2)
        logger.log(3, {"loss": 1.0})
        logger.summary({"score": 2.0})
        logger.table("t", ("h",), [("c",)], "Title")
        raise ZeroDivisionError
    assert events == [
        *(("open", {"seed": 3}), ("resume", 2), (3, {"loss": 1.0})),
        *({"score": 2.0}, ("t", "Title"), "closed"),
    ]


OWN = """
class Scores:
    def __init__(self, config, log_file, settings):
        self.file = log_file.with_suffix(".scores")

    def resume(self, step): ...
    def log(self, step, values): ...
    def table(self, name, headers, rows, title=""): ...
    def close(self): ...

    def summary(self, values):
        self.file.write_text(str(values))

LOGGER = Scores
"""


def test_a_logger_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "scores.py").write_text(OWN)
    config = LoggingConfig(backends=("tensorboard", str(tmp_path / "scores.py")))
    with open_logger(config, log_file(tmp_path)) as logger:
        logger.summary({"score": 2.0})
    assert log_file(tmp_path).with_suffix(".scores").read_text() == "{'score': 2.0}"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "defines no LOGGER"),
        ("LOGGER = 3", "LOGGER is 3, but must be a class"),
        (OWN.replace("def close", "def finish"), "LOGGER has no close"),
        (OWN.replace("self, config,", "self,"), r"LOGGER must take \(config, log_file, settings\)"),
        (OWN.replace("self, step, values", "self, step"), r"LOGGER.log must take \(step, values\)"),
        (OWN.replace(', title=""', ""), r"LOGGER.table must take .*title\): too many"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_logger_is_told_by_the_checks(tmp_path, source, problem):
    (tmp_path / "scores.py").write_text(source)
    with pytest.raises(LoggerError, match=rf"config\.logging\.backends: .*scores\.py.*{problem}"):
        metrics.check_backends(LoggingConfig(backends=(str(tmp_path / "scores.py"),)))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"backends": ("tensorbord",)}, "tensorbord.*one of tensorboard, wandb, or a .py file"),
        ({"backends": ("wandb", "wandb")}, "once"),
        ({"wandb_mode": "sometimes"}, "wandb_mode is 'sometimes'"),
    ],
)
def test_wrong_settings_are_named(values, problem):
    with pytest.raises(SettingError, match=problem):
        LoggingConfig(**values)


def test_a_backend_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    opened = open_logger(LoggingConfig(backends=("wandb",)), log_file(tmp_path))
    with pytest.raises(LoggerError, match=r"ilql-jax\[wandb\]"), opened:
        raise AssertionError("opened without its package")


# --- W&B, offline -------------------------------------------------------------------------------

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "sk-a-secret-that-stays-in-the-environment"
SESSIONS = """
import pathlib, sys
from experiments.metrics import LoggingConfig, open_logger
config = LoggingConfig(backends=("wandb",), wandb_project="a-project", wandb_mode="offline")
settings = {"llm": {"base_url": "https://me:hidden-password@host/v1"}, "seed": 7}
for start in (0, 2):
    with open_logger(config, pathlib.Path(sys.argv[1]), settings) as logger:
        logger.resume(start)
        for step in (start + 1, start + 2):
            logger.log(step, {"loss": 1 / step})
with open_logger(config, pathlib.Path(sys.argv[1]), settings) as logger:
    logger.summary({"average/mean_reward": 4.25})
    logger.table("average", ("method", "reward"), [("ILQL", "4.25")])
"""


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory) -> Path:
    """A training in two sessions and an evaluation; returns the JSON Lines' file."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed (extra wandb)")
    path = log_file(tmp_path_factory.mktemp("wandb"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"WANDB_API_KEY": KEY, "ANTHROPIC_API_KEY": SECRET}
    result = subprocess.run(
        [sys.executable, "-c", SESSIONS, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stdout, "the terminal belongs to the experiment"
    return path


def wandb_records(path: Path) -> list[list]:
    """The records of each session's file, oldest session first."""
    from wandb.proto import wandb_internal_pb2

    sessions = []
    files = (path.parents[1] / "wandb").glob("offline-run-*/*.wandb")
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        records = list(map(wandb_internal_pb2.Record.FromString, leveldb_log(file.read_bytes())))
        assert records
        sessions.append(records)
    return sessions


def leveldb_log(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of W&B's file: 7 bytes, then chunks with checksum (4), length (2), type (1)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block is padding
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_goes_on_in_the_same_run(wandb_run):
    runs = [r.run for session in wandb_records(wandb_run) for r in session if r.HasField("run")]
    [identity] = {run.run_id for run in runs}
    assert identity == wandb_run.with_suffix(".wandb-id").read_text()
    assert {run.project for run in runs} == {"a-project"}
    assert {(run.display_name, run.run_group) for run in runs} == {("ilql-seed0", "run")}


def test_wandb_gets_metrics_scores_and_settings(wandb_run):
    sessions = wandb_records(wandb_run)
    losses = {}
    for record in (r for session in sessions for r in session if r.HasField("history")):
        items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "loss" in items:
            losses[record.history.step.num] = json.loads(items["loss"])
    assert losses == {step: pytest.approx(1 / step) for step in (1, 2, 3, 4)}
    everything = b"".join(p.read_bytes() for p in wandb_run.parents[1].rglob("*") if p.is_file())
    assert b"average/mean_reward" in everything and b"4.25" in everything
    assert b"https://host/v1" in everything


def test_no_key_and_no_password_is_logged(wandb_run):
    for path in wandb_run.parents[1].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (KEY, SECRET, "hidden-password"):
                assert secret.encode() not in content, path


# --- results ------------------------------------------------------------------------------------


def experiment(*backends: str) -> Experiment:
    config = base_config()
    config.task.world = "teaching"
    config.logging.backends = backends
    return build(config)


def test_scores_are_logged_by_unit_and_the_tables_by_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    logged.log_evaluation(experiment("tensorboard"), folder, evaluations.evaluation())
    summary = json.loads((tmp_path / "run/metrics/ilql-seed2.summary.json").read_text())
    assert summary["average/mean_reward"] == pytest.approx(4.27)
    assert summary["difficult/normalized"] == pytest.approx((4.27 - 1.9) / 2.8)
    assert summary["average/decoding"] == "sampled at 0.6, best of 16"
    methods = json.loads((tmp_path / "run/metrics/results.summary.json").read_text())
    assert methods["average/bc/mean_reward"] == 1.7
    rows = (tmp_path / "run/metrics/results.average.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["mean reward"] == "4.17 [4.04, 4.31]"
    shown = scalars(tmp_path / "run/metrics/ilql-seed2")
    assert shown["average/mean_reward"][0] == pytest.approx(4.27)


def test_held_out_results_are_logged(tmp_path):
    logged.log_heldout(experiment(), RunFolder(tmp_path), evaluations.heldout())
    summary = json.loads((tmp_path / "metrics/bc-seed0.summary.json").read_text())
    assert summary == {"heldout/perplexity": 21.37}
    assert len((tmp_path / "metrics/results.values.jsonl").read_text().splitlines()) == 3


def test_a_training_counts_the_seconds_of_all_its_sessions(tmp_path, monkeypatch):
    clock = iter((0.0, 10.0, 11.0, 13.5, 20.0, 100.0, 200.0, 204.0))
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    path = log_file(tmp_path)
    with open_logger(JSON_ONLY, path) as logger:
        log = TrainingLog(logger, path)
        log.resume(0)
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0})
    with open_logger(JSON_ONLY, path) as logger:
        log = TrainingLog(logger, path)
        log.resume(2)
        log.write(3, {"loss": 1.0})
    assert [record["seconds"] for record in read_log(path)] == [1.0, 3.5, 7.5]
