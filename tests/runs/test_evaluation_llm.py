"""The evaluation talks to LLMs: through the launcher, over real HTTP on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import warm_start
from launching import ROOT, TINY
from messages_server import MessagesServer
from ml_collections import ConfigDict

from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import ConfigError, base_config
from experiments.evaluation import prompted, statistics
from experiments.evaluation.comparison import compare_units
from experiments.evaluation.summary import Evaluation, HumanPlayer, UnitResult
from experiments.report import tables
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.stamps import begin_stage, check_stage
from imagination.simulation import load_world

KEY = "sk-a-secret-that-stays-in-the-environment"
PRICES = ("--config.llm.price_input=3.0", "--config.llm.price_output=15.0")


def answer(body: dict) -> str:
    """Sensible answers, told apart by the fields that the schema asks for."""
    fields = set(body["output_config"]["format"]["schema"]["properties"])
    said = body["messages"][-1]["content"]
    if "rating" in fields:
        return json.dumps({"reason": "It was fine.", "rating": len(said) % 5 / 4})
    if "acts" in fields:
        return json.dumps({"acts": [{"name": f"act {i}", "description": "do"} for i in range(6)]})
    if "weights" in fields:
        return json.dumps({"weights": [{"act": "act 1", "weight": 90}]})
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
    return warm_start.run(
        [sys.executable, str(ROOT / "experiments" / "teaching.py"), *arguments],
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
    result = launch(server, f"--workdir={folder}", *TINY, "--stage=evaluate", key="")
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
        "--config.evaluation.prompted=plain,clam,gdp_zero",
        "--config.evaluation.gdp_zero.simulations=4",
        "--config.evaluation.prompted_episodes=3",
        *llm(server),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def with_human(server: MessagesServer, trained: Path) -> Path:
    """The same networks, judged by humans who are played by an LLM other than the agents'."""
    folder = Path(shutil.copytree(trained, trained.with_name("human")))
    forget_evaluation(folder)
    result = launch(
        server,
        f"--workdir={folder}",
        "--config.evaluation.human=prompted",
        "--config.evaluation.prompted=reasoning",
        "--config.evaluation.player.model=player-1",
        "--config.evaluation.player.price_input=3.0",
        "--config.evaluation.player.price_output=15.0",
        *llm(server),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


def forget_evaluation(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation.json").unlink()


def evaluation_of(folder: Path) -> Evaluation:
    return Evaluation.read(folder / "evaluation.json")


def conversations_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "conversations.jsonl").open()]


