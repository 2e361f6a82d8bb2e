"""The client of the Messages API: concurrent, cached, resumable, metered.

    config = LLMConfig(model="...", price_input=3.0, price_output=15.0, max_cost=5.0)
    client = Client(config, folder)
    answers = await client.ask_all([Request("imagine", system, (("user", question),))])
    await client.close()

`client.py` is the place to start reading; it shows the way of a request through the other files.
"""

from imagination.llm.client import Client
from imagination.llm.config import LLMConfig
from imagination.llm.metering import Meter
from imagination.llm.requests import (
    Answer,
    CostLimitError,
    Failure,
    LLMError,
    Request,
    Usage,
)

__all__ = [
    "Answer",
    "Client",
    "CostLimitError",
    "Failure",
    "LLMConfig",
    "LLMError",
    "Meter",
    "Request",
    "Usage",
]
