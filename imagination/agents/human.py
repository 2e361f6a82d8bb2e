"""`PromptedHuman`: an LLM that plays the human, knowing the persona."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from imagination.agents.slips import slips
from imagination.agents.speaker import PromptedSpeaker, spent, without_own_name
from imagination.dialogue import Dialogue
from imagination.llm.schemas import EndableLine, rating_schema, says_something
from imagination.llm.session import LLM, NoAnswer, Session, gather_all, run_async
from imagination.prompts import load_prompt
from imagination.speakers import Conversation, Utterance
from imagination.task import Task
from imagination.transcript import transcript, turns_left

TURN, RATING = "human/turn", "human/rating"


@dataclasses.dataclass(frozen=True)
class Background:
    """Memory of a human who was imagined before: behaviour, what shows when, and why they come.

    `details` are pairs of what and how it is (see `imagination/engine/details.py`); dialogues that
    were imagined without have none.
    """

    profile: str
    reveals: str
    situation: str
    details: tuple[tuple[str, str], ...] = ()


class PromptedHuman(PromptedSpeaker):
    """Takes the human's turns with an LLM and rates at the end, as the conversation's persona.

    Where the conversation's `human_memory` is a `Background`, that is known to the human, too.

    When it rates, its last turn is annotated with `rating` and `rating_reason` (or
    `rating_failure`), and with `slips` (see `slips.py`).

    Args:
        client: Asks the model.
        task: Gives the description, the roles and the scale.
        guidance: Further facts about people in this task; part of the prompt.
        speech: As of `PromptedSpeaker`.
    """

    def __init__(
        self,
        client: LLM,
        task: Task,
        guidance: str = "",
        speech: Mapping[str, Any] | None = None,
    ):
        super().__init__(client, task, speech)
        self.guidance = guidance

    @property
    def model_and_version(self) -> dict[str, str]:
        """Model and prompts, for the results: two such humans are two different environments."""
        return {
            "model": self.client.config.model,
            "prompt": load_prompt(TURN).version,
            "rating_prompt": load_prompt(RATING).version,
            "guidance": self.guidance,
        }

    def rate(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Ratings on the task's scale; None where the model gave none, or broke off."""
        return run_async(gather_all([self._rate(c) for c in conversations]))

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        line = await session.ask_prompt(
            TURN, EndableLine, check=says_something, **self._values(conversation)
        )
        text = without_own_name(line.text.strip(), self.task.human_role)
        # Who leaves before the agent said anything stays: there is nothing to rate it by.
        has_begun = any(turn.speaker == "agent" for turn in conversation.turns)
        return Utterance(text, line.ends and has_begun, spent(session))

    async def _rate(self, conversation: Conversation) -> float | None:
        session = self._session(conversation)
        if any(t.speaker == "human" and "failure" in t.annotations for t in conversation.turns):
            # Broken off by the human, not by the agent: nothing that the agent could be rated by.
            self._note(conversation, session, {"rating_failure": "the human gave no answer"})
            return None
        worst, best = self.task.reward_range
        scale = {"worst": worst, "best": best, "anchors": self.task.anchors()}
        try:
            answer = await session.ask_prompt(
                RATING, rating_schema((worst, best)), **self._values(conversation), **scale
            )
        except NoAnswer as reason:
            self._note(conversation, session, {"rating_failure": str(reason)})
            return None
        notes = {"rating": answer.rating, "rating_reason": answer.reason}
        self._note(conversation, session, notes)
        return answer.rating

    def _values(self, conversation: Conversation) -> dict[str, Any]:
        memory = conversation.human_memory
        return {
            "task": self.task,
            "speech": self.speech,
            "persona": conversation.persona,
            "background": memory if isinstance(memory, Background) else None,
            "guidance": self.guidance,
            "transcript": transcript(conversation.turns, self.task, "paragraphs"),
            "turns_left": turns_left(conversation.turns, self.task),
        }

    def _note(self, conversation: Conversation, session: Session, notes: dict[str, Any]) -> None:
        """Annotates the human's last turn with what was asked after it."""
        places = [i for i, turn in enumerate(conversation.turns) if turn.speaker == "human"]
        if not places:
            return
        turn = conversation.turns[places[-1]]
        before, now = turn.annotations, spent(session)
        dialogue = Dialogue(
            conversation.id, self.task.name, tuple(conversation.turns), None, conversation.persona
        )
        annotations = {
            **before,
            **notes,
            **{key: before.get(key, 0) + now[key] for key in now},
            "slips": slips(dialogue, self.task),
        }
        conversation.turns[places[-1]] = dataclasses.replace(turn, annotations=annotations)
