"""Agents played by an LLM: the baselines that trained agents are compared with.

Each sees the task's description and what was said, never the persona. Every turn is annotated with
the `calls` and the `cost` that it took; `failure` is the reason where the model gave no answer:
then the agent says what it has and ends the conversation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from imagination.agents.gdp_zero import OpenLoopSearch, SearchConfig
from imagination.dialogue import Turn
from imagination.prompted.asking import (
    Asker,
    Client,
    Line,
    NoAnswer,
    all_of,
    gave_up,
    rating_on,
    run_async,
    spoken,
)
from imagination.prompted.prompts import load_prompt, transcript
from imagination.speakers import Conversation, Utterance
from imagination.task import Task


class PromptedAgent:
    """What all of them share: concurrent turns, counted calls, what happens on a failure.

    Args:
        client: Asks the model.
        task: Gives the description, the roles and the turn limit.
    """

    prompts: tuple[str, ...] = ()

    def __init__(self, client: Client, task: Task):
        self.client = client
        self.task = task

    @property
    def model_and_version(self) -> dict[str, Any]:
        """Model and prompts, for the results."""
        versions = ", ".join(load_prompt(name).version for name in self.prompts)
        return {"model": self.client.config.model, "prompt": versions}

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return run_async(self._respond_to_all(conversations))

    async def _respond_to_all(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return await all_of([self._respond(c) for c in conversations])

    async def _respond(self, conversation: Conversation) -> Utterance:
        asker = Asker.for_turn(self.client, conversation)
        try:
            return await self._speak(conversation, asker)
        except NoAnswer as reason:
            return gave_up(asker, reason)

    async def _speak(self, conversation: Conversation, asker: Asker) -> Utterance:
        raise NotImplementedError

    def _utterance(self, line: Line, asker: Asker, **notes: Any) -> Utterance:
        text = spoken(line.text, self.task.agent_role)
        return Utterance(text, line.ends, {**notes, **asker.annotations})

    def known(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """What every prompt of an agent may be filled with."""
        used = sum(turn.speaker == "agent" for turn in turns)
        return {
            "task": self.task,
            "transcript": transcript(turns, self.task),
            "turns_left": self.task.max_turns - used,
        }


class PlainAgent(PromptedAgent):
    """The task's description and instructions; one call a turn."""

    prompts = ("plain",)

    async def _speak(self, conversation: Conversation, asker: Asker) -> Utterance:
        line = await asker.ask(load_prompt("plain"), Line, **self.known(conversation.turns))
        return self._utterance(line, asker)


class ReasonedLine(pydantic.BaseModel):
    """Thoughts first, then the line that follows from them."""

    reasoning: str
    line: Line


class ReasoningAgent(PromptedAgent):
    """Reasons in a field of its own before it speaks; one call a turn.

    The reasoning is kept in the annotation `reasoning`; only what was said is shown to anybody.
    """

    prompts = ("reasoning",)

    async def _speak(self, conversation: Conversation, asker: Asker) -> Utterance:
        answer = await asker.ask(
            load_prompt("reasoning"), ReasonedLine, **self.known(conversation.turns)
        )
        return self._utterance(answer.line, asker, reasoning=answer.reasoning)


class Ambiguity(pydantic.BaseModel):
    """Whether something has to be asked before going ahead, and what."""

    missing: str
    ambiguous: bool


class ClamAgent(PromptedAgent):
    """Asks when what it knows is ambiguous, else answers: CLAM (Kuhn et al. 2022, 2212.07769).

    Two calls a turn: is it ambiguous, then the clarifying question or the answer. In its last turn
    it answers, as nobody would hear what is asked. The paper decides by the probability of the
    word "ambiguous", which the API does not give; here the model says it. Annotations: `ambiguous`,
    `missing`.
    """

    prompts = ("clam_check", "clam_ask", "clam_answer")

    async def _speak(self, conversation: Conversation, asker: Asker) -> Utterance:
        known = self.known(conversation.turns)
        check = await asker.ask(load_prompt("clam_check"), Ambiguity, **known)
        if check.ambiguous and known["turns_left"] > 1:
            prompt, known = load_prompt("clam_ask"), {**known, "missing": check.missing}
        else:
            prompt = load_prompt("clam_answer")
        line = await asker.ask(prompt, Line, **known)
        return self._utterance(line, asker, ambiguous=check.ambiguous, missing=check.missing)


