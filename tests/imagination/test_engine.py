"""The imagination engine, against a client in this process that answers from a function.

At the end, with the real client against a server on loopback (`messages_server.py`).
"""

import asyncio
import collections
import dataclasses
import hashlib
import itertools
import json
import re
import types

import numpy as np
import pytest
import yaml
from imagination_client import TASK, FakeClient, failing_first_time, imagine, words
from messages_server import MessagesServer

from imagination import dataset_card
from imagination.dialogue import Dialogue, Turn
from imagination.engine import (
    EngineConfig,
    EngineError,
    derive_task,
    forecast_imagination,
    imagine_dialogues,
    rewards,
)
from imagination.engine.critique import CLOSING, GRADUAL
from imagination.engine.personas import Profiles, draw_personas
from imagination.engine.run import assign
from imagination.engine.task_from_prompt import PLACEHOLDER as DERIVE_PLACEHOLDER
from imagination.engine.task_from_prompt import DerivedFields
from imagination.engine.write import load_behaviours
from imagination.llm import Client, LLMConfig, LLMError
from imagination.llm.play import Script
from imagination.llm.schemas import EndableLine, Line
from imagination.simulation import teaching, travel
from imagination.task import Task, TaskError

LLM = LLMConfig(model="m", price_input=1.0, price_output=5.0, price_date="2026-01-01")

WRITING = ("engine/script", "engine/human", "engine/agent", "engine/refine")

# Task


@pytest.mark.parametrize("task", [TASK, teaching.TASK, travel.TASK])
def test_task_survives_yaml(task):
    assert Task.from_yaml(task.to_yaml()) == task


def test_task_with_odd_values_survives_yaml():
    odd = dataclasses.replace(
        TASK, persona_axes={"knows: it": ("yes", "no", "1"), "é": ("#a", "- b")}, success="a: b\nc"
    )
    assert Task.from_yaml(odd.to_yaml()) == odd


BAD_TASKS = [
    ("name", "../advice"),
    ("name", ""),
    ("name", "two words"),
    ("description", ""),
    ("description", "   "),
    ("description", "Sell bicycles"),
    ("description", "1 2 3 4 !! ?"),
    ("agent_role", " "),
    ("human_role", ""),
    ("persona_axes", {"use": ("sport",)}),
    ("persona_axes", {"use": ()}),
    ("persona_axes", {"use": ("sport", "Sport ")}),
    ("persona_axes", {"use": ("sport", "")}),
    ("persona_axes", {"use": (True, False)}),
    ("persona_axes", {"": ("a", "b")}),
    ("persona_axes", {"use": "sport"}),
    ("persona_axes", ["use"]),
    ("reward_range", (1.0, 0.0)),
    ("reward_range", (1.0, 1.0)),
    ("reward_range", (0.0,)),
    ("reward_range", (0.0, float("inf"))),
    ("success_reward", 1.5),
    ("success_reward", "high"),
    ("max_turns", 0),
    ("max_turns", 2.5),
    ("criteria", ("",)),
    ("criteria", "A bicycle is named."),
    ("criteria", ("The same.", "the same.")),
    ("criteria", ("The mood is good, on a scale from 1 to 10.",)),
    ("success", "Rated between 4 and 5."),
    ("success", "On a scale from 0 to 0.5, the best."),
    ("success", None),
]


@pytest.mark.parametrize(("field", "value"), BAD_TASKS)
def test_bad_task_names_the_field(field, value):
    with pytest.raises(TaskError, match=field):
        dataclasses.replace(TASK, **{field: value})


@pytest.mark.parametrize(("field", "value"), BAD_TASKS)
def test_bad_yaml_names_file_and_field(field, value):
    record = yaml.safe_load(TASK.to_yaml())
    record[field] = json.loads(json.dumps(value))
    with pytest.raises(TaskError, match=rf"my/task\.yaml.*{field}"):
        Task.from_yaml(yaml.safe_dump(record), "my/task.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b", "field: value"),
        ("", "field: value"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        (TASK.to_yaml() + "prize: 3\n", "'prize'"),
        (TASK.to_yaml().replace("max_turns: 4\n", ""), "'max_turns' is missing"),
    ],
)
def test_broken_yaml_says_what_to_do(text, message):
    with pytest.raises(TaskError, match=message):
        Task.from_yaml(text)


def test_a_criterion_on_the_tasks_own_scale_is_fine():
    dataclasses.replace(TASK, success="On a scale from 0 to 1, it is 0.8 or more.")
    dataclasses.replace(TASK, success="Rated between 0.8 and 1.")


# Derive


def derive(client, **given):
    return asyncio.run(derive_task(client, "advice", {"description": TASK.description, **given}))


