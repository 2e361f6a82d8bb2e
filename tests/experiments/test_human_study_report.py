"""The report of a study: numbers, sentences, an escaped page, and what the trainer reads of it."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path

import pytest
from imagination_client import FakeClient
from rich.console import Console

from experiments import own_dialogues
from experiments.config import DataConfig
from experiments.human_study import exports
from experiments.human_study.analysis import analyse
from experiments.human_study.judge import judge_talks
from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.records import RATER, Platform
from experiments.human_study.report import Study as Reported
from experiments.human_study.report import render, statements, write_report
from experiments.human_study.session import Rules, Study
from experiments.human_study.store import Store
from imagination.simulation import load_world

FORM = Questionnaire.load(FOLDER / "teaching.yaml")
AGENTS = ["ilql", "bc", "world:odd <name>"]
MEANS = {"ilql": 4.4, "bc": 2.6, "world:odd <name>": 2.6}
SCRIPT = "<script>alert('x')</script>"


def played(path: Path, people: int = 12) -> Study:
    """A study of so many people; number 1 fails the attention check, number 2 meets a crash."""
    study = Study(Store(path), FORM, AGENTS, Rules(most_agent_turns=4, transcripts=6))
    rng = random.Random(0)
    for person in range(people):
        number = study.begin(f"f{person}", Platform())[0].number
        study.read_instructions(number)
        while (step := study.step(number)).name == "chat":
            for place in (0, 2):
                study.say(number, place, f"t{place}", f"Hello {SCRIPT}")
                talk = study.step(number).talk
                if person == 1 and step.number == 1:
                    study.failed(talk, "crashed")
                    study.was_told(number)
                    break
                study.answered(talk, f"Answer {SCRIPT}", False, {"q": 0.5, "seconds": 1.0})
            if study.step(number).key != step.key:
                continue
            study.end_by_human(number)
            felt = rng.gauss(MEANS[step.talk.agent], 0.5)
            answers = {q.name: str(round(min(5, max(1, felt)))) for q in FORM.questions}
            study.rate(
                number,
                step.key.replace("chat", "rate"),
                answers | {"attention!": "2"} if person else answers | {"attention!": "5"},
            )
        ranked = sorted(study.to_rank(number), key=lambda pair: -MEANS[pair[1]])
        study.rank(number, {name: str(i + 1) for i, (name, _) in enumerate(ranked)})
    for rater in range(2):
        number = study.begin(f"r{rater}", Platform(), RATER)[0].number
        study.read_instructions(number)
        while (step := study.step(number)).name == "judge":
            value = str(round(MEANS[step.talk.agent]))
            study.rate(number, step.key, {q.name: value for q in FORM.questions})
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return played(tmp_path_factory.mktemp("study") / "study.sqlite")


def reported(study: Study, keep: bool = False, **others) -> Reported:
    results = analyse(study.store, FORM, AGENTS, "overall", 0, keep, others)
    store = study.store
    return Reported("mine", "teaching", FORM, AGENTS, results, store.talks(), store.ratings())


def test_who_is_above_whom_and_how_surely(study: Study):
    found = reported(study)
    results = found.results
    assert results.people == {
        "begun": 12, "finished": 12, "withdrawn": 0, "inattentive": 1, "counted": 11,
    }  # fmt: skip
    score = results.scores["overall"]["ilql"]
    assert 4 < score.mean < 5 and score.low < score.mean < score.high
    tests = {(t.a, t.b): t for t in results.tests if t.question == "overall"}
    assert tests["ilql", "bc"].verdict == "above" and tests["ilql", "bc"].effect > 1
    assert tests["bc", "world:odd <name>"].verdict == "open"
    assert tests["ilql", "bc"].preferred > 0.9
    assert all(t.p_holm >= t.p for t in results.tests) and len(results.tests) == 12
    assert next(iter(results.ranking)) == "ilql" and results.ranking["ilql"][1] > 0.5
    assert results.agreement["overall"].alpha == 1.0
    assert results.agreement["overall"].transcripts == 6
    assert results.agreement["overall"].with_talker < 1.0
    failed = {agent: each["failed"] for agent, each in results.conversations.items()}
    assert sum(failed.values()) == 1
    first, counts = statements(found)
    assert first.startswith("ilql has the highest mean") and "above bc" in first
    assert "1 failed the attention check" in counts
    assert reported(study, keep=True).results.people["counted"] == 12


def test_human_ratings_against_those_of_others(study: Study):
    found = reported(study, judge=lambda talk: MEANS[talk.agent], nobody=lambda talk: None)
    judge, nobody = (found.results.against[name] for name in ("judge", "nobody"))
    assert judge.correlation > 0.6 and judge.low < judge.correlation < judge.high
    assert nobody.correlation is None and nobody.conversations == 0
    assert "those of judge" in render(found)


def test_a_judge_rates_the_words_and_failures_are_left_out(study: Study):
    talks = study.store.talks()[:3]

    def answer(request):
        assert "<script>" in request.messages[-1][1], "the words of the conversation"
        return "no answer" if request.label == "participant-1-2" else None

    rated = judge_talks(FakeClient(answer), load_world("teaching").task, talks)
    assert rated == {talks[0].number: 0.5, talks[2].number: 0.5}


def test_the_page_and_the_json_are_whole_and_nothing_of_anybody_is_markup(study, tmp_path: Path):
    output = io.StringIO()
    write_report(reported(study), tmp_path, Console(file=output, width=100))
    page = (tmp_path / "study_report.html").read_text("utf-8")
    assert SCRIPT not in page and "odd <name>" not in page
    assert "&lt;script&gt;" in page and "world:odd &lt;name&gt;" in page
    assert not re.search(r"<script|https?://(?!www\.w3)|\son\w+=", page)
    assert "default-src 'none'" in page
    record = json.loads((tmp_path / "study.json").read_text("utf-8"))
    assert record["scores"]["overall"]["ilql"]["participants"] >= 10
    assert "Ratings" in output.getvalue() and "Ranking" in output.getvalue()


def test_a_study_of_nobody_and_of_one_has_a_report(tmp_path: Path):
    for people, told in ((0, "Nobody has rated"), (2, "not tested|distinguishable")):
        study = (
            played(tmp_path / f"{people}.sqlite", people)
            if people
            else Study(Store(tmp_path / "0.sqlite"), FORM, AGENTS)
        )
        assert re.search(told, render(reported(study)))


def test_the_trainer_reads_conversations_with_a_rating_as_the_reward(study: Study, tmp_path: Path):
    exports.write_data(study.store, tmp_path, "teaching", "natural")
    path = tmp_path / "conversations.jsonl"
    data = DataConfig(source="jsonl", path=str(path), test_share=0.2)
    dialogues, _ = own_dialogues.read(data)
    assert len(dialogues) == 35 and {d.source["kind"] for d in dialogues} == {"human"}
    one = next(d for d in dialogues if d.source["method"] == "ilql")
    assert one.reward == one.source["ratings"]["natural"] and one.persona
    assert one.turns[1].annotations == {"q": 0.5}
    unrated = (tmp_path / "unrated.jsonl").read_text("utf-8").splitlines()
    assert not unrated, "the agent that crashed had said nothing"
    ratings = [json.loads(x) for x in (tmp_path / "ratings.jsonl").read_text().splitlines()]
    assert len(ratings) == 35 * 4 + 2 * 6 * 4
    assert {r["own"] for r in ratings} == {True, False}


def test_datasets_reads_both_files(study: Study, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    exports.write_data(study.store, tmp_path, "teaching", "overall")
    for name, rows in (("conversations.jsonl", 35), ("ratings.jsonl", 188)):
        loaded = datasets.load_dataset(
            "json", data_files=str(tmp_path / name), cache_dir=str(tmp_path / "cache")
        )
        assert loaded["train"].num_rows == rows
