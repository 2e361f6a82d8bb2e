"""Slips of the human in a dialogue: speaking for the agent, telling all at once, going on."""

from __future__ import annotations

import dataclasses

import pytest
from prompted_llm import PERSONA, TASK

from imagination.agents import slips
from imagination.dialogue import Dialogue, Turn


def said(*lines, persona=None, task=TASK):
    turns = []
    for line in lines:
        turns += [Turn("human", line), Turn("agent", "Tutor: Goodbye! Assistant: zeroknow fidgety")]
    return slips(Dialogue("d", "lesson", tuple(turns), persona=persona or PERSONA), task)


@pytest.mark.parametrize(
    "line, count",
    [
        ("Tutor: recursion is a loop.", 1),
        ("I see.\n\nTUTOR: Good.\nStudent: Thanks.", 1),
        ("**Tutor:** Good.", 1),
        ("Ok.\nAssistant: Certainly!", 1),
        ("Agent: hello\nTutor: hello", 1),  # a turn counts once
        ("Student: what is recursion?", 0),
        ("Tutor, what is recursion?", 0),
        ("My last tutor: he was mean.", 0),
        ("Is an agent: a thing?", 0),
        ("Tutoring: is it free?", 0),
        ("明白了。Tutor：递归就是循环。", 1),
        ("", 0),
    ],
)
def test_speaking_for_the_agent(line, count):
    assert said(line)["speaks_for_agent"] == count


def test_human_whose_role_is_agent_may_use_its_label():
    task = dataclasses.replace(TASK, agent_role="coach", human_role="Agent")
    assert said("Agent: hi", task=task)["speaks_for_agent"] == 0
    assert said("Coach: hi", task=task)["speaks_for_agent"] == 1


@pytest.mark.parametrize(
    "lines, persona, count",
    [
        (["I am zeroknow and fidgety."], PERSONA, 1),
        (["I am ZEROKNOW; and: Fidgety!"], PERSONA, 1),
        (["I am zeroknow."], PERSONA, 0),
        (["Hello.", "I am zeroknow and fidgety."], PERSONA, 0),  # not at once
        (["I am zeroknowing, fidgetyish."], PERSONA, 0),
        (["I like art museums and walking."], {"a": "art_museums", "b": "likes walking"}, 0),
        (["He likes walking in art museums."], {"a": "art_museums", "b": "likes walking"}, 1),
        (["Yes, no, what is recursion?"], {"kids": "yes", "pets": "no"}, 0),
        (["Yes, I have kids. No pets."], {"kids": "yes", "pets": "no"}, 1),
        (["I am interested, and patient"], {"a": "not interested", "b": "patient"}, 0),
        (["Of the"], {"of": "the", "to": "of"}, 0),
        (["我容易焦虑，也喜欢博物馆。"], {"mood": "容易焦虑", "taste": "博物馆"}, 1),
        (["私は忍耐強い学生で、音楽が好きです。"], {"a": "忍耐強い", "b": "音楽が好き"}, 1),
        (["我很焦急，心里虑着。"], {"mood": "焦虑", "taste": "博物馆"}, 0),
        (["我很高兴。"], {"a": "高", "b": "兴"}, 0),  # parts of another word
        (["是，我有孩子。"], {"kids": "是", "pets": "有"}, 0),
        (["我用AI学习数学。"], {"tool": "AI", "subject": "数学"}, 1),
        (["Hi"], {}, 0),
    ],
)
def test_giving_the_persona_away_at_once(lines, persona, count):
    turns = tuple(Turn("human", line) for line in lines)
    assert slips(Dialogue("d", "lesson", turns, persona=persona), TASK)["reveals_persona"] == count


@pytest.mark.parametrize(
    "lines, count",
    [
        (["Hi", "Thanks, goodbye!", "One more thing."], 1),
        (["Bye.", "And?", "Well?"], 2),
        (["Ok. Thank you. Have a nice day!", "What about loops?"], 1),
        (["See you later, tutor!", "What about loops?"], 1),
        (["Hi", "Thanks, goodbye!"], 0),
        (["Thanks, bye!", "Bye!"], 0),  # farewells may be exchanged
        (["How do I say goodbye?", "In French?"], 0),
        (["Goodbye. Or no, wait, one question.", "In French?"], 0),
        (["I see you have a point.", "Go on."], 0),
        (["I will not say goodbye before I know it.", "Go on."], 0),
        (["Goodbye to all that is a book.", "Go on."], 0),
        (["Goodbye?", "Go on."], 0),
        (["好的，谢谢你，再见！", "还有一个问题。"], 1),
        (["好。再见。", "再见！"], 0),
        (["わかりました。ありがとうございます。さようなら。", "もう一つ。"], 1),
        (["法语里再见怎么说？", "请说。"], 0),
        (["再见两个字怎么写", "请说。"], 0),
        ([], 0),
    ],
)
def test_going_on_after_the_end(lines, count):
    assert said(*lines)["goes_on_after_end"] == count
