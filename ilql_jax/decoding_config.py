"""`DecodingConfig`: the rule by which an utterance is chosen, as fields and as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from ilql_jax.errors import UserError, shown
from ilql_jax.lookahead import NEXT_CANDIDATES
from ilql_jax.settings import SettingError, Settings, setting

_COUNTS = {"best of": "candidates", "looking ahead by": "lookahead", "replies": "replies"}
DECODING_PARTS = ("sampled at", "steered by", *_COUNTS)  # that a number follows


class PolicyError(UserError, ValueError):
    """A decoding that a network cannot do. The message says why, and what would do."""


@dataclasses.dataclass(frozen=True)
class DecodingConfig(Settings):
    """Rule by which an utterance is chosen.

    Raises:
        SettingError: A value out of bounds, or several candidates that would be equal.
    """

    temperature: float = setting("1 samples from the policy, 0 is greedy.", 1.0, least=0)
    steering_strength: float = setting(
        "β of the values on every token; 0 = the cloned policy.", 0.0
    )
    candidates: int = setting(
        "Whole utterances written; above 1 the one of highest value is kept.", 1, least=1, most=1000
    )
    lookahead: int = setting(
        "Turns that are imagined after each candidate before it is judged; 0 = by Q alone.",
        0,
        least=0,
        most=10,
    )
    replies: int = setting(
        "Replies that are imagined to each candidate, where turns are.", 2, least=1, most=100
    )

    def __post_init__(self):
        super().__post_init__()
        if self.candidates > 1 and self.temperature == 0:
            raise SettingError(
                "candidates",
                self.candidates,
                "must be 1 with temperature 0: greedy candidates are equal",
            )
        if self.lookahead and self.candidates == 1:
            raise SettingError(
                "lookahead",
                self.lookahead,
                "must be 0 with one candidate: there is nothing to choose from ('best of 8')",
            )
        if self.replies != DecodingConfig.replies and not self.lookahead:
            raise SettingError(
                "replies",
                self.replies,
                "is for looking ahead ('looking ahead by 1')",
            )

    @property
    def reads_values(self) -> bool:
        """True if the utterance depends on the values."""
        return self.candidates > 1 or self.steering_strength != 0

    @property
    def without_values(self) -> DecodingConfig:
        """The cloned policy alone, at the same temperature."""
        return DecodingConfig(temperature=self.temperature)

    @property
    def utterances(self) -> int:
        """Utterances that are written at most for one that is said, imagined replies included."""
        imagined = self.lookahead * self.replies * (1 + min(NEXT_CANDIDATES, self.candidates))
        return self.candidates * (1 + imagined)

    def __str__(self) -> str:
        parts = ["sampled"] if self.temperature == 1 else [f"sampled at {self.temperature:g}"]
        if self.temperature == 0:
            parts = ["greedy"]
        if self.steering_strength:
            parts.append(f"steered by {self.steering_strength:g}")
        if self.candidates > 1:
            parts.append(f"best of {self.candidates}")
        if self.lookahead:
            parts.append(f"looking ahead by {self.lookahead}")
            if self.replies != DecodingConfig.replies:
                parts.append(f"replies {self.replies}")
        return ", ".join(parts)

    @classmethod
    def parse(cls, text: str) -> DecodingConfig:
        """Parses `str` of one: `greedy`, `sampled at 0.7, steered by 10, best of 16`.

        Raises:
            PolicyError: Anything else, and values that no decoding can have.
        """
        fields: dict[str, Any] = {}
        for part in map(str.strip, text.split(",")):
            words = part.rsplit(" ", 1)
            try:
                if part in ("sampled", "greedy"):
                    fields["temperature"] = 1.0 if part == "sampled" else 0.0
                elif words[0] in ("sampled at", "steered by"):
                    name = "temperature" if words[0] == "sampled at" else "steering_strength"
                    fields[name] = float(words[1])
                elif words[0] in _COUNTS:
                    fields[_COUNTS[words[0]]] = int(words[1])
                else:
                    raise ValueError
            except (ValueError, IndexError):
                raise PolicyError(
                    f"decoding {shown(text)!r}: {shown(part)!r} is not understood; write parts of "
                    "'greedy' or 'sampled' or 'sampled at 0.7', 'steered by 10', 'best of 16', "
                    "'looking ahead by 1', 'replies 4', with commas."
                ) from None
        try:
            return cls(**fields)
        except SettingError as error:
            raise PolicyError(f"decoding {shown(text)!r}: {error}") from None
