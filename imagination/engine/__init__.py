"""The imagination engine: from a task in plain words to a dataset of dialogues, with an LLM.

    task = await derive_task(client, "teaching", {"description": "A tutor teaches ..."})
    imagined = await imagine_dialogues(client, task, EngineConfig(dialogues=1000))

Steps, one file each: `derive` (the task from its description), `reason` (personas), `write`
(dialogues, as scripts or turn by turn), `critique` (judged and rewritten); `rewards.py`
rates. `run` puts them together, `plan` counts and prices the calls beforehand. The prompts are in
`imagination/prompts/`. Everything random comes from the seed and a dialogue's number: the same
settings ask the same requests.
"""

from imagination.asking import EngineError
from imagination.engine.config import EngineConfig
from imagination.engine.plan import Plan, PlanStep, plan
from imagination.engine.run import DroppedDialogue, Imagined, imagine_dialogues
from imagination.engine.task_from_prompt import derive_task

__all__ = [
    "DroppedDialogue",
    "EngineConfig",
    "EngineError",
    "Imagined",
    "Plan",
    "PlanStep",
    "derive_task",
    "imagine_dialogues",
    "plan",
]
