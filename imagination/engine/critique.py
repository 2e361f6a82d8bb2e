"""Step critique: a dialogue is checked by criteria and rewritten where one fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic

from imagination.criteria import BUILT_IN
from imagination.dialogue import ROLE_OF_SPEAKER, Dialogue, Turn
from imagination.engine.write import DialogueSpec, outcome_in_words
from imagination.flaws import EXAMPLES, LANGUAGE, WISHES, flaws
from imagination.llm.play import play_script, script_schema
from imagination.llm.requests import Request
from imagination.llm.schemas import (
    Bounded,
    Sentence,
    first_of_each,
    numbers_known,
    specialize,
)
from imagination.llm.session import Session
from imagination.prompts import load_prompt
from imagination.task import Task
from imagination.transcript import transcript

REFINE = "engine/refine"


class Verdict(pydantic.BaseModel):
    number: int
    reason: Sentence
    fulfilled: bool


class Verdicts(Bounded):
    """One verdict for each criterion."""

    count: ClassVar[int] = 1

    verdicts: list[Verdict]

    @classmethod
    def items(cls) -> dict[str, list[dict[str, Any]]]:
        return {"verdicts": numbers_known(cls.count)}

    @pydantic.model_validator(mode="after")
    def _one_of_each(self) -> Verdicts:
        self.verdicts = first_of_each(self.verdicts, self.count, "verdicts on criteria")
        return self

    @classmethod
    def placeholder(cls) -> Verdicts:
        """An answer of ordinary size, for forecasts."""
        reason = "The words in the middle of the dialogue show it clearly enough."
        return cls(
            verdicts=[
                Verdict(number=i, reason=reason, fulfilled=True) for i in range(1, cls.count + 1)
            ]
        )

    def failing(self) -> Verdicts:
        """The same with every criterion failed, for forecasts of the most that can be asked."""
        failed = [v.model_copy(update={"fulfilled": False}) for v in self.verdicts]
        return self.model_copy(update={"verdicts": failed})


@dataclasses.dataclass(frozen=True)
class Critique:
    """Result of the critique of one dialogue.

    Attributes:
        turns: The dialogue as it stands.
        original: The turns before the first rewriting; None where nothing was rewritten.
        verdicts: For each check, a record of every criterion, verdict and reason.
        changed: For each rewriting, the names of the criteria and flaws that called for it.
        reward: Rating that the ending had to fit; None where nothing was checked.
    """

    turns: tuple[Turn, ...]
    original: tuple[Turn, ...] | None = None
    verdicts: tuple[tuple[dict[str, Any], ...], ...] = ()
    changed: tuple[tuple[str, ...], ...] = ()
    reward: float | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the criteria that the dialogue as it stands does not fulfil."""
        verdicts = self.verdicts[-1] if self.verdicts else ()
        return tuple(v["criterion"] for v in verdicts if not v["fulfilled"])

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a dialogue's source."""
        original = [
            {"role": ROLE_OF_SPEAKER[turn.speaker], "content": turn.text}
            for turn in self.original or ()
        ]
        passed = not self.failed if self.verdicts else None
        return {
            "rounds": len(self.changed),
            "passed": passed,
            "reward": self.reward,
            "verdicts": [list(check) for check in self.verdicts],
            "changed": [list(names) for names in self.changed],
            "original": original,
        }


def criteria_of(task: Task) -> dict[str, str]:
    """Name of each criterion -> its words. A task's own are their own names."""
    return {**BUILT_IN, **{text: text for text in task.criteria}}


def critique_request(spec: DialogueSpec, turns: Sequence[Turn], reward: float) -> Request:
    """Asks for a verdict on each criterion."""
    task = spec.task
    low, high = task.reward_range
    criteria = criteria_of(task)
    values = {
        "task": task,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "criteria": list(criteria.values()),
        "persona": spec.persona,
        "outcome": outcome_in_words(task, reward),
        "transcript": transcript(turns, task),
    }
    schema = specialize(Verdicts, count=len(criteria))
    return load_prompt("engine/critique").request(schema, values, label=spec.id)


def refine_request(
    spec: DialogueSpec, turns: Sequence[Turn], reward: float, failed: Sequence[dict[str, Any]]
) -> Request:
    """Asks for the dialogue rewritten where it failed."""
    task, wording = spec.task, criteria_of(spec.task) | WISHES
    values = {
        **spec.human_values,
        "behaviour": spec.instruction,
        "outcome": outcome_in_words(task, reward),
        "transcript": transcript(turns, task),
        "failed": [{**verdict, "criterion": wording[verdict["criterion"]]} for verdict in failed],
    }
    return load_prompt(REFINE).request(
        script_schema(spec.max_turns), values, resample=spec.index, label=spec.id
    )


async def critique_and_refine(
    session: Session,
    spec: DialogueSpec,
    turns: tuple[Turn, ...],
    reward: float,
    rounds: int,
    mends_flaws: bool = False,
) -> Critique:
    """Checks a dialogue and rewrites it, at most `rounds` times, until no criterion fails.

    Args:
        session: Session that asks.
        spec: The dialogue's specification.
        turns: The dialogue.
        reward: Rating that its ending has to fit.
        rounds: Rewritings at most.
        mends_flaws: Flaws of the words call for a rewriting, too.

    Raises:
        NoAnswer: A verdict or a rewriting could not be had.
    """
    original, changed = turns, []
    verdicts = [await _verdicts(session, spec, turns, reward)]
    while len(changed) < rounds:
        failed = [verdict for verdict in verdicts[-1] if not verdict["fulfilled"]]
        failed += _flaw_verdicts(spec, turns) if mends_flaws else []
        if not failed:
            break
        request = refine_request(spec, turns, reward, failed)
        turns = (await play_script(session, request, spec.task)).turns
        changed.append(tuple(verdict["criterion"] for verdict in failed))
        verdicts.append(await _verdicts(session, spec, turns, reward))
    return Critique(turns, original if changed else None, tuple(verdicts), tuple(changed), reward)


def flaws_of(spec: DialogueSpec, turns: tuple[Turn, ...]) -> dict[str, str]:
    """Flaws of the words of a dialogue -> what shows them (see `imagination/flaws.py`)."""
    source = {field: spec.speech[field] for field in (LANGUAGE, EXAMPLES)}
    dialogue = Dialogue(spec.id, spec.task.name, turns, persona=spec.persona, source=source)
    return flaws(dialogue, spec.task)


def _flaw_verdicts(spec: DialogueSpec, turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """The flaws as verdicts, for whoever rewrites."""
    return [
        {"criterion": flaw, "fulfilled": False, "reason": f"{flaw}: {words!r}"}
        for flaw, words in flaws_of(spec, turns).items()
    ]


async def _verdicts(
    session: Session, spec: DialogueSpec, turns: Sequence[Turn], reward: float
) -> tuple[dict[str, Any], ...]:
    answer: Verdicts = await session.ask(critique_request(spec, turns, reward))
    names = list(criteria_of(spec.task))
    return tuple(
        {
            "criterion": names[verdict.number - 1],
            "fulfilled": verdict.fulfilled,
            "reason": verdict.reason,
        }
        for verdict in sorted(answer.verdicts, key=lambda verdict: verdict.number)
    )
