"""A run whose agent looks ahead, from its settings to its report."""

from __future__ import annotations

import pytest
from in_process import SMALLEST, run
from rich.console import Console

from experiments.checks import checked
from experiments.command_line import parse
from experiments.config import ConfigError
from experiments.evaluation.summary import UnitResult
from experiments.networks import load_agent
from experiments.run_folder import RunFolder, Unit
from experiments.serving.specs import split_specs
from experiments.teaching import get_config
from experiments.training_data import TrainingData, check_dialogues
from ilql_jax.decoding_config import DecodingConfig
from imagination.dialogue import DialogueError, read_dialogues
from imagination.tokenization import DialogueTokenizer

AHEAD = "sampled, best of 3, looking ahead by 2, replies 1"
SETTINGS = (
    *(a for a in SMALLEST if not a.startswith("--config.methods")),
    "--config.methods=ilql",
    f'--config.decoding.ilql=("sampled, best of 3", "{AHEAD}")',
)
PREDICTED = "--config.method.ilql.observation_loss_weight=1"


def experiment(*arguments: str):
    return checked(parse("teaching", get_config(), ["teaching.py", *SETTINGS, *arguments]).config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "ahead")
    ended = run(folder.path, *SETTINGS, PREDICTED)
    assert ended.status == 0, ended.output + ended.traceback
    return folder


def test_it_is_tried_like_the_others_and_the_report_says_what_it_costs(folder):
    tried = UnitResult.read(folder.unit_result(Unit("ilql", 0))).validation
    assert list(tried) == ["sampled, best of 3", AHEAD, "sampled"]
    page = folder.path.joinpath("report.html").read_text()
    table = page[page.index("Decodings that were tried") :]
    row = table[table.index(AHEAD) :]
    assert row[: row.index("</tr>")].count("27") == 1  # 3 (1 + 2 · 1 · (1 + 3))


def test_dialogues_that_are_over_say_so_to_who_predicts(folder):
    dialogues = {each.id: each for each in read_dialogues(folder.dialogues)}
    for with_ends in (False, True):
        data = TrainingData.load(folder, 320, with_ends=with_ends)
        assert all(t.is_action[-1] != with_ends for t in data.trajectories if t.terminal)
    assert any(dialogues[t.name.removeprefix("dialogue ")].terminal for t in data.trajectories)


def test_the_agent_of_a_run_imagines_what_its_data_says(folder):
    agent = load_agent(experiment(PREDICTED), folder, Unit("ilql", 0), DecodingConfig.parse(AHEAD))
    context = agent.tokenizer.context(read_dialogues(folder.dialogues)[0].turns[:1])
    (answer,) = agent.policy.respond([context], [0])
    assert len(answer.written) > 1 and agent.policy._discount == 0.99


def test_a_network_that_was_not_to_predict_is_refused_before_it_is_trained():
    with pytest.raises(ConfigError, match="set its observation_loss_weight above 0"):
        experiment()


def test_a_decoding_that_looks_ahead_is_one_spec_of_an_agent():
    agent = f"runs/teaching:ilql:{AHEAD}"
    assert split_specs(f"{agent},runs/teaching:bc:greedy") == (agent, "runs/teaching:bc:greedy")


def test_who_does_not_look_ahead_needs_no_layout_of_replies(folder, monkeypatch):
    def unknown(*_):
        raise DialogueError("no such layout")

    monkeypatch.setattr(DialogueTokenizer, "replies", unknown)
    plain = '--config.decoding.ilql=("sampled, best of 3",)'
    how = DecodingConfig.parse("sampled, best of 3")
    assert load_agent(experiment(PREDICTED, plain), folder, Unit("ilql", 0), how)
    in_rounds = (
        f"--config.imagination.round_decoding={AHEAD}",
        "--config.methods=ilql_imagination1,ilql",
    )
    for asked in ((), (plain, *in_rounds)):
        given = experiment(PREDICTED, *asked)
        with pytest.raises(DialogueError, match="no such layout"):
            check_dialogues(given, folder, read_dialogues(folder.dialogues), Console())