class DialogueAct(pydantic.BaseModel):
    """Something the agent can do with a line."""

    name: str
    description: str


FEWEST_ACTS, MOST_ACTS = 6, 10


class DialogueActs(pydantic.BaseModel):
    """The acts of a task."""

    acts: list[DialogueAct]

    @pydantic.field_validator("acts")
    @classmethod
    def _enough_and_different(cls, acts: list[DialogueAct]) -> list[DialogueAct]:
        names = {act.name.strip().lower() for act in acts}
        if not FEWEST_ACTS <= len(names) == len(acts) <= MOST_ACTS:
            raise ValueError(
                f"expected {FEWEST_ACTS} to {MOST_ACTS} acts with different names, got "
                f"{len(acts)} acts with {len(names)} names"
            )
        return acts


class ActWeight(pydantic.BaseModel):
    """How good an act is as the next one, from 0 to 100."""

    act: str
    weight: float


class ActWeights(pydantic.BaseModel):
    """Weights of the acts; one that is left out counts as 0."""

    weights: list[ActWeight]


def check_acts(acts: Mapping[str, str]) -> None:
    """Raises `ValueError` unless there is a choice, each act with its description."""
    if len(acts) < 2 or not all(isinstance(text, str) and text.strip() for text in acts.values()):
        raise ValueError(f"gdp_zero, acts: expected two or more, each described, got {acts!r}")


