"""`imagine_dialogues`: personas, dialogues, critique and rewards, each dialogue by itself."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ilql_jax.settings import SettingError
from imagination.dialogue import Dialogue, Turn
from imagination.engine import rewards
from imagination.engine.config import EngineConfig, EngineError
from imagination.engine.critique import REFINE, Critique, critique_and_refine, flaws_of
from imagination.engine.details import draw_details
from imagination.engine.personas import (
    Persona,
    Profile,
    balance,
    draw_evenly,
    draw_personas,
    prior_probability,
    write_profiles,
)
from imagination.engine.write import (
    BEHAVIOURS,
    DialogueSpec,
    behaviours_version,
    load_behaviours,
    write_dialogue,
)
from imagination.flaws import EXAMPLES, LANGUAGE
from imagination.llm.cost import Affordable
from imagination.llm.requests import CostLimitError
from imagination.llm.session import (
    LLM,
    DroppedDialogue,
    NoAnswer,
    Session,
    most_at_once,
    run_concurrently,
)
from imagination.persona_sampling import PRIOR_PROBABILITY, persona_key
from imagination.task import Task

# Fields of a dialogue's source.
REJECTED = "rejected"  # reasons not to learn from it
# What the human was told.
PROFILE, REVEALS, SITUATION, DETAILS = "profile", "reveals", "situation", "details"


@dataclasses.dataclass(frozen=True)
class Imagined:
    """The dialogues in the order of their numbers, and what became of the others.

    Attributes:
        dialogues: Those to learn from.
        dropped: Those that could not be finished.
        rejected: Those that fail the critique or have a flaw; `source["rejected"]` says which.
        unpaid: Number of those that the limit on cost left unfinished.
    """

    dialogues: list[Dialogue]
    dropped: list[DroppedDialogue]
    rejected: list[Dialogue] = dataclasses.field(default_factory=list)
    unpaid: int = 0

    def line(self, has_card: bool = True) -> str:
        """Number of dialogues, of rejected and of dropped ones by step, in one line for people."""
        text = f"{len(self.dialogues):,} dialogues"
        if self.rejected:
            text += f", {len(self.rejected):,} kept apart"
            text += " (see dataset_card.md)" if has_card else ""
        if self.unpaid:
            text += f", {self.unpaid:,} unfinished at config.llm.max_cost"
        if self.dropped:
            steps = Counter(dropped.step for dropped in self.dropped)
            where = ", ".join(f"{count:,} at {step}" for step, count in steps.most_common())
            text += f", {len(self.dropped):,} dropped ({where}; see failed.jsonl)"
        return text


@dataclasses.dataclass(frozen=True)
class Assignment:
    """The random choices of one dialogue, which follow from the seed and its number alone.

    Attributes:
        persona: Hidden traits of the human.
        occurrence: Number of dialogues before it with the same persona.
        behaviour: Name of the agent's behaviour.
        outcome: Reward that a script is written for; None for a rollout.
    """

    persona: Persona
    occurrence: int
    behaviour: str
    outcome: float | None


def assign(task: Task, config: EngineConfig) -> list[Assignment]:
    """Draws personas, behaviours and (for scripts) outcomes of all dialogues, each evenly.

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
    occurrences = count_occurrences(personas)
    behaviours = draw_evenly(list(load_behaviours()), number, f"{seed}/behaviours")
    outcomes: list[float | None] = [None] * number
    if config.way == "script":
        low, high = task.reward_range
        steps = config.outcomes - 1
        levels = [low + (high - low) * i / steps for i in range(config.outcomes)]
        outcomes = draw_evenly(levels, number, f"{seed}/outcomes")
    return list(map(Assignment, personas, occurrences, behaviours, outcomes))


def count_occurrences(personas: Sequence[Persona]) -> list[int]:
    """Number of personas before each that are the same."""
    seen: Counter[Any] = Counter()
    occurrences = []
    for key in map(persona_key, personas):
        occurrences.append(seen[key])
        seen[key] += 1
    return occurrences


def balanced(
    assignments: Sequence[Assignment],
    config: EngineConfig,
    profiles: Mapping[Any, Any],
    check: bool = True,
) -> list[Assignment]:
    """Assigns personas anew, now that their profiles tell which are difficult.

    Raises:
        EngineError: No persona is of a kind that is to take part, and that is checked.
    """
    is_difficult = {
        key: isinstance(profile, Profile) and profile.difficult for key, profile in profiles.items()
    }
    try:
        if check:
            config.sampling.check_kinds(is_difficult.values())
    except SettingError as error:
        raise EngineError(f"config.imagination.{error}") from None
    drawn = [each.persona for each in assignments]
    personas = balance(drawn, is_difficult, config.sampling.difficult_share)
    return [
        dataclasses.replace(each, persona=persona, occurrence=occurrence)
        for each, persona, occurrence in zip(
            assignments, personas, count_occurrences(personas), strict=True
        )
    ]


