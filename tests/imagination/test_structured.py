"""Schemas: what is sent to which server, what becomes of servers that ignore or refuse them."""

import asyncio
import json
import logging

import pydantic
import pytest
from llm_questions import answer, ask_all, chat_config, config, lines, request, requests
from messages_server import MessagesServer
from prompted_llm import PERSONA, TASK

from imagination.engine.critique import Verdicts
from imagination.engine.personas import Profiles, profile_request
from imagination.engine.task_from_prompt import derive_request
from imagination.hindsight.forward_model import PeopleAnswer
from imagination.llm import Answer, Client, Failure, LLMConfig, LLMError
from imagination.llm.play import script_schema
from imagination.llm.requests import Request
from imagination.llm.schemas import EndableLine, rating_schema, specialize
from imagination.llm.structured import form_in_words, full_schema, holds_to
from imagination.llm.transports import Transport, open_transport

APIS = [config, chat_config]
OFFICIAL_MESSAGES = {"api": "messages", "base_url": ""}


@pytest.fixture(autouse=True)
def keys_in_environment(monkeypatch):
    for company in ("ANTHROPIC", "OPENAI"):
        monkeypatch.setenv(f"{company}_API_KEY", "sk-none")
        monkeypatch.delenv(f"{company}_BASE_URL", raising=False)


def system_of(body):
    return json.dumps([body.get("system"), [m for m in body["messages"] if m["role"] == "system"]])


def told_of_schemas(caplog):
    said = [record.getMessage() for record in caplog.records]
    return [each for each in said if "schema" in each]


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
    (said,) = told_of_schemas(caplog)
    assert said.startswith(server.url) and "from now on the schema goes into the prompt" in said
    assert ("over api = chat_completions it may hold" in said) is (settings is config)


def obeying(body):
    """Answers with JSON whether it is asked for or not."""
    words = body["messages"][-1]["content"]
    return json.dumps({"text": words, "length": len(words)})


@pytest.mark.parametrize("settings", APIS)
def test_a_server_that_refuses_schemas_gets_them_in_words(tmp_path, settings, caplog):
    with MessagesServer(obeying, schedule=["400", "400"]) as server:
        found, _ = ask_all(settings(server), tmp_path, requests(5))
    assert all(isinstance(each, Answer) for each in found) and len(server.calls) == 2 + 5
    last = server.calls[-1].body
    assert not {"output_config", "response_format"} & last.keys() and "schema" in system_of(last)
    (said,) = told_of_schemas(caplog)
    assert "does not take a schema (status 400: " in said
    assert said.endswith("from now on the schema goes into the prompt, in words")


OFFICIAL_REFUSALS = [
    (config, "output_config.format: this model does not support structured outputs."),
    (chat_config, "Invalid parameter: 'response_format' of type 'json_schema' is not supported."),
]


@pytest.mark.parametrize(("settings", "said"), OFFICIAL_REFUSALS)
def test_a_model_of_an_official_host_that_refuses_schemas_gets_them_in_words(
    tmp_path, settings, said, caplog, monkeypatch
):
    monkeypatch.setattr(Transport, "is_official", True)
    remarks = [request(f"remark {number}", schema=Remark) for number in range(3)]
    with MessagesServer(obeying, refuses_schemas=said) as server:
        found, _ = ask_all(settings(server), tmp_path, [*requests(5), *remarks])
        assert all(isinstance(each, Answer) for each in found) and server.answered.total() == 8
    (told,) = told_of_schemas(caplog)
    assert "does not take a schema (status 400: " in told and said in told


@pytest.mark.parametrize("settings", APIS)
def test_an_official_host_that_does_not_name_the_schema_is_not_asked_without(
    tmp_path, settings, monkeypatch
):
    monkeypatch.setattr(Transport, "is_official", True)
    with (
        MessagesServer(obeying, schedule=["400"]) as server,
        pytest.raises(LLMError, match="max_tokens and the length of the prompt"),
    ):
        ask_all(settings(server), tmp_path, requests(1))
    assert len(server.calls) == 1


