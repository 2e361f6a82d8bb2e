"""Hindsight regeneration: what an engine may return, and the embedded world as an engine."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagination.dialogue import Dialogue, Turn
from imagination.hindsight import (
    Branch,
    Continuation,
    HindsightError,
    Proposal,
    calibrate,
    regenerate,
)
from imagination.hindsight.world import WorldHindsight
from imagination.simulation import (
    BehaviourAgent,
    SimulatedHuman,
    World,
    load_world,
    sample_conversations,
)
from imagination.speakers import Conversation, converse
from imagination.task import Task

TASK = Task(
    name="coffee",
    description="A waiter finds out what a guest would like to drink.",
    agent_role="waiter",
    human_role="guest",
    persona_axes={},
    reward_range=(0.0, 2.0),
    success_reward=1.0,
    max_turns=4,
)


def dialogue(*texts: str, name: str = "d", first: str = "human", **fields) -> Dialogue:
    """Turns with these words, the human first."""
    sides = ("human", "agent") if first == "human" else ("agent", "human")
    turns = tuple(Turn(sides[i % 2], text) for i, text in enumerate(texts))
    return Dialogue(name, "coffee", turns, **{"reward": 0.0, **fields})


PARENT = dialogue(
    "Hello.",
    "Here is your tea.",
    "I wanted coffee!",
    "Well, that's it.",
    "Bye.",
    reward=0.0,
    persona={"secret": "never read"},
    source={"kind": "human", "part": "train", "donation": 0.0},
    system="Serve.",
)
BETTER = Proposal(1, "Coffee or tea?", "asks first")
REST = Continuation((Turn("human", "Coffee."), Turn("agent", "Here.")), {"drink": "coffee"})


class Fake:
    """An engine that returns what it was given, and remembers what it was asked."""

    def __init__(self, proposals=(BETTER,), rest: Continuation | None = REST, rating=1.5):
        self.proposals, self.rest, self.rating = proposals, rest, rating
        self.looked_at: list[str] = []

    def propose(self, dialogues, max_changes):
        self.looked_at += [each.id for each in dialogues]
        return [self.proposals if self.proposals is None else list(self.proposals)] * len(dialogues)

    def play(self, branches):
        return [self.rest] * len(branches)

    def rate(self, dialogues):
        return [self.rating] * len(dialogues)


def look_back(engine, *dialogues: Dialogue, max_changes: int = 2, task: Task | None = TASK):
    return regenerate(
        dialogues or (PARENT,), engine, round_number=1, max_changes=max_changes, task=task
    )


# What an engine may return


def test_regenerated_dialogue_knows_where_it_comes_from():
    (made,) = look_back(Fake()).dialogues
    assert made == Dialogue(
        id="d-r1t1",
        task="coffee",
        turns=(PARENT.turns[0], Turn("agent", "Coffee or tea?"), *REST.turns),
        reward=1.5,
        persona={"drink": "coffee"},
        source={
            "kind": "regenerated",
            "parent": "d",
            "turn": 1,
            "reason": "asks first",
            "round": 1,
            "part": "train",
        },
        system="Serve.",
    )
    assert Dialogue.from_json(made.to_json()) == made


def test_what_was_cut_off_stays_so_and_a_last_word_needs_no_answer():
    (made,) = look_back(Fake(rest=Continuation((), {}, terminal=False))).dialogues
    assert not made.terminal
    assert [turn.text for turn in made.turns] == ["Hello.", "Coffee or tea?"]


@pytest.mark.parametrize(
    ("proposal", "problem"),
    [
        (Proposal(5, "Coffee?", ""), "no such turn"),
        (Proposal(-1, "Coffee?", ""), "no such turn"),
        (Proposal(2, "Tea, please.", ""), "the human's turn"),
        (Proposal(1, " \n", ""), "empty utterance"),
        (Proposal(1, "  here is YOUR tea!\n", ""), "same utterance"),
        (Proposal(1, "Human: I would like tea.", ""), "speaks for the human"),
        (Proposal(1, "**User**: I would like tea.", ""), "speaks for the human"),
        (Proposal(1, "Guest: I would like tea.", ""), "speaks for the human"),
        (Proposal(1, "Coffee?\nGuest: Yes!", ""), "speaks for the human"),
        (Proposal(1, "Waiter: Coffee?", ""), "label in the words"),
    ],
)
def test_bad_proposal_is_named_and_the_good_one_beside_it_kept(proposal, problem):
    found = look_back(Fake((proposal, Proposal(3, "I am sorry.", "polite"))))
    assert [(each.parent, each.problem) for each in found.rejections] == [("d", problem)]
    assert found.rejections[0].detail
    assert [each.source["turn"] for each in found.dialogues] == [3]


def test_words_about_the_other_side_are_no_label():
    found = look_back(Fake((Proposal(1, "Is the guest well? Guests like tea: yes.", ""),)))
    assert not found.rejections


def test_a_turn_is_changed_once_and_no_more_turns_than_asked_for():
    again = Proposal(1, "What may I bring you?", "asks openly")
    found = look_back(Fake((BETTER, again)))
    assert [each.problem for each in found.rejections] == ["turn changed twice"]
    found = look_back(Fake((BETTER, Proposal(3, "Sorry.", ""))), max_changes=1)
    assert [each.problem for each in found.rejections] == ["too many changes"]
    assert [each.source["turn"] for each in found.dialogues] == [1]


def test_a_bad_proposal_does_not_take_the_turn_of_a_good_one():
    found = look_back(Fake((Proposal(1, "", ""), BETTER)))
    assert [each.source["turn"] for each in found.dialogues] == [1]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ((("agent", "Coffee."),), "agent goes first"),
        ((("human", "Yes."), ("human", "Coffee.")), "sides do not alternate"),
        ((("human", "Yes."), ("agent", "So."), ("agent", "Here.")), "sides do not alternate"),
        ((("human", "Yes.\nWaiter: Here it is."),), "speaks for the agent"),
        ((("human", "Assistant: here it is."),), "speaks for the agent"),
        ((("human", "Yes."), ("agent", "Here.\nGuest: Thanks!")), "speaks for the human"),
        ((("human", ""),), "empty turn"),
        ((("human", "Yes."), ("agent", "  ")), "empty turn"),
    ],
)
def test_bad_continuation_is_named(said, problem):
    turns = tuple(Turn(speaker, text) for speaker, text in said)
    found = look_back(Fake(rest=Continuation(turns, {})))
    assert not found.dialogues
    assert [each.problem for each in found.rejections] == [problem]


@pytest.mark.parametrize(
    ("rating", "problem"),
    [
        (math.nan, "rating not finite"),
        (math.inf, "rating not finite"),
        (700.0, "rating off the scale"),
        (-0.1, "rating off the scale"),
        (None, "reward model failed"),
    ],
)
def test_bad_rating_is_named(rating, problem):
    found = look_back(Fake(rating=rating))
    assert not found.dialogues
    assert [each.problem for each in found.rejections] == [problem]


def test_engine_that_failed_is_counted():
    assert look_back(Fake(proposals=None)).rejections[0].problem == "controller failed"
    assert look_back(Fake(rest=None)).rejections[0].problem == "forward model failed"


def test_dialogue_with_a_silent_side_is_not_even_looked_at():
    engine = Fake()
    alone = Dialogue("alone", "coffee", (Turn("agent", "Hello?"), Turn("agent", "Hello?")))
    quiet = Dialogue("quiet", "coffee", (Turn("human", "Hello?"),))
    found = look_back(engine, alone, PARENT, quiet)
    assert engine.looked_at == ["d"]
    assert [(each.parent, each.problem) for each in found.rejections] == [
        ("alone", "human never speaks"),
        ("quiet", "agent never speaks"),
    ]


def test_without_a_task_the_usual_labels_are_known():
    found = look_back(Fake((Proposal(1, "User: tea", ""),)), task=None)
    assert [each.problem for each in found.rejections] == ["speaks for the human"]
    assert look_back(Fake((Proposal(1, "Guest: tea", ""),)), task=None).dialogues


def test_nonsense_requests_are_refused():
    with pytest.raises(HindsightError, match="'d' occurs more than once"):
        look_back(Fake(), PARENT, PARENT)
    with pytest.raises(HindsightError, match="max_changes must be at least 1, got 0"):
        look_back(Fake(), max_changes=0)
    with pytest.raises(HindsightError, match="round_number must be at least 1, got 0"):
        regenerate([PARENT], Fake(), round_number=0, max_changes=1)
    engine = Fake()
    engine.rate = lambda dialogues: []
    with pytest.raises(HindsightError, match="rate gave 0 answers to 1 questions"):
        look_back(engine)


# Calibration


class Predicting(Fake):
    """A reward model that gives each dialogue what its first word says."""

    def rate(self, dialogues):
        values = [each.turns[0].text for each in dialogues]
        return [None if value == "none" else float(value) for value in values]


def rated(predicted: list, known: list) -> list[Dialogue]:
    pairs = enumerate(zip(predicted, known, strict=True))
    return [dialogue(str(p).lower(), "So.", name=f"d{i}", reward=k) for i, (p, k) in pairs]


def test_calibration_against_numbers_worked_out_by_hand():
    found = calibrate(rated([0.1, 0.2, 0.3, 0.4, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8]), Predicting())
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson == pytest.approx(np.corrcoef([1, 2, 3, 4, 10], [0, 2, 4, 6, 8])[0, 1])
    assert found.mean_absolute_error == pytest.approx((0.1 + 0.0 + 0.1 + 0.2 + 0.2) / 5)
    assert found.bias == pytest.approx(0.0)
    assert found.count == 5


def test_calibration_passes_over_what_cannot_be_compared():
    dialogues = rated([0.5, 1, 2, 3, 4, 5, None, math.nan], [None, 0, 1, 2, 3, 4, 5, 6])
    found = calibrate(dialogues, Predicting())
    assert (found.count, found.bias) == (5, 1.0)


def test_calibration_of_a_constant_says_so():
    found = calibrate(rated([1.0] * 5, [0, 1, 2, 3, 4]), Predicting())
    assert math.isnan(found.spearman) and math.isnan(found.pearson)
    assert found.bias == -1.0


def test_too_few_ratings_are_no_calibration():
    with pytest.raises(HindsightError, match="6 dialogues 5 have a reward and 4 of these"):
        calibrate(rated([1, 2, 3, 4, None, 6], [1, 2, 3, 4, 5, None]), Predicting())


def test_needs_no_llm_client():
    code = "import sys; sys.modules['anthropic'] = None; import imagination.hindsight.world"
    subprocess.run([sys.executable, "-c", code], check=True)


# The world as an engine


@pytest.fixture(scope="module")
def coffee(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world of the page on how to write one; shy guests say hello less often."""
    page = (Path(__file__).parents[2] / "docs" / "own_task.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = tmp_path_factory.mktemp("world") / "coffee.py"
    file.write_text(next(block for block in blocks if "WORLD = World(" in block))
    hello = {"open": {"greets": 0.9, "shrugs": 0.1}, "shy": {"greets": 0.2, "shrugs": 0.8}}
    return dataclasses.replace(load_world(file), opening=lambda guest: hello[guest[1]])


@pytest.fixture(scope="module")
def lessons() -> list[Dialogue]:
    world = load_world("teaching")
    conversations = sample_conversations(world, "average", 150, seed=0, prefix="lesson")
    return converse(BehaviourAgent(world), SimulatedHuman(world), conversations, world.task)


HELLO, ASK, OFFER = "Hello, I am Ada.", "What would you like, Ada?", "Coffee or tea, Ada?"
TEA, NO_IDEA, SORRY = "Some tea, please.", "Well, I don't know.", "Sorry?"
HOT_TEA, HOT_COFFEE, NOT_FOR_ME = (
    "This is your hot tea.",
    "This is your hot coffee.",
    ("Oh, that is not for me."),
)


def proposed(engine: WorldHindsight, *texts: str, max_changes: int = 1) -> list[tuple[int, str]]:
    """Turn and act of each proposal."""
    (proposals,) = engine.propose([dialogue(*texts)], max_changes)
    acts = engine.world.understand([each.utterance for each in proposals])
    return [(each.turn, act) for each, act in zip(proposals, acts, strict=True)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        # 0.9 open guests greet with 0.9, 0.1 shy ones with 0.2.
        ((HELLO,), {"open": 0.81 / 0.83, "shy": 0.02 / 0.83}),
        ((HELLO, "Blue bicycle.", SORRY), {"open": 0.81 / 0.83, "shy": 0.02 / 0.83}),
        ((HELLO, ASK, NO_IDEA), {"shy": 1.0}),
        ((HELLO, ASK, TEA), {"open": 1.0}),
        ((HELLO, HOT_COFFEE, NOT_FOR_ME), {"open": 0.81 / 0.83, "shy": 0.02 / 0.83}),
    ],
)
def test_posterior_agrees_with_bayes_by_hand(coffee: World, texts, expected):
    posterior = WorldHindsight(coffee).posterior(dialogue(*texts).turns)
    manners: dict[str, float] = {}
    for (_, manner), probability in posterior.items():
        manners[manner] = manners.get(manner, 0.0) + probability
    assert manners == pytest.approx(expected)
    drinks = {drink for drink, _ in posterior}
    assert drinks == ({"tea"} if texts[-1] in (TEA, NOT_FOR_ME) else {"coffee", "tea"})


