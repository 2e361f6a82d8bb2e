"""A conversation as text, and the speakers' names that models put in front of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from imagination.dialogue import Turn
from imagination.task import Task

# Names that chat models use for the two sides when they forget the task's roles.
USUAL_NAMES = {"agent": ("agent", "assistant"), "human": ("human", "user")}


def role_of(speaker: str, task: Task) -> str:
    """The task's name for a side, e.g. "tutor"."""
    return {"human": task.human_role, "agent": task.agent_role}[speaker]


def turns_left(turns: Sequence[Turn], task: Task) -> int:
    """Counts the turns that the agent may still take."""
    return max(0, task.max_turns - sum(turn.speaker == "agent" for turn in turns))


def transcript(
    turns: Sequence[Turn],
    task: Task,
    layout: Literal["lines", "paragraphs", "numbered"] = "lines",
) -> str:
    """Writes the turns with the speakers' roles in front; annotations stay hidden.

    Args:
        turns: The conversation.
        task: Gives the roles.
        layout: `lines`: "tutor: ...", one line a turn. `paragraphs`: "Tutor: ...", with an empty
            line between turns. `numbered`: "1. tutor: ...", with line breaks inside a turn removed.
    """
    pairs = [(role_of(turn.speaker, task), turn.text) for turn in turns]
    if layout == "paragraphs":
        return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in pairs)
    if layout == "numbered":
        return "\n".join(
            f"{number}. {role}: {' '.join(text.split())}"
            for number, (role, text) in enumerate(pairs, start=1)
        )
    return "\n".join(f"{role}: {text}" for role, text in pairs)


def leading_name(text: str, names: Iterable[str]) -> str:
    """Finds the first line or sentence that begins with a name and a colon, as in "Tutor: ...".

    Returns:
        The name as it stands there; "" where none begins so.
    """
    begin = r"(?:^|[.!?…)\]\"'”’*]\s+|[—–。！？]\s*)"
    match = re.search(f"{begin}{_name_pattern(names)}", text, re.IGNORECASE | re.MULTILINE)
    return match[1] if match else ""


def strip_name(text: str, *names: str) -> str:
    """Removes a speaker's name from the beginning; the result is empty where nothing follows it."""
    return re.sub(rf"\A{_name_pattern(names)}[*\s]*", "", text, flags=re.IGNORECASE).strip()


def _name_pattern(names: Iterable[str]) -> str:
    """A name at the beginning of a sentence, perhaps emphasized or in brackets, with its colon."""
    alternatives = "|".join(map(re.escape, names))
    return rf"[\s*_>\[(]*((?:the\s+)?(?:{alternatives}))[\s*_\])]*[:：]"
