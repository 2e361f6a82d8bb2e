"""Settings of served agents: the same behind the API, a study and whatever else loads them."""

from __future__ import annotations

import dataclasses

from ilql_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class AgentSettings(Settings):
    """Settings of agents, whoever asks them."""

    batch_size: int = setting(
        "Conversations that a network decodes together.", 8, least=1, most=1024
    )
    most_waiting: int = setting(
        "Questions that wait for the networks at most; one more is refused.", 256, least=1
    )
    answer_seconds: float = setting(
        "An agent that takes longer for an answer is given up.", 60.0, above=0
    )
    cache_megabytes: float = setting(
        "Memory of each network for conversations that may go on, so that they are not read again.",
        64.0,
        above=0,
    )
    too_long: str = setting(
        "A conversation that a network has no room for: its oldest turns are left out (forget), or "
        "it is refused.",
        "forget",
        choices=("forget", "refuse"),
    )
    price_input: float = setting(
        "Dollars per million tokens that an agent chat:URL#MODEL reads; 0 = not known.",
        0.0,
        least=0,
    )
    price_output: float = setting(
        "Dollars per million tokens that it writes; 0 = not known.", 0.0, least=0
    )
    warm_up: bool = setting(
        "Compile networks and solve worlds before the first question, not with it.", True
    )
