"""A participant's way through a study, without HTTP."""

from __future__ import annotations

import collections
import dataclasses
import sqlite3

import pytest

from experiments.human_study.questionnaire import FOLDER, Questionnaire
from experiments.human_study.records import RATER, Message, Platform, StudyError
from experiments.human_study.session import Refused, Rules, Study, cleaned
from experiments.human_study.store import Store

TEACHING = Questionnaire.load(FOLDER / "teaching.yaml")
AGENTS = ("ilql", "bc", "fbc")
GOOD = {q.name: "4" for q in TEACHING.questions} | {"attention!": "2"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def study(tmp_path, clock) -> Study:
    rules = Rules(dropout_after=60.0, most_agent_turns=4, most_participants=50)
    return Study(Store(tmp_path / "study.sqlite"), TEACHING, AGENTS, rules, clock=clock)


def joined(study: Study, form: str = "f1") -> int:
    participant, _ = study.begin(form, Platform())
    study.read_instructions(participant.number)
    return participant.number


def exchange(study: Study, number: int, text: str = "Hello", is_over: bool = False) -> None:
    talk = study.step(number).talk
    place = len(talk.messages)
    assert study.say(number, place, f"t{place}", text)
    study.answered(study.step(number).talk, f"Answer to {text}", is_over)


def talked(study: Study, number: int) -> None:
    exchange(study, number)
    exchange(study, number)
    study.end_by_human(number)


def rated(study: Study, number: int, answers=GOOD) -> None:
    study.rate(number, study.step(number).key, answers)


def finished(study: Study, form: str) -> int:
    number = joined(study, form)
    while study.step(number).name == "chat":
        talked(study, number)
        rated(study, number)
    places = {alias: str(i + 1) for i, (alias, _) in enumerate(study.to_rank(number))}
    study.rank(number, places)
    return number


def test_the_whole_way(study: Study):
    number = joined(study)
    order = study.store.participant(number).order
    assert sorted(order) == sorted(AGENTS)
    for place, agent in enumerate(order, start=1):
        step = study.step(number)
        assert (step.name, step.number, step.of, step.talk.agent) == ("chat", place, 3, agent)
        talked(study, number)
        assert study.step(number).name == "rate"
        rated(study, number)
    assert study.step(number).name == "ranking"
    study.rank(number, {"A": "3", "B": "1", "C": "2"})
    assert study.step(number).name == "done"
    participant = study.store.participant(number)
    assert participant.ranking == (order[1], order[2], order[0]) and participant.finished_at
    study.comment(number, "Fine.\x00")
    assert study.store.participant(number).comment == "Fine."
    assert len(study.store.ratings()) == 12 and study.store.attention() == {number: True}
    steps = [step for _, step in study.store.steps(number)]
    assert steps[:3] == ["agreed", "instructed", "began 1"] and steps[-2:] == [
        "finished",
        "commented",
    ]


def test_a_form_that_is_sent_twice_begins_one_participant(study: Study):
    first, token = study.begin("same", Platform())
    again, same = study.begin("same", Platform())
    assert (first.number, token) == (again.number, same) and study.store.count() == 1
    assert study.store.number_of(token) == first.number
    assert study.store.number_of("'; DROP TABLE participants; --") is None


def test_a_platforms_participant_goes_on_in_the_same_session_alone(study: Study):
    first, token = study.begin("a", Platform("p", "s", "x"))
    assert study.begin("b", Platform("p", "s", "x")) == (first, token)
    with pytest.raises(Refused, match="has begun already"):
        study.begin("c", Platform("p", "s", "y"))


def test_a_message_is_kept_once_and_another_windows_is_not_taken_for_it(study: Study):
    number = joined(study)
    assert study.say(number, 0, "mine", "Hello") and study.say(number, 0, "mine", "Hello")
    assert not study.say(number, 0, "other window", "Hi")
    assert not study.say(number, 1, "too early", "Hi"), "the agent has the word"
    talk = study.step(number).talk
    assert [m.text for m in talk.messages] == ["Hello"]
    study.answered(talk, "First", False)
    study.answered(talk, "Second, made after a kill", False)
    assert [m.text for m in study.step(number).talk.messages] == ["Hello", "First"]
    assert study.say(number, 0, "mine", "Hello"), "sent again after a lost connection"


@pytest.mark.parametrize("text", ["", "   ", "\x00\u202e \n", "x" * 100_000])
def test_messages_of_nothing_and_of_too_much_are_refused_with_words(study: Study, text: str):
    with pytest.raises(Refused, match=r"Please write|too long"):
        study.say(joined(study), 0, "t", text)


def test_what_is_kept_of_odd_text():
    assert cleaned("a\x00b\x1b[31m\u202ec\ud800", 99) == "a b [31mc?"
    assert cleaned("<script>alert(1)</script> <agent>", 99) == "<script>alert(1)</script> <agent>"
    assert cleaned("one\r\n\r\ntwo", 99) == "one\n\ntwo"
    assert cleaned("one\ntwo", 99, single_line=True) == "one two"


def test_too_few_turns_cannot_be_rated(study: Study):
    number = joined(study)
    exchange(study, number)
    assert not study.can_finish(study.step(number).talk)
    study.end_by_human(number)
    rated(study, number)
    assert study.step(number).name == "chat"


def test_an_agent_that_ends_too_early_is_set_aside_and_the_participant_goes_on(study: Study):
    number = joined(study)
    exchange(study, number, is_over=True)
    step = study.step(number)
    assert (step.name, step.talk.aside) == ("told", "too short")
    study.was_told(number)
    assert (study.step(number).name, study.step(number).number) == ("chat", 2)


def test_the_turn_limit_ends_a_conversation(study: Study):
    number = joined(study)
    for _ in range(4):
        exchange(study, number)
    step = study.step(number)
    assert (step.name, step.talk.ended_by) == ("rate", "limit")


def test_an_agent_that_fails_costs_its_own_conversation_alone(study: Study):
    number = joined(study)
    talk = study.step(number).talk
    study.say(number, 0, "t", "Hello")
    study.failed(talk, "it hangs")
    study.answered(study.store.talk(talk.number), "too late", False)
    assert study.step(number).name == "told"
    assert study.store.talk(talk.number).failure == "it hangs"
    study.was_told(number)
    while study.step(number).name == "chat":
        talked(study, number)
        rated(study, number)
    assert [name for name, _ in study.to_rank(number)] == ["B", "C"]
    with pytest.raises(Refused, match="a place of its own"):
        study.rank(number, {"B": "1", "C": "1"})
    study.rank(number, {"B": "2", "C": "1"})
    assert study.store.participant(number).finished_at


@pytest.mark.parametrize("answer", ["", "0", "6", "4.0", "²", "9" * 5000, "4; DROP"])
def test_an_answer_off_the_scale_is_refused_and_nothing_of_the_form_is_kept(study, answer: str):
    number = joined(study)
    talked(study, number)
    with pytest.raises(Refused, match="choose an answer"):
        rated(study, number, GOOD | {"overall": answer})
    assert not study.store.ratings() and study.step(number).name == "rate"


def test_a_form_of_another_step_changes_nothing(study: Study):
    number = joined(study)
    talked(study, number)
    key = study.step(number).key
    rated(study, number)
    talked(study, number)
    study.rate(number, key, GOOD)  # the first form, sent again from a second window
    study.rank(number, {})
    study.comment(number, "early")
    assert study.step(number).key == "rate-2" and len(study.store.ratings()) == 4
    assert study.store.participant(number).comment == ""


def test_the_attention_check_is_asked_once(study: Study):
    number = joined(study)
    talked(study, number)
    assert [check for _, check in study.questions(study.step(number))].count(True) == 1
    rated(study, number, GOOD | {"attention!": "5"})
    assert study.store.attention() == {number: False}
    talked(study, number)
    assert not any(check for _, check in study.questions(study.step(number)))


def test_cells_fill_evenly_and_those_who_drop_out_are_replaced(study: Study, clock: Clock):
    numbers = [joined(study, f"f{i}") for i in range(12)]
    rows = collections.Counter(study.store.participant(n).row for n in numbers)
    assert set(rows.values()) == {2} and len(rows) == 6
    clock.now += 3600  # nobody of these goes on
    new = [joined(study, f"g{i}") for i in range(6)]
    assert len({study.store.participant(n).row for n in new}) == 6


def test_a_card_is_the_same_with_each_agent_and_differs_between_people(study: Study):
    personas = [study.store.participant(joined(study, f"f{i}")).persona for i in range(20)]
    assert len({tuple(p.items()) for p in personas}) > 5
    assert len(TEACHING.sentences(personas[0])) == len(TEACHING.personas)


def test_paused_or_full_nobody_begins_and_who_has_begun_goes_on(study: Study):
    number = joined(study)
    study.pause(True)
    with pytest.raises(Refused, match="no further participants"):
        study.begin("late", Platform())
    talked(study, number)
    assert study.step(number).name == "rate"
    study.pause(False)
    joined(study, "later")
    study.rules = dataclasses.replace(study.rules, most_participants=2)
    assert not study.is_open
    assert study.begin("later", Platform())[0].number == 2, "sent again after a lost connection"


def test_a_page_that_is_left_open_for_days_goes_on(study: Study, clock: Clock):
    number = joined(study)
    exchange(study, number)
    clock.now += 5 * 24 * 3600
    exchange(study, number)
    study.end_by_human(number)
    rated(study, number)
    assert study.step(number).key == "chat-2"


def test_an_agent_may_speak_first(tmp_path):
    form = dataclasses.replace(TEACHING, opens="agent")
    study = Study(Store(tmp_path / "study.sqlite"), form, AGENTS, Rules(most_agent_turns=4))
    number = joined(study)
    talk = study.step(number).talk
    assert study.awaits_agent(talk) and not study.say(number, 0, "t", "Hello")
    study.answered(talk, "Good morning!", False)
    exchange(study, number)
    speakers = [message.speaker for message in study.step(number).talk.messages]
    assert speakers == ["agent", "human", "agent"]


def test_raters_see_the_conversations_of_others_two_of_them_each(study: Study):
    finished(study, "f1")
    keys = {}
    for rater in range(3):
        try:
            participant, _ = study.begin(f"r{rater}", Platform(), RATER)
        except Refused as nothing_left:
            assert rater == 2 and "no conversation to rate" in str(nothing_left)
            continue
        number = participant.number
        study.read_instructions(number)
        while (step := study.step(number)).name == "judge":
            keys.setdefault(rater, []).append(step.talk.number)
            rated(study, number, {q.name: "3" for q in TEACHING.questions})
        assert study.step(number).name == "done" and study.store.participant(number).finished_at
    assert keys[0] == keys[1] and len(keys[0]) == 3
    per_talk = collections.Counter((r.talk, r.question) for r in study.store.ratings())
    assert set(per_talk.values()) == {3}  # their own rating, and two others


def test_withdrawal_deletes_what_was_said_from_the_file_too(study: Study):
    finished(study, "f1")
    participant, token = study.begin("f2", Platform("pid-secret", "s", "x"))
    study.read_instructions(participant.number)
    exchange(study, participant.number, "an unmistakable sentence")
    study.withdraw(participant.number)
    assert study.step(participant.number).name == "withdrawn"
    assert study.store.number_of(token) == participant.number
    assert not study.store.talks(participant.number) and len(study.store.ratings()) == 12
    for path in study.store.path.parent.iterdir():
        content = path.read_bytes()
        assert b"unmistakable" not in content and b"pid-secret" not in content


def test_what_a_kill_left_between_two_steps_is_done_at_the_next_start(study: Study):
    number = joined(study)
    exchange(study, number)
    talk = study.step(number).talk
    study.say(number, 2, "t", "Bye")
    message = dataclasses.replace(
        study.store.talk(talk.number).messages[1], number=3, token="agent-3", details={"is_over": 1}
    )
    study.store.add_message(talk.number, message)  # killed before the conversation was ended
    study.recover()
    assert study.step(number).name == "rate"
    study.store.rate(number, talk.number, {"overall": 3}, 1.0)  # killed before the next began
    assert study.step(number).name == "ranking" or study.step(number).name == "done"
    study.resume(number)
    assert (study.step(number).name, study.step(number).number) == ("chat", 2)


def test_a_file_of_another_version_study_or_kind_is_told(study: Study, tmp_path):
    path = study.store.path
    identity = {"agents": "ilql, bc"}
    Store(path, identity).close()
    joined(study)
    Store(path, identity).close()
    with pytest.raises(StudyError, match="other agents"):
        Store(path, {"agents": "another"})
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(StudyError, match="version 7, and this is version 1"):
        Store(path)
    (tmp_path / "text").write_text("no database " * 400)
    with pytest.raises(StudyError, match="cannot be opened"):
        Store(tmp_path / "text")


def test_a_full_disk_keeps_what_was_there_and_goes_on_afterwards(study: Study):
    number = joined(study)
    pages = study.store._db.execute("PRAGMA page_count").fetchone()[0]
    study.store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for i in range(400):
            study.store.add_message(study.step(number).talk.number, _message(i, "long " * 300))
    study.store._db.execute("PRAGMA max_page_count = 100000")
    kept = len(study.step(number).talk.messages)
    assert study.store.add_message(study.step(number).talk.number, _message(kept, "after"))


def _message(number: int, text: str) -> Message:
    return Message(number, "human", text, 0.0, f"t{number}")
