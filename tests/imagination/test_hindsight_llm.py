"""Hindsight played by an LLM, over real HTTP against a server on loopback."""

import contextlib
import dataclasses
import itertools
import json
import re

import pytest
from hindsight_llm import BETTER, HindsightLLM, fields_of, system_of
from messages_server import MessagesServer
from world_llm import WorldLLM

from ilql_jax.settings import SettingError
from imagination.dialogue import Dialogue, Turn
from imagination.hindsight import Branch, Proposal
from imagination.hindsight.cost import forecast_hindsight
from imagination.hindsight.llm import PROFILE, LLMHindsight, LLMHindsightConfig
from imagination.llm import Client, CostLimitError, LLMConfig, LLMError
from imagination.llm.session import run_async
from imagination.prompts import load_prompt
from imagination.simulation import load_world
from imagination.task import Task

KEY = "sk-ant-a-key-that-must-not-be-written"
TASK = Task(
    name="donation",
    description="A persuader asks somebody to give to a charity.",
    agent_role="persuader",
    human_role="persuadee",
    persona_axes={"reluctance": ("money", "trust", "relevance"), "patience": ("long", "short")},
    reward_range=(0.0, 2.0),
    success_reward=1.0,
    max_turns=5,
    success="They give a dollar or more.",
)


def dialogue(name="d0", agent_turns=3, **fields):
    """The persuader opens, as in PersuasionForGood."""
    said = itertools.cycle([("agent", "Will you give something"), ("human", "I am not sure")])
    turns = [
        Turn(speaker, f"{words} {name}-{i}?")
        for i, (speaker, words) in enumerate(itertools.islice(said, 2 * agent_turns))
    ]
    return Dialogue(name, TASK.name, tuple(turns), **{"reward": 0.5, **fields})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@contextlib.contextmanager
def hindsight(answer, folder, task=TASK, server=None, llm=None, **settings):
    """An engine whose client asks a server that answers by `answer`; gives engine and server."""
    llm = {"batch_poll": 0.02, "timeout": 10.0, "max_retries": 1, "max_asks": 1, **(llm or {})}
    with MessagesServer(answer, **(server or {})) as serving:
        client = Client(LLMConfig(model="small", base_url=serving.url, **llm), folder)
        try:
            yield LLMHindsight(task, client, LLMHindsightConfig(**settings)), serving
        finally:
            run_async(client.close())


def whole_round(engine, dialogues, max_changes=2):
    """As `regenerate` goes about it: proposals, what follows on them, ratings."""
    proposals = engine.propose(dialogues, max_changes)
    branches = [
        Branch(parent, proposal)
        for parent, own in zip(dialogues, proposals, strict=True)
        for proposal in own or ()
    ]
    rests = engine.play(branches)
    replayed = [
        dataclasses.replace(branch.parent, turns=(*branch.prefix, *rest.turns))
        for branch, rest in zip(branches, rests, strict=True)
        if rest
    ]
    return proposals, branches, rests, engine.rate(replayed)


def asked(server, *fields):
    """Bodies of the calls whose answer has these fields."""
    return [call.body for call in server.calls if fields_of(call.body) == set(fields)]


def first_then(bad, good=None):
    """Answers by `bad(body)` (a value for JSON; None = nothing bad) until it is put again."""
    good = good or HindsightLLM()

    def answer(body):
        is_first = len(body["messages"]) == 1
        found = bad(body) if is_first else None
        return good(body) if found is None else json.dumps(found)

    return answer


# The three parts


