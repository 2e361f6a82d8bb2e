"""The controller: at which turns of a finished dialogue what should have been said instead."""

from __future__ import annotations

import functools
import re
from typing import ClassVar

import pydantic

from imagination.dialogue import Dialogue
from imagination.hindsight.prompted.prompts import label_in, load_prompt
from imagination.hindsight.regeneration import Proposal
from imagination.llm import Request
from imagination.task import Task


class Change(pydantic.BaseModel):
    turn: int  # from 1 on, as the model sees them
    reason: str
    utterance: str


class Changes(pydantic.BaseModel):
    """The answer to one call."""

    most: ClassVar[int] = 1

    changes: list[Change]

    @pydantic.model_validator(mode="after")
    def _not_too_many(self) -> Changes:
        if len(self.changes) > self.most:
            raise ValueError(f"at most {self.most} are asked for, got {len(self.changes)}")
        return self

    @classmethod
    def placeholder(cls) -> Changes:
        """An answer of ordinary size, for `plan`."""
        utterance = "This is what could have been said here instead, in a sentence or two."
        reason = "What the human says right afterwards shows that this was not what they needed."
        numbers = range(1, cls.most + 1)
        return cls(changes=[Change(turn=n, reason=reason, utterance=utterance) for n in numbers])

    def proposals(self) -> list[Proposal]:
        """The same with turns as indexes."""
        return [
            Proposal(each.turn - 1, each.utterance.strip(), each.reason.strip())
            for each in self.changes
        ]


@functools.cache
def _schema(most: int) -> type[Changes]:
    body = {"most": most, "__annotations__": {"most": ClassVar[int]}, "__module__": __name__}
    return type("Changes", (Changes,), body)


def propose_request(task: Task, dialogue: Dialogue, most: int, seed: int) -> Request:
    """Asks where a dialogue went wrong. It is shown with its rating, where it has one."""
    low, high = task.reward_range
    values = {
        "task": task,
        "most": most,
        "transcript": _numbered(task, dialogue),
        "rating": None if dialogue.reward is None else f"{dialogue.reward:g}",
        "low": f"{low:g}",
        "high": f"{high:g}",
    }
    return load_prompt("propose").request(
        "hindsight propose",
        _schema(most),
        values,
        resample=seed,
        label=dialogue.id,
        check=functools.partial(_check, task, dialogue),
    )


def _numbered(task: Task, dialogue: Dialogue) -> str:
    """The dialogue, one turn a line, with its number."""
    role = {"agent": task.agent_role, "human": task.human_role}
    return "\n".join(
        f"{number}. {role[turn.speaker]}: {' '.join(turn.text.split())}"
        for number, turn in enumerate(dialogue.turns, start=1)
    )


def _check(task: Task, dialogue: Dialogue, answer: Changes) -> None:
    """Raises `ValueError` with all that is wrong with the changes."""
    problems = [p for change in answer.changes if (p := _problem(task, dialogue, change))]
    numbers = [change.turn for change in answer.changes]
    if len(set(numbers)) < len(numbers):
        problems.append("a turn is named twice")
    if problems:
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
    if label := label_in(change.utterance, task):
        return f"a line of the utterance for turn {number} begins with {label + ':'!r}"
    return ""


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
