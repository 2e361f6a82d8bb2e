"""`forecast_hindsight`: calls, tokens and dollars that hindsight by an LLM takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imagination.dialogue import Dialogue
from imagination.hindsight.llm import LLMHindsight, LLMHindsightConfig
from imagination.hindsight.regeneration import Branch, Continuation, Proposal
from imagination.llm.config import LLMConfig
from imagination.llm.cost import SAMPLE, Call, Forecast, StandInLLM, forecast
from imagination.task import Task


def forecast_hindsight(
    task: Task,
    dialogues: Sequence[Dialogue],
    llm: LLMConfig,
    *,
    max_changes: int,
    rounds: int = 1,
    config: LLMHindsightConfig | None = None,
) -> Forecast:
    """Counts and prices the calls; a few of the dialogues stand for all.

    Args:
        task: The task.
        dialogues: The originals, all of which are rated for the calibration and looked back on.
        llm: Prices, and whether batches are used.
        max_changes: Turns of a dialogue that are changed at most.
        rounds: From the second on, all dialogues of the round before are looked back on.
        config: Settings of `LLMHindsight`.

    Raises:
        ValueError: No dialogues, or a setting out of bounds.
    """
    if not dialogues:
        raise ValueError("There is no dialogue to look back on, so there is nothing to forecast.")
    if rounds < 1:
        raise ValueError(f"rounds must be a whole number >= 1, got {rounds!r}.")
    size = min(SAMPLE, len(dialogues))
    sample = [dialogues[i * len(dialogues) // size] for i in range(size)]
    looked_back = len(dialogues) * sum(max_changes**done for done in range(rounds))
    calibration = StandInLLM()
    LLMHindsight(task, calibration, config).rate(dialogues)
    # With a limit of one turn, a dialogue is played until it is as long as its original.
    short = dataclasses.replace(task, max_turns=1)
    usual = _round_calls(short, sample, max_changes, config, earliest=False)
    worst = _round_calls(task, sample, max_changes, config, earliest=True)
    notes = [
        f"{len(dialogues):,} dialogues are rated for the calibration; {looked_back:,} are looked "
        f"back on in all rounds ({rounds}), with {max_changes} changed turns each. The controller "
        "may name fewer.",
        "A replayed dialogue is counted to the length of its original; at most: from its first "
        f"turns on, to the limit of {task.max_turns} turns of the {task.agent_role}. Without "
        "answers that have to be asked for again.",
    ]
    return forecast(calibration.calls, usual, worst, looked_back / size, llm, notes)


def _round_calls(
    task: Task,
    dialogues: Sequence[Dialogue],
    max_changes: int,
    config: LLMHindsightConfig | None,
    earliest: bool,
) -> list[Call]:
    """Calls of one round over these dialogues."""
    llm = StandInLLM()
    hindsight = LLMHindsight(task, llm, config)
    hindsight.propose(dialogues, max_changes)
    branches = [
        Branch(dialogue, Proposal(turn, dialogue.turns[turn].text, "as an example"))
        for dialogue in dialogues
        for turn in _turns_to_change(dialogue, max_changes, earliest)
    ]
    replayed = zip(branches, hindsight.play(branches), strict=True)
    hindsight.rate([_whole(branch, rest) for branch, rest in replayed])
    return llm.calls


def _turns_to_change(dialogue: Dialogue, most: int, earliest: bool) -> list[int]:
    """Indexes of the agent's first turns, or of some that are evenly spread."""
    turns = [i for i, turn in enumerate(dialogue.turns) if turn.speaker == "agent"]
    count = min(most, len(turns))
    if earliest:
        return turns[:count]
    return [turns[(2 * i + 1) * len(turns) // (2 * count)] for i in range(count)]


def _whole(branch: Branch, rest: Continuation) -> Dialogue:
    return dataclasses.replace(branch.parent, turns=(*branch.prefix, *rest.turns))
