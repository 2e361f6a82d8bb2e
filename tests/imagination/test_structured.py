"""Schemas: what is sent to which server, what becomes of servers that ignore or refuse them."""

import json
import logging

import pytest
from llm_questions import answer, ask_all, chat_config, config, requests
from messages_server import MessagesServer

from imagination.engine.critique import Verdicts
from imagination.engine.personas import Profiles
from imagination.engine.task_from_prompt import derive_request
from imagination.hindsight.forward_model import PeopleAnswer
from imagination.llm import Answer, LLMConfig, LLMError
from imagination.llm.play import script_schema
from imagination.llm.requests import Request
from imagination.llm.schemas import EndableLine, rating_schema, specialize
from imagination.llm.structured import form_in_words
from imagination.llm.transports import open_transport

APIS = [config, chat_config]


@pytest.fixture(autouse=True)
def keys_in_environment(monkeypatch):
    for company in ("ANTHROPIC", "OPENAI"):
        monkeypatch.setenv(f"{company}_API_KEY", "sk-none")
        monkeypatch.delenv(f"{company}_BASE_URL", raising=False)


def system_of(body):
    return json.dumps([body.get("system"), [m for m in body["messages"] if m["role"] == "system"]])


def ignoring(body):
    """Answers in prose unless the schema stands in the prompt."""
    return answer(body) if "JSON of this schema" in system_of(body) else "Hello to you, too!"


@pytest.mark.parametrize("settings", APIS)
@pytest.mark.parametrize("cut", [False, True])
def test_a_server_that_ignores_schemas_gets_them_in_words(tmp_path, settings, cut, caplog):
    schedule = ["max_tokens"] if cut else []
    with MessagesServer(ignoring, schedule=schedule) as server:
        found, meter = ask_all(settings(server), tmp_path, requests(10))
        assert [each.parsed.text for each in found] == [each.label for each in requests(10)]
        # The first question went alone: no other was put in vain.
        assert len(server.calls) == 11 and meter.summary()[0]["re_asks"] == 1
        assert "maxLength" in system_of(server.calls[1].body)
        ask_all(settings(server), tmp_path, requests(10))
    assert len(server.calls) == 11
    (said,) = [record.getMessage() for record in caplog.records if "schema" in record.msg]
    assert said.startswith(server.url) and "from now on the schema goes into the prompt" in said


@pytest.mark.parametrize(("settings", "forms"), [(config, 1), (chat_config, 2)])
def test_a_server_that_refuses_schemas_gets_them_in_words(tmp_path, settings, forms, caplog):
    def plain(body):
        words = body["messages"][-1]["content"]
        return json.dumps({"text": words, "length": len(words)})

    with MessagesServer(plain, schedule=["400"] * forms) as server:
        found, _ = ask_all(settings(server), tmp_path, requests(5))
    assert all(isinstance(each, Answer) for each in found) and len(server.calls) == forms + 5
    last = server.calls[-1].body
    assert not {"output_config", "response_format"} & last.keys() and "schema" in system_of(last)
    assert "does not take a schema" in caplog.text


def test_a_call_that_is_refused_for_another_reason_ends_in_its_message(tmp_path):
    with (
        MessagesServer(answer, faults={"400": 1.0}) as server,
        pytest.raises(LLMError, match=r"did not accept the call .*model 'small'"),
    ):
        ask_all(chat_config(server), tmp_path, requests(3))


def test_servers_that_hold_to_schemas_are_told_nothing_but_the_form(tmp_path, caplog):
    with MessagesServer(answer) as server:
        ask_all(chat_config(server), tmp_path, requests(3))
    assert all("schema" not in system_of(call.body) for call in server.calls)
    form = 'Answer with one line of JSON: {"text": string, "length": number}'
    for call in server.calls:
        assert call.body["messages"][0]["content"] == f"You write.\n\n{form}"
    caplog.set_level(logging.WARNING)
    assert not caplog.records


def test_a_line_of_nothing_but_dots_is_no_line():
    with pytest.raises(ValueError, match="text has no words"):
        EndableLine(text="...", ends=False)
    assert EndableLine(text="👍", ends=False) and EndableLine(text="", ends=True)
    turns = [{"speaker": "human", "text": "Hello."}, {"speaker": "agent", "text": " ... "}]
    with pytest.raises(ValueError, match="a turn without words"):
        script_schema(1)(turns=turns)


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        (EndableLine, '{"text": string, "ends": boolean}'),
        (rating_schema((0.0, 2.0)), '{"reason": string, "rating": number}'),
        (
            specialize(Verdicts, count=1),
            '{"verdicts": [{"number": 1, "reason": string, "fulfilled": boolean}]}',
        ),
        (
            script_schema(1),
            '{"turns": [{"speaker": "human" | "agent", "text": string}, ...]}',
        ),
    ],
)
def test_the_form_of_an_answer_is_one_line(schema, form):
    assert form_in_words(schema) == form


