"""Speakers for `converse`: trained policies, prompted agents, and humans played by an LLM.

    human = PromptedHuman(client, task)
    agent = prompted_agent("gdp_zero", client, task, simulations=10)
    dialogues = converse(agent, human, conversations, task)
    slips(dialogues[0], task), spending(dialogues[0])

`policy.py` is the trained policy, `prompted.py` the prompted agents, `gdp_zero.py` their tree
search, `human.py` the played human and `slips.py` its mistakes. The prompts are in
`imagination/prompts/agents/` and `human/`. All ask through one client of `imagination.llm`; close
it with `run_async(client.close())`.
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
from imagination.agents.speaker import spending
from imagination.llm.session import run_async
from imagination.speakers import NO_ANSWER

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
