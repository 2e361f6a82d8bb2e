"""Flaws of imagined dialogues that their words alone show, whoever judged them."""

from __future__ import annotations

import re

from imagination.dialogue import Dialogue
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name, role_of

REPEATS = "one side says the same twice"
SPEAKS_FOR_OTHER = "one side speaks for the other"
NAMES_PERSONA = "the human names two hidden traits or more in one turn"
NO_END = "the human has no last word"
FLAWS = (REPEATS, SPEAKS_FOR_OTHER, NAMES_PERSONA, NO_END)

_OTHER = {"human": "agent", "agent": "human"}
_SHORT = 3  # words of what may well be said twice ("Yes, please.")


def flaws(dialogue: Dialogue, task: Task) -> tuple[str, ...]:
    """Names the flaws of a dialogue, as in `FLAWS`; () = none."""
    said = [(turn.speaker, _words(turn.text)) for turn in dialogue.turns]
    long = [each for each in said if len(each[1].split()) > _SHORT]
    found = {
        REPEATS: len(set(long)) < len(long),
        SPEAKS_FOR_OTHER: any(
            leading_name(turn.text, _names(_OTHER[turn.speaker], task)) for turn in dialogue.turns
        ),
        NAMES_PERSONA: any(
            speaker == "human" and _named(words, dialogue) > 1 for speaker, words in said
        ),
        NO_END: dialogue.turns[-1].speaker == "agent",
    }
    return tuple(flaw for flaw in FLAWS if found[flaw])


def _names(speaker: str, task: Task) -> tuple[str, ...]:
    return (role_of(speaker, task), *USUAL_NAMES[speaker])


def _named(words: str, dialogue: Dialogue) -> int:
    """Number of traits whose value occurs in the words."""
    values = filter(None, map(_words, dialogue.persona.values()))
    return sum(f" {value} " in f" {words} " for value in values)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
