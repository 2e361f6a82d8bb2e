"""Rounds of imagination: the smallest run with two, and settings that ask for them."""

from __future__ import annotations

import dataclasses
import io
import pickle
import shutil

import jax
import numpy as np
import pytest
from in_process import SMALLEST, run
from prompted_llm import PRICE, ScriptedClient
from rich.console import Console
from worlds import Parrot

from experiments import imagination_rounds, travel
from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import SOURCES, ConfigError
from experiments.evaluation.environment import Environment, about_imagined
from experiments.looks import look_of
from experiments.methods import in_order
from experiments.report import tables
from experiments.report.run import HeldRound
from experiments.report.run import _held_rounds as read_run_rounds
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.stages import train as stage
from experiments.stamps import begin_stage, check_stage, stamp_of
from experiments.teaching import get_config
from experiments.training_data import TrainingData
from ilql_jax.checkpoint import latest_step, restore_params
from ilql_jax.methods import MethodError
from imagination.agents import PromptedHuman
from imagination.dialogue import json_line, read_dialogues
from imagination.persona_sampling import PRIOR_PROBABILITY, persona_key
from imagination.simulation import load_world
from imagination.speakers import NO_ANSWER, Utterance

HELD = 7
FIRST, SECOND = Unit("bc_imagination1", 0), Unit("bc_imagination2", 0)
SETTINGS = (
    *(a for a in SMALLEST if not a.startswith("--config.methods")),
    "--config.methods=bc,bc_imagination1,bc_imagination2",
    f"--config.imagination.round_dialogues={HELD}",
    "--config.imagination.round_decoding=sampled",
)


