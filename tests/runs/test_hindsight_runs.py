"""Runs with rounds of hindsight: the stage through the launcher, and with engines made up here."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import evaluations
import pytest
import warm_start
from hindsight_llm import BETTER, HindsightLLM
from launching import TINY, command, flattened, launch, write_corpus
from messages_server import MessagesServer
from rich.console import Console

from experiments import counseling, persuasion, training_data
from experiments.benchmarks import hindsight_errors
from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import ConfigError, base_config
from experiments.hindsight_records import read_hindsight
from experiments.methods import rounds_of
from experiments.report import hindsight, page
from experiments.report.figures import style
from experiments.run_folder import RunError, RunFolder
from experiments.stages import regenerate
from experiments.stamps import begin_stage, check_stage
from ilql_jax.methods import MethodError
from ilql_jax.progress import ProgressBars
from imagination.dialogue import Dialogue, Turn, read_dialogues, write_dialogues
from imagination.hindsight import Continuation, Proposal
from imagination.tokenization import DialogueTokenizer

CHANGED = ("--config.imagination.dialogues", "--config.methods")
SMALL = (*(a for a in TINY if not a.startswith(CHANGED)), "--config.imagination.dialogues=160")
LOOKING_BACK = (*SMALL, "--config.methods=bc,ilql_hindsight2")
MADE = ("calibration.json", "card.md", "rejected.jsonl", "round1.jsonl", "round2.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny run with two rounds, by a controller that errs at times."""
    folder = tmp_path_factory.mktemp("runs") / "hindsight"
    result = launch(f"--workdir={folder}", *LOOKING_BACK, "--config.hindsight.error_rate=0.2")
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


# --- whole runs ---------------------------------------------------------------------------------


def test_every_regenerated_dialogue_knows_where_it_comes_from(finished: Path):
    assert sorted(path.name for path in (finished / "hindsight").iterdir()) == sorted(MADE)
    parents = {d.id: d for d in read_dialogues(finished / "dialogues.jsonl")}
    for number in (1, 2):
        made = read_dialogues(finished / "hindsight" / f"round{number}.jsonl")
        assert len(made) > 50
        for dialogue in made:
            source = dialogue.source
            assert (source["kind"], source["round"]) == ("regenerated", number)
            parent, turn = parents[source["parent"]], source["turn"]
            assert dialogue.turns[:turn] == parent.turns[:turn]
            assert dialogue.turns[turn].text != parent.turns[turn].text
            assert source["reason"]
        parents = {dialogue.id: dialogue for dialogue in made}


def test_the_counts_are_told_and_kept(finished: Path):
    output = flattened((finished / "output.txt").read_text())
    found = read_hindsight(finished, read_dialogues(finished / "dialogues.jsonl"))
    first, second = found.rounds
    assert (len(first.parents), len(second.parents)) == (160, len(first.dialogues))
    assert "Reward model against the known rewards of 160 dialogues" in output
    assert f"160 dialogues looked back on, {first.changed} changed" in output
    assert f"and {len(first.dialogues) + len(second.dialogues)} regenerated ones" in output
    card = (finished / "hindsight" / "card.md").read_text()
    assert f"| 1 | 160 | {first.changed} |" in card and f"| 2 | {len(first.dialogues)} |" in card


def test_methods_that_look_back_stand_in_tables_and_report(finished: Path):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    population = evaluation["population"]["average"]
    assert set(population["methods"]) == {"bc", "ilql_hindsight2"}
    [test] = population["tests"]
    assert {test["a"], test["b"]} == {"bc", "ilql_hindsight2"} and 0 < test["p_holm"] <= 1
    assert "ILQL + 2 rounds" in (finished / "output.txt").read_text()
    text = (finished / "report.html").read_text()
    assert 'id="hindsight"' in text and (finished / "figures" / "hindsight.png").exists()
    first = read_dialogues(finished / "hindsight" / "round1.jsonl")[0]
    changed = html.escape(first.turns[first.source["turn"]].text)
    assert f'<li class="turn agent changed"><div class="say">{changed}</div>' in text
    assert html.escape(first.source["reason"]) in text