@pytest.mark.parametrize("belief", ["finished", "prefix"])
def test_controller_finds_the_planted_mistake(coffee: World, belief):
    engine = WorldHindsight(coffee, belief=belief)
    heard_wrong = dialogue(HELLO, ASK, TEA, HOT_COFFEE, NOT_FOR_ME)
    ((proposal,),) = engine.propose([heard_wrong], 1)
    assert proposal.turn == 3
    assert coffee.understand([proposal.utterance]) == ["serve_tea"]
    assert proposal.reason == "serve_tea: expected rating 0.90 instead of 0.00"


def test_finished_belief_guesses_what_nobody_could_know_and_prefix_asks(coffee: World):
    guessed = (HELLO, HOT_COFFEE, NOT_FOR_ME)
    assert proposed(WorldHindsight(coffee, belief="finished"), *guessed) == [(1, "serve_tea")]
    assert proposed(WorldHindsight(coffee, belief="prefix"), *guessed) == [(1, "offer")]
    # In hindsight serving tea at once saves a question; at the time it would have been a guess.
    asked = (HELLO, ASK, TEA, HOT_COFFEE, NOT_FOR_ME)
    finished = proposed(WorldHindsight(coffee, belief="finished"), *asked, max_changes=3)
    assert finished == [(3, "serve_tea"), (1, "serve_tea")]
    assert proposed(WorldHindsight(coffee, belief="prefix"), *asked, max_changes=3) == [
        (3, "serve_tea")
    ]


