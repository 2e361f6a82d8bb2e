"""Hindsight regeneration (arXiv 2411.05194): what the agent should have said, and what follows.

A *controller* reads a finished dialogue and proposes a better utterance at the turns where the
agent chose badly. A *forward model* plays the rest from there, with a human whose persona is
inferred from the whole original. A *reward model* rates what came of it. An engine plays the
three parts: an embedded world, or an LLM. What it returns is checked here, so that nothing bad
reaches training, whoever made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from scipy import stats

from imagination.dialogue import Dialogue, Turn


class HindsightError(ValueError):
    """Regeneration that cannot be done or trusted. The message says why, and the way out."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A better utterance at one turn of a finished dialogue.

    Attributes:
        turn: Index into the dialogue's `turns` of the agent's utterance that it replaces.
        utterance: What the agent should have said.
        reason: Why, in words.
    """

    turn: int
    utterance: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Branch:
    """A dialogue up to the turn that a proposal changes, that turn included."""

    parent: Dialogue
    proposal: Proposal

    @property
    def prefix(self) -> tuple[Turn, ...]:
        """Turns up to the new utterance, which is the last of them."""
        return (*self.parent.turns[: self.proposal.turn], Turn("agent", self.proposal.utterance))


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What followed on a branch's prefix.

    Attributes:
        turns: The rest, the human's answer first; empty where the new utterance ended it.
        persona: What was inferred of the human from the whole original, axis -> value.
        terminal: False where the conversation was cut off.
    """

    turns: tuple[Turn, ...]
    persona: Mapping[str, str]
    terminal: bool = True


class HindsightEngine(Protocol):
    """Whoever plays controller, forward model and reward model. None: it failed on this one."""

    def propose(
        self, dialogues: Sequence[Dialogue], max_changes: int
    ) -> list[list[Proposal] | None]:
        """The turns of each dialogue where a better utterance was possible, worst first."""
        ...

    def play(self, branches: Sequence[Branch]) -> list[Continuation | None]:
        """The rest of each conversation from the changed turn on."""
        ...

    def rate(self, dialogues: Sequence[Dialogue]) -> list[float | None]:
        """The rating of each finished dialogue on the task's scale, from its words alone."""
        ...


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Something an engine returned that is not learned from, and why."""

    parent: str
    problem: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Regeneration:
    """What one round made of some dialogues."""

    dialogues: tuple[Dialogue, ...]
    rejections: tuple[Rejection, ...]


def regenerate(
    dialogues: Sequence[Dialogue], engine: HindsightEngine, *, round_number: int, max_changes: int
) -> Regeneration:
    """Looks back on each dialogue and replays it from up to `max_changes` turns.

    A regenerated dialogue has `source` = {kind: "regenerated", parent, turn, reason, round} and
    all else that the parent's source says about where it belongs (`part`).
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How well a reward model predicts outcomes that are known.

    Attributes:
        spearman: Rank correlation with the known rewards; NaN where either is constant.
        pearson: Linear correlation.
        mean_absolute_error: On the task's scale.
        bias: Mean of predicted minus known.
        count: Dialogues compared.
    """

    spearman: float
    pearson: float
    mean_absolute_error: float
    bias: float
    count: int


def calibrate(dialogues: Sequence[Dialogue], engine: HindsightEngine) -> Calibration:
    """Compares the engine's ratings with the known rewards of original dialogues."""
    raise NotImplementedError


_ = stats
