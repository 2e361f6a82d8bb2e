"""Acts are told from words: every phrasing, paraphrases, nonsense, and garbled mixes of acts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import pytest
from worlds import Parrot, play

from imagination.simulation import (
    WORLDS,
    SimulatedHuman,
    grammar,
    load_world,
    sample_conversations,
)
from imagination.simulation.world import World
from imagination.speakers import converse


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return load_world(request.param)


def fill_slots(world: World, text: str, seed: int = 0) -> str:
    return grammar.fill(text, world.draw_slots(seed))


def all_forms(world: World) -> Iterator[tuple[str, str]]:
    for index, (act, phrasing) in enumerate(world.acts.items()):
        for number, form in enumerate(phrasing.forms()):
            yield act, fill_slots(world, form, seed=index + number)


def test_every_phrasing_is_understood_as_its_own_act(world: World):
    acts, texts = zip(*all_forms(world), strict=True)
    understood = world.understand(texts)
    wrong = [(t, a, u) for t, a, u in zip(texts, acts, understood, strict=True) if a != u]
    assert len(texts) > 1000
    assert not wrong


def test_hearing_is_the_exact_inverse_of_the_replies(world: World):
    for reply, phrasing in world.replies.items():
        for number, form in enumerate(phrasing.forms()):
            assert world.hear(fill_slots(world, form, seed=number)) == reply
    assert world.hear("What on earth?") is None


PARAPHRASES = {
    "teaching": {
        "what do you already know about recursion?": "ask_level",
        "How much do you know about this already?": "ask_level",
        "Have you heard of gravity before?": "ask_level",
        "What's your background in probability?": "ask_level",
        "are you a beginner?": "ask_level",
        "Can you solve this problem for me?": "check_level",
        "Let me give you a small test problem first.": "check_level",
        "How do you learn best?": "ask_style",
        "Would an example or an analogy help you more?": "ask_style",
        "I'll explain recursion in full detail with an example.": "explain_expert_example",
        "Let me explain evolution from zero by analogy": "explain_novice_analogy",
        "did you understand everything?": "check_understanding",
        "please tell me in your own words what it is": "check_understanding",
        "goodbye and good luck": "wrap_up",
        "We are done, see you": "wrap_up",
    },
    "travel": {
        "what are your interests?": "ask_interest",
        "What do you like to do?": "ask_interest",
        "who are you travelling with?": "ask_company",
        "Are you going alone or with someone?": "offer_company",
        "how much do you want to spend?": "ask_budget",
        "do you like nature or culture?": "offer_interest",
        "cheap or expensive?": "offer_budget",
        "tell me more about your plans": "ask_open",
        "I would suggest a wine tasting": "recommend_tasting",
        "You could go on a mountain hike.": "recommend_hike",
        "what did you not like?": "ask_wrong",
        "I am sorry, I was too quick": "acknowledge",
        "trust me, it's the best": "insist",
        "enjoy your trip, goodbye": "close",
    },
    "persuasion": {
        "how was your day?": "greet",
        "Do you have kids of your own?": "greet",
        "what holds you back?": "ask_reason",
        "Do you have any doubts about giving?": "ask_reason",
        "are you really sure that you want to?": "doubt_yes",
        "You can always say no.": "doubt_yes",
        "Let me tell you my own story": "story",
        "ninety percent of the donations reaches the children": "credibility",
        "Every small gift counts.": "logic",
        "Picture a hungry child.": "emotion",
        "how about twenty cents?": "ask_coins",
        "would you donate one dollar?": "ask_dollar",
        "Can you give two dollars?": "ask_all",
        "thanks for your help, have a nice day": "close",
    },
    "counseling": {
        "how long have you had this?": "ask_more",
        "Did you see a doctor?": "ask_more",
        "What is really behind it?": "ask_behind",
        "is there something else on your mind?": "ask_behind",
        "let me repeat what you said": "restate",
        "That sounds so painful": "reflect",
        "you seem so sad": "reflect",
        "The same happened to me once.": "disclose",
        "everything will be fine": "reassure",
        "most people have it, experts say": "inform",
        "Visit the grave and light a candle": "suggest_grief",
        "apply for a new job": "suggest_job",
        "tell him openly what you need": "suggest_conflict",
        "take care, goodbye": "close",
    },
}

NONSENSE = (
    "",
    "?",
    "...",
    "blah blah xyzzy",
    "the the the the",
    "sure okay great",
    "My cat sleeps on the blue sofa.",
    "The weather is nice today, is it not?",
)


def test_free_paraphrases_are_understood(world: World):
    expected = PARAPHRASES[world.name]
    assert dict(zip(expected, world.understand(list(expected)), strict=True)) == expected


def test_nonsense_is_not_understood(world: World):
    assert world.understand(NONSENSE) == [None] * len(NONSENSE)


def test_shuffled_words_are_mostly_not_understood(world: World):
    texts = [text for _, text in all_forms(world) if len(text.split()) >= 6]
    shuffler = random.Random(0)
    shuffled = [" ".join(shuffler.sample(text.split(), len(text.split()))) for text in texts]
    assert np.mean([act is not None for act in world.understand(shuffled)]) < 0.1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("teaching", "How much do you already that is all for today with an example goodbye"),
        ("teaching", "Do you prefer test what comes out, take care in your own words"),
        ("travel", "Who travels small, medium or perfect, it is booked wine"),
        ("travel", "I recommend a hike a tasting a picnic a castle"),
        ("persuasion", "Would you picture ten experts every year, what holds your day"),
        ("persuasion", "Imagine a small gift audited, goodbye both dollars myself"),
        ("counseling", "You sound a candle experts behind the grave, goodbye agency"),
        ("counseling", "How long did him calmly last winter, candle trust me in other words"),
    ],
)
def test_garbled_mix_of_acts_is_not_understood(name: str, text: str):
    assert load_world(name).understand([text]) == [None]


def test_talk_about_another_topic_is_not_understood():
    world = load_world("teaching")
    own, other = world.slots["topic"][:2]
    (conversation,) = sample_conversations(world, "average", 1, 0, "test")
    conversation.seed = next(s for s in range(99) if world.draw_slots(s)["topic"] == own)
    (dialogue,) = converse(
        Parrot(f"What do you already know about {other}?", f"What do you know about {own}?"),
        SimulatedHuman(world),
        [conversation],
        dataclasses.replace(world.task, max_turns=2),
    )
    heard = [turn.annotations.get("understood_as") for turn in dialogue.turns[2::2]]
    assert heard == [None, "ask_level"]


def test_who_talks_gibberish_is_told_so_and_left(world: World):
    dialogues = play(world, Parrot("Blah blah blah."), 50)
    for dialogue in dialogues:
        replies = [world.hear(turn.text) for turn in dialogue.turns if turn.speaker == "human"]
        assert replies[1] == "puzzled"
        assert replies[-1] == "leaves"
        assert dialogue.reward == 0.0
        assert all(turn.annotations == {"understood_as": None} for turn in dialogue.turns[2::2])


def test_what_is_understood_is_kept_within_bounds(monkeypatch):
    monkeypatch.setattr("imagination.simulation.understanding._MOST_KEPT", 10)
    understanding = load_world("teaching").agent_understanding
    texts = [f"How do you like to learn, {number}?" for number in range(30)]
    alone = [understanding.understand([text]) for text in texts]
    assert [[act] for act in understanding.understand([*texts, "word " * 300])][:30] == alone
    understanding.understand(["word " * 300, "Hello."])
    assert max(map(len, understanding._cache)) <= 500 and len(understanding._cache) <= 11
