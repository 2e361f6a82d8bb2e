"""Hindsight regeneration (arXiv 2411.05194): better words at bad turns, and what follows on them.

A *controller* reads a finished dialogue and proposes a better utterance at the turns where the
agent chose badly. A *forward model* plays the rest from there, with a human whose persona is
inferred from the whole original. A *reward model* rates the result. A `Hindsight` plays the three
parts: an embedded world (`world.py`), or an LLM (`llm.py`). Its answers are checked here, so that
nothing bad reaches training.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import scipy

from ilql_jax.errors import UserError
from imagination.dialogue import Dialogue, Turn
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name

T = TypeVar("T")

_FEWEST_RATED = 5  # dialogues that a reward model can be compared on


class HindsightError(UserError, ValueError):
    """Regeneration that cannot be done or trusted. The message says why, and the way out."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A better utterance at one turn of a finished dialogue.

    Attributes:
        turn: Index into the dialogue's `turns` of the agent's utterance that it replaces.
        utterance: Better words of the agent.
        reason: The fault of the original words.
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
    """Rest of a dialogue behind a branch's prefix.

    Attributes:
        turns: The rest, the human's answer first; empty where the new utterance ended it.
        persona: Traits of the human, inferred from the whole original: axis -> value.
        terminal: False where the conversation was cut off.
    """

    turns: tuple[Turn, ...]
    persona: Mapping[str, str]
    terminal: bool = True


class Hindsight(Protocol):
    """Controller, forward model and reward model. None among their answers: failed on this one."""

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
    """An answer that is not learned from, and why."""

    parent: str
    problem: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Regeneration:
    """Result of one round: dialogues to learn from, and rejected answers."""

    dialogues: tuple[Dialogue, ...]
    rejections: tuple[Rejection, ...]


def regenerate(
    dialogues: Sequence[Dialogue],
    hindsight: Hindsight,
    *,
    round_number: int,
    max_changes: int,
    task: Task | None = None,
) -> Regeneration:
    """Looks back on each dialogue and replays it from up to `max_changes` turns.

    A regenerated dialogue has the id `<parent>-r<round>t<turn>`, its `persona` is the inferred
    one, its `reward` the reward model's, and its `source` = {kind: "regenerated", parent, turn,
    reason, round} and all else that the parent's source says about where it belongs (`part`).
    Up to the changed turn it has the parent's turns as they are.

    Args:
        dialogues: Finished dialogues with unique ids, original or regenerated themselves.
        hindsight: Plays controller, forward model and reward model.
        round_number: 1 for the first look back; part of ids and source.
        max_changes: Turns of a dialogue that may be changed, each in a dialogue of its own.
        task: Gives the names of the two sides and the scale of ratings. Without it, only labels
            such as "User:" and "Assistant:" are known, and any finite rating is let through.

    Returns:
        Dialogues to learn from, in the order of the originals, and all rejected answers by name.

    Raises:
        HindsightError: A number below 1, two dialogues of one id, or a `Hindsight` that does not
            answer once for each dialogue it is asked about.
    """
    _check_request(dialogues, round_number, max_changes)
    checks = _Checks(task)
    sound, rejections = _separate((dialogue, checks.parent(dialogue)) for dialogue in dialogues)
    proposed = _answers(hindsight.propose(sound, max_changes), sound, "propose")
    branches, rejected = _separate(checks.proposals(sound, proposed, max_changes))
    rejections += rejected
    played = _answers(hindsight.play(branches), branches, "play")
    replays, rejected = _separate(
        (_Replay(branch, rest), checks.continuation(branch, rest))
        for branch, rest in zip(branches, played, strict=True)
    )
    rejections += rejected
    finished = [replay.dialogue(round_number) for replay in replays]
    ratings = _answers(hindsight.rate(finished), finished, "rate")
    rated, rejected = _separate(
        (dataclasses.replace(dialogue, reward=rating), checks.rating(replay.branch.parent, rating))
        for replay, dialogue, rating in zip(replays, finished, ratings, strict=True)
    )
    return Regeneration(tuple(rated), tuple(rejections + rejected))