def test_the_official_services_show_the_schema_themselves():
    for settings in ({"base_url": ""}, {"base_url": "", "api": "chat_completions"}):
        transport = open_transport(LLMConfig("m", **settings))
        body = transport.body(Request("a", "You write.", (("user", "hi"),), schema=EndableLine))
        assert "JSON" not in system_of(body)


def schema_of(schema, **settings):
    """The schema as it is sent."""
    settings = {"api": "chat_completions", "base_url": "http://host/v1", **settings}
    transport = open_transport(LLMConfig("m", **settings))
    body = transport.body(Request("a", "", (("user", "hi"),), schema=schema))
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"]
    return body["output_config"]["format"]["schema"]


def test_items_are_counted_and_numbered():
    sent = schema_of(specialize(Verdicts, count=3))["properties"]["verdicts"]
    assert sent["minItems"] == sent["maxItems"] == 3 and "items" not in sent
    items = sent["prefixItems"]
    assert [item["properties"]["number"]["const"] for item in items] == [1, 2, 3]
    assert all(
        item["required"] == ["number", "reason", "fulfilled"] for item in sent["prefixItems"]
    )
    axes = (("patience", ("long", "short")),)
    (trait,) = schema_of(specialize(PeopleAnswer, axes=axes))["properties"]["traits"]["prefixItems"]
    assert trait["properties"]["axis"] == {"const": "patience"}
    assert trait["properties"]["value"] == {"enum": ["long", "short"]}
    script = script_schema(4, least=2)
    turns = schema_of(script)["properties"]["turns"]["oneOf"]
    assert [len(each["prefixItems"]) for each in turns] == [4, 5, 6, 7, 8, 9]
    human, agent = ({"$ref": f"#/$defs/{speaker}"} for speaker in ("human", "agent"))
    assert turns[1]["prefixItems"] == [human, agent, human, agent, human]
    plain = schema_of(script, base_url="https://api.openai.com/v1")["properties"]["turns"]
    assert (plain["minItems"], plain["maxItems"]) == (4, 9) and "oneOf" not in plain
    assert "oneOf" not in json.dumps(schema_of(script, api="messages"))
    derived = schema_of(derive_request("t", {"description": "A tutor teaches."}).schema)
    assert derived["properties"]["max_turns"] == {"maximum": 20, "minimum": 3, "type": "integer"}
    assert derived["$defs"]["Axis"]["properties"]["values"]["maxItems"] == 5


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.0, 5.0), (0.0, 2.0), (-3.0, 3.0)])
def test_ratings_are_steps_of_their_scale(scale):
    schema = rating_schema(scale)
    for settings in ({}, {"api": "messages"}):
        steps = schema_of(schema, **settings)["properties"]["rating"]["enum"]
        assert (steps[0], steps[-1], len(steps)) == (*scale, 21) and sorted(steps) == steps
    assert schema(reason="so", rating=sum(scale) / 2 + 0.01).rating  # other servers' fractions


def test_texts_end_somewhere_and_the_official_services_get_what_they_take():
    assert schema_of(EndableLine)["properties"]["text"]["maxLength"] == 1000
    official = {"base_url": "https://api.openai.com/v1"}
    for schema in (EndableLine, specialize(Verdicts, count=2), specialize(Profiles, count=2)):
        sent = json.dumps(schema_of(schema, **official))
        assert "maxLength" not in sent and "prefixItems" not in sent and "title" not in sent
        assert "prefixItems" not in json.dumps(schema_of(schema, api="messages"))
    with pytest.raises(ValueError, match="at most 1000"):
        EndableLine(text="x" * 1001, ends=False)


def test_of_more_than_asked_for_the_first_is_used():
    turn = {"human": "Hm?", "agent": "Yes."}
    turns = [{"speaker": who, "text": turn[who]} for who in ("human", "agent") * 5]
    used = script_schema(2)(turns=turns).turns
    assert [each.speaker for each in used] == ["human", "agent", "human", "agent", "human"]
    verdicts = [
        {"number": number, "reason": reason, "fulfilled": True}
        for number, reason in ((2, "a"), (1, "b"), (2, "c"), (7, "d"))
    ]
    used = specialize(Verdicts, count=2)(verdicts=verdicts).verdicts
    assert [(each.number, each.reason) for each in used] == [(1, "b"), (2, "a")]
    with pytest.raises(ValueError, match=r"\[3\] are not there"):
        specialize(Verdicts, count=3)(verdicts=verdicts)


@pytest.mark.parametrize("nothing", ["", "empty", "(empty)", "None.", "N/A", "not applicable"])
def test_words_for_nothing_are_no_verdict(nothing):
    asked = derive_request("t", {"description": "A tutor teaches."})
    derived = asked.schema.placeholder().model_copy(update={"unusable_because": nothing})
    asked.check(asked.schema.model_validate(derived.model_dump()))
    with pytest.raises(ValueError, match="not enough: Nobody talks"):
        asked.check(derived.model_copy(update={"unusable_because": "Nobody talks."}))
