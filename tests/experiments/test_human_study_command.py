"""`experiments/study.py`: pilot, report and power from the command line, and what is told."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from pathlib import Path

import httpx2
import pytest
from rich.console import Console

from experiments import study
from experiments.human_study.config import StudyConfig
from experiments.human_study.questionnaire import FOLDER
from ilql_jax.errors import UserError

AGENTS = "world:teaching:optimum,world:teaching:confused"


def command(*arguments: str) -> str:
    output = io.StringIO()
    study.run(["study.py", *arguments], Console(file=output, width=100))
    return output.getvalue()


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a pilot of eight simulated participants."""
    folder = tmp_path_factory.mktemp("pilot") / "s"
    output = command(f"--runs={AGENTS}", f"--folder={folder}", "--pilot=8")
    return folder.with_name("s-pilot"), output


def test_a_pilot_goes_through_the_pages_and_finds_the_better_agent(pilot: tuple[Path, str]):
    folder, output = pilot
    assert "teaching:optimum has the highest mean" in output
    assert "It is above teaching:confused" in output and "not people" in output
    assert "8 took part, 8 finished" in output and "Spearman" in output
    assert "Agreement of raters" in output
    with sqlite3.connect(folder / "study.sqlite") as db:
        rows = db.execute(
            "SELECT count(*) FROM participants WHERE kind = 'talker' GROUP BY row"
        ).fetchall()
        assert rows == [(4,), (4,)]
        texts = db.execute("SELECT text FROM messages WHERE speaker = 'human'").fetchall()
        assert len(texts) > 30
    record = json.loads((folder / "study.json").read_text())
    assert record["simulated"] and record["ranking"]["teaching:optimum"][0] > 0.6
    assert (folder / "study_report.html").exists() and (folder / "conversations.jsonl").exists()


def test_the_report_needs_the_folder_alone_and_the_reward_is_a_rating_by_config(pilot):
    folder, _ = pilot
    output = command("--report", f"--folder={folder}", "--reward=goal")
    assert "“How well did the tutor teach you?”" in output
    [first, *_] = (folder / "conversations.jsonl").read_text().splitlines()
    record = json.loads(first)
    assert record["reward"] == record["source"]["ratings"]["goal"]


def test_power_says_how_many_participants_it_takes():
    output = command("--power", "--effect=2", "--spread=0.6", f"--runs={AGENTS}")
    assert "two of 2 agents differ by 2" in output and "participants find it" in output


def test_help_is_complete(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["study.py", "--help"])
    study.main()
    shown = capsys.readouterr().out
    for field in StudyConfig.__dataclass_fields__:
        assert f"--{field}" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "No agent is named"),
        (["--runs=world:teaching:nobody"], "has lecturer"),
        (["--runs=nowhere/run"], "nowhere/run"),
        (["--run=x"], "Did you mean --runs"),
        (["--pilot=-1"], "at least 0|must lie in"),
        (["--return_url=javascript:alert(1)"], "https://"),
        ([f"--runs={AGENTS}", "--reward=beauty"], "the questions are goal"),
        ([f"--runs={AGENTS}", "--questionnaire=none.yaml"], "cannot be read"),
        (["--report", "--folder=none"], "holds no study yet"),
        (["--pilot=1", "--judge", "--runs=world:teaching:optimum"], "the LLM of a run"),
        (["--pilot=2", "--runs=world:teaching:optimum,world:travel:optimum"], "one embedded world"),
    ],
)
def test_what_cannot_be_is_told_before_anybody_can_begin(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if not any(each.startswith(("--report", "--pilot")) for each in arguments):
        arguments = [*arguments, "--port=0"]
    with pytest.raises(UserError, match=told):
        command(*arguments)


def test_an_agent_that_cannot_begin_is_told(tmp_path: Path):
    text = (FOLDER / "teaching.yaml").read_text("utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("opens: human", "opens: agent"), "utf-8")
    with pytest.raises(UserError, match="write opens: human"):
        command(
            f"--runs={AGENTS}", f"--questionnaire={path}", "--pilot=1", f"--folder={tmp_path}/s"
        )


def test_what_is_served_answers_to_its_names_and_counts_by_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []

    async def ask(app) -> None:
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://study.example"
        ) as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert (await client.get("/admin")).status_code == 200
            other = await client.get("/", headers={"Host": "evil.example"})
            assert other.status_code == 421
            flood = {"X-Forwarded-For": "203.0.113.5"}
            for _ in range(40):
                limited = await client.get("/healthz", headers=flood)
            assert limited.status_code == 429
            assert (await client.get("/healthz")).status_code == 200

    def run(app, where, listening, lines, console) -> None:
        said.extend(lines)
        asyncio.run(ask(app))
        with pytest.raises(UserError, match=r"another process.*--folder"):
            command(f"--runs={AGENTS}", f"--folder={tmp_path}", "--port=0")

    monkeypatch.setattr("experiments.serving.web.run", run)
    monkeypatch.setenv("STUDY_TOKEN", "a token that nobody guesses")
    arguments = ("--port=0", "--behind_tls", "--names=study.example", "--requests_per_second=1")
    command(f"--runs={AGENTS}", f"--folder={tmp_path}", *arguments)
    assert "http://127.0.0.1:" in said[0] and "/admin" in said[2]
    monkeypatch.setenv("STUDY_TOKEN", "short")
    with pytest.raises(UserError, match="can be guessed"):
        command(f"--runs={AGENTS}", f"--folder={tmp_path}", "--port=0")