@pytest.mark.parametrize("way", ["rollout", "script"])
def test_a_round_from_proposals_to_ratings(tmp_path, way):
    dialogues = [dialogue(f"d{i}", agent_turns=2 + i) for i in range(4)]
    with hindsight(HindsightLLM(), tmp_path, way=way) as (engine, server):
        proposals, branches, rests, ratings = whole_round(engine, dialogues)
    assert [[p.turn for p in own] for own in proposals] == [[0, 2]] * 4
    assert all(BETTER in p.utterance and p.reason for own in proposals for p in own)
    assert len(rests) == 8 and not engine.dropped
    for branch, rest in zip(branches, rests, strict=True):
        speakers = [turn.speaker for turn in (*branch.prefix, *rest.turns)]
        assert speakers == [s for s, _ in zip(itertools.cycle(("agent", "human")), speakers)]
        assert speakers[-1] == "human" and speakers.count("agent") <= 5 and rest.terminal
        assert rest.persona["reluctance"] in TASK.persona_axes["reluctance"]
        assert set(rest.persona) == {"reluctance", "patience", PROFILE}
    assert ratings == [pytest.approx(1.8)] * 8
    assert len(asked(server, "reason", "rating")) == 8 * 3
    used = {"rollout": ("human", "agent"), "script": ("rest",)}[way]
    names = [f"hindsight/{name}" for name in ("propose", "people", *used)]
    versions = ", ".join(load_prompt(name).version for name in (*names, "judge/rating"))
    assert engine.model_and_version == {"model": "small", "prompt": versions}


def test_turns_are_numbered_for_the_controller_and_its_rating_is_told(tmp_path):
    with hindsight(HindsightLLM(), tmp_path) as (engine, server):
        engine.propose([dialogue(), dialogue("d1", reward=None)], 1)
    prompts = [body["messages"][0]["content"] for body in asked(server, "changes")]
    (rated,) = (p for p in prompts if "\n3. persuader: Will you give something d0-2?\n4. " in p)
    (unrated,) = (p for p in prompts if "\n3. persuader: Will you give something d1-2?\n4. " in p)
    assert "0.5 on a scale from 0 " in rated and "scale" not in unrated


def test_a_dialogue_without_the_agent_takes_no_call(tmp_path):
    silent = Dialogue("s", TASK.name, (Turn("human", "Hello?"),), 0.0)
    with hindsight(HindsightLLM(), tmp_path) as (engine, server):
        assert engine.propose([silent], 2) == [[]]
        assert engine.propose([], 2) == engine.play([]) == engine.rate([]) == []
        assert not server.calls


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([(99, "Ask.")], "there is no turn 99; they go from 1 to 6"),
        ([(0, "Ask.")], "there is no turn 0"),
        ([(2, "Ask.")], "turn 2 is the persuadee's"),
        ([(3, "will you give something, D0-2")], "turn 3 is what was said there"),
        ([(3, "Persuader: What matters to you?")], "'Persuader:'"),
        ([(3, "Of course.\n**The persuadee:** Fine, I give.")], "'The persuadee:'"),
        ([(3, "  ")], "turn 3 is empty"),
        ([(99, "Ask."), (2, "Ask.")], "there is no turn 99; .*; turn 2 is the persuadee's"),
    ],
)
def test_a_proposal_that_cannot_be_is_asked_for_again_with_the_reason(tmp_path, changes, reason):
    bad = [{"turn": turn, "reason": "so", "utterance": words} for turn, words in changes]
    answer = first_then(lambda body: {"changes": bad})
    with hindsight(answer, tmp_path) as (engine, server):
        (proposals,) = engine.propose([dialogue()], 2)
    assert [p.turn for p in proposals] == [0, 2]
    again = server.calls[-1].body["messages"][-1]["content"]
    assert re.search(reason, again) and "Answer again" in again


def test_proposals_that_can_be_are_kept_beside_others_without_another_call(tmp_path):
    given = [(99, "Ask."), (3, "What matters to you?"), (3, "Wait."), (2, "No."), (5, "Please.")]
    answer = [{"turn": turn, "reason": "so", "utterance": words} for turn, words in given]
    with hindsight(lambda body: json.dumps({"changes": answer}), tmp_path) as (engine, server):
        (proposals,) = engine.propose([dialogue()], 5)
    assert [(p.turn, p.utterance) for p in proposals] == [
        (2, "What matters to you?"),
        (4, "Please."),
    ]
    assert len(server.calls) == 1


