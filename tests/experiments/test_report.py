"""The report of a run: tables, wording, page. Runs are made up; no stage is executed."""

import copy
import html
import io
import json
import re

import matplotlib
import pytest
from rich.console import Console

from experiments.report import figures, page, tables, wording
from experiments.run_folder import RunError
from imagination.dialogue import Dialogue, Turn, write_dialogues

SCRIPT = "<script>alert(1)</script>"


def method(normalized, reward, **more):
    return {
        "mean_reward": reward,
        "ci95": [reward - 0.13, reward + 0.14],
        "normalized": normalized,
        "normalized_ci95": [normalized - 0.031, normalized + 0.043],
        "success_rate": 0.37,
        "turns": 5.8,
        "not_understood": 0.29,
        "episodes": 40,
        "seeds": 3,
        "train_seconds": 87.0,
        "decoding": "rerank, 16 candidates",
        "per_seed": [reward - 0.1, reward, reward + 0.1],
        **more,
    }


def test_of(a, b, difference, p_holm):
    return {"a": a, "b": b, "difference": difference, "p": p_holm / 2, "p_holm": p_holm}


test_of.__test__ = False


def population():
    return {
        "references": {"behaviour": 1.9, "best_behaviour": 3.1, "optimum": 4.7, "uniform": 1.2},
        "methods": {
            "bc": method(-0.07, 1.7),
            "fbc": method(0.53, 3.38),
            "ilql": method(0.81, 4.17, decoding="steered, strength 16"),
        },
        "tests": [
            test_of("fbc", "ilql", -0.28, 0.002),
            test_of("ilql", "bc", 0.88, 0.0004),
            test_of("bc", "fbc", -0.6, 0.0006),
        ],
    }


def evaluation():
    return {
        "task": "teaching",
        "population": {"difficult": population(), "average": population()},
    }


HELDOUT = {
    "task": "persuasion",
    "methods": {"bc": {"perplexity": 21.37}, "ilql": {"perplexity": 23.91}},
    "value_prediction": {
        "ilql": [
            {
                "point": point,
                "auroc_v": 0.61,
                "auroc_v_ci95": [0.52, 0.69],
                "auroc_q": 0.58,
                "auroc_q_ci95": [0.47, 0.68],
                "calibration": [
                    {"predicted": 0.2, "observed": 0.3, "count": 9, "low": 0.1, "high": 0.5},
                    {"predicted": 0.7, "observed": 0.6, "count": 5, "low": 0.4, "high": 0.8},
                ],
            }
            for point in (0.25, 0.5, 1.0)
        ]
    },
    "sizes": {"train": 813, "validation": 101, "test": 103},
    "success": {"words": "The <persuadee> gives.", "reward": 0.01, "share": 0.54},
}