def experiment(*arguments: str):
    line = parse("teaching", get_config(), ["teaching.py", *SETTINGS, *arguments])
    return checked(line.config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three methods that are trained, each on what the one before it has said."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "rounds")
    ended = run(folder.path, *SETTINGS, "--stage=train")
    assert ended.status == 0, ended.output + ended.traceback
    assert "Round 2 of imagination: bc_imagination1-seed0 held 7 rated conv" in ended.output
    return folder


def hold(folder: RunFolder, unit: Unit, *arguments: str) -> bytes:
    given = experiment(*arguments)
    imagination_rounds.hold_round(given, folder.path, unit, None, lambda *_: None)
    return folder.imagined(unit).read_bytes()


# --- who talks, and what is learned -------------------------------------------------------------


def test_each_round_is_held_by_the_agent_of_the_one_before_with_humans_of_its_own(trained):
    originals = read_dialogues(trained.dialogues)
    rounds = [read_dialogues(trained.imagined(unit)) for unit in (FIRST, SECOND)]
    for number, (held, agent) in enumerate(
        zip(rounds, ("bc", "bc_imagination1"), strict=True), start=1
    ):
        assert len(held) == HELD
        for each in held:
            assert each.source["kind"] == "round of imagination"
            assert (each.source["method"], each.source["round"]) == (agent, number)
            assert 0 < each.source[PRIOR_PROBABILITY] < 1
            assert each.reward is not None and not any(turn.annotations for turn in each.turns)
    everyone = [*originals, *rounds[0], *rounds[1]]
    assert len({each.id for each in everyone}) == len(everyone)
    openings = [[each.turns[0].text for each in held] for held in (originals[:HELD], *rounds)]
    assert openings[0] != openings[1] != openings[2] != openings[0]


def test_what_was_held_is_learned_from_beside_the_originals(trained):
    assert learned(SECOND) == [FIRST, SECOND] and learned(FIRST) == [FIRST]
    assert learned(Unit("bc", 0)) == []
    plain = TrainingData.load(trained, 320)
    for unit, rounds in ((FIRST, 1), (SECOND, 2)):
        held = [d for each in learned(unit) for d in imagination_rounds.read_round(trained, each)]
        data = TrainingData.load(trained, 320, imagined=held)
        names = [each.name for each in data.trajectories]
        assert names[: len(plain.trajectories)] == [each.name for each in plain.trajectories]
        assert len(names) == len(plain.trajectories) + rounds * HELD
        assert data.reward_scale == plain.reward_scale
        short = TrainingData.load(trained, 40, imagined=held)
        assert len(short.trajectories) < len(names)  # those that do not fit are left out


def learned(unit: Unit) -> list[Unit]:
    return imagination_rounds.learned_from(experiment(), unit)


@pytest.mark.parametrize(
    ("method", "setting", "cloned"),
    [
        ("ilql", "false", False),
        ("ilql", "true", True),
        ("bc", "false", True),
        ("qsft", "false", True),
    ],
)
def test_what_an_agent_has_said_itself_is_cloned_where_asked_or_nothing_else_learns_of_it(
    method, setting, cloned, trained, tmp_path
):
    """And valued in any case, where there are values."""
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    unit = Unit(f"{method}_imagination1", 0)
    if unit != FIRST:
        shutil.copy(folder.imagined(FIRST), folder.imagined(unit))
    names = f"--config.methods={method},{unit.method}"
    given = experiment(names, f"--config.imagination.round_clone={setting}")
    held = imagination_rounds.dialogues_of(given, folder, unit)
    assert [d.id for d in held] == [d.id for d in read_dialogues(trained.imagined(FIRST))]
    data = TrainingData.load(folder, 320, imagined=held)
    originals, own = data.trajectories[:-HELD], data.trajectories[-HELD:]
    assert all(each.clone_weight.any() for each in originals)
    for each in own:
        assert np.array_equal(each.clone_weight > 0, each.is_action & cloned)
        assert np.array_equal(each.credited, each.is_action)


def test_weights_to_the_prior_are_those_of_all_together(trained):
    held = imagination_rounds.read_round(trained, FIRST)
    data = TrainingData.load(trained, 320, importance_weights=True, imagined=held)
    weights = np.array([each.weight for each in data.trajectories])
    assert len(weights) == 40 + HELD and weights.mean() == pytest.approx(1) and weights.std() > 0.1


# --- going on from the agent that held a round --------------------------------------------------

WIDE = """
import dataclasses
from ilql_jax.methods import METHODS

@dataclasses.dataclass(frozen=True)
class Config(type(METHODS["mc"].config)):
    wide: bool = False

def network(model_config, config):
    return dataclasses.replace(model_config, value_inner_size=16 if config.wide else 8)

def going_on(config):
    return dataclasses.replace(config, wide=True)

METHOD = dataclasses.replace(
    METHODS["mc"], name="wide", config=Config(), network=network, going_on=going_on
)
"""
GOES_ON = ("--config.imagination.round_start=agent", "--config.imagination.round_share=0.75")


def test_a_training_goes_on_from_the_agent_that_held_its_round(trained, monkeypatch):
    """It starts from what that has learned, for a round's share of the steps."""
    given, started = experiment(*GOES_ON), []

    def start(data, shape, method, config, *_, start_from, **__):
        started.append((start_from(), shape, config.steps))

    monkeypatch.setattr(stage, "train", start)
    for unit in (FIRST, SECOND):
        stage.train_unit(given, trained.path, unit, lambda *_: None)
    for agent, (params, shape, steps) in zip(("bc", FIRST.method), started, strict=True):
        held = restore_params(trained.checkpoints(Unit(agent, 0)), shape)
        assert steps == 3
        jax.tree.map(np.testing.assert_array_equal, params, held)


def test_trainings_wait_for_those_that_they_need_and_for_no_others(trained, tmp_path, monkeypatch):
    """Trainings that others wait for come first; a round is held with its training."""
    folder, asked = RunFolder(tmp_path / "copy"), []
    shutil.copytree(trained.path, folder.path, ignore=shutil.ignore_patterns("*-seed0*"))
    monkeypatch.setattr(stage, "run_units", lambda *arguments: asked.append(arguments) or [])
    names = "--config.methods=bc,fbc,bc_imagination1,bc_imagination2,mc,ilql,ilql_imagination1"
    given = experiment(names, "--config.seeds=2", "--config.workers=2")
    stage.run(given, folder, Console(file=io.StringIO()))
    ((function, _, units, workers, _, after),) = asked
    assert (function, workers) == (stage.learn_unit, 2)
    needed = {
        unit: {units[index] for index in before} for unit, before in zip(units, after, strict=True)
    }
    for seed in ("seed0", "seed1"):
        assert needed[f"bc_imagination2-{seed}"] == {f"bc_imagination1-{seed}"}
        assert needed[f"bc_imagination1-{seed}"] == {f"bc-{seed}"}
        assert needed[f"ilql_imagination1-{seed}"] == {f"ilql-{seed}"}
        assert not needed[f"bc-{seed}"] | needed[f"fbc-{seed}"] | needed[f"mc-{seed}"]
        places = [units.index(f"{name}-{seed}") for name in ("bc", "bc_imagination1", "fbc")]
        assert places == sorted(places) and units.index(f"ilql-{seed}") < units.index(f"mc-{seed}")
    assert len(units) == 14 and len(needed) == 14


def test_a_round_whose_file_is_gone_is_held_anew_with_the_next_ones_training(trained, tmp_path):
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    whole = folder.imagined(FIRST).read_bytes()
    folder.imagined(FIRST).unlink()
    shutil.rmtree(folder.checkpoints(SECOND))
    folder.finished(SECOND).unlink()
    ended = run(folder.path, *SETTINGS, "--stage=train")
    assert ended.status == 0, ended.output + ended.traceback
    assert folder.imagined(FIRST).read_bytes() == whole


def test_rounds_that_go_on_can_be_added_to_a_run_and_then_hold(tmp_path):
    folder = RunFolder(tmp_path / "goes_on")
    one = [a for a in SETTINGS if not a.startswith("--config.methods")]
    one += [*GOES_ON, "--config.methods=bc,bc_imagination1", "--stage=train"]
    ended = run(folder.path, *one)
    assert ended.status == 0, ended.output + ended.traceback
    assert "bc_imagination1 goes on from bc, for 3 steps." in ended.output
    assert latest_step(folder.checkpoints(FIRST)) == 3
    both = (*SETTINGS, *GOES_ON, "--stage=train")
    ended = run(folder.path, *both)
    assert ended.status == 0, ended.output + ended.traceback
    assert "Training 1 networks" in ended.output
    message = r"config\.imagination\.round_share was 0\.75, now 1"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "train", experiment("--config.imagination.round_start=agent"))


