"""Origin of a run: nothing of folders, users and keys, and nothing lost with a line."""

from __future__ import annotations

import dataclasses
import getpass
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import launch, provenance
from experiments.build import build
from experiments.config import base_config
from experiments.provenance import ROOT, Session
from experiments.run_folder import RunError, RunFolder
from experiments.stages import imagine

MADE = Session("train", "python x.py", "0123abcd", "jax 1", "2 cores", "2026-11-28 12:00 UTC", 60.0)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--stage=report", "--stage=report"),
        ("--workdir=/home/somebody/runs/t1", "--workdir=.../t1"),
        ("--workdir=runs/t1", "--workdir=runs/t1"),
        ("/home/somebody/runs/t1", ".../t1"),
        ("--config.data.path=~somebody/talks.jsonl", "--config.data.path=.../talks.jsonl"),
        ("--config.methods=bc,/home/somebody/sarsa.py", "--config.methods=bc,.../sarsa.py"),
        ("--config.llm.base_url=http://u:p@host/v1", "--config.llm.base_url=http://host/v1"),
    ],
)
def test_a_command_shows_no_folder_of_a_user_and_no_password(word: str, shown: str):
    program = str(ROOT / "experiments" / "teaching.py")
    found = provenance.command([program, word])
    assert found == f"python experiments/teaching.py {shown}"


def test_a_key_in_a_command_is_not_shown(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef")
    assert "0123456789" not in provenance.command(["x.py", "--config.x=sk-ant-0123456789abcdef"])


def test_a_session_says_code_and_machine_and_nothing_of_who_and_where():
    made = provenance.session("train", [str(ROOT / "experiments/travel.py")], 1.5)
    said = " ".join(str(value) for value in dataclasses.asdict(made).values())
    assert "jax " in made.versions and "Python 3" in made.versions
    assert "cores" in made.machine and "GB of memory" in made.machine
    assert made.commit and made.date.endswith("UTC")
    assert str(ROOT) not in said and str(Path.home()) + "/" not in said
    assert socket.gethostname() not in said or len(socket.gethostname()) < 4
    assert getpass.getuser() not in made.command


def test_sessions_are_read_back_and_a_damaged_line_costs_itself_alone(tmp_path: Path):
    path = tmp_path / "sessions.jsonl"
    assert provenance.read_sessions(path) == []
    later = dataclasses.replace(MADE, stage="evaluate", date="2026-11-28 13:00 UTC", seconds=9.0)
    provenance.record(path, MADE)
    with path.open("a") as file:
        file.write('{"stage": "evaluate"}\n[1]\n{"sta\n')
    provenance.record(path, later)
    provenance.record(path, dataclasses.replace(MADE, seconds=0.1))  # was done before
    assert provenance.read_sessions(path) == [MADE, later]
    other = dataclasses.replace(MADE, commit="4567")
    groups = provenance.together([MADE, later, other])
    assert groups == [
        (MADE, "2026-11-28 12:00 UTC to 2026-11-28 13:00 UTC", "train 60 s, evaluate 9 s"),
        (other, "2026-11-28 12:00 UTC", "train 60 s"),
    ]


@pytest.mark.parametrize("end", [KeyboardInterrupt, RunError])
def test_an_interrupted_stage_leaves_its_seconds(tmp_path: Path, monkeypatch, end):
    monkeypatch.setattr(provenance, "_AT_ONCE", 0.0)
    monkeypatch.setattr(sys, "argv", ["x.py"])
    folder, ends = RunFolder(tmp_path), [end("stopped"), None]

    def imagine_until_it_ends(*_):
        if error := ends.pop(0):
            raise error

    monkeypatch.setattr(imagine, "run", imagine_until_it_ends)
    experiment, console = build(base_config()), Console(quiet=True)
    with pytest.raises(end):
        launch._run_stage("imagine", experiment, folder, console)
    launch._run_stage("imagine", experiment, folder, console)
    made = provenance.read_sessions(folder.sessions)
    assert [each.stage for each in made] == ["imagine", "imagine"]
    [(_, _, stages)] = provenance.together([dataclasses.replace(each, seconds=30) for each in made])
    assert stages == "imagine 60 s"


def test_an_error_is_told_where_its_session_cannot_be_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(provenance, "_AT_ONCE", 0.0)
    with (
        pytest.raises(RunError, match="stopped"),
        provenance.recorded_if_interrupted(tmp_path, "train", ["x.py"]),
    ):
        raise RunError("stopped")