def test_a_proposal_that_stays_wrong_is_none_and_the_others_go_on(tmp_path):
    wrong = {"changes": [{"turn": 99, "reason": "so", "utterance": "Ask."}]}

    def answer(body):
        is_wrong = "d1-0" in body["messages"][0]["content"]
        return json.dumps(wrong) if is_wrong else HindsightLLM()(body)

    with hindsight(answer, tmp_path) as (engine, _):
        proposals = engine.propose([dialogue(f"d{i}") for i in range(3)], 1)
    assert [own is None for own in proposals] == [False, True, False]
    (dropped,) = engine.dropped
    assert (dropped.id, dropped.step) == ("d1", "hindsight/propose")
    assert "there is no turn 99" in dropped.reason
    (failed,) = map(json.loads, (tmp_path / "failed.jsonl").read_text().splitlines())
    assert failed["reason"] == dropped.reason


def test_a_refusal_gives_none(tmp_path):
    with hindsight(HindsightLLM(), tmp_path, server={"faults": {"refusal": 1.0}}) as (engine, _):
        branch = Branch(dialogue(), Proposal(2, "What matters to you?", "so"))
        assert engine.propose([dialogue()], 1) == [None]
        assert engine.play([branch, branch]) == [None, None]
        assert engine.rate([dialogue()]) == [None]
    steps = [dropped.step for dropped in engine.dropped]
    assert steps == ["hindsight/propose", "hindsight/people", "judge/rating"]


# The forward model


def branches_of(parent, *turns):
    return [Branch(parent, Proposal(turn, f"{BETTER} {turn}", "so")) for turn in turns]


def test_the_people_are_read_once_whichever_number_of_branches(tmp_path):
    parents = [dialogue("d0"), dialogue("d1")]
    branches = [b for parent in parents for b in branches_of(parent, 0, 2, 4)]
    with hindsight(HindsightLLM(), tmp_path) as (engine, server):
        rests = engine.play([*branches[3:], *branches[:3]])
    assert len(asked(server, "traits", "profile", "manner")) == 2
    personas = [rest.persona[PROFILE] for rest in rests]
    assert len(set(personas)) == 2 and personas[:3] == [personas[0]] * 3


def test_nobody_knows_how_the_original_went_on_and_the_agent_not_who_the_human_is(tmp_path):
    with hindsight(HindsightLLM(goes_on=True), tmp_path) as (engine, server):
        (rest,) = engine.play(branches_of(dialogue(), 2))
    (reading,) = asked(server, "traits", "profile", "manner")
    assert "d0-5" in str(reading)
    lines = asked(server, "text", "ends")
    human = [body for body in lines if system_of(body).startswith("You play a person")]
    agent = [body for body in lines if body not in human]
    assert len(human) == 4 and len(agent) == 3  # two of five turns are the prefix's
    for body in (*human, *agent):
        assert "d0-1" in str(body) and BETTER in str(body)
        assert not re.search("d0-[2345]", str(body))
    assert all(rest.persona[PROFILE] in system_of(body) for body in human)
    for body in agent:
        assert "You talk a lot." in system_of(body)
        words = str(body)
        assert rest.persona[PROFILE] not in words and rest.persona["reluctance"] not in words


def test_a_dialogue_longer_than_the_tasks_limit_may_stay_as_long(tmp_path):
    long = dialogue(agent_turns=8)
    with hindsight(HindsightLLM(goes_on=True), tmp_path) as (engine, _):
        early, last = engine.play(branches_of(long, 0, 14))
    assert sum(turn.speaker == "agent" for turn in early.turns) == 7
    assert [turn.speaker for turn in last.turns] == ["human"]


def test_a_human_who_leaves_without_a_word_ends_the_dialogue(tmp_path):
    answer = first_then(lambda b: {"text": "", "ends": True} if "ends" in fields_of(b) else None)
    with hindsight(answer, tmp_path) as (engine, _):
        (rest,) = engine.play(branches_of(dialogue(), 2))
    assert rest.turns == () and rest.terminal


