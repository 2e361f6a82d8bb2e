"""`PromptedSpeaker`: a side of a conversation played by an LLM, one session a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagination.dialogue import Dialogue
from imagination.llm.schemas import EndableLine
from imagination.llm.session import LLM, NoAnswer, Session, gather_all, run_async
from imagination.speakers import FAILURE, NO_ANSWER, Conversation, Utterance
from imagination.task import Task
from imagination.transcript import strip_name


class PromptedSpeaker:
    """Concurrent turns with counted calls; a speaker without an answer ends the conversation.

    Every turn is annotated with its `calls`, `tokens` and `cost`, and with `failure` where the
    model gave no answer.

    Args:
        client: Asks the model.
        task: Gives the description, the roles, the scale and the turn limit.
        speech: Manner of speaking of both sides (`EngineConfig.speech`); empty = as people speak.
    """

    def __init__(self, client: LLM, task: Task, speech: Mapping[str, Any] | None = None):
        self.client = client
        self.task = task
        self.speech = speech or {}

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return run_async(self.answers(conversations))

    async def answers(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        """`respond`, on the loop of the caller, which is then the client's."""
        return await gather_all([self._respond(c) for c in conversations])

    async def _respond(self, conversation: Conversation) -> Utterance:
        session = self._session(conversation)
        try:
            return await self._speak(conversation, session)
        except NoAnswer as reason:
            return gave_up(session, reason)

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        """The turn. Raises `NoAnswer`."""
        raise NotImplementedError

    def _session(self, conversation: Conversation) -> Session:
        """A session of one turn: its answers depend on the conversation and the turn alone."""
        seed = f"{conversation.seed}/{len(conversation.turns)}"
        return Session(self.client, conversation.id, seed, immediate=True)


def without_own_name(text: str, role: str) -> str:
    """The line without the speaker's own role in front, unless it is all there is."""
    return strip_name(text, role) or text


def spent(session: Session) -> dict[str, float]:
    """Calls, tokens and dollars of a session, as annotations of a turn."""
    spending = {"calls": session.calls, "tokens": session.tokens}
    return {**spending, "cost": round(session.cost, 9)}


def gave_up(
    session: Session, reason: Exception, line: EndableLine | None = None, **notes: Any
) -> Utterance:
    """The last turn of a speaker whose model failed, with the reason."""
    annotations = {**notes, **spent(session), FAILURE: str(reason)}
    return Utterance(line.text if line else NO_ANSWER, ends=True, annotations=annotations)


def spending(dialogue: Dialogue) -> dict[str, float]:
    """Calls, dollars and failures of a conversation, for either side.

    Returns:
        `agent_calls`, `agent_cost`, `agent_failures`, and the same of `human`; zeros for a side
        that is not prompted.
    """
    totals = {}
    for speaker in ("agent", "human"):
        notes = [turn.annotations for turn in dialogue.turns if turn.speaker == speaker]
        totals[f"{speaker}_calls"] = sum(note.get("calls", 0) for note in notes)
        totals[f"{speaker}_cost"] = sum(note.get("cost", 0.0) for note in notes)
        totals[f"{speaker}_failures"] = sum(FAILURE in note for note in notes)
    return totals