async def imagine_dialogues(
    llm: LLM,
    task: Task,
    config: EngineConfig,
    on_dialogue: Callable[[Dialogue | DroppedDialogue], None] | None = None,
    first: int = 0,
    price: float = 0.0,
) -> Imagined:
    """Imagines a dataset.

    Args:
        llm: The LLM client (`imagination.llm.Client`, or another object with its `ask_all`).
        task: A whole task (see `derive_task`).
        config: Number and kind of the dialogues.
        on_dialogue: Called with each dialogue as it is finished or dropped, in no particular order.
        first: Imagine only so many, as they will be among all, to be looked at: none of them need
            be fit to learn from, and the limit on cost leaves those that are finished; 0 = all.
        price: Dollars of one dialogue, as forecast beforehand; 0 = not known. Under a limit on cost
            no more are under way than can be paid for.

    Returns:
        The dialogues that could be finished, those among them that are not to be learned from,
        and a record of those that could not.

    Raises:
        EngineError: Not one dialogue is left to learn from, or the task has no persona axes.
        CostLimitError: The limit on cost is reached, and `at_limit` says stop (or nothing
            is finished); the message says how many are.
        LLMError: From the client, where going on makes no sense.
    """
    assignments = assign(task, config)
    profiles, session = await write_profiles(
        llm,
        task,
        [each.persona for each in assignments],
        config.personas_per_call,
        config.conversations,
        first,
    )
    assignments = assignments[: first or None]
    if config.sampling.personas == "balanced":
        assignments = balanced(assignments, config, profiles, check=not first)

    def done(result: Dialogue | DroppedDialogue | CostLimitError) -> None:
        if on_dialogue and not isinstance(result, CostLimitError):
            on_dialogue(result)

    dropped: list[DroppedDialogue] = []
    specs: list[DialogueSpec] = []
    for index, each in enumerate(assignments):
        profile = profiles[persona_key(each.persona)]
        if isinstance(profile, NoAnswer):
            dropped.append(DroppedDialogue(f"{task.name}-{index}", profile.step, profile.reason))
            done(dropped[-1])
        else:
            specs.append(_spec(index, task, config, each, profile))

    affordable = Affordable(llm, len(specs), most_at_once(llm, config.conversations), price)

    async def imagine(spec: DialogueSpec) -> Dialogue | DroppedDialogue | CostLimitError:
        own = session.fork()
        result = await _imagine_or_drop(own, spec, config)
        affordable.ended(own.cost)
        return result

    jobs = [functools.partial(imagine, spec) for spec in specs]
    results = await run_concurrently(jobs, affordable, done)
    finished = [result for result in results if isinstance(result, Dialogue)]
    unpaid = [result for result in results if isinstance(result, CostLimitError)]
    stops = config.at_limit == "stop" and not first
    if unpaid and (stops or not finished):
        raise CostLimitError(_at_limit(unpaid[0], len(finished), len(assignments)))
    dialogues = [dialogue for dialogue in finished if not dialogue.source[REJECTED]]
    rejected = [dialogue for dialogue in finished if dialogue.source[REJECTED]]
    dropped += [result for result in results if isinstance(result, DroppedDialogue)]
    if not (dialogues or (first and rejected)):
        raise EngineError(_nothing_left(len(assignments), dropped, rejected))
    return Imagined(dialogues, dropped, rejected, len(unpaid))


def _at_limit(error: CostLimitError, finished: int, number: int) -> str:
    text = f"{error} {finished:,} of {number:,} dialogues are finished."
    if finished:
        text += " To go on with these alone, run again with --config.imagination.at_limit=use."
    return text