def test_an_agent_that_a_new_round_asks_for_is_trained_again_where_it_is_damaged(trained, tmp_path):
    """Though it was judged, so that nothing else of the run asks for it."""
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    agent = Unit("bc", 0)
    folder.unit_result(agent).parent.mkdir(parents=True)
    folder.unit_result(agent).write_text("{}")
    shutil.rmtree(folder.checkpoints(FIRST))
    for each in (folder.finished(FIRST), folder.imagined(FIRST)):
        each.unlink()
    for each in (folder.checkpoints(agent) / "4").rglob("*"):
        if each.is_file():
            each.write_bytes(b"")
    arguments = [a for a in SETTINGS if not a.startswith("--config.methods")]
    ended = run(folder.path, *arguments, "--config.methods=bc,bc_imagination1", "--stage=train")
    assert ended.status == 0, ended.output + ended.traceback
    assert "bc-seed0 is not trained to the end any more" in ended.output
    assert "Training 2 networks" in ended.output
    assert folder.imagined(FIRST).read_bytes() == trained.imagined(FIRST).read_bytes()


def test_a_network_that_another_cannot_go_on_in_is_told_first(tmp_path):
    """A method of one's own whose network depends on what it changes when it goes on."""
    path = tmp_path / "wide.py"
    path.write_text(WIDE)
    arguments = (
        f"--config.methods={path},{path}_imagination1",
        "--config.imagination.round_decoding=",
    )
    experiment(*arguments)
    with pytest.raises(ConfigError, match="wide_imagination1 goes on from wide, but trains anoth"):
        experiment(*arguments, "--config.imagination.round_start=agent")


