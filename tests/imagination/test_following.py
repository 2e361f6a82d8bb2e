"""Words of a person in the place of a world's human."""

from __future__ import annotations

import pytest

from imagination.dialogue import Turn
from imagination.simulation import WORLDS, grammar, load_world
from imagination.simulation.dice import Dice
from imagination.simulation.following import (
    example_sentences,
    final_acts,
    follow,
    heard,
    leaves_topic,
    opening_replies,
    opening_slots,
    possible_replies,
)
from imagination.simulation.speakers import (
    BehaviourAgent,
    SimulatedHuman,
    sample_conversations,
)
from imagination.speakers import converse

TEACHING = load_world("teaching")
HELLO = Turn("human", "Hi, can you explain recursion?")
ASKED = [HELLO, Turn("agent", "What helps you most: examples, analogies or definitions?")]
EXPLAINED = [
    *ASKED,
    Turn("human", "I like examples"),
    Turn("agent", "At medium level, by example."),
]


@pytest.mark.parametrize("name", WORLDS)
def test_it_follows_the_worlds_own_humans_as_they_remember_it(name: str):
    world = load_world(name)
    conversations = sample_conversations(world, "average", 40, seed=3, prefix="t")
    converse(BehaviourAgent(world), SimulatedHuman(world), conversations, world.task)
    for conversation in conversations:
        known = follow(world, conversation.turns)
        assert known.state == conversation.human_memory.state
        said = [t.text for t in conversation.turns if t.speaker == "human"]
        assert all(heard(world, text) for text in said)


@pytest.mark.parametrize(
    ("name", "act"),
    [("teaching", "wrap_up"), *((name, "close") for name in WORLDS if name != "teaching")],
)
def test_the_final_act_of_a_world_is_found(name: str, act: str):
    assert final_acts(load_world(name)) == {act}


def test_loose_words_count_where_they_can_be_meant_and_others_change_nothing():
    after = follow(TEACHING, EXPLAINED)
    assert (after.state.style, after.act) == ("example", "explain_intermediate_example")
    lost = follow(TEACHING, [*EXPLAINED, Turn("human", "that was too hard")])
    assert lost.state.reaction == "lost"
    # Understood, but no answer to an explanation; and not understood at all.
    for text in ("I am a complete beginner.", "banana xyzzy the of of", "", "\x1b[2J"):
        said = follow(TEACHING, [*EXPLAINED, Turn("human", text)])
        assert (said.state, said.turns) == (after.state, 5)


def test_a_conversation_without_an_opening_begins_as_most_do():
    assert follow(TEACHING, [Turn("human", "hm")]).state == TEACHING.begin("asks")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("banana xyzzy the of of", []),
        ("", []),
        ("the weather is nice today", []),
        ("that was too hard", ["lost"]),
        ("I'm new to this", ["claims novice"]),
        ("of gravity", ["gravity"]),
        ("Hi, can you explain recursion?", ["asks", "recursion"]),
    ],
)
def test_what_can_be_understood_of_words(text: str, told: list[str]):
    assert heard(TEACHING, text) == told


LEARNED = [
    *EXPLAINED,
    Turn("human", "Oh, now I see."),
    Turn("agent", "Is that clear? Say it back."),
]
TESTED = [HELLO, Turn("agent", "Please try this small exercise: what comes out?")]
GIBBERISH = [HELLO, Turn("agent", "Blah blah xyzzy.")]


def after(opening: str, act: str, world: str) -> list[Turn]:
    """An opening of a world's human, and an act of its agent."""
    known = load_world(world)
    slots, dice = known.draw_slots(0), Dice(0)
    said = known.replies[opening].expand(dice, slots), known.acts[act].expand(dice, slots)
    return [Turn("human", said[0]), Turn("agent", said[1])]