def test_a_paragraph_is_enough_for_a_task():
    client = FakeClient()
    task = derive(client)
    assert client.steps() == {"engine/task": 1}
    assert TASK.description in words(client.requests[0])
    assert len(task.persona_axes) == 3 and task.criteria and task.success
    assert Task.from_yaml(task.to_yaml()) == task


def test_what_is_given_is_kept_and_not_asked_for():
    given = {"agent_role": "seller", "persona_axes": {"use": ["sport", "work"]}, "max_turns": 5}
    client = FakeClient()
    task = derive(client, **given, criteria=(), success="", reward_range=(1, 5), success_reward=4)
    assert (task.agent_role, task.max_turns) == ("seller", 5)
    assert task.persona_axes == {"use": ("sport", "work")}
    assert (task.reward_range, task.success_reward) == ((1, 5), 4)
    asked = set(client.requests[0].schema.model_fields)
    assert asked == {"unusable_because", "human_role", "criteria", "success"}


def test_success_begins_at_the_same_place_of_any_scale():
    assert derive(FakeClient()).success_reward == 0.8
    assert derive(FakeClient(), reward_range=[0, 5]).success_reward == 4


def test_a_whole_task_takes_no_call():
    client = FakeClient()
    fields = {f.name: getattr(TASK, f.name) for f in dataclasses.fields(TASK) if f.name != "name"}
    assert derive(client, **fields) == TASK
    assert not client.requests


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"description": ""}, "description"),
        ({"description": "Sell."}, "description"),
        ({"persona_axes": {"use": ["sport"]}}, "persona_axes"),
        ({"criteria": ["rated on a scale of 1 to 5"]}, "criteria"),
        ({"success_reward": 3}, "success_reward"),
        ({"reward_range": (5, 1)}, "reward_range"),
        ({"reward_range": "0 to 1"}, "reward_range"),
    ],
)
def test_bad_input_is_told_before_anything_is_paid_for(given, field):
    client = FakeClient()
    with pytest.raises(TaskError, match=field):
        derive(client, **given)
    assert not client.requests


def test_an_absurd_description_stops_with_the_models_reason():
    def answer(request):
        return request.schema.placeholder().model_copy(
            update={"unusable_because": "There is nobody to talk with."}
        )

    with pytest.raises(EngineError, match="nobody to talk with"):
        derive(FakeClient(answer), description="Blue green seven over the under.")


def test_no_usable_answer_to_derive_says_the_way_out():
    with pytest.raises(EngineError, match=r"refused.*task\.yaml"):
        derive(FakeClient(lambda request: "refused."))


@pytest.mark.parametrize(
    "axes",
    [
        [],
        [{"name": "a", "values": ["x"]}, {"name": "b", "values": ["x", "y"]}],
        [{"name": "a", "values": ["x", "X"]}, {"name": "b", "values": ["x", "y"]}],
        [{"name": "a", "values": ["x", "y"]}] * 2,
    ],
)
def test_derived_axes_that_cannot_be_used_are_asked_for_again(axes):
    client = FakeClient()
    derive(client)
    schema = client.requests[0].schema
    good = schema.placeholder().model_dump()
    assert isinstance(schema.model_validate(good), DerivedFields)
    with pytest.raises(ValueError, match=r"ax[ie]s"):
        schema.model_validate({**good, "persona_axes": axes})