def test_values_that_go_on_are_not_led_back_to_outcomes_of_the_data(tmp_path):
    """ILQL's λ starts from Monte Carlo in a fresh network alone; its settings stay those set."""
    names = "--config.methods=ilql,ilql_imagination1"
    fresh, goes_on = experiment(names), experiment(names, *GOES_ON)
    for given, fades in ((fresh, (0.15, 0.45)), (goes_on, (0.0, 0.0))):
        assert given.method("ilql").method.config.trace_fade == (0.15, 0.45)
        learned_after = pickle.loads(pickle.dumps(given.method("ilql_imagination1")))
        assert learned_after == given.method("ilql_imagination1")
        assert learned_after.method.config.trace_fade == fades
        stamp = stamp_of(RunFolder(tmp_path), "train", given).values
        assert stamp["method.ilql.trace_fade"] == [0.15, 0.45]
    assert (fresh.method("ilql_imagination1").train.steps, fresh.train.steps) == (4, 4)
    assert (goes_on.method("ilql_imagination1").train.steps, goes_on.train.steps) == (3, 4)
    told = ", with config.method.ilql.trace_fade (0.0, 0.0) in place of (0.15, 0.45)"
    learned_after = goes_on.method("ilql_imagination1")
    assert stage.replaced_settings(goes_on, learned_after) == told
    unfaded = experiment(names, *GOES_ON, "--config.method.ilql.trace_fade=(0.0, 0.0)")
    for given, name in ((goes_on, "ilql"), (fresh, "ilql_imagination1"), (unfaded, "ilql")):
        assert not stage.replaced_settings(given, given.method(name))
    assert not stage.replaced_settings(unfaded, unfaded.method("ilql_imagination1"))
    waves = [[each.name for each in wave] for wave in in_order(goes_on.methods)]
    assert waves == [["ilql"], ["ilql_imagination1"]]


# --- killed, damaged, added ---------------------------------------------------------------------


def test_a_round_is_the_same_whatever_was_held_before_it_was_stopped(
    trained, tmp_path, monkeypatch
):
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    path = folder.imagined(FIRST)
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(imagination_rounds, "CHUNK", 3)
    assert hold(folder, FIRST) == whole
    lines = whole.splitlines(keepends=True)
    path.rename(path.with_name(path.name + ".partial"))
    path.with_name(path.name + ".partial").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert hold(folder, FIRST) == whole
    path.unlink()
    assert hold(folder, FIRST, "--config.imagination.round_decoding=greedy") != whole


def test_a_damaged_round_is_named_with_the_way_out(trained, tmp_path):
    folder = RunFolder(tmp_path)
    path = folder.imagined(FIRST)
    path.parent.mkdir()
    path.write_text('{"id": 3}\n')
    with pytest.raises(RunError, match=r"bc_imagination1-seed0\.jsonl.*--stage=train again"):
        imagination_rounds.read_round(folder, FIRST)
    (one, *_) = read_dialogues(trained.imagined(FIRST))
    path.write_text(json_line(dataclasses.replace(one, reward=None)))
    with pytest.raises(RunError, match="no conversation was rated"):
        imagination_rounds.read_round(folder, FIRST)


