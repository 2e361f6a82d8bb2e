"""Ends of a chat in the terminal: goodbyes, the rating, and the file that keeps both."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import interrupts
from ilql_jax.disk import disk_error
from ilql_jax.errors import shown
from imagination.checks import without_controls, without_surrogates
from imagination.dialogue import Dialogue, json_line
from imagination.speakers import Conversation
from imagination.task import Task

HUMAN, AGENT, LIMIT, LEFT = ENDS = ("human", "agent", "limit", "left")
NEW, LEAVE = "/new", ("/quit", "/exit")

_GOODBYE = re.compile(
    r"(?:(?:ok|okay|well|alright|fine|thanks|thank you|and|so|no) )*"
    r"(?:good ?bye|bye|bye bye|see you|see ya|farewell|take care|ciao|adi[oó]s|hasta luego|"
    r"au revoir|arrivederci|auf wiedersehen|tsch[uü]ss?|"
    r"i (?:have to|must|need to) (?:go|leave)|(?:i am|i'm) leaving)"
    r"(?: (?:now|then|later|soon|again|tomorrow|for now|for today|and thanks|and thank you))*"
)


def is_goodbye(text: str) -> bool:
    """True where a clause of the text is a goodbye and nothing else, as in "Thanks, bye!"."""
    clauses = re.split(r"[.,;!?\n]+", text.lower().replace("’", "'").replace("-", " "))
    return any(_GOODBYE.fullmatch(" ".join(clause.split())) for clause in clauses)


def read_line(console: Console, name: str) -> str | None:
    """Reads a person's line without what could harm a terminal; None at Ctrl-C, or at the end."""
    try:
        text = console.input(f"[bold cyan]{name}:[/] ")
    except (EOFError, KeyboardInterrupt):
        if interrupts.Stop.status != interrupts.CTRL_C:
            raise
        console.print()
        return None
    return " ".join(without_controls(without_surrogates(text)).split())


def ask_rating(task: Task, console: Console) -> float | str | None:
    """Asks for a rating on the task's scale until it is one.

    Returns:
        The rating; None where the person gives none, `NEW` where they want another conversation.

    Raises:
        EOFError: The person leaves (Ctrl-C, the end of the input, or a word of `LEAVE`).
    """
    low, high = task.reward_range
    question = "How did it end" if task.reward_unit else "How good was this conversation"
    scale = f"{low:g} to {high:g} {task.reward_unit}".rstrip()
    meanings = "; ".join(f"{rating} {meaning}" for rating, meaning in task.anchors())
    say(console, f"{question}, from {scale}?", "bold")
    say(console, f"{meanings}. Enter alone, {NEW} or {LEAVE[0]}: no rating.", "dim")
    while text := read_line(console, "rating"):
        if text in (NEW, *LEAVE):
            say(console, "Not rated.", "yellow")
        if text == NEW:
            return NEW
        if text in LEAVE:
            raise EOFError
        rating = _number(text)
        if rating is not None and low <= rating <= high:
            return rating
        rule = f"a number from {low:g} to {high:g}, or Enter alone for none"
        say(console, f"{shown(text)!r} is no rating: give {rule}.", "yellow")
    if text is None:
        raise EOFError
    return None


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints a text as it is, without what could harm a terminal."""
    console.print(without_controls(text), style=style, markup=False, highlight=False)


def _number(text: str) -> float | None:
    """A number with a decimal point or comma, or with commas between thousands."""
    has_thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text)
    try:
        return float(text.replace(",", "" if has_thousands else "."))
    except ValueError:
        return None


def as_dialogue(
    conversation: Conversation, task: Task, source: Mapping[str, Any], ended_by: str
) -> Dialogue:
    """A chat as data.

    Args:
        conversation: With the rating, if any, as its reward.
        task: Gives the name.
        source: Says who the agent is.
        ended_by: One of `ENDS`.
    """
    now = datetime.datetime.now(datetime.UTC)
    return Dialogue(
        id=f"chat-{now:%Y%m%dT%H%M%S}-{conversation.seed}",
        task=task.name,
        turns=tuple(conversation.turns),
        reward=conversation.reward,
        source={
            "kind": "human",
            **source,
            "seed": conversation.seed,
            "ended_by": ended_by,
            "ended_at": now.isoformat(timespec="seconds"),
        },
        system=conversation.system,
        # A rating is all that follows, whoever ended it.
        terminal=ended_by in (HUMAN, AGENT) or conversation.reward is not None,
    )


def keep(path: Path, dialogue: Dialogue) -> None:
    """Appends a dialogue to a file, at once and for good.

    Raises:
        DiskError: The file system refuses it.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line(dialogue))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, path) or error from None