# Reason


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (3, 2, 3), (2, 4), (5, 4, 3, 2), (3, 3, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_personas_are_balanced_for_every_number(sizes, seed):
    axes = {f"a{i}": tuple(f"{i}-{j}" for j in range(k)) for i, k in enumerate(sizes)}
    combinations = int(np.prod(sizes))
    drawn = draw_personas(axes, 2 * combinations + 26, seed)
    for number in {*range(1, 26), combinations - 1, combinations, 2 * combinations + 1} - {0}:
        personas = drawn[:number]
        assert draw_personas(axes, number, seed) == personas  # more later, same first
        counts = collections.Counter(tuple(p.items()) for p in personas)
        assert len(counts) == min(len(personas), combinations)
        assert max(counts.values()) - min(counts.values()) <= 1
        for axis, values in axes.items():
            own = collections.Counter(p[axis] for p in personas)
            spread = [own[value] for value in values]
            assert max(spread) - min(spread) <= 1, (number, axis, spread)


def test_personas_are_another_order_with_another_seed():
    assert draw_personas(TASK.persona_axes, 18, 0) != draw_personas(TASK.persona_axes, 18, 1)


def test_personas_of_many_axes_need_no_list_of_all():
    axes = {f"a{i}": tuple(map(str, range(5))) for i in range(20)}
    assert len({tuple(p.values()) for p in draw_personas(axes, 100, 0)}) == 100


def test_behaviours_and_outcomes_are_balanced_too():
    number = len(load_behaviours()) * 3
    draws = assign(TASK, EngineConfig(dialogues=number, way="script", outcomes=3))
    assert set(collections.Counter(d.behaviour for d in draws).values()) == {3}
    assert collections.Counter(d.outcome for d in draws) == dict.fromkeys((0, 0.5, 1), number // 3)


def test_profiles_are_written_once_for_each_combination_several_a_call():
    client = FakeClient()
    imagine(client, dialogues=40, personas_per_call=5, critique_rounds=0)
    asked = [r for r in client.requests if r.step == "engine/personas"]
    assert len(asked) == 4  # 18 combinations
    assert sum(len(re.findall("Combination", words(r))) for r in asked) == 18


def test_a_refused_profile_leaves_the_others_of_its_call():
    def answer(request):
        combinations = words(request).split("Combination")[1:]
        if request.step == "engine/personas" and any("evasive" in each for each in combinations):
            return "refused"
        return None

    imagined = imagine(FakeClient(answer), dialogues=18, personas_per_call=6)
    assert len(imagined.dialogues) == 12 and len(imagined.dropped) == 6
    assert {d.step for d in imagined.dropped} == {"engine/personas"}
    assert "12 dialogues, 6 dropped (6 at engine/personas" in imagined.line()


def test_an_incomplete_answer_on_profiles_is_not_of_the_schema():
    client = FakeClient()
    imagine(client, dialogues=3)
    schema = client.requests[0].schema
    assert issubclass(schema, Profiles)
    whole = schema.placeholder().model_dump()
    with pytest.raises(ValueError, match="numbered 1 to 3"):
        schema.model_validate({"profiles": whole["profiles"][:2]})


# Imagine


def secret_profile(request):
    """Profiles whose words can be recognised wherever they turn up."""
    if request.step != "engine/personas":
        return None
    parsed = request.schema.placeholder()
    for profile in parsed.profiles:
        profile.profile, profile.reveals = "SECRET profile.", "SECRET habit."
        profile.situations = ["SECRET situation."]
    return parsed


def test_the_agent_never_sees_the_persona():
    client = FakeClient(secret_profile)
    imagine(client, dialogues=18)
    values = list(itertools.chain(*TASK.persona_axes.values()))
    agents = [r for r in client.requests if r.step == "engine/agent"]
    assert agents
    for request in agents:
        assert "SECRET" not in words(request)
        assert not [value for value in values if value in words(request)]
    humans = [r for r in client.requests if r.step == "engine/human"]
    assert all("SECRET profile" in words(r) and "SECRET situation" in words(r) for r in humans)
    judges = [r for r in client.requests if r.step == "judge/rating"]
    assert not any("SECRET" in words(r) for r in judges)


def test_a_rollout_lets_each_side_see_what_was_said():
    said = itertools.count()

    def answer(request):
        if request.schema is EndableLine:
            return EndableLine(text=f"Customer: human {next(said)}", ends=False)
        if request.schema is Line:
            return Line(text=f"agent {next(said)}")
        return None

    client = FakeClient(answer)
    (dialogue,) = imagine(client, dialogues=1, critique_rounds=0).dialogues
    texts = [turn.text for turn in dialogue.turns]
    assert texts == [f"{'human' if i % 2 == 0 else 'agent'} {i}" for i in range(9)]
    assert dialogue.source["ended_by"] == "limit" and len(dialogue.agent_turns) == TASK.max_turns
    last = [r for r in client.requests if r.step == "engine/agent"][-1]
    assert [role for role, _ in last.messages] == ["user", "assistant"] * 3 + ["user"]
    assert last.messages[1][1] == '{"text": "agent 1"}' and last.messages[-1][1] == "human 6"


@pytest.mark.parametrize(("last_words", "turns"), [("Thanks, bye.", 3), ("", 2)])
def test_the_human_decides_when_a_rollout_ends(last_words, turns):
    def answer(request):
        if request.schema is EndableLine:
            # Wanting to leave before the agent said anything counts for nothing.
            first = len(request.messages) == 1
            return EndableLine(text="Hello." if first else last_words, ends=True)
        return None

    (dialogue,) = imagine(FakeClient(answer), dialogues=1).dialogues
    assert len(dialogue.turns) == turns and dialogue.source["ended_by"] == "human"


def test_the_agents_behave_in_several_ways():
    dialogues = imagine(FakeClient(), dialogues=len(load_behaviours())).dialogues
    assert {d.source["behaviour"] for d in dialogues} == set(load_behaviours())


def test_the_outcome_fixed_beforehand_is_in_the_script_prompt():
    client = FakeClient()
    imagined = imagine(client, dialogues=8, way="script", rewards="outcome")
    scripts = {r.label: words(r) for r in client.requests if r.step == "engine/script"}
    assert collections.Counter(d.reward for d in imagined.dialogues) == {0.0: 4, 1.0: 4}
    for dialogue in imagined.dialogues:
        assert f"The outcome: rating {dialogue.reward:g} " in scripts[dialogue.id]
        assert dialogue.source["outcome"] == dialogue.reward
        assert load_behaviours()[dialogue.source["behaviour"]] in scripts[dialogue.id]
        assert all(value in scripts[dialogue.id] for value in dialogue.persona.values())


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "begin with a turn of the human"),
        ([("agent", "Hi.")], "begin with a turn of the human"),
        ([("human", "Hi.")], "1 to 4 turns"),
        ([("human", "Hi."), ("agent", " ")], "without text"),
        ([("human", "Hi."), ("agent", "Hello.")] * 5, "1 to 4 turns"),
    ],
)
def test_scripts_that_are_no_dialogue_are_not_of_the_schema(turns, problem):
    client = FakeClient()
    imagine(client, dialogues=1, way="script")
    (schema,) = {r.schema for r in client.requests if r.step == "engine/script"}
    with pytest.raises(ValueError, match=problem):
        schema.model_validate({"turns": [{"speaker": s, "text": t} for s, t in turns]})