@pytest.mark.parametrize(
    ("way", "bad"),
    [
        ("rollout", {"text": "Yes.\nPersuader: Great, thank you!", "ends": True}),
        ("rollout", {"text": "Persuadee: ", "ends": True}),
        ("rollout", {"text": "Assistant: Will you give?", "ends": False}),
        ("script", {"turns": [{"speaker": "human", "text": "Yes.\nPersuader: Thanks!"}]}),
        ("script", {"turns": [{"speaker": "agent", "text": "Thanks!"}]}),
        ("script", {"turns": []}),
    ],
)
def test_a_forward_model_that_speaks_for_the_other_is_asked_again(tmp_path, way, bad):
    def answer_badly(body):
        return bad if fields_of(body) == set(bad) else None

    with hindsight(first_then(answer_badly), tmp_path / "once", way=way) as (engine, server):
        (rest,) = engine.play(branches_of(dialogue(), 4))
        again = [c.body for c in server.calls if len(c.body["messages"]) > 1]
    assert again and rest.turns[0].speaker == "human"
    assert all("persuader" not in turn.text.lower() for turn in rest.turns)

    def always(body):
        found = answer_badly(body)
        return HindsightLLM()(body) if found is None else json.dumps(found)

    with hindsight(always, tmp_path / "always", way=way) as (engine, _):
        assert engine.play(branches_of(dialogue(), 4)) == [None]
    step = "hindsight/human" if way == "rollout" else "hindsight/rest"
    assert [(d.id, d.step) for d in engine.dropped] == [("d0", step)]


def test_ones_own_name_in_front_is_taken_off(tmp_path):
    def answer(body):
        if "ends" in fields_of(body):
            return json.dumps({"text": "Persuadee: Fine, I give a dollar.", "ends": True})
        return HindsightLLM()(body)

    with hindsight(answer, tmp_path) as (engine, _):
        (rest,) = engine.play(branches_of(dialogue(), 2))
    assert [turn.text for turn in rest.turns] == ["Fine, I give a dollar."]


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        ([("reluctance", "money")], "axis 'patience' must be long or short"),
        ([("reluctance", "fear"), ("patience", "long")], "money or trust or relevance, got 'fear'"),
        ([("reluctance", "money"), ("patience", "long"), ("mood", "low")], "no axis 'mood'"),
        ([("patience", "long"), ("patience", "short")], "named twice"),
    ],
)
def test_a_persona_that_the_task_does_not_know_is_asked_for_again(tmp_path, traits, reason):
    reading = {"profile": "You are shy.", "manner": "You push."}
    reading["traits"] = [{"axis": axis, "value": value} for axis, value in traits]
    answer = first_then(lambda body: reading if fields_of(body) == set(reading) else None)
    with hindsight(answer, tmp_path) as (engine, server):
        (rest,) = engine.play(branches_of(dialogue(), 2))
    *_, again = asked(server, *reading)
    assert reason in again["messages"][-1]["content"]
    assert rest.persona["patience"] in ("long", "short")


def test_a_task_without_axes_has_a_persona_in_words(tmp_path):
    task = dataclasses.replace(TASK, persona_axes={})
    with hindsight(HindsightLLM(), tmp_path, task) as (engine, _):
        (rest,) = engine.play(branches_of(dialogue(), 2))
    assert set(rest.persona) == {PROFILE} and rest.persona[PROFILE].startswith("You are")


def test_in_the_next_round_the_human_stays_who_it_was(tmp_path):
    persona = {"reluctance": "trust", "patience": "short", PROFILE: "You count every cent."}
    again = dialogue(persona=persona, source={"kind": "regenerated", "parent": "d", "round": 1})
    original = dialogue("d1", persona={"age": "31"}, source={"kind": "human"})
    with hindsight(HindsightLLM(), tmp_path) as (engine, server):
        kept, read = engine.play([*branches_of(again, 2), *branches_of(original, 2)])
    assert kept.persona == persona
    assert "age" not in read.persona and read.persona[PROFILE] != persona[PROFILE]
    humans = [system_of(body) for body in asked(server, "text", "ends")]
    assert any("reluctance = trust; patience = short" in system for system in humans)


