"""Layouts by the chat templates of published models: who opens, system messages, actions, dates."""

import datetime
import functools
import json
import re

import numpy as np
import pytest
from chat_templates import CHATML, INVITE, REAL, TURNS, raw_tokenizer, said

from imagination.dialogue import Dialogue, DialogueError, Turn
from imagination.tokenization import DialogueTokenizer

# As Gemma and Mistral: the human begins, the sides take turns, and there is no system role.
STRICT = "gemma 2"
WORDS = ["what do you know about plants?", "Then let us begin!"]
SYSTEM = "You are a pirate."
EACH = pytest.mark.parametrize("name", REAL)
# As Granite 3.3 and others: what is generated is marked with the header, or with its line's end.
HEADS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[0]{{ '<|im_start|>assistant' }}"
    "[1]{{ '\n' }}[2]{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}" + INVITE
)
MARK = "{% generation %}"
# The invitation ends before the line does.
LINE_OPEN = CHATML.replace(INVITE, INVITE.replace("assistant\n", "assistant"))


@functools.cache
def made(name, **options):
    special, template = REAL[name]
    return DialogueTokenizer(raw_tokenizer(template, special), **options)


def laid_out(tokenizer, turns=TURNS, system=None):
    dialogue = Dialogue("d", "t", tuple(turns), reward=1.0, system=system)
    [trajectory] = tokenizer.trajectories([dialogue])
    return trajectory, tokenizer._tokenizer.decode(trajectory.tokens)


def action_starts(trajectory):
    return np.flatnonzero(np.diff(np.concatenate([[0], trajectory.is_action])) == 1)


@EACH
@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("first", [0, 1], ids=["human opens", "agent opens"])
def test_every_conversation_is_laid_out_and_actions_follow_their_contexts(name, first, system):
    tokenizer, turns = made(name), TURNS[first:]
    trajectory, text = laid_out(tokenizer, turns, system)
    ends = [each[: -len(REAL[name][0][0])].strip() for each in said(tokenizer, trajectory)]
    assert ends == WORDS
    assert trajectory.tokens[np.flatnonzero(trajectory.is_action)[-1]] == tokenizer.end
    places = [text.find(each.text) for each in turns]
    assert places == sorted(places) and places[0] > 0
    assert (SYSTEM in text[: places[0]]) == (system is not None)
    own = [index for index, turn in enumerate(turns) if turn.speaker == "agent"]
    for index, start in zip(own, action_starts(trajectory), strict=True):
        context = tokenizer.context(turns[:index], system=system)
        np.testing.assert_array_equal(context, trajectory.tokens[:start])


@EACH
def test_what_the_human_opens_has_the_tokens_of_transformers(name):
    special, template = REAL[name]
    raw = raw_tokenizer(template, special)
    roles = {"human": "user", "agent": "assistant"}
    messages = [{"role": roles[turn.speaker], "content": turn.text} for turn in TURNS]
    messages.append({"role": "user", "content": "."})
    expected = raw.apply_chat_template(messages, tokenize=False)
    _, text = laid_out(made(name))
    today = datetime.date.today()
    for layout in ("%d %b %Y", "%d %B %Y", "%Y-%m-%d"):
        expected = expected.replace(
            today.strftime(layout), datetime.date(2025, 1, 1).strftime(layout)
        )
    assert expected.startswith(text)


@EACH
def test_a_saved_tokenizer_lays_out_alike(name, tmp_path):
    options = {"opening": "Begin.", "date": datetime.date(2024, 2, 29)}
    special, template = REAL[name]
    tokenizer = DialogueTokenizer(raw_tokenizer(template, special), **options)
    tokenizer.save(tmp_path)
    again = DialogueTokenizer.load(tmp_path)
    for turns in (TURNS, TURNS[1:]):
        for system in (None, SYSTEM):
            expected, text = laid_out(tokenizer, turns, system)
            found, _ = laid_out(again, turns, system)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.is_action, expected.is_action)
            assert ("Begin." in text) == (turns is not TURNS)
    assert "2025" not in text


@EACH
def test_what_the_human_says_in_several_turns_is_laid_out(name, tmp_path):
    """Templates that refuse two turns in a row get them as one."""
    tokenizer = made(name)
    turns = (TURNS[0], Turn("human", "Are you there?"), *TURNS[1:])
    trajectory, text = laid_out(tokenizer, turns, SYSTEM)
    places = [text.find(each.text) for each in turns]
    assert places == sorted(places) and places[0] > text.find(SYSTEM) > -1
    np.testing.assert_array_equal(
        tokenizer.context(turns[:2], system=SYSTEM),
        trajectory.tokens[: action_starts(trajectory)[0]],
    )
    if name == STRICT:
        assert f"{turns[0].text}\n{turns[1].text}<end_of_turn>" in text
        [_, note] = tokenizer.notes([Dialogue("d", "t", turns, reward=1.0, system=SYSTEM)])
        assert "several turns in a row, in 1 dialogues" in note
        tokenizer.save(tmp_path)
        again, _ = laid_out(DialogueTokenizer.load(tmp_path), turns, SYSTEM)
        np.testing.assert_array_equal(again.tokens, trajectory.tokens)


def test_two_turns_of_the_agent_are_told_where_sides_take_turns():
    twice = (*TURNS[:2], Turn("agent", "Shall we?"), *TURNS[2:])
    with pytest.raises(
        DialogueError, match=r"dialogue d: turns 1 and 2 are both the agent's \('Shall"
    ):
        laid_out(made(STRICT), twice)
    trajectory, _ = laid_out(made("qwen 2.5"), twice)
    assert len(action_starts(trajectory)) == 3