def test_turns_in_a_row_are_joined_and_labels_taken_off():
    turns = [("human", "Hi."), ("agent", "Seller: Hello."), ("agent", "agent: A bike?")]
    script = Script.model_construct(
        turns=[types.SimpleNamespace(speaker=s, text=t) for s, t in turns]
    )
    assert [t.text for t in script.dialogue_turns(TASK, "engine/script")] == [
        "Hi.",
        "Hello. A bike?",
    ]


def test_situations_of_a_persona_take_turns():
    task = dataclasses.replace(TASK, persona_axes={"use": ("sport", "work", "leisure")})

    def answer(request):
        if request.step != "engine/personas":
            return None
        parsed = request.schema.placeholder()
        for profile in parsed.profiles:
            profile.situations = ["first", "second", "third"]
        return parsed

    dialogues = imagine(FakeClient(answer), task, dialogues=9).dialogues
    seen = collections.Counter((d.persona["use"], d.source["situation"]) for d in dialogues)
    assert len(seen) == 9


# Critique and refine


@pytest.mark.parametrize("settings", [{"way": "script", "rewards": "outcome"}, {}])
def test_critique_keeps_both_versions_the_verdicts_and_what_changed(settings):
    client = FakeClient(failing_first_time(1, 3))
    dialogues = imagine(client, **settings).dialogues
    refine = next(words(r) for r in client.requests if r.step == "engine/refine")
    assert TASK.criteria[0] in refine.split("Failed:")[1]
    for dialogue in dialogues:
        critique = dialogue.source["critique"]
        assert dialogue.source["kind"] == "critiqued"
        assert dialogue.turns[1].text == "A rewritten answer."
        assert len(critique["original"]) > 3 and critique["original"][0]["role"] == "user"
        assert critique["changed"] == [[GRADUAL, TASK.criteria[0]]]
        first, second = critique["verdicts"]
        assert [v["criterion"] for v in first] == [GRADUAL, CLOSING, TASK.criteria[0]]
        assert [v["fulfilled"] for v in first] == [False, True, False]
        assert all(v["fulfilled"] and v["reason"] for v in second)
        assert (critique["rounds"], critique["passed"]) == (1, True)


def test_a_rewritten_rollout_is_rated_again():
    client = FakeClient(failing_first_time(2))
    imagine(client, dialogues=1)
    assert client.steps()["engine/rating"] == 2
    assert "A rewritten answer." in words([r for r in client.requests if "rating" in r.step][-1])


def test_rounds_of_critique_are_bounded():
    def never_good(request):
        return request.schema.placeholder().failing() if request.step == "engine/critique" else None

    client = FakeClient(never_good)
    (dialogue,) = imagine(client, dialogues=1, way="script", critique_rounds=3).dialogues
    assert (client.steps()["engine/critique"], client.steps()["engine/refine"]) == (4, 3)
    assert dialogue.source["critique"]["passed"] is False


def test_without_critique_nothing_is_judged():
    client = FakeClient()
    (dialogue,) = imagine(client, dialogues=1, critique_rounds=0).dialogues
    assert "engine/critique" not in client.steps()
    assert dialogue.source["kind"] == "imagined"
    assert dialogue.source["critique"]["verdicts"] == []


# Rewards


