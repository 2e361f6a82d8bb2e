"""The page of a run: sections, escaping, figures. One run is made up and rendered once."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path

import browsers
import evaluations
import pytest
from evaluations import comparison, conversation

from experiments import provenance, travel
from experiments.build import build
from experiments.evaluation.returns import Discount
from experiments.evaluation.typed_json import ResultsError
from experiments.looks import look_of
from experiments.metrics import LoggingConfig, open_logger
from experiments.provenance import Session
from experiments.report import examples, page
from experiments.report.figures import drawn
from experiments.report.run import Trained, read_run
from experiments.stages.report import facts_of
from imagination.dialogue import Dialogue, Turn, write_dialogues
from imagination.tokenization import DialogueTokenizer

SCRIPT = "<script>alert(1)</script>"
TRAINED = {"ilql": Trained(Discount(0.97, by_token=False))}


def plain_signs(text: str) -> str:
    """The page with its typographic signs as they are typed."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def write_run(folder: Path) -> None:
    """A whole run: results, conversations with hostile texts, training data, metrics, config."""
    losing = evaluations.population(
        {"bc": 1.7, "fbc": 3.38, "ilql": 2.77, "my_method": 2.0},
        [
            comparison("fbc", "ilql", 0.61, 0.003, 0.21),
            comparison("ilql", "bc", 1.07, 0.001, 0.014),
            comparison("ilql", "my_method", 0.77, 0.02),
        ],
    )
    nasty = evaluations.scores("my_method", 2.0, decoding=SCRIPT)
    nasty = dataclasses.replace(nasty, look=dataclasses.replace(nasty.look, title=SCRIPT))
    difficult = dataclasses.replace(losing, methods={**losing.methods, "my_method": nasty})
    evaluation = evaluations.evaluation(evaluations.population(), difficult)
    folder.mkdir(parents=True)
    dataclasses.replace(evaluation, task=SCRIPT).write(folder / "evaluation.json")
    evaluations.heldout().write(folder / "heldout.json")
    talks = [
        conversation(name, episode, base + 0.1 * (episode % 7), where)
        for name, base in (("ilql", 3.9), ("fbc", 3.1), ("bc", 1.5), ("my_method", 2.0))
        for where in ("average", "difficult")
        for episode in range(12)
    ]
    talks[0] = dataclasses.replace(
        conversation("ilql", 0, 3.0, text=f"{SCRIPT} & more"),
        id=SCRIPT,
        persona={SCRIPT: SCRIPT, "level": "novice"},
    )
    write_dialogues(folder / "conversations.jsonl", talks)
    lecture = (Turn("human", "hello"), Turn("agent", f"a lecture {SCRIPT}"), Turn("human", "bye"))
    data = [
        Dialogue(str(i), "t", lecture, 1.0 + i % 3, {}, {"behaviour": f"lecturer{SCRIPT[: i % 9]}"})
        for i in range(9)
    ]
    write_dialogues(folder / "dialogues.jsonl", data)
    for seed in range(2):
        with open_logger(LoggingConfig(backends=()), log_file(folder, seed)) as logger:
            logger.resume(0)
            for step in range(20):
                logger.log(step, {"loss": 3 / (1 + step), "q_loss": 1.0, "q_mean": 7.0})
        with log_file(folder, seed).open("a") as file:
            file.write('{"step": 20, "lo')
    (folder / "config.yaml").write_text(f"name: '{SCRIPT}'\n")
    made = Session("train", f"python {SCRIPT}", "0123abcd", "jax 1", "2 cores", "2026-11-28", 61.0)
    provenance.record(folder / "sessions.jsonl", made)


def log_file(folder: Path, seed: int) -> Path:
    return folder / "metrics" / f"ilql-seed{seed}.jsonl"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    write_run(folder)
    page.write_report(folder, TRAINED)
    return folder