def test_dialogues_of_the_same_words_are_played_on_apart(tmp_path):
    twins = [dataclasses.replace(dialogue(), id=name) for name in ("a", "b")]
    with hindsight(HindsightLLM(), tmp_path) as (engine, server):
        engine.play([b for parent in twins for b in branches_of(parent, 2)])
    bodies = [json.dumps(body) for body in asked(server, "text", "ends")]
    assert len(bodies) >= 2 and len(set(bodies)) <= len(bodies) / 2


@pytest.mark.parametrize("interest", ["food", "nature"])
def test_a_world_plays_on_with_the_persona_that_was_read(tmp_path, interest):
    world, in_words = load_world("travel"), WorldLLM("travel")
    persona = {axis: values[0] for axis, values in world.task.persona_axes.items()}
    persona["interest"] = interest

    def answer(body):
        if "traits" not in fields_of(body):
            return in_words(body)
        traits = [{"axis": axis, "value": value} for axis, value in persona.items()]
        return json.dumps({"traits": traits, "profile": "You travel.", "manner": "You ask."})

    turns = (Turn("human", "Hello!"), Turn("agent", "Go to the museum."), Turn("human", "No."))
    parent = Dialogue("w", "travel", turns, 0.0)
    better = Proposal(1, "What do you enjoy most?", "It was a guess.")
    with hindsight(answer, tmp_path, world.task) as (engine, _):
        (rest,) = engine.play([Branch(parent, better)])
    assert {axis: rest.persona[axis] for axis in persona} == persona
    likes_eating = re.search("food|eating|dishes", rest.turns[0].text)
    assert bool(likes_eating) == (interest == "food"), rest.turns[0]


# The reward model


def test_a_rating_is_the_mean_of_the_votes_that_came(tmp_path):
    votes = itertools.cycle([0.0, 0.5, 2.0])

    def answer(body):
        return json.dumps({"reason": "so", "rating": next(votes)})

    with hindsight(answer, tmp_path / "all") as (engine, server):
        assert engine.rate([dialogue()]) == [pytest.approx(2.5 / 3)]
        assert len(server.calls) == 3
        assert "0.5" not in server.calls[0].body["messages"][0]["content"]  # from its words alone
    faults = {"schedule": ["refusal"] * 2}
    llm = {"max_asks": 0, "max_in_flight": 1}
    with hindsight(answer, tmp_path / "one", server=faults, llm=llm) as (engine, _):
        assert engine.rate([dialogue()])[0] in (0.0, 0.5, 2.0)
        assert not engine.dropped


def test_a_rating_off_the_scale_is_asked_for_again(tmp_path):
    answer = first_then(lambda body: {"reason": "so", "rating": 5})
    with hindsight(answer, tmp_path, judge_votes=1) as (engine, server):
        assert engine.rate([dialogue()]) == [pytest.approx(0.4)]
    assert "from 0 to 2" in server.calls[-1].body["messages"][-1]["content"]


# Through the client


def test_message_batches_hold_what_all_dialogues_ask_at_a_time(tmp_path):
    dialogues = [dialogue(f"d{i}") for i in range(6)]
    settings = {"way": "script", "judge_votes": 2, "conversations": 2}
    with hindsight(HindsightLLM(), tmp_path / "b", llm={"batch": True}, **settings) as found:
        engine, server = found
        in_batches = whole_round(engine, dialogues)
        assert [batch.size for batch in server.batches] == [6, 6, 12, 24] and not server.calls
    with hindsight(HindsightLLM(), tmp_path / "d", **settings) as (engine, _):
        assert whole_round(engine, dialogues) == in_batches


def test_a_second_run_asks_nothing_and_comes_to_the_same(tmp_path, monkeypatch):
    dialogues = [dialogue(f"d{i}") for i in range(5)]
    faults = {"faults": {"wrong_schema": 0.05, "refusal": 0.05, "529": 0.05}, "seed": 1}
    patient = {"max_retries": 4, "max_asks": 4}
    with hindsight(HindsightLLM(), tmp_path, server=faults, llm=patient) as (engine, server):
        first = whole_round(engine, dialogues)
        assert server.fault_count("wrong_schema", "refusal", "529")
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with hindsight(HindsightLLM(), tmp_path, llm=patient) as (engine, server):
        assert whole_round(engine, dialogues) == first
        assert not server.calls
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY in text for text in files)