class GdpZeroAgent(PromptedAgent):
    """Looks ahead with a prompted model: GDP-ZERO (Yu et al. 2023, arXiv 2305.13660).

    Before each turn a tree over dialogue acts is searched (see `gdp_zero.py`); the model gives the
    prior over acts, says the acts in words, foresees the human's replies and estimates the final
    rating. The act visited most is said in the words that did best. Three things differ from the
    paper: its acts are a corpus's annotations, here the model lists them once per task (or they are
    given); its prior counts sampled acts, here one call weighs all of them; its value scores
    sampled replies to the question for a donation, from -1 to 1, here it is the estimated rating,
    scaled to the same range.

    Annotations: `act`; `visits` and `q` (from -1 to 1) of the acts at the root. Listing the acts
    belongs to no conversation: `setup_calls` and `setup_cost`.

    Args:
        client: Asks the model.
        task: Gives the description, the roles, the scale and the turn limit.
        acts: Name -> what is done; None lets the model list them.
        **search: Fields of `SearchConfig`.

    Raises:
        ValueError: Fewer than two acts, or a setting of the search out of its range.
    """

    prompts = tuple(f"gdp_zero_{part}" for part in ("acts", "prior", "say", "human", "value"))

    def __init__(
        self,
        client: Client,
        task: Task,
        acts: Mapping[str, str] | None = None,
        **search: Any,
    ):
        super().__init__(client, task)
        if acts is not None:
            check_acts(acts)
        self.search = SearchConfig(**search)
        self.acts = dict(acts) if acts is not None else None
        self.setup_calls, self.setup_cost = 0, 0.0

    @property
    def model_and_version(self) -> dict[str, Any]:
        """Model and prompts, and how it searched."""
        return {**super().model_and_version, "search": dataclasses.asdict(self.search)}

    async def _respond_to_all(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        if self.acts is None and conversations:
            try:
                await self._list_acts()
            except NoAnswer as reason:
                askers = [Asker.for_turn(self.client, c) for c in conversations]
                return [gave_up(asker, reason) for asker in askers]
        return await super()._respond_to_all(conversations)

    async def _list_acts(self) -> None:
        # The same request in every run and conversation: answered from the cache but for once.
        asker = Asker(self.client, f"{self.task.name}: acts", seed=0, turn=0)
        limits = {"fewest": FEWEST_ACTS, "most": MOST_ACTS}
        try:
            answer = await asker.ask(
                load_prompt("gdp_zero_acts"), DialogueActs, task=self.task, **limits
            )
        finally:
            self.setup_calls += asker.calls
            self.setup_cost += asker.cost
        self.acts = {act.name.strip(): act.description for act in answer.acts}

    async def _speak(self, conversation: Conversation, asker: Asker) -> Utterance:
        game = _PromptedGame(self, asker)
        seed = f"{conversation.seed}/{len(conversation.turns)}"
        search = OpenLoopSearch(game, Foreseen(tuple(conversation.turns)), self.search, seed)
        failure = None
        try:
            await search.run()
        except NoAnswer as reason:
            failure = reason
        best = search.best()
        if best is None:
            raise failure
        act, state = best
        root = search.root
        notes = {
            "act": act,
            "visits": dict(root.visits),
            "q": {name: round(value, 4) for name, value in root.values.items()},
        }
        if failure is not None:
            return gave_up(asker, failure, state.line, **notes)
        return self._utterance(state.line, asker, **notes)


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """A conversation as the search foresees it.

    Attributes:
        turns: What was said, and what might be said next.
        over: Whether it has come to its end.
        line: What the agent said last in it, None at the root.
    """

    turns: tuple[Turn, ...]
    over: bool = False
    line: Line | None = None


class _PromptedGame:
    """The game of one turn's search: an LLM answers all of it."""

    def __init__(self, agent: GdpZeroAgent, asker: Asker):
        self._agent = agent
        self._asker = asker

    def is_over(self, state: Foreseen) -> bool:
        return state.over

    async def prior(self, state: Foreseen) -> dict[str, float]:
        acts = self._agent.acts
        answer = await self._ask("prior", ActWeights, state.turns, acts=acts)
        given = {each.act.strip().lower(): each.weight for each in answer.weights}
        # Plus one, as in the published code: none is ruled out.
        weights = {act: 1 + min(max(given.get(act.lower(), 0.0), 0.0), 100.0) for act in acts}
        total = sum(weights.values())
        return {act: weight / total for act, weight in weights.items()}

    async def step(self, state: Foreseen, act: str) -> Foreseen:
        described = {"act": act, "description": self._agent.acts[act]}
        line = await self._ask("say", Line, state.turns, **described)
        text = spoken(line.text, self._agent.task.agent_role)
        line = Line(text=text, ends=line.ends)
        turns = (*state.turns, Turn("agent", text))
        if line.ends:
            return Foreseen(turns, True, line)
        reply = await self._ask("human", Line, turns)
        text = spoken(reply.text, self._agent.task.human_role)
        over = reply.ends or self._agent.known(turns)["turns_left"] < 1
        return Foreseen((*turns, Turn("human", text)), over, line)

    async def value(self, state: Foreseen) -> float:
        worst, best = self._agent.task.reward_range
        scale = {"worst": worst, "best": best, "success": self._agent.task.success_reward}
        estimates = await all_of(
            [
                self._ask("value", rating_on(worst, best), state.turns, over=state.over, **scale)
                for _ in range(self._agent.search.value_samples)
            ]
        )
        mean = sum(estimate.rating for estimate in estimates) / len(estimates)
        return 2 * (mean - worst) / (best - worst) - 1

    async def _ask(self, part: str, schema: Any, turns: Sequence[Turn], **values: Any) -> Any:
        prompt = load_prompt(f"gdp_zero_{part}")
        return await self._asker.ask(prompt, schema, **self._agent.known(turns), **values)


AGENTS: dict[str, type[PromptedAgent]] = {
    "plain": PlainAgent,
    "reasoning": ReasoningAgent,
    "clam": ClamAgent,
    "gdp_zero": GdpZeroAgent,
}


def prompted_agent(name: str, client: Client, task: Task, **settings: Any) -> PromptedAgent:
    """A prompted agent by its name.

    Args:
        name: plain, reasoning, clam or gdp_zero.
        client: Asks the model.
        task: What it is there for.
        **settings: Of gdp_zero alone: see `GdpZeroAgent` and `SearchConfig`.

    Raises:
        ValueError: Unknown name or setting, with those there are; a setting out of its range.
    """
    if name not in AGENTS:
        raise ValueError(f"there is no prompted agent {name!r}; there are {', '.join(AGENTS)}")
    known = [field.name for field in dataclasses.fields(SearchConfig)]
    known = ["acts", *known] if name == "gdp_zero" else []
    for setting in settings:
        if setting not in known:
            there_are = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"prompted agent {name!r} has no setting {setting!r}; {there_are}")
    return AGENTS[name](client, task, **settings)
