"""Flaws of imagined dialogues that their words alone show, whoever judged them."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imagination.criteria import BUILT_IN
from imagination.dialogue import Dialogue
from imagination.languages import (
    known_language,
    languages_of,
    occurs,
    speaks_another,
    words_of,
)
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name, role_of

REPEATS = "one side says the same twice"
ECHOES = "one side says what the other said, word for word"
SPEAKS_FOR_OTHER = "one side speaks for the other"
RECITES = "words of the prompt or of a criterion are recited"
NAMES_PERSONA = "the human names its hidden traits outright"
OTHER_LANGUAGE = "another language than asked for"
NO_END = "no end: the agent has the last word, or a question stays open"
FLAWS = (REPEATS, ECHOES, SPEAKS_FOR_OTHER, RECITES, NAMES_PERSONA, OTHER_LANGUAGE, NO_END)

# What a dialogue without the flaw fulfils, as a criterion for whoever rewrites it.
WISHES = {
    REPEATS: "Neither side says the same sentence twice.",
    ECHOES: "Nobody answers with the other's own words.",
    SPEAKS_FOR_OTHER: "Each turn has the words of its own speaker alone.",
    RECITES: "Nobody recites instructions or criteria; both speak as people do.",
    NAMES_PERSONA: "The human never names hidden traits; they show in reactions, bit by bit.",
    OTHER_LANGUAGE: "Both sides speak the language that is asked for.",
    NO_END: "The human has the last word, and it ends the conversation, not with a question.",
}

# Fields of a dialogue's source.
LANGUAGE, EXAMPLES = "language", "examples"
PLANTED, MENDED = "planted_flaw", "mended_flaw"  # by `imagination.simulation.planted_flaws`
_OTHER = {"human": "agent", "agent": "human"}
_SHORT = 3  # words of a turn that may well be said twice ("Yes, please.")
_POLITE = 5  # words of a sentence that may well be said twice, in two turns ("Thank you so much!")
_RECITED = 6  # words in a row that nobody says by chance
_CRITERION = 4  # words of a whole criterion that nobody says by chance
_PHRASE = 2  # words of a value that is rarely said by chance
_LABEL = 5  # words before a colon, in a prompt, that nobody says by chance
# Prompts whose instructions reach those who write the words of a dialogue.
_PROMPTS = ("engine/human", "engine/agent", "engine/script", "engine/refine", "engine/behaviours")


def flaws(dialogue: Dialogue, task: Task) -> dict[str, str]:
    """Finds the flaws of a dialogue.

    Args:
        dialogue: One turn at least. Its source may name the language that was asked for
            (`LANGUAGE`), which else is that of the task's description, and the example utterances
            of the prompt (`EXAMPLES`).
        task: Its task.

    Returns:
        Flaw, as in `FLAWS` -> the words that show it; empty where there is none.
    """
    found = {
        REPEATS: _repeated(dialogue),
        ECHOES: _echoed(dialogue),
        SPEAKS_FOR_OTHER: _spoken_for_other(dialogue, task),
        RECITES: _recited(dialogue, task),
        NAMES_PERSONA: _persona_named(dialogue),
        OTHER_LANGUAGE: _in_other_language(dialogue, task),
        NO_END: _without_end(dialogue),
    }
    return {flaw: found[flaw] for flaw in FLAWS if found[flaw]}


def _repeated(dialogue: Dialogue) -> str:
    said: dict[str, set[str]] = {speaker: set() for speaker in _OTHER}
    for turn in dialogue.turns:
        times = Counter(_sentences(turn.text, longer_than=_SHORT - 1))
        if any(n > 2 or (n > 1 and len(words.split()) > _SHORT) for words, n in times.items()):
            return turn.text
        sayings = _sayings(turn.text)
        if not sayings.isdisjoint(said[turn.speaker]):
            return turn.text
        said[turn.speaker] |= sayings
    return ""


def _echoed(dialogue: Dialogue) -> str:
    for before, turn in itertools.pairwise(dialogue.turns):
        if before.speaker != turn.speaker and _sayings(turn.text) & _sayings(before.text):
            return turn.text
    return ""


def _sayings(text: str) -> set[str]:
    """The turn and its sentences, but for those that may well be said again."""
    whole = _words(text)
    return {*_sentences(text, _POLITE), *([whole] if len(whole.split()) > _SHORT else ())}


def _sentences(text: str, longer_than: int = 0) -> list[str]:
    """Words of each sentence of more than so many."""
    sentences = map(_words, re.split(r"[.!?;:…][\"'”’)*]*\s|[。！？\n]", text))
    return [sentence for sentence in sentences if len(sentence.split()) > longer_than]


def _spoken_for_other(dialogue: Dialogue, task: Task) -> str:
    for turn in dialogue.turns:
        if leading_name(turn.text, _names(_OTHER[turn.speaker], task)):
            return turn.text
    return ""


def _names(speaker: str, task: Task) -> tuple[str, ...]:
    return (role_of(speaker, task), *USUAL_NAMES[speaker])


def _recited(dialogue: Dialogue, task: Task) -> str:
    examples = dialogue.source.get(EXAMPLES) or ()
    texts = (*task.criteria, task.success, task.description, *examples)
    sentences = [sentence for text in texts for sentence in _sentences(text, _CRITERION - 1)]
    instructions = _instructions(task.agent_role, task.human_role, tuple(task.criteria))
    for turn in dialogue.turns:
        if any(occurs(each, turn.text) for each in (*sentences, *instructions.labels)):
            return turn.text
        if not instructions.runs.isdisjoint(_runs(words_of(turn.text), _RECITED)):
            return turn.text
    return ""


class _Instructions(NamedTuple):
    """Words that are told to those who write a dialogue: runs of words, and labels."""

    runs: frozenset[tuple[str, ...]]
    labels: tuple[str, ...]


@functools.cache
def _instructions(agent_role: str, human_role: str, criteria: tuple[str, ...]) -> _Instructions:
    """The prompts' fixed parts, also across the names of the two sides, and all criteria."""
    # Here, so that a card of other dialogues needs no prompts.
    from imagination.prompts import read_versioned

    names = {"{{ task.agent_role }}": agent_role, "{{ task.human_role }}": human_role}
    parts = [*BUILT_IN.values(), *WISHES.values(), *criteria]
    for prompt in _PROMPTS:
        text = functools.reduce(
            lambda t, n: t.replace(n, names[n]), names, read_versioned(prompt)[1]
        )
        parts += re.split(r"\{[{%].*?[%}]\}|\n", text, flags=re.DOTALL)
    runs = frozenset(run for part in parts for run in _runs(words_of(part), _RECITED))
    labels = (_words(part) for part in parts if part.rstrip().endswith(":"))
    return _Instructions(runs, tuple(each for each in labels if len(each.split()) >= _LABEL))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _persona_named(dialogue: Dialogue) -> str:
    values = list(filter(None, map(_words, dialogue.persona.values())))
    enough, phrases = min(2, len(values)), set()
    for number, turn in enumerate(dialogue.turns):
        named = _named(turn.text, values) if turn.speaker == "human" else []
        phrases |= {value for value in named if len(value.split()) >= _PHRASE}
        # Who is asked may well say one short value; nobody has asked yet before the opening.
        is_outright = len(named) > 1 or (number == 0 and len(named) >= enough)
        if named and (is_outright or len(phrases) >= enough):
            return turn.text
    return ""


def _named(text: str, values: Iterable[str]) -> list[str]:
    """The values that occur in a text."""
    return [value for value in values if occurs(value, text)]


def _in_other_language(dialogue: Dialogue, task: Task) -> str:
    wanted = _language(dialogue, task)
    for speaker in _OTHER:
        said = " ".join(turn.text for turn in dialogue.turns if turn.speaker == speaker)
        if speaks_another(said, wanted):
            return said
    turns = (turn.text for turn in dialogue.turns)
    return next((text for text in turns if speaks_another(text, wanted, is_turn=True)), "")


def _language(dialogue: Dialogue, task: Task) -> str:
    """Language that was asked for; "" where it is not known."""
    described = languages_of(task.description)
    return dialogue.source.get(LANGUAGE) or (described[0] if len(described) == 1 else "")


def checks_language(dialogue: Dialogue, task: Task) -> bool:
    """True where it can be told that a dialogue is in another language than asked for."""
    return bool(known_language(_language(dialogue, task)))


def _without_end(dialogue: Dialogue) -> str:
    last = dialogue.turns[-1]
    return last.text if last.speaker == "agent" or last.text.rstrip().endswith(("?", "？")) else ""


def _words(text: str) -> str:
    return " ".join(words_of(text))
