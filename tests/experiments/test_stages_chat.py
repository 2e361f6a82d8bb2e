"""The chat in the terminal: what it tells, how it ends, and what it keeps."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import pages
import pytest
from launching import ROOT
from rich.console import Console
from rich.text import Text

from experiments import interrupts
from experiments.build import build
from experiments.chats import ask_rating, is_goodbye
from experiments.config import base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stages.chat import Chat
from experiments.tasks import load_task, world_of
from ilql_jax.disk import DiskError
from imagination.dialogue import Dialogue, Turn, read_dialogues
from imagination.simulation import load_world
from imagination.speakers import FAILURE, NO_ANSWER, Utterance
from imagination.task import Task

HELLO = "Hi, can you explain recursion?"
ASKS = "What helps you most: examples, analogies or definitions?"
EXPLAINS = "Let me show you it works from the beginning, by example."
CHECKS = "Now, what was the main idea in your own words?"
SAYS_GOODBYE = "Very good, that is all for today. Goodbye!"
TRIPS = Task(
    name="trips",
    description="A guide plans a day. The visitor is in a hurry.",
    agent_role="guide",
    human_role="visitor",
    persona_axes={},
    reward_range=(1.0, 5.0),
    success_reward=4.0,
    max_turns=3,
)
PLANNED = Dialogue("t", "trips", (Turn("human", "Where to?"), Turn("agent", "North.")))


class Person(Console):
    """A terminal in which somebody types lines; an error among them is raised in place of one."""

    def __init__(self, lines: Sequence[str | BaseException]):
        super().__init__(file=io.StringIO(), width=100)
        self.lines = [*lines, EOFError()]

    def input(self, prompt: str = "", **_) -> str:
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        self.file.write(f"{Text.from_markup(prompt).plain}{line}\n")
        return line

    @property
    def shown(self) -> str:
        return " ".join(self.file.getvalue().split())


class Scripted:
    """Says one thing after the other, the last one ever again; a seed may have its own words."""

    def __init__(self, *said: str, by_seed: Callable[[int], str] | None = None):
        self.said, self.by_seed = list(said), by_seed

    def respond(self, conversations):
        if self.by_seed is not None:
            return [Utterance(self.by_seed(each.seed)) for each in conversations]
        return [Utterance(self.said.pop(0) if len(self.said) > 1 else self.said[0])]


class NoRoom:
    def respond(self, conversations):
        return [Utterance(NO_ANSWER, ends=True, annotations={FAILURE: "its last turn is long"})]


@pytest.fixture(autouse=True)
def _same_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(secrets, "randbits", lambda _: 7)
    monkeypatch.setattr(interrupts.Stop, "status", interrupts.CTRL_C)


def chat(folder: Path, agent, *lines, task: str | Task = "teaching", dialogue=PLANNED) -> Person:
    """Holds a chat to its end; returns the terminal."""
    world = None if isinstance(task, Task) else load_world(task)
    person = Person(lines)
    held = Chat(
        agent=agent,
        task=task if world is None else world.task,
        world=world,
        folder=RunFolder(folder),
        console=person,
        source={"method": "ilql", "agent": "ilql-seed0", "decoding": "greedy"},
        dialogues=[dialogue],
    )
    held.introduce()
    held.talk()
    person.kept = read_dialogues(held.folder.chats) if held.folder.chats.exists() else []
    return person


def test_it_says_who_it_is_what_it_knows_and_how_to_end(tmp_path: Path):
    said = chat(tmp_path, Scripted(ASKS)).shown
    assert "You are the student, the agent is the tutor (ilql, greedy)" in said
    assert "Name a topic that it knows: recursion, gravity," in said
    assert "Say goodbye to end the conversation" in said and "/rate" in said
    examples = said.partition("Say, for instance: ")[2].split(" / ")
    assert len(examples) == 3 and all(map(load_world("teaching").hear, examples))


def test_a_described_task_shows_what_people_said_to_it(tmp_path: Path):
    said = chat(tmp_path, Scripted("North."), "banana xyzzy", task=TRIPS).shown
    assert "You are the visitor, the agent is the guide" in said and "A guide plans a day" in said
    assert "Say, for instance: Where to?" in said and "Not understood" not in said


def test_words_that_a_world_does_not_understand_are_told_with_some_that_it_does(tmp_path: Path):
    said = chat(tmp_path, Scripted(ASKS, EXPLAINS), HELLO, "banana xyzzy the of of").shown
    told = f"Not understood: no student says such a thing here. agent: {EXPLAINS} Say, for instance"
    sentences = said.partition(f"{told}: ")[2].partition(" Kept in")[0].split(" / ")
    world = load_world("teaching")
    assert len(sentences) == 3 and all(world.hear(each) for each in sentences)
    assert "Not understood" not in chat(tmp_path, Scripted(ASKS), HELLO, "I like examples").shown


def test_a_topic_that_it_does_not_know_is_told(tmp_path: Path):
    said = chat(tmp_path, Scripted(ASKS), "can you explain chess?", HELLO).shown
    assert said.count("No topic that it knows was named.") == 1


def test_it_says_what_it_understands(tmp_path: Path):
    said = chat(tmp_path, Scripted(ASKS), HELLO, "I like examples", "gravity").shown
    assert f"{HELLO} understood as asks, recursion agent: {ASKS}" in said
    assert "understood as likes example" in said and "understood as gravity" in said


@pytest.mark.parametrize("answer", [SAYS_GOODBYE, CHECKS], ids=["the agent ends it", "the limit"])
def test_what_is_not_understood_is_told_in_the_last_exchange_too(tmp_path: Path, answer: str):
    lines = [HELLO, *["I prefer examples."] * 6, "banana xyzzy"]
    person = chat(tmp_path, Scripted(ASKS, *[EXPLAINS] * 6, answer), *lines, "0.5")
    said = person.shown
    assert person.kept[0].source["ended_by"] == ("agent" if answer == SAYS_GOODBYE else "limit")
    assert f"Not understood: no student says such a thing here. agent: {answer} The tutor" in said
    assert said.count("Say, for instance") == 1  # at the beginning


def test_values_are_shown_on_demand(tmp_path: Path):
    told = "no values: it learned none"
    lines = (HELLO, "/values", "I like examples", "/values", "Hm")
    said = chat(tmp_path, Scripted(ASKS), *lines).shown
    assert said.count(told) == 1 and "values shown" in said and "values hidden" in said


def test_it_keeps_to_the_topic_that_was_named(tmp_path: Path):
    other, same = "So, let me explain gravity from zero, by example.", EXPLAINS
    agent = Scripted(by_seed=lambda seed: other if seed < 9 else same)
    assert [t.text for t in chat(tmp_path, agent, HELLO).kept[0].turns][1:] == [same]
    never = Scripted(by_seed=lambda seed: other)
    person = chat(tmp_path, never, HELLO)
    assert person.kept[1].turns[1].text == other
    assert f"{other} The tutor has left the topic that you named." in person.shown
    assert "has left the topic" not in chat(tmp_path, never, "Hi").shown  # none was named


@pytest.mark.parametrize("words", ["bye", "Thanks, bye!", "/rate", "OK, see you later."])
@pytest.mark.parametrize("task", ["teaching", TRIPS], ids=["world", "described"])
def test_a_goodbye_ends_it_with_a_rating_that_is_kept(tmp_path: Path, words: str, task):
    person = chat(tmp_path, Scripted(ASKS), HELLO, words, "6", "-1", "nan", "ok", "1,0", task=task)
    [dialogue] = person.kept
    assert person.shown.count("is no rating: give a number from") == 4
    assert person.shown.count(ASKS) == 1 and len(person.lines) == 1
    assert (dialogue.reward, dialogue.terminal) == (1.0, True)
    assert dialogue.task == ("trips" if isinstance(task, Task) else "teaching")
    source = dialogue.source
    assert (source["kind"], source["ended_by"], source["seed"]) == ("human", "human", 7)
    assert (source["method"], source["agent"], source["decoding"]) == (
        "ilql",
        "ilql-seed0",
        "greedy",
    )
    assert source["ended_at"].endswith("+00:00")
    said = [HELLO, ASKS, *([] if words == "/rate" else [words])]
    assert [turn.text for turn in dialogue.turns] == said


def test_a_scale_that_counts_something_says_what(tmp_path: Path):
    said = chat(tmp_path, Scripted("Please give."), "Hi", "bye", "1.5", task="persuasion").shown
    assert "How did it end, from 0 to 2 dollars that the persuadee gives?" in said
    said = chat(tmp_path, Scripted("North."), "Hi", "bye", "", task=TRIPS).shown
    assert (
        "How good was this conversation, from 1 to 5?" in said and "4 or more = a success" in said
    )


@pytest.mark.parametrize("goodbye", [SAYS_GOODBYE, "Great, we are done with gravity. Goodbye!"])
@pytest.mark.parametrize("hello", [HELLO, "Hi"])
def test_the_agents_goodbye_ends_it(tmp_path: Path, hello: str, goodbye: str):
    person = chat(tmp_path, Scripted(EXPLAINS, goodbye), hello, "Ah, now I see.", "")
    [dialogue] = person.kept
    assert "The tutor has ended the conversation." in person.shown
    assert (dialogue.source["ended_by"], dialogue.reward, dialogue.terminal) == (
        "agent",
        None,
        True,
    )


def test_the_limit_of_the_task_ends_it(tmp_path: Path):
    person = chat(tmp_path, Scripted("North."), *["Where to?"] * 3, "4.5", task=TRIPS)
    [dialogue] = person.kept
    assert "The guide has spoken its last turn." in person.shown and len(dialogue.turns) == 6
    assert (dialogue.source["ended_by"], dialogue.reward) == ("limit", 4.5)
    assert dialogue.terminal  # rated: no reward can follow
    person = chat(tmp_path, Scripted("North."), *["Where to?"] * 3, "", task=TRIPS)
    assert person.kept[-1].source["ended_by"] == "limit" and not person.kept[-1].terminal


def test_words_with_which_the_worlds_human_would_go_end_it(tmp_path: Path):
    """Whoever was asked what they have said before has had enough after the fourth time."""
    lines = [HELLO, "I prefer examples, please.", *["Again? We had that already."] * 3]
    person = chat(tmp_path, Scripted(ASKS), *lines, "Enough, I will learn it elsewhere.", "0")
    assert person.kept[0].source["ended_by"] == "human" and person.kept[0].reward == 0.0
    assert "understood as leaves With these words the conversation is over." in person.shown


@pytest.mark.parametrize("stop", [EOFError(), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [[], ["bye"], ["/quit"], ["/new"]])
def test_a_chat_that_is_stopped_is_kept_without_a_rating(tmp_path: Path, stop, before: list[str]):
    person = chat(tmp_path, Scripted(ASKS), HELLO, *before, stop)
    [dialogue] = person.kept
    assert dialogue.reward is None and "Kept in" in person.shown
    assert dialogue.source["ended_by"] == ("human" if before == ["bye"] else "left")
    assert person.shown.count("How good was this conversation") == len(before)
    assert person.shown.count("A new conversation.") == 1


@pytest.mark.parametrize("word", ["/quit", "/exit", "/new"])
@pytest.mark.parametrize(("typed", "rating"), [("0.5", 0.5), ("", None)])
def test_whoever_leaves_or_begins_another_is_asked_for_a_rating(
    tmp_path: Path, word: str, typed: str, rating: float | None
):
    person = chat(tmp_path, Scripted(ASKS), HELLO, word, typed)
    [dialogue] = person.kept
    assert (dialogue.reward, dialogue.source["ended_by"], dialogue.terminal) == (
        rating,
        "left",
        rating is not None,
    )
    assert person.shown.count("A new conversation.") == (2 if word == "/new" else 1)
    nothing_said = chat(tmp_path, Scripted(ASKS), word)
    assert "How good was" not in nothing_said.shown and len(nothing_said.kept) == 1


@pytest.mark.parametrize(("word", "begun"), [("/new", 2), ("/quit", 1)])
def test_commands_at_the_rating_are_no_rating_and_are_obeyed(tmp_path: Path, word: str, begun: int):
    person = chat(tmp_path, Scripted(ASKS), HELLO, "bye", word)
    assert [dialogue.reward for dialogue in person.kept] == [None]
    assert person.shown.count("A new conversation.") == begun
    assert f"rating: {word} Not rated. Kept in" in person.shown
    assert "is no rating" not in person.shown
    assert "/new" in person.shown.partition("How good was")[2].partition("rating:")[0]


def test_a_chat_that_is_ended_from_outside_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(interrupts.Stop, "status", interrupts.TERMINATED)
    with pytest.raises(KeyboardInterrupt):
        chat(tmp_path, Scripted(ASKS), HELLO, KeyboardInterrupt())
    assert len(read_dialogues(tmp_path / "chats.jsonl")) == 1


def test_each_conversation_is_kept_and_none_in_which_nothing_was_said(tmp_path: Path):
    lines = ["/new", HELLO, "/new", "", "/nonsense", HELLO, "bye", "0.5"]
    person = chat(tmp_path, Scripted(ASKS), *lines)
    assert [d.source["ended_by"] for d in person.kept] == ["left", "human"]
    assert [d.reward for d in person.kept] == [None, 0.5]
    assert person.shown.count("A new conversation.") == 3
    assert len(chat(tmp_path, Scripted(ASKS), "bye").kept) == 2
    assert len(chat(tmp_path, Scripted(ASKS)).kept) == 2


def test_a_chat_that_cannot_be_kept_is_told(tmp_path: Path):
    (tmp_path / "chats.jsonl").mkdir()
    with pytest.raises(DiskError, match=r"chats\.jsonl"):
        chat(tmp_path, Scripted(ASKS), HELLO)


def test_an_agent_that_opens_speaks_first(tmp_path: Path):
    opens = Dialogue("t", "trips", (Turn("agent", "Hello!"), Turn("human", "Where to?")))
    person = chat(tmp_path, Scripted("Hello!", "North."), "So?", task=TRIPS, dialogue=opens)
    assert [turn.text for turn in person.kept[0].turns] == ["Hello!", "So?", "North."]


def test_nothing_of_agent_or_person_controls_the_terminal(tmp_path: Path):
    evil = "\x1b]0;owned\x07\x1b[2J\u202eolleh\x9b31m [bold]hi[/]"
    task = {"description": f"A {evil} guide.", "agent_role": evil, "human_role": evil}
    task = Task(**{**vars(TRIPS), **task, "reward_unit": evil})
    dialogue = Dialogue("t", "t", (Turn("human", evil), Turn("agent", evil)))
    lines = (evil, "/values", evil, "bye", evil, "3")
    person = chat(tmp_path, Scripted(evil), *lines, task=task, dialogue=dialogue)
    output = person.file.getvalue()
    for line in lines:  # as typed, which a real terminal shows itself
        output = output.replace(f"you: {line}\n", "").replace(f"rating: {line}\n", "")
    assert not any(sign in output for sign in "\x1b\x07\x9b\u202e") and "[bold]hi[/]" in output
    human = [turn.text for turn in person.kept[0].turns if turn.speaker == "human"]
    assert human[0] == "]0;owned [2Jolleh 31m [bold]hi[/]"


def test_a_message_that_does_not_fit_is_told_and_can_be_said_again(tmp_path: Path):
    person = chat(tmp_path, NoRoom(), "why " * 1000, HELLO)
    told = "The tutor has no answer: its last turn is long. Say it in other words."
    assert person.shown.count(told) == 2 and person.kept == []


def test_nothing_is_rated_before_there_is_an_answer(tmp_path: Path):
    person = chat(tmp_path, Scripted(ASKS), "/rate", HELLO, "/rate", "1")
    assert person.shown.count("Nothing was answered yet") == 1
    assert [dialogue.reward for dialogue in person.kept] == [1.0]


@pytest.mark.parametrize(
    ("typed", "rating"),
    [
        ("1,5", 1.5),
        ("0,125", 0.125),
        ("1,500", 1500.0),
        ("-1,500", -1500.0),
        ("2,000.50", 2000.5),
        ("1,2,3", None),
    ],
)
def test_ratings_may_have_commas(typed: str, rating: float | None):
    task = Task(**{**vars(TRIPS), "reward_range": (-5000.0, 5000.0), "success_reward": 10.0})
    assert ask_rating(task, Person([typed, ""])) == rating


def test_the_transcript_of_the_docs_is_what_the_chat_prints(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/teaching")
    folder.mkdir(parents=True)
    lines = (HELLO, "banana xyzzy", "Oh, now I get it.", "Thanks, bye!", "2", "0.8")
    person = chat(folder, Scripted(ASKS, EXPLAINS, CHECKS), *lines)
    printed = "".join(f"{line.rstrip()}\n" for line in person.file.getvalue().splitlines())
    shown = [block.text for block in pages.blocks(ROOT / "docs" / "quickstart.md")]
    assert [each for each in shown if each.startswith("You are the")] == [printed]
    assert person.kept[0].reward == 0.8


DESCRIBED = {"task.description": "A guide plans a day.", "imagination.engine": "anthropic"}
OTHERS = [{"data.source": "jsonl", "data.path": "x.jsonl"}, {**DESCRIBED, "llm.model": "m"}]


@pytest.mark.parametrize("settings", OTHERS, ids=["own data", "described"])
def test_a_task_that_is_no_worlds_stands_in_its_file_alone(tmp_path: Path, settings):
    config = base_config()
    config.update_from_flattened_dict(settings)
    experiment, folder = build(config), RunFolder(tmp_path)
    assert world_of(experiment) is None
    with pytest.raises(RunError, match=r"task\.yaml is gone.*Put it back"):
        load_task(experiment, folder)
    folder.task.write_text(TRIPS.to_yaml())
    assert load_task(experiment, folder) == TRIPS


def test_the_task_of_a_world_is_known_without_a_file(tmp_path: Path):
    config = base_config()
    config.task.world = "travel"
    assert world_of(build(config)) is load_world("travel")
    assert load_task(build(config), RunFolder(tmp_path)).name == "travel"


@pytest.mark.parametrize(
    ("text", "goodbye"),
    [
        ("bye", True),
        ("Bye-bye!", True),
        ("Okay, thanks. Good bye then.", True),
        ("I’m leaving now", True),
        ("I have to go. See you!", True),
        ("Tschüss", True),
        ("I never said goodbye to her.", False),
        ("How do I say goodbye?", False),
        ("Hi, I want to buy shoes", False),
        ("", False),
    ],
)
def test_goodbyes(text: str, goodbye: bool):
    assert is_goodbye(text) is goodbye