@pytest.fixture(scope="module")
def shown(run_folder) -> str:
    return plain_signs((run_folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def without_figures(monkeypatch):
    """For what stands in the text of a page; figures take all the time."""
    monkeypatch.setattr(page, "draw", lambda run: [])


def page_of(folder: Path, **results) -> str:
    """The page of a folder that holds these results alone."""
    folder.mkdir(exist_ok=True)
    for name, result in results.items():
        result.write(folder / f"{name}.json")
    return plain_signs(page.write_report(folder).read_text(encoding="utf-8"))


def test_no_words_of_a_table_lie_over_others(tmp_path, without_figures):
    """With the longest names that methods of ours have."""
    rewards = {"bc": 1.7, "ilql": 2.8, "ilql_imagination2": 3.4, "ilql_hindsight12": 3.2}
    tests = [comparison("ilql_imagination2", name, 0.6, 0.003) for name in ("bc", "ilql")]
    content = evaluations.population(rewards, tests)
    page_of(tmp_path / "run", evaluation=evaluations.evaluation(content, content))
    with browsers.chromium() as browser:
        for width in (1200, 390):
            shown = browser.new_page(viewport={"width": width, "height": 900})
            shown.goto((tmp_path / "run" / "report.html").as_uri())
            assert shown.locator("table.results td").count() > 20
            too_wide = "cells => cells.filter(c => c.scrollWidth > c.clientWidth + 1)"
            told = shown.eval_on_selector_all("td, th", f"{too_wide}.map(c => c.textContent)")
            assert told == [], width


def test_every_section_and_figure_is_there(run_folder, shown):
    for section in ("results", "figures", "conversations", "data", "method", "made", "config"):
        assert f'<h2 id="{section}">' in shown
    files = {path.stem for path in (run_folder / "figures").glob("*.png")}
    assert files == set(drawn.CAPTIONS) - {"hindsight"}
    assert shown.count("<svg") == 2 * len(files)  # for wide screens and narrow ones
    for path in (run_folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(run_folder.rglob("*.partial"))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown, flags=re.DOTALL)
    assert len(captions) == len(files) and not any("{" in caption for caption in captions)
    [calibration] = [text for text in captions if "in groups of equal size" in text]
    assert "Returns are discounted as in the training, by 0.97 an utterance." in calibration


def test_the_numbers_of_the_tables_are_on_the_page(shown):
    text = text_of(shown)
    for number in ("0.81", "[0.76, 0.86]", "4.17", "-0.07", "0.0020", "23.91", "0.61 [0.52, 0.69]"):
        assert number in text


def test_texts_are_escaped(shown):
    assert "<script" not in shown
    assert html.escape(f"{SCRIPT} & more") in shown  # a conversation
    for place in ("<title>", "<summary>config.yaml</summary><pre>name: &#39;"):
        assert f"{place}{html.escape(SCRIPT)}" in shown
    for cell in ('<span class="dot method-3"></span>', '<td class="words wrap">', "<b>", "<i>"):
        assert f"{cell}{html.escape(SCRIPT)}" in shown  # a title, a decoding, headings, a persona
    assert f"a lecture {html.escape(SCRIPT)}" in shown


def test_page_loads_nothing(shown):
    assert "http://" not in shown and "https://" not in shown
    assert not re.search(r"<(script|link|img|iframe)\b|@import|\bsrc=", shown)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', shown))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", shown))


def test_every_colour_of_a_figure_follows_light_and_dark(shown):
    figures = "".join(re.findall(r"<svg.*?</svg>", shown, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", figures)
    used = set(re.findall(r"var\(--([\w-]+)\)", shown))
    for block in re.findall(r":root \{(.*?)\}", shown):
        assert used <= {*re.findall(r"--([\w-]+):", block), "c"}
    assert {"method-0", "method-1", "method-2", "method-3"} <= used


def test_the_page_says_what_it_was_made_with(shown):
    block = shown[shown.index('<h2 id="made">') :]
    assert html.escape(f"python {SCRIPT}") in block
    for fact in ("train 61 s", "0123abcd", "jax 1", "2 cores", "2026-11-28"):
        assert f"<dd>{fact}</dd>" in block


def test_two_conversations_side_by_side_stand_at_the_top(shown):
    pair = shown[shown.index("One human, two agents") : shown.index('<h2 id="results">')]
    assert re.findall(r"<header><b>(.*?)</b>", pair) == ["BC", "ILQL"]
    assert "widest difference in rating, ILQL minus BC" in pair


def test_a_pair_needs_somebody_to_differ_from():
    looks = {name: look_of(name) for name in ("ilql", "mc")}
    talks = [conversation("ilql", episode, 3.0 + episode) for episode in range(3)]
    assert examples.pick_pair(talks, (), 4.0, looks) is None
    assert examples.pick_pair((), (), 4.0, looks) is None
    others = [conversation("mc", episode, 3.0) for episode in range(2)]
    pair = examples.pick_pair([*talks, *others], (), 4.0, looks).example
    assert pair.episode == 1 and [each["method"] for each in pair.columns] == ["mc", "ilql"]
    unrated = [conversation("mc", 0, None)]
    assert examples.pick_pair([*talks, *unrated], (), 4.0, looks) is None


def test_beside_an_agent_alone_stands_the_best_behaviour_of_its_data():
    talks = [conversation("ilql", episode, 3.0 + episode) for episode in range(3)]
    median = talks[1].persona
    other = {**median, "level": "novice"}
    data = [
        Dialogue(
            str(index),
            "t",
            (Turn("agent", f"{name} {reward}"),),
            reward,
            persona,
            {"behaviour": name},
        )
        for index, (name, reward, persona) in enumerate(
            [
                ("lecturer", 4.0, median),
                ("lecturer", 0.0, median),
                ("good_tutor", 2.5, other),
                ("good_tutor", 2.9, median),
                ("good_tutor", 2.8, median),
                ("good_tutor", 2.1, median),
                ("good_tutor", None, median),
            ]
        )
    ]
    looks = {name: look_of(name) for name in ("ilql", "mc", "bc")}
    pair = examples.pick_pair(talks, data, 4.0, looks)
    left, right = pair.example.columns
    assert (left["title"], left["rating"]["text"]) == ("good tutor, in the data", "2.80")
    assert (right["title"], right["rating"]["text"], pair.example.episode) == ("ILQL", "4.00", 1)
    assert "good tutor (mean reward 2.57), with the same: of 3 such dialogues" in pair.how
    [far] = examples.pick_pair(talks, data[2:3], 4.0, looks).example.columns[:1]
    assert far["rating"]["text"] == "2.50"
    assert "differs in 1 of 2 axes" in examples.pick_pair(talks, data[2:3], 4.0, looks).how
    # An agent that imitates, with the same human, tells more; other methods tell less.
    rivals = [conversation("mc", episode, 3.0) for episode in range(3)]
    assert (
        examples.pick_pair([*talks, *rivals], data, 4.0, looks).example.columns[0]["method"] == ""
    )
    rivals += [conversation("bc", episode, 1.0) for episode in range(3)]
    shown = examples.pick_pair([*talks, *rivals], data, 4.0, looks).example.columns
    assert [column["method"] for column in shown] == ["bc", "ilql"]


def test_a_win_and_a_loss_read_as_such(shown):
    text = text_of(shown)
    assert "ILQL beats BC and filtered BC on the average population" in text
    assert "ILQL is not distinguishable from filtered BC on the difficult population" in text
    assert (
        "p_holm = 0.003 over other humans, p_training_holm = 0.210 over trainings); it beats"
        in text
    )
    assert '<span class="mark above">ahead</span>' in shown
    assert text.index("beats BC and") < text.index("ILQL is not distinguishable")
    again = "Over training runs ILQL is not distinguishable from filtered BC"
    assert f'<p class="beside">{again}' in shown


def test_where_ilql_stands_against_its_data_is_said(shown, tmp_path, without_figures):
    assert "interval of ILQL lies above the score of the best single behaviour" in shown
    worse = evaluations.population(
        {"ilql": 2.77, "bc": 1.7}, [comparison("ilql", "bc", 1.07, 0.01)]
    )
    text = page_of(tmp_path / "run", evaluation=evaluations.evaluation(worse))
    assert re.search(r"interval of ILQL lies below .* single behaviour in the data, 0\.43", text)


def test_the_same_run_gives_the_same_page(run_folder):
    run = read_run(run_folder)
    pages = [page.render(run, [next(drawn.draw(run))], "run") for _ in range(2)]
    assert pages[0] == pages[1] and "<svg" in pages[0]


@pytest.mark.parametrize(
    ("gone", "section"),
    [
        ("conversations.jsonl", "conversations"),
        ("dialogues.jsonl", "data"),
        ("config.yaml", "config"),
    ],
)
def test_missing_files_skip_their_section(run_folder, tmp_path, without_figures, gone, section):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (folder / gone).unlink()
    text = page.write_report(folder).read_text()
    assert f'id="{section}"' not in text and f'href="#{section}"' not in text
    assert '<h2 id="results">' in text


def test_figures_without_their_data_are_left_out(run_folder, tmp_path):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.rmtree(folder / "metrics")
    for name in ("conversations.jsonl", "heldout.json"):
        (folder / name).unlink()
    assert [each.name for each in drawn.draw(read_run(folder))] == ["scores"]


def test_one_method_alone_is_not_compared(tmp_path, without_figures):
    alone = evaluations.population({"ilql": 4.17}, [])
    evaluation = dataclasses.replace(evaluations.evaluation(), population={"average": alone})
    text = page_of(tmp_path / "run", evaluation=evaluation)
    assert "ILQL has a normalized score of 0.81 [0.76, 0.86] on the average population." in text
    assert "beats" not in text and "difficult population" not in text


def test_values_that_do_not_exist_are_dashes(tmp_path):
    unrated = evaluations.population(
        {"ilql": None, "bc": 2.0}, [comparison("ilql", "bc", None, None)]
    )
    text = text_of(page_of(tmp_path / "run", evaluation=evaluations.evaluation(unrated, unrated)))
    assert "was not tested against BC" in text and "nan" not in text.lower()
    assert "None" not in text and "–" in text


def test_heldout_alone_is_a_report(tmp_path, without_figures):
    text = page_of(tmp_path / "run", heldout=evaluations.heldout())
    said = "With 50 % of a held-out dialogue seen, ILQL&#39;s V foretells the outcome: AUROC 0.61"
    assert said in text
    success = "The <persuadee> gives (a reward of 0.01 or more; 54 % of the test dialogues)."
    assert html.escape(success) in text
    assert "813 train, 103 test dialogues" in text
    assert '<h2 id="replies">' not in text  # the dialogues are not there


def test_replies_stand_beside_what_was_said(run_folder):
    text = (run_folder / "report.html").read_text("utf-8")
    section = text.split('<h2 id="replies">')[1].split("<h2")[0]
    said = text_of(section)
    for words in ("hello", "a lecture", "Would <you> give?", "What do you care for?", "0.71"):
        assert words in said
    assert said.index("as it was said") < said.index("ILQL") < said.index("BC")
    assert "<you>" not in section


def test_a_moment_whose_dialogue_is_not_there_is_left_out():
    dialogue = Dialogue("0", "t", (Turn("human", "hello"), Turn("agent", "hi")), 1.0)
    looks = {name: look_of(name) for name in ("bc", "ilql")}
    moments = evaluations.heldout().moments
    [shown] = examples.replies(moments, [dialogue], looks)
    assert [column["title"] for column in shown["columns"]] == ["as it was said", "ILQL", "BC"]
    assert not examples.replies(moments, [dataclasses.replace(dialogue, id="1")], looks)
    late = dataclasses.replace(moments[0], turn=2)
    assert not examples.replies([late], [dialogue], looks)


@pytest.mark.parametrize(
    ("auroc", "said"),
    [
        ((0.57, (0.45, 0.69)), "does not foretell the outcome better than guessing"),
        ((1.0, None), "V has an AUROC of 1.00 (0.5 is guessing), and resampling gives it no"),
        ((None, None), "V cannot be judged: all dialogues succeed, or all fail."),
    ],
)
def test_values_no_better_than_guessing_are_said_to_be_so(tmp_path, without_figures, auroc, said):
    assert said in page_of(tmp_path / "run", heldout=evaluations.heldout(auroc))


def test_run_without_results_says_which_stage_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json.*--stage=evaluate"):
        page.write_report(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"task": ')
    with pytest.raises(ResultsError, match=r"evaluation\.json, line 1"):
        page.write_report(tmp_path)


def test_examples_show_defeats_as_well_as_victories():
    rewards = {0: (3.0, 3.0), 1: (5.0, 1.0), 2: (1.0, 4.5), 3: (3.5, 3.0), 4: (3.2, 3.0)}
    dialogues = [
        conversation(name, episode, pair[index])
        for episode, pair in rewards.items()
        for index, name in enumerate(("ilql", "fbc"))
    ]
    looks = {name: look_of(name) for name in ("ilql", "fbc")}
    rule, chosen = examples.pick_examples(dialogues, 4.0, looks)
    assert [example.episode for example in chosen] == [0, 1, 2, 4]
    assert "most negative" in rule and "ILQL minus filtered BC" in rule
    worst = chosen[2]
    assert worst.why.startswith("smallest")
    assert [column["title"] for column in worst.columns] == ["ILQL", "filtered BC"]
    assert [column["rating"]["success"] for column in worst.columns] == [False, True]


def test_examples_are_ranked_against_the_strongest_rival():
    dialogues = [
        conversation(name, episode, reward)
        for episode in range(3)
        for name, reward in (("ilql", 3.0), ("bc", 2.5), ("fbc", 1.0), ("my_method", None))
    ]
    looks = {name: look_of(name) for name in ("ilql", "bc", "fbc", "my_method")}
    rule, _ = examples.pick_examples(dialogues, 4.0, looks)
    assert "ILQL minus BC" in rule
    rule, _ = examples.pick_examples(dialogues[::4], 4.0, looks)
    assert "median rating of ILQL" in rule


def test_only_what_the_human_could_not_follow_is_marked():
    marks = [turn["not_understood"] for turn in examples.bubbles(conversation("ilql", 0, 3.0))]
    assert marks == [False, False, False, True, False, True, False]


def test_a_finished_folder_reads_as_the_run_that_was_written(run_folder):
    run = read_run(run_folder)
    assert set(run.metrics) == {("ilql", 0), ("ilql", 1)}
    assert [record["step"] for record in run.metrics["ilql", 0]] == list(range(20))
    assert run.looks["my_method"].title == SCRIPT
    assert json.loads((run_folder / "evaluation.json").read_text())["task"] == run.task


def test_trainings_are_read_by_their_settings():
    config = travel.get_config()
    config.methods = ("bc", "ilql", "ilql_imagination1", "ilql_imagination2", "mc", "dpo")
    config.imagination.round_start, config.imagination.round_share = "agent", 0.25
    config.train.steps, config.method.mc.credit = 1000, "token"
    config.train.utterance_discount, config.train.token_discount = 0.9, 0.8
    config.model.utterance_q = "last"
    by_utterance = Discount(0.9, by_token=False)
    facts = facts_of(build(config))
    assert facts.pop("dpo").steps_before == 1000  # goes on from bc
    assert facts == {
        "bc": Trained(),
        "ilql": Trained(by_utterance),
        "ilql_imagination1": Trained(by_utterance, 1000),
        "ilql_imagination2": Trained(by_utterance, 1250),
        "mc": Trained(Discount(0.8, by_token=True)),
    }
    config.imagination.round_start = "fresh"
    assert facts_of(build(config))["ilql_imagination2"].steps_before == 0


def test_returns_of_tokens_need_the_tokenizer(run_folder, tmp_path):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    by_token = {"ilql": Trained(Discount(0.9, by_token=True)), "fbc": TRAINED["ilql"]}
    talks = read_run(folder).conversations
    without = read_run(folder, by_token).returns
    assert {name.split("-")[0] for name in without} == {"fbc"}
    DialogueTokenizer.train(talks, 400).save(folder / "tokenizer")
    found = read_run(folder, by_token).returns
    talk = next(each for each in talks if each.source["method"] == "ilql")
    first, *_, last = found[talk.id]
    assert last == talk.reward and first < 0.9**6 * talk.reward  # two turns of some words