def test_judge_votes_are_resamples_with_mean_and_spread():
    def answer(request):
        if request.step == "judge/rating":
            return request.schema(reason="Because.", rating=(1.0, 0.5, 0.0)[request.resample])
        if request.step == "engine/rating":
            return request.schema(reason="Because.", rating=0.75)
        return None

    client = FakeClient(answer)
    config = {"way": "script", "rewards": "judge", "also_rewards": ("human", "outcome")}
    (dialogue,) = imagine(client, dialogues=1, **config).dialogues
    found = dialogue.source["rewards"]
    assert dialogue.reward == found["judge"] == 0.5
    assert found["judge_votes"] == [1.0, 0.5, 0.0]
    assert found["judge_spread"] == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["human"] == 0.75 and found["outcome"] in (0.0, 1.0)


def test_the_human_rates_knowing_its_persona_and_the_judge_without():
    client = FakeClient(secret_profile)
    imagine(client, dialogues=1, also_rewards=("judge",), judge_votes=2)
    by_step = {r.step: words(r) for r in client.requests}
    assert "SECRET" in by_step["engine/rating"] and "SECRET" not in by_step["judge/rating"]
    assert client.steps()["judge/rating"] == 2


def test_ratings_off_the_scale_are_not_of_the_schema():
    task = dataclasses.replace(TASK, reward_range=(1, 5), success_reward=4)
    client = FakeClient()
    imagine(client, task, dialogues=1)
    (schema,) = {r.schema for r in client.requests if r.step == "engine/rating"}
    assert schema(reason="", rating=5).rating == 5
    for rating in (0.9, 6, float("nan")):
        with pytest.raises(ValueError, match="from 1 to 5"):
            schema(reason="", rating=rating)


def test_mean_pairwise_difference_by_hand():
    assert rewards.mean_pairwise_difference([0, 1, 4]) == pytest.approx((1 + 4 + 3) / 3)
    assert rewards.mean_pairwise_difference([3]) == 0


# The whole engine


def test_failures_are_counted_and_never_become_empty_dialogues():
    def answer(request):
        return "refused" if request.label in ("advice-1", "advice-4") else None

    seen = []
    imagined = imagine(FakeClient(answer), on_dialogue=seen.append)
    assert [d.id for d in imagined.dialogues] == [f"advice-{i}" for i in (0, 2, 3, 5)]
    assert sorted(d.id for d in seen) == [d.id for d in imagined.dialogues]
    assert [(d.id, d.reason) for d in imagined.dropped] == [
        ("advice-1", "refused"),
        ("advice-4", "refused"),
    ]


@pytest.mark.parametrize(
    "step", ["engine/human", "engine/agent", "engine/critique", "engine/rating"]
)
def test_a_failure_at_any_step_drops_that_dialogue_alone(step):
    def answer(request):
        return "max_tokens" if (request.step, request.label) == (step, "advice-2") else None

    imagined = imagine(FakeClient(answer))
    assert len(imagined.dialogues) == 5 and [d.step for d in imagined.dropped] == [step]


def test_nothing_at_all_is_an_error_with_the_reasons():
    with pytest.raises(EngineError, match=r"None of 6.*engine/rating: refused \(6 times\)"):
        imagine(FakeClient(lambda r: "refused" if r.step == "engine/rating" else None))


def test_an_error_of_the_client_stops_the_run():
    def answer(request):
        if request.step == "engine/critique":
            raise LLMError("401: set ANTHROPIC_API_KEY")
        return None

    with pytest.raises(LLMError, match="401"):
        imagine(FakeClient(answer), dialogues=20, conversations=4)


@pytest.mark.parametrize("way", ["script", "rollout"])
def test_the_same_seed_asks_the_same_requests(way):
    clients = [FakeClient(failing_first_time(1)) for _ in range(3)]
    for client, conversations in zip(clients, (256, 2, 256), strict=True):
        seed = int(client is clients[2])
        imagine(client, dialogues=20, way=way, conversations=conversations, seed=seed)
    first, second, other = (sorted(client.keys()) for client in clients)
    assert first == second != other
    written = [r.key("m") for r in clients[0].requests if r.step in WRITING]
    assert len(set(written)) == len(written)  # a dialogue is never another's answer


@pytest.mark.parametrize("way", ["script", "rollout"])
def test_more_dialogues_keep_the_ones_that_are_there(way):
    few, many = FakeClient(), FakeClient()
    imagine(few, dialogues=16, way=way, personas_per_call=4)
    imagine(many, dialogues=40, way=way, personas_per_call=4)
    assert set(few.keys()) <= set(many.keys())


