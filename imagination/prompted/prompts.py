"""Prompts as files: `prompts/<name>.md`, a jinja2 template behind a line with its version.

The line `=== user ===` parts what the LLM is told about its part (the same for every call of a
kind of turn, so that it can be cached) from what it is asked now. Whoever changes the words of a
prompt counts its version up: it stands in the results.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pydantic

from imagination.dialogue import Turn
from imagination.llm import Request
from imagination.task import Task

FOLDER = Path(__file__).parent / "prompts"
SEPARATOR = "=== user ===\n"

_TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


class PromptError(ValueError):
    """A prompt file that cannot be used. The message names the file and what it lacks."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that waits for its values.

    Attributes:
        name: The file's name without `.md`; also the step that calls are counted under.
        version: `<name>/<version>`.
        system: Template of the system prompt.
        user: Template of the message.
    """

    name: str
    version: str
    system: jinja2.Template
    user: jinja2.Template

    def request(
        self, schema: type[pydantic.BaseModel], resample: int = 0, label: str = "", **values
    ) -> Request:
        """The filled prompt. Raises `jinja2.UndefinedError` where a value is missing."""
        return Request(
            step=self.name,
            system=self.system.render(values).strip(),
            messages=(("user", self.user.render(values).strip()),),
            schema=schema,
            prompt_version=self.version,
            resample=resample,
            label=label,
        )


@functools.cache
def load_prompt(name: str) -> Prompt:
    """Reads `prompts/<name>.md`.

    Raises:
        PromptError: No such prompt, or one without version line or separator.
    """
    path = FOLDER / f"{name}.md"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.md")))
        raise PromptError(f"there is no prompt {name!r} in {FOLDER}; there are {known}")
    return parse_prompt(name, path.read_text("utf-8"), str(path))


def parse_prompt(name: str, text: str, where: str) -> Prompt:
    """The prompt in a file's text. Raises `PromptError` naming `where`."""
    first, _, body = text.partition("\n")
    if not first.startswith("version: ") or not first.removeprefix("version: ").strip():
        raise PromptError(f"{where}, line 1: expected 'version: <version>', got {first[:80]!r}")
    system, separator, user = body.partition(SEPARATOR)
    if not separator:
        raise PromptError(f"{where}: no line {SEPARATOR.strip()!r} between system and message")
    version = first.removeprefix("version: ").strip()
    return Prompt(
        name, f"{name}/{version}", _TEMPLATES.from_string(system), _TEMPLATES.from_string(user)
    )


def transcript(turns: Sequence[Turn], task: Task) -> str:
    """What was said, a paragraph a turn. Only the words: annotations stay hidden."""
    roles = {"human": task.human_role, "agent": task.agent_role}
    return "\n\n".join(f"{roles[turn.speaker].capitalize()}: {turn.text}" for turn in turns)
