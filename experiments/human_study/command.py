"""Commands of `experiments/study.py`: serve, pilot, report, power."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments.human_study import exports
from experiments.human_study import report as reporting
from experiments.human_study.analysis import analyse
from experiments.human_study.answering import Answering
from experiments.human_study.config import StudyConfig
from experiments.human_study.power import simulate_power
from experiments.human_study.questionnaire import (
    Questionnaire,
    QuestionnaireError,
    notices,
    path_for,
)
from experiments.human_study.records import StudyError, Talk
from experiments.human_study.session import Rules, Study
from experiments.human_study.simulated import draw_persona, world_rating
from experiments.human_study.store import Store
from experiments.run_folder import RunError, RunFolder
from experiments.serving import web
from experiments.serving.answer import ServedAgent
from experiments.serving.config import AgentSettings
from experiments.serving.specs import parse_spec, split_specs
from experiments.serving.web import WebConfig
from ilql_jax.progress import ProgressBars
from imagination.dialogue import Turn
from imagination.llm.config import LLMConfig
from imagination.simulation import World, load_world
from imagination.task import Task

DATABASE = "study.sqlite"
PILOT = "-pilot"  # after the folder's name
_MOST_AGENT_TURNS = 20  # where no task says so
_FREELY = 1e6  # requests a second, of simulated participants


@dataclasses.dataclass(frozen=True)
class Setup:
    """A study that can begin: what it is about, and who answers.

    Attributes:
        study: The study: knows what may come next.
        agents: Agents that answer, by name.
        notices: Shown with the consent and beside every conversation.
        world: The embedded world of the task; None = there is none.
    """

    study: Study
    agents: Mapping[str, ServedAgent]
    notices: tuple[str, ...]
    world: World | None


# --- serve --------------------------------------------------------------------------------------


def serve(
    config: StudyConfig,
    how: AgentSettings,
    where: WebConfig,
    overrides: Sequence[str],
    console: Console,
) -> None:
    """Serves the study until it is stopped.

    Raises:
        UserError: Something of it cannot be; before anybody can begin.
    """
    web.require_extra()
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    from experiments.human_study.admin import Admin, admin_token
    from experiments.human_study.pages import build_app
    from experiments.human_study.web import HEADERS

    token = admin_token(os.environ)
    folder = folder_of(config)
    with web.listen(where) as listening, _alone(folder):
        setup = prepare(config, how, folder, overrides, console)
        answering = Answering(setup.study, setup.agents, config.answer_floor, _longest(config, how))
        admin = Admin(setup.study, token, config.answer_floor, config.behind_tls)
        app = build_app(setup.study, answering, config, setup.notices, admin.routes())
        app = web.Strict(app, where, HEADERS["Content-Security-Policy"])
        if config.behind_tls:  # limits are for who asks, not for the proxy
            app = ProxyHeadersMiddleware(app, trusted_hosts="127.0.0.1")
        address = web.address_of(listening)
        lines = [
            f"The study of {', '.join(setup.agents)} is at {address}, and kept in {folder}.",
            f"Raters of its conversations begin at {address}/judge.",
            f"The researcher's page is {address}/admin."
            if token
            else "There is no researcher's page: it takes a token, STUDY_TOKEN in the environment.",
        ]
        web.run(app, where, listening, lines, console)


def _longest(config: StudyConfig, how: AgentSettings) -> float:
    """Seconds until a conversation is given up: an agent has its time, and may have to wait."""
    return 2 * how.answer_seconds + config.answer_floor


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second server out of the folder."""
    try:
        with RunFolder(folder).lock():
            yield
    except RunError as error:
        raise StudyError(str(error).replace("--workdir", "--folder")) from None


# --- what a study is made of --------------------------------------------------------------------


def folder_of(config: StudyConfig) -> Path:
    """The study's folder: as given, or in the folder of the first run.

    Raises:
        StudyError: No agent and no folder is given.
    """
    if config.folder:
        return Path(config.folder).expanduser()
    specs = split_specs(config.runs)
    if not specs:
        raise StudyError("No agent is named. Give some with --runs=runs/teaching; see --help.")
    first = parse_spec(specs[0])
    return Path(first.place) / "study" if first.kind in ("run", "prompted") else Path("runs/study")