def test_a_slow_conversation_holds_up_no_other():
    class SlowFirst(FakeClient):
        async def _ask(self, request):
            if request.label == "advice-0":
                await finished.wait()
            return await super()._ask(request)

    order = []

    async def run():
        client = SlowFirst()
        config = EngineConfig(dialogues=5)

        def on_dialogue(dialogue):
            order.append(dialogue.id)
            if len(order) == 4:
                finished.set()

        return await asyncio.wait_for(
            imagine_dialogues(client, TASK, config, on_dialogue), timeout=10
        )

    finished = asyncio.Event()
    imagined = asyncio.run(run())
    assert order[-1] == "advice-0" and len(order) == 5
    assert [d.id for d in imagined.dialogues] == [f"advice-{i}" for i in range(5)]


def test_every_dialogue_has_the_same_keys_and_survives_the_disk():
    rewrite = failing_first_time(1)
    client = FakeClient(lambda r: rewrite(r) if r.label in ("advice-1", "advice-3") else None)
    for settings in ({}, {"way": "script", "rewards": "outcome"}):
        records = [d.to_json() for d in imagine(client, **settings).dialogues]
        shapes = {json.dumps(_shape(record["source"])) for record in records}
        assert len(shapes) == 1
        for record in records:
            again = Dialogue.from_json(json.loads(json.dumps(record))).to_json()
            assert again == record and record["messages"][0]["role"] == "user"
            source = record["source"]
            rewritten = record["id"] in ("advice-1", "advice-3")
            assert source["models"].pop("engine/refine") == ("fake-1" if rewritten else None)
            assert set(source["models"].values()) == {"fake-1"}
            assert {"engine/personas", "engine/critique", "engine/behaviours"} <= set(
                source["prompts"]
            )


def _shape(value):
    return {k: _shape(v) for k, v in sorted(value.items())} if isinstance(value, dict) else 0


def test_a_task_without_axes_says_what_to_do():
    with pytest.raises(EngineError, match="persona_axes"):
        imagine(FakeClient(), dataclasses.replace(TASK, persona_axes={}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dialogues", 0),
        ("dialogues", 2.0),
        ("way", "novel"),
        ("rewards", "stars"),
        ("rewards", "outcome"),  # with rollout
        ("also_rewards", ("outcome",)),  # with rollout
        ("also_rewards", ("stars",)),
        ("outcomes", 1),
        ("personas_per_call", 0),
        ("critique_rounds", -1),
        ("judge_votes", 0),
        ("max_turns", -1),
        ("conversations", 0),
        ("seed", -1),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf"{field} is .*, but must"):
        EngineConfig(**{"dialogues": 3, field: value})


# Forecast


@pytest.mark.parametrize("dialogues", [5, 40])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"also_rewards": ("judge",), "judge_votes": 5, "max_turns": 2},
        {"way": "script", "rewards": "outcome"},
        {"way": "script", "critique_rounds": 0, "personas_per_call": 3},
    ],
)
def test_the_forecast_counts_the_calls_that_are_made(dialogues, settings):
    client = FakeClient()
    imagine(client, dialogues=dialogues, **settings)
    planned = forecast_imagination(TASK, EngineConfig(dialogues=dialogues, **settings), LLM)
    assert {s.step: s.calls for s in planned.steps if s.calls} == client.steps()


def test_the_forecast_at_most_is_every_dialogue_rewritten():
    def never_good(request):
        return request.schema.placeholder().failing() if request.step == "engine/critique" else None

    client = FakeClient(never_good)
    imagine(client, dialogues=40, critique_rounds=2)
    planned = forecast_imagination(TASK, EngineConfig(dialogues=40, critique_rounds=2), LLM)
    assert {s.step: s.calls_at_most for s in planned.steps} == client.steps()
    assert planned.cost_at_most > planned.cost > 0


def test_the_forecast_shows_a_prompt_of_every_step_and_the_price():
    config = EngineConfig(dialogues=100)
    given = {"name": "advice", "description": TASK.description}
    planned = forecast_imagination(given, config, LLM)
    text = planned.to_markdown()
    steps = ("task", "personas", "human", "agent", "critique", "refine")
    for step in (f"engine/{name}" for name in steps):
        assert f"## {step} (" in text
    assert TASK.description in text and "2026-01-01" in text
    assert {s.step: s.calls for s in planned.steps}["engine/task"] == 1
    halved = forecast_imagination(given, config, dataclasses.replace(LLM, batch=True))
    assert halved.cost == pytest.approx(planned.cost / 2)
    assert "not known" in forecast_imagination(given, config, LLMConfig(model="m")).to_markdown()


# Quality


def split(text):
    return text.split()


def dialogue(id, *texts, **fields):
    turns = [Turn("human" if i % 2 == 0 else "agent", text) for i, text in enumerate(texts)]
    return Dialogue(id=id, task="t", turns=tuple(turns), **fields)


def test_distinct_by_hand():
    texts = [split("a b a b"), split("a b")]
    assert dataset_card.distinct(texts, 1) == 2 / 6
    assert dataset_card.distinct(texts, 2) == 2 / 4
    assert dataset_card.distinct(texts, 5) == 0


