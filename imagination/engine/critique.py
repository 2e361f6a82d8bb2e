"""Step critique and refine: judged by criteria, rewritten where one fails, judged again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic

from imagination.asking import Correspondence, load_prompt, transcript
from imagination.dialogue import ROLE_OF_SPEAKER, Turn
from imagination.engine.write import Plot, Script, outcome_words, script_schema
from imagination.llm import Request
from imagination.task import Task

GRADUAL = "persona revealed gradually"
CLOSING = "closing feeling fits the reward"

# The two criteria of the paper (arXiv 2311.05584), in words for whoever judges.
BUILT_IN = {
    GRADUAL: (
        "The human's hidden traits come out gradually, over several turns, in what the human "
        "says and how they react. They are never recited, and not all told in one turn."
    ),
    CLOSING: (
        "The human's feeling at the end of the dialogue fits the outcome: pleased, disappointed "
        "or annoyed as its rating says, because of what was said before."
    ),
}


class Verdict(pydantic.BaseModel):
    number: int
    reason: str
    fulfilled: bool


class Verdicts(pydantic.BaseModel):
    """One verdict for each criterion."""

    count: ClassVar[int] = 1

    verdicts: list[Verdict]

    @pydantic.model_validator(mode="after")
    def _one_of_each(self) -> Verdicts:
        numbers = sorted(verdict.number for verdict in self.verdicts)
        if numbers != list(range(1, self.count + 1)):
            raise ValueError(f"verdicts on criteria 1 to {self.count} are asked for, got {numbers}")
        return self

    @classmethod
    def placeholder(cls) -> Verdicts:
        """An answer of ordinary size, for `plan`."""
        reason = "The words in the middle of the dialogue show it clearly enough."
        return cls(
            verdicts=[
                Verdict(number=i, reason=reason, fulfilled=True) for i in range(1, cls.count + 1)
            ]
        )

    def failing(self) -> Verdicts:
        """The same with every criterion failed."""
        failed = [v.model_copy(update={"fulfilled": False}) for v in self.verdicts]
        return self.model_copy(update={"verdicts": failed})


@functools.cache
def _schema(count: int) -> type[Verdicts]:
    body = {"count": count, "__annotations__": {"count": ClassVar[int]}, "__module__": __name__}
    return type("Verdicts", (Verdicts,), body)


@dataclasses.dataclass(frozen=True)
class Critique:
    """What became of a dialogue.

    Attributes:
        turns: The dialogue as it stands.
        original: The turns before the first rewriting; None where nothing was rewritten.
        verdicts: For each judging, a record of every criterion, verdict and reason.
        changed: For each rewriting, the names of the criteria that called for it.
        reward: What the ending had to fit; None where nothing was judged.
    """

    turns: tuple[Turn, ...]
    original: tuple[Turn, ...] | None = None
    verdicts: tuple[tuple[dict[str, Any], ...], ...] = ()
    changed: tuple[tuple[str, ...], ...] = ()
    reward: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a dialogue's source."""
        original = [
            {"role": ROLE_OF_SPEAKER[turn.speaker], "content": turn.text}
            for turn in self.original or ()
        ]
        passed = all(v["fulfilled"] for v in self.verdicts[-1]) if self.verdicts else None
        return {
            "rounds": len(self.changed),
            "passed": passed,
            "reward": self.reward,
            "verdicts": [list(judging) for judging in self.verdicts],
            "changed": [list(names) for names in self.changed],
            "original": original,
        }


def criteria_of(task: Task) -> dict[str, str]:
    """Name of each criterion -> its words. A task's own are their own names."""
    return {**BUILT_IN, **{text: text for text in task.criteria}}


def critique_request(plot: Plot, turns: Sequence[Turn], reward: float) -> Request:
    """Asks for a verdict on each criterion."""
    task = plot.task
    low, high = task.reward_range
    criteria = criteria_of(task)
    values = {
        "task": task,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "criteria": list(criteria.values()),
        "persona": plot.persona,
        "outcome": outcome_words(task, reward),
        "transcript": transcript(turns, task.agent_role, task.human_role),
    }
    schema = _schema(len(criteria))
    return load_prompt("critique").request("critique", schema, values, label=plot.id)


def refine_request(
    plot: Plot, turns: Sequence[Turn], reward: float, failed: Sequence[dict[str, Any]]
) -> Request:
    """Asks for the dialogue rewritten where it failed."""
    task, wording = plot.task, criteria_of(plot.task)
    values = {
        **plot.human_values,
        "behaviour": plot.instruction,
        "outcome": outcome_words(task, reward),
        "transcript": transcript(turns, task.agent_role, task.human_role),
        "failed": [{**verdict, "criterion": wording[verdict["criterion"]]} for verdict in failed],
    }
    schema = script_schema(plot.max_turns)
    return load_prompt("refine").request(
        "refine", schema, values, resample=plot.index, label=plot.id
    )


async def critique_and_refine(
    letters: Correspondence, plot: Plot, turns: tuple[Turn, ...], reward: float, rounds: int
) -> Critique:
    """Judges a dialogue and rewrites it, at most `rounds` times, until no criterion fails.

    Args:
        letters: Where to ask.
        plot: What was decided of the dialogue beforehand.
        turns: The dialogue.
        reward: What its ending has to fit.
        rounds: Rewritings at most.
    """
    original, changed = turns, []
    verdicts = [await _judge(letters, plot, turns, reward)]
    while len(changed) < rounds:
        failed = [verdict for verdict in verdicts[-1] if not verdict["fulfilled"]]
        if not failed:
            break
        script: Script = await letters.ask(refine_request(plot, turns, reward, failed))
        turns = script.dialogue_turns(plot.task)
        changed.append(tuple(verdict["criterion"] for verdict in failed))
        verdicts.append(await _judge(letters, plot, turns, reward))
    return Critique(turns, original if changed else None, tuple(verdicts), tuple(changed), reward)


async def _judge(
    letters: Correspondence, plot: Plot, turns: Sequence[Turn], reward: float
) -> tuple[dict[str, Any], ...]:
    answer: Verdicts = await letters.ask(critique_request(plot, turns, reward))
    names = list(criteria_of(plot.task))
    return tuple(
        {
            "criterion": names[verdict.number - 1],
            "fulfilled": verdict.fulfilled,
            "reason": verdict.reason,
        }
        for verdict in sorted(answer.verdicts, key=lambda verdict: verdict.number)
    )
