"""Flaws of LLM-written dialogues, planted into those of an embedded world, and a critique of them.

There, unlike with an LLM, it is known which dialogues are flawed and what they would be without, so
that the worth of a critique can be measured (`experiments/sweeps.py`, sweep `critique`). Two kinds,
as they were found in dialogues of small models: the human names all its traits before anybody asks,
and the rating is the opposite of what the human's words tell.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from imagination.dialogue import Dialogue
from imagination.flaws import MENDED, NAMES_PERSONA, PLANTED, flaws
from imagination.simulation.dice import FLAW, Dice
from imagination.task import Task

MISRATED = "the rating is the opposite of what the words tell"
KINDS = (NAMES_PERSONA, MISRATED)

Rate = Callable[[Sequence[Dialogue]], Sequence[float | None]]


def plant(dialogues: Sequence[Dialogue], task: Task, share: float, seed: int) -> list[Dialogue]:
    """Plants flaws into a share of the dialogues, half of them of either kind.

    The choice depends on a dialogue's id and the seed alone: a larger share has all flaws of a
    smaller one.

    Args:
        dialogues: Without flaws, each opened by the human.
        task: Their task; rewards are mirrored within its range.
        share: Probability of a flaw, from 0 to 1.
        seed: Source of the choice.

    Returns:
        As many, in this order; `source["planted_flaw"]` is the kind where there is one.
    """
    planted = []
    for dialogue in dialogues:
        dice = Dice(FLAW, seed, zlib.crc32(dialogue.id.encode()))
        is_flawed, kind = dice.uniform() < share, KINDS[dice.below(len(KINDS))]
        planted.append(_PLANT[kind](dialogue, task) if is_flawed else dialogue)
    return planted


def _naming_traits(dialogue: Dialogue, task: Task) -> Dialogue:
    opening, *rest = dialogue.turns
    traits = ", ".join(f"{axis} {value}" for axis, value in dialogue.persona.items())
    opening = dataclasses.replace(opening, text=f"{opening.text} About me: {traits}.")
    return _marked(dialogue, PLANTED, NAMES_PERSONA, turns=(opening, *rest))


def _misrated(dialogue: Dialogue, task: Task) -> Dialogue:
    return _marked(dialogue, PLANTED, MISRATED, reward=_mirrored(dialogue.reward, task))


_PLANT = {NAMES_PERSONA: _naming_traits, MISRATED: _misrated}


def mend(
    dialogues: Sequence[Dialogue], originals: Sequence[Dialogue], task: Task, rate: Rate
) -> list[Dialogue]:
    """Has those written anew in which a critique finds a flaw.

    The critique has a dialogue's words and rating, and does not know what was planted: it finds
    humans who name two traits or more in one turn, and ratings that are further from what the words
    let expect than their mirror image. What is written anew is what would have been written without
    the flaw. A dialogue without one would therefore stay as it is, and is not looked at.

    Args:
        dialogues: As `plant` returns them.
        originals: The same without flaws.
        task: Their task.
        rate: Ratings that the words of dialogues let expect; None where that cannot be told.

    Returns:
        As many, in this order; `source["mended_flaw"]` is the kind where one was mended.
    """
    flawed = [index for index, each in enumerate(dialogues) if PLANTED in each.source]
    expected = rate([dialogues[index] for index in flawed])
    mended = list(dialogues)
    for index, rating in zip(flawed, expected, strict=True):
        dialogue = dialogues[index]
        if NAMES_PERSONA in flaws(dialogue, task) or _is_misrated(dialogue, task, rating):
            mended[index] = _marked(originals[index], MENDED, dialogue.source[PLANTED])
    return mended


def _is_misrated(dialogue: Dialogue, task: Task, expected: float | None) -> bool:
    if expected is None:
        return False
    return abs(dialogue.reward - expected) > abs(_mirrored(dialogue.reward, task) - expected)


def _mirrored(reward: float, task: Task) -> float:
    low, high = task.reward_range
    return low + high - reward


def _marked(dialogue: Dialogue, field: str, kind: str, **changes: Any) -> Dialogue:
    return dataclasses.replace(dialogue, source={**dialogue.source, field: kind}, **changes)