def test_nothing_is_proposed_where_nothing_was_wrong(coffee: World):
    perfect = (HELLO, OFFER, TEA, HOT_TEA, "Perfect, thank you!")
    assert proposed(WorldHindsight(coffee), *perfect, max_changes=3) == []


def test_controller_in_error_changes_anything_with_conviction(coffee: World):
    names = [f"d{i}" for i in range(300)]
    mistaken = [dialogue(HELLO, ASK, TEA, HOT_COFFEE, NOT_FOR_ME, name=name) for name in names]

    def right(error_rate: float) -> set[str]:
        engine = WorldHindsight(coffee, error_rate=error_rate)
        found = engine.propose(mistaken, 1)
        assert all(len(each) == 1 and "expected rating" in each[0].reason for each in found)
        (acts,) = [engine.world.understand([each[0].utterance for each in found])]
        return {
            name
            for name, (proposal,), act in zip(names, found, acts, strict=True)
            if (proposal.turn, act) == (3, "serve_tea")
        }

    # By chance one of two turns, and one of three other acts.
    assert 0.08 < len(right(1.0)) / 300 < 0.26
    assert right(0.0) == set(names)
    assert right(0.6) < right(0.3)
    assert 0.6 < len(right(0.3)) / 300 < 0.9


def test_errors_never_repeat_a_turn_nor_the_act(coffee: World):
    engine = WorldHindsight(coffee, error_rate=1.0)
    many = [dialogue(HELLO, ASK, TEA, HOT_COFFEE, NOT_FOR_ME, name=f"d{i}") for i in range(50)]
    found = regenerate(many, engine, round_number=1, max_changes=3, task=coffee.task)
    assert not found.rejections
    assert len(found.dialogues) == 100  # both turns of each


