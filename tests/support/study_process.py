"""A study's server in a process of its own, to be killed: `study_process.py FOLDER PORT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn
from studies import Echo, Site

from experiments.human_study.session import Rules


class Slow(Echo):
    """Takes a moment, so that kills also meet answers that are awaited."""

    async def answer(self, dialogue_turns, seed, system=None):
        await asyncio.sleep(0.02)
        return await super().answer(dialogue_turns, seed, system)


def main(folder: str, port: str) -> None:
    agents = [Slow(name) for name in ("alpha", "beta", "gamma")]
    site = Site(Path(folder), agents, rules=Rules(most_agent_turns=3))
    uvicorn.run(site.app, port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