def test_self_bleu_by_hand():
    # Either way: unigrams 3/4; bigrams (1+1)/(3+1), trigrams (0+1)/(2+1), four-grams (0+1)/(1+1).
    expected = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    texts = [split("a b x c"), split("a b c d")]
    assert dataset_card.self_bleu(texts) == pytest.approx(expected)
    assert dataset_card.self_bleu([split("a b"), split("c d")]) == 0
    # The short one is penalized by its length, the long one by its n-grams.
    short, long = np.exp(1 - 8 / 4), (4 / 8 * 4 / 8 * 3 / 7 * 2 / 6) ** 0.25
    texts = [split("a b c d"), split("a b c d e f g h")]
    assert dataset_card.self_bleu(texts) == pytest.approx((short + long) / 2)


def bleu(words, references):
    """BLEU-4 as in the textbook: counts clipped by the most that one reference has."""
    score = 1.0
    for n in range(1, 5):
        counts, most = dataset_card.ngrams(words, n), collections.Counter()
        for reference in references:
            most |= dataset_card.ngrams(reference, n)
        smoothing = int(n > 1)
        score *= (sum((counts & most).values()) + smoothing) / (counts.total() + smoothing)
    closest = min((len(r) for r in references), key=lambda k: (abs(k - len(words)), k))
    return score**0.25 * min(1.0, np.exp(1 - closest / len(words)))


