"""`forecast_conversations`: calls, tokens and dollars of conversations that LLMs take part in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagination.agents.human import RATING, TURN, PromptedHuman
from imagination.agents.prompted import ACTS, prompted_agent
from imagination.llm.config import LLMConfig
from imagination.llm.cost import Forecast, StandInLLM, forecast
from imagination.llm.schemas import TYPICAL_UTTERANCE
from imagination.speakers import Conversation, Utterance, converse
from imagination.task import Task


class _Talker:
    """Either side where no LLM plays it: says something of ordinary size, and never ends."""

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return [Utterance(TYPICAL_UTTERANCE) for _ in conversations]

    def rate(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [None for _ in conversations]


def forecast_conversations(
    task: Task,
    sample: Sequence[Conversation],
    number: int,
    llm: LLMConfig,
    *,
    agent: str = "",
    settings: Mapping[str, Any] | None = None,
    human: Mapping[str, Any] | None = None,
    player: LLMConfig | None = None,
) -> Forecast:
    """Counts and prices the calls. Not to be called from a running event loop.

    Args:
        task: Its limit of turns is that to which conversations are counted.
        sample: A few that have yet to begin and stand for all; they are filled in place.
        number: Conversations in all.
        llm: Prices.
        agent: Name of a prompted agent; "" = a network speaks.
        settings: Settings of this agent (see `prompted_agent`).
        human: Arguments of `PromptedHuman` beside client and task; None = no LLM plays it.
        player: Prices of the LLM that plays the human, where it is another.
    """
    asked = StandInLLM()
    speaker = prompted_agent(agent, asked, task, **(settings or {})) if agent else _Talker()
    listener = _Talker() if human is None else PromptedHuman(asked, task, **human)
    converse(speaker, listener, sample, task)
    once = [call for call in asked.calls if call.request.step == ACTS]
    each = [call for call in asked.calls if call.request.step != ACTS]
    notes = [
        f"A conversation is counted to its limit of {task.max_turns} agent turns; most end "
        "earlier. Without answers that have to be asked for again."
    ]
    own = dict.fromkeys((TURN, RATING), player)
    return forecast(once, each, each, number / len(sample), llm, notes, own)
