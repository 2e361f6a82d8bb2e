"""The controller: an LLM finds bad turns of the agent in a finished dialogue and rewords them."""

from __future__ import annotations

import functools
import re
from typing import Any, ClassVar

import pydantic

from imagination.dialogue import Dialogue
from imagination.hindsight.regeneration import Proposal
from imagination.llm.play import all_names
from imagination.llm.requests import Request
from imagination.llm.schemas import Bounded, Sentence, Utterance, specialize
from imagination.prompts import load_prompt
from imagination.task import Task
from imagination.transcript import leading_name, transcript

PROMPT = "hindsight/propose"


class Change(pydantic.BaseModel):
    turn: int  # from 1, as in the transcript
    reason: Sentence
    utterance: Utterance


class Changes(Bounded):
    """The answer to one call."""

    most: ClassVar[int] = 1

    changes: list[Change]

    @classmethod
    def bounds(cls) -> dict[str, dict[str, Any]]:
        return {"changes": {"maxItems": cls.most}}

    @pydantic.model_validator(mode="after")
    def _the_first(self) -> Changes:
        self.changes = self.changes[: self.most]
        return self

    @classmethod
    def placeholder(cls) -> Changes:
        """An answer of ordinary size, for forecasts."""
        utterance = "This is what could have been said here instead, in a sentence or two."
        reason = "What the human says right afterwards shows that this was not what they needed."
        numbers = range(1, cls.most + 1)
        return cls(changes=[Change(turn=n, reason=reason, utterance=utterance) for n in numbers])


def propose_request(task: Task, dialogue: Dialogue, most: int, seed: int) -> Request:
    """Asks for changes of a dialogue, which is shown with its rating, where it has one."""
    low, high = task.reward_range
    values = {
        "task": task,
        "most": most,
        "transcript": transcript(dialogue.turns, task, "numbered"),
        "rating": None if dialogue.reward is None else f"{dialogue.reward:g}",
        "low": f"{low:g}",
        "high": f"{high:g}",
    }
    return load_prompt(PROMPT).request(
        specialize(Changes, most=most),
        values,
        resample=seed,
        label=dialogue.id,
        check=functools.partial(_check, task, dialogue),
    )


def usable_proposals(task: Task, dialogue: Dialogue, answer: Changes) -> list[Proposal]:
    """The changes that can be, with turns as indexes from 0; of several for a turn the first."""
    usable: dict[int, Proposal] = {}
    for each in answer.changes:
        if not _problem(task, dialogue, each):
            proposal = Proposal(each.turn - 1, each.utterance.strip(), each.reason.strip())
            usable.setdefault(each.turn, proposal)
    return list(usable.values())


def _check(task: Task, dialogue: Dialogue, answer: Changes) -> None:
    """Raises `ValueError` with all that is wrong where no change is of use: a good one is kept."""
    problems = [p for change in answer.changes if (p := _problem(task, dialogue, change))]
    if problems and not usable_proposals(task, dialogue, answer):
        raise ValueError("; ".join(problems))


def _problem(task: Task, dialogue: Dialogue, change: Change) -> str:
    turns, number = dialogue.turns, change.turn
    if not 1 <= number <= len(turns):
        return f"there is no turn {number}; they go from 1 to {len(turns)}"
    if turns[number - 1].speaker != "agent":
        return f"turn {number} is the {task.human_role}'s; name turns of the {task.agent_role}"
    if not change.utterance.strip():
        return f"the utterance for turn {number} is empty"
    if _words(change.utterance) == _words(turns[number - 1].text):
        return f"the utterance for turn {number} is what was said there"
    if name := leading_name(change.utterance, all_names(task)):
        return f"a line or sentence of the utterance for turn {number} begins with {name + ':'!r}"
    return ""


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
