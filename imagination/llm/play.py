"""Dialogues played by an LLM: turn by turn as agent and human, or as a script in one call."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import pydantic

from imagination.dialogue import Turn
from imagination.llm.requests import Request
from imagination.llm.schemas import (
    TYPICAL_UTTERANCE,
    Bounded,
    EndableLine,
    Utterance,
    has_words,
    specialize,
)
from imagination.llm.session import NoAnswer, Session
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name, role_of, strip_name

WAYS = ("script", "rollout")


class Players(Protocol):
    """Asks for the lines of one dialogue.

    Attributes:
        task: Gives the roles.
        max_turns: Agent turns of the whole dialogue at most.
    """

    task: Task
    max_turns: int

    def human_request(self, turns: Sequence[Turn], is_last: bool) -> Request:
        """Asks for the human's next line, an `EndableLine`; nothing follows on the last one."""
        ...

    def agent_request(self, turns: Sequence[Turn]) -> Request:
        """Asks for the agent's next line, an `EndableLine` with words."""
        ...


@dataclasses.dataclass(frozen=True)
class Played:
    """A finished dialogue: all turns, the prefix included, and who ended it.

    `ended_by` is "human", "agent", "limit" (of agent turns) or "script".
    """

    turns: tuple[Turn, ...]
    ended_by: str


async def play_rollout(session: Session, players: Players, prefix: Sequence[Turn] = ()) -> Played:
    """Plays a dialogue turn by turn; the human goes first and has the last word.

    A human who wants to leave before the agent said anything stays: that would be no conversation.

    Args:
        session: Session that asks.
        players: The two sides.
        prefix: Turns that were said already; the last one is the agent's.

    Raises:
        NoAnswer: A line that could not be had, or a human who leaves without any word.
    """
    turns = list(prefix)
    agent_ends = False
    while True:
        agent_turns = sum(turn.speaker == "agent" for turn in turns)
        is_last = agent_ends or agent_turns >= players.max_turns
        request = players.human_request(turns, is_last)
        line: EndableLine = await session.ask(request)
        if has_words(line.text):
            turns.append(_turn("human", line.text, players.task, request.step))
        if agent_ends:
            return Played(tuple(turns), "agent")
        if line.ends and agent_turns:
            return Played(tuple(turns), "human")
        if not turns:
            raise NoAnswer(request.step, "the human ended the conversation without a word")
        if is_last:
            return Played(tuple(turns), "limit")
        request = players.agent_request(turns)
        answer: EndableLine = await session.ask(request)
        turns.append(_turn("agent", answer.text, players.task, request.step))
        agent_ends = answer.ends


# Agent turns up to which a script's schema has each order of speakers that there can be.
MOST_SPELLED_OUT = 10
_SPEAKERS = ("human", "agent")


class ScriptTurn(pydantic.BaseModel):
    speaker: Literal["human", "agent"]
    text: Utterance


class Script(Bounded):
    """A dialogue, or the rest of one, in one go; what goes beyond `most` is left out."""

    least: ClassVar[int] = 1  # agent turns
    most: ClassVar[int] = 0

    turns: list[ScriptTurn]

    @classmethod
    def bounds(cls) -> dict[str, dict[str, Any]]:
        bounds: dict[str, Any] = {"minItems": max(1, 2 * cls.least), "maxItems": 2 * cls.most + 1}
        if cls.most <= MOST_SPELLED_OUT:
            lengths = range(bounds["minItems"], bounds["maxItems"] + 1)
            bounds["oneOf"] = [_in_turn(length) for length in lengths]
        return {"turns": bounds}

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        schema = super().model_json_schema(*args, **kwargs)
        turn = schema["$defs"]["ScriptTurn"]
        for speaker in _SPEAKERS:
            properties = {**turn["properties"], "speaker": {"const": speaker}}
            schema["$defs"][speaker] = {**turn, "properties": properties}
        return schema

    @pydantic.model_validator(mode="after")
    def _playable(self) -> Script:
        if not self.turns or self.turns[0].speaker != "human":
            raise ValueError("the dialogue must begin with a turn of the human")
        if any(not has_words(turn.text) for turn in self.turns):
            raise ValueError("a turn without words")
        agent_turns = 0
        for place, (before, turn) in enumerate(itertools.pairwise(self.turns), start=1):
            agent_turns += turn.speaker == "agent" and before.speaker == "human"
            if agent_turns > self.most:
                self.turns, agent_turns = self.turns[:place], self.most
                break
        if agent_turns < self.least:
            raise ValueError(
                f"{self.least} to {self.most} turns of the agent are asked for, not {agent_turns}"
            )
        return self

    def dialogue_turns(self, task: Task, step: str) -> tuple[Turn, ...]:
        """Joins turns of one speaker in a row. Raises `NoAnswer` for a turn without words."""
        turns: list[Turn] = []
        for line in self.turns:
            turn = _turn(line.speaker, line.text, task, step)
            if turns and turns[-1].speaker == turn.speaker:
                turn = Turn(turn.speaker, f"{turns.pop().text} {turn.text}")
            turns.append(turn)
        return tuple(turns)

    @classmethod
    def placeholder(cls) -> Script:
        speakers = ["human", "agent"] * max(cls.least, cls.most - 2) + ["human"]
        return cls(turns=[ScriptTurn(speaker=s, text=TYPICAL_UTTERANCE) for s in speakers])


def _in_turn(length: int) -> dict[str, Any]:
    """JSON schema of so many turns, of the human and the agent in turn."""
    order = [{"$ref": f"#/$defs/{_SPEAKERS[place % 2]}"} for place in range(length)]
    return {"type": "array", "prefixItems": order, "minItems": length, "maxItems": length}


def script_schema(most: int, least: int = 1) -> type[Script]:
    """`Script` with `least` to `most` agent turns."""
    return specialize(Script, least=least, most=most)


async def play_script(
    session: Session, request: Request, task: Task, prefix: Sequence[Turn] = ()
) -> Played:
    """Has a dialogue, or the rest of one, written in one call. Raises `NoAnswer`."""
    script: Script = await session.ask(request)
    return Played((*prefix, *script.dialogue_turns(task, request.step)), "script")


def check_one_side(text: str, speaker: str, task: Task) -> None:
    """Checks that a line is spoken by one side only; for `Request.check`.

    The speaker's own name in front does no harm: it is taken off.

    Raises:
        ValueError: A line or sentence inside begins with a speaker's name, or there is nothing
            but a name.
    """
    role = role_of(speaker, task)
    words = strip_name(text, role, speaker)
    if text.strip() and not words:
        raise ValueError(f"{text!r} is a name without words")
    if name := leading_name(words, all_names(task)):
        raise ValueError(
            f"a line or sentence begins with {name + ':'!r}; only the next words of the {role} are "
            "wanted, without names in front"
        )


def all_names(task: Task) -> tuple[str, ...]:
    """The names that a line of either side may begin with by mistake."""
    return (task.agent_role, task.human_role, *USUAL_NAMES["agent"], *USUAL_NAMES["human"])


def _turn(speaker: str, text: str, task: Task, step: str) -> Turn:
    """A turn without the speaker's own name in front."""
    words = strip_name(text, role_of(speaker, task), speaker)
    if not words:
        raise NoAnswer(step, f"an utterance without words: {text!r}")
    return Turn(speaker, words)
