"""Agents played by an LLM: the baselines that trained agents are compared with.

Each sees the task's description and the conversation, never the persona. An agent whose model gave
no answer says what it has and ends the conversation (see `speaker.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from ilql_jax.settings import SettingError
from imagination.agents.gdp_zero import OpenLoopSearch, SearchConfig
from imagination.agents.speaker import (
    PromptedSpeaker,
    gave_up,
    spent,
    without_own_name,
)
from imagination.dialogue import Turn
from imagination.llm.schemas import (
    TYPICAL_UTTERANCE,
    Bounded,
    EndableLine,
    Name,
    Paragraph,
    Sentence,
    rating_schema,
    says_something,
)
from imagination.llm.session import LLM, NoAnswer, Session, gather_all
from imagination.prompts import load_prompt
from imagination.speakers import Conversation, Utterance
from imagination.task import Task
from imagination.transcript import transcript, turns_left


class PromptedAgent(PromptedSpeaker):
    """Base of the prompted agents.

    Attributes:
        prompts: Names of its prompts.
    """

    prompts: tuple[str, ...] = ()

    @property
    def model_and_version(self) -> dict[str, Any]:
        """Model and prompts, for the results."""
        versions = ", ".join(load_prompt(name).version for name in self.prompts)
        return {"model": self.client.config.model, "prompt": versions}

    def _utterance(self, line: EndableLine, session: Session, **notes: Any) -> Utterance:
        text = without_own_name(line.text.strip(), self.task.agent_role)
        return Utterance(text, line.ends, {**notes, **spent(session)})

    def values(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """Values that every prompt of an agent may use."""
        return {
            "task": self.task,
            "speech": self.speech,
            "transcript": transcript(turns, self.task, "paragraphs"),
            "turns_left": turns_left(turns, self.task),
        }


class PlainAgent(PromptedAgent):
    """The task's description and instructions; one call a turn."""

    prompts = ("agents/plain",)

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        line = await session.ask_prompt(
            "agents/plain", EndableLine, check=says_something, **self.values(conversation.turns)
        )
        return self._utterance(line, session)


class ReasonedLine(pydantic.BaseModel):
    """Thoughts first, then the line that follows from them."""

    reasoning: Paragraph
    line: EndableLine

    @classmethod
    def placeholder(cls) -> ReasonedLine:
        """An answer of ordinary size, for forecasts."""
        return cls(reasoning=TYPICAL_UTTERANCE * 6, line=EndableLine.placeholder())


class ReasoningAgent(PromptedAgent):
    """Reasons in a field of its own before it speaks; one call a turn.

    The reasoning is kept in the annotation `reasoning`; nobody in the conversation sees it.
    """

    prompts = ("agents/reasoning",)

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        answer = await session.ask_prompt(
            "agents/reasoning",
            ReasonedLine,
            check=lambda answer: says_something(answer.line),
            **self.values(conversation.turns),
        )
        return self._utterance(answer.line, session, reasoning=answer.reasoning)


class Ambiguity(pydantic.BaseModel):
    """Missing facts, and whether they have to be asked for before going ahead."""

    missing: Sentence
    ambiguous: bool

    @classmethod
    def placeholder(cls) -> Ambiguity:
        """An answer of ordinary size, for forecasts."""
        return cls(missing=TYPICAL_UTTERANCE, ambiguous=True)


class ClamAgent(PromptedAgent):
    """Asks when what it knows is ambiguous, else answers: CLAM (Kuhn et al. 2022, 2212.07769).

    Two calls a turn: is it ambiguous, then the clarifying question or the answer. In its last turn
    it answers, as nobody would hear what is asked. The paper decides by the probability of the
    word "ambiguous", which the API does not give; here the model says it. Annotations: `ambiguous`,
    `missing`.
    """

    prompts = ("agents/clam_check", "agents/clam_ask", "agents/clam_answer")

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        check_prompt, ask_prompt, answer_prompt = self.prompts
        values = self.values(conversation.turns)
        ambiguity = await session.ask_prompt(check_prompt, Ambiguity, **values)
        if ambiguity.ambiguous and values["turns_left"] > 1:
            prompt, values = ask_prompt, {**values, "missing": ambiguity.missing}
        else:
            prompt = answer_prompt
        line = await session.ask_prompt(prompt, EndableLine, check=says_something, **values)
        return self._utterance(line, session, **ambiguity.model_dump())