@pytest.mark.parametrize("max_asks", [0, 2])
def test_a_batch_whose_schemas_are_refused_is_sent_again_in_words(tmp_path, max_asks, caplog):
    remarks = [request(f"remark {number}", schema=Remark) for number in range(3)]
    said = OFFICIAL_REFUSALS[0][1]
    with MessagesServer(obeying, refuses_schemas=said) as server:
        settings = config(server, batch=True, max_asks=max_asks)
        found, _ = ask_all(settings, tmp_path, [*requests(5), *remarks])
        assert all(isinstance(each, Answer) for each in found)
        assert [batch.size for batch in server.batches] == [8, 8] and not server.calls
    (told,) = told_of_schemas(caplog)
    assert f"does not take a schema (errored in its batch {said})" in told


def test_a_batch_that_is_not_taken_for_its_schemas_is_sent_again_in_words(tmp_path):
    said = OFFICIAL_REFUSALS[0][1]
    with MessagesServer(obeying, create_schedule=["400"], refuses_schemas=said) as server:
        found, _ = ask_all(config(server, batch=True), tmp_path, requests(5))
        assert all(isinstance(each, Answer) for each in found)
        assert [batch.size for batch in server.batches] == [5]


def test_results_of_a_batch_sent_before_say_nothing_of_schemas(tmp_path):
    """They may be of questions with the schema in words."""

    async def run(settings, folder):
        client = Client(settings, folder)
        for asked in (requests(5), requests(7)):
            found = await client.ask_all(asked)
        await client.close()
        return found

    with MessagesServer(obeying, refuses_schemas=OFFICIAL_REFUSALS[0][1]) as server:
        settings = config(server, batch=True, max_asks=0)
        ask_all(settings, tmp_path / "before", requests(5))
        records = lines(tmp_path / "before" / "batches.jsonl")
        known = [each for each in records if "done" not in each][-2:]
        assert known[1]["batch"] == server.batches[1].id
        (tmp_path / "resumed").mkdir()
        (tmp_path / "resumed" / "batches.jsonl").write_text("\n".join(map(json.dumps, known)))
        found = asyncio.run(run(settings, tmp_path / "resumed"))
    assert all(isinstance(each, Answer) for each in found)
    assert [batch.size for batch in server.batches[2:]] == [2, 2]


class Remark(pydantic.BaseModel):
    """A schema beside that of `requests`."""

    text: str = pydantic.Field(max_length=200)
    length: int


def sent_schema(body):
    """The schema of a body; None = none."""
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"]
    return body["output_config"]["format"]["schema"] if "output_config" in body else None


@pytest.mark.parametrize("settings", APIS)
@pytest.mark.parametrize("fault", ["400", "422", "500"])
def test_a_schema_that_is_refused_later_is_put_more_simply(tmp_path, settings, fault, caplog):
    remarks = [request(f"remark {number}", schema=Remark) for number in range(3)]
    once = {"max_retries": 0, "max_in_flight": 1}
    with MessagesServer(obeying, schedule=["", fault]) as server:
        found, _ = ask_all(settings(server, **once), tmp_path, [*requests(1), *remarks])
        assert all(isinstance(each, Answer) for each in found) and len(server.calls) == 5
        texts = [sent_schema(call.body)["properties"]["text"] for call in server.calls]
    assert ["maxLength" in text for text in texts] == [True, True, False, False, False]
    assert not told_of_schemas(caplog)


@pytest.mark.parametrize("settings", APIS)
def test_an_outage_is_not_held_against_a_schema(tmp_path, settings, caplog):
    """Proxies have status 500, too, where the server behind them is down."""
    remarks = [request(f"remark {number}", schema=Remark) for number in range(2)]
    # With its schema in full and two retries, once more simply, once in words.
    schedule = ["", *["500"] * 5]
    with MessagesServer(obeying, schedule=schedule) as server:
        asked = settings(server, max_retries=2, max_in_flight=1)
        (_, lost, found), _ = ask_all(asked, tmp_path, [*requests(1), *remarks])
    assert isinstance(lost, Failure) and isinstance(found, Answer)
    assert [call.fault for call in server.calls] == [*schedule, ""]
    schemas = [sent_schema(call.body) for call in server.calls]
    assert schemas[6] == schemas[1] == schemas[3] != schemas[4] and schemas[5] is None
    assert not told_of_schemas(caplog)


