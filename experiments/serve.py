"""Serves trained agents to any program that speaks chat completions or the Messages API.

python experiments/serve.py --workdir=runs/teaching
python experiments/serve.py --agents=runs/teaching:ilql,world:teaching:optimum --port=8001
python experiments/serve.py --agents="runs/teaching:ilql:sampled at 0.6, best of 16"

POST /v1/chat/completions and /v1/messages, GET /v1/models, /healthz and /metrics. An agent is
chosen by `model`; values, candidates and decoding of each answer are in its field `ilql`. Settings
of the run's folder are changed by --config.KEY=VALUE, which are those of its experiment.
"""

from __future__ import annotations

import dataclasses

from rich.console import Console

from experiments import flags, launch
from experiments.config import ConfigError
from experiments.serving.config import AgentSettings
from experiments.serving.web import WebConfig
from ilql_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class ServeConfig(Settings):
    """Choice of the agents."""

    workdir: str = setting("Folder of a run: all methods that were trained in it.", "")
    agents: str = setting(
        "Agents, with commas: FOLDER, FOLDER:METHOD, FOLDER:METHOD:DECODING, "
        "world:NAME:BEHAVIOUR (or optimum), prompted:FOLDER:AGENT, chat:URL#MODEL.",
        "",
    )


KINDS = {"agents": ServeConfig, "how they answer": AgentSettings, "the server": WebConfig}


def main() -> None:
    launch.program(__doc__, KINDS, run)


def run(arguments: list[str], console: Console) -> None:
    """Serves until it is stopped.

    Args:
        arguments: As `sys.argv`.
        console: Told the address.

    Raises:
        UserError: A flag or an agent that cannot be, or an address that is taken.
    """
    from experiments.serving import web

    settings, overrides = flags.parse(tuple(KINDS.values()), arguments)
    web.require_extra()
    from experiments.serving.agents import load_agents, split_specs
    from experiments.serving.app import make_app
    from experiments.serving.batching import Batcher

    chosen, how, where = (settings[kind] for kind in (ServeConfig, AgentSettings, WebConfig))
    specs = [*filter(None, [chosen.workdir]), *split_specs(chosen.agents)]
    if not specs:
        raise ConfigError(
            "no agent is named: add --workdir=runs/teaching, the folder of a run, or --agents=...; "
            "see --help."
        )
    listening = web.listen(where)  # before networks are loaded
    with listening:
        batcher = Batcher(how.most_waiting)
        agents = load_agents(specs, how, overrides, console, batcher)
        app = make_app(agents, batcher, where, how.answer_seconds)
        lines = [f"{name}: {agent.notice}" for name, agent in agents.items() if agent.notice]
        address = web.address_of(listening)
        lines.append(
            f"Serving {', '.join(agents)} at {address}/v1 (chat completions) and {address}."
        )
        web.run(app, where, listening, lines, console)


if __name__ == "__main__":
    main()