class DialogueAct(pydantic.BaseModel):
    """Something the agent can do with a line."""

    name: Name
    description: Sentence


ACTS = "agents/gdp_zero_acts"  # asked once, for all conversations
FEWEST_ACTS, MOST_ACTS = 6, 10


class DialogueActs(Bounded):
    """The acts of a task."""

    acts: list[DialogueAct]

    @classmethod
    def bounds(cls) -> dict[str, dict[str, int]]:
        return {"acts": {"minItems": FEWEST_ACTS, "maxItems": MOST_ACTS}}

    @classmethod
    def placeholder(cls) -> DialogueActs:
        """An answer of ordinary size, for forecasts."""
        names = [f"does something {i}" for i in range((FEWEST_ACTS + MOST_ACTS) // 2)]
        return cls(acts=[DialogueAct(name=name, description=TYPICAL_UTTERANCE) for name in names])

    @pydantic.field_validator("acts")
    @classmethod
    def _enough_and_different(cls, acts: list[DialogueAct]) -> list[DialogueAct]:
        acts = acts[:MOST_ACTS]
        names = {act.name.strip().lower() for act in acts}
        if not FEWEST_ACTS <= len(names) == len(acts) <= MOST_ACTS:
            raise ValueError(
                f"expected {FEWEST_ACTS} to {MOST_ACTS} acts with different names, got "
                f"{len(acts)} acts with {len(names)} names"
            )
        return acts


class ActWeight(pydantic.BaseModel):
    """Weight of an act as the next one, from 0 to 100."""

    act: str
    weight: float


class ActWeights(pydantic.BaseModel):
    """Weights of the acts; one that is left out counts as 0."""

    weights: list[ActWeight]

    @classmethod
    def placeholder(cls) -> ActWeights:
        """An answer of ordinary size, for forecasts."""
        acts = DialogueActs.placeholder().acts
        return cls(weights=[ActWeight(act=act.name, weight=50) for act in acts])


def check_acts(acts: Mapping[str, str]) -> None:
    """Raises `SettingError` unless there is a choice, each act with its description."""
    if len(acts) < 2 or not all(isinstance(text, str) and text.strip() for text in acts.values()):
        raise SettingError("acts", acts, "must be two or more acts, each described")


class GdpZeroAgent(PromptedAgent):
    """Looks ahead with a prompted model: GDP-ZERO (Yu et al. 2023, arXiv 2305.13660).

    Before each turn a tree over dialogue acts is searched (see `gdp_zero.py`); the model gives the
    prior over acts, says the acts in words, foresees the human's replies and estimates the final
    rating. The act visited most is said in the words that did best. Three things differ from the
    paper: its acts are a corpus's annotations, here the model lists them once per task (or they are
    given); its prior counts sampled acts, here one call weighs all of them; its value scores
    sampled replies to the question for a donation, from -1 to 1, here it is the estimated rating,
    scaled to the same range.

    Annotations: `act`; `visits` and `act_values` (from -1 to 1) of the acts at the root. Listing
    the acts belongs to no conversation: `setup_calls` and `setup_cost`.

    Args:
        client: Asks the model.
        task: Gives the description, the roles, the scale and the turn limit.
        acts: Name -> what is done; None lets the model list them.
        speech: As of `PromptedSpeaker`.
        **search: Fields of `SearchConfig`.

    Raises:
        SettingError: Fewer than two acts, or a setting of the search out of bounds.
    """

    prompts = tuple(
        f"agents/gdp_zero_{part}" for part in ("acts", "prior", "say", "human", "value")
    )

    def __init__(
        self,
        client: LLM,
        task: Task,
        acts: Mapping[str, str] | None = None,
        speech: Mapping[str, Any] | None = None,
        **search: Any,
    ):
        super().__init__(client, task, speech)
        if acts is not None:
            check_acts(acts)
        self.search = SearchConfig(**search)
        self.acts = dict(acts) if acts is not None else None
        self.setup_calls, self.setup_cost = 0, 0.0

    @property
    def model_and_version(self) -> dict[str, Any]:
        """Model, prompts and settings of the search."""
        return {**super().model_and_version, "search": dataclasses.asdict(self.search)}

    async def answers(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        if self.acts is None and conversations:
            try:
                await self._list_acts()
            except NoAnswer as reason:
                return [gave_up(self._session(c), reason) for c in conversations]
        return await super().answers(conversations)

    async def _list_acts(self) -> None:
        # The same request in every run and conversation: answered from the cache but for once.
        session = Session(self.client, f"{self.task.name}: acts", "0/0", immediate=True)
        limits = {"fewest": FEWEST_ACTS, "most": MOST_ACTS}
        try:
            answer = await session.ask_prompt(ACTS, DialogueActs, task=self.task, **limits)
        finally:
            self.setup_calls += session.calls
            self.setup_cost += session.cost
        self.acts = {act.name.strip(): act.description for act in answer.acts}

    async def _speak(self, conversation: Conversation, session: Session) -> Utterance:
        game = _PromptedGame(self, session)
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
            "act_values": {name: round(value, 4) for name, value in root.values.items()},
        }
        if failure is not None:
            return gave_up(session, failure, state.line, **notes)
        return self._utterance(state.line, session, **notes)


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """A conversation as the search foresees it.

    Attributes:
        turns: The real turns, then the foreseen ones.
        over: True at its end.
        line: The agent's last line in it, None at the root.
    """

    turns: tuple[Turn, ...]
    over: bool = False
    line: EndableLine | None = None


class _PromptedGame:
    """The game of one turn's search: an LLM answers all of it."""

    def __init__(self, agent: GdpZeroAgent, session: Session):
        self._agent = agent
        self._session = session

    def is_over(self, state: Foreseen) -> bool:
        return state.over

    async def prior(self, state: Foreseen) -> dict[str, float]:
        acts = self._agent.acts
        answer = await self._ask("prior", ActWeights, state.turns, acts=acts)
        answered = {each.act.strip().lower(): each.weight for each in answer.weights}
        # Plus one, as in the published code: none is ruled out.
        weights = {act: 1 + min(max(answered.get(act.lower(), 0.0), 0.0), 100.0) for act in acts}
        total = sum(weights.values())
        return {act: weight / total for act, weight in weights.items()}

    async def step(self, state: Foreseen, act: str) -> Foreseen:
        task = self._agent.task
        described = {"act": act, "description": self._agent.acts[act]}
        line = await self._ask_line("say", state.turns, task.agent_role, **described)
        turns = (*state.turns, Turn("agent", line.text))
        if line.ends:
            return Foreseen(turns, True, line)
        reply = await self._ask_line("human", turns, task.human_role)
        over = reply.ends or self._agent.values(turns)["turns_left"] < 1
        return Foreseen((*turns, Turn("human", reply.text)), over, line)

    async def value(self, state: Foreseen) -> float:
        task = self._agent.task
        worst, best = task.reward_range
        scale = {"worst": worst, "best": best, "anchors": task.anchors()}
        schema = rating_schema(task.reward_range)
        estimates = await gather_all(
            [
                self._ask("value", schema, state.turns, over=state.over, **scale)
                for _ in range(self._agent.search.value_samples)
            ]
        )
        mean = sum(estimate.rating for estimate in estimates) / len(estimates)
        return 2 * (mean - worst) / (best - worst) - 1

    async def _ask_line(
        self, part: str, turns: Sequence[Turn], role: str, **values: Any
    ) -> EndableLine:
        line = await self._ask(part, EndableLine, turns, check=says_something, **values)
        return EndableLine(text=without_own_name(line.text.strip(), role), ends=line.ends)

    async def _ask(self, part: str, schema: Any, turns: Sequence[Turn], **values: Any) -> Any:
        known = self._agent.values(turns)
        return await self._session.ask_prompt(f"agents/gdp_zero_{part}", schema, **known, **values)


AGENTS: dict[str, type[PromptedAgent]] = {
    "plain": PlainAgent,
    "reasoning": ReasoningAgent,
    "clam": ClamAgent,
    "gdp_zero": GdpZeroAgent,
}


def prompted_agent(
    name: str,
    client: LLM,
    task: Task,
    speech: Mapping[str, Any] | None = None,
    **settings: Any,
) -> PromptedAgent:
    """A prompted agent by its name.

    Args:
        name: plain, reasoning, clam or gdp_zero.
        client: Asks the model.
        task: Its task.
        speech: As of `PromptedSpeaker`.
        **settings: For gdp_zero alone: see `GdpZeroAgent` and `SearchConfig`.

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
    return AGENTS[name](client, task, speech=speech, **settings)