def test_a_class_that_is_taken_in_words_alone_is_told_by_name(tmp_path, caplog):
    asked = [*requests(1), *(request(f"remark {n}", schema=Remark) for n in range(3))]
    schedule = ["", "400", "400"]
    with MessagesServer(obeying, schedule=schedule) as server:
        settings = chat_config(server, max_in_flight=1)
        found, _ = ask_all(settings, tmp_path, [*asked, *requests(2)[1:]])
        bodies = [call.body for call in server.calls]
    assert all(isinstance(each, Answer) for each in found)
    assert [sent_schema(body) is None for body in bodies] == [False] * 3 + [True] * 3 + [False]
    assert ["JSON of this schema" in system_of(body) for body in bodies][3:] == [True] * 3 + [False]
    (said,) = told_of_schemas(caplog)
    assert "the schema Remark (status 400" in said and "from now on this one goes" in said


def test_calls_at_the_same_time_step_down_once(tmp_path):
    remarks = [request(f"remark {number}", schema=Remark) for number in range(8)]
    schedule = ["", *["400"] * 8]
    with MessagesServer(obeying, schedule=schedule, latency=0.3) as server:
        found, _ = ask_all(chat_config(server), tmp_path, [*requests(1), *remarks])
    assert all(isinstance(each, Answer) for each in found) and len(server.calls) == 17
    assert all(sent_schema(call.body) for call in server.calls)


def test_a_schema_that_was_answered_is_not_put_more_simply(tmp_path):
    with (
        MessagesServer(answer, schedule=["", "400"]) as server,
        pytest.raises(LLMError, match="did not accept the call"),
    ):
        ask_all(chat_config(server, max_in_flight=1), tmp_path, requests(2))
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    "form",
    [
        "```json\n%s\n```",
        "Sure: %s",
        '{"text": "a", "length": 1, "extra": 1}',
        '{"text": "a"}',
        '{"text": "a", "length": "one"}',
        json.dumps({"text": "a" * 201, "length": 1}),
    ],
)
def test_obeying_the_prompt_is_not_holding_to_the_schema(tmp_path, form, caplog):
    """Checks a server that ignores the schema before a model that was shown the form."""

    def decent(body):
        return answer(body) if "JSON of this schema" in system_of(body) else filled(form, body)

    with MessagesServer(decent) as server:
        found, _ = ask_all(chat_config(server), tmp_path, requests(5))
    assert all(isinstance(each, Answer) for each in found)
    assert "another form than its schema" in "".join(told_of_schemas(caplog))
    assert all("JSON of this schema" in system_of(call.body) for call in server.calls[1:])


def filled(form, body):
    return form % answer(body) if "%s" in form else form


def test_a_cut_answer_does_not_count_as_checked(tmp_path, caplog):
    def decent(body):
        """Writes a code block where no words ask for JSON alone."""
        is_told = "JSON of this schema" in json.dumps(body)
        return answer(body) if is_told else f"```json\n{answer(body)}\n```"

    async def run(settings, folder):
        client = Client(settings, folder)
        for each in requests(3):
            await client.ask(each)
        await client.close()

    for model, told in ((answer, False), (decent, True)):
        with MessagesServer(model, schedule=["max_tokens"]) as server:
            asyncio.run(run(chat_config(server), tmp_path / model.__name__))
        shown = ["JSON of this schema" in system_of(call.body) for call in server.calls]
        # Cut, asked again with the schema in words, the first whole answer to the bare question.
        assert shown == [False, False, False, told]
    assert len(told_of_schemas(caplog)) == 1


