"""All prompts: `load_prompt("engine/script")` reads `engine/script.md` in this folder.

The sub-folders say who uses a prompt: the imagination `engine`, the `judge` of finished dialogues,
the `human` and the `agents` of the evaluation, and `hindsight`. A file holds its version, then a
jinja2 template for each part of a request:

    version: engine/script/1
    [system]
    The model's part; the same for all requests of a kind, so that the server can cache it.
    [user]
    The question; absent where the conversation itself follows as messages.
    [last]
    Added to the last message, whatever that is: what is true at this turn alone. Often absent.

The version is the prompt's name and a number. It stands in results and in the key of every stored
answer: count it up whenever the text changes (`tests/imagination/test_prompts.py` checks this).
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
from imagination.llm.requests import Request

FOLDER = Path(__file__).parent


class PromptError(UserError, ValueError):
    """A prompt file that cannot be used. The message names the file and the missing part."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with open values.

    Attributes:
        name: Path below this folder, without `.md`. Also the step that its calls count for.
        version: The name and a number, as in the file's first line.
        system: Template of the system prompt.
        user: Template of the first message; None where the file has none.
        last: Template of what is added to the last message; None where the file has none.
    """

    name: str
    version: str
    system: jinja2.Template
    user: jinja2.Template | None
    last: jinja2.Template | None = None

    def request(
        self,
        schema: type[pydantic.BaseModel],
        values: Mapping[str, Any],
        history: Sequence[tuple[str, str]] = (),
        resample: int = 0,
        label: str = "",
        check: Callable[[Any], Any] | None = None,
    ) -> Request:
        """Fills the templates.

        Args:
            schema: Type of the answer.
            values: Values of the templates' variables.
            history: Further messages (role, text) behind the first one.
            resample: Another number asks for another answer to the same question.
            label: Subject of the request, for people.
            check: Further condition on the answer (see `Request`).

        Raises:
            jinja2.UndefinedError: A variable has no value.
        """
        opening = (("user", self.user.render(values).strip()),) if self.user else ()
        messages = (*opening, *history)
        if self.last and (note := self.last.render(values).strip()):
            *before, (role, text) = messages
            messages = (*before, (role, f"{text}\n\n{note}"))
        return Request(
            step=self.name,
            system=self.system.render(values).strip(),
            messages=messages,
            schema=schema,
            prompt_version=self.version,
            resample=resample,
            label=label,
            check=check,
        )


@functools.cache
def load_prompt(name: str) -> Prompt:
    """Reads a prompt, such as `engine/script`.

    Raises:
        PromptError: There is no such file, or it is not a prompt.
    """
    path = FOLDER / f"{name}.md"
    version, body = read_versioned(name)
    parts = re.split(r"^\[(system|user|last)\]\n", body, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if "system" not in sections:
        raise PromptError(f"{path} has no line [system]; the prompt goes below it.")
    compiled = {section: _TEMPLATES.from_string(text) for section, text in sections.items()}
    return Prompt(name, version, compiled["system"], compiled.get("user"), compiled.get("last"))


def prompt_names() -> list[str]:
    """Names of all files in this folder, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in _files())


def read_versioned(name: str) -> tuple[str, str]:
    """Splits a file of this folder into its version and the rest.

    Raises:
        PromptError: There is no such file, or its first line is not its name and a number.
    """
    path = FOLDER / f"{name}.md"
    if path not in _files():
        known = ", ".join(prompt_names())
        raise PromptError(f"there is no prompt {name!r} in {FOLDER}; there are {known}.")
    first, _, body = path.read_text("utf-8").partition("\n")
    if not re.fullmatch(rf"version: {re.escape(name)}/\d+", first):
        raise PromptError(
            f"{path} starts with {first[:60]!r}; the first line is 'version: {name}/<number>'."
        )
    return first.removeprefix("version: "), body


def other_versions(counts: Mapping[str, int]) -> dict[str, int]:
    """Picks from counts by version those of other versions of the prompts in this folder."""
    current = {read_versioned(name)[0] for name in prompt_names()}
    return {
        version: count
        for version, count in sorted(counts.items())
        if version not in current and version.rpartition("/")[0] in prompt_names()
    }


def _files() -> list[Path]:
    return list(FOLDER.rglob("*.md"))


def _traits(persona: Mapping[str, str]) -> str:
    return "; ".join(f"{axis} = {value}" for axis, value in persona.items())


def _manner(speech: Mapping[str, Any]) -> str:
    """Length, style and language of an utterance, as the engine's prompts put them; "" = not set.

    Args:
        speech: `EngineConfig.speech`, or nothing.
    """
    if not speech:
        return ""
    language = f" in {speech['language']}" if speech["language"] else ""
    return f"{speech['length']}, {speech['style']}{language}"


def _examples(speech: Mapping[str, Any]) -> str:
    if not speech or not speech["examples"]:
        return ""
    listed = "\n".join(f"- {example}" for example in speech["examples"])
    return (
        "\n\nExamples of how people speak here; take the tone from them, never the words:\n"
        + listed
    )


# autoescape would put HTML into prompts.
_TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)
_TEMPLATES.filters |= {"traits": _traits, "manner": _manner, "examples": _examples}
