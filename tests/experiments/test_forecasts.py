"""Forecasts of a run: what is asked of LLMs, part by part, before a call."""

import io

import pytest
from imagination_client import TASK
from rich.console import Console

from experiments.checks import checked
from experiments.config import base_config
from experiments.forecasts import conversation_forecasts, print_forecasts
from experiments.run_folder import RunError, RunFolder

PLAYED = {
    "evaluation.human": "prompted",
    "llm.model": "m",
    "llm.price_input": 3.0,
    "llm.price_output": 15.0,
}
ROUNDS = {
    "methods": ("ilql", "ilql_imagination1"),
    "seeds": 2,
    "imagination.round_dialogues": 700,
    "evaluation.validation_episodes": 10,
    "evaluation.average_episodes": 30,
    "evaluation.difficult_episodes": 20,
}
DESCRIBED = {
    "task.world": "",
    "task.description": "A seller in a shop gives advice on bicycles to a customer.",
    "imagination.engine": "anthropic",
    "imagination.dialogues": 40,
}


def experiment(**changes):
    config = base_config()
    config.task.world = "teaching"
    config.update_from_flattened_dict(changes)
    return checked(config, judged=False)


def printed(folder, **changes):
    text = io.StringIO()
    print_forecasts(experiment(**changes), RunFolder(folder), Console(file=text, width=400))
    return text.getvalue()


def calls_of(forecast):
    return {step.step: step.calls for step in forecast.steps}


def test_conversations_of_rounds_and_of_the_evaluation_are_counted(tmp_path):
    given = experiment(**PLAYED, **ROUNDS)
    rounds, networks = conversation_forecasts(given, RunFolder(tmp_path)).items()
    tried = len(given.methods[0].decodings) + 1  # and the policy alone
    held, judged = 2 * 700, 2 * 2 * (tried * 10 + 30 + 20)
    assert len(given.methods[0].decodings) > 1
    turns = 9  # of the human, where the agent has eight
    assert rounds[0] == "rounds of imagination: 1,400 conversations"
    assert calls_of(rounds[1]) == {"human/turn": turns * held, "human/rating": held}
    assert networks[0] == f"evaluation of the networks: {judged:,} conversations"
    assert calls_of(networks[1]) == {"human/turn": turns * judged, "human/rating": judged}


def test_prompted_agents_are_counted_with_the_humans_of_a_world(tmp_path):
    given = {"evaluation.prompted": ("plain", "clam"), "evaluation.prompted_episodes": 25}
    llm = {name: value for name, value in PLAYED.items() if name.startswith("llm.")}
    found = conversation_forecasts(experiment(**llm, **ROUNDS, **given), RunFolder(tmp_path))
    plain, clam = found.values()
    assert list(found) == [f"evaluation of {each}: 45 conversations" for each in given[PROMPTED]]
    assert calls_of(plain) == {"agents/plain": 8 * 45}
    # In the last turn nobody is asked back.
    assert calls_of(clam) == {
        "agents/clam_check": 8 * 45,
        "agents/clam_ask": 7 * 45,
        "agents/clam_answer": 45,
    }


@pytest.mark.parametrize("details", [True, False])
def test_humans_that_are_yet_to_be_imagined_are_counted_with_their_details(tmp_path, details):
    own = {"imagination.details": details, "evaluation.prompted": ("plain",)}
    found = conversation_forecasts(experiment(**PLAYED, **DESCRIBED, **own), RunFolder(tmp_path))
    (turn,) = [s for s in found[list(found)[-1]].steps if s.step == "human/turn"]
    assert ("- first words: " in turn.example.system) is details


PROMPTED = "evaluation.prompted"


def test_all_parts_are_in_one_table_and_each_is_summed_up(tmp_path):
    text = printed(tmp_path, **PLAYED, **ROUNDS, **DESCRIBED)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    names = [row[0].strip("| *") for row in rows]
    calls = [int(row[1].replace(",", "")) for row in rows]
    ends = [i for i, row in enumerate(rows) if "**" in row[0]]
    parts = ["imagination", "rounds of imagination", "evaluation of the networks"]
    assert [names[i].partition(":")[0] for i in ends] == parts
    assert calls[-1] == sum(calls[i] for i in ends) and names[-1] == "all"
    for start, end in zip([-1, *ends], ends, strict=False):
        assert calls[end] == sum(calls[start + 1 : end]) > 0
    assert text.count("## human/turn") == 1
    # Edited, the task says how long a conversation may be.
    RunFolder(tmp_path).task.write_text(TASK.to_yaml())
    found = conversation_forecasts(experiment(**PLAYED, **ROUNDS, **DESCRIBED), RunFolder(tmp_path))
    assert calls_of(next(iter(found.values())))["human/turn"] == 1400 * (TASK.max_turns + 1)


def test_where_no_llm_takes_part_all_ways_to_have_one_are_named(tmp_path):
    message = r"imagination\.engine=.*evaluation\.human=prompted.*hindsight\.engine"
    with pytest.raises(RunError, match=message):
        printed(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_models_that_are_asked_need_prices(tmp_path):
    player = {
        "evaluation.player.model": "played",
        "evaluation.player.price_input": 1.0,
        "evaluation.player.price_output": 5.0,
    }
    asked = (
        PLAYED
        | {"llm.price_input": 0.0, "llm.price_output": 0.0, "llm.price_date": "2026-05"}
        | player
    )
    text = printed(tmp_path, **asked)
    assert "No prices" not in text and "Prices as of 2026-05." in text
    text = printed(tmp_path, **asked, **{"evaluation.prompted": ("plain",)})
    assert "No prices are configured for m: the cost is not known" in text


def test_a_task_that_is_gone_is_told_where_its_dialogues_are_there(tmp_path):
    (tmp_path / "dialogues.jsonl").touch()
    with pytest.raises(RunError, match=r"task\.yaml is gone.*Put it back"):
        printed(tmp_path, **PLAYED, **DESCRIBED, **ROUNDS)