def _check_request(dialogues: Sequence[Dialogue], round_number: int, max_changes: int) -> None:
    for name, number in (("round_number", round_number), ("max_changes", max_changes)):
        if number < 1:
            raise HindsightError(f"{name} must be at least 1, got {number}.")
    repeated = [id for id, count in Counter(d.id for d in dialogues).items() if count > 1]
    if repeated:
        raise HindsightError(
            f"dialogue id {repeated[0]!r} occurs more than once; what is made of a dialogue is "
            "named after it, so ids must be unique."
        )


def _answers(answers: Sequence[T], questions: Sequence[object], method: str) -> Sequence[T]:
    if len(answers) != len(questions):
        raise HindsightError(
            f"hindsight's {method} gave {len(answers)} answers to {len(questions)} questions; "
            "it must give one for each, None where it failed."
        )
    return answers


def _separate(
    judged: Iterable[tuple[T, Rejection | None]],
) -> tuple[list[T], list[Rejection]]:
    """Splits what passed from the rejections."""
    passed, rejections = [], []
    for item, rejection in judged:
        if rejection is None:
            passed.append(item)
        else:
            rejections.append(rejection)
    return passed, rejections


@dataclasses.dataclass(frozen=True)
class _Replay:
    """A branch and what followed on it."""

    branch: Branch
    rest: Continuation

    def dialogue(self, round_number: int) -> Dialogue:
        """The two as one dialogue, not rated yet."""
        parent, proposal = self.branch.parent, self.branch.proposal
        source = {
            "kind": "regenerated",
            "parent": parent.id,
            "turn": proposal.turn,
            "reason": proposal.reason,
            "round": round_number,
        }
        if "part" in parent.source:
            source["part"] = parent.source["part"]
        return Dialogue(
            id=f"{parent.id}-r{round_number}t{proposal.turn}",
            task=parent.task,
            turns=(*self.branch.prefix, *self.rest.turns),
            persona=dict(self.rest.persona),
            source=source,
            system=parent.system,
            terminal=self.rest.terminal,
        )


