"""The forward model: an LLM infers the two people of a dialogue and plays a branch to its end.

The people are inferred once from the whole dialogue (`infer_people`). In the branches, the human
knows the persona and the words so far, but not how the original went on; the agent knows the words
so far and the behaviour of the original's agent. Neither must know more: the agent that learns from
these dialogues will not know it either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pydantic

from imagination.dialogue import Dialogue, Turn
from imagination.hindsight.regeneration import Branch
from imagination.llm.play import Script, check_one_side, play_rollout, play_script, script_schema
from imagination.llm.requests import Request
from imagination.llm.schemas import (
    Bounded,
    EndableLine,
    Paragraph,
    says_something,
    specialize,
)
from imagination.llm.session import Session
from imagination.prompts import load_prompt
from imagination.task import Task
from imagination.transcript import transcript

PEOPLE = "hindsight/people"
# Prompts by the way in which a branch is played.
REPLAY = {"rollout": ("hindsight/human", "hindsight/agent"), "script": ("hindsight/rest",)}
# Key beside the axes in an inferred persona: the same person in words.
PROFILE = "profile"


class Trait(pydantic.BaseModel):
    axis: str
    value: str


class PeopleAnswer(Bounded):
    """The two people of a dialogue, as its words show them."""

    axes: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()  # (axis, values)

    traits: list[Trait]
    profile: Paragraph
    manner: Paragraph

    @classmethod
    def items(cls) -> dict[str, list[dict[str, Any]]]:
        known = [{"axis": {"const": axis}, "value": {"enum": [*v]}} for axis, v in cls.axes]
        return {"traits": known} if known else {}

    @pydantic.model_validator(mode="after")
    def _complete(self) -> PeopleAnswer:
        for field in ("profile", "manner"):
            if not getattr(self, field).strip():
                raise ValueError(f"{field} is empty")
        self.persona()
        return self

    def persona(self) -> dict[str, str]:
        """The traits as the task names them.

        Raises:
            ValueError: An axis without one of its values, or with two, or one that there is not.
        """
        given = {_folded(trait.axis): trait.value for trait in self.traits}
        problems = ["an axis is named twice"] if len(given) < len(self.traits) else []
        persona = {}
        for axis, values in self.axes:
            value = given.pop(_folded(axis), "")
            named = {_folded(each): each for each in values}.get(_folded(value))
            if named is None:
                problems.append(f"axis {axis!r} must be {' or '.join(values)}, got {value!r}")
            else:
                persona[axis] = named
        problems += [f"there is no axis {axis!r}" for axis in given]
        if problems:
            raise ValueError("; ".join(problems))
        return persona

    @classmethod
    def placeholder(cls) -> PeopleAnswer:
        """An answer of ordinary size, for forecasts."""
        traits = [Trait(axis=axis, value=values[0]) for axis, values in cls.axes]
        profile = "You talk and react like a person who said these words would. " * 6
        return cls(traits=traits, profile=profile, manner="You go about it as you did there. " * 3)


def _folded(text: str) -> str:
    return text.strip().casefold()


@dataclasses.dataclass(frozen=True)
class People:
    """The two people of a dialogue.

    Attributes:
        persona: Hidden traits of the human, axis -> value; empty for a task without axes.
        profile: The human in words, as told to the model that plays it.
        behaviour: The agent's behaviour, as told to the model that plays it.
    """

    persona: Mapping[str, str]
    profile: str
    behaviour: str

    def to_persona(self) -> dict[str, str]:
        """The human as it is kept with a dialogue."""
        return {**self.persona, PROFILE: self.profile}


def people_request(task: Task, dialogue: Dialogue, seed: int) -> Request:
    """Asks for the two people of a dialogue."""
    axes = tuple((axis, tuple(values)) for axis, values in task.persona_axes.items())
    return load_prompt(PEOPLE).request(
        specialize(PeopleAnswer, axes=axes),
        {"task": task, "transcript": transcript(dialogue.turns, task)},
        resample=seed,
        label=dialogue.id,
    )


async def infer_people(session: Session, task: Task, dialogue: Dialogue, seed: int) -> People:
    """Infers the people who are played in the branches of a dialogue.

    The human of a regenerated dialogue stays the person that was inferred from its original: words
    that an LLM played tell less of them. Raises `NoAnswer`.
    """
    answer: PeopleAnswer = await session.ask(people_request(task, dialogue, seed))
    persona, profile = answer.persona(), answer.profile.strip()
    if dialogue.source.get("kind") == "regenerated" and PROFILE in dialogue.persona:
        persona = {k: v for k, v in dialogue.persona.items() if k != PROFILE}
        profile = dialogue.persona[PROFILE]
    return People(persona, profile, answer.manner.strip())


@dataclasses.dataclass(frozen=True)
class Replay:
    """A branch to be played to its end. It asks for its own lines (`llm/play.py`, `Players`).

    Attributes:
        task: The task.
        branch: The beginning.
        people: The two people.
        resample: Tells its requests from those of other replays in the same words.
    """

    task: Task
    branch: Branch
    people: People
    resample: int

    @property
    def max_turns(self) -> int:
        """Agent turns of the whole dialogue at most: the task's, or as many as the original had."""
        return max(self.task.max_turns, len(self.branch.parent.agent_turns))

    def human_request(self, turns: Sequence[Turn], is_last: bool) -> Request:
        """Asks the human, who knows the persona, for the next line."""
        left = 0 if is_last else self._turns_left(turns)
        values = {**self._human_values, "limit": self.max_turns, "turns_left": left}
        return self._request(
            "hindsight/human", EndableLine, turns, values, self._check_line("human")
        )

    def agent_request(self, turns: Sequence[Turn]) -> Request:
        """Asks the agent, who does not, for the next line."""
        values = {"manner": self.people.behaviour, "turns_left": self._turns_left(turns)}
        return self._request(
            "hindsight/agent", EndableLine, turns, values, self._check_line("agent")
        )

    def rest_request(self) -> Request:
        """Asks for all that follows in one call."""

        def check(answer: Script) -> None:
            for turn in answer.turns:
                check_one_side(turn.text, turn.speaker, self.task)

        prefix = self.branch.prefix
        left = self._turns_left(prefix)
        values = {**self._human_values, "manner": self.people.behaviour, "turns_left": left}
        return self._request("hindsight/rest", script_schema(left, least=0), prefix, values, check)

    @property
    def _human_values(self) -> dict[str, Any]:
        return {"persona": self.people.persona, "profile": self.people.profile}

    def _turns_left(self, turns: Sequence[Turn]) -> int:
        return max(0, self.max_turns - sum(turn.speaker == "agent" for turn in turns))

    def _check_line(self, speaker: str) -> Callable[[EndableLine], None]:
        def check(answer: EndableLine) -> None:
            check_one_side(answer.text, speaker, self.task)
            if speaker == "agent":
                says_something(answer)

        return check

    def _request(
        self,
        prompt: str,
        schema: type[pydantic.BaseModel],
        turns: Sequence[Turn],
        values: Mapping[str, Any],
        check: Callable[[Any], None],
    ) -> Request:
        return load_prompt(prompt).request(
            schema,
            {"task": self.task, "transcript": transcript(turns, self.task), **values},
            resample=self.resample,
            label=f"{self.branch.parent.id}, turn {self.branch.proposal.turn + 1}",
            check=check,
        )


async def play_branch(session: Session, replay: Replay, way: str) -> tuple[Turn, ...]:
    """Plays a branch by `way` "script" or "rollout"; returns what follows on its prefix.

    Raises `NoAnswer`.
    """
    prefix = replay.branch.prefix
    if way == "script":
        played = await play_script(session, replay.rest_request(), replay.task, prefix)
    else:
        played = await play_rollout(session, replay, prefix)
    return played.turns[len(prefix) :]
