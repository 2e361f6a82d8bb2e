"""Questionnaires: what can be changed without code, and what is told of a file that cannot be."""

from __future__ import annotations

import pytest

from experiments.human_study.questionnaire import (
    FOLDER,
    Questionnaire,
    QuestionnaireError,
    notices,
    path_for,
)
from imagination.simulation import load_world

DEFAULT = (FOLDER / "default.yaml").read_text("utf-8")


def test_each_task_has_the_four_questions_and_a_card_for_each_of_its_personas():
    for path in FOLDER.glob("*.yaml"):
        form = Questionnaire.load(path)
        assert [q.name for q in form.questions] == ["goal", "natural", "asks", "overall"]
        assert all(q.scale == (1, 5) and len(q.anchors) == 2 for q in form.questions)
        if path.stem == "default":
            assert not form.personas
            continue
        axes = load_world(path.stem).task.persona_axes
        assert {axis: tuple(values) for axis, values in form.personas.items()} == dict(axes)


def test_a_task_without_a_questionnaire_gets_the_one_for_all():
    assert path_for("teaching").stem == "teaching"
    assert path_for("coffee").stem == path_for("../teaching").stem == "default"


def test_a_changed_question_needs_no_code():
    text = DEFAULT.replace("- name: natural", "- name: funny").replace(
        "scale: [1, 5]\n  anchors: [like a machine, like a person]",
        "scale: [0, 2]\n  anchors: [never, once, often]",
    )
    question = Questionnaire.from_yaml(text).question("funny")
    assert question.points == [(0, "never"), (1, "once"), (2, "often")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("scale: [1, 5]", "scale: [1, 50]", r"line \d+, field 'questions\[0\].scale'"),
        ("- name: natural", "- name: goal", r"questions\[1\].name.*no other question"),
        ("- name: goal", "- name: Goal!", r"questions\[0\].name.*small letters"),
        ("anchors: [not at all, completely]", "anchors: [a, b, c]", "words of the two ends"),
        ("anchors: [not at all, completely]", "anchors: [no, yes]", "words such as yes in quotes"),
        ("reward: overall", "reward: nothing", r"field 'reward'.*a question"),
        ("answer: 2", "answer: 7", r"attention.answer.*from 1 to 5"),
        ("fewest_turns: 2", "fewest_turns: 0", r"fewest_turns.*from 1"),
        ("opens: human", "opens: nobody", r"human or agent"),
        ("title: Talking", "titel: Talking", r"line 4, field 'titel'"),
        ("agree: I", "agree: [I", "not valid YAML"),
        ("opens: human", "lang: no", r"field 'lang'.*no in quotes"),
        ("opens: human", "words: {sned: Los}", r"words\.sned.*one of the fields skip"),
        ("opens: human", "words: {send: 3}", r"words\.send.*text"),
        ("opens: human", "words: {agent: Agent}", r"words\.agent.*words with \{letter\}"),
        ("opens: human", "words: {send: '{now}'}", r"line \d+, field 'words\.send'.*without \{\}"),
    ],
)
def test_what_cannot_be_is_told_with_line_and_field(old: str, new: str, told: str):
    assert old in DEFAULT
    with pytest.raises(QuestionnaireError, match=told):
        Questionnaire.from_yaml(DEFAULT.replace(old, new, 1), "mine.yaml")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(QuestionnaireError, match=r"none\.yaml cannot be read"):
        Questionnaire.load(tmp_path / "none.yaml")


def test_notices_of_a_task_can_be_added_to_and_not_taken_away():
    (own,) = notices({"counseling"}, [" "])
    assert "no counsellor" in own and "emergency" in own
    assert notices({"counseling"}, ["More."]) == (own, "More.")
    assert "giving money" in notices({"persuasion", "x"})[0] and notices({"teaching"}) == ()