def conversation(name, episode, reward, where="average", seed=0, text="a slope is how steep it is"):
    turns = [Turn("human", "hi", annotations={"understood_as": None})]
    for turn in range(3):
        q = reward - 0.3 * (2 - turn) + 0.01 * episode
        turns.append(
            Turn("agent", text, annotations={"q": q, "v": q - 0.1, "candidates": [{"text": text}]})
        )
        turns.append(Turn("human", "ok", annotations={"understood_as": None if turn else "ask"}))
    source = {
        "kind": "simulated",
        "method": name,
        "seed": seed,
        "population": where,
        "episode": episode,
    }
    persona = {"level": ("novice", "expert")[episode % 2], "cost in $x_{": f"$^{episode % 3}"}
    return Dialogue(f"{name}-{episode}", "teaching", tuple(turns), reward, persona, source)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A whole run: results, conversations, training data, metrics, config."""
    monkeypatch.setattr(figures, "to_png", lambda figure: b"drawn elsewhere")  # half the time
    folder = tmp_path / "run"
    (folder / "metrics").mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    write_dialogues(
        folder / "conversations.jsonl",
        [
            conversation(name, episode, base + 0.1 * (episode % 7), where)
            for name, base in (("ilql", 3.9), ("fbc", 3.1), ("bc", 1.5))
            for where in ("average", "difficult")
            for episode in range(24)
        ],
    )
    lecture = (Turn("human", "hello"), Turn("agent", "a long lecture"), Turn("human", "bye"))
    write_dialogues(
        folder / "dialogues.jsonl",
        [
            Dialogue(str(i), "teaching", lecture, 1.0 + i % 3, {}, {"behaviour": "lecturer"})
            for i in range(9)
        ],
    )
    for seed in range(2):
        rows = [{"step": s, "loss": 3 / (1 + s), "validation/loss": 2.0} for s in range(20)]
        lines = [json.dumps(row) for row in rows] + ['{"step": 20, "lo']
        (folder / "metrics" / f"ilql-seed{seed}.jsonl").write_text("\n".join(lines))
    (folder / "config.yaml").write_text("task: teaching\nsuccess_reward: 4.0\n")
    return folder


def printed(print_function, content):
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_function(console, content)
    return console.file.getvalue()


def page_of(folder):
    """The page, with its typographic signs as they are typed."""
    text = page.write_report(folder).read_text(encoding="utf-8")
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def text_of(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_terminal_table_holds_the_numbers_of_the_json_and_no_others():
    text = printed(tables.print_results, evaluation())
    shown = set(re.findall(r"-?\d+\.\d+", text))
    expected = {"0.001"}  # p_holm < 0.001
    for value in population()["methods"].values():
        for key, digits in (("normalized", 2), ("mean_reward", 2), ("not_understood", 2)):
            expected.add(f"{value[key]:.{digits}f}")
        expected |= {f"{x:.2f}" for x in (*value["ci95"], *value["normalized_ci95"])}
    expected |= {"5.8", "0.28", "0.88", "0.60", "0.002"}
    references = population()["references"]
    expected |= {f"{x:.2f}" for x in references.values()}
    expected |= {f"{(x - 1.9) / (4.7 - 1.9):.2f}" for x in references.values()} - {"-0.00"}
    assert shown == expected
    assert "37 %" in text and " 87" in text and "steered, strength 16" in text
    assert "ILQL is above filtered BC by 0.28 (p_holm = 0.002) and BC by 0.88" in " ".join(
        text.split()
    )
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("average population") < text.index("difficult population")


def test_wide_numbers_still_fit_100_columns_uncut():
    content = evaluation()
    wide = method(-12.34, -123.45, train_seconds=12345, decoding="a very long setting " * 4)
    content["population"]["average"]["methods"]["ilql"] = wide
    text = printed(tables.print_results, content)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text and "-123.45 [-123.58, -123.31]" in text


def test_one_seed_is_said_to_cover_episodes_only():
    content = evaluation()
    for one in content["population"].values():
        for value in one["methods"].values():
            value["seeds"] = 1
    note = "1 seed: the interval covers episodes, not training runs"
    assert note in printed(tables.print_results, content)
    assert note in tables.markdown(content)
    assert note not in printed(tables.print_results, evaluation())


def test_markdown_has_the_same_cells_as_the_terminal():
    text = tables.markdown(evaluation())
    row = next(line for line in text.splitlines() if "ILQL" in line)
    assert row.startswith("| **ILQL** | **0.81 [0.78, 0.85]** | 4.17 [4.04, 4.31] | 37 % | 5.8 |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def losing():
    content = evaluation()
    average = content["population"]["average"]
    average["methods"]["ilql"] = method(0.31, 2.77)
    average["tests"] = [test_of("ilql", "fbc", -0.22, 0.003), test_of("ilql", "bc", 0.38, 0.001)]
    return content


def test_a_loss_reads_as_a_loss(run_folder):
    verdict, sentence = wording.headline(losing()["population"]["average"])
    assert verdict == "below"
    assert sentence.startswith("ILQL loses to filtered BC on the average population")
    assert "-0.22" in sentence
    assert "ILQL is below filtered BC by 0.22" in printed(tables.print_results, losing())
    (run_folder / "evaluation.json").write_text(json.dumps(losing()))
    page = page_of(run_folder)
    assert "ILQL loses to filtered BC" in page and ">behind</span>" in page
    assert re.search(r"interval of ILQL lies below .* best single behaviour", page)


def test_a_difference_without_significance_is_no_win():
    content = population()
    content["tests"] = [test_of("ilql", "fbc", 0.28, 0.3), test_of("ilql", "bc", 0.88, 0.001)]
    verdict, sentence = wording.headline(content)
    assert verdict == "open" and "not distinguishable from filtered BC" in sentence
    assert "beats" not in sentence
    content["tests"] = []
    assert wording.headline(content)[0] == "untested"


def test_a_significantly_better_method_is_named_even_if_another_scores_higher():
    content = population()
    content["methods"]["mc"] = method(0.9, 4.4)
    content["tests"] = [test_of("ilql", "mc", -0.09, 0.4), test_of("ilql", "fbc", -0.1, 0.01)]
    assert "loses to filtered BC" in wording.headline(content)[1]


def test_an_advantage_of_these_trainings_only_is_said_to_be_one(run_folder):
    content = evaluation()
    for test in content["population"]["average"]["tests"]:
        test["p_training_holm"] = 0.21 if test["a"] == "fbc" else 0.014
    (run_folder / "evaluation.json").write_text(json.dumps(content))
    note = (
        "Over training runs ILQL is not distinguishable from filtered BC (p_training_holm = 0.210) "
        "and differs from BC (p_training_holm = 0.014)."
    )
    assert note in " ".join(printed(tables.print_results, content).split())
    assert note in page_of(run_folder)


def test_scale_of_differences_and_seeds_is_recognised():
    content = population()
    assert wording.difference_scale(content) == "normalized score"
    for test in content["tests"]:
        a, b = (content["methods"][test[side]]["mean_reward"] for side in "ab")
        test["difference"] = a - b
    assert wording.difference_scale(content) == "reward"
    seeds = wording.per_seed_scores(content["methods"]["ilql"], content["references"])
    assert seeds[1] == pytest.approx((4.17 - 1.9) / 2.8)


def test_report_has_every_section_and_figure(run_folder):
    page = page_of(run_folder)
    for section in ("results", "figures", "conversations", "data", "method", "config"):
        assert f'id="{section}"' in page
    drawn = {path.stem for path in (run_folder / "figures").glob("*.png")}
    assert drawn == set(page.CAPTIONS) - {"heldout_auroc", "heldout_calibration", "hindsight"}
    assert page.count("<svg") == len(drawn)
    assert not list(run_folder.rglob("*.partial"))
    assert "could not follow" in page and "success (≥ 4)" not in page  # outlines, not text
    assert "lecturer" in page and "{place}" not in page
    text = text_of(page)
    for number in ("0.81", "[0.78, 0.85]", "4.17", "-0.07", "0.0020"):
        assert number in text


def test_same_run_gives_the_same_page(run_folder):
    assert page_of(run_folder) == page_of(run_folder)


def test_texts_are_escaped(run_folder):
    nasty = conversation("ilql", 0, 3.0, text=f"{SCRIPT} & more")
    nasty = Dialogue(
        SCRIPT,
        SCRIPT,
        nasty.turns,
        3.0,
        {SCRIPT: SCRIPT, "level": "novice"},
        nasty.source,
    )
    path = run_folder / "conversations.jsonl"
    others = [conversation("ilql", episode, 4.0) for episode in range(1, 12)]
    write_dialogues(path, [nasty, *others])
    source = {"behaviour": SCRIPT}
    write_dialogues(
        run_folder / "dialogues.jsonl", [Dialogue("a", "t", nasty.turns, 1.0, {}, source)]
    )
    content = evaluation()
    content["task"] = SCRIPT
    content["population"]["average"]["methods"][SCRIPT] = method(0.1, 2.0, decoding=SCRIPT)
    (run_folder / "evaluation.json").write_text(json.dumps(content))
    (run_folder / "config.yaml").write_text(f"name: '{SCRIPT}'\n")
    page = page_of(run_folder)
    assert "<script" not in page and "alert(1)" in page
    assert html.escape(f"{SCRIPT} & more") in page


def test_page_loads_nothing(run_folder):
    (run_folder / "heldout.json").write_text(json.dumps(HELDOUT))
    page = page_of(run_folder)
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"<(script|link|img|iframe)\b|@import|\bsrc=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


@pytest.mark.parametrize("gone", ["conversations.jsonl", "dialogues.jsonl", "config.yaml"])
def test_missing_inputs_skip_their_section(run_folder, gone):
    (run_folder / gone).unlink()
    for path in (run_folder / "metrics").iterdir():
        path.unlink()
    page = page_of(run_folder)
    assert 'id="learning_curves"' not in page and 'id="scores"' in page
    section = {"conversations.jsonl": "conversations", "dialogues.jsonl": "data"}
    assert f'id="{section.get(gone, "config")}"' not in page


def test_one_method_without_difficult_population(run_folder):
    content = {"task": "teaching", "population": {"average": population()}}
    average = content["population"]["average"]
    average["methods"] = {"ilql": average["methods"]["ilql"]}
    average["tests"] = []
    (run_folder / "evaluation.json").write_text(json.dumps(content))
    write_dialogues(
        run_folder / "conversations.jsonl",
        [conversation("ilql", e, 1.0 + e % 4) for e in range(20)],
    )
    page = page_of(run_folder)
    assert "ILQL has a normalized score of 0.81 [0.78, 0.85] on the average population." in page
    assert "beats" not in page and "difficult population" not in page
    assert "ILQL" in printed(tables.print_results, content)


def test_missing_and_null_fields_are_dashes_not_crashes(run_folder):
    content = evaluation()
    content["population"]["difficult"] = None
    average = content["population"]["average"]
    average["references"] = None
    average["methods"] = {
        "ilql": {"mean_reward": 3.0, "ci95": None, "turns": None},
        "bc": {"normalized": float("nan")},
        "mc": None,
    }
    average["tests"] = [{"a": "ilql", "b": "bc"}]
    (run_folder / "evaluation.json").write_text(json.dumps(content))
    assert "nan" not in text_of(page_of(run_folder)).lower()
    text = printed(tables.print_results, content)
    assert "–" in text and "nan" not in text.lower()


def test_heldout_alone_is_a_report(run_folder):
    for name in ("evaluation.json", "conversations.jsonl"):
        (run_folder / name).unlink()
    (run_folder / "heldout.json").write_text(json.dumps(HELDOUT))
    page = page_of(run_folder)
    assert "With 50 % of a held-out dialogue seen, ILQL&#39;s V foretells the outcome" in page
    assert 'id="heldout_auroc"' in page and 'id="heldout_calibration"' in page
    success = (
        "Success: The <persuadee> gives (a reward of 0.01 or more; 54 % of the test dialogues)."
    )
    assert page.count(html.escape(success)) == 2  # under the table and under the figure
    text = printed(tables.print_heldout, HELDOUT)
    assert success in " ".join(text.split())
    for number in ("21.37", "23.91", "0.61 [0.52, 0.69]", "0.58 [0.47, 0.68]", "25 %", "813"):
        assert number in text


def test_values_no_better_than_guessing_are_said_to_be_so(run_folder):
    content = copy.deepcopy(HELDOUT)
    for point in content["value_prediction"]["ilql"]:
        point["auroc_v_ci95"] = [0.45, 0.69]
    (run_folder / "evaluation.json").unlink()
    (run_folder / "heldout.json").write_text(json.dumps(content))
    assert "does not foretell the outcome better than guessing" in page_of(run_folder)


def test_run_without_results_says_which_stage_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json.*--stage=evaluate"):
        page.write_report(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"task": ')
    with pytest.raises(RunError, match=r"evaluation\.json, line 1"):
        page.write_report(tmp_path)


def test_examples_show_defeats_as_well_as_victories():
    rewards = {0: (3.0, 3.0), 1: (5.0, 1.0), 2: (1.0, 4.5), 3: (3.5, 3.0), 4: (3.2, 3.0)}
    dialogues = [
        conversation(name, episode, pair[index])
        for episode, pair in rewards.items()
        for index, name in enumerate(("ilql", "fbc"))
    ]
    rule, examples = page.pick_examples(dialogues, 4.0)
    assert [example.episode for example in examples] == [0, 1, 2, 4]
    assert "most negative" in rule
    worst = examples[2]
    assert worst.why.startswith("smallest") and [c["method"] for c in worst.columns] == [
        "ilql",
        "fbc",
    ]
    assert [column["rating"]["success"] for column in worst.columns] == [False, True]


def test_only_what_the_human_could_not_follow_is_marked():
    marks = [turn["not_understood"] for turn in page.bubbles(conversation("ilql", 0, 3.0))]
    assert marks == [False, False, False, True, False, True, False]


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    assert figures.to_png(figures.scores(evaluation())).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
