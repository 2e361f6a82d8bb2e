"""`WorldLLM`: stands in for an LLM, in the words of an embedded world.

It reads the prompts as they arrive over HTTP and finds in them what a model would go by: the
persona in a human's prompt, the words so far in an agent's. So a dataset that is imagined with it
can be learned from, and the agent that comes of it be judged, like one from a real model.
"""

from __future__ import annotations

import json
import operator
import re
import zlib
from typing import Any

from imagination.dialogue import Turn
from imagination.simulation import BehaviourAgent, SimulatedHuman, load_world
from imagination.speakers import Conversation, converse


class WorldLLM:
    """Answers the body of a POST /v1/messages with the JSON that its schema asks for."""

    def __init__(self, world: str):
        self.world = load_world(world)
        self.human = SimulatedHuman(self.world)
        self.agent = BehaviourAgent(self.world)

    def __call__(self, body: dict[str, Any]) -> str:
        schema = body["output_config"]["format"]["schema"]
        fields = set(schema["properties"])
        for known, answer in (
            ({"unusable_because"}, self._derive),
            ({"profiles"}, self._profiles),
            ({"verdicts"}, self._verdicts),
            ({"turns"}, self._script),
            ({"reason", "rating"}, self._rating),
            ({"text"}, self._turn),
        ):
            if known <= fields:
                return json.dumps(answer(_system(body), _first_asked(body["messages"]), fields))
        raise AssertionError(f"no answer to a schema with the fields {sorted(fields)}")

    def _derive(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        task = self.world.task
        everything = {
            "unusable_because": "",
            "agent_role": task.agent_role,
            "human_role": task.human_role,
            "persona_axes": [
                {"name": axis, "values": list(values)} for axis, values in task.persona_axes.items()
            ],
            "criteria": ["The agent reacts to what the human says."],
            "success": "The human is happy with what it got.",
            "max_turns": task.max_turns,
        }
        return {name: value for name, value in everything.items() if name in fields}

    def _profiles(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        found = re.findall(r"Combination (\d+): (.*)", messages[-1]["content"])
        return {
            "profiles": [
                {
                    "number": int(number),
                    "profile": "You answer what you are asked.",
                    "reveals": "You show it bit by bit.",
                    "situations": [f"Occasion {i}." for i in range(5)],
                    "difficult": self.world.is_difficult(self.world.persona(self._persona(traits))),
                }
                for number, traits in found
            ]
        }

    def _script(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        asked = messages[-1]["content"]
        conversation = Conversation("", self._persona(asked), zlib.crc32(asked.encode()))
        (dialogue,) = converse(self.agent, self.human, [conversation], self.world.task)
        return {"turns": [{"speaker": t.speaker, "text": t.text} for t in dialogue.turns]}

    def _verdicts(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        criteria = re.findall(r"^(\d+)\. ", system, re.MULTILINE)
        verdict = {"reason": "So it is.", "fulfilled": True}
        return {"verdicts": [{"number": int(number), **verdict} for number in criteria]}

    def _rating(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        content = messages[-1]["content"]
        turns = self._transcript(content)
        conversation = Conversation("", self._persona(f"{system}\n{content}"), 0, turns)
        return {"reason": "It came to that.", "rating": self.human.rate([conversation])[0]}

    def _turn(self, system: str, messages: list, fields: set[str]) -> dict[str, Any]:
        is_human = system.startswith("You play a person")
        own = "human" if is_human else "agent"
        turns = _turns(messages, own) if len(messages) > 1 else self._transcript(_text(messages))
        # An engine's agent is told of the first words by a message of their own.
        if not is_human and not turns:
            turns = _turns(messages, own)
        seed = zlib.crc32(f"{system}{turns[0].text if turns else ''}".encode())
        answer = self._as_human(system, turns) if is_human else self._as_agent(seed, turns)
        return {name: answer[name] for name in ("text", "ends") if name in fields}

    def _as_human(self, system: str, turns: list[Turn]) -> dict[str, Any]:
        seed = zlib.crc32(system.encode())
        conversation = Conversation("", self._persona(system), seed, turns)
        (utterance,) = self.human.respond([conversation])
        return {"text": utterance.text, "ends": utterance.ends}

    def _as_agent(self, seed: int, turns: list[Turn]) -> dict[str, Any]:
        conversation = Conversation("", {}, seed)
        for turn in turns:  # its own turns are taken again: what was meant is not in the words
            if turn.speaker == "agent":
                self.agent.respond([conversation])
            conversation.turns.append(turn)
        return {"text": self.agent.respond([conversation])[0].text, "ends": False}

    def _transcript(self, text: str) -> list[Turn]:
        """Lines with a role in front."""
        task = self.world.task
        roles = {task.human_role: "human", task.agent_role: "agent"}
        said = re.findall(rf"^({'|'.join(roles)}): (.*)$", text, re.MULTILINE | re.IGNORECASE)
        return [Turn(roles[role.lower()], words) for role, words in said]

    def _persona(self, text: str) -> dict[str, str]:
        """The persona of the world that has most of the traits: not all combinations exist."""
        axes = self.world.task.persona_axes
        named = [
            re.search(rf"{axis}(?: =|:) ({'|'.join(values)})", text)[1]
            for axis, values in axes.items()
        ]
        nearest = max(self.world.prior, key=lambda who: sum(map(operator.eq, who, named)))
        return dict(zip(axes, nearest, strict=True))


AGAIN = "\n\n(An answer given before cannot be used"  # begins what is added to a question


NOTE = "\n\n("  # begins what is true at one turn alone


def _system(body: dict[str, Any]) -> str:
    system = body["system"]
    return system if isinstance(system, str) else "".join(block["text"] for block in system)


def _first_asked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the unusable answers of a question that is put again: it is answered as at first."""
    *before, last = messages
    if last["content"].startswith("This answer cannot be used"):
        return before[:-1]
    return [*before, {**last, "content": last["content"].partition(AGAIN)[0]}]


def _text(messages: list[dict[str, str]]) -> str:
    return messages[0]["content"]


def _turns(messages: list[dict[str, str]], own: str) -> list[Turn]:
    """Turns so far; one's own are JSON, the other's plain text (after a stage direction)."""
    other = {"human": "agent", "agent": "human"}[own]
    turns = []
    for message in messages:
        if message["role"] == "assistant":
            turns.append(Turn(own, json.loads(message["content"])["text"]))
        elif not message["content"].startswith("("):
            turns.append(Turn(other, message["content"].partition(NOTE)[0]))
    return turns