def test_another_seed_is_another_replay_and_the_same_rating(tmp_path):
    branches = branches_of(dialogue(), 2)
    calls = []
    for seed in (0, 1):
        with hindsight(HindsightLLM(), tmp_path, seed=seed) as (engine, server):
            engine.play(branches)
            engine.rate([dialogue()])
            calls.append((len(server.calls), len(asked(server, "reason", "rating"))))
    (first, rated_first), (second, rated_second) = calls
    assert rated_first == 3 and rated_second == 0 and second == first - 3


@pytest.mark.parametrize("part", ["propose", "play", "rate"])
def test_errors_that_going_on_would_not_mend_stop_the_run(tmp_path, part):
    def use(engine):
        dialogues = [dialogue(f"d{i}") for i in range(3)]
        if part == "propose":
            engine.propose(dialogues, 1)
        elif part == "play":
            engine.play([b for each in dialogues for b in branches_of(each, 0, 2)])
        else:
            engine.rate(dialogues)

    refused = {"faults": {"401": 1.0}, "echo_key": True}
    with hindsight(HindsightLLM(), tmp_path / "key", server=refused) as (engine, _):
        with pytest.raises(LLMError, match="ANTHROPIC_API_KEY") as error:
            use(engine)
        assert KEY not in str(error.value)
    costs = {"price_input": 3.0, "price_output": 15.0, "max_cost": 0.02, "max_tokens": 3000}
    cheap = hindsight(HindsightLLM(), tmp_path / "cost", llm=costs)
    with cheap as (engine, _), pytest.raises(CostLimitError, match="max_cost"):
        use(engine)


# Settings and forecast


@pytest.mark.parametrize(
    ("setting", "value"),
    [("seed", -1), ("judge_votes", 0), ("judge_votes", 1.5), ("conversations", 0), ("way", "x")],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(SettingError, match=rf"{setting} is {value!r}, but must (be|lie in) "):
        LLMHindsightConfig(**{setting: value})
    with pytest.raises(ValueError, match="max_changes"):
        LLMHindsight(TASK, None).propose([dialogue()], 0)


@pytest.mark.parametrize("way", ["rollout", "script"])
def test_the_forecast_at_most_is_what_is_asked_when_nobody_ends(tmp_path, way):
    dialogues = [dialogue(f"d{i}", agent_turns=2 + i) for i in range(4)]
    llm = {"price_input": 1.0, "price_output": 5.0}
    never_ends = HindsightLLM(goes_on=True)
    with hindsight(never_ends, tmp_path, llm=llm, way=way, judge_votes=2) as (engine, _):
        engine.rate(dialogues)  # the calibration
        whole_round(engine, dialogues)
        made = {row["step"]: row["calls"] for row in engine.client.meter.summary()}
        config = engine.client.config
    planned = forecast_hindsight(
        TASK, dialogues, config, max_changes=2, config=LLMHindsightConfig(way=way, judge_votes=2)
    )
    assert {step.step: step.calls_at_most for step in planned.steps} == made
    assert planned.calls <= sum(made.values()) and 0 < planned.cost <= planned.cost_at_most
    text = planned.to_markdown()
    assert "You look back on finished conversations" in text and "d0-0" in text


def test_the_forecast_counts_every_dialogue_and_round():
    dialogues = [dialogue(f"d{i}") for i in range(40)]
    config = LLMConfig(model="m")
    planned = forecast_hindsight(TASK, dialogues, config, max_changes=2, rounds=2)
    calls = {step.step: step.calls for step in planned.steps}
    looked_back = 40 + 80
    assert calls["hindsight/propose"] == calls["hindsight/people"] == looked_back
    assert calls["judge/rating"] == 3 * (40 + 2 * looked_back)
    # Of three agent turns the first and the last are changed: three answers and one.
    assert calls["hindsight/human"] == 4 * looked_back and "not known" in planned.to_markdown()
    with pytest.raises(ValueError, match="no dialogue"):
        forecast_hindsight(TASK, [], config, max_changes=1)