def _nothing_left(
    number: int, dropped: Sequence[DroppedDialogue], rejected: Sequence[Dialogue]
) -> str:
    """Says why no dialogue is left, and the way out."""
    reasons = Counter(f"{each.step}: {each.reason}" for each in dropped)
    reasons.update(reason for dialogue in rejected for reason in dialogue.source[REJECTED])
    listed = "; ".join(f"{why} ({count:,} times)" for why, count in reasons.most_common(3))
    if not rejected:
        return (
            f"None of {number:,} dialogues could be finished. Most frequent: {listed}. "
            "failed.jsonl holds what was asked and answered."
        )
    return (
        f"None of {number:,} dialogues is fit to learn from ({len(rejected):,} finished). Most "
        f"frequent: {listed}. To learn from them all the same, give "
        "--config.imagination.failed_critique=keep and --config.imagination.flaws=count; the "
        "answers are kept."
    )


async def _imagine_or_drop(
    session: Session, spec: DialogueSpec, config: EngineConfig
) -> Dialogue | DroppedDialogue | CostLimitError:
    """Returns the dialogue, or why there is none.

    Past the limit on cost the others go on: those whose answers are all there will be finished.
    """
    try:
        return await _imagine_one(session, spec, config)
    except NoAnswer as error:
        return DroppedDialogue(spec.id, error.step, error.reason)
    except CostLimitError as error:
        return error


async def _imagine_one(session: Session, spec: DialogueSpec, config: EngineConfig) -> Dialogue:
    """Writes, critiques and rates one dialogue."""
    played = await write_dialogue(session, spec, config.way)
    critique, ratings = Critique(played.turns), None
    if config.critique_rounds:
        target = spec.outcome
        if target is None:  # a rollout's rating is known only now, and the critique needs it
            ratings = await _rate(session, spec, played.turns, config)
            target = getattr(ratings, config.rewards)
        critique = await critique_and_refine(
            session,
            spec,
            played.turns,
            target,
            config.critique_rounds,
            mends_flaws=config.flaws == "rewrite",
        )
    if ratings is None or critique.original is not None:
        ratings = await _rate(session, spec, critique.turns, config)
    return Dialogue(
        id=spec.id,
        task=spec.task.name,
        turns=critique.turns,
        reward=getattr(ratings, config.rewards),
        persona=dict(spec.persona),
        source=_source(session, spec, config, critique, ratings, played.ended_by),
    )


async def _rate(
    session: Session, spec: DialogueSpec, turns: tuple[Turn, ...], config: EngineConfig
) -> rewards.Ratings:
    return await rewards.rate(
        session,
        config.reward_sources,
        spec.task,
        turns,
        spec.persona,
        spec.profile,
        spec.situation,
        spec.outcome,
        config.judge_votes,
        spec.id,
    )


def _source(
    session: Session,
    spec: DialogueSpec,
    config: EngineConfig,
    critique: Critique,
    ratings: rewards.Ratings,
    ended_by: str,
) -> dict[str, Any]:
    """Origin of a dialogue. Every dialogue has every key, as tables need it."""
    unused = {REFINE: None} if config.critique_rounds else {}
    return {
        "kind": "imagined" if critique.original is None else "critiqued",
        "way": config.way,
        "behaviour": spec.behaviour,
        SITUATION: spec.situation,
        PROFILE: spec.profile.profile,
        REVEALS: spec.profile.reveals,
        DETAILS: dict(spec.details),
        LANGUAGE: config.language,
        EXAMPLES: list(config.examples),
        "difficult": spec.profile.difficult,
        PRIOR_PROBABILITY: prior_probability(spec.task.persona_axes),
        "ended_by": ended_by,
        "outcome": spec.outcome,
        "models": {**unused, **session.models},
        "prompts": {**unused, **session.prompts, BEHAVIOURS: behaviours_version()},
        "critique": critique.to_json(),
        "rewards": ratings.to_json(),
        REJECTED: _reasons_against(spec, config, critique),
    }


def _reasons_against(spec: DialogueSpec, config: EngineConfig, critique: Critique) -> list[str]:
    """Criteria that fail and flaws for which a dialogue is not to be learned from."""
    failed = list(critique.failed) if config.failed_critique == "apart" else []
    return failed + (list(flaws_of(spec, critique.turns)) if config.flaws != "count" else [])


def _spec(
    index: int, task: Task, config: EngineConfig, assigned: Assignment, profile: Profile
) -> DialogueSpec:
    return DialogueSpec(
        index=index,
        task=task,
        persona=assigned.persona,
        profile=profile,
        situation=profile.situations[assigned.occurrence % len(profile.situations)],
        behaviour=assigned.behaviour,
        outcome=assigned.outcome,
        max_turns=config.turn_limit(task),
        speech=config.speech,
        details=draw_details(config.seed, index, task.persona_axes) if config.details else {},
    )
