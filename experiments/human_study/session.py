"""`Study`: what may come next for whom, and what follows from what they send. No HTTP.

The step at which a participant is follows from what is stored (`next_step`), so that a reload, a
second window or a restart of the server finds them where they were. Whatever belongs to another
step changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.human_study import assignment
from experiments.human_study.questionnaire import Question, Questionnaire
from experiments.human_study.records import (
    FAILED,
    RATER,
    TALKER,
    TOO_SHORT,
    Message,
    Participant,
    Platform,
    Progress,
    StudyError,
    Talk,
)
from experiments.human_study.store import Store
from experiments.human_study.words import ENGLISH
from imagination.checks import without_controls, without_surrogates
from imagination.dialogue import Turn

INSTRUCTIONS, CHAT, TOLD, RATE, JUDGE, RANKING, DONE, WITHDRAWN = STEPS = (
    *("instructions", "chat", "told", "rate", "judge", "ranking", "done", "withdrawn"),
)
MOST_CHARACTERS, MOST_COMMENT = 2000, 5000


class Refused(Exception):
    """An answer that cannot be kept as it is.

    Attributes:
        word: Name of the words for the participant (`words.yaml`).
        values: Fill their blanks.
    """

    def __init__(self, word: str, **values: Any):
        super().__init__(ENGLISH(word, **values))
        self.word, self.values = word, values


@dataclasses.dataclass(frozen=True)
class Step:
    """The place of a participant in the study.

    Attributes:
        name: One of `STEPS`.
        talk: The conversation that it is about, if any.
        number: Number of this conversation or transcript, from 1.
        of: Number of all of them.
    """

    name: str
    talk: Talk | None = None
    number: int = 0
    of: int = 0

    @property
    def key(self) -> str:
        """Stands in each form: what was sent for another step is not taken for this one."""
        return f"{self.name}-{self.number}"


def next_step(
    progress: Progress, questionnaire: Questionnaire, judged: Callable[[int], Talk] | None = None
) -> Step:
    """The step of a participant.

    Args:
        progress: Progress of the participant.
        questionnaire: Tells whether there is a ranking.
        judged: Number -> conversation, for those who rate the conversations of others.
    """
    participant = progress.participant
    if participant.withdrawn_at is not None:
        return Step(WITHDRAWN)
    if participant.instructed_at is None:
        return Step(INSTRUCTIONS)
    for judgement in progress.judgements:
        if judgement.rated_at is None and judged is not None:
            place = judgement.position + 1
            return Step(JUDGE, judged(judgement.talk), place, len(progress.judgements))
    for talk in progress.talks:
        place, count = talk.position + 1, len(participant.order)
        if talk.ended_at is None:
            return Step(CHAT, talk, place, count)
        if talk.aside and talk.told_at is None:
            return Step(TOLD, talk, place, count)
        if not talk.aside and talk.rated_at is None:
            return Step(RATE, talk, place, count)
    rated = sum(talk.rated_at is not None for talk in progress.talks)
    if questionnaire.ranking and rated >= 2 and not participant.ranking:
        return Step(RANKING)
    return Step(DONE)


def cleaned(text: str, most: int, single_line: bool = False) -> str:
    """Text of a participant as it is kept: no control characters, no halves of signs.

    Raises:
        Refused: It is longer than `most` characters.
    """
    if len(text) > most:
        raise Refused("too_long", count=most)
    text = without_surrogates(text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = without_controls(unicodedata.normalize("NFC", text)).strip()
    return " ".join(kept.split()) if single_line else kept


@dataclasses.dataclass(frozen=True)
class Rules:
    """Settings of a study that decide what may come next.

    Attributes:
        seed: Seed of orders, personas and conversations.
        most_participants: Those who talk; no more can begin.
        dropout_after: Seconds without a step after which a place is given to another.
        transcripts: Conversations that a rater is given.
        raters: Raters of each conversation.
        most_agent_turns: Agent turns after which the task ends a conversation.
    """

    seed: int = 0
    most_participants: int = 1000
    dropout_after: float = 3600.0
    transcripts: int = 5
    raters: int = 2
    most_agent_turns: int = 20


class Study:
    """Everything that participants can do, step by step.

    Args:
        store: Keeps it.
        questionnaire: Texts that they read, and questions.
        agents: Names of the agents; no participant sees them.
        rules: Settings.
        personas: Draws the persona of the participant with a number, from a seed and that number;
            None = each trait of the questionnaire evenly.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        questionnaire: Questionnaire,
        agents: Sequence[str],
        rules: Rules = Rules(),
        personas: Callable[[int, int], Mapping[str, str]] | None = None,
        clock: Callable[[], float] = time.time,
    ):
        if not agents:
            raise StudyError("A study needs an agent. Give some with --runs=...")
        self.store, self.questionnaire, self.rules = store, questionnaire, rules
        self.agents, self.clock = tuple(agents), clock
        self.design = assignment.williams(len(self.agents))
        self._personas = personas or self._even_persona

    @property
    def most_turns(self) -> int:
        """Turns of the participant after which a conversation is over."""
        return self.questionnaire.most_turns or self.rules.most_agent_turns

    # --- taking part ---

    @property
    def is_open(self) -> bool:
        """True while further participants can begin."""
        return self.store.fact("paused") is None and (
            self.store.count() < self.rules.most_participants
        )

    def pause(self, paused: bool) -> None:
        """Lets no one begin any more, or lets them again; those who have begun go on."""
        self.store.set_fact("paused", str(self.clock()) if paused else None)

    def begin(self, form: str, platform: Platform, kind: str = TALKER) -> tuple[Participant, str]:
        """Lets somebody take part who has agreed to it.

        Returns:
            The participant and their token. The same form gives the same participant again, and so
            do the same ids of a platform, its session included.

        Raises:
            Refused: The study is paused or full, there is nothing to rate, or this person of the
                platform has begun in another session.
        """
        if (known := self.store.of_form(form)) is not None:  # also when it is full by now
            return known
        before = self.store.of_platform(platform.participant)
        for participant, token in before:
            if participant.platform.session == platform.session and participant.kind == kind:
                return participant, token
        if any(participant.kind == kind for participant, _ in before):
            raise Refused("begun_elsewhere")
        if kind == TALKER and not self.is_open:
            raise Refused("closed")
        return self.store.begin(
            form, platform, kind, self.clock(), lambda number: self._place(number, kind, platform)
        )

    def _place(
        self, number: int, kind: str, platform: Platform
    ) -> tuple[int, Sequence[str], Mapping[str, str], Sequence[int]]:
        if kind == RATER:
            rules = self.rules
            chosen = self.store.to_judge(rules.transcripts, rules.raters, platform.participant)
            if not chosen:
                raise Refused("nothing_to_rate")
            return 0, (), {}, chosen
        since = self.clock() - self.rules.dropout_after
        cells = self.store.cells(len(self.design), since)
        row = assignment.emptiest(cells, number, self.rules.seed)
        order = [self.agents[agent] for agent in self.design[row]]
        persona = self._personas(self.rules.seed, number) if self.questionnaire.personas else {}
        return row, order, persona, ()

    def _even_persona(self, seed: int, number: int) -> Mapping[str, str]:
        rng = random.Random(f"{seed}/persona/{number}")
        traits = self.questionnaire.personas.items()
        return {axis: rng.choice(sorted(values)) for axis, values in traits}

    def step(self, number: int) -> Step:
        """The step of a participant. Raises `KeyError` for a number of nobody."""
        return next_step(self.store.progress(number), self.questionnaire, self.store.talk)

    def withdraw(self, number: int) -> None:
        """Deletes all that a participant said."""
        self.store.withdraw(number, self.clock())

    # --- step by step ---

    def read_instructions(self, number: int) -> None:
        if self.step(number).name == INSTRUCTIONS:
            order = self.store.participant(number).order
            agent = order[0] if order else None
            self.store.instructed(number, self.clock(), agent, self._seed(number, 0))

    def say(self, number: int, place: int, token: str, text: str) -> bool:
        """Keeps a message of the participant.

        Args:
            number: The participant.
            place: Number of the message in the conversation, from 0, as their window saw it.
            token: The window's own name for the message; sent again, it is kept once.
            text: The message.

        Returns:
            True where it is kept; False where the conversation has gone on in another window.

        Raises:
            Refused: It is empty or too long.
        """
        step = self.step(number)
        if step.name != CHAT:
            return False
        said = next((m for m in step.talk.messages if m.number == place), None)
        if said is not None:
            return said.speaker == "human" and said.token == token
        text = cleaned(text, MOST_CHARACTERS, single_line=True)
        if not text:
            raise Refused("empty")
        if self.awaits_agent(step.talk) or place != len(step.talk.messages):
            return False
        message = Message(place, "human", text, self.clock(), token)
        return self.store.add_message(step.talk.number, message)

    def awaits_agent(self, talk: Talk) -> bool:
        """True while the agent has the word in an open conversation."""
        if talk.ended_at is not None:
            return False
        if talk.messages:
            return talk.messages[-1].speaker == "human"
        return self.questionnaire.opens == "agent"

    def turns(self, talk: Talk) -> tuple[Turn, ...]:
        """Everything that was said, for an agent."""
        return tuple(Turn(message.speaker, message.text) for message in talk.messages)

    def answered(
        self, talk: Talk, text: str, is_over: bool, details: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps the answer of the agent to a conversation as it was, and ends it if it is over."""
        now = self.clock()
        place = len(talk.messages)
        # Named after its place: an answer that was made twice, before and after a kill, is one.
        details = {**(details or {}), "is_over": is_over}
        message = Message(place, "agent", text, now, f"agent-{place}", details)
        if not self.store.add_message(talk.number, message):
            return
        if is_over:
            self._end(talk, "agent", talk.human_turns)
        elif talk.human_turns >= self.most_turns:
            self._end(talk, "limit", talk.human_turns)

    def spent(self, talk: Talk, details: Mapping[str, Any]) -> None:
        """Counts what an answer cost, or the try, where the agent is an LLM."""
        names = ("calls", "tokens", "cost")
        if spent := {name: details[name] for name in names if name in details}:
            self.store.spend(talk.agent, spent)

    def recover(self) -> None:
        """Ends what a kill left between an answer and the end that follows from it."""
        for talk in self.store.talks():
            last = talk.messages[-1] if talk.messages else None
            if talk.ended_at is None and last is not None and last.speaker == "agent":
                if last.details.get("is_over"):
                    self._end(talk, "agent", talk.human_turns)
                elif talk.human_turns >= self.most_turns:
                    self._end(talk, "limit", talk.human_turns)

    def failed(self, talk: Talk, reason: str) -> None:
        """Sets a conversation aside whose agent crashed or hung."""
        self.store.end_talk(talk.number, "failure", self.clock(), FAILED, reason[:1000])

    def can_finish(self, talk: Talk) -> bool:
        """True where the participant may end the conversation."""
        enough = talk.human_turns >= self.questionnaire.fewest_turns
        return talk.ended_at is None and enough and not self.awaits_agent(talk)

    def end_by_human(self, number: int) -> None:
        """Ends the conversation, where that is allowed."""
        step = self.step(number)
        if step.name == CHAT and self.can_finish(step.talk):
            self._end(step.talk, "human", step.talk.human_turns)

    def _end(self, talk: Talk, ended_by: str, human_turns: int) -> None:
        short = human_turns < self.questionnaire.fewest_turns
        self.store.end_talk(talk.number, ended_by, self.clock(), TOO_SHORT if short else "")

    def was_told(self, number: int) -> None:
        """Goes on from a conversation that was set aside."""
        step = self.step(number)
        if step.name == TOLD:
            self.store.told(step.talk.number, self.clock())
            self._go_on(number)

    def questions(self, step: Step) -> list[tuple[Question, bool]]:
        """The items to rate, and whether each is the attention check."""
        asked = [(question, False) for question in self.questionnaire.questions]
        if self._checks_attention(step):
            first, check = self.questionnaire.questions[0], self.questionnaire.attention
            item = Question("attention", check.text, first.scale, first.anchors)
            asked.insert(len(asked) // 2, (item, True))
        return asked

    def _checks_attention(self, step: Step) -> bool:
        """Asked once, after the first rated conversation from number `after` on."""
        check = self.questionnaire.attention
        return (
            check is not None
            and step.name == RATE
            and step.number >= min(check.after, step.of)
            and step.talk.participant not in self.store.attention()
        )

    def rate(self, number: int, key: str, answers: Mapping[str, str]) -> None:
        """Keeps the ratings of the conversation that the participant is at.

        Args:
            number: The participant.
            key: Key of the step for which the form was made; another one changes nothing.
            answers: Name of the item -> rating as text (`attention!` for the check).

        Raises:
            Refused: An item without an answer on its scale.
        """
        step = self.step(number)
        if step.name not in (RATE, JUDGE) or step.key != key:
            return
        values, attention = {}, None
        for question, is_check in self.questions(step):
            name = f"{question.name}!" if is_check else question.name
            value = _whole(answers.get(name, ""))
            low, high = question.scale
            if value is None or not low <= value <= high:
                raise Refused("choose_an_answer", question=question.text)
            if is_check:
                attention = value, value == self.questionnaire.attention.answer
            else:
                values[question.name] = value
        self.store.rate(number, step.talk.number, values, self.clock(), attention)
        self._go_on(number)

    def to_rank(self, number: int) -> list[tuple[str, str]]:
        """Neutral name and name of each agent that the participant has rated."""
        talks = self.store.progress(number).talks
        return [
            (assignment.alias(talk.position), talk.agent)
            for talk in talks
            if talk.rated_at is not None
        ]

    def rank(self, number: int, places: Mapping[str, str]) -> None:
        """Keeps the ranking.

        Args:
            number: The participant.
            places: Neutral name -> place as text, 1 = best.

        Raises:
            Refused: A place that is missing, or given twice.
        """
        if self.step(number).name != RANKING:
            return
        agents = self.to_rank(number)
        chosen = {agent: _whole(places.get(name, "")) for name, agent in agents}
        if sorted(chosen.values(), key=lambda p: p or 0) != list(range(1, len(agents) + 1)):
            raise Refused("own_places")
        self.store.rank(number, sorted(chosen, key=lambda agent: chosen[agent]), self.clock())
        self._go_on(number)

    def comment(self, number: int, text: str) -> None:
        """Keeps the free comment. Raises `Refused` where it is too long."""
        if self.step(number).name == DONE:
            self.store.comment(number, cleaned(text, MOST_COMMENT), self.clock())

    def _go_on(self, number: int) -> None:
        """Begins the next conversation, or notes that there is none."""
        progress = self.store.progress(number)
        order, begun = progress.participant.order, len(progress.talks)
        step = next_step(progress, self.questionnaire, self.store.talk)
        if step.name in (RANKING, DONE) and begun < len(order):
            seed = self._seed(number, begun)
            self.store.begin_talk(number, begun, order[begun], seed, self.clock())
        elif step.name == DONE:
            self.store.finish(number, self.clock())

    def resume(self, number: int) -> None:
        """Does what a kill between two steps left undone; changes nothing else."""
        if self.step(number).name in (RANKING, DONE):
            self._go_on(number)

    def _seed(self, participant: int, position: int) -> int:
        """Seed of a conversation; the same however often the server is started."""
        text = f"{self.rules.seed}/{participant}/{position}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _whole(text: str) -> int | None:
    """A whole number of a form; None for anything else."""
    text = text.strip()
    is_number = len(text) <= 6 and text.isascii() and text.removeprefix("-").isdigit()
    return int(text) if is_number else None
