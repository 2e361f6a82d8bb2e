"""Step imagine: a dialogue from a persona, as a script in one call or turn by turn."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from imagination.asking import Correspondence, Dropped, load_prompt
from imagination.dialogue import Turn
from imagination.engine.personas import Persona, Profile
from imagination.llm import Request
from imagination.prompting import without_label
from imagination.task import Task

TYPICAL_UTTERANCE = "This is what somebody might say here in one or two sentences of ordinary size."


@dataclasses.dataclass(frozen=True)
class Plot:
    """What is decided of a dialogue before its first word.

    Attributes:
        index: Its number in the dataset.
        task: The task.
        persona: What is hidden about the human, axis -> value.
        profile: How this human behaves.
        situation: What brings them here this time.
        behaviour: Name of the agent's way of going about it.
        instruction: The same, as told to the agent.
        outcome: The reward a script is written for; None for a rollout.
        max_turns: Agent turns at most.
    """

    index: int
    task: Task
    persona: Persona
    profile: Profile
    situation: str
    behaviour: str
    instruction: str
    outcome: float | None
    max_turns: int

    @property
    def id(self) -> str:
        return f"{self.task.name}-{self.index}"

    @property
    def human_values(self) -> dict[str, Any]:
        """What the templates of those who know the persona need."""
        return {
            "task": self.task,
            "persona": self.persona,
            "profile": self.profile,
            "situation": self.situation,
            "max_turns": self.max_turns,
        }

    @property
    def agent_values(self) -> dict[str, Any]:
        """What the agent's template needs: nothing of the persona."""
        return {"task": self.task, "behaviour": self.instruction}


class ScriptTurn(pydantic.BaseModel):
    speaker: Literal["human", "agent"]
    text: str


class Script(pydantic.BaseModel):
    """A dialogue, or the rest of one, in one go."""

    least: ClassVar[int] = 1  # agent turns
    limit: ClassVar[int] = 0

    turns: list[ScriptTurn]

    @pydantic.model_validator(mode="after")
    def _playable(self) -> Script:
        if not self.turns or self.turns[0].speaker != "human":
            raise ValueError("the dialogue must begin with a turn of the human")
        if any(not turn.text.strip() for turn in self.turns):
            raise ValueError("a turn without text")
        agent_turns = sum(
            turn.speaker == "agent" and before.speaker == "human"
            for before, turn in zip(self.turns, self.turns[1:], strict=False)
        )
        if not self.least <= agent_turns <= self.limit:
            raise ValueError(
                f"{self.least} to {self.limit} turns of the agent are asked for, not {agent_turns}"
            )
        return self

    def dialogue_turns(self, task: Task) -> tuple[Turn, ...]:
        """The turns, a speaker's turns in a row joined. Raises `Dropped` if nothing is said."""
        turns: list[Turn] = []
        for turn in self.turns:
            text = spoken(turn.text, turn.speaker, task, "script")
            if turns and turns[-1].speaker == turn.speaker:
                text = f"{turns.pop().text} {text}"
            turns.append(Turn(turn.speaker, text))
        return tuple(turns)

    @classmethod
    def placeholder(cls) -> Script:
        """An answer of ordinary size, for `plan`."""
        speakers = ["human", "agent"] * max(cls.least, cls.limit - 2) + ["human"]
        return cls(turns=[ScriptTurn(speaker=s, text=TYPICAL_UTTERANCE) for s in speakers])


@functools.cache
def script_schema(limit: int, least: int = 1) -> type[Script]:
    """`Script` with `least` to `limit` agent turns."""
    body = {"least": least, "limit": limit, "__module__": __name__}
    body["__annotations__"] = {"least": ClassVar[int], "limit": ClassVar[int]}
    return type("Script", (Script,), body)


class AgentTurn(pydantic.BaseModel):
    text: str

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> AgentTurn:
        if not self.text.strip():
            raise ValueError("text is empty; say something")
        return self

    @classmethod
    def placeholder(cls) -> AgentTurn:
        return cls(text=TYPICAL_UTTERANCE)