def prepare(
    config: StudyConfig,
    how: AgentSettings,
    folder: Path,
    overrides: Sequence[str],
    console: Console,
) -> Setup:
    """Loads agents and questionnaire, and opens the study's file.

    Raises:
        UserError: Something of it cannot be.
    """
    from experiments.serving.agents import load_agents

    specs = split_specs(config.runs)
    if not specs:
        raise StudyError("No agent is named. Give some with --runs=runs/teaching; see --help.")
    tasks, world, most_turns = _tasks(specs, config, overrides)
    if config.pilot and world is None:
        raise StudyError("A pilot needs agents of one embedded world, whose humans can take part.")
    path = Path(config.questionnaire).expanduser() if config.questionnaire else path_for(tasks[0])
    questionnaire = Questionnaire.load(path)
    reward_of(config, questionnaire)
    identity = {
        "agents": json.dumps(list(specs)),
        "questionnaire": path.read_text("utf-8-sig"),
    }
    store = Store(folder / DATABASE, identity)
    agents = load_agents(specs, how, overrides, console)
    _check_who_opens(questionnaire, agents)
    store.set_fact("names", json.dumps(list(agents)))
    store.set_fact("task", tasks[0])
    store.set_fact("world", "" if world is None else world.name)
    rules = Rules(
        seed=config.seed,
        most_participants=config.participants,
        dropout_after=60 * config.dropout_minutes,
        transcripts=config.transcripts,
        raters=config.raters,
        most_agent_turns=most_turns,
    )
    personas = None
    if world is not None and set(questionnaire.personas) == set(world.task.persona_axes):
        personas = lambda seed, number: draw_persona(world, seed, number)  # noqa: E731
    study = Study(store, questionnaire, list(agents), rules, personas)
    told = [config.notice, *(agent.notice for agent in agents.values())]
    return Setup(study, agents, notices(tasks, told), world)


def _tasks(
    specs: Sequence[str], config: StudyConfig, overrides: Sequence[str]
) -> tuple[list[str], World | None, int]:
    """Names of all tasks and worlds of the agents, the world that is played, and its turns."""
    from experiments.serving.runs import open_run
    from experiments.tasks import load_task

    names, worlds, turns = [config.task] if config.task else [], [], []
    for spec in map(parse_spec, specs):
        if spec.kind == "world":
            names.append(spec.place)
            worlds.append(spec.place)
        elif spec.kind in ("run", "prompted"):
            experiment, folder = open_run(spec.place, overrides)
            task = load_task(experiment, folder)
            names += [task.name, experiment.task.world]
            turns.append(task.max_turns)
            if experiment.data.source == "world" and experiment.task.world:
                worlds.append(experiment.task.world)
    names = [name for name in dict.fromkeys(names) if name] or ["default"]
    found = None
    if worlds and len(set(worlds)) == 1:
        found = load_world(worlds[0])
        turns.append(found.task.max_turns)
    return names, found, min(turns, default=_MOST_AGENT_TURNS)


def _check_who_opens(questionnaire: Questionnaire, agents: Mapping[str, ServedAgent]) -> None:
    """Raises `QuestionnaireError` where an agent cannot begin that has to."""
    silent = [name for name, agent in agents.items() if not agent.opens]
    if questionnaire.opens == "agent" and silent:
        raise QuestionnaireError(
            f"The questionnaire lets the agent speak first (opens: agent), and {silent[0]} does "
            "not: write opens: human."
        )


def reward_of(config: StudyConfig, questionnaire: Questionnaire) -> str:
    """The question whose rating is the reward.

    Raises:
        QuestionnaireError: There is no such question.
    """
    name = config.reward or questionnaire.reward
    known = [question.name for question in questionnaire.questions]
    if name not in known:
        raise QuestionnaireError(f"--reward={name}: the questions are {', '.join(known)}.")
    return name


# --- pilot --------------------------------------------------------------------------------------


