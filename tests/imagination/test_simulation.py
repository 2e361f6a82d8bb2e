"""The embedded worlds: exact values, words that carry acts, and what a world must be like."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagination.simulation import (
    BehaviourAgent,
    OptimalAgent,
    Planner,
    SimulatedHuman,
    UniformAgent,
    WorldError,
    grammar,
    load_world,
    normalized_score,
    optimal_value,
    policy_value,
    reference_values,
    sample_conversations,
)
from imagination.simulation import __main__ as printing
from imagination.simulation.dice import Dice
from imagination.simulation.grammar import GrammarError, Phrasing
from imagination.simulation.planning import blind_value
from imagination.simulation.world import Behaviour, World
from imagination.speakers import Conversation, Utterance, converse

WORLDS = ("teaching", "travel", "persuasion", "counseling")
FOR_HINDSIGHT = ("persuasion", "counseling")  # the data is poor on purpose
FIND_OUT = {"persuasion": ("ask_reason", "doubt_yes"), "counseling": ("ask_behind",)}
PAGE = Path(__file__).parents[2] / "docs" / "own_task.md"


# The large worlds are solved and spoken with in every test; two small ones hold the same code.
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("travel", "counseling")]
SMALL_FIRST = pytest.mark.parametrize("world", ["teaching", "persuasion", *LARGE], indirect=True)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return load_world(request.param)


@pytest.fixture(scope="module")
def coffee_source() -> str:
    """The complete example of the page on how to write a world."""
    (source,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "WORLD = World(" in block
    )
    return source


class Parrot:
    """An agent that says the lines it was given, and ends the conversation after the last."""

    def __init__(self, *lines: str, ends: bool = False):
        self.lines, self.ends = lines, ends

    def respond(self, conversations: list[Conversation]) -> list[Utterance]:
        answers = []
        for conversation in conversations:
            said = sum(turn.speaker == "agent" for turn in conversation.turns)
            is_last = said + 1 >= len(self.lines)
            line = self.lines[min(said, len(self.lines) - 1)]
            answers.append(Utterance(line, ends=self.ends and is_last))
        return answers


def play(world: World, agent, count: int, population: str = "average", seed: int = 0) -> list:
    conversations = sample_conversations(world, population, count, seed, "test")
    return converse(agent, SimulatedHuman(world), conversations, world.task)


def words(dialogues: list) -> list[list[str]]:
    return [[turn.text for turn in dialogue.turns] for dialogue in dialogues]


def fill_slots(world: World, text: str, seed: int = 0) -> str:
    return grammar.fill(text, world.draw_slots(seed))


# Exact values


REDUCED = {
    "teaching": {
        "acts": [
            "ask_level",
            "check_level",
            "ask_style",
            "explain_novice_example",
            "explain_expert_example",
            "wrap_up",
        ],
        "keep": lambda student: student.level != "intermediate" and student.style != "definition",
    },
    "travel": {
        "acts": [
            "ask_open",
            "offer_interest",
            "recommend_museum",
            "recommend_picnic",
            "acknowledge",
            "close",
        ],
        "keep": lambda traveller: (
            traveller.interest in ("culture", "beach") and traveller.company != "family"
        ),
    },
    "persuasion": {
        "acts": ["ask_reason", "doubt_yes", "story", "logic", "ask_coins", "ask_all"],
        "keep": lambda persuadee: persuadee.reason != "relevance",
    },
    "counseling": {
        "acts": ["ask_behind", "reflect", "reassure", "suggest_job", "suggest_grief", "close"],
        "keep": lambda seeker: seeker.cause in ("job", "grief"),
    },
}


def reduced(name: str, turns: int = 4) -> World:
    world, spec = load_world(name), REDUCED[name]
    kept = {persona: p for persona, p in world.prior.items() if spec["keep"](persona)}
    total = sum(kept.values())
    return dataclasses.replace(
        world,
        task=dataclasses.replace(world.task, max_turns=turns),
        prior={persona: p / total for persona, p in kept.items()},
        acts={act: world.acts[act] for act in spec["acts"]},
    )


def brute_force(world: World, population: str) -> float:
    """Expectimax over whole histories: no belief, no memory, no pruning."""

    def best(turns: int, state, joint: dict) -> float:
        if turns == 0 or world.is_over(state):
            return sum(p * world.rating(persona, state) for persona, p in joint.items())
        values = []
        for act in world.acts:
            by_reply: dict[str, dict] = {}
            for persona, p in joint.items():
                for reply, likelihood in world.reply(persona, state, act).items():
                    if likelihood:
                        by_reply.setdefault(reply, {})[persona] = p * likelihood
            values.append(
                sum(
                    best(turns - 1, world.advance(state, act, reply), after)
                    for reply, after in by_reply.items()
                )
            )
        return max(values)

    openings: dict[str, dict] = {}
    for persona, p in world.population(population).items():
        for reply, likelihood in world.opening(persona).items():
            if likelihood:
                openings.setdefault(reply, {})[persona] = p * likelihood
    return sum(
        best(world.task.max_turns, world.begin(reply), joint) for reply, joint in openings.items()
    )


@pytest.mark.parametrize("population", ["average", "difficult"])
@pytest.mark.parametrize("name", WORLDS)
def test_optimum_agrees_with_brute_force(name: str, population: str):
    small = reduced(name)
    assert optimal_value(small, population) == pytest.approx(
        brute_force(small, population), abs=1e-9
    )


@pytest.mark.parametrize("name", WORLDS)
def test_planning_hints_change_no_value(name: str):
    small = reduced(name, turns=5)
    plain = dataclasses.replace(small, situation=lambda state: state, mood=None, ceiling=None)
    assert optimal_value(plain) == pytest.approx(optimal_value(small), abs=1e-9)
    assert policy_value(plain, None) == pytest.approx(policy_value(small, None), abs=1e-9)


@pytest.mark.parametrize("name", WORLDS)
def test_best_act_is_worth_as_much_as_the_state(name: str):
    world = reduced(name)
    planner = Planner(world)
    opening = next(iter(world.opening(planner.personas[0])))
    place = world.task.max_turns, world.begin(opening), planner.opened(opening)
    worth = {act: planner.act_value(*place, act) for act in world.acts}
    assert max(worth.values()) == pytest.approx(planner.state_value(*place), abs=1e-9)
    assert worth[planner.best_act(*place)] == pytest.approx(max(worth.values()), abs=1e-9)


@SMALL_FIRST
def test_gibberish_is_never_better_than_an_act(world: World):
    planner = Planner(world, "average", acts=(*world.acts, None))
    assert planner.value() == pytest.approx(optimal_value(world), abs=1e-9)


@SMALL_FIRST
def test_optimal_agent_earns_its_exact_value_through_words(world: World):
    dialogues = play(world, OptimalAgent(world), 500)
    assert_mean(dialogues, optimal_value(world))
    turns = np.mean([len(dialogue.agent_turns) for dialogue in dialogues])
    assert 4 <= turns <= 6


@SMALL_FIRST
def test_optimum_of_the_average_keeps_its_value_among_difficult_humans(world: World):
    dialogues = play(world, OptimalAgent(world, "average"), 400, "difficult")
    assert_mean(dialogues, Planner(world, "average").value_among("difficult"))


@SMALL_FIRST
def test_behaviours_earn_their_exact_values_through_words(world: World):
    for name in world.behaviours:
        assert_mean(play(world, BehaviourAgent(world, name), 300), policy_value(world, name))
    references = reference_values(world)
    assert_mean(play(world, BehaviourAgent(world), 1000), references["behaviour"])
    assert_mean(play(world, UniformAgent(world), 300), references["uniform"])


def assert_mean(dialogues: list, expected: float) -> None:
    rewards = np.array([dialogue.reward for dialogue in dialogues])
    error = max(rewards.std(), 0.02) / len(rewards) ** 0.5
    assert abs(rewards.mean() - expected) < 4 * error


@SMALL_FIRST
def test_reference_values_are_consistent(world: World):
    for population in ("average", "difficult"):
        found = reference_values(world, population)
        assert found["uniform"] < found["behaviour"] < found["best_behaviour"] < found["optimum"]
        assert normalized_score(found["behaviour"], found) == 0.0
        assert normalized_score(found["optimum"], found) == 1.0


# What a world must be like


@SMALL_FIRST
def test_behaviours_leave_room_and_the_optimum_is_high(world: World):
    found = reference_values(world)
    low, high = world.task.reward_range
    assert found["optimum"] >= low + 0.8 * (high - low)
    assert normalized_score(found["best_behaviour"], found) <= 0.5
    assert found["optimum"] - found["behaviour"] >= 0.45 * (high - low)


def test_difficult_personas_are_rare_but_there(world: World):
    share = sum(p for persona, p in world.prior.items() if world.is_difficult(persona))
    assert 0.05 < share <= 0.2


@SMALL_FIRST
def test_listening_is_what_is_rewarded(world: World):
    found = reference_values(world)
    limit = 0.15 if world.name in FOR_HINDSIGHT else 0.0
    assert normalized_score(blind_value(world, width=10), found) < limit


@SMALL_FIRST
def test_every_part_of_an_optimal_conversation_is_in_the_data(world: World):
    def acts(dialogues: list) -> set[str]:
        return {turn.annotations["act"] for d in dialogues for turn in d.agent_turns}

    data = play(world, BehaviourAgent(world), 1000)
    needed = acts(play(world, OptimalAgent(world), 200))
    counts = {act: sum(act in acts([dialogue]) for dialogue in data) for act in needed}
    assert min(counts.values()) >= 10, counts


@pytest.mark.parametrize("name", ["persuasion", pytest.param("counseling", marks=pytest.mark.slow)])
def test_knowing_the_persona_is_worth_little_without_finding_out(name: str):
    world = load_world(name)
    found = reference_values(world)
    silent = tuple(act for act in world.acts if act not in FIND_OUT[name])
    informed = {
        acts: sum(
            probability
            * Planner(dataclasses.replace(world, prior={persona: 1.0}), acts=acts).value()
            for persona, probability in world.prior.items()
        )
        for acts in (tuple(world.acts), silent)
    }
    assert 1.0 <= normalized_score(informed[tuple(world.acts)], found) < 1.02
    assert normalized_score(informed[silent], found) < 0.15


def test_persuasion_data_hardly_contains_what_would_have_helped():
    world = load_world("persuasion")
    data = play(world, BehaviourAgent(world), 2000)
    heard = [[world.hear(t.text) for t in d.turns if t.speaker == "human"] for d in data]
    acts = [[t.annotations["act"] for t in d.agent_turns] for d in data]
    shares = {
        "asked first": np.mean(
            [bool(a) and next((x for x in a if x != "greet"), "") == "ask_reason" for a in acts]
        ),
        "told": np.mean([any(r.startswith("told_") for r in replies) for replies in heard]),
        "met": np.mean(["moved" in replies for replies in heard]),
        "small sum first": np.mean(
            [
                "moved" in r and "ask_coins" in a[r.index("moved") :]
                for r, a in zip(heard, acts, strict=True)
            ]
        ),
    }
    assert all(0.0 < share < 0.04 for share in shares.values()), shares


def test_counseling_data_hardly_contains_what_would_have_helped():
    world = load_world("counseling")
    data = play(world, BehaviourAgent(world), 2000)
    heard = [[world.hear(t.text) for t in d.turns if t.speaker == "human"] for d in data]
    acts = [[t.annotations["act"] for t in d.agent_turns] for d in data]

    def asked_again(said: list[str], replies: list[str]) -> bool:
        return "deflects" in replies and "ask_behind" in said[replies.index("deflects") :]

    shares = {
        "felt with": np.mean(["eased" in replies for replies in heard]),
        "asked again": np.mean(
            [asked_again(a, replies) for a, replies in zip(acts, heard, strict=True)]
        ),
        "told": np.mean([any(r.startswith("told_") for r in replies) for replies in heard]),
        "helped": np.mean(["hopeful" in replies for replies in heard]),
    }
    assert all(0.0 < share < 0.04 for share in shares.values()), shares
    # Too late for the agent, there for hindsight.
    assert np.mean([replies[-1].startswith("bye_") for replies in heard]) > 0.25


@pytest.mark.parametrize(
    ("openness", "readiness", "said", "replies", "reward"),
    [
        # The right advice before anything was told makes it worse, whoever hears it.
        ("open", "ready", ["suggest_grief", "close"], ["brushed_off"], 0.0),
        (
            "open",
            "ready",
            ["reflect", "ask_behind", "suggest_grief", "close"],
            ["eased", "told_grief", "hopeful", "thanks"],
            0.93,
        ),
        (
            "open",
            "not_yet",
            ["ask_behind", "suggest_grief", "restate", "suggest_grief", "close"],
            ["told_grief", "resists", "feels_heard", "hopeful", "thanks"],
            0.83,
        ),
        # Asked again, who evades tells it; who hides it does so only where there is trust.
        (
            "evasive",
            "ready",
            ["ask_behind", "ask_behind", "suggest_job"],
            ["deflects", "told_grief", "missed"],
            0.0,
        ),
        (
            "hiding",
            "not_yet",
            ["ask_behind", "ask_behind", "disclose", "ask_behind", "reflect", "suggest_grief"],
            ["deflects", "deflects", "warms", "told_grief", "feels_heard", "hopeful"],
            0.71825,
        ),
    ],
)
def test_relief_follows_from_what_was_found_out(
    openness: str, readiness: str, said: list[str], replies: list[str], reward: float
):
    world = load_world("counseling")
    persona = {"cause": "grief", "intensity": "moderate"}
    persona |= {"readiness": readiness, "openness": openness}
    heard, rating = say(world, persona, said)
    assert heard[: len(replies)] == replies
    assert rating == pytest.approx(reward)


def say(world: World, persona: dict[str, str], said: list[str]) -> tuple[list[str], float]:
    """The replies after the opening, and the rating, where the agent's acts are given."""
    conversation = Conversation("test", persona, seed=0)
    slots = world.draw_slots(0)
    lines = [world.acts[act].expand(Dice(0), slots) for act in said]
    task = dataclasses.replace(world.task, max_turns=len(said))
    converse(Parrot(*lines), SimulatedHuman(world), [conversation], task)
    heard = [world.hear(t.text) for t in conversation.turns if t.speaker == "human"][1:]
    return heard, conversation.reward