def test_same_human_goes_on_from_what_was_said(coffee: World):
    engine = WorldHindsight(coffee)
    parents = [dialogue(HELLO, ASK, TEA, HOT_COFFEE, NOT_FOR_ME, name=f"d{i}") for i in range(20)]
    found = regenerate(parents, engine, round_number=1, max_changes=1, task=coffee.task)
    assert [each.reward for each in found.dialogues] == [0.9] * 20
    for made in found.dialogues:
        assert made.turns[:3] == parents[0].turns[:3]
        assert made.persona == {"drink": "tea", "manner": "open"}


def test_persona_is_drawn_from_the_posterior(coffee: World):
    engine = WorldHindsight(coffee)
    unknown = [dialogue(HELLO, ASK, NO_IDEA, name=f"d{i}") for i in range(200)]
    played = engine.play([Branch(each, Proposal(1, OFFER, "")) for each in unknown])
    share = np.mean([rest.persona == {"drink": "tea", "manner": "shy"} for rest in played])
    assert abs(share - 0.5) < 4 * (0.25 / 200) ** 0.5
    for rest in played:  # a shy guest answers the offer by the persona that was drawn
        assert rest.persona["drink"] in rest.turns[0].text
        assert not any(turn.annotations for turn in rest.turns)


def test_conversation_ends_at_the_limit(coffee: World):
    lost = dialogue(HELLO, "Blue.", SORRY, "Blue.", SORRY, "Blue.", SORRY)
    (rest,) = WorldHindsight(coffee).play([Branch(lost, Proposal(5, OFFER, ""))])
    assert [turn.speaker for turn in rest.turns] == ["human"]


