"""The evaluation talks to LLMs: through the launcher, over real HTTP on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages_server import MessagesServer
from test_experiments import ROOT, TINY, flattened

KEY = "sk-a-secret-that-stays-in-the-environment"
PRICES = ("--config.llm.price_input=3.0", "--config.llm.price_output=15.0")


def answer(body: dict) -> str:
    """Sensible answers, told apart by the fields that the schema asks for."""
    fields = set(body["output_config"]["format"]["schema"]["properties"])
    said = body["messages"][-1]["content"]
    if "rating" in fields:
        return json.dumps({"reason": "It was fine.", "rating": 1 + len(said) % 5})
    if "ambiguous" in fields:
        return json.dumps({"missing": "what they know", "ambiguous": True})
    line = {"text": "A function that calls itself. Goodbye!", "ends": said.count("\n\n") > 2}
    if "reasoning" in fields:
        return json.dumps({"reasoning": "Hm.", "line": line})
    return json.dumps(line)


@pytest.fixture(scope="module")
def server() -> Iterator[MessagesServer]:
    with MessagesServer(answer) as server:
        yield server


def launch(server: MessagesServer, *arguments: str, key: str = KEY) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANTHROPIC")}
    environment |= {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}
    if key:
        environment["ANTHROPIC_API_KEY"] = key
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "teaching.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )


def llm(server: MessagesServer) -> tuple[str, ...]:
    return ("--config.llm.model=tiny-1", f"--config.llm.base_url={server.url}", *PRICES)


@pytest.fixture(scope="module")
def trained(server: MessagesServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run as it is without LLMs."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    result = launch(server, f"--workdir={folder}", *TINY, key="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not server.calls
    return folder


@pytest.fixture(scope="module")
def with_agents(server: MessagesServer, trained: Path) -> Path:
    """The same run, prompted agents added when it was finished."""
    folder = Path(shutil.copytree(trained, trained.with_name("agents")))
    result = launch(
        server,
        f"--workdir={folder}",
        "--config.evaluation.prompted=plain,clam",
        "--config.evaluation.prompted_episodes=3",
        *llm(server),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def with_human(server: MessagesServer, trained: Path) -> Path:
    """The same networks, judged by humans who are played by an LLM."""
    folder = Path(shutil.copytree(trained, trained.with_name("human")))
    forget_evaluation(folder)
    result = launch(
        server,
        f"--workdir={folder}",
        "--config.evaluation.human=prompted",
        "--config.evaluation.prompted=reasoning",
        *llm(server),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


def forget_evaluation(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation.json").unlink()


def evaluation_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def conversations_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "conversations.jsonl").open()]


def test_prompted_agents_are_rows_with_calls_and_cost(with_agents: Path):
    for population, part in evaluation_of(with_agents)["population"].items():
        for name, calls_a_turn in (("plain", 1), ("clam", 2)):
            row = part["methods"][name]
            assert row["episodes"] == 3, population
            assert row["calls"] == pytest.approx(calls_a_turn * row["turns"])
            assert row["cost"] > 0
            assert row["model"] == "tiny-1" and f"{name}" in row["prompt"]
            assert row["normalized"] is not None
            for empty in ("seeds", "train_seconds", "decoding"):
                assert row[empty] is None
        pairs = {(t["a"], t["b"]): t for t in part["tests"]}
        assert pairs["ilql", "plain"]["p_holm"] > 0
        assert pairs["ilql", "plain"]["episodes"] == 3


def test_prompted_agents_are_in_table_and_report(with_agents: Path):
    output = (with_agents / "output.txt").read_text()
    assert "plain prompt" in output and "CLAM" in output
    assert "calls" in output and "cost" in output
    page = (with_agents / "report.html").read_text()
    assert "plain prompt" in page and "CLAM" in page


def test_without_prompted_agents_the_table_has_no_calls(trained: Path, server: MessagesServer):
    page = (trained / "report.html").read_text()
    assert "<th>calls</th>" not in page and "<th>cost</th>" not in page


@pytest.mark.parametrize("run", ["with_agents", "with_human"])
def test_episode_for_episode_the_same_humans(run: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(run)
    personas: dict[tuple, set] = {}
    methods: dict[tuple, set] = {}
    for dialogue in conversations_of(folder):
        source = dialogue["source"]
        episode = (source["population"], source["episode"])
        opening = dialogue["messages"][0]["content"]
        personas.setdefault(episode, set()).add(json.dumps([dialogue["persona"], opening]))
        methods.setdefault(episode, set()).add(source["method"])
    assert all(len(each) == 1 for each in personas.values())
    agents = {"plain", "clam"} if run == "with_agents" else {"reasoning"}
    assert methods["average", 0] == methods["difficult", 2] == {"bc", "ilql"} | agents


def test_played_humans_are_those_of_the_world(trained: Path, with_human: Path):
    def personas(folder: Path) -> dict:
        return {d["id"]: d["persona"] for d in conversations_of(folder)}

    of_world = personas(trained)
    played = personas(with_human)
    assert of_world == {key: played[key] for key in of_world}


def test_played_humans_have_no_normalized_score_but_names_and_slips(with_human: Path):
    evaluation = evaluation_of(with_human)
    human = evaluation["human"]
    assert human["kind"] == "prompted" and human["model"] == "tiny-1"
    assert human["prompt"].startswith("human/") and human["rating_prompt"].startswith("rate/")
    for part in evaluation["population"].values():
        assert part["references"] == {}
        for row in part["methods"].values():
            assert row["normalized"] is None and row["normalized_ci95"] is None
            assert 1 <= row["mean_reward"] <= 5
            assert row["not_understood"] is None
            assert row["human_calls"] > 0 and row["human_cost"] > 0
            assert set(row["slips"]) == {
                "speaks_for_agent",
                "reveals_persona",
                "goes_on_after_end",
            }
        assert part["methods"]["bc"]["decoding"] == "greedy"
    assert "normalized" not in (with_human / "output.txt").read_text()
    page = (with_human / "report.html").read_text()
    assert "<th>normalized score</th>" not in page and "exact optimum" not in page
    assert "tiny-1" in page and "goes on after end" in page


@pytest.mark.parametrize("run", ["with_agents", "with_human"])
def test_evaluating_again_makes_no_call(
    run: str, request: pytest.FixtureRequest, server: MessagesServer, tmp_path: Path
):
    folder = Path(shutil.copytree(request.getfixturevalue(run), tmp_path / "again"))
    before = evaluation_of(folder)
    forget_evaluation(folder)  # as if it had been killed, but for the answers on disk
    calls = len(server.calls)
    result = launch(server, f"--workdir={folder}", "--stage=evaluate", key="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(server.calls) == calls
    assert evaluation_of(folder) == before


def test_the_key_is_in_no_file(with_agents: Path, with_human: Path, server: MessagesServer):
    assert {call.key for call in server.calls} == {KEY}
    for folder in (with_agents, with_human):
        assert (folder / "llm" / "cache.jsonl").exists()
        for path in folder.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.evaluation.prompted=plain,oracle"], "'oracle'; there are plain, reasoning"),
        (["--config.evaluation.prompted=clam,clam"], "name each agent once"),
        (["--config.evaluation.prompted=plain"], "config.llm.model must be the name of a model"),
        (["--config.evaluation.human=prompted"], "config.llm.model must be the name of a model"),
        (["--config.evaluation.human=robot"], "must be one of world, prompted"),
        (["--config.evaluation.prompted_episodes=-1"], "prompted_episodes is -1"),
        (["--config.llm.max_in_flight=0"], "config.llm.max_in_flight must be a whole number"),
        (["--config.llm.model=m", "--config.llm.base_url=here"], "config.llm.base_url must be"),
    ],
)
def test_bad_settings_are_told_before_any_work(arguments: list[str], expected: str):
    from experiments import config as settings
    from experiments.launch import parse_flags

    with pytest.raises(settings.ConfigError, match="config") as caught:
        config = settings.base_config()
        config.task.world = "teaching"
        settings.check(parse_flags("teaching", config, ["teaching.py", *arguments])[2])
    assert expected in flattened(str(caught.value))
