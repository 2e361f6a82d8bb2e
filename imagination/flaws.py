"""Flaws of imagined dialogues that their words alone show, whoever judged them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from imagination.criteria import BUILT_IN
from imagination.dialogue import Dialogue
from imagination.languages import languages_of, speaks_another
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name, role_of

REPEATS = "one side says the same twice"
ECHOES = "one side says what the other said, word for word"
SPEAKS_FOR_OTHER = "one side speaks for the other"
RECITES = "words of the prompt or of a criterion are recited"
NAMES_PERSONA = "the human names two hidden traits or more in one turn"
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
_SHORT = 3  # words of what may well be said twice ("Yes, please.")
_RECITED = 6  # words in a row that nobody says by chance
_SENTENCE = 4  # words of a whole criterion that nobody says by chance
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
    seen = set()
    for turn in dialogue.turns:
        words = _words(turn.text)
        if len(words.split()) > _SHORT and (turn.speaker, words) in seen:
            return turn.text
        seen.add((turn.speaker, words))
    return ""


def _echoed(dialogue: Dialogue) -> str:
    for before, turn in itertools.pairwise(dialogue.turns):
        words = _words(turn.text)
        if len(words.split()) > _SHORT and words == _words(before.text):
            return turn.text
    return ""


def _spoken_for_other(dialogue: Dialogue, task: Task) -> str:
    for turn in dialogue.turns:
        if leading_name(turn.text, _names(_OTHER[turn.speaker], task)):
            return turn.text
    return ""


def _names(speaker: str, task: Task) -> tuple[str, ...]:
    return (role_of(speaker, task), *USUAL_NAMES[speaker])


def _recited(dialogue: Dialogue, task: Task) -> str:
    examples = dialogue.source.get(EXAMPLES) or ()
    sentences = _sentences_of((*task.criteria, task.success, task.description, *examples))
    instructions = _instructions(task.agent_role, task.human_role, tuple(task.criteria))
    for turn in dialogue.turns:
        words = f" {_words(turn.text)} "
        if any(f" {sentence} " in words for sentence in (*sentences, *instructions.labels)):
            return turn.text
        if not instructions.runs.isdisjoint(_runs(words.split(), _RECITED)):
            return turn.text
    return ""


def _sentences_of(texts: Iterable[str]) -> list[str]:
    sentences = [_words(part) for text in texts for part in re.split(r"[.!?;:]\s", text)]
    return [sentence for sentence in sentences if len(sentence.split()) >= _SENTENCE]


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
    runs = frozenset(run for part in parts for run in _runs(_words(part).split(), _RECITED))
    labels = (_words(part) for part in parts if part.rstrip().endswith(":"))
    return _Instructions(runs, tuple(each for each in labels if len(each.split()) >= _LABEL))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _persona_named(dialogue: Dialogue) -> str:
    for turn in dialogue.turns:
        if turn.speaker == "human" and _named(_words(turn.text), dialogue.persona) > 1:
            return turn.text
    return ""


def _named(words: str, persona: Mapping[str, str]) -> int:
    """Number of traits whose value occurs in the words."""
    values = filter(None, map(_words, persona.values()))
    return sum(f" {value} " in f" {words} " for value in values)


def _in_other_language(dialogue: Dialogue, task: Task) -> str:
    described = languages_of(task.description)
    wanted = dialogue.source.get(LANGUAGE) or (described[0] if len(described) == 1 else "")
    for speaker in _OTHER:
        said = " ".join(turn.text for turn in dialogue.turns if turn.speaker == speaker)
        if speaks_another(said, wanted):
            return said
    return ""


def _without_end(dialogue: Dialogue) -> str:
    last = dialogue.turns[-1]
    return last.text if last.speaker == "agent" or last.text.rstrip().endswith("?") else ""


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