def test_conversations_in_which_the_agent_said_nothing_are_not_learned_from(
    trained, tmp_path, monkeypatch
):
    class Silent:
        def respond(self, conversations):
            return [Utterance("" if c.id.endswith("-0") else "Have a seat.") for c in conversations]

    monkeypatch.setattr(imagination_rounds, "load_agent", lambda *arguments: Silent())
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    folder.imagined(FIRST).unlink()
    hold(folder, FIRST)
    held = read_dialogues(folder.imagined(FIRST))
    assert held[0].turns[-1].text == NO_ANSWER
    assert imagination_rounds.read_round(folder, FIRST) == held[1:]


@pytest.mark.parametrize("price", [3.0, 0.0])
def test_calls_and_cost_of_llm_played_humans_are_kept_for_the_report(
    trained, tmp_path, monkeypatch, price
):
    client = ScriptedClient(lambda request: request.schema.placeholder().model_dump())
    task = load_world("teaching").task
    monkeypatch.setattr(imagination_rounds, "load_agent", lambda *arguments: Parrot("Hm."))
    monkeypatch.setattr(
        imagination_rounds.prompted, "human_for", lambda *arguments: PromptedHuman(client, task)
    )
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    folder.imagined(FIRST).unlink()
    llm = ("--config.evaluation.human=prompted", "--config.llm.model=m")
    prices = (f"--config.llm.price_{tokens}={price}" for tokens in ("input", "output"))
    hold(folder, FIRST, *llm, *prices)
    calls = task.max_turns + 2  # a last line, and the rating
    assert len(client.requests) == HELD * calls
    held = {each.method: each for each in read_run_rounds(folder.path / "imagination")}
    assert held[FIRST.method].calls == calls
    assert held[FIRST.method].cost == (calls * PRICE if price else None)
    assert held[SECOND.method].calls is held[SECOND.method].cost is None


def test_rounds_with_llm_played_humans_say_what_the_data_says_of_their_personas(
    trained, tmp_path, monkeypatch
):
    task = load_world("teaching").task
    people = Environment(task, None, lambda *arguments: pytest.fail("humans of the evaluation"))
    monkeypatch.setattr(imagination_rounds, "load_environment", lambda *arguments: people)
    client = ScriptedClient(lambda request: request.schema.placeholder().model_dump())
    human = PromptedHuman(client, task)
    monkeypatch.setattr(imagination_rounds.prompted, "human_for", lambda *arguments: human)
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, folder.path)
    folder.imagined(FIRST).unlink()
    hold(folder, FIRST, "--config.evaluation.human=prompted", "--config.llm.model=m")
    about = about_imagined(task, folder)
    held = read_dialogues(folder.imagined(FIRST))
    for each in held:
        assert about(each.persona).items() <= each.source.items()
    known = {persona_key(each.persona) for each in read_dialogues(folder.dialogues)}
    assert {persona_key(each.persona) for each in held} <= known  # balanced: people of the data
    TrainingData.load(folder, 512, importance_weights=True, imagined=held)


def test_rounds_can_be_added_to_a_run_and_then_hold(trained):
    without = (*SMALLEST, "--config.imagination.round_dialogues=4000")
    line = parse("teaching", get_config(), ["teaching.py", *without])
    check_stage(trained, "train", checked(line.config))
    message = r"config\.imagination\.round_decoding was 'sampled', now 'greedy'.*imagination"
    with pytest.raises(RunError, match=message):
        check_stage(trained, "train", experiment("--config.imagination.round_decoding=greedy"))


