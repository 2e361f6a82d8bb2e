"""An LLM judge's ratings of a study's conversations, beside those of people."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.human_study.records import Talk
from imagination.dialogue import Turn
from imagination.engine.rewards import judge_requests
from imagination.llm.session import LLM, NoAnswer, Session, gather_all, run_async
from imagination.task import Task


def judge_talks(llm: LLM, task: Task, talks: Sequence[Talk]) -> dict[int, float]:
    """Asks the judge of the imagination engine, who knows the words alone, once a conversation.

    Args:
        llm: Answers; its cache and its limit on cost hold.
        task: Gives the scale and the meaning of success.
        talks: The conversations.

    Returns:
        Number of the conversation -> rating; without those for which there was no usable answer.
    """

    async def rate(talk: Talk) -> float | None:
        label = f"participant-{talk.participant}-{talk.position + 1}"
        turns = [Turn(message.speaker, message.text) for message in talk.messages]
        try:
            [answer] = await Session(llm, label).ask_all(judge_requests(task, turns, 1, label))
        except NoAnswer:
            return None
        return answer.rating

    ratings = run_async(gather_all([rate(talk) for talk in talks]))
    return {
        talk.number: rating
        for talk, rating in zip(talks, ratings, strict=True)
        if rating is not None
    }
