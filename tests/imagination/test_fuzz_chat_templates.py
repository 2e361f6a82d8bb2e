"""Damaged chat templates and tokenizer files: told, or every dialogue is laid out whole."""

import json
import random
import re
import resource

import numpy as np
import pytest
from chat_templates import CHATML, REAL, TURNS, raw_tokenizer
from fuzzing import damaged_bytes, held, with_odd_value

from imagination.dialogue import Dialogue, DialogueError
from imagination.tokenization import DialogueTokenizer

# Pieces of templates, and what may stand there instead.
WORDS = re.compile(r"messages|role|content|user|assistant|system|loop\.first|loop\.last|m\b|\+|==")
ODD = (
    *("", "x", "none", "0", "''", "[]", "messages", "m", "loop.index0", "!=", "-", "~", "%"),
    *("{{ 1 // 0 }}", "{% endfor %}", "{% if true %}", "{{ undefined.x }}", "\x00", "\ud800", "🙂"),
    *(
        "{{ raise_exception('no') }}",
        "{% set messages = [] %}",
        "{% break %}",
        "{# ",
        "{{ range }}",
    ),
    *("{{ messages | tojson }}", "{{ messages.pop() }}", "{% generation %}", "{{ 'a' * 99999 }}"),
)
DIALOGUES = [
    Dialogue("d", "t", turns, reward=1.0, system=system)
    for turns in (TURNS, TURNS[1:])
    for system in (None, "You are a pirate.")
]


def damaged_template(rng, template):
    places = list(WORDS.finditer(template))
    place = rng.choice(places)
    start, end = place.span()
    cut = rng.randrange(len(template))
    return rng.choice(
        [
            lambda: template[:start] + rng.choice(ODD) + template[end:],
            lambda: template[:start] + rng.choice(ODD) + template[end:],
            lambda: template[:start] + rng.choice(places)[0] + template[end:],
            lambda: template[:cut] + template[cut + rng.randrange(1, 60) :],
            lambda: template[:cut] + rng.choice(ODD) + template[cut:],
            lambda: template[:cut],
            lambda: rng.choice(ODD) + template,
            lambda: template + template,
        ]
    )()


def use(tokenizer, whole=True):
    """Lays out dialogues; what is let in has to be whole, and the same in conversation.

    Args:
        tokenizer: That was let in.
        whole: False for one whose vocabulary may be damaged, so that it writes words otherwise.
    """
    for dialogue, laid_out in zip(DIALOGUES, tokenizer.trajectories(DIALOGUES), strict=True):
        text = tokenizer._tokenizer.decode(laid_out.tokens)
        said = [turn.text for turn in dialogue.turns] + [dialogue.system or ""]
        assert not whole or all(each in text for each in said), text
        first = int(np.argmax(laid_out.is_action))
        before = dialogue.turns[: dialogue.turns[0].speaker == "human"]
        context = tokenizer.context(before, system=dialogue.system)
        np.testing.assert_array_equal(context, laid_out.tokens[:first])


@pytest.mark.parametrize("part", range(3))
def test_a_damaged_template_is_told_or_lays_out_all_that_is_said(part):
    names = list(REAL)
    for seed in range(60 * part, 60 * part + 60):
        rng = random.Random(seed)
        special, template = REAL[names[seed % len(names)]]
        with held("chat templates", seed, names=("chat template", "surrogates")):
            use(DialogueTokenizer(raw_tokenizer(damaged_template(rng, template), special)))


DOUBLED = "{% set n = namespace(x='word ') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
HUGE = {
    "one": ("{{ 'a' * 10 ** 12 }}", "takes more than 269 MB of memory"),
    "doubled": (DOUBLED + "{% endfor %}{{ n.x }}", "of memory|takes longer"),
    "unseen": (DOUBLED + "{% endfor %}", "of memory|takes longer"),
    "long": ("{{ 'a' * 10 ** 7 }}", r"makes 10,000,\d+ characters of the \d+ that are said"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_would_take_all_memory_is_told(name):
    before, peak = resource.getrlimit(resource.RLIMIT_DATA), _peak_bytes()
    added, message = HUGE[name]
    with pytest.raises(DialogueError, match=message):
        DialogueTokenizer(raw_tokenizer(added + CHATML))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert _peak_bytes() - peak < 2**30


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    DialogueTokenizer(raw_tokenizer(CHATML)).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_damaged_files_of_a_tokenizer_are_told_or_of_use(saved, tmp_path):
    assert "tokenizer.json" in saved
    for seed in range(80):
        rng = random.Random(seed)
        name = rng.choice(sorted(saved))
        for each, content in saved.items():
            (tmp_path / each).write_bytes(content)
        if name.endswith(".json") and rng.random() < 0.7:
            damaged = with_odd_value(rng, json.loads(saved[name])).encode(errors="replace")
        else:
            damaged = damaged_bytes(rng, saved[name])
        (tmp_path / name).write_bytes(damaged)
        with held("tokenizers", f"{seed} ({name})", names=(str(tmp_path), "chat template")):
            use(DialogueTokenizer.load(tmp_path), whole=False)