def test_a_run_without_llm_never_loads_the_sdk():
    script = """
import sys
from experiments import checks, launch, teaching
from experiments.stages import chat, evaluate, imagine, train
from experiments.report import page
checks.checked(teaching.get_config())
import imagination.engine, imagination.llm, imagination.agents
sys.exit("anthropic" in sys.modules)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment).returncode == 0


def test_prompted_agents_are_rows_with_calls_and_cost(with_agents: Path):
    for population, part in evaluation_of(with_agents).population.items():
        for name, calls_a_turn in (("plain", 1), ("clam", 2)):
            scores = part.methods[name]
            assert scores.episodes == 3, population
            assert scores.normalized is not None and scores.trainings == ()
            agent = scores.prompted_agent
            assert agent.calls == pytest.approx(calls_a_turn * scores.turns)
            assert agent.cost > 0 and agent.setup_calls is None
            assert agent.model == "tiny-1" and name in agent.prompt
        tree = part.methods["gdp_zero"].prompted_agent
        assert tree.search["simulations"] == 4
        assert tree.calls > 10 and tree.setup_calls == 1 and tree.setup_cost > 0
        assert part.methods["ilql"].prompted_agent is None
        pairs = {(test.a, test.b): test for test in part.tests}
        assert pairs["ilql", "plain"].p_holm > 0
        assert pairs["ilql", "plain"].episodes == 3


def test_the_tree_search_walks_as_often_as_asked(with_agents: Path):
    turns = [
        message["annotations"]
        for dialogue in conversations_of(with_agents)
        if dialogue["source"]["method"] == "gdp_zero"
        for message in dialogue["messages"]
        if message["role"] == "assistant"
    ]
    assert turns and {sum(notes["visits"].values()) for notes in turns} == {4}


def test_prompted_agents_are_in_table_and_report(with_agents: Path):
    output = (with_agents / "output.txt").read_text()
    assert "plain prompt" in output and "CLAM" in output
    assert "calls" in output and "cost" in output
    page = (with_agents / "report.html").read_text()
    assert "plain prompt" in page and "CLAM" in page


def test_without_prompted_agents_the_table_has_no_calls(trained: Path):
    table = tables.markdown(evaluation_of(trained))
    assert "normalized" in table and "calls" not in table and "cost" not in table


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
    agents = {"plain", "clam", "gdp_zero"} if run == "with_agents" else {"reasoning"}
    assert methods["average", 0] == methods["difficult", 2] == {"bc", "ilql"} | agents


def test_played_humans_are_those_of_the_world(trained: Path, with_human: Path):
    def personas(folder: Path) -> dict:
        return {d["id"]: d["persona"] for d in conversations_of(folder)}

    of_world = personas(trained)
    played = personas(with_human)
    assert of_world == {key: played[key] for key in of_world}


def test_played_humans_have_no_normalized_score_but_names_and_slips(with_human: Path):
    evaluation = evaluation_of(with_human)
    assert evaluation.human.model == "player-1"
    agents = [part.methods["reasoning"].prompted_agent for part in evaluation.population.values()]
    assert {agent.model for agent in agents} == {"tiny-1"}
    assert evaluation.human.prompt.startswith("human/turn/")
    assert evaluation.human.rating_prompt.startswith("human/rating/")
    for part in evaluation.population.values():
        assert part.references is None
        for scores in part.methods.values():
            assert scores.normalized is None and scores.normalized_ci95 is None
            assert 0 <= scores.mean_reward <= 1
            assert scores.not_understood is None
            assert scores.played_human.calls > 0 and scores.played_human.cost > 0
            assert set(scores.played_human.slips) == {
                "speaks_for_agent",
                "reveals_persona",
                "goes_on_after_end",
            }
        assert part.methods["bc"].decoding == "greedy"
    output = (with_human / "output.txt").read_text()
    assert "normalized" not in output and "in conversation, with tiny-1 and player-1." in output
    page = (with_human / "report.html").read_text()
    assert "<th>normalized score</th>" not in page and "exact optimum" not in page
    assert "player-1" in page and "goes on after the end" in page


def test_evaluating_again_makes_no_call(with_human: Path, server: MessagesServer, tmp_path: Path):
    folder = Path(shutil.copytree(with_human, tmp_path / "again"))
    before = evaluation_of(folder)
    forget_evaluation(folder)  # as if it had been killed, but for the answers on disk
    calls = len(server.calls)
    # What is only about getting answers may change.
    operational = ("--config.llm.max_in_flight=2", "--config.llm.max_cost=9.0")
    # The address is not taken from the folder alone.
    arguments = ("--stage=evaluate", f"--config.llm.base_url={server.url}", *operational)
    result = launch(server, f"--workdir={folder}", *arguments, key="")
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
        (["--config.evaluation.prompted=plain,oracle"], "'oracle'), but must be plain, reasoning"),
        (["--config.evaluation.prompted=clam,clam"], "must name each agent once"),
        (["--config.evaluation.prompted=plain"], "config.llm.model is '', but must be the name"),
        (["--config.evaluation.human=prompted"], "config.llm.model is '', but must be the name"),
        (["--config.evaluation.human=robot"], "must be world or prompted"),
        (["--config.evaluation.prompted_episodes=-1"], "prompted_episodes is -1"),
        (
            ["--config.evaluation.gdp_zero.simulations=0"],
            "config.evaluation.gdp_zero.simulations is 0",
        ),
        (["--config.evaluation.gdp_zero.q_0=2.0"], "config.evaluation.gdp_zero.q_0 is 2.0"),
        (["--config.llm.max_in_flight=0"], "config.llm.max_in_flight is 0, but must lie in"),
        (
            ["--config.llm.model=m", "--config.llm.base_url=here"],
            "config.llm.base_url is 'here', but must",
        ),
    ],
)
def test_bad_settings_are_told_before_any_work(arguments: list[str], expected: str):
    with pytest.raises(ConfigError) as caught:
        checked(config_with(*arguments))
    assert expected in str(caught.value)


def config_with(*arguments: str) -> ConfigDict:
    config = base_config()
    config.task.world = "teaching"
    return parse("teaching", config, ["teaching.py", *arguments]).config


def test_a_run_on_real_dialogues_has_nobody_to_talk_with():
    config = config_with("--config.evaluation.prompted=plain", "--config.llm.model=m")
    config.data.source = "persuasionforgood"
    with pytest.raises(ConfigError, match="set apart, where nobody talks"):
        checked(config)


def test_acts_of_the_tree_search_are_given_in_the_experiments_file():
    config = config_with()
    config.evaluation.gdp_zero.acts = {"ask": "Asks what is known."}
    with pytest.raises(ConfigError, match=r"config\.evaluation\.gdp_zero\.acts is"):
        checked(config)
    config.evaluation.gdp_zero.acts = {"ask": "Asks what is known.", "explain": "Explains."}
    checked(config)
    acts = prompted.agent_settings(checked(config), "gdp_zero")["acts"]
    assert acts["explain"] == "Explains."
    assert prompted.agent_settings(checked(config_with()), "gdp_zero")["acts"] is None


AGENTS = ("--config.evaluation.prompted=plain", "--config.llm.model=m")
TREE = ("--config.evaluation.prompted=plain,gdp_zero", "--config.llm.model=m")
DEEPER = "--config.evaluation.gdp_zero.simulations=20"
GUIDED = "--config.evaluation.human_guidance=They are shy."
HUMAN = ("--config.evaluation.human=prompted", "--config.llm.model=m")


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ((), AGENTS, ""),  # agents can be added
        ((), (*AGENTS, "--config.evaluation.prompted_episodes=2"), ""),
        ((), ("--config.llm.model=m",), ""),  # nobody is asked
        (AGENTS, (*AGENTS, "--config.evaluation.prompted=plain,clam"), ""),
        (AGENTS, (), ""),
        (AGENTS, (*AGENTS, "--config.llm.max_in_flight=1", "--config.llm.price_input=1.0"), ""),
        (AGENTS, (*AGENTS, "--config.llm.cache=false"), ""),
        (AGENTS, (*AGENTS, "--config.llm.model=n"), "config.llm.model was 'm', now 'n'"),
        (AGENTS, (*AGENTS, "--config.evaluation.prompted_episodes=2"), "prompted_episodes was 0"),
        (AGENTS, (*AGENTS, DEEPER), ""),  # plain has nothing of it
        (AGENTS, (*TREE, DEEPER), ""),
        (TREE, (*TREE, DEEPER), "gdp_zero.simulations was 10, now 20"),
        (AGENTS, (*AGENTS, GUIDED), ""),  # for a human whom nobody plays
        (HUMAN, (*HUMAN, GUIDED), "human_guidance was None, now 'They are shy.'"),
        ((), HUMAN, "config.evaluation.human was 'world', now 'prompted'"),
        (HUMAN, (), "config.evaluation.human was 'prompted', now 'world'"),
        (HUMAN, (*HUMAN, "--config.llm.base_url=http://b"), "config.llm.base_url was ''"),
    ],
)
def test_which_settings_make_another_evaluation(before, now, differs: str, tmp_path: Path):
    folder = RunFolder(tmp_path)
    begin_stage(folder, "evaluate", checked(config_with(*before)))
    (tmp_path / "evaluation").mkdir()
    if differs:
        with pytest.raises(RunError, match=differs):
            check_stage(folder, "evaluate", checked(config_with(*now)))
    else:
        begin_stage(folder, "evaluate", checked(config_with(*now)))
        begin_stage(folder, "evaluate", checked(config_with(*before)))


def test_agents_of_another_model_are_not_taken_for_those_that_were_left_out(tmp_path: Path):
    folder = RunFolder(tmp_path)
    (tmp_path / "evaluation").mkdir()
    begin_stage(folder, "evaluate", checked(config_with(*AGENTS)))
    begin_stage(folder, "evaluate", checked(config_with()))
    with pytest.raises(RunError, match=r"llm\.model was 'm', now 'n'"):
        check_stage(folder, "evaluate", checked(config_with(*AGENTS, "--config.llm.model=n")))


def test_episodes_without_rating_are_dropped_from_pairs():
    nan = float("nan")
    scores = {
        "ilql": np.array([[1.0, 2.0, 3.0, 9.0]]),
        "plain": np.array([[0.0, nan, 1.0]]),
        "clam": np.array([[nan, nan, nan]]),
    }
    records = {(r["a"], r["b"]): r for r in statistics.pairwise_tests(scores, seed=0)}
    assert records["ilql", "plain"]["episodes"] == 2
    assert records["ilql", "plain"]["difference"] == 1.5
    for pair in (("ilql", "clam"), ("plain", "clam")):
        assert records[pair]["episodes"] == 0
        assert records[pair]["difference"] is records[pair]["p_holm"] is None


def test_a_conversation_without_rating_is_counted_and_never_zero(with_agents: Path, tmp_path: Path):
    folder = RunFolder(shutil.copytree(with_agents, tmp_path / "unrated"))
    config = folder.saved_config()
    units = [Unit(name, 0) for name in ("bc", "ilql", "plain", "clam")]
    path = folder.unit_conversations(Unit("plain", 0))
    lines = [json.loads(line) for line in path.open()]
    for number, dialogue in enumerate(lines):
        dialogue["reward"] = None if number == 0 else 0.5
        if number == 1:
            dialogue["messages"][1]["annotations"]["failure"] = "nothing came"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_world("teaching").task
    evaluation = compare_units(folder, units, task, seed=config.seed, has_prices=True)
    part = evaluation.population["average"]
    scores = part.methods["plain"]
    assert (scores.episodes, scores.unrated, scores.broken_off) == (3, 1, 1)
    assert scores.mean_reward == 0.5
    pairs = {(test.a, test.b): test.episodes for test in part.tests}
    assert pairs["bc", "plain"] == pairs["plain", "clam"] == 2
    assert pairs["bc", "ilql"] == 4 and pairs["bc", "clam"] == 3


def test_agents_that_met_humans_of_different_prompts_are_not_compared():
    def talked_with(prompt: str | None) -> UnitResult:
        human = None if prompt is None else HumanPlayer("m", prompt, "rate/1", "")
        return UnitResult("greedy", {}, None, human, None, None)

    both = {Unit("bc", 0): talked_with("human/1"), Unit("ilql", 0): talked_with("human/2")}
    with pytest.raises(RunError, match="different humans") as caught:
        prompted.common_human(both)
    assert "bc-seed0: model 'm', prompt 'human/1'" in str(caught.value)
    both[Unit("ilql", 0)] = talked_with(None)
    with pytest.raises(RunError, match="ilql-seed0: the embedded world's"):
        prompted.common_human(both)
    assert prompted.common_human({Unit("bc", 0): talked_with("human/1")}).prompt == "human/1"
