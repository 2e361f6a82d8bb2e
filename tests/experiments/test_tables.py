"""Tables of results in the terminal and in Markdown."""

from __future__ import annotations

import dataclasses
import io
import re

import evaluations
import pytest
from evaluations import REFERENCES
from rich.console import Console

from experiments.evaluation.diagnosis import Diagnosis, Loss
from experiments.evaluation.summary import HumanPlayer, PlayedHuman, PromptedAgent
from experiments.report import tables
from experiments.report.diagnosis import diagnosis_tables


def printed(print_function, content) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_function(console, content)
    return console.file.getvalue()


def test_terminal_table_holds_the_numbers_of_the_results_and_no_others():
    text = printed(tables.print_results, evaluations.evaluation())
    shown = set(re.findall(r"-?\d+\.\d+", text))
    # of the tests; of the decoding
    expected = {"0.001", "0.002", "0.28", "0.88", "0.60", "0.6"}
    for scores in evaluations.population().methods.values():
        numbers = (scores.normalized, scores.mean_reward, scores.not_understood)
        expected |= {f"{x:.2f}" for x in (*numbers, *scores.ci95, *scores.normalized_ci95)}
    expected |= {"5.8"}
    references = dataclasses.asdict(REFERENCES).values()
    expected |= {f"{x:.2f}" for x in references}
    expected |= {f"{(x - 1.9) / (4.7 - 1.9):.2f}" for x in references} - {"-0.00"}
    assert shown == expected
    assert "37 %" in text and " 87" in text and "sampled at 0.6, best of 16" in text
    assert "ILQL is above filtered BC by 0.28 (p_holm = 0.002)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("average population") < text.index("difficult population")


def test_methods_are_ranked_by_score_and_the_unrated_come_last():
    content = evaluations.population({"mc": None, "bc": 1.7, "ilql": 4.17, "fbc": 3.38}, [])
    [table, _] = tables.result_tables(evaluations.evaluation(content))
    methods = [row.key for row in table.rows if row.kind == "method"]
    assert methods == ["ilql", "fbc", "bc", "mc"]
    assert [row.key for row in table.rows if row.best] == ["ilql"]


def test_methods_are_ranked_by_what_is_lost_and_those_without_scores_left_out():
    content = evaluations.evaluation(
        evaluations.population({"mc": 3.3, "bc": 1.7, "ilql": 4.1}, [])
    )
    found = {"mc": (0.2, 0.1), "bc": (0.9, 0.0), "ilql": (0.0, 0.1), "fbc": (0.0, 0.0)}
    losses = {
        name: Loss(50, by_candidates, (0.0, 1.0), by_choice, (0.0, 1.0), 0.1, (0.0, 0.2))
        for name, (by_candidates, by_choice) in found.items()
    }
    [table] = diagnosis_tables(Diagnosis(50, {"average": losses}), content)
    assert [row.key for row in table.rows] == ["ilql", "mc", "bc"]


@pytest.mark.parametrize(
    ("candidates", "choice", "advice"),
    [
        (0.1, 0.4, "lost by choice: its values are wrong where it goes"),
        (0.4, 0.1, "lost by candidates: the best is not among what it thinks of saying"),
        (0.4, 0.0, None),  # one utterance: there is no choice to be mended
        (0.05, 0.06, None),  # 0.04 of the score
    ],
)
def test_what_may_help_is_told_by_where_most_is_lost(candidates, choice, advice):
    content = evaluations.evaluation(evaluations.population({"bc": 1.7, "ilql": 4.1}, []))
    losses = {
        "bc": Loss(50, 1.5, (0.0, 1.0), 0.0, (0.0, 0.0), 0.3, (0.0, 0.5)),
        "ilql": Loss(50, candidates, (0.0, 1.0), choice, (0.0, 1.0), 0.1, (0.0, 0.2)),
    }
    [table] = diagnosis_tables(Diagnosis(50, {"average": losses}), content)
    _, *told = table.notes
    assert len(told) == (advice is not None)
    assert all(note.startswith(f"Most of what ILQL loses is {advice}") for note in told)


def test_of_two_equally_good_methods_neither_is_marked_as_best():
    [table, _] = tables.result_tables(
        evaluations.evaluation(evaluations.population({"bc": 1.7, "fbc": 1.7, "ilql": 1.0}, []))
    )
    assert not any(row.best for row in table.rows)


def test_wide_numbers_still_fit_100_columns_uncut():
    wide = evaluations.scores("ilql", -123.45, seconds=12345.0, decoding="a very long one " * 4)
    average = evaluations.population()
    average = dataclasses.replace(average, methods={**average.methods, "ilql": wide})
    text = printed(tables.print_results, evaluations.evaluation(average))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text and "-123.45 [-123.58, -123.31]" in text


