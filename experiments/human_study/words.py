"""`Words`: what pages say beside the questionnaire, such as headings, buttons and errors.

`words.yaml` has all of them in English; a questionnaire replaces any under `words:`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

FILE = Path(__file__).with_name("words.yaml")
_BLANK = re.compile(r"\{(\w+)\}")
# Languages that are written from right to left.
_LEFTWARDS = frozenset(("ar", "ckb", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"))


@functools.cache
def english() -> Mapping[str, str]:
    """Name -> words, of all that there are."""
    return MappingProxyType(yaml.safe_load(FILE.read_text("utf-8")))


def blanks(text: str) -> frozenset[str]:
    """Names in braces, which are filled in."""
    return frozenset(_BLANK.findall(text))


@dataclasses.dataclass(frozen=True)
class Words:
    """Words of the pages, in the language of a study.

    Attributes:
        lang: The language, as `<html lang>` has it.
        own: Name -> words that a questionnaire has in place of the English ones.
    """

    lang: str = "en"
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def direction(self) -> str:
        """Direction of writing, as `<html dir>` has it."""
        return "rtl" if self.lang.partition("-")[0].lower() in _LEFTWARDS else "ltr"

    def __call__(self, name: str, **values: Any) -> str:
        """Returns the words of this name with their blanks filled in. Raises `KeyError`."""
        text = self.own.get(name) or english()[name]
        # One pass: what is filled in is not looked at again.
        return _BLANK.sub(lambda blank: str(values[blank[1]]), text)


ENGLISH = Words()