@pytest.mark.parametrize(
    ("name", "before", "texts", "reply"),
    [
        ("teaching", EXPLAINED, ("I don't get it", "I don’t understand this.", "huh?"), "lost"),
        ("teaching", EXPLAINED, ("I have no idea", "no", "Not really", "sorry, what?"), "lost"),
        ("teaching", EXPLAINED, ("yes", "ok", "Sure!", "got it", "Yes, I get it now"), "content"),
        ("teaching", TESTED, ("no", "I can't", "I have no idea"), "shows_novice"),
        ("teaching", TESTED, ("Yes.", "of course"), "shows_expert"),
        ("teaching", LEARNED, ("yes", "OK"), "can_say"),
        ("teaching", GIBBERISH, ("I dont understand", "What do you mean?"), "puzzled"),
        ("teaching", ASKED, ("yes", "no", "I don't get it"), None),
        ("travel", after("asks", "recommend_hike", "travel"), ("Yes!", "great"), "delighted"),
        ("travel", after("asks", "recommend_hike", "travel"), ("ok", "sure"), "settles"),
        ("travel", after("asks", "recommend_hike", "travel"), ("no", "not for me"), "refuses"),
        ("travel", after("asks", "ask_interest", "travel"), ("I have no idea", "no"), "evades"),
        ("counseling", after("opens", "ask_behind", "counseling"), ("no", "dunno"), "deflects"),
        ("counseling", after("opens", "reflect", "counseling"), ("yes", "exactly"), "eased"),
        ("counseling", after("opens", "suggest_job", "counseling"), ("no",), "brushed_off"),
        ("persuasion", after("opens", "ask_dollar", "persuasion"), ("ok", "yes"), "agrees"),
        ("persuasion", after("opens", "ask_dollar", "persuasion"), ("not really",), "declines"),
        ("persuasion", after("opens", "ask_reason", "persuasion"), ("I don't know",), "evades"),
    ],
)
def test_plain_words_are_heard_as_what_they_answer(
    name: str, before: list[Turn], texts: tuple[str, ...], reply: str | None
):
    world = load_world(name)
    memory = follow(world, before)
    for text in texts:
        assert heard(world, text, before) == ([] if reply is None else [reply.replace("_", " ")])
        assert world.hear(text) is None
        told = follow(world, [*before, Turn("human", text)])
        state = memory.state if reply is None else world.advance(memory.state, memory.act, reply)
        assert told.state == state


@pytest.mark.parametrize("name", WORLDS)
def test_plain_words_are_none_of_the_worlds_own_and_stand_for_replies(name: str):
    world = load_world(name)
    assert {reply for text in ("yes", "ok", "no") for reply in world.hear_plainly(text)}
    assert {"puzzled"} <= set(world.hear_plainly("I don't understand"))
    for reply, phrasing in world.replies.items():
        for number, form in enumerate(phrasing.forms()):
            text = grammar.fill(form, world.draw_slots(number))
            assert world.hear_loosely(text) == reply and not world.hear_plainly(text)


@pytest.mark.parametrize("turns", [[], ASKED, EXPLAINED])
def test_examples_are_replies_that_can_follow_about_the_topic(turns: list[Turn]):
    memory = follow(TEACHING, turns)
    sentences = example_sentences(TEACHING, memory, 3, seed=5)
    replies = [TEACHING.hear(sentence) for sentence in sentences]
    assert len(set(replies)) == 3 and set(replies) <= set(possible_replies(TEACHING, memory))
    assert not turns or not any(TEACHING.names_other_slots(s, memory.slots) for s in sentences)


def test_topics_are_those_that_every_opening_names():
    assert list(opening_slots(TEACHING)) == ["topic"]
    assert sum(opening_replies(TEACHING).values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "slots", "left"),
    [
        ("Let me explain gravity.", {"topic": "recursion"}, True),
        ("Recursion is like gravity.", {"topic": "recursion"}, False),
        ("Let me explain it.", {"topic": "recursion"}, False),
        ("Let me explain gravity.", {}, False),
    ],
)
def test_a_topic_is_left_where_one_was_named(text: str, slots: dict[str, str], left: bool):
    assert leaves_topic(TEACHING, text, slots) is left


def test_the_topic_named_last_counts():
    turns = [HELLO, Turn("agent", "Hm?"), Turn("human", "No, about gravity")]
    assert follow(TEACHING, turns).slots == {"topic": "gravity"}