def test_a_decoding_that_was_not_set_for_rounds_holds_as_the_first_that_is_tried(tmp_path):
    def tried(*texts: str):
        default = "--config.imagination.round_decoding="
        return experiment(default, f"--config.decoding.bc={texts!r}")

    folder = RunFolder(tmp_path)
    begin_stage(folder, "train", tried("greedy", "sampled"))
    folder.tokenizer.mkdir()
    check_stage(folder, "train", tried("greedy"))
    with pytest.raises(RunError, match=r"config\.decoding\.bc was \['greedy'\], now \['sampled'\]"):
        check_stage(folder, "train", tried("sampled", "greedy"))


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.methods=bc_imagination1"], "learns from the conversations of bc. Name that"),
        (["--config.methods=bc,bc_imagination2"], "conversations of bc_imagination1. Name that"),
        (["--config.methods=bc,dpo,dpo_imagination1"], "dpo learns from pairs"),
        (["--config.imagination.round_decoding=best of 3"], r"round_decoding: .*bc learns none"),
        (["--config.imagination.round_decoding=loud"], "round_decoding: .*is not understood"),
        (["--config.imagination.round_dialogues=0"], r"round_dialogues is 0, but must lie in \[1"),
        (["--config.data.source=jsonl", "--config.data.path=x"], "nobody is there to talk with"),
        (
            ["--config.imagination.engine=anthropic", "--config.llm.model=m"],
            r"Set config\.evaluation\.human=prompted",
        ),
        (
            ["--config.machine.coordinator=head:1", "--config.machine.processes=2"],
            "several hosts .* only train",
        ),
    ],
)
def test_what_cannot_be_is_told(arguments, message):
    with pytest.raises((ConfigError, MethodError), match=message):
        experiment(*arguments)


def test_settings_of_rounds_that_none_learns_from_are_told_where_they_are_given(tmp_path):
    """Those of an experiment's file are of use again with the next command."""
    alone = (*SMALLEST, "--config.methods=bc")
    ended = run(tmp_path / "given", *alone, "--config.imagination.round_share=0.75")
    assert ended.status == 1
    told = "config.imagination.round_share is about rounds of imagination, but no method"
    assert told in " ".join(ended.output.split())
    assert travel.get_config().imagination.round_share < 1
    checked(parse("travel", travel.get_config(), ["travel.py", "--config.methods=bc"]).config)


@pytest.mark.parametrize(
    "setting",
    [
        *(f"data.source={source}" for source in SOURCES if source != "world"),
        "evaluation.human=prompted",
        "imagination.engine=anthropic",
    ],
)
def test_travel_has_rounds_where_its_travellers_answer_for_nothing(setting):
    given = ["travel.py", f"--config.{setting}"]
    plain = parse("travel", travel.get_config(), given[:1], travel.VARIANTS).config
    assert plain.chat.method in plain.methods and "imagination" in plain.chat.method
    config = parse("travel", travel.get_config(), given, travel.VARIANTS).config
    assert config.methods == tuple(each for each in plain.methods if "imagination" not in each)
    assert config.chat.method in config.methods
    named = [*given, "--config.methods=ilql,ilql_imagination1"]
    config = parse("travel", travel.get_config(), named, travel.VARIANTS).config
    assert config.methods == ("ilql", "ilql_imagination1")


# --- report -------------------------------------------------------------------------------------


def test_the_report_has_how_the_conversations_ended(trained):
    data = read_dialogues(trained.dialogues)
    held = [HeldRound("ilql_imagination1", "ilql", [0.5, 1.0]), HeldRound("gone", "bc", [1.0])]
    looks = {name: look_of(name) for name in ("ilql", "ilql_imagination1")}
    (table,) = tables.rounds_tables(held, data, looks)
    (row,) = table.rows
    mean = np.mean([each.reward for each in data])
    assert [str(cell) for cell in row.cells] == [
        "ILQL + 1 round of imagination",
        "ILQL",
        "2",
        "0.75",
        f"{mean:.2f}",
    ]
    assert tables.rounds_tables([], data, looks) == []
    played = dataclasses.replace(held[0], calls=9.5, cost=0.0025)
    (table,) = tables.rounds_tables([played], data, looks)
    assert table.headers[-2:] == ("calls", "cost") and "plays the humans" in table.notes[-1]
    assert [str(cell) for cell in table.rows[0].cells[-2:]] == ["9.5", "$0.0025"]