@pytest.mark.parametrize(
    ("openness", "said", "replies", "reward"),
    [
        # The right appeal before anything was told is a sales pitch.
        ("open", ["credibility", "ask_dollar", "close"], ["pitched", "agrees"], 0.57),
        (
            "open",
            ["ask_reason", "credibility", "ask_coins", "ask_all", "close"],
            ["told_trust", "moved", "gladly", "agrees", "thanks"],
            1.97,
        ),
        # An easy yes is worth nothing until it is doubted.
        ("agreeable", ["credibility", "ask_all", "close"], ["promises", "agrees", "bye"], 0.0),
        (
            "agreeable",
            ["ask_reason", "doubt_yes", "credibility", "ask_coins", "ask_all", "close"],
            ["no_worry", "told_trust", "moved", "gladly", "agrees", "thanks"],
            1.94,
        ),
        (
            "reserved",
            ["ask_reason", "story", "ask_reason", "logic", "ask_dollar", "close"],
            ["evades", "warms", "told_trust", "missed", "declines"],
            0.0,
        ),
    ],
)
def test_donation_follows_from_what_was_found_out(
    openness: str, said: list[str], replies: list[str], reward: float
):
    world = load_world("persuasion")
    persona = {"reason": "trust", "openness": openness, "pressure_borne": "high"}
    heard, donation = say(world, persona, said)
    assert heard[: len(replies)] == replies
    assert donation == pytest.approx(reward)