def test_markdown_has_the_same_cells_and_notes_as_the_terminal():
    content = evaluations.evaluation()
    text = tables.markdown(content)
    row = next(line for line in text.splitlines() if "**ILQL**" in line)
    assert row.startswith("| **ILQL** | **0.81 [0.76, 0.86]** | 4.17 [4.04, 4.31] | 37 % | 5.8 |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    terminal = " ".join(printed(tables.print_results, content).split())
    notes = tables.result_tables(content)[0].notes
    assert len(notes) == 2
    for note in notes:
        assert note in text and note in terminal


def test_a_pipe_in_a_text_does_not_break_a_markdown_table():
    average = evaluations.population()
    odd = evaluations.scores("bc", 1.7, decoding="a|b")
    average = dataclasses.replace(average, methods={**average.methods, "bc": odd})
    assert "| a\\|b |" in tables.markdown(evaluations.evaluation(average))


def test_columns_stand_only_where_they_say_something():
    [table, _] = tables.result_tables(evaluations.evaluation())
    assert "calls" not in table.headers and "normalized score" in table.headers
    agent = PromptedAgent("m", "plain/1", 2.5, 0.25, None, None, None)
    played = PlayedHuman(3.0, 0.1, {})
    without_world = {"normalized": None, "normalized_ci95": None, "not_understood": None}
    scores = evaluations.scores(
        "plain", 2.0, seeds=0, prompted_agent=agent, played_human=played, **without_world
    )
    content = evaluations.evaluation(
        dataclasses.replace(
            evaluations.population(), references=None, methods={"plain": scores}, tests=()
        )
    )
    content = dataclasses.replace(content, human=HumanPlayer("m", "human/1", "rate/1", ""))
    table = tables.result_tables(content)[0]
    assert table.headers == (
        *("method", "mean reward", "success", "turns", "train s", "calls", "cost", "decoding"),
    )
    [row] = table.rows
    texts = [str(cell) for cell in row.cells]
    assert texts == ["plain prompt", "2.00 [1.87, 2.14]", "37 %", "5.8", "–", "2.5", "$0.2500", "–"]


@pytest.mark.parametrize(
    ("auroc", "is_told"),
    [((1.0, None), True), ((0.61, (0.52, 0.69)), False), ((None, None), False)],
)
def test_an_auroc_without_an_interval_is_told(auroc, is_told: bool):
    text = " ".join(printed(tables.print_heldout, evaluations.heldout(auroc)).split())
    assert ("An AUROC without an interval is the same in every resample" in text) is is_told


def test_heldout_tables_hold_policies_and_predictions():
    text = " ".join(printed(tables.print_heldout, evaluations.heldout()).split())
    for number in (
        "21.37",
        "23.91",
        "before training",
        "48.05",
        "0.61 [0.52, 0.69]",
        "0.58 [0.47, 0.68]",
        "25 %",
        "813",
        "ILQL 1 – 0.31 [0.12, 0.48] -0.05 0.44 103",
        "4 and later 0.43 [0.19, 0.62]",
        "as in the training, by 0.98 a token.",
    ):
        assert number in text
    success = (
        "Success: The <persuadee> gives (a reward of 0.01 or more; 54 % of the test dialogues)."
    )
    assert success in text


def test_policies_without_values_have_no_table_of_predictions():
    content = dataclasses.replace(evaluations.heldout(), value_prediction={}, by_turn={})
    assert [table.name for table in tables.heldout_tables(content)] == ["policy"]


@pytest.mark.parametrize("width", [72, 80, 100])
def test_a_narrow_terminal_cuts_no_cell_off(width):
    row = tables.Row(
        "bc",
        "method",
        (
            tables.Cell("filtered BC"),
            tables.Cell("1.22", "[0.91, 1.51]"),
            tables.Cell("explain intermediate definition"),
            tables.Cell("0.004", "[0.001, 0.009]"),
            tables.Cell("80 of 250"),
        ),
    )
    headers = ("method", "by candidates", "taken instead", "a turn", "times")
    console = Console(width=width, file=io.StringIO(), color_system=None)
    tables.print_table(console, tables.ResultTable("x", "Title", headers, (row,), ()))
    shown = console.file.getvalue()
    assert "\u2026" not in shown
    for cell in row.cells:
        for word in f"{cell.text} {cell.detail or ''}".split():
            assert word in shown
    assert max(map(len, shown.splitlines())) <= width
