"""Hindsight with an LLM, through the client of `imagination.llm`.

    engine = PromptedHindsight(task, client, seed=0)
    calibrate(dialogues, engine)
    regenerate(dialogues, engine, round_number=1, max_changes=2)
    run_async(client.close())

`engine.py` plays the three parts: `controller.py` asks where a dialogue went wrong, `forward.py`
plays it on from there, the judge of `engine/rewards.py` rates it. `plan.py` counts and prices
the calls beforehand. The prompts are in `prompts/`.
"""

from imagination.hindsight.forward_model import PROFILE
from imagination.hindsight.llm import PromptedHindsight
from imagination.hindsight.prompted.plan import plan

__all__ = ["PROFILE", "PromptedHindsight", "plan"]
