"""`PromptedHuman`: an LLM that plays the human, knowing the persona."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imagination.agents.slips import slips
from imagination.dialogue import Dialogue
from imagination.prompted.asking import (
    Asker,
    Client,
    Line,
    NoAnswer,
    all_of,
    gave_up,
    rating_on,
    run_async,
    spoken,
)
from imagination.prompted.prompts import load_prompt, transcript
from imagination.speakers import Conversation, Utterance
from imagination.task import Task


class PromptedHuman:
    """Takes the human's turns with an LLM and rates at the end, as the conversation's persona.

    Its turns are annotated with `calls` and `cost`, and with `failure` where the model gave no
    answer: then the conversation ends. When it rates, its last turn is annotated with `rating`,
    `rating_reason` (or `rating_failure`) and `slips` (see `slips.py`).

    Args:
        client: Asks the model.
        task: Gives the description, the roles and the scale.
        guidance: What else to know about how people in this task behave; part of the prompt.
    """

    def __init__(self, client: Client, task: Task, guidance: str = ""):
        self.client = client
        self.task = task
        self.guidance = guidance

    @property
    def model_and_version(self) -> dict[str, str]:
        """Who played the human, for the results: two of them are two different environments."""
        return {
            "model": self.client.config.model,
            "prompt": load_prompt("human").version,
            "rating_prompt": load_prompt("rate").version,
            "guidance": self.guidance,
        }

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return run_async(all_of([self._respond(c) for c in conversations]))

    def rate(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Ratings on the task's scale; None where the model gave none, or broke off."""
        return run_async(all_of([self._rate(c) for c in conversations]))

    async def _respond(self, conversation: Conversation) -> Utterance:
        asker = Asker.for_turn(self.client, conversation)
        try:
            line = await asker.ask(load_prompt("human"), Line, **self._known(conversation))
        except NoAnswer as reason:
            return gave_up(asker, reason)
        text = spoken(line.text, self.task.human_role)
        return Utterance(text, line.ends, asker.annotations)

    async def _rate(self, conversation: Conversation) -> float | None:
        asker = Asker.for_turn(self.client, conversation)
        if any(t.speaker == "human" and "failure" in t.annotations for t in conversation.turns):
            # Broken off by the human, not by the agent: nothing that the agent could be rated by.
            self._note(conversation, asker, {"rating_failure": "the human gave no answer"})
            return None
        worst, best = self.task.reward_range
        scale = {"worst": worst, "best": best, "success": self.task.success_reward}
        try:
            answer = await asker.ask(
                load_prompt("rate"), rating_on(worst, best), **self._known(conversation), **scale
            )
        except NoAnswer as reason:
            self._note(conversation, asker, {"rating_failure": str(reason)})
            return None
        notes = {"rating": answer.rating, "rating_reason": answer.reason}
        self._note(conversation, asker, notes)
        return answer.rating

    def _known(self, conversation: Conversation) -> dict[str, object]:
        return {
            "task": self.task,
            "persona": conversation.persona,
            "guidance": self.guidance,
            "transcript": transcript(conversation.turns, self.task),
        }

    def _note(self, conversation: Conversation, asker: Asker, notes: dict[str, object]) -> None:
        """Adds to the human's last turn what was asked after it."""
        spoken = [i for i, turn in enumerate(conversation.turns) if turn.speaker == "human"]
        if not spoken:
            return
        turn = conversation.turns[spoken[-1]]
        before, now = turn.annotations, asker.annotations
        dialogue = Dialogue(
            conversation.id, self.task.name, tuple(conversation.turns), None, conversation.persona
        )
        annotations = {
            **before,
            **notes,
            **{key: before.get(key, 0) + now[key] for key in now},
            "slips": slips(dialogue, self.task),
        }
        conversation.turns[spoken[-1]] = dataclasses.replace(turn, annotations=annotations)
