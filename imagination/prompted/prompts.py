"""The prompts of prompted speakers (`prompts/<name>.md`), and a conversation as they see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagination import prompting
from imagination.dialogue import Turn
from imagination.prompting import Prompt
from imagination.task import Task

FOLDER = Path(__file__).parent / "prompts"


def load_prompt(name: str) -> Prompt:
    """Reads `prompts/<name>.md`. Raises `PromptError` for a file that is none."""
    return prompting.load_prompt(FOLDER / f"{name}.md")


def transcript(turns: Sequence[Turn], task: Task) -> str:
    """What was said, a paragraph a turn. Only the words: annotations stay hidden."""
    roles = {"human": task.human_role, "agent": task.agent_role}
    return "\n\n".join(f"{roles[turn.speaker].capitalize()}: {turn.text}" for turn in turns)
