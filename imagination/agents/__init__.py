"""Talking to LLMs: a human who is played by one, and agents that are nothing but a prompt.

    human = PromptedHuman(client, task)
    agent = prompted_agent("gdp_zero", client, task, simulations=10)
    dialogues = converse(agent, human, conversations, task)
    slips(dialogues[0], task), spending(dialogues[0])

`human.py` and `agents.py` are the speakers, `gdp_zero.py` the tree search, `slips.py` what the
played human does wrong, `prompts/` the words. Everybody asks through one client of
`imagination.llm`; close it with `run_async(client.close())`.
"""

from imagination.agents.human import PromptedHuman
from imagination.agents.prompted import (
    AGENTS,
    ClamAgent,
    GdpZeroAgent,
    PlainAgent,
    PromptedAgent,
    ReasoningAgent,
    prompted_agent,
)
from imagination.agents.slips import SLIPS, slips
from imagination.prompted.asking import NO_ANSWER, run_async, spending

__all__ = [
    "AGENTS",
    "NO_ANSWER",
    "SLIPS",
    "ClamAgent",
    "GdpZeroAgent",
    "PlainAgent",
    "PromptedAgent",
    "PromptedHuman",
    "ReasoningAgent",
    "prompted_agent",
    "run_async",
    "slips",
    "spending",
]