def test_rating_is_the_expectation_over_the_posterior(coffee: World):
    by_drink = dataclasses.replace(coffee, rating=lambda guest, chat: float(guest[0] == "tea"))
    open_question = dialogue(HELLO, "Blue.", SORRY)
    known = dialogue(HELLO, ASK, TEA)
    last_word = dialogue(HELLO, ASK, TEA, HOT_TEA)  # nobody answered: it is heard all the same
    assert WorldHindsight(by_drink).rate([open_question, known]) == [0.5, 1.0]
    assert WorldHindsight(coffee).rate([last_word]) == [0.9]


def test_dialogue_of_another_form_is_not_made_up(coffee: World):
    engine = WorldHindsight(coffee)
    odd = dialogue("Welcome!", HELLO, first="agent")
    assert engine.propose([odd], 1) == [None]
    assert engine.rate([odd]) == [None]
    assert engine.play([Branch(odd, Proposal(0, ASK, ""))]) == [None]
    found = regenerate([odd], engine, round_number=1, max_changes=1)
    assert [each.problem for each in found.rejections] == ["controller failed"]
    with pytest.raises(HindsightError, match="the human opens"):
        engine.posterior(odd.turns)


def test_settings_that_cannot_be_are_refused(coffee: World):
    with pytest.raises(HindsightError, match="'finished' or 'prefix', got 'both'"):
        WorldHindsight(coffee, belief="both")
    with pytest.raises(HindsightError, match=r"from 0 to 1, got 1\.5"):
        WorldHindsight(coffee, error_rate=1.5)