class _Checks:
    """Checks of a `Hindsight`'s answers; each gives a rejection or None."""

    def __init__(self, task: Task | None):
        self._range = task.reward_range if task else (-math.inf, math.inf)
        self._labels = {
            "agent": {*USUAL_NAMES["agent"], *([task.agent_role.lower()] if task else [])},
            "human": {*USUAL_NAMES["human"], *([task.human_role.lower()] if task else [])},
        }

    def parent(self, dialogue: Dialogue) -> Rejection | None:
        silent = {"human", "agent"} - {turn.speaker for turn in dialogue.turns}
        if not silent:
            return None
        who = max(silent)  # the human if both: without one there is nobody to play again with
        return Rejection(
            dialogue.id, f"{who} never speaks", f"{len(dialogue.turns)} turns, none of the {who}'s"
        )

    def proposals(
        self,
        dialogues: Sequence[Dialogue],
        proposed: Sequence[Sequence[Proposal] | None],
        max_changes: int,
    ) -> Iterator[tuple[Branch | None, Rejection | None]]:
        for dialogue, proposals in zip(dialogues, proposed, strict=True):
            if proposals is None:
                yield None, Rejection(dialogue.id, "controller failed", "it gave no answer")
                continue
            changed: set[int] = set()
            for count, proposal in enumerate(proposals, start=1):
                problem = self._problem_of(dialogue, proposal, changed)
                if count > max_changes:
                    problem = "too many changes", f"number {count} of at most {max_changes}"
                if problem is None:
                    changed.add(proposal.turn)
                rejection = Rejection(dialogue.id, *problem) if problem else None
                yield Branch(dialogue, proposal), rejection

    def _problem_of(
        self, dialogue: Dialogue, proposal: Proposal, changed: set[int]
    ) -> tuple[str, str] | None:
        turn, text = proposal.turn, proposal.utterance
        if not 0 <= turn < len(dialogue.turns):
            return "no such turn", f"turn {turn} of {len(dialogue.turns)}, counted from 0"
        before = dialogue.turns[turn]
        if before.speaker != "agent":
            return "the human's turn", f"turn {turn}: {_shown(before.text)}"
        if turn in changed:
            return "turn changed twice", f"turn {turn}: {_shown(text)}"
        if not text.strip():
            return "empty utterance", f"turn {turn}"
        if _plain(text) == _plain(before.text):
            return "same utterance", f"turn {turn}: {_shown(text)}"
        return self._problem_with_labels("agent", turn, text)

    def _problem_with_labels(self, speaker: str, turn: int, text: str) -> tuple[str, str] | None:
        other = "human" if speaker == "agent" else "agent"
        detail = f"turn {turn}, the {speaker}'s: {_shown(text)}"
        if leading_name(text, self._labels[other] - self._labels[speaker]):
            return f"speaks for the {other}", detail
        if leading_name(text, self._labels[speaker]):
            return "label in the words", detail
        return None

    def continuation(self, branch: Branch, rest: Continuation | None) -> Rejection | None:
        parent, first = branch.parent.id, branch.proposal.turn + 1
        if rest is None:
            return Rejection(parent, "forward model failed", f"from turn {first} on")
        for number, turn in enumerate(rest.turns):
            expected = "human" if number % 2 == 0 else "agent"
            where = f"turn {first + number}"
            if turn.speaker != expected:
                problem = "agent goes first" if number == 0 else "sides do not alternate"
                return Rejection(parent, problem, f"{where}: {_shown(turn.text)}")
            if not turn.text.strip():
                return Rejection(parent, "empty turn", f"{where}, the {turn.speaker}'s")
            problem = self._problem_with_labels(turn.speaker, first + number, turn.text)
            if problem is not None:
                return Rejection(parent, *problem)
        return None

    def rating(self, parent: Dialogue, rating: float | None) -> Rejection | None:
        if rating is None:
            return Rejection(parent.id, "reward model failed", "it gave no rating")
        if not math.isfinite(rating):
            return Rejection(parent.id, "rating not finite", f"{rating}")
        low, high = self._range
        if not low <= rating <= high:
            return Rejection(
                parent.id, "rating off the scale", f"{rating:g} on {low:g} to {high:g}"
            )
        return None


def _plain(text: str) -> str:
    """Words alone: what is left when case, punctuation and spaces are none."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Agreement of a reward model with known outcomes.

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


def calibrate(dialogues: Sequence[Dialogue], hindsight: Hindsight) -> Calibration:
    """Compares the ratings with the known rewards of original dialogues.

    Args:
        dialogues: Originals; those that nobody rated are passed over.
        hindsight: Its reward model is asked.

    Returns:
        The agreement, over the dialogues that have both.

    Raises:
        HindsightError: Fewer than five dialogues have both, so that nothing can be said.
    """
    known = [dialogue for dialogue in dialogues if dialogue.reward is not None]
    ratings = _answers(hindsight.rate(known), known, "rate")
    pairs = [
        (rating, dialogue.reward)
        for rating, dialogue in zip(ratings, known, strict=True)
        if rating is not None and math.isfinite(rating)
    ]
    if len(pairs) < _FEWEST_RATED:
        raise HindsightError(
            f"of {len(dialogues)} dialogues {len(known)} have a reward and {len(pairs)} of these "
            f"a rating by the reward model; {_FEWEST_RATED} are the least that it can be compared "
            "on. Give it dialogues with known outcomes."
        )
    predicted, actual = np.array(pairs, dtype=np.float64).T
    differs = np.ptp(predicted) > 0 and np.ptp(actual) > 0
    return Calibration(
        spearman=float(scipy.stats.spearmanr(predicted, actual).statistic) if differs else math.nan,
        pearson=float(scipy.stats.pearsonr(predicted, actual).statistic) if differs else math.nan,
        mean_absolute_error=float(np.abs(predicted - actual).mean()),
        bias=float((predicted - actual).mean()),
        count=len(pairs),
    )