def test_self_bleu_is_the_mean_of_each_against_the_others():
    dice = np.random.default_rng(0)
    texts = [list(map(str, dice.integers(0, 6, size=dice.integers(5, 15)))) for _ in range(12)]
    each = [bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
    assert dataset_card.self_bleu(texts) == pytest.approx(np.mean(each))
    assert dataset_card.self_bleu([["a", "b", "c", "d"]] * 3) == pytest.approx(1)
    assert dataset_card.self_bleu([["a"]]) == 0


def test_the_most_alike_come_first():
    dialogues = [
        dialogue("a", "I would like a red bicycle."),
        dialogue("b", "Something else altogether, thank you."),
        dialogue("c", "I would like a red tricycle."),
    ]
    (score, first, second), *_ = dataset_card.nearest_pairs(dialogues)
    assert {first.id, second.id} == {"a", "c"} and 0.4 < score < 1


def test_agreement_of_reward_sources_by_hand():
    pairs = [(0.0, 0.1), (0.0, 0.3), (1.0, 0.9), (1.0, 0.5)]
    dialogues = [
        dialogue(str(i), "x", source={"rewards": {"outcome": a, "judge": None, "human": b}})
        for i, (a, b) in enumerate(pairs)
    ]
    (found,) = dataset_card.agreements(dialogues)
    assert (found.first, found.second, found.dialogues) == ("outcome", "human", 4)
    assert found.pearson == pytest.approx(np.corrcoef(*zip(*pairs, strict=True))[0, 1])
    assert found.mean_difference == pytest.approx((0.1 + 0.3 + 0.1 + 0.5) / 4)
    same = [dataclasses.replace(d, source=dialogues[0].source) for d in dialogues]
    assert dataset_card.agreements(same)[0].pearson is None


def test_the_card_says_all_of_it():
    client = FakeClient(failing_first_time(1))
    settings = {"way": "script", "also_rewards": ("judge", "outcome"), "dialogues": 18}
    imagined = imagine(client, **settings)
    meter = [{"step": "imagine", "calls": 18, "input_tokens": 1200, "cost": 0.25}]
    dropped = [types.SimpleNamespace(step="imagine", reason="refused")]
    card = dataset_card.dataset_card(imagined.dialogues, TASK, meter=meter, dropped=dropped)
    assert "18 of 18 combinations occur, 1 to 1 times each." in card
    assert f"| {GRADUAL} | 18 | 100.0% | 0.0% |" in card
    assert f"| {CLOSING} | 18 | 0.0% | 0.0% |" in card
    assert "18 of 18 dialogues were rewritten" in card
    assert "distinct-2" in card and "self-BLEU-4" in card and "Most alike" in card
    assert "| outcome, judge | 18 |" in card and "engine/script/1" in card and "fake-1" in card
    sections = [line for line in card.splitlines() if line.startswith("#")]
    assert len(set(sections)) == len(sections) == 11 and sections[0] == "# advice: 18 dialogues"
    assert card.count("| axis | value |") == 1 and "| drifts |" in card
    assert "1 of 19 could not be finished." in card and "| all | 18 | 1,200 | 0.2500 |" in card


def test_the_card_of_dialogues_from_elsewhere_leaves_out_what_is_not_known():
    dialogues = [dialogue("a", "Hello there.", "Hi."), dialogue("b", "Hello.", "Hi there.")]
    card = dataset_card.dataset_card(dialogues, TASK)
    assert "Nobody rated" in card and "## Critique" not in card and "## Tokens" not in card


# With the real client, over HTTP


def served(body):
    """Answers of every schema, in words that hang on the question alone."""
    asked = [message["content"] for message in body["messages"]]
    if again := [i for i, text in enumerate(asked) if "cannot be used" in text]:
        asked = asked[: again[0] - 1]
    system = body["system"][0]["text"]
    mark = hashlib.sha256("".join([system, *asked]).encode()).hexdigest()[:6]
    fields = set(body["output_config"]["format"]["schema"]["properties"])
    if "unusable_because" in fields:
        placeholder = DerivedFields.placeholder().model_dump()
        derived = {**DERIVE_PLACEHOLDER, "max_turns": 3}
        derived["persona_axes"] = [axis.model_dump() for axis in derived["persona_axes"]]
        return json.dumps({**placeholder, **derived})
    if "profiles" in fields:
        each = {"profile": mark, "reveals": mark, "situations": [mark], "difficult": False}
        numbers = range(1, asked[0].count("Combination") + 1)
        return json.dumps({"profiles": [{"number": i, **each} for i in numbers]})
    if "turns" in fields:
        last = "Rewritten." if "You revise" in system else "Thanks."
        said = [("human", f"Hi {mark}."), ("agent", "Hello."), ("human", last)]
        return json.dumps({"turns": [{"speaker": s, "text": t} for s, t in said]})
    if "verdicts" in fields:
        count = len(re.findall(r"^\d+\. ", system, flags=re.MULTILINE))
        good = "Rewritten." in asked[0] or int(mark, 16) % 2 == 0
        each = {"reason": mark, "fulfilled": good}
        return json.dumps({"verdicts": [{"number": i + 1, **each} for i in range(count)]})
    if "rating" in fields:
        return json.dumps({"reason": mark, "rating": int(mark, 16) % 11 / 10})
    ends = {"ends": int(mark, 16) % 4 == 0} if "ends" in fields else {}
    return json.dumps({"text": f"Words {mark}.", **ends})


def over_http(server, folder, config, **llm):
    """From a paragraph to a dataset. Returns task, result and the client's meter."""
    prices = {"price_input": 3.0, "price_output": 15.0, "batch_poll": 0.02, "timeout": 10.0}

    async def run():
        client = Client(LLMConfig(model="small", base_url=server.url, **prices, **llm), folder)
        try:
            task = await derive_task(client, "advice", {"description": TASK.description})
            return task, await imagine_dialogues(client, task, config), client.meter
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.fixture
def key_in_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-none")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@pytest.mark.usefixtures("key_in_environment")
@pytest.mark.parametrize("way", ["script", "rollout"])
def test_faults_and_a_restart_change_nothing_in_the_dataset(tmp_path, way):
    config = EngineConfig(dialogues=30, way=way, also_rewards=("judge",), judge_votes=2)
    with MessagesServer(served) as server:
        task, smooth, _ = over_http(server, tmp_path / "smooth", config)
        answered = dict(server.answered)
    assert len(smooth.dialogues) == 30 and not smooth.dropped
    assert 0 < sum(d.source["kind"] == "critiqued" for d in smooth.dialogues) < 30
    faults = dict.fromkeys(("429", "500", "529", "max_tokens", "wrong_schema", "refusal"), 0.015)
    with MessagesServer(served, faults=faults, schedule=[""] * 40 + ["401"]) as server:
        with pytest.raises(LLMError, match="401"):
            over_http(server, tmp_path / "rough", config, max_asks=6)
        again, rough, meter = over_http(server, tmp_path / "rough", config, max_asks=6)
        assert server.fault_count(*faults)
        # Nothing was paid for twice; resamples of one question have the same body.
        assert {body: server.answered[body] for body in answered} == answered
    assert again == task and rough == smooth
    assert sum(row["cache_hits"] for row in meter.summary()) >= 40
    card = dataset_card.dataset_card(
        rough.dialogues, task, meter=meter.summary(), dropped=rough.dropped
    )
    assert "| all |" in card


@pytest.mark.usefixtures("key_in_environment")
def test_message_batches_hold_what_all_conversations_ask_at_a_time(tmp_path):
    config = EngineConfig(dialogues=20, way="script", critique_rounds=0, conversations=2)
    with MessagesServer(served) as server:
        _, imagined, _ = over_http(server, tmp_path / "batch", config, batch=True)
        assert [batch.size for batch in server.batches] == [1, 3, 20, 20]
        _, direct, _ = over_http(server, tmp_path / "direct", config)
    assert imagined == direct
