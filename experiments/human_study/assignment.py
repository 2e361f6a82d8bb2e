"""Order of the agents for each participant: a Williams design, whose cells fill evenly.

In a Williams design every agent is as often first, second, ... as every other, and follows every
other equally often, so that neither place nor predecessor speaks for one of them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """Participants of one row of the design: those who are done or still at it, and all."""

    kept: int
    begun: int


def williams(agents: int) -> list[tuple[int, ...]]:
    """Rows of the design: orders of the agents 0, 1, ...; `agents` rows, or twice as many if odd.

    Raises:
        ValueError: No agent.
    """
    if agents < 1:
        raise ValueError(f"There must be an agent, got {agents}.")
    if agents == 1:
        return [(0,)]
    # 0, n-1, 1, n-2, ...: all differences between neighbours are different (mod n).
    first = [place // 2 if place % 2 == 0 else agents - 1 - place // 2 for place in range(agents)]
    rows = [tuple((each + shift) % agents for each in first) for shift in range(agents)]
    return rows if agents % 2 == 0 else rows + [row[::-1] for row in rows]


def emptiest(cells: Sequence[Cell], number: int, seed: int) -> int:
    """The row for the next participant: where fewest are kept, then where fewest have begun.

    Args:
        cells: Number of cells in each row.
        number: Participants so far; ties are broken by it and the seed, not by the row's place.
        seed: Seed of the study.

    Raises:
        ValueError: No rows.
    """
    order = list(range(len(cells)))
    random.Random(f"{seed}/{number}").shuffle(order)
    return min(order, key=lambda row: cells[row])


def alias(position: int) -> str:
    """Neutral name of the agent that somebody talks with at this place: A, B, ..."""
    letters = string.ascii_uppercase
    before, place = divmod(position, len(letters))
    return f"{letters[before - 1] if before else ''}{letters[place]}"
