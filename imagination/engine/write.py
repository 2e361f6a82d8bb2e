"""Step write: the dialogue of a `DialogueSpec`, as a script in one call or turn by turn."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imagination.dialogue import Turn
from imagination.engine.personas import Persona, Profile
from imagination.llm.play import Played, play_rollout, play_script, script_schema
from imagination.llm.requests import Request
from imagination.llm.schemas import EndableLine, says_something
from imagination.llm.session import Session
from imagination.prompts import load_prompt, read_versioned
from imagination.task import Task

BEHAVIOURS = "engine/behaviours"


@functools.cache
def load_behaviours() -> dict[str, str]:
    """Behaviours of imagined agents, all of them non-experts: name -> instruction."""
    _, body = read_versioned(BEHAVIOURS)
    parts = re.split(r"^## (.+)\n", body, flags=re.MULTILINE)
    return {n.strip(): t.strip() for n, t in zip(parts[1::2], parts[2::2], strict=True)}


@functools.cache
def behaviours_version() -> str:
    """Version of the file that `load_behaviours` reads."""
    return read_versioned(BEHAVIOURS)[0]


@dataclasses.dataclass(frozen=True)
class DialogueSpec:
    """A dialogue before its first word. It asks for its own lines (see `llm/play.py`, `Players`).

    Attributes:
        index: Its number in the dataset.
        task: The task.
        persona: Hidden traits of the human, axis -> value.
        profile: Behaviour of this human.
        situation: Occasion of this conversation.
        behaviour: Name of the agent's behaviour.
        outcome: The reward that a script is written for; None for a rollout.
        max_turns: Agent turns at most.
        speech: Manner of speaking of both sides (see `EngineConfig.speech`).
        details: Further details of the human (see `details.py`).
    """

    index: int
    task: Task
    persona: Persona
    profile: Profile
    situation: str
    behaviour: str
    outcome: float | None
    max_turns: int
    speech: Mapping[str, Any]
    details: Mapping[str, str]

    @property
    def id(self) -> str:
        return f"{self.task.name}-{self.index}"

    @property
    def instruction(self) -> str:
        """The behaviour, as told to the agent."""
        return load_behaviours()[self.behaviour]

    @property
    def human_values(self) -> dict[str, Any]:
        """Values of the templates for those who know the persona."""
        return {
            "task": self.task,
            "persona": self.persona,
            "profile": self.profile,
            "situation": self.situation,
            "max_turns": self.max_turns,
            "speech": self.speech,
            "details": self.details,
        }

    def human_request(self, turns: Sequence[Turn], is_last: bool) -> Request:
        """Asks the human, who knows the persona, for the next line."""
        return load_prompt("engine/human").request(
            EndableLine,
            {**self.human_values, "turns_left": 0 if is_last else self._turns_left(turns)},
            _as_messages(turns, "human"),
            resample=self.index,
            label=self.id,
        )

    def agent_request(self, turns: Sequence[Turn]) -> Request:
        """Asks the agent, who knows the conversation alone, for the next line."""
        return load_prompt("engine/agent").request(
            EndableLine,
            {
                "task": self.task,
                "behaviour": self.instruction,
                "speech": self.speech,
                "turns_left": self._turns_left(turns),
            },
            _as_messages(turns, "agent"),
            resample=self.index,
            label=self.id,
            check=says_something,
        )

    def _turns_left(self, turns: Sequence[Turn]) -> int:
        return self.max_turns - sum(turn.speaker == "agent" for turn in turns)

    def script_request(self) -> Request:
        """Asks for the whole dialogue."""
        values = {
            **self.human_values,
            "behaviour": self.instruction,
            "outcome": outcome_in_words(self.task, self.outcome),
        }
        return load_prompt("engine/script").request(
            script_schema(self.max_turns), values, resample=self.index, label=self.id
        )


async def write_dialogue(session: Session, spec: DialogueSpec, way: str) -> Played:
    """Has the dialogue written, by `way` "script" or "rollout". Raises `NoAnswer`."""
    if way == "script":
        return await play_script(session, spec.script_request(), spec.task)
    return await play_rollout(session, spec)


def outcome_in_words(task: Task, reward: float) -> str:
    """A reward in words, for whoever writes or reads towards it."""
    low, high = task.reward_range
    if reward >= task.success_reward:
        words = f"a success. {task.success}".strip()
    elif reward <= low:
        words = "a failure: the human did not get what they needed, and it shows at the end."
    else:
        words = "between failure and success: some of it was met, something that matters was not."
    unit = f" ({task.reward_unit})" if task.reward_unit else ""
    return f"rating {reward:g} on a scale from {low:g} to {high:g}{unit}, {words}"


def _as_messages(turns: Sequence[Turn], own: str) -> list[tuple[str, str]]:
    """The conversation as messages; one's own turns look like the answers that are asked for."""
    messages = []
    for turn in turns:
        if turn.speaker != own:
            messages.append(("user", turn.text))
            continue
        answer = {"text": turn.text, "ends": False}
        messages.append(("assistant", json.dumps(answer, ensure_ascii=False)))
    return messages
