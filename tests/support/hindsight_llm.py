"""`HindsightLLM`: stands in for an LLM that plays the parts of hindsight, for any task.

It reads the prompts as they arrive over HTTP. Its words hang on the question alone, so the same
question has the same answer in every run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

BETTER = "Before I go on: what matters most to you?"


class HindsightLLM:
    """Answers the body of a POST /v1/messages with the JSON that its schema asks for.

    Args:
        rate: A transcript -> its rating, from 0 (worst) to 1 (best) of the task's scale.
        goes_on: The human never ends the conversation.
    """

    def __init__(self, rate: Callable[[str], float] | None = None, goes_on: bool = False):
        self.rate = rate or (lambda transcript: 0.9 if BETTER in transcript else 0.2)
        self.goes_on = goes_on

    def __call__(self, body: dict[str, Any]) -> str:
        system, asked = system_of(body), body["messages"][0]["content"]
        mark = hashlib.sha256(f"{system}{asked}".encode()).hexdigest()[:6]
        fields = fields_of(body)
        if fields == {"changes"}:
            answer = {"changes": self._changes(system, asked, mark)}
        elif fields == {"traits", "profile", "manner"}:
            answer = self._reading(system, mark)
        elif fields == {"turns"}:
            answer = {"turns": self._rest(asked, mark)}
        elif fields == {"reason", "rating"}:
            low, high = re.search(r"scale from ([-\d.]+) to ([-\d.]+):", system).groups()
            rating = float(low) + self.rate(asked) * (float(high) - float(low))
            answer = {"reason": "It came to that.", "rating": rating}
        elif fields == {"text", "ends"} and system.startswith("You are the"):
            answer = {"text": f"Let me tell you more ({mark}).", "ends": False}
        elif fields == {"text", "ends"}:
            ends = not self.goes_on and int(mark, 16) % 3 == 0
            answer = {"text": f"I see what you mean ({mark}).", "ends": ends}
        else:
            raise AssertionError(f"no answer to a schema with the fields {sorted(fields)}")
        return json.dumps(answer)

    def _changes(self, system: str, asked: str, mark: str) -> list[dict[str, Any]]:
        """The first turns of the agent, as many as may be named."""
        role = re.search(r"Only turns of the (.+)\.$", system, re.MULTILINE)[1]
        most = int(re.search(r"at most (\d+) of these turns", system)[1])
        turns = re.findall(rf"^(\d+)\. {re.escape(role)}: ", asked, re.MULTILINE)[:most]
        better = {"reason": "Nothing was known of them yet.", "utterance": f"{BETTER} ({mark})"}
        return [{"turn": int(turn), **better} for turn in turns]

    def _reading(self, system: str, mark: str) -> dict[str, Any]:
        axes = re.findall(r"^- (.+?): (.+ \| .+)$", system, re.MULTILINE)
        traits = [
            {"axis": axis, "value": values.split(" | ")[int(mark, 16) % len(values.split(" | "))]}
            for axis, values in axes
        ]
        return {"traits": traits, "profile": f"You are {mark}.", "manner": "You talk a lot."}

    def _rest(self, asked: str, mark: str) -> list[dict[str, str]]:
        left = int(re.search(r"at most (\d+) turns of the agent", asked)[1])
        said = ["human", *["agent", "human"] * min(left, 2)]
        return [
            {"speaker": speaker, "text": f"Words {i} ({mark})."} for i, speaker in enumerate(said)
        ]


def system_of(body: dict[str, Any]) -> str:
    return body["system"][0]["text"]


def fields_of(body: dict[str, Any]) -> set[str]:
    return set(body["output_config"]["format"]["schema"]["properties"])
