"""`load_agents`: agents by their specs (`specs.py`), all of them checked before any is loaded.

    agents = load_agents(["runs/teaching", "world:teaching:optimum"])
    answer = await agents["ilql"].answer([Turn("human", "Hi!")], seed=0)
    await close_agents(agents)

An agent's name is its method, world and behaviour, or model; where two are called the same, the
whole spec.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console

from experiments.build import Experiment
from experiments.evaluation.prompted import agent_settings
from experiments.launch import check_llms
from experiments.networks import check_checkpoints, chosen_decoding, is_trained, load_agent
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.serving.answer import (
    FAILED,
    AgentError,
    Answer,
    ConversationError,
    HungError,
    OverloadedError,
    ServedAgent,
    TooLongError,
)
from experiments.serving.batching import Batcher
from experiments.serving.config import AgentSettings
from experiments.serving.others import ChatAgent, PromptedServedAgent, WorldAgent
from experiments.serving.runs import open_run
from experiments.serving.specs import AgentSpec, SpecError, parse_spec, split_specs
from experiments.serving.trained import TrainedAgent, warm_up
from experiments.tasks import load_task
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.methods import MethodError
from imagination.agents import prompted_agent
from imagination.dialogue import Turn
from imagination.llm import Client, LLMConfig
from imagination.simulation import (
    BehaviourAgent,
    OptimalAgent,
    SimulatedHuman,
    load_world,
    sample_conversations,
)
from imagination.speakers import converse

__all__ = [
    "AgentError",
    "AgentSettings",
    "Answer",
    "ConversationError",
    "Guarded",
    "HungError",
    "OverloadedError",
    "ServedAgent",
    "SpecError",
    "TooLongError",
    "close_agents",
    "load_agents",
    "split_specs",
]

logger = logging.getLogger(__name__)

OPTIMUM = "optimum"  # of a world, beside its behaviours
_WARM_UP = 8  # conversations


class Guarded:
    """An agent that answers in time or not at all, and fails with `AgentError` alone.

    Args:
        agent: Any agent.
        seconds: Longest time for an answer.
    """

    def __init__(self, agent: ServedAgent, seconds: float):
        self.name, self.opens, self.notice = agent.name, agent.opens, agent.notice
        self._agent, self._seconds = agent, seconds

    async def answer(
        self, dialogue_turns: Sequence[Turn], seed: int, system: str | None = None
    ) -> Answer:
        """As of `ServedAgent`."""
        self._check(dialogue_turns)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._agent.answer(dialogue_turns, seed, system)
        except TimeoutError:
            raise HungError(f"The agent gave no answer within {self._seconds:g} s.") from None
        except (AgentError, ConversationError):
            raise
        except Exception:
            logger.exception("agent %s failed", self.name)
            raise AgentError(FAILED) from None

    async def close(self) -> None:
        await self._agent.close()

    def _check(self, turns: Sequence[Turn]) -> None:
        if not turns and self.opens:
            return
        if not turns or turns[-1].speaker != "human" or not turns[-1].text.strip():
            raise ConversationError("The last message must be the human's, and say something.")


class _Found(NamedTuple):
    """An agent that was found: its short name, its whole spec, and what loads it."""

    name: str
    spec: str
    load: Callable[[str], ServedAgent]


def load_agents(
    specs: Iterable[str],
    settings: AgentSettings | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    batcher: Batcher | None = None,
) -> dict[str, ServedAgent]:
    """Loads agents by their specs (see `specs.py`).

    Args:
        specs: One or more agents each.
        settings: Batches, limits of time and memory.
        overrides: `--config.KEY=VALUE` for the runs' folders (see `open_run`).
        console: Told of damaged checkpoints, and of keys that could be read on their way.
        batcher: Has the queue and the thread; None = a new one.

    Returns:
        Name -> agent, in the order of the specs. Those that run here share one thread for their
        networks. All are `Guarded`.

    Raises:
        UserError: A spec that names no agent: before anything is loaded.
    """
    settings = settings or AgentSettings()
    console = console or Console(quiet=True)
    parsed = [parse_spec(spec) for spec in dict.fromkeys(specs)]
    if not parsed:
        raise SpecError("no agent is named.")
    batcher = batcher or Batcher(settings.most_waiting)
    finder = _Finder(settings, overrides, batcher, console)
    found = [each for spec in parsed for each in finder.find(spec)]
    often = Counter(each.name for each in found)
    names = [each.name if often[each.name] == 1 else each.spec for each in found]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise SpecError(f"agent {twice!r} is named twice.")
    return {
        name: Guarded(each.load(name), settings.answer_seconds)
        for name, each in zip(names, found, strict=True)
    }


async def close_agents(agents: Mapping[str, ServedAgent]) -> None:
    """Closes all of them, also where one fails to."""
    ended = await asyncio.gather(*(a.close() for a in agents.values()), return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            logger.error("an agent could not be closed", exc_info=error)


class _Finder:
    """Finds what specs name, and checks it; loads nothing that is large."""

    def __init__(
        self,
        settings: AgentSettings,
        overrides: Sequence[str],
        batcher: Batcher,
        console: Console,
    ):
        self._settings, self._overrides = settings, tuple(overrides)
        self._batcher, self._console = batcher, console
        self._runs: dict[str, tuple[Experiment, RunFolder]] = {}
        self._clients: dict[str, _SharedClient] = {}

    def find(self, spec: AgentSpec) -> list[_Found]:
        try:
            return {
                "run": self._of_run,
                "world": self._of_world,
                "prompted": self._prompted,
                "chat": self._chat,
            }[spec.kind](spec)
        except MethodError as error:
            raise SpecError(f"agent {spec.text!r}: {error}") from None

    def _run(self, place: str) -> tuple[Experiment, RunFolder]:
        if place not in self._runs:
            self._runs[place] = open_run(place, self._overrides)
        return self._runs[place]

    # networks

    def _of_run(self, spec: AgentSpec) -> list[_Found]:
        experiment, folder = self._run(spec.place)
        if spec.choice:
            units = [Unit(experiment.method(spec.choice).name, spec.seed)]
        else:
            units = [Unit(method.name, 0) for method in experiment.methods]
        trained = [unit for unit in units if is_trained(folder, unit)]
        missing = ", ".join(unit.name for unit in units if unit not in trained)
        if not trained:
            raise RunError(
                f"{folder.path} holds no trained agent ({missing}). Train it first, with the "
                f"experiment's command and --workdir={folder.path}, or name another one."
            )
        if missing:
            self._console.print(f"{folder.path}: {missing} is not trained, and not served.")
        check_checkpoints(experiment, folder, trained, self._console)
        opens = next(folder.iterate_dialogues()).turns[0].speaker == "agent"
        return [self._planned(spec, experiment, folder, unit, opens) for unit in trained]

    def _planned(
        self, spec: AgentSpec, experiment: Experiment, folder: RunFolder, unit: Unit, opens: bool
    ) -> _Found:
        method = experiment.method(unit.method)
        decoding = spec.decoding or chosen_decoding(method, folder, unit)
        method.method.check_decoding(decoding)
        name = unit.method if unit.seed == 0 else unit.name
        text = f"{spec.place}:{name}"
        if spec.decoding:
            name, text = f"{name}:{decoding}", f"{text}:{decoding}"
        return _Found(
            name, text, lambda n: self._load(n, experiment, folder, unit, decoding, opens)
        )

    def _load(
        self,
        name: str,
        experiment: Experiment,
        folder: RunFolder,
        unit: Unit,
        decoding: DecodingConfig,
        opens: bool,
    ) -> ServedAgent:
        settings = self._settings
        agent = load_agent(
            experiment,
            folder,
            unit,
            decoding,
            settings.batch_size,
            cache_megabytes=settings.cache_megabytes,
            few_programs=True,
        )
        if settings.warm_up:
            self._console.print(f"[dim]{name}: compiling[/dim]")
            warm_up(agent.policy)
        return TrainedAgent(
            name,
            agent,
            self._batcher,
            method=unit.method,
            opens=opens,
            notice=experiment.chat.notice,
            forgets=settings.too_long == "forget",
        )

    # others

    def _of_world(self, spec: AgentSpec) -> list[_Found]:
        world = load_world(spec.place)
        choices = (*world.behaviours, OPTIMUM)
        if spec.choice not in choices:
            raise SpecError(
                f"agent {spec.text!r}: the world {world.name!r} has {', '.join(choices)}."
            )

        def load(name: str) -> ServedAgent:
            is_optimum = spec.choice == OPTIMUM
            agent = OptimalAgent(world) if is_optimum else BehaviourAgent(world, spec.choice)
            if self._settings.warm_up:  # what it solves at first takes seconds in large worlds
                humans = sample_conversations(world, "average", _WARM_UP, seed=0, prefix="warm-up")
                converse(agent, SimulatedHuman(world), humans, world.task)
            details = {"agent": "world", "world": world.name, "behaviour": spec.choice}
            return WorldAgent(name, agent, self._batcher, details)

        return [_Found(f"{world.name}:{spec.choice}", spec.text, load)]

    def _prompted(self, spec: AgentSpec) -> list[_Found]:
        experiment, folder = self._run(spec.place)
        if spec.choice not in experiment.evaluation.config.prompted:
            there_are = ", ".join(experiment.evaluation.config.prompted) or "none"
            raise SpecError(
                f"agent {spec.text!r}: config.evaluation.prompted of that run names {there_are}. "
                f"Add --config.evaluation.prompted={spec.choice} and the model, "
                "--config.llm.model=..."
            )
        llm = experiment.evaluation.llm
        check_llms([llm], self._console)
        task = load_task(experiment, folder)
        settings = agent_settings(experiment, spec.choice)

        def load(name: str) -> ServedAgent:
            if spec.place not in self._clients:
                self._clients[spec.place] = _SharedClient(experiment, folder)
            shared = self._clients[spec.place]
            agent = prompted_agent(spec.choice, shared.enter(), task, **settings)
            return PromptedServedAgent(name, agent, shared.leave, experiment.chat.notice)

        return [_Found(spec.choice, spec.text, load)]

    def _chat(self, spec: AgentSpec) -> list[_Found]:
        config = LLMConfig(
            model=spec.choice,
            base_url=spec.place,
            api="chat_completions",
            cache=False,
            max_retries=2,
            timeout=self._settings.answer_seconds,
            price_input=self._settings.price_input,
            price_output=self._settings.price_output,
        )
        check_llms([config], self._console)
        return [_Found(spec.choice, spec.text, lambda name: ChatAgent(name, config))]


class _SharedClient:
    """The LLM client of a run, for all prompted agents of it; the folder is locked meanwhile.

    It keeps no words: who withdraws from a study, or asks a server that says it keeps nothing,
    would leave theirs in the run's folder.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder):
        self._held = contextlib.ExitStack()
        self._held.enter_context(folder.lock())
        answers = folder.answers(experiment.answers)
        self._client = Client(experiment.evaluation.llm, answers, keeps_words=False)
        self._users = 0

    def enter(self) -> Client:
        self._users += 1
        return self._client

    async def leave(self) -> None:
        self._users -= 1
        if not self._users:
            await self._client.close()
            self._held.close()
