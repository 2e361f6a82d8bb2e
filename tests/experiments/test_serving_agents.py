"""Loading agents by their specs, and what each kind of them answers."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import shutil
from pathlib import Path

import pytest
from messages_server import MessagesServer
from rich.console import Console
from served import SAID, Parrot, run_folder

from experiments.run_folder import Unit
from experiments.serving.agents import AgentSettings, Guarded, close_agents, load_agents
from experiments.serving.answer import AgentError, Answer, ConversationError, HungError
from experiments.serving.runs import open_run
from experiments.stages import chat, export
from ilql_jax.errors import UserError
from imagination.dialogue import Turn

HI = [Turn("human", "Hi! Can you teach me fractions?")]
QUICK = AgentSettings(batch_size=4, warm_up=False, cache_megabytes=1.0)
KEY = "sk-" + "k" * 40


def answers(agents, *conversations, seed=0, system=None):
    """Answers of each agent to each of the conversations; then they are closed."""

    async def talk():
        try:
            return {
                name: [await agent.answer(turns, seed, system) for turns in conversations]
                for name, agent in agents.items()
            }
        finally:
            await close_agents(agents)

    return asyncio.run(talk())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "of:today"
    changes = {"chat.notice": "It only teaches."}
    run_folder(path, (Unit("ilql", 0), Unit("ilql", 2)), **changes)
    return path


# --- networks of a run --------------------------------------------------------------------------


def test_the_methods_of_a_run_are_served_with_training_and_decoding(run: Path):
    output = io.StringIO()
    specs = [str(run), f"{run}:ilql-seed2", f"{run}:ilql:greedy"]
    agents = load_agents(specs, QUICK, console=Console(file=output))
    assert list(agents) == ["ilql", "ilql-seed2", "ilql:greedy"]
    assert "bc-seed0 is not trained" in " ".join(output.getvalue().split())
    assert {agent.notice for agent in agents.values()} == {"It only teaches."}
    assert not any(agent.opens for agent in agents.values())
    answers({"ilql:greedy": agents.pop("ilql:greedy")})
    found = answers(agents, HI, SAID[:3])
    assert found["ilql"][0].details["decoding"] == "sampled, best of 2"
    # The same network, as its first training's and its third's.
    assert found["ilql"][0].text == found["ilql-seed2"][0].text
    assert found["ilql"][1].details["candidates"]


def test_agents_of_the_same_name_are_called_by_their_whole_spec(run: Path, tmp_path: Path):
    other = run_folder(tmp_path / "other", (Unit("ilql", 0),)).path
    agents = load_agents([f"{run}:ilql", f"{other}:ilql"], QUICK)
    assert list(agents) == [f"{run}:ilql", f"{other}:ilql"]
    answers(agents)
    with pytest.raises(UserError, match="named twice"):
        load_agents([str(run), f"{run}:ilql"], QUICK)


def test_what_a_folder_alone_names_is_not_executed(tmp_path: Path):
    path = run_folder(tmp_path / "run").path
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("world: teaching", f"world: {evil}"))
    with pytest.raises(UserError, match=r"Add --config\.task\.world="):
        load_agents([str(path)], QUICK)
    named = file.read_text()
    file.write_text(named.replace("experiment: teaching", "experiment: ../../evil"))
    with pytest.raises(UserError, match=r"Add --config\.task\.world="):
        load_agents([str(path)], QUICK)
    assert not (tmp_path / "executed").exists()
    agents = load_agents([str(path)], QUICK, ["--config.task.world=teaching"])
    assert answers(agents, HI)["ilql"][0].details["agent"] == "trained"


def served(path: Path) -> None:
    load_agents([str(path)], QUICK)


def chatted(path: Path) -> None:
    chat.run(*open_run(str(path)), Console(quiet=True))


def exported(path: Path) -> None:
    experiment, folder = open_run(str(path), ["--config.export.method=ilql"])
    export.run(experiment, folder, Console(quiet=True))


@pytest.mark.parametrize("program", [served, chatted, exported])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dialogues.jsonl", r"dialogues\.jsonl is missing, .* with --workdir=.* --stage=imagine"),
        ("tokenizer", r"tokenizer is missing, .*run --stage=train again"),
        ("checkpoints", r"ilql-seed0 holds no checkpoint any more: .*--workdir=.* --stage=train"),
        ("metrics", r"run holds no trained .*(--workdir=|--stage=)"),
        ("config.yaml", r"run holds no run: no config\.yaml .* again with --workdir="),
    ],
)
def test_what_is_missing_in_a_run_is_named_with_the_way_out(
    program, name: str, told: str, run: Path, tmp_path: Path
):
    path = shutil.copytree(run, tmp_path / "run")
    missing = path / name
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    with pytest.raises(UserError, match=told):
        program(path)


@pytest.mark.parametrize("program", [served, chatted])
def test_a_run_without_dialogues_is_told(program, run: Path, tmp_path: Path):
    path = shutil.copytree(run, tmp_path / "run")
    (path / "dialogues.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"dialogues\.jsonl holds no dialogue\. Delete it, and run"):
        program(path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere\. Give that of a run"):
        open_run(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("RUN:nonsense", "no method 'nonsense'"),
        ("RUN:bc", r"no trained agent \(bc-seed0\)"),
        ("RUN:ilql-seed1", r"no trained agent \(ilql-seed1\)"),
        ("RUN:ilql:greedy, steered by 3", "steer"),
        ("prompted:RUN:plain", r"Add --config\.evaluation\.prompted=plain"),
        ("tests", "holds no run"),
        ("world:nowhere:optimum", "unknown world 'nowhere'"),
        ("world:teaching:angry", "has .*optimum"),
    ],
)
def test_specs_that_name_no_agent_are_told_before_any_is_loaded(run: Path, spec, told, monkeypatch):
    monkeypatch.setattr("experiments.serving.agents.load_agent", pytest.fail)
    with pytest.raises(UserError, match=told):
        load_agents([f"{run}:ilql", spec.replace("RUN", str(run))], QUICK)


def test_no_agent_at_all_is_told():
    with pytest.raises(UserError, match="no agent is named"):
        load_agents([])


# --- agents of a world --------------------------------------------------------------------------


def test_agents_of_a_world_answer_and_say_their_act():
    agents = load_agents(["world:teaching:optimum", "world:teaching:questionnaire"], QUICK)
    found = answers(agents, HI, SAID[:3], [Turn("human", "\0 <b>?"), *SAID[1:3]], system="Be kind.")
    assert list(found) == ["teaching:optimum", "teaching:questionnaire"]
    for name, told in found.items():
        for answer in told:
            assert answer.text and answer.details["act"]
            assert answer.details["behaviour"] == name.partition(":")[2]
            assert "ignored" in answer.details["system_message"]


def test_the_same_seed_gives_the_same_words_and_another_others():
    agents = load_agents(["world:teaching:questionnaire"], QUICK)

    async def talk():
        agent = agents["teaching:questionnaire"]
        said = [(await agent.answer(HI, seed)).text for seed in (1, 1, *range(9))]
        with pytest.raises(ConversationError, match="last message"):
            await agent.answer([], 0)
        await close_agents(agents)
        return said

    said = asyncio.run(talk())
    assert said[0] == said[1] and len(set(said)) > 1


# --- other servers and prompted LLMs ------------------------------------------------------------


def test_a_server_that_speaks_chat_completions_is_an_agent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with MessagesServer(lambda body: f"{len(body['messages'])} messages") as server:
        priced = dataclasses.replace(QUICK, price_input=2)
        agents = load_agents([f"chat:{server.url}/v1#some/model"], priced)
        found = answers(agents, SAID[:3], system="Be kind.")
    [answer] = found["some/model"]
    assert answer.text == "4 messages" and answer.details["model"] == "some/model"
    told = answer.details
    assert told["completion_tokens"] > 0 and told["calls"] == 1
    assert told["tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    assert told["cost"] == pytest.approx(2e-6 * told["prompt_tokens"])
    [call] = server.calls
    roles = [each["role"] for each in call.body["messages"]]
    assert roles == ["system", "user", "assistant", "user"] and call.key == KEY


def test_a_server_that_gives_no_answer_fails_the_agent_without_its_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with MessagesServer(lambda body: "", schedule=["401", "empty"], echo_key=True) as server:
        agents = load_agents([f"chat:{server.url}/v1#m"], QUICK)

        async def talk():
            for calls in (0, 1):  # what was refused cost nothing
                with pytest.raises(AgentError, match="gave") as caught:
                    await agents["m"].answer(HI, 0)
                assert KEY not in str(caught.value)
                assert caught.value.spent.get("calls", 0) == calls
            await close_agents(agents)

        asyncio.run(talk())


def test_prompted_agents_answer_through_the_runs_client_and_stop_at_its_limit(tmp_path: Path):
    def line(body):
        return '{"text": "What do you like?", "ends": false}'

    with MessagesServer(line) as server:
        path = run_folder(tmp_path / "run").path
        prices = {"price_input": 3, "price_output": 15, "max_tokens": 100, "max_cost": 0.004}
        settings = {"model": "small", "base_url": server.url, **prices}
        overrides = [f"--config.llm.{name}={value}" for name, value in settings.items()]
        overrides.append("--config.evaluation.prompted=plain,reasoning")
        agents = load_agents([f"prompted:{path}:plain"], QUICK, overrides)
        with pytest.raises(UserError, match="another process"):  # its client writes there
            load_agents([f"prompted:{path}:plain"], QUICK, overrides)

        async def talk():
            agent = agents["plain"]
            first = await agent.answer(HI, 1)
            again = await agent.answer(HI, 1)
            with pytest.raises(AgentError, match="max_cost"):
                for seed in range(100):
                    await agent.answer(HI, seed + 2)
            await close_agents(agents)
            return first, again

        first, again = asyncio.run(talk())
        assert 1 <= len(server.calls) < 15
        # The folder is free again; it has what was spent, and no word of what was said.
        with pytest.raises(AgentError, match="max_cost"):
            answers(load_agents([f"prompted:{path}:plain"], QUICK, overrides), SAID[:1])
    assert first.text == again.text == "What do you like?"
    assert first.details["model"] == "small" and first.details["calls"] == 1
    assert first.details["tokens"] > 0 and first.details["cost"] > 0
    kept = "".join(file.read_text("utf-8") for file in path.rglob("cache.jsonl"))
    assert "dropped_cost" in kept and "fractions" not in kept and "you like" not in kept


# --- guards -------------------------------------------------------------------------------------


def test_an_agent_that_hangs_or_crashes_is_given_up():
    async def hang(_):
        await asyncio.sleep(60)

    async def crash(_):
        raise KeyError("secret")

    async def talk():
        with pytest.raises(HungError, match=r"within 0\.01 s"):
            await Guarded(Parrot("hang", hang), 0.01).answer(HI, 0)
        with pytest.raises(AgentError) as caught:
            await Guarded(Parrot("crash", crash), 5).answer(HI, 0)
        assert "secret" not in str(caught.value)

    asyncio.run(talk())


@pytest.mark.parametrize(
    "turns", [[], SAID[:2], [Turn("human", " ")], [*SAID, Turn("human", "\n\t")]]
)
def test_nothing_is_answered_where_nothing_was_said(turns):
    async def talk(opens: bool) -> Answer:
        parrot = Parrot("parrot")
        parrot.opens = opens
        return await Guarded(parrot, 5).answer(turns, 0)

    with pytest.raises(ConversationError, match="last message"):
        asyncio.run(talk(opens=False))
    if not turns:
        assert asyncio.run(talk(opens=True)).text == "Hello."


def test_all_are_closed_where_one_fails_to():
    class Stuck(Parrot):
        async def close(self):
            raise RuntimeError

    agents = {"stuck": Stuck("stuck"), "parrot": Parrot("parrot")}
    asyncio.run(close_agents(agents))
    assert agents["parrot"].is_closed
