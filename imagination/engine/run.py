"""`imagine_dialogues`: personas, dialogues, critique and rewards, each dialogue on its own way."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from imagination.asking import (
    Answering,
    Correspondence,
    Dropped,
    EngineError,
    Post,
    behaviours_version,
    load_behaviours,
)
from imagination.dialogue import Dialogue, Turn
from imagination.engine import rewards
from imagination.engine.config import EngineConfig
from imagination.engine.critique import Critique, critique_and_refine
from imagination.engine.personas import (
    Persona,
    Profile,
    draw_evenly,
    draw_personas,
    persona_key,
    write_profiles,
)
from imagination.engine.write import Plot, play_rollout, write_script
from imagination.task import Task


@dataclasses.dataclass(frozen=True)
class DroppedDialogue:
    """A dialogue that is missing from the dataset, at which step, and why."""

    id: str
    step: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Imagined:
    """What came of it: dialogues in the order of their numbers, and those that are missing."""

    dialogues: list[Dialogue]
    dropped: list[DroppedDialogue]

    def line(self) -> str:
        """One line for people: how many, and how many are missing at which step."""
        text = f"{len(self.dialogues):,} dialogues"
        if self.dropped:
            steps = Counter(dropped.step for dropped in self.dropped)
            where = ", ".join(f"{count:,} at {step}" for step, count in steps.most_common())
            text += f", {len(self.dropped):,} dropped ({where}; see failed.jsonl)"
        return text


@dataclasses.dataclass(frozen=True)
class Draw:
    """What chance decides of a dialogue; the seed and its number alone determine it.

    `occurrence` counts the dialogues before it with the same persona.
    """

    persona: Persona
    occurrence: int
    behaviour: str
    outcome: float | None


def draw(task: Task, config: EngineConfig) -> list[Draw]:
    """Personas, behaviours and (for scripts) outcomes, each balanced.

    Raises:
        EngineError: A task without persona axes.
    """
    if not task.persona_axes:
        raise EngineError(
            f"Task {task.name!r} hides nothing about the human: give it persona_axes, or leave "
            "them out of the config, so that they are derived."
        )
    number, seed = config.dialogues, config.seed
    personas = draw_personas(task.persona_axes, number, seed)
    behaviours = draw_evenly(list(load_behaviours()), number, f"{seed}/behaviours")
    outcomes: list[float | None] = [None] * number
    if config.way == "script":
        low, high = task.reward_range
        steps = config.outcomes - 1
        levels = [low + (high - low) * i / steps for i in range(config.outcomes)]
        outcomes = draw_evenly(levels, number, f"{seed}/outcomes")
    seen: Counter[Any] = Counter()
    draws = []
    for persona, behaviour, outcome in zip(personas, behaviours, outcomes, strict=True):
        draws.append(Draw(persona, seen[persona_key(persona)], behaviour, outcome))
        seen[persona_key(persona)] += 1
    return draws


async def imagine_dialogues(
    client: Post,
    task: Task,
    config: EngineConfig,
    on_dialogue: Callable[[Dialogue], None] | None = None,
) -> Imagined:
    """Imagines a dataset.

    Args:
        client: The LLM client (`imagination.llm.Client`, or whatever has its `ask_all`).
        task: A whole task (see `derive_task`).
        config: How many dialogues, and how.
        on_dialogue: Called with each dialogue as it is finished, in no particular order.

    Returns:
        The dialogues that could be finished, and a record of those that could not.

    Raises:
        EngineError: Not one dialogue could be finished, or the task has no persona axes.
        LLMError: From the client, where going on makes no sense.
    """
    draws = draw(task, config)
    answering = Answering.by(client, config.conversations)
    personas = [each.persona for each in draws]
    profiles, letters = await write_profiles(answering, task, personas, config.personas_per_call)
    dropped: list[DroppedDialogue] = []
    plots: list[Plot] = []
    for index, each in enumerate(draws):
        plot = _plot(index, task, config, each, profiles[persona_key(each.persona)])
        if isinstance(plot, DroppedDialogue):
            dropped.append(plot)
        else:
            plots.append(plot)

    def done(result: Dialogue | DroppedDialogue) -> None:
        if isinstance(result, Dialogue) and on_dialogue:
            on_dialogue(result)

    jobs = [functools.partial(_imagine_one, _copy(letters), plot, config) for plot in plots]
    results = await answering.work(jobs, done)
    dialogues = [result for result in results if isinstance(result, Dialogue)]
    dropped += [result for result in results if isinstance(result, DroppedDialogue)]
    if not dialogues:
        reasons = Counter(f"{each.step}: {each.reason}" for each in dropped).most_common(3)
        listed = "; ".join(f"{reason} ({count:,} times)" for reason, count in reasons)
        raise EngineError(
            f"None of {len(draws):,} dialogues could be finished. Most frequent: {listed}. "
            "failed.jsonl holds what was asked and answered."
        )
    return Imagined(dialogues, dropped)


async def _imagine_one(
    letters: Correspondence, plot: Plot, config: EngineConfig
) -> Dialogue | DroppedDialogue:
    try:
        return await _from_plot(letters, plot, config)
    except Dropped as error:
        return DroppedDialogue(plot.id, error.step, error.reason)


async def _from_plot(letters: Correspondence, plot: Plot, config: EngineConfig) -> Dialogue:
    """Writes, critiques and rates the dialogue of one plot."""
    write = write_script if config.way == "script" else play_rollout
    turns, ended_by = await write(letters, plot)
    critique, ratings = Critique(turns), None
    if config.critique_rounds:
        target = plot.outcome
        if target is None:  # a rollout comes to what it comes to; the critique needs to know
            ratings = await _rate(letters, plot, turns, config)
            target = getattr(ratings, config.rewards)
        critique = await critique_and_refine(letters, plot, turns, target, config.critique_rounds)
    if ratings is None or critique.original is not None:
        ratings = await _rate(letters, plot, critique.turns, config)
    return Dialogue(
        id=plot.id,
        task=plot.task.name,
        turns=critique.turns,
        reward=getattr(ratings, config.rewards),
        persona=dict(plot.persona),
        source=_source(letters, plot, config, critique, ratings, ended_by),
    )


async def _rate(
    letters: Correspondence, plot: Plot, turns: tuple[Turn, ...], config: EngineConfig
) -> rewards.Ratings:
    return await rewards.rate(
        letters,
        config.reward_sources,
        plot.task,
        turns,
        plot.persona,
        plot.profile,
        plot.outcome,
        config.judge_votes,
        plot.id,
    )


def _source(
    letters: Correspondence,
    plot: Plot,
    config: EngineConfig,
    critique: Critique,
    ratings: rewards.Ratings,
    ended_by: str,
) -> dict[str, Any]:
    """Where a dialogue came from. Every dialogue has every key, as tables need it."""
    unused = {"refine": None} if config.critique_rounds else {}
    return {
        "kind": "imagined" if critique.original is None else "critiqued",
        "way": config.way,
        "behaviour": plot.behaviour,
        "situation": plot.situation,
        "difficult": plot.profile.difficult,
        "ended_by": ended_by,
        "outcome": plot.outcome,
        "models": {**unused, **letters.models},
        "prompts": {**unused, **letters.prompts, "behaviours": behaviours_version()},
        "critique": critique.to_json(),
        "rewards": ratings.to_json(),
    }


def _plot(
    index: int, task: Task, config: EngineConfig, drawn: Draw, profile: Profile | Dropped
) -> Plot | DroppedDialogue:
    if isinstance(profile, Dropped):
        return DroppedDialogue(f"{task.name}-{index}", profile.step, profile.reason)
    return Plot(
        index=index,
        task=task,
        persona=drawn.persona,
        profile=profile,
        situation=profile.situations[drawn.occurrence % len(profile.situations)],
        behaviour=drawn.behaviour,
        instruction=load_behaviours()[drawn.behaviour],
        outcome=drawn.outcome,
        max_turns=config.turn_limit(task),
    )


def _copy(letters: Correspondence) -> Correspondence:
    """A correspondence of its own that remembers who described the personas."""
    return Correspondence(letters.post, dict(letters.models), dict(letters.prompts))