VERDICT = {"number": 1, "reason": "so", "fulfilled": True}


@pytest.mark.parametrize(
    ("schema", "value", "holds"),
    [
        (rating_schema((0.0, 1.0)), {"reason": "so", "rating": 0.55}, True),
        (rating_schema((0.0, 1.0)), {"reason": "so", "rating": 1.0}, True),
        (rating_schema((0.0, 1.0)), {"reason": "so", "rating": 7}, False),
        (rating_schema((0.0, 1.0)), {"reason": 5, "rating": "high", "extra": 1}, False),
        (specialize(Verdicts, count=3), {"verdicts": []}, False),
        (specialize(Verdicts, count=2), {"verdicts": [VERDICT, VERDICT]}, False),
        (specialize(Verdicts, count=1), {"verdicts": [VERDICT]}, True),
        (specialize(Verdicts, count=1), {"verdicts": [{**VERDICT, "more": 1}]}, False),
        (specialize(Verdicts, count=1), {"verdicts": [{**VERDICT, "fulfilled": 1}]}, False),
        (EndableLine, {"text": "Hm.", "ends": None}, False),
        (EndableLine, [{"text": "Hm.", "ends": True}], False),
        (script_schema(1), {"turns": [{"speaker": "human", "text": "Hm."}] * 2}, False),
        (
            script_schema(1),
            {"turns": [{"speaker": who, "text": "Hm."} for who in ("human", "agent")]},
            True,
        ),
    ],
)
def test_what_holds_to_a_schema(schema, value, holds):
    assert holds_to(json.dumps(value), full_schema(schema)) is holds
    assert not holds_to(f"```json\n{json.dumps(value)}\n```", full_schema(schema))


@pytest.mark.parametrize("schema", [EndableLine, rating_schema((1.0, 5.0)), Profiles, PeopleAnswer])
def test_placeholders_hold_to_their_schemas(schema):
    if schema is Profiles:
        schema = specialize(Profiles, count=2)
    if schema is PeopleAnswer:
        schema = specialize(PeopleAnswer, axes=(("patience", ("long", "short")),))
    for settings in ({}, {"api": "messages"}, {"base_url": "https://api.openai.com/v1"}):
        sent = schema_of(schema, **settings)
        assert holds_to(schema.placeholder().model_dump_json(), sent)


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
    return sent_schema(body)


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
    assert schema_of(script, api="messages")["properties"]["turns"]["oneOf"] == turns
    assert "oneOf" not in json.dumps(schema_of(script, **OFFICIAL_MESSAGES))
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
        assert "prefixItems" not in json.dumps(schema_of(schema, **OFFICIAL_MESSAGES))
        assert "prefixItems" not in json.dumps(schema_of(schema, api="messages", batch=True))


def test_texts_beyond_their_limit_are_used():
    assert EndableLine(text="x" * 4000, ends=False).text == "x" * 4000
    with pytest.raises(ValueError, match="at most 4000"):  # it found no end
        EndableLine(text="x" * 4001, ends=False)
    rating = rating_schema((0.0, 1.0))
    assert rating(reason="x" * 420, rating=1).reason == "x" * 420
    assert rating(reason="I liked it. " * 200, rating=1).reason == ("I liked it. " * 133).strip()
    assert rating(reason="好。" * 900, rating=1).reason == "好。" * 800
    assert rating(reason="Hm. " + "x" * 9000, rating=1).reason == "Hm. " + "x" * 1596


@pytest.mark.parametrize("settings", APIS)
def test_one_overlong_situation_throws_no_profile_away(tmp_path, settings):
    asked = profile_request(TASK, [PERSONA] * 8, "eight")
    said = asked.schema.placeholder()
    said.profiles[3].situations[1] = "You came by bus. " * 50
    with MessagesServer(lambda body: said.model_dump_json()) as server:
        ((found,), _) = ask_all(settings(server), tmp_path, [asked])
    assert found.parsed == said and len(server.calls) == 1


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
