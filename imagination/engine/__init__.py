"""The imagination engine: from a task in plain words to a dataset of dialogues, with an LLM.

    task = await derive_task(client, "teaching", {"description": "A tutor teaches ..."})
    imagined = await imagine_dialogues(client, task, EngineConfig(dialogues=1000))

Steps, one file each: `task_from_prompt` (the task from its description), `personas`, `write`
(dialogues, as scripts or turn by turn), `critique` (checked by criteria and rewritten), `rewards`
(ratings). `run` puts them together; `cost` forecasts calls, tokens and dollars beforehand. The
prompts are in `imagination/prompts/engine/`. Everything random comes from the seed and a
dialogue's number: the same settings ask the same requests.
"""

from imagination.engine.config import (
    PURPOSE_OF_STEP,
    PURPOSES,
    EngineConfig,
    EngineError,
)
from imagination.engine.cost import forecast_imagination, imagination_forecast, recalled_forecast
from imagination.engine.run import Imagined, imagine_dialogues
from imagination.engine.task_from_prompt import derive_task

__all__ = [
    "PURPOSES",
    "PURPOSE_OF_STEP",
    "EngineConfig",
    "EngineError",
    "Imagined",
    "derive_task",
    "forecast_imagination",
    "imagination_forecast",
    "imagine_dialogues",
    "recalled_forecast",
]
