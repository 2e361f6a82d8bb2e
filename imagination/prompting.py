"""Prompts as files: a line with the version, then jinja2 templates for the parts of a request.

    version: human/1
    [system]
    What the LLM is told about its part: the same for all requests of a kind, so that the server
    can cache it.
    [user]
    What it is asked now; absent where what was said follows as messages.

Whoever changes the words of a prompt counts its version up: it stands in the results.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pydantic

from ilql_jax.errors import UserError
from imagination.llm import Request


class PromptError(UserError, ValueError):
    """A prompt file that cannot be used. The message names the file and what it lacks."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that waits for its values.

    Attributes:
        name: The file's name without `.md`.
        version: As it stands in the file, `<name>/<number>`.
        system: Template of the system prompt.
        user: Template of the message; None where the file has none.
    """

    name: str
    version: str
    system: jinja2.Template
    user: jinja2.Template | None

    def request(
        self,
        step: str,
        schema: type[pydantic.BaseModel],
        values: Mapping[str, Any],
        history: Sequence[tuple[str, str]] = (),
        resample: int = 0,
        label: str = "",
        check: Callable[[Any], Any] | None = None,
    ) -> Request:
        """The filled prompt.

        Args:
            step: What the call is for; the meter counts by it.
            schema: What the answer must be.
            values: What the templates need.
            history: Further messages (role, text), behind the user's one.
            resample: Another number, another answer to the same question.
            label: What it is about, for people.
            check: What else must hold of the answer (see `Request`).

        Raises:
            jinja2.UndefinedError: A value is missing.
        """
        opening = (("user", self.user.render(values).strip()),) if self.user else ()
        return Request(
            step=step,
            system=self.system.render(values).strip(),
            messages=(*opening, *history),
            schema=schema,
            prompt_version=self.version,
            resample=resample,
            label=label,
            check=check,
        )


@functools.cache
def load_prompt(path: Path) -> Prompt:
    """Reads a prompt file.

    Raises:
        PromptError: There is none, or it is not as it should be.
    """
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.md")))
        raise PromptError(f"there is no prompt {path.stem!r} in {path.parent}; there are {known}.")
    return parse_prompt(path.stem, path.read_text("utf-8"), str(path))


def parse_prompt(name: str, text: str, where: str) -> Prompt:
    """The prompt in a file's text. Raises `PromptError` naming `where`."""
    version, body = split_version(text, where)
    parts = re.split(r"^\[(system|user)\]\n", body, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if "system" not in sections:
        raise PromptError(f"{where} has no line [system]; the prompt goes below it.")
    compiled = {section: _TEMPLATES.from_string(text) for section, text in sections.items()}
    return Prompt(name, version, compiled["system"], compiled.get("user"))


def split_version(text: str, where: str) -> tuple[str, str]:
    """Version and the rest of a file. Raises `PromptError` naming `where`."""
    first, _, body = text.partition("\n")
    field, _, version = first.partition(": ")
    if field != "version" or not version.strip():
        raise PromptError(
            f"{where} starts with {first[:40]!r}; the first line is 'version: <name>/<number>'."
        )
    return version.strip(), body


def without_label(text: str, *roles: str) -> str:
    """An utterance without the speaker's role in front ("Tutor: ..."), as LLMs copy it from
    transcripts; empty where nothing else was said."""
    labels = "|".join(re.escape(role) for role in roles)
    label = rf"^[*\s]*(?:{labels})\s*\**:[*\s]*"
    return re.sub(label, "", text, flags=re.IGNORECASE).strip()


def _traits(persona: Mapping[str, str]) -> str:
    return "; ".join(f"{axis} = {value}" for axis, value in persona.items())


# autoescape would put HTML into prompts.
_TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)
_TEMPLATES.filters["traits"] = _traits
