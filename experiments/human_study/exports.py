"""Data of a study: `ratings.jsonl` and `conversations.jsonl`, for `datasets` and for training.

`conversations.jsonl` is in the chat format, with a rating as the reward: what a run reads with
`config.data.source=jsonl`. What cannot be a reward (conversations set aside, or not rated) goes to
`unrated.jsonl` in the same format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.human_study.records import Rating, Talk
from experiments.human_study.store import Store
from imagination.dialogue import Dialogue, Turn

RATINGS, CONVERSATIONS, UNRATED = "ratings.jsonl", "conversations.jsonl", "unrated.jsonl"


def write_data(store: Store, folder: Path, task: str, reward: str) -> list[Path]:
    """Writes the three files, each whole or not at all.

    Args:
        store: The study's file.
        folder: Folder that they go into.
        task: Name of the task.
        reward: Question whose rating by the participant is the reward.

    Returns:
        The files.
    """
    talks, ratings = {talk.number: talk for talk in store.talks()}, store.ratings()
    personas = {person.number: person.persona for person in store.participants()}
    own: dict[int, dict[str, int]] = {}
    for rating in ratings:
        if rating.rater == talks[rating.talk].participant:
            own.setdefault(rating.talk, {})[rating.question] = rating.value
    dialogues = [
        dialogue_of(talk, task, personas[talk.participant], own.get(talk.number, {}), reward)
        for talk in talks.values()
        if any(message.speaker == "agent" for message in talk.messages)
    ]
    files = {
        RATINGS: (rating_record(rating, talks[rating.talk]) for rating in ratings),
        CONVERSATIONS: (d.to_json() for d in dialogues if d.reward is not None),
        UNRATED: (d.to_json() for d in dialogues if d.reward is None),
    }
    for name, records in files.items():
        write_atomically(folder / name, _lines(records))
    return [folder / name for name in files]


def dialogue_of(
    talk: Talk, task: str, persona: Mapping[str, str], ratings: Mapping[str, int], reward: str
) -> Dialogue:
    """A conversation in the chat format.

    Args:
        talk: The conversation.
        task: Name of the task.
        persona: Persona of the participant's card.
        ratings: Ratings of the participant: question -> rating.
        reward: Question whose rating is the reward.
    """
    source = {
        "kind": "human",
        "method": talk.agent,
        "participant": talk.participant,
        "position": talk.position + 1,
        "ended_by": talk.ended_by,
        "ratings": dict(ratings),
    }
    if talk.aside:
        source["reason"] = talk.aside
    value = ratings.get(reward)
    return Dialogue(
        id=f"participant-{talk.participant}-{talk.position + 1}",
        task=task,
        turns=tuple(
            Turn(message.speaker, message.text, annotations=_notes(message.details))
            for message in talk.messages
        ),
        reward=None if value is None else float(value),
        persona=dict(persona),
        source=source,
        # A rating is all that follows, whoever ended it.
        terminal=talk.ended_by in ("human", "agent") or value is not None,
    )


def _notes(details: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a turn, as a run keeps them; what the server measured is left out."""
    return {name: value for name, value in details.items() if name not in ("is_over", "seconds")}


def rating_record(rating: Rating, talk: Talk) -> dict[str, Any]:
    """A rating as one line: who rated which agent how, and whether they had talked with it."""
    return {
        "conversation": f"participant-{talk.participant}-{talk.position + 1}",
        "agent": talk.agent,
        "participant": talk.participant,
        "position": talk.position + 1,
        "rater": rating.rater,
        "own": rating.rater == talk.participant,
        "question": rating.question,
        "value": rating.value,
        "at": rating.at,
    }


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