@pytest.mark.slow
def test_dpo_goes_on_from_bc_in_a_finished_run(finished: Path, tmp_path: Path):
    folder = tmp_path / "dpo"
    shutil.copytree(finished, folder)
    asked = (f"--workdir={folder}", "--config.methods=bc,dpo", "--config.method.dpo.steps=12")
    result = launch(*asked)
    assert result.returncode == 0, result.stdout + result.stderr
    made = read_dialogues(folder / "hindsight" / "round1.jsonl")
    output = flattened(result.stdout)
    assert "Training 1 networks" in output and "regenerated ones" not in output
    assert f"dpo goes on from bc, on {len(made)} pairs of utterances" in output
    lines = (folder / "metrics" / "dpo-seed0.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert len(metrics) == 12
    # It starts as bc of its seed, which is its reference: neither half is preferred yet.
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[-1]["margin"] > 0
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["population"]["average"]["methods"]) == {"bc", "dpo"}
    result = launch(*asked[:2], "--config.method.dpo.kl_weight=0.5")
    assert result.returncode == 1
    assert "config.method.dpo.kl_weight was 0.1, now 0.5" in flattened(result.stdout)


def test_a_pair_is_what_was_said_and_what_was_put_better(monkeypatch, run_folder):
    words = "word " * 60
    engine = MadeUp(known, lambda d: [Proposal(1, words if d.id == "d7" else "Yes?", "")])
    look_back(monkeypatch, run_folder, engine)
    tokenizer = DialogueTokenizer.train(read_dialogues(run_folder.dialogues), 300)
    pairs, left_out = training_data.preference_pairs(run_folder, tokenizer, max_positions=60)
    assert len(pairs) == 15  # of sixteen
    assert left_out == "left out: 1 longer than config.model.max_positions"
    for pair in pairs:
        pair.validate()
        for half, said in ((pair.chosen, "Yes?"), (pair.rejected, "Well.")):
            assert tokenizer.decode(half.tokens[half.is_action]) == said
            before = half.tokens[~half.is_action]
            assert before.tolist() == tokenizer.context([Turn("human", "Hi.")]).tolist()
    packing = training_data.packing_of_pairs(pairs, rows_of_pairs=2, max_positions=60)
    assert (packing.batch_rows, packing.row_length) == (2, 120)


def test_pairs_of_which_none_fits_are_told(monkeypatch, run_folder):
    engine = MadeUp(known, lambda d: [Proposal(1, "word " * 60, "")])
    look_back(monkeypatch, run_folder, engine)
    tokenizer = DialogueTokenizer.train(read_dialogues(run_folder.dialogues), 300)
    with pytest.raises(RunError, match=r"none of the 16 pairs .* 16 longer than config\.model"):
        training_data.preference_pairs(run_folder, tokenizer, max_positions=60)


