"""The words that hindsight puts to an LLM (`prompts/<name>.md`), and whose words came back."""

from __future__ import annotations

import re
from pathlib import Path

from imagination import prompting
from imagination.prompting import Prompt, without_label
from imagination.task import Task

FOLDER = Path(__file__).parent / "prompts"

# What chat models call the two sides when they forget their roles.
_USUAL_NAMES = ("agent", "assistant", "human", "user")


def load_prompt(name: str) -> Prompt:
    """Reads `prompts/<name>.md`. Raises `PromptError` for a file that is none."""
    return prompting.load_prompt(FOLDER / f"{name}.md")


def label_in(text: str, task: Task) -> str:
    """The first speaker's name that stands in front of a line ("Tutor: ..."); "" if none does."""
    names = (task.agent_role, task.human_role, *_USUAL_NAMES)
    pattern = "|".join(re.escape(name) for name in names)
    line = rf"^[\s*_>\[(]*((?:the\s+)?(?:{pattern}))[\s*_\])]*:"
    found = re.search(line, text, flags=re.IGNORECASE | re.MULTILINE)
    return found[1] if found else ""


def check_words(text: str, speaker: str, task: Task) -> None:
    """Raises `ValueError` where a speaker speaks for the other side, or says but its own name.

    One's own name in front is no harm otherwise: it is taken off (`without_label`).
    """
    role = {"human": task.human_role, "agent": task.agent_role}[speaker]
    words = without_label(text, role, speaker)
    if text.strip() and not words:
        raise ValueError(f"{text!r} is a name without words")
    if label := label_in(words, task):
        raise ValueError(
            f"a line begins with {label + ':'!r}; only the next words of the {role} are wanted, "
            "without names in front"
        )
