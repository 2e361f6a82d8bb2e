"""Overview of a study for the researcher: by agent, by cell of the design, by participant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.human_study.records import FAILED, TALKER, TOO_SHORT, Participant, Talk
from experiments.human_study.session import Study


@dataclasses.dataclass(frozen=True)
class AgentRow:
    """Conversations with one agent.

    Attributes:
        name: Name of the agent.
        begun, rated, failed, too_short: Conversations.
        seconds: Mean time of its answers, without the floor; None = it gave none.
        slow: Share of its answers that took longer than the floor, by which it could be told.
        calls, tokens, cost: Those of an LLM, also of people who have withdrawn; 0 = it is none,
            or the price is not known.
        failures: The last reasons for which it failed.
    """

    name: str
    begun: int
    rated: int
    failed: int
    too_short: int
    seconds: float | None
    slow: float
    calls: int
    tokens: int
    cost: float
    failures: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CellRow:
    """One order of the design: those who began it, are still at it or done, and are done."""

    order: tuple[str, ...]
    begun: int
    kept: int
    finished: int


@dataclasses.dataclass(frozen=True)
class PersonRow:
    """One participant: their state in a word or two, and when they came and were last seen."""

    number: int
    platform: str
    kind: str
    state: str
    agreed_at: float
    seen_at: float
    is_withdrawn: bool


@dataclasses.dataclass(frozen=True)
class Overview:
    """Everything on the researcher's page."""

    agents: tuple[AgentRow, ...]
    cells: tuple[CellRow, ...]
    people: tuple[PersonRow, ...]
    is_open: bool

    @property
    def cost(self) -> float:
        return sum(agent.cost for agent in self.agents)

    def count(self, state: str) -> int:
        return sum(person.state == state for person in self.people)


def overview(study: Study, floor: float) -> Overview:
    """Reads how far a study is; `floor` is the least time of an answer, in seconds."""
    people, talks = study.store.participants(), study.store.talks()
    since = study.clock() - study.rules.dropout_after
    counts = study.store.cells(len(study.design), since)
    cells = [
        CellRow(
            tuple(study.agents[agent] for agent in order),
            cell.begun,
            cell.kept,
            sum(p.finished_at is not None and p.row == row for p in people if p.kind == TALKER),
        )
        for row, (order, cell) in enumerate(zip(study.design, counts, strict=True))
    ]
    agents = [
        _agent(name, [t for t in talks if t.agent == name], floor, study.store.spending(name))
        for name in study.agents
    ]
    rows = [_person(person, since) for person in people]
    return Overview(tuple(agents), tuple(cells), tuple(rows), study.is_open)


def _agent(
    name: str, talks: Sequence[Talk], floor: float, spending: Mapping[str, float]
) -> AgentRow:
    details = [m.details for talk in talks for m in talk.messages if m.speaker == "agent"]
    seconds = [d["seconds"] for d in details if isinstance(d.get("seconds"), int | float)]
    failures = dict.fromkeys(talk.failure for talk in talks if talk.failure)
    return AgentRow(
        name,
        len(talks),
        sum(talk.rated_at is not None for talk in talks),
        sum(talk.aside == FAILED for talk in talks),
        sum(talk.aside == TOO_SHORT for talk in talks),
        sum(seconds) / len(seconds) if seconds else None,
        sum(each > floor for each in seconds) / len(seconds) if seconds else 0.0,
        int(spending.get("calls", 0)),
        int(spending.get("tokens", 0)),
        spending.get("cost", 0.0),
        tuple(failures)[-3:],
    )


def _person(person: Participant, since: float) -> PersonRow:
    if person.withdrawn_at is not None:
        state = "withdrawn"
    elif person.finished_at is not None:
        state = "finished"
    elif person.seen_at < since:
        state = "dropped out"
    else:
        state = "under way"
    return PersonRow(
        person.number,
        person.platform.participant,
        person.kind,
        state,
        person.agreed_at,
        person.seen_at,
        person.withdrawn_at is not None,
    )