def test_a_killed_round_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path):
    folder = _with_dialogues_of(finished, tmp_path / "killed")
    asked = (f"--workdir={folder}", *LOOKING_BACK, "--config.hindsight.error_rate=0.2")
    process = warm_start.start(
        command(*asked, "--stage=regenerate"), env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    journal = folder / "hindsight" / "round1.chunks.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (folder / "hindsight" / "round2.jsonl").exists()
    if journal.exists():  # as if it had been killed in the middle of a line
        with journal.open("a") as file:
            file.write('{"looked_back_on": 50, "dialo')
    result = launch(*asked, "--stage=regenerate")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in MADE:
        ours, theirs = (folder / "hindsight" / name), (finished / "hindsight" / name)
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert not journal.exists()


def _with_dialogues_of(other: Path, folder: Path) -> Path:
    (folder / "stages").mkdir(parents=True)
    for name in ("dialogues.jsonl", "dataset_card.md", "stages/imagine.json"):
        shutil.copy(other / name, folder / name)
    return folder


@pytest.mark.slow
def test_without_such_a_method_nobody_looks_back_until_one_is_added(finished: Path, tmp_path: Path):
    folder = _with_dialogues_of(finished, tmp_path / "later")
    shutil.copytree(finished / "tokenizer", folder / "tokenizer")
    result = launch(f"--workdir={folder}", *SMALL, "--config.methods=bc", "--stage=train")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "hindsight" not in result.stdout and not (folder / "hindsight").exists()
    assert not (folder / "stages" / "regenerate.json").exists()
    result = launch(f"--workdir={folder}", "--config.hindsight.max_changes=2")
    assert result.returncode == 1
    assert "config.hindsight.max_changes is about rounds of hindsight, but no method" in flattened(
        result.stdout
    )
    result = launch(
        f"--workdir={folder}",
        "--config.methods=bc,ilql_hindsight1",
        "--config.hindsight.max_changes=2",
        "--stage=regenerate",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(read_dialogues(folder / "hindsight" / "round1.jsonl")) > 160
    result = launch(f"--workdir={folder}", "--config.hindsight.max_changes=1")
    assert result.returncode == 1
    assert "config.hindsight.max_changes was 2, now 1" in flattened(result.stdout)


def test_chat_says_at_its_start_what_the_agent_is_not_for(finished: Path):
    result = launch(
        f"--workdir={finished}",
        "--stage=chat",
        "--config.chat.method=ilql_hindsight2",
        "--config.chat.notice=[This] is no doctor.",
        text="/quit\n",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.index("[This] is no doctor.") < result.stdout.index("A new conversation")


@pytest.mark.parametrize(
    ("experiment", "words"), [(counseling, "no medical device"), (persuasion, "have agreed")]
)
def test_counseling_and_persuasion_have_such_a_notice(experiment, words: str):
    assert words in experiment.get_config().chat.notice


# --- real dialogues, and an LLM that looks back -------------------------------------------------

KEY = "sk-this-must-never-be-written-down"


@pytest.mark.slow
def test_an_llm_looks_back_on_real_dialogues(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    corpus = write_corpus(tmp_path / "corpus")
    folder = tmp_path / "run"
    # The reward model reads what the persuadee said; what was put better ends well.
    llm = HindsightLLM(rate=lambda said: 0.9 if "Yes!" in said or BETTER in said else 0.1)
    with MessagesServer(llm, faults={"529": 0.02, "wrong_schema": 0.02}, seed=1) as server:
        asked = (
            f"--workdir={folder}",
            *(a for a in SMALL if "decoding" not in a),
            "--config.data.source=persuasionforgood",
            f"--config.data.path={corpus}",
            "--config.methods=bc,ilql_hindsight1",
            "--config.model.max_positions=256",
            "--config.tokenizer.vocab_size=400",
            "--config.hindsight.engine=anthropic",
            "--config.llm.model=small",
            f"--config.llm.base_url={server.url}",
            "--config.hindsight.judge_votes=1",
            "--config.llm.price_input=3",
            "--config.llm.price_output=15",
        )
        assert launch(*asked, "--stage=imagine", task="persuasion").returncode == 0
        plan = launch(*asked, "--dry_run", task="persuasion")
        assert plan.returncode == 0 and "32 dialogues are rated" in flattened(plan.stdout)
        assert not server.answered
        result = launch(*asked, task="persuasion")
        assert result.returncode == 0, result.stdout + result.stderr
        paid = sum(server.answered.values())
        made = (folder / "hindsight" / "round1.jsonl").read_bytes()
        shutil.rmtree(folder / "hindsight")
        assert launch(*asked, "--stage=regenerate", task="persuasion").returncode == 0
        assert (folder / "hindsight" / "round1.jsonl").read_bytes() == made
        assert sum(server.answered.values()) == paid  # all of it was in the cache
    parts = {d.id: d.source["part"] for d in read_dialogues(folder / "dialogues.jsonl")}
    regenerated = read_dialogues(folder / "hindsight" / "round1.jsonl")
    assert len(regenerated) > 25
    assert {parts[d.source["parent"]] for d in regenerated} == {"train"}
    heldout = json.loads((folder / "heldout.json").read_text())
    assert set(heldout["methods"]) == {"bc", "ilql_hindsight1"}
    assert set(heldout["value_prediction"]) == {"ilql_hindsight1"}
    assert heldout["sizes"] == {"train": 32, "test": 8}
    assert BETTER in html.unescape((folder / "report.html").read_text())
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# --- the stage with an engine made up here ------------------------------------------------------


class MadeUp:
    """Puts every dialogue's first agent turn better; `rate` as given."""

    def __init__(self, rate, proposals=None):
        self.rate_one = rate
        self.proposals = proposals or (lambda d: [Proposal(1, f"What about {d.id}?", "To ask.")])
        self.looked_back_on: list[str] = []

    def propose(self, dialogues, max_changes):
        self.looked_back_on += [d.id for d in dialogues]
        return [self.proposals(dialogue) for dialogue in dialogues]

    def play(self, branches):
        return [Continuation((Turn("human", "Well, yes."),), {}) for _ in branches]

    def rate(self, dialogues):
        return [self.rate_one(dialogue) for dialogue in dialogues]


def known(dialogue: Dialogue) -> float:
    return dialogue.reward if dialogue.reward is not None else 1.0


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    """Twenty dialogues, four of them set apart."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    turns = (Turn("human", "Hi."), Turn("agent", "Well."), Turn("human", "Bye."))
    write_dialogues(
        folder.dialogues,
        [
            Dialogue(
                f"d{i}", "t", turns, i / 20, source={"part": "test" if i % 5 == 0 else "train"}
            )
            for i in range(20)
        ],
    )
    return folder


def look_back(monkeypatch, folder: RunFolder, engine: MadeUp, *arguments: str) -> str:
    """Runs the stage with this engine; returns what was printed."""

    @contextlib.contextmanager
    def opened(*_):
        yield regenerate.OpenHindsight(engine, chunk=3)

    monkeypatch.setattr(regenerate, "open_hindsight", opened)
    console = Console(width=100, file=io.StringIO(), color_system=None)
    regenerate.run(checked(config_with(*arguments)), folder, console)
    return flattened(console.file.getvalue())


def config_with(*arguments: str):
    config = base_config()
    config.task.world = "teaching"
    config.methods = ("bc", "ilql_hindsight1")
    return parse("teaching", config, ["teaching.py", *arguments]).config


def test_what_was_set_apart_is_neither_looked_back_on_nor_learned_from(monkeypatch, run_folder):
    engine = MadeUp(known)
    look_back(monkeypatch, run_folder, engine)
    apart = {f"d{i}" for i in range(0, 20, 5)}
    assert len(engine.looked_back_on) == 16 and not apart & {*engine.looked_back_on}
    made = read_dialogues(run_folder.hindsight_round(1))
    assert {d.source["part"] for d in made} == {"train"}
    DialogueTokenizer.train(made, 300).save(run_folder.tokenizer)
    names = {t.name for t in training_data.TrainingData.load(run_folder, 240, 1).trajectories}
    assert len(names) == 32 and not {f"dialogue {name}" for name in apart} & names


def test_what_cannot_be_learned_from_is_counted_by_problem(monkeypatch, run_folder):
    bad = {
        "d1": [Proposal(7, "What about it?", "")],
        "d2": [Proposal(0, "What about it?", "")],
        "d3": [Proposal(1, "Well.", "")],
        "d4": [Proposal(1, "Well...", "")],
        "d6": None,
        "d7": [],
    }
    engine = MadeUp(known, lambda d: bad.get(d.id, [Proposal(1, "What about it?", "")]))
    output = look_back(monkeypatch, run_folder, engine)
    assert len(read_dialogues(run_folder.hindsight_round(1))) == 10
    records = [json.loads(line) for line in run_folder.rejected.read_text().splitlines()]
    assert {record["parent"] for record in records} == {"d1", "d2", "d3", "d4", "d6"}
    assert all(record["round"] == 1 and record["detail"] for record in records)
    same = next(record["problem"] for record in records if record["parent"] == "d3")
    assert f"rejected: {same} 2, " in output
    assert f"| 1 | {same} | 2 |" in run_folder.hindsight_card.read_text()


def test_rounds_that_come_to_nothing_stop_the_run(monkeypatch, run_folder):
    engine = MadeUp(known, lambda d: [Proposal(1, "Well.", "")])
    with pytest.raises(RunError, match=r"of 16 dialogues .* none led to another .*utterance 16"):
        look_back(monkeypatch, run_folder, engine)


def test_a_reward_model_that_foretells_nothing_stops_the_run(monkeypatch, run_folder):
    upside_down = MadeUp(lambda d: -known(d))
    with pytest.raises(RunError, match=r"rank correlation of -1\.00 .*min_agreement asks for 0\.3"):
        look_back(monkeypatch, run_folder, upside_down)
    assert not run_folder.hindsight_round(1).exists()
    # The way out that the message names leads on, and what was rated is not rated again.
    ratings = []
    engine = MadeUp(lambda d: ratings.append(d.id) or 1.0)
    look_back(monkeypatch, run_folder, engine, "--config.hindsight.min_agreement=-1")
    assert not {f"d{i}" for i in range(20)} & {*ratings}
    # It is asked for again as long as the rounds are to be learned from.
    with pytest.raises(RunError, match="min_agreement"):
        look_back(monkeypatch, run_folder, engine)


def test_the_calibration_of_an_llm_has_a_bar_that_moves_with_each_answer(monkeypatch, run_folder):
    """Shows calls, tokens and dollars, in batches too."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    moved, advance = [], ProgressBars.advance
    monkeypatch.setattr(
        ProgressBars, "advance", lambda bars, bar: moved.append(bar) or advance(bars, bar)
    )
    llm = HindsightLLM(rate=lambda said: 0.5)
    with MessagesServer(llm) as server:
        arguments = (
            "--config.hindsight.engine=anthropic",
            "--config.hindsight.judge_votes=2",
            "--config.llm.model=small",
            f"--config.llm.base_url={server.url}",
            "--config.llm.batch=true",
            "--config.llm.batch_poll=0.05",
            "--config.llm.price_input=3",
            "--config.llm.price_output=15",
        )
        console = Console(width=200, file=io.StringIO(), color_system=None)
        originals = read_dialogues(run_folder.dialogues)
        own = [dataclasses.replace(dialogue, task="teaching") for dialogue in originals]
        write_dialogues(run_folder.dialogues, own)
        with pytest.raises(RunError, match="no rank correlation"):
            regenerate.run(checked(config_with(*arguments)), run_folder, console)
        assert len(server.batches) == 1
    assert len(moved) == 32  # two votes on each dialogue that is learned from
    shown = flattened(console.file.getvalue())
    bar = r"calibration: answers .* 32/32 .* 2 calls, 30 from cache \| .* tokens in.* \| \$0\."
    assert re.search(bar, shown), shown


def test_a_reward_model_without_variation_says_so(monkeypatch, run_folder):
    with pytest.raises(RunError, match="no rank correlation"):
        look_back(monkeypatch, run_folder, MadeUp(lambda d: 0.5))
    assert json.loads(run_folder.calibration.read_text())["spearman"] is None


def test_rewards_are_scaled_by_the_originals_alone(monkeypatch, run_folder):
    look_back(monkeypatch, run_folder, MadeUp(lambda d: known(d) if d.reward else 0.5))
    DialogueTokenizer.train(read_dialogues(run_folder.dialogues), 300).save(run_folder.tokenizer)
    loaded = [training_data.TrainingData.load(run_folder, 240, rounds) for rounds in (0, 1)]
    assert loaded[0].reward_scale == loaded[1].reward_scale
    assert len(loaded[1].trajectories) == 2 * len(loaded[0].trajectories)


def test_a_replay_longer_than_the_context_is_left_out_an_original_is_an_error(
    monkeypatch, run_folder
):
    words = "word " * 60
    engine = MadeUp(known, lambda d: [Proposal(1, words if d.id == "d7" else "Yes?", "")])
    look_back(monkeypatch, run_folder, engine)
    originals = read_dialogues(run_folder.dialogues)
    DialogueTokenizer.train(originals, 300).save(run_folder.tokenizer)
    names = [t.name for t in training_data.TrainingData.load(run_folder, 60, 1).trajectories]
    assert len(names) == 31 and "dialogue d7-r1t1" not in names and "dialogue d7" in names


def test_the_page_shows_pairs_escaped_by_a_rule_that_flatters_nobody(monkeypatch, run_folder):
    script = "<script>alert(1)</script>"
    gains = {"d3": 0.5, "d6": -0.2}

    def rate(dialogue: Dialogue) -> float:
        parent = dialogue.source.get("parent")
        return known(dialogue) if parent is None else gains.get(parent, 0.01) + int(parent[1:]) / 20

    engine = MadeUp(rate, lambda d: [Proposal(1, f"{script} {d.id}", script)])
    look_back(monkeypatch, run_folder, engine)
    found = read_hindsight(run_folder.path, read_dialogues(run_folder.dialogues))
    pairs = hindsight.section(found)["pairs"]
    assert [pair["why"] for pair in pairs] == [
        "round 1: first",
        "round 1: largest difference",
        "round 1: smallest difference",
        "round 1: median difference",
    ]
    said = [pair["after"]["turns"][1]["text"].split()[-1] for pair in pairs[:3]]
    assert said == ["d1", "d3", "d6"]
    evaluations.heldout().write(run_folder.heldout)
    text = page.write_report(run_folder.path).read_text()
    assert "<script" not in text and html.escape(f"{script} d6") in text


# --- names and settings -------------------------------------------------------------------------


def test_an_entry_is_a_method_and_its_rounds():
    def found(*names: str):
        return checked(config_with(f"--config.methods={','.join(names)}"))

    two, one, none = found("ilql_hindsight2", "fbc_hindsight1", "mc").methods
    assert (two.name, two.method.name, two.rounds) == ("ilql_hindsight2", "ilql", 2)
    assert (one.method.name, one.rounds) == ("fbc", 1)
    assert (none.name, none.method.name, none.rounds) == ("mc", "mc", 0)
    assert rounds_of(found("bc", "ilql_hindsight1", "ilql_hindsight12").methods) == 12
    assert found("bc", "dpo").rounds == 1 and found("bc", "ilql").rounds == 0
    for wrong in ("ilql_hindsight", "ilql_hindsight0", "dpo_hindsight1", "hindsight1"):
        with pytest.raises(MethodError, match=wrong):
            none_of_these(wrong)


def none_of_these(name: str) -> None:
    checked(config_with()).method(name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.methods=ilql_hindsight0"], "there is no method 'ilql_hindsight0'"),
        (["--config.methods=ilql,dpo"], "dpo goes on from the bc of its seed"),
        (["--config.hindsight.engine=openai"], "must be world or anthropic"),
        (["--config.hindsight.engine=anthropic"], "config.llm.model is '', but must be the name"),
        (["--config.hindsight.model=m"], "is for an LLM, and none looks back"),
        (["--config.hindsight.price_input=3.0"], "config.hindsight.price_input is for an LLM"),
        (
            [
                "--config.hindsight.engine=anthropic",
                "--config.llm.model=m",
                "--config.hindsight.error_rate=0.1",
            ],
            "config.hindsight.error_rate is for a world's controller",
        ),
        (["--config.hindsight.error_rate=1.5"], "error_rate is 1.5, but must lie in [0, 1]"),
        (["--config.hindsight.min_agreement=nan"], "min_agreement is nan"),
        (["--config.hindsight.belief=strong"], "must be prefix or finished"),
        (["--config.hindsight.max_changes=0"], "max_changes is 0, but must be at least 1"),
        (["--config.hindsight.calibration_dialogues=2"], "must be at least 5"),
        (["--config.data.source=persuasionforgood"], "no embedded world can look back on"),
        (
            [
                "--config.imagination.engine=anthropic",
                "--config.llm.model=m",
                "--config.imagination.dialogues=9",
            ],
            "no embedded world can look back on",
        ),
    ],
)
def test_bad_settings_are_told_before_any_work(arguments: list[str], expected: str):
    with pytest.raises(ConfigError) as caught:
        checked(config_with(*arguments))
    assert expected in str(caught.value)


def test_settings_of_real_dialogues_follow_from_the_source_unless_given():
    def config_of(*arguments: str):
        config = persuasion.get_config()
        line = parse("persuasion", config, ["x", *arguments], persuasion.VARIANTS)
        return checked(line.config)

    world, real = config_of(), config_of("--config.data.source=persuasionforgood")
    assert world.rounds == 2 and world.network.max_positions == 240
    assert real.rounds == 0 and real.network.max_positions == 1536
    given = ("--config.data.source=persuasionforgood", "--config.train.steps=7")
    by_llm = config_of(*given, "--config.hindsight.engine=anthropic", "--config.llm.model=m")
    assert by_llm.rounds == 2 and by_llm.train.steps == 7


def test_llm_settings_that_change_no_answer_change_no_stamp(tmp_path: Path):
    folder = RunFolder(tmp_path)
    llm = ("--config.hindsight.engine=anthropic", "--config.llm.model=m")
    begin_stage(folder, "regenerate", checked(config_with(*llm)))
    folder.hindsight.mkdir()
    for free in (
        "llm.max_in_flight=3",
        "llm.max_cost=0.0",
        "llm.batch=True",
        "hindsight.min_agreement=0.1",
    ):
        check_stage(folder, "regenerate", checked(config_with(*llm, f"--config.{free}")))
    with pytest.raises(RunError, match=r"config\.hindsight\.judge_votes was 3, now 5"):
        check_stage(
            folder, "regenerate", checked(config_with(*llm, "--config.hindsight.judge_votes=5"))
        )


# --- the controller's errors --------------------------------------------------------------------


def test_the_gain_at_each_error_rate_is_paired_with_the_originals(tmp_path: Path):
    def judged(name: str, method: str, rewards: dict[str, list[float]]) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        (folder.path / "evaluation").mkdir(parents=True)
        turns = (Turn("human", "Hi."), Turn("agent", "Well."))
        write_dialogues(
            folder.conversations,
            [
                Dialogue(
                    f"{p}-{i}", "t", turns, r, source={"method": method, "seed": 0, "population": p}
                )
                for p, own in rewards.items()
                for i, r in enumerate(own)
            ],
        )
        references = {"behaviour": 1.0, "optimum": 3.0}
        folder.references.write_text(json.dumps(dict.fromkeys(rewards, references)))
        evaluations.evaluation().write(folder.evaluation)
        return folder

    originals = judged("originals", "ilql", {"average": [1.0, 2.0], "difficult": [1.0, 1.0]})
    rates = {
        rate: judged(f"error-{rate}", "ilql_hindsight1", {"average": own, "difficult": own})
        for rate, own in ((0.0, [2.0, 3.0]), (0.5, [1.0, 2.0]))
    }
    points = hindsight_errors.collect(originals, rates, seed=0)
    assert [(p.population, p.error_rate) for p in points] == [
        *(("average", 0.0), ("average", 0.5), ("difficult", 0.0), ("difficult", 0.5))
    ]
    assert points[0].score[0] == pytest.approx(0.75)
    # One better with each human, so that there is nothing to be unsure of.
    assert points[0].gain == pytest.approx((0.5, 0.5, 0.5))
    assert points[1].gain[0] == 0.0 and not math.isnan(points[1].gain[1])
    assert "| average | 50 % | 0.25 [0.00, 0.50] | 0.00 [0.00, 0.00] |" in (
        hindsight_errors.markdown(points)
    )
    picture = hindsight_errors.draw(points, originals)
    assert style.to_png(picture).startswith(b"\x89PNG")


def test_only_what_is_free_can_be_set_for_the_errors():
    assert hindsight_errors.read_config("teaching", ["--config.seeds=2"]).seeds == 2
    for argument in ("--config.methods=bc", "--config.hindsight.error_rate=0.1", "--stage=train"):
        with pytest.raises(ConfigError):
            hindsight_errors.read_config("teaching", [argument])