def pilot(
    config: StudyConfig, how: AgentSettings, overrides: Sequence[str], console: Console
) -> None:
    """Lets simulated participants take part in a new study, and reports on it.

    Raises:
        UserError: Something of it cannot be, or the agents are of no single embedded world.
    """
    web.require_extra()
    from experiments.human_study.pages import build_app
    from experiments.human_study.pilot import run_pilot

    folder = folder_of(config)
    folder = folder.with_name(folder.name + PILOT)
    if config.judge:  # before anybody takes part
        _judging_run(split_specs(config.runs), overrides)
    config = dataclasses.replace(
        config, answer_floor=0.0, participants=config.pilot, requests_per_second=_FREELY
    )
    with _alone(folder):
        for path in folder.glob(f"{DATABASE}*"):  # of an earlier pilot
            path.unlink()
        setup = prepare(config, how, folder, overrides, console)
        answering = Answering(setup.study, setup.agents, 0.0, _longest(config, how))
        app = build_app(setup.study, answering, config, setup.notices)

        # As many as give each conversation of a few participants all of its raters.
        raters = max(config.raters, config.pilot // 4)

        async def all_of_them(on_done: Callable[[], None]) -> None:
            from experiments.serving.agents import close_agents

            await run_pilot(
                app,
                setup.study.store,
                setup.study.questionnaire,
                setup.world,
                config.pilot,
                config.pilot_noise,
                config.seed,
                on_done,
                raters=raters,
            )
            await close_agents(setup.agents)

        with ProgressBars(console) as bars:
            total = config.pilot + raters
            bar = bars.add_task("simulated participants", total=total, note="")
            asyncio.run(all_of_them(lambda: bars.advance(bar)))
        setup.study.store.close()
    report(config, folder, overrides, console, simulated=True)


# --- report and power ---------------------------------------------------------------------------


def report(
    config: StudyConfig,
    folder: Path,
    overrides: Sequence[str],
    console: Console,
    simulated: bool = False,
) -> None:
    """Prints what came of a study, and writes its report and data.

    Raises:
        StudyError: There is no study in the folder, or it is of another version.
    """
    path = folder / DATABASE
    if not path.exists():
        raise StudyError(
            f"{folder} holds no study yet. Serve it first (without --report), or give its folder "
            "(--folder=...)."
        )
    store = Store(path)
    names = store.fact("names")
    if names is None:
        raise StudyError(f"{folder} holds a study that never began. Serve it first.")
    agents = json.loads(names)
    questionnaire = Questionnaire.from_yaml(store.fact("questionnaire"), f"{path}, questionnaire")
    reward = reward_of(config, questionnaire)
    task, world = store.fact("task"), store.fact("world")
    others = {}
    if world:
        others["the world's human"] = _rated_by_world(store, load_world(world))
    if config.judge:
        others["the judge"] = _judged(store, folder, overrides)
    results = analyse(
        store, questionnaire, agents, reward, config.seed, config.keep_inattentive, others
    )
    written = reporting.write_report(
        reporting.Study(
            folder.resolve().name,
            task,
            questionnaire,
            agents,
            results,
            store.talks(),
            store.ratings(),
            simulated,
        ),
        folder,
        console,
    )
    written += exports.write_data(store, folder, task, reward)
    store.close()
    console.print(
        f"\nWritten: {', '.join(str(path) for path in written)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _rated_by_world(store: Store, world: World) -> Callable[[Talk], float | None]:
    personas = {person.number: person.persona for person in store.participants()}

    def rate(talk: Talk) -> float | None:
        turns = [Turn(message.speaker, message.text) for message in talk.messages]
        return world_rating(world, personas[talk.participant], turns)

    return rate


def _judged(store: Store, folder: Path, overrides: Sequence[str]) -> Callable[[Talk], float | None]:
    """Ratings by the LLM that the first run among the agents is evaluated with.

    Raises:
        UserError: There is no such run or LLM, or it cannot be asked.
    """
    from experiments.human_study.judge import judge_talks
    from imagination.llm import Client
    from imagination.llm.session import run_async

    llm, task = _judging_run(json.loads(store.fact("agents")), overrides)
    client = Client(llm, folder / "judge")
    try:
        rated = [talk for talk in store.talks() if talk.rated_at is not None]
        ratings = judge_talks(client, task, rated)
    finally:
        run_async(client.close())
    return lambda talk: ratings.get(talk.number)


def _judging_run(specs: Sequence[str], overrides: Sequence[str]) -> tuple[LLMConfig, Task]:
    """LLM and task of the first run among the agents.

    Raises:
        StudyError: There is no run, or no LLM takes part in its evaluation.
        LLMError: The LLM has no key.
    """
    from experiments.serving.runs import open_run
    from experiments.tasks import load_task
    from imagination.llm.secrets import check_keys

    places = [s.place for s in map(parse_spec, specs) if s.kind in ("run", "prompted")]
    if not places:
        raise StudyError(
            "--judge takes the task and the LLM of a run, and no agent of this study is of one."
        )
    experiment, run = open_run(places[0], overrides)
    if (llm := experiment.evaluation.llm) is None:
        raise StudyError(
            f"--judge: no LLM takes part in the evaluation of {places[0]}. Add "
            "--config.evaluation.prompted=plain --config.llm.model=MODEL (and its prices)."
        )
    check_keys(llm.api)
    return llm, load_task(experiment, run)


def show_power(config: StudyConfig, console: Console) -> None:
    """Says how many participants would show a difference, as far as simulation tells."""
    specs = split_specs(config.runs)
    number = max(2, len(_names(specs)))
    power = simulate_power(config.effect, config.spread, number, config.seed)
    reporting.print_power(power, console)


def _names(specs: Sequence[str]) -> list[str]:
    """The agents that specs name; a run stands for all of its methods."""
    from experiments.serving.runs import open_run

    names: list[str] = []
    for spec in map(parse_spec, specs):
        if spec.kind == "run" and not spec.choice:
            experiment, _ = open_run(spec.place)
            names += [f"{spec.place}:{method.name}" for method in experiment.methods]
        else:
            names.append(spec.text)
    return names
