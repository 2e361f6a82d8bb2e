"""The phrasing grammar: short templates that stand for many surface forms.

A template is plain text with nested alternatives and slots:

    [Sure|Of course], let me explain {topic} [from the very beginning|step by step] with an example.

`[a|b|]` is one of the alternatives (the last one here is empty), `{topic}` is filled in by the
conversation. Forms are numbered, so sampling one is unranking an integer. Spaces are tidied and
the first letter is a capital whatever alternative comes first.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from ilql_jax.errors import UserError
from imagination.simulation.dice import Dice

_SPECIAL = re.compile(r"[\[\]|]")
_SLOT = re.compile(r"\{(\w+)\}")
_SPACE_BEFORE_SIGN = re.compile(r"\s+([.,:;?!])")


class GrammarError(UserError, ValueError):
    """A template that cannot be read. The message shows it and says what is wrong."""


@dataclasses.dataclass(frozen=True)
class _Choice:
    options: tuple[_Sequence, ...]

    @functools.cached_property
    def count(self) -> int:
        return sum(option.count for option in self.options)

    def form(self, index: int) -> str:
        for option in self.options:
            if index < option.count:
                return option.form(index)
            index -= option.count
        raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class _Sequence:
    parts: tuple[str | _Choice, ...]

    @functools.cached_property
    def count(self) -> int:
        return math.prod(part.count for part in self.parts if isinstance(part, _Choice))

    def form(self, index: int) -> str:
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(part)
            else:
                index, choice = divmod(index, part.count)
                texts.append(part.form(choice))
        return "".join(texts)


@functools.cache
def parse(template: str) -> _Sequence:
    """The template as a tree.

    Raises:
        GrammarError: Brackets that do not match, or `|` outside brackets.
    """
    sequence, end = _parse_sequence(template, 0, depth=0)
    if end != len(template):
        raise GrammarError(f"template {template!r}: unexpected {template[end]!r} at {end}")
    return sequence


def _parse_sequence(template: str, start: int, depth: int) -> tuple[_Sequence, int]:
    parts: list[str | _Choice] = []
    position = start
    while match := _SPECIAL.search(template, position):
        if match.start() > position:
            parts.append(template[position : match.start()])
        position = match.start()
        if match.group() != "[":
            if depth == 0:
                raise GrammarError(
                    f"template {template!r}: {match.group()!r} at {position} outside of brackets"
                )
            return _Sequence(tuple(parts)), position
        options = []
        while template[position] != "]":
            option, position = _parse_sequence(template, position + 1, depth + 1)
            if position >= len(template):
                raise GrammarError(f"template {template!r}: '[' at {match.start()} is not closed")
            options.append(option)
        parts.append(_Choice(tuple(options)))
        position += 1
    if position < len(template):
        parts.append(template[position:])
    return _Sequence(tuple(parts)), len(template)


def count_forms(template: str) -> int:
    """Number of ways through the template's alternatives (slots left open)."""
    return parse(template).count


@functools.lru_cache(maxsize=1 << 17)
def form(template: str, index: int) -> str:
    """The surface form of that number, slots left open."""
    text = _SPACE_BEFORE_SIGN.sub(r"\1", " ".join(parse(template).form(index).split()))
    return text[:1].upper() + text[1:]


def forms(template: str) -> Iterator[str]:
    """All surface forms, slots left open."""
    return (form(template, index) for index in range(count_forms(template)))


def sample_forms(template: str, limit: int) -> list[str]:
    """At most `limit` forms, spread over the whole template; the same ones every time."""
    count = count_forms(template)
    if count <= limit:
        return list(forms(template))
    dice = Dice(count, limit)
    return [form(template, dice.below(count)) for _ in range(limit)]


def expand(template: str, dice: Dice, slots: Mapping[str, str]) -> str:
    """A random surface form with the slots filled in.

    Args:
        template: The template.
        dice: Source of the choice.
        slots: Slot name -> text.

    Returns:
        The utterance.

    Raises:
        KeyError: A slot of the template that `slots` does not name.
    """
    return fill(form(template, dice.below(count_forms(template))), slots)


def fill(text: str, slots: Mapping[str, str]) -> str:
    """The text with its slots filled in, and a capital letter in front."""
    if "{" not in text:
        return text
    text = _SLOT.sub(lambda match: slots[match.group(1)], text)
    return text[:1].upper() + text[1:]


def slots_of(template: str) -> set[str]:
    """Names of the slots that the template mentions."""
    return set(_SLOT.findall(template))


def slots_removed(template: str) -> str:
    """The template without its slots."""
    return _SLOT.sub(" ", template)


@dataclasses.dataclass(frozen=True)
class Phrasing:
    """All ways to say one thing.

    Attributes:
        templates: Phrasings of the embedded speakers, each equally likely.
        also: Templates that are understood but never said: the words other people may use.
    """

    templates: Sequence[str]
    also: Sequence[str] = ()

    @property
    def count(self) -> int:
        """Number of surface forms that are said, slots left open."""
        return sum(count_forms(template) for template in self.templates)

    def forms(self) -> Iterator[str]:
        """All surface forms that are said, slots left open."""
        for template in self.templates:
            yield from forms(template)

    def expand(self, dice: Dice, slots: Mapping[str, str]) -> str:
        """A random way to say it."""
        return expand(self.templates[dice.below(len(self.templates))], dice, slots)