def test_language_has_thousands_of_short_forms_and_few_words(world: World):
    assert world.surface_forms() >= 2000
    assert len(world.vocabulary()) <= 450
    lengths = [
        len(t.text.split()) for d in play(world, BehaviourAgent(world), 500) for t in d.turns
    ]
    assert np.mean(lengths) <= 10
    assert max(lengths) <= 20


@SMALL_FIRST
def test_page_shows_the_figures_of_the_worlds(world: World):
    assert printing.markdown(world) in PAGE.read_text()


# Grammar


def test_template_forms_are_counted_and_tidied():
    template = "[Sure|of [course|late]|], {topic} [is|was] fun ."
    assert grammar.count_forms(template) == 8
    found = list(grammar.forms(template))
    assert len(set(found)) == 8
    assert "Of course, {topic} was fun." in found
    assert grammar.expand("{topic} it is", Dice(0), {"topic": "gravity"}) == "Gravity it is"


@pytest.mark.parametrize("template", ["[a|b", "a|b", "a]", "[a|[b]"])
def test_broken_template_is_named(template: str):
    with pytest.raises(GrammarError, match="template"):
        grammar.parse(template)


# Understanding


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


# Conversations


def test_same_seed_gives_the_same_words_and_another_gives_others(world: World):
    first, again, other = (play(world, BehaviourAgent(world), 50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert words(first) != words(other)


def test_words_do_not_depend_on_the_rest_of_the_batch(world: World):
    together = play(world, BehaviourAgent(world), 40)
    agent, human = BehaviourAgent(world), SimulatedHuman(world)
    for index in (3, 17, 39):
        alone = sample_conversations(world, "average", 40, 0, "test")[index]
        assert converse(agent, human, [alone], world.task) == [together[index]]


def test_every_agent_meets_the_same_humans(world: World):
    ours, theirs = (play(world, a, 50) for a in (BehaviourAgent(world), UniformAgent(world)))
    for one, other in zip(ours, theirs, strict=True):
        assert one.persona == other.persona
        assert one.turns[0] == other.turns[0]
    longer = sample_conversations(world, "average", 80, 0, "test")[:50]
    assert [c.persona for c in longer] == [dialogue.persona for dialogue in ours]


def test_populations_follow_the_prior(world: World):
    for population in ("average", "difficult"):
        drawn = sample_conversations(world, population, 4000, 0, "test")
        personas = [world.persona(conversation.persona) for conversation in drawn]
        share = np.mean([world.is_difficult(persona) for persona in personas])
        expected = sum(
            p for persona, p in world.population(population).items() if world.is_difficult(persona)
        )
        assert share == pytest.approx(expected, abs=0.025)


def test_a_human_who_forgot_everything_recovers_it_from_the_words(world: World):
    class Forgetful(SimulatedHuman):
        def respond(self, conversations):
            for conversation in conversations:
                conversation.human_memory = None
            return super().respond(conversations)

    conversations = sample_conversations(world, "average", 100, 0, "test")
    forgetful = converse(BehaviourAgent(world), Forgetful(world), conversations, world.task)
    assert forgetful == play(world, BehaviourAgent(world), 100)


def test_what_an_agent_said_last_counts_though_it_hung_up():
    world = load_world("travel")
    persona = {"budget": "low", "company": "family", "interest": "nature", "temperament": "clear"}
    said = ("I recommend a farm stay there.", "Great, then we are done. Have fun!")
    ratings = []
    for ends in (False, True):
        conversation = Conversation("test", persona, seed=0)
        agent = Parrot(*said, ends=ends)
        converse(agent, SimulatedHuman(world), [conversation], world.task)
        ratings.append(conversation.reward)
    assert ratings == [1.0, 1.0]


def test_data_of_every_behaviour_is_marked(world: World):
    dialogues = play(world, BehaviourAgent(world), 400)
    names = [dialogue.agent_turns[0].annotations["behaviour"] for dialogue in dialogues]
    for name, behaviour in world.behaviours.items():
        assert names.count(name) / 400 == pytest.approx(behaviour.share, abs=0.08)


# Loading


def test_example_of_the_page_is_a_world_outside_the_repository(coffee_source: str, tmp_path: Path):
    path = tmp_path / "coffee.py"
    path.write_text(coffee_source)
    coffee = load_world(path)
    assert load_world(str(path)) is coffee
    # Offering finds out for certain at the cost of one bother.
    assert optimal_value(coffee) == pytest.approx(0.9)
    assert policy_value(coffee, "waiter") == pytest.approx(
        0.5 * 0.5 + 0.5 * (0.9 * 0.9 + 0.1 * 0.45)
    )
    assert_mean(play(coffee, OptimalAgent(coffee), 100), 0.9)
    assert coffee.understand(["Enjoy your tea!", "some coffee or tea, Ada?"]) == [
        "serve_tea",
        "offer",
    ]


def test_world_may_come_from_make_world(coffee_source: str, tmp_path: Path):
    path = tmp_path / "made.py"
    path.write_text(coffee_source.replace("WORLD = World(", "made = World(") + MAKE)
    assert load_world(path).name == "coffee"


MAKE = "\n\ndef make_world():\n    return made\n"


def test_unknown_world_lists_the_known_ones(tmp_path: Path):
    for name in ("skiing", "no.such.module"):
        with pytest.raises(WorldError, match=r"unknown world .*teaching, travel"):
            load_world(name)
    with pytest.raises(WorldError, match="no world file"):
        load_world(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("X = 1\n")
    with pytest.raises(WorldError, match="Define WORLD"):
        load_world(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("X = 1 +\n")
    with pytest.raises(WorldError, match="could not be run"):
        load_world(tmp_path / "broken.py")


SLIPS = [
    ('"coffee", "open"): 0.45', '"coffee", "open"): 0.55', r"prior over personas.*sum to 1\.1"),
    ('("tea", "shy"): 0.05', '("juice", "shy"): 0.05', r"\(juice, shy\).*axis 'drink'.*coffee"),
    ('{"puzzled" if', '{"baffled" if', r"reply of persona .* to act None.*'baffled'"),
    ('"displeased": 1.0}', '"displeased": 0.7}', r"persona .*act 'serve_.*sum to 0\.7"),
    ('"ask": 0.5', '"ask": 0.4', r"behaviour 'waiter' in state Chat.*sum to 0\.9"),
    ('return {"ask"', 'return {"shout"', r"behaviour 'waiter'.*unknown 'shout'; known are ask"),
    ("share=1.0", "share=0.8", r"shares of the behaviours.*sum to 0\.8"),
    ("I am {name}", "I am {who}", r"reply 'greets'.*slot who; the world's slots are name"),
    ("[Oh|Well], I don't", "[Oh|Well, I don't", r"reply 'shrugs'.*not closed"),
    ("[A tea|Some tea]", "[A tea|A coffee]", r"'A coffee, please.'.*'wants_coffee'.*'wants_tea'"),
    ("0.1 * chat.bother)", "9 * chat.bother) - 1", r"rating of persona .* is -1"),
    ('guest[1] == "shy"', 'guest[1] == "rude"', r"no persona of the difficult population"),
    ('{"greets": 1.0}', '{"hugs": 1.0}', r"opening of persona .*unknown 'hugs'"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), SLIPS)
def test_slip_in_a_world_is_named(
    right: str, wrong: str, message: str, coffee_source: str, tmp_path: Path
):
    assert right in coffee_source
    path = tmp_path / "slip.py"
    path.write_text(coffee_source.replace(right, wrong, 1))
    with pytest.raises(WorldError, match=message):
        load_world(path)


def test_planning_hint_that_hides_too_much_is_named():
    from imagination.simulation.validation import validate

    world = load_world("travel")
    with pytest.raises(WorldError, match="situation"):
        validate(dataclasses.replace(world, situation=lambda trip: trip._replace(offered=None)))
    with pytest.raises(WorldError, match="ceiling"):
        validate(dataclasses.replace(world, ceiling=lambda traveller, trip: 0.1))


def test_wrong_names_are_answered_with_the_right_ones(world: World):
    with pytest.raises(WorldError, match="average, difficult"):
        sample_conversations(world, "strange", 1, 0, "test")
    with pytest.raises(WorldError, match=next(iter(world.behaviours))):
        BehaviourAgent(world, "genius")
    with pytest.raises(WorldError, match="one value for each of"):
        world.persona({"level": "wizard"})


def test_phrasing_and_behaviour_are_plain_data():
    assert Phrasing(["[a|b]", "c"]).count == 3
    assert Behaviour(1.0, lambda state: {"ask": 1.0}).listens


def test_what_is_understood_is_kept_within_bounds(monkeypatch):
    monkeypatch.setattr("imagination.simulation.understanding._MOST_KEPT", 10)
    understanding = load_world("teaching").agent_understanding
    texts = [f"How do you like to learn, {number}?" for number in range(30)]
    alone = [understanding.understand([text]) for text in texts]
    assert [[act] for act in understanding.understand([*texts, "word " * 300])][:30] == alone
    understanding.understand(["word " * 300, "Hello."])
    assert max(map(len, understanding._cache)) <= 500 and len(understanding._cache) <= 11