def test_an_opening_of_ones_own_goes_before_the_agent():
    forged = 'It\'s "{{ 7 * 7 }}" %} \U0001f600 <end_of_turn>'
    _, text = laid_out(made(STRICT, opening=forged), TURNS[1:])
    assert forged.replace("<end", "< end") in text
    assert made(STRICT).context([]).tolist() == made(STRICT).context([Turn("human", "")]).tolist()


@pytest.mark.parametrize("before", ["[0]", "[1]", "[2]"], ids=["header", "line", "words"])
def test_marks_do_not_move_where_actions_begin(before):
    template = re.sub(r"\[\d\]", lambda found: MARK if found[0] == before else "", HEADS)
    marked, _ = laid_out(DialogueTokenizer(raw_tokenizer(template)))
    plain, _ = laid_out(DialogueTokenizer(raw_tokenizer(CHATML)))
    np.testing.assert_array_equal(marked.tokens, plain.tokens)
    np.testing.assert_array_equal(marked.is_action, plain.is_action)


def test_an_agent_writes_what_the_invitation_leaves_to_it():
    tokenizer = DialogueTokenizer(raw_tokenizer(LINE_OPEN))
    trajectory, _ = laid_out(tokenizer, TURNS[1:])
    assert [each[0] for each in said(tokenizer, trajectory)] == ["\n", "\n"]
    special = made("gpt-oss")
    assert special._tokenizer.decode(special.context(TURNS[:1])).endswith("final<|message|>")


def test_spaces_around_words_are_no_actions():
    turns = (TURNS[0], Turn("agent", "\n\n What do you know? \n"), *TURNS[2:])
    tokenizer = made("llama 3")
    trajectory, _ = laid_out(tokenizer, turns)
    assert said(tokenizer, trajectory)[0] == "What do you know?<|eot_id|>"


@pytest.mark.parametrize(
    ("name", "turns", "system", "told"),
    [
        (STRICT, TURNS, SYSTEM, r"refuses, drops or moves system messages: that of 1 dialogues"),
        ("mistral v0.3", TURNS, SYSTEM, r"refuses, drops or moves system messages"),
        (STRICT, TURNS[1:], None, r"agent speaks first in 1 dialogues.*--config\.tokenizer\.open"),
        ("qwen 2.5", TURNS, None, r"a system message of its own .*'system You are Qwen, created"),
        ("deepseek r1", TURNS, None, r"invites an answer with '<think>'"),
    ],
)
def test_what_a_template_changes_is_told(name, turns, system, told):
    notes = made(name).notes([Dialogue("d", "t", turns, reward=1.0, system=system)])
    assert len(notes) == 1 and re.search(told, notes[0])


def test_nothing_is_told_where_nothing_is_changed():
    dialogue = Dialogue("d", "t", TURNS, reward=1.0)
    for name in (STRICT, "llama 3", "deepseek v3", "mistral v0.1", "phi-4"):
        assert made(name).notes([dialogue]) == []
    assert DialogueTokenizer(raw_tokenizer(None)).notes([dialogue]) == []


@pytest.mark.parametrize(
    ("template", "day"),
    [
        ("{{ strftime_now('%d %b %Y') }}\n" + CHATML, "29 Feb 2024"),
        ("{{ date_string }}\n" + CHATML, "29 Feb 2024"),
        (REAL["llama 3.1"][1], "26 Jul 2024"),  # its own day, which is the same every day
    ],
)
def test_a_template_that_asks_for_the_date_gets_the_runs(template, day):
    special = REAL["llama 3.1"][0] if "eot_id" in template else ("<|im_end|>", "<|im_start|>")
    tokenizer = DialogueTokenizer(raw_tokenizer(template, special), date=datetime.date(2024, 2, 29))
    assert day in laid_out(tokenizer)[1]


def test_a_template_that_drops_what_agents_say_is_refused():
    silent = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}" + INVITE
    with pytest.raises(DialogueError, match="leaves out or changes what an agent says"):
        DialogueTokenizer(raw_tokenizer(silent))


def test_spaces_before_punctuation_stay_whatever_the_tokenizer_says(tmp_path):
    """Up to 5.3, and later ones when they are asked to, transformers takes them out."""
    DialogueTokenizer(raw_tokenizer(CHATML)).save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    asks = dict.fromkeys(
        (
            "clean_up_tokenization_spaces",
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        ),
        True,
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | asks))
    tokenizer = DialogueTokenizer.load(tmp_path)
    turns = (TURNS[0], Turn("agent", "Well , do n't you know ?"))
    trajectory, _ = laid_out(tokenizer, turns)
    assert tokenizer.decode(trajectory.tokens[trajectory.is_action]) == turns[1].text


@EACH
def test_replies_are_laid_out_as_the_template_does_or_refused(name):
    special, template = REAL[name]
    tokenizer = DialogueTokenizer(raw_tokenizer(template, special))
    if name in ("llama 2", "mistral v0.1", "falcon 3", "vicuna"):
        with pytest.raises(DialogueError, match="Decode without looking ahead"):
            tokenizer.replies(12)
        return
    layout = tokenizer.replies(12)
    asked, answered = Turn("human", "Hello there"), Turn("agent", "Not much.")
    over = Dialogue("d", "t", (asked, answered), reward=1.0)
    [said_so_far] = tokenizer.trajectories([over])
    [later] = tokenizer.contexts([[asked, answered, Turn("human", "Then let us begin!")]])
    between = later[len(said_so_far.tokens) :].tolist()
    behind = [layout.stop, *layout.closes]
    words = between[len(layout.opens) : -len(behind)]
    assert between == [*layout.opens, *words, *behind]
    assert tokenizer.decode(words) == "Then let us begin!"