def test_begun_conversations_go_on_as_if_never_interrupted(lessons: list[Dialogue]):
    world = load_world("teaching")
    conversations = sample_conversations(world, "average", 150, seed=0, prefix="lesson")
    begun = [
        Conversation(
            c.id,
            c.persona,
            c.seed,
            turns=list(lesson.turns[: min(1 + index % 6, len(lesson.turns) - 1)]),
        )
        for index, (c, lesson) in enumerate(zip(conversations, lessons, strict=True))
    ]
    again = converse(BehaviourAgent(world), SimulatedHuman(world), begun, world.task)
    assert [d.turns for d in again] == [d.turns for d in lessons]
    assert [d.reward for d in again] == [d.reward for d in lessons]


def test_reward_model_predicts_what_lessons_were_worth(lessons: list[Dialogue]):
    found = calibrate(lessons, WorldHindsight(load_world("teaching")))
    assert found.spearman > 0.99
    assert found.mean_absolute_error < 1e-6
    assert found.count == 150


@pytest.mark.parametrize("belief", ["finished", "prefix"])
def test_rounds_of_hindsight_on_lessons(lessons: list[Dialogue], belief):
    world = load_world("teaching")
    engine = WorldHindsight(world, belief=belief)
    first = regenerate(lessons, engine, round_number=1, max_changes=1, task=world.task)
    second = regenerate(first.dialogues, engine, round_number=2, max_changes=1, task=world.task)
    assert not first.rejections and not second.rejections
    for parents, made in ((lessons, first.dialogues), (first.dialogues, second.dialogues)):
        parent_of = {each.id: each for each in parents}
        changed = [parent_of[each.source["parent"]] for each in made]
        assert len(made) > 100
        assert mean_reward(made) > mean_reward(changed) + 0.03
        for each, parent in zip(made, changed, strict=True):
            turn = each.source["turn"]
            assert each.turns[:turn] == parent.turns[:turn]
            assert len(each.agent_turns) <= world.task.max_turns
            # Whoever was drawn could have said all that stands there, before and after.
            assert engine.posterior(each.turns)[world.persona(each.persona)] > 0
    assert second.dialogues[0].id.startswith(first.dialogues[0].id + "-r2t")


def test_wrong_controller_makes_lessons_worse(lessons: list[Dialogue]):
    world = load_world("teaching")
    engine = WorldHindsight(world, error_rate=1.0)
    found = regenerate(lessons, engine, round_number=1, max_changes=1, task=world.task)
    assert mean_reward(found.dialogues) < mean_reward(lessons)


def test_persona_and_reward_are_never_read(lessons: list[Dialogue]):
    world = load_world("teaching")
    blank = [
        dataclasses.replace(
            each,
            persona={"level": "nobody"},
            reward=-7.0,
            source={"kind": "human"},
            turns=tuple(Turn(turn.speaker, turn.text) for turn in each.turns),
        )
        for each in lessons
    ]
    seen, unseen = (
        regenerate(each, WorldHindsight(world), round_number=1, max_changes=2, task=world.task)
        for each in (lessons, blank)
    )
    assert words(seen.dialogues) == words(unseen.dialogues)
    assert [d.reward for d in seen.dialogues] == [d.reward for d in unseen.dialogues]
    assert [d.persona for d in seen.dialogues] == [d.persona for d in unseen.dialogues]


@pytest.mark.slow
def test_same_seed_same_dialogues_whoever_else_is_looked_at(lessons: list[Dialogue]):
    world = load_world("teaching")

    def made(chosen: list[Dialogue], seed: int) -> dict[str, Dialogue]:
        engine = WorldHindsight(world, error_rate=0.3, seed=seed)
        found = regenerate(chosen, engine, round_number=1, max_changes=2, task=world.task)
        return {each.id: each for each in found.dialogues}

    everything = made(lessons, seed=3)
    part = made(lessons[100:][::-1], seed=3)
    assert len(part) > 50
    assert {name: everything[name] for name in part} == part
    assert words(made(lessons, seed=4).values()) != words(everything.values())


def words(dialogues) -> list[list[str]]:
    return [[turn.text for turn in each.turns] for each in dialogues]


def mean_reward(dialogues) -> float:
    return float(np.mean([each.reward for each in dialogues]))
