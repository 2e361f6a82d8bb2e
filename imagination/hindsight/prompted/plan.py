"""`plan`: which calls hindsight takes, what they cost and how they read, without one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imagination.dialogue import Dialogue
from imagination.engine.plan import (
    CHARACTERS_PER_TOKEN,
    SAMPLE,
    Plan,
    Stage,
    plan_step,
)
from imagination.hindsight.llm import PromptedHindsight
from imagination.hindsight.regeneration import Branch, Continuation, Proposal
from imagination.llm import LLMConfig, Request
from imagination.task import Task


def plan(
    task: Task,
    dialogues: Sequence[Dialogue],
    llm: LLMConfig,
    *,
    max_changes: int,
    rounds: int = 1,
    way: str = "rollout",
    judge_votes: int = 3,
) -> Plan:
    """Counts and prices the calls; a few of the dialogues stand for all.

    Args:
        task: The task.
        dialogues: The originals, all of which are rated for the calibration and looked back on.
        llm: Prices, and whether batches are used.
        max_changes: Turns of a dialogue that are changed at most.
        rounds: From the second on, all dialogues of the round before are looked back on.
        way, judge_votes: As in `PromptedHindsight`.

    Raises:
        ValueError: No dialogues, or a setting that cannot be.
    """
    if not dialogues:
        raise ValueError("There is no dialogue to look back on, so nothing to plan.")
    if rounds < 1:
        raise ValueError(f"rounds must be a whole number >= 1, got {rounds!r}.")
    settings = {"way": way, "judge_votes": judge_votes}
    size = min(SAMPLE, len(dialogues))
    sample = [dialogues[i * len(dialogues) // size] for i in range(size)]
    looked_back = len(dialogues) * sum(max_changes**done for done in range(rounds))
    calibration = Stage()
    PromptedHindsight(task, calibration, **settings).rate(dialogues)
    # With a limit of one turn, a dialogue is played until it is as long as its original.
    short = dataclasses.replace(task, max_turns=1)
    usual = _rehearse(short, sample, max_changes, settings, earliest=False)
    worst = _rehearse(task, sample, max_changes, settings, earliest=True)
    notes = [
        f"Tokens are estimated at {CHARACTERS_PER_TOKEN} characters each, answers at an ordinary "
        "size; cached input would be cheaper.",
        f"{len(dialogues):,} dialogues are rated for the calibration; {looked_back:,} are looked "
        f"back on in all rounds ({rounds}), with {max_changes} changed turns each. The controller "
        "may name fewer.",
        "A replayed dialogue is counted to the length of its original; at most: from its first "
        f"turns on, to the limit of {task.max_turns} turns of the {task.agent_role}. Without "
        "answers that have to be asked for again.",
    ]
    if not (llm.price_input and llm.price_output):
        notes.append("No prices are configured: the cost is not known, not zero.")
    elif llm.price_date:
        notes.append(f"Prices as of {llm.price_date}.")
    once, factor = calibration.asked, looked_back / size
    # As they will really be asked: those of the short conversations speak of another limit.
    examples: dict[str, Request] = {}
    for request, _ in [*once, *worst]:
        examples.setdefault(request.step, request)
    steps = []
    for name, example in examples.items():
        step = plan_step(name, once, usual, worst, factor, llm)
        # Stand-ins may be shorter than the words of the original that they take the place of.
        most = max(step.cost, step.cost_at_most)
        steps.append(dataclasses.replace(step, example=example, cost_at_most=most))
    return Plan(tuple(steps), tuple(notes))


def _rehearse(
    task: Task,
    dialogues: Sequence[Dialogue],
    max_changes: int,
    settings: dict,
    earliest: bool,
) -> list[tuple[Request, int]]:
    """Everything asked for one round over these dialogues, with the size of its answer."""
    stage = Stage()
    engine = PromptedHindsight(task, stage, **settings)
    engine.propose(dialogues, max_changes)
    branches = [
        Branch(dialogue, Proposal(turn, dialogue.turns[turn].text, "as an example"))
        for dialogue in dialogues
        for turn in _turns_to_change(dialogue, max_changes, earliest)
    ]
    replayed = zip(branches, engine.play(branches), strict=True)
    engine.rate([_whole(branch, rest) for branch, rest in replayed])
    return stage.asked


def _turns_to_change(dialogue: Dialogue, most: int, earliest: bool) -> list[int]:
    """Indexes of the agent's first turns, or of some that are evenly spread."""
    turns = [i for i, turn in enumerate(dialogue.turns) if turn.speaker == "agent"]
    count = min(most, len(turns))
    if earliest:
        return turns[:count]
    return [turns[(2 * i + 1) * len(turns) // (2 * count)] for i in range(count)]


def _whole(branch: Branch, rest: Continuation) -> Dialogue:
    return dataclasses.replace(branch.parent, turns=(*branch.prefix, *rest.turns))
