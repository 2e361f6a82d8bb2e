"""The forward model: who the two people of a dialogue are, and what they say from a branch on.

Who they are is read once from the whole dialogue (`read`). The human is then played by somebody
who knows the persona and the words so far, and not how the original went on; the agent by somebody
who knows the words so far and in what manner the original's agent goes about it. More must not be
known to either: the agent that learns from these dialogues will not know it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pydantic

from imagination.asking import Correspondence, transcript
from imagination.dialogue import Dialogue, Turn
from imagination.engine.write import AgentTurn, HumanTurn, Script, script_schema, spoken
from imagination.hindsight.prompted.prompts import check_words, load_prompt
from imagination.hindsight.regeneration import Branch
from imagination.llm import Request
from imagination.task import Task

# Stands beside the axes in a persona that was read: the same person in words.
PROFILE = "profile"


class Trait(pydantic.BaseModel):
    axis: str
    value: str


class Reading(pydantic.BaseModel):
    """What a dialogue tells of the two people in it."""

    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    traits: list[Trait]
    profile: str
    manner: str

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Reading:
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
        for axis, values in self.axes.items():
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
    def placeholder(cls) -> Reading:
        """An answer of ordinary size, for `plan`."""
        traits = [Trait(axis=axis, value=values[0]) for axis, values in cls.axes.items()]
        profile = "You talk and react like a person who said these words would. " * 6
        return cls(traits=traits, profile=profile, manner="You go about it as you did there. " * 3)


def _folded(text: str) -> str:
    return text.strip().casefold()


@functools.cache
def _schema(axes: tuple[tuple[str, tuple[str, ...]], ...]) -> type[Reading]:
    body = {"axes": dict(axes), "__module__": __name__}
    body["__annotations__"] = {"axes": ClassVar[Mapping[str, tuple[str, ...]]]}
    return type("Reading", (Reading,), body)


@dataclasses.dataclass(frozen=True)
class Cast:
    """Who is played.

    Attributes:
        persona: Of the human, axis -> value; empty for a task without axes.
        profile: The human in words, as told to whoever plays it.
        manner: How the agent goes about it, likewise.
    """

    persona: Mapping[str, str]
    profile: str
    manner: str

    def to_persona(self) -> dict[str, str]:
        """The human as it is kept with a dialogue."""
        return {**self.persona, PROFILE: self.profile}


def read_request(task: Task, dialogue: Dialogue, seed: int) -> Request:
    """Asks who the two people of a dialogue are."""
    values = {"task": task, "transcript": _transcript(task, dialogue.turns)}
    axes = tuple((axis, tuple(known)) for axis, known in task.persona_axes.items())
    return load_prompt("read").request(
        "hindsight read", _schema(axes), values, resample=seed, label=dialogue.id
    )


async def read(letters: Correspondence, task: Task, dialogue: Dialogue, seed: int) -> Cast:
    """Who is played in the branches of a dialogue.

    The human of a regenerated dialogue stays the person that was read from its original: what an
    LLM played tells less of them. Raises `Dropped`.
    """
    reading: Reading = await letters.ask(read_request(task, dialogue, seed))
    persona, profile = reading.persona(), reading.profile.strip()
    if dialogue.source.get("kind") == "regenerated" and PROFILE in dialogue.persona:
        persona = {k: v for k, v in dialogue.persona.items() if k != PROFILE}
        profile = dialogue.persona[PROFILE]
    return Cast(persona, profile, reading.manner.strip())


@dataclasses.dataclass(frozen=True)
class Scene:
    """A branch that is to be played to its end.

    Attributes:
        task: The task.
        branch: Its beginning.
        cast: Who plays on.
        resample: Tells its requests from those of other scenes in the same words.
    """

    task: Task
    branch: Branch
    cast: Cast
    resample: int

    @property
    def limit(self) -> int:
        """Agent turns of the whole dialogue at most: the task's, or as many as the original had."""
        return max(self.task.max_turns, len(self.branch.parent.agent_turns))

    def turns_left(self, turns: Sequence[Turn] = ()) -> int:
        """Agent turns that may follow on the prefix and these turns."""
        said = (*self.branch.prefix, *turns)
        return self.limit - sum(turn.speaker == "agent" for turn in said)

    def human_request(self, turns: Sequence[Turn]) -> Request:
        """Asks the human, who knows who they are, for the next words."""
        known = {**self._human_values, "limit": self.limit}
        return self._request("human", HumanTurn, turns, known, self._check_turn("human"))

    def agent_request(self, turns: Sequence[Turn]) -> Request:
        """Asks the agent, who does not, for the next words."""
        known = {"manner": self.cast.manner}
        return self._request("agent", AgentTurn, turns, known, self._check_turn("agent"))

    def rest_request(self) -> Request:
        """Asks for all that follows in one go."""

        def check(answer: Script) -> None:
            for turn in answer.turns:
                check_words(turn.text, turn.speaker, self.task)

        left = max(0, self.turns_left())
        known = {**self._human_values, "manner": self.cast.manner, "turns_left": left}
        return self._request("rest", script_schema(left, least=0), (), known, check)

    @property
    def _human_values(self) -> dict[str, Any]:
        return {"persona": self.cast.persona, "profile": self.cast.profile}

    def _check_turn(self, speaker: str) -> Callable[[HumanTurn | AgentTurn], None]:
        return lambda answer: check_words(answer.text, speaker, self.task)

    def _request(
        self,
        name: str,
        schema: type[pydantic.BaseModel],
        turns: Sequence[Turn],
        known: Mapping[str, Any],
        check: Callable[[Any], None],
    ) -> Request:
        said = _transcript(self.task, (*self.branch.prefix, *turns))
        return load_prompt(name).request(
            f"hindsight {name}",
            schema,
            {"task": self.task, "transcript": said, **known},
            resample=self.resample,
            label=f"{self.branch.parent.id}, turn {self.branch.proposal.turn + 1}",
            check=check,
        )


async def play_rollout(letters: Correspondence, scene: Scene) -> tuple[Turn, ...]:
    """What follows on a branch, turn by turn. Raises `Dropped`."""
    turns: list[Turn] = []
    while True:
        said: HumanTurn = await letters.ask(scene.human_request(turns))
        if said.text.strip():
            turns.append(Turn("human", spoken(said.text, "human", scene.task, "hindsight human")))
        if said.ends or scene.turns_left(turns) <= 0:
            return tuple(turns)
        answer: AgentTurn = await letters.ask(scene.agent_request(turns))
        turns.append(Turn("agent", spoken(answer.text, "agent", scene.task, "hindsight agent")))


async def write_rest(letters: Correspondence, scene: Scene) -> tuple[Turn, ...]:
    """What follows on a branch, in one call. Raises `Dropped`."""
    rest: Script = await letters.ask(scene.rest_request())
    return rest.dialogue_turns(scene.task)


def _transcript(task: Task, turns: Sequence[Turn]) -> str:
    return transcript(turns, task.agent_role, task.human_role)