class HumanTurn(pydantic.BaseModel):
    text: str
    ends: bool

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> HumanTurn:
        if not self.text.strip() and not self.ends:
            raise ValueError("text is empty; say something, or set ends to true")
        return self

    @classmethod
    def placeholder(cls) -> HumanTurn:
        # Not ending makes `plan` count conversations to their limit.
        return cls(text=TYPICAL_UTTERANCE, ends=False)


def outcome_words(task: Task, reward: float) -> str:
    """A reward in words, for whoever writes or reads towards it."""
    low, high = task.reward_range
    if reward >= task.success_reward:
        words = f"a success. {task.success}".strip()
    elif reward <= low:
        words = "a failure: the human did not get what they needed, and it shows at the end."
    else:
        words = "between failure and success: some of it was met, something that matters was not."
    return f"rating {reward:g} on a scale from {low:g} to {high:g}, {words}"


def script_request(plot: Plot) -> Request:
    """Asks for the whole dialogue of a plot."""
    values = {
        **plot.human_values,
        "behaviour": plot.instruction,
        "outcome": outcome_words(plot.task, plot.outcome),
    }
    schema = script_schema(plot.max_turns)
    return load_prompt("script").request(
        "imagine", schema, values, resample=plot.index, label=plot.id
    )


async def write_script(letters: Correspondence, plot: Plot) -> tuple[tuple[Turn, ...], str]:
    """A dialogue in one call. Returns its turns and who ended it: the "script"."""
    script = await letters.ask(script_request(plot))
    return script.dialogue_turns(plot.task), "script"


def human_request(plot: Plot, turns: list[Turn]) -> Request:
    """Asks the human, who knows the persona, for the next words."""
    return load_prompt("human").request(
        "imagine human",
        HumanTurn,
        plot.human_values,
        _history(turns, "human"),
        resample=plot.index,
        label=plot.id,
    )


def agent_request(plot: Plot, turns: list[Turn]) -> Request:
    """Asks the agent, who sees what was said and nothing else, for the next words."""
    return load_prompt("agent").request(
        "imagine agent",
        AgentTurn,
        plot.agent_values,
        _history(turns, "agent"),
        resample=plot.index,
        label=plot.id,
    )


async def play_rollout(letters: Correspondence, plot: Plot) -> tuple[tuple[Turn, ...], str]:
    """A dialogue turn by turn. Returns its turns and who ended it: "human" or "limit"."""
    turns: list[Turn] = []
    for turn in range(plot.max_turns + 1):
        said = await letters.ask(human_request(plot, turns))
        if said.text.strip():
            turns.append(Turn("human", spoken(said.text, "human", plot.task, "imagine human")))
        # Somebody who leaves with their first words has had no conversation.
        if said.ends and turn > 0:
            return tuple(turns), "human"
        if not turns:
            raise Dropped("imagine human", "the human ended the conversation without a word")
        if turn < plot.max_turns:
            answer = await letters.ask(agent_request(plot, turns))
            turns.append(Turn("agent", spoken(answer.text, "agent", plot.task, "imagine agent")))
    return tuple(turns), "limit"


def spoken(text: str, speaker: str, task: Task, step: str) -> str:
    """An utterance as it is kept. Raises `Dropped` where only a speaker's name was said."""
    role = {"human": task.human_role, "agent": task.agent_role}[speaker]
    cleaned = without_label(text, role, speaker)
    if not cleaned:
        raise Dropped(step, f"an utterance without words: {text!r}")
    return cleaned


def _history(turns: list[Turn], own: str) -> list[tuple[str, str]]:
    """What was said as messages; one's own turns look like the answers that are asked for."""
    messages = []
    for turn in turns:
        if turn.speaker != own:
            messages.append(("user", turn.text))
            continue
        answer: Mapping[str, Any] = {"text": turn.text}
        if own == "human":
            answer = {**answer, "ends": False}
        messages.append(("assistant", json.dumps(answer, ensure_ascii=False)))
    return messages
