"""Speakers of an embedded world: the simulated human, and agents that know the world.

`SimulatedHuman` is the environment. `BehaviourAgent` writes the data, `OptimalAgent` and
`UniformAgent` mark the ends of the scale. They hear words and answer in words; what each of them
remembers lies in the conversation, so that any number of conversations can be held at once.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imagination.dialogue import Dialogue, Turn
from imagination.persona_sampling import PRIOR_PROBABILITY, PersonaSampling
from imagination.simulation.dice import AGENT, BEHAVIOUR, HUMAN, PERSONA, SEED, Dice
from imagination.simulation.planning import Belief, Planner
from imagination.simulation.world import Act, Persona, State, World, WorldError
from imagination.speakers import Conversation, Utterance


@dataclasses.dataclass(frozen=True)
class Memory:
    """Knowledge of a speaker about a conversation after the first `turns` of its turns."""

    turns: int
    state: State | None
    slots: Mapping[str, str]
    belief: Belief | None = None
    act: Act | None = None


def sample_conversations(
    world: World, population: str, count: int, seed: int, prefix: str
) -> list[Conversation]:
    """Conversations that have yet to begin, with fresh humans.

    Personas are drawn independently from the population's prior. Conversation `i` of a
    population and seed has the same human, with the same dice, whoever the agent is.

    Args:
        world: The world.
        population: `"average"` or `"difficult"`.
        count: Number of conversations.
        seed: Another seed gives other humans.
        prefix: Ids are `<prefix>-<index>`.

    Returns:
        The conversations.

    Raises:
        WorldError: Unknown population.
    """
    return _conversations(world, world.population(population), population, count, seed, prefix)


def imagine_conversations(
    world: World, sampling: PersonaSampling, count: int, seed: int, prefix: str
) -> list[Conversation]:
    """Conversations for the data: like `sample_conversations`, with the humans of a `sampling`.

    Drawn from the prior they are those of the average population.

    Raises:
        SettingError: The world has no personas of a kind that is to take part.
    """
    prior = world.population("average")
    probabilities = sampling.distribution(prior, world.is_difficult)
    return _conversations(world, probabilities, "average", count, seed, prefix)


def as_data(
    dialogues: Sequence[Dialogue],
    sources: Iterable[Mapping[str, Any]],
    about: Callable[[Mapping[str, str]], Mapping[str, Any]],
) -> list[Dialogue]:
    """Played dialogues as data: the words alone, and how likely such a human comes.

    Only words reach the learner: which act an utterance was stays with the world.

    Args:
        dialogues: As they were played.
        sources: Origin of each.
        about: Notes on a persona for the source, as those of `about_personas`.
    """
    made = []
    for dialogue, source in zip(dialogues, sources, strict=True):
        turns = tuple(dataclasses.replace(turn, annotations={}) for turn in dialogue.turns)
        known = {**source, **about(dialogue.persona)}
        made.append(dataclasses.replace(dialogue, turns=turns, source=known))
    return made


def about_personas(world: World) -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """Notes on a world's personas: `difficult`, and the prior probability."""
    prior = world.population("average")

    def about(values: Mapping[str, str]) -> dict[str, Any]:
        persona = world.persona(values)
        return {
            "difficult": bool(world.is_difficult(persona)),
            PRIOR_PROBABILITY: prior[persona],
        }

    return about


def _conversations(
    world: World,
    probabilities: Mapping[Persona, float],
    stream_name: str,
    count: int,
    seed: int,
    prefix: str,
) -> list[Conversation]:
    stream = (seed, zlib.crc32(stream_name.encode()))
    return [
        Conversation(
            id=f"{prefix}-{index}",
            persona=world.persona_values(Dice(PERSONA, *stream, index).choose(probabilities)),
            seed=Dice(SEED, *stream, index).integer() >> 1,
        )
        for index in range(count)
    ]


class SimulatedHuman:
    """The human of a world: understands words, answers in words, rates at the end.

    Each of its turns after the first is annotated with `understood_as`: the act it took the
    agent's last utterance for, None where it couldn't follow. A conversation that was begun by
    others can be gone on with: what happened is recovered from the words.
    """

    def __init__(self, world: World):
        self.world = world

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        acts = self._understand(conversations)
        return [self._answer(c, act) for c, act in zip(conversations, acts, strict=True)]

    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        waiting = [c for c in conversations if self._has_news(c)]
        # An agent that ended the conversation itself is heard to the end before it is rated.
        for conversation, act in zip(waiting, self._understand(waiting), strict=True):
            self._answer(conversation, act)
        return [
            float(self.world.rating(self.world.persona(c.persona), self._memory(c).state))
            for c in conversations
        ]

    def _has_news(self, conversation: Conversation) -> bool:
        return len(conversation.turns) > self._memory(conversation).turns

    def _understand(self, conversations: Sequence[Conversation]) -> list[Act | None]:
        texts = [c.turns[-1].text if c.turns else "" for c in conversations]
        acts = self.world.understand(texts)
        for index, conversation in enumerate(conversations):
            if self.world.names_other_slots(texts[index], self._memory(conversation).slots):
                acts[index] = None
        return acts

    def _memory(self, conversation: Conversation) -> Memory:
        memory = conversation.human_memory
        if memory is None:
            memory = self._recall(conversation)
            conversation.human_memory = memory
        return memory

    def _recall(self, conversation: Conversation) -> Memory:
        if not conversation.turns:
            return Memory(0, None, self.world.draw_slots(conversation.seed))
        state, slots, act, heard = None, {}, None, 0
        for number, turn in enumerate(conversation.turns, start=1):
            if turn.speaker == "agent":
                act = self.world.understand_about(slots, turn.text)
                continue
            if state is None:
                slots = self.world.find_slots(turn.text)
            state, heard = _after_reply(self.world, state, act, turn), number
        return Memory(heard, state, slots)

    def _answer(self, conversation: Conversation, act: Act | None) -> Utterance:
        world, memory = self.world, self._memory(conversation)
        persona = world.persona(conversation.persona)
        dice = Dice(HUMAN, conversation.seed, len(conversation.turns))
        if memory.state is None:
            reply = dice.choose(world.opening(persona))
            state, annotations = world.begin(reply), {}
        else:
            reply = dice.choose(world.replies_to(persona, memory.state, act))
            state, annotations = world.advance(memory.state, act, reply), {"understood_as": act}
        text = world.replies[reply].expand(dice, memory.slots)
        heard = len(conversation.turns) + 1
        conversation.human_memory = Memory(heard, state, memory.slots)
        return Utterance(text, ends=world.is_over(state), annotations=annotations)


class _WorldAgent:
    """An agent that chooses among the world's acts and puts them into words."""

    def __init__(self, world: World):
        self.world = world

    def respond(self, conversations: Sequence[Conversation]) -> list[Utterance]:
        return [self._respond(conversation) for conversation in conversations]

    def _respond(self, conversation: Conversation) -> Utterance:
        memory = conversation.agent_memory or Memory(0, None, {})
        for turn in conversation.turns[memory.turns :]:
            if turn.speaker == "human":
                memory = self._listen(memory, turn)
            else:  # said in its place, in a conversation that others began
                act = self.world.understand_about(memory.slots, turn.text)
                memory = dataclasses.replace(memory, act=act)
        dice = Dice(AGENT, conversation.seed, len(conversation.turns))
        act = dice.choose(self._choose(conversation, memory))
        text = self.world.acts[act].expand(dice, memory.slots)
        conversation.agent_memory = dataclasses.replace(
            memory, turns=len(conversation.turns) + 1, act=act
        )
        return Utterance(text, annotations={"act": act, **self._annotations(conversation)})

    def _listen(self, memory: Memory, turn: Turn) -> Memory:
        slots = memory.slots
        if memory.state is None:
            slots = {**self.world.draw_slots(0), **self.world.find_slots(turn.text)}
        state = _after_reply(self.world, memory.state, memory.act, turn)
        return dataclasses.replace(memory, state=state, slots=slots)

    def _choose(self, conversation: Conversation, memory: Memory) -> Mapping[Act, float]:
        raise NotImplementedError

    def _annotations(self, conversation: Conversation) -> dict[str, str]:
        return {}


class BehaviourAgent(_WorldAgent):
    """Acts as in the data: by one behaviour, or by one per conversation from the mixture.

    Its turns are annotated with `act` and `behaviour`.

    Args:
        world: The world.
        behaviour: Name of one of its behaviours; None draws one for each conversation.

    Raises:
        WorldError: Unknown behaviour.
    """

    def __init__(self, world: World, behaviour: str | None = None):
        super().__init__(world)
        if behaviour is not None and behaviour not in world.behaviours:
            known = ", ".join(world.behaviours)
            raise WorldError(f"world {world.name!r} has no behaviour {behaviour!r}; it has {known}")
        self._behaviour = behaviour
        self._shares = {name: each.share for name, each in world.behaviours.items()}

    def behaviour_of(self, conversation: Conversation) -> str:
        """Name of the behaviour that this conversation has."""
        return self._behaviour or Dice(BEHAVIOUR, conversation.seed).choose(self._shares)

    def _choose(self, conversation: Conversation, memory: Memory) -> Mapping[Act, float]:
        return self.world.choice_of(self.behaviour_of(conversation), memory.state)

    def _annotations(self, conversation: Conversation) -> dict[str, str]:
        return {"behaviour": self.behaviour_of(conversation)}


class UniformAgent(_WorldAgent):
    """Any act, each as likely as the others."""

    def _choose(self, conversation: Conversation, memory: Memory) -> Mapping[Act, float]:
        return dict.fromkeys(self.world.acts, 1.0 / len(self.world.acts))


class OptimalAgent(_WorldAgent):
    """Plays the Bayes-optimal policy of a population, from the words it hears."""

    def __init__(self, world: World, population: str = "average"):
        super().__init__(world)
        self.planner = _planner(world, population)

    def _listen(self, memory: Memory, turn: Turn) -> Memory:
        reply = self.world.hear_loosely(turn.text)
        if memory.state is None:
            belief = self.planner.opened(reply)
        else:
            belief = self.planner.updated(memory.belief, memory.state, memory.act, reply)
        return dataclasses.replace(super()._listen(memory, turn), belief=belief)

    def _choose(self, conversation: Conversation, memory: Memory) -> Mapping[Act, float]:
        used = sum(turn.speaker == "agent" for turn in conversation.turns)
        left = max(1, self.world.task.max_turns - used)
        return {self.planner.best_act(left, memory.state, memory.belief): 1.0}


@functools.cache
def _planner(world: World, population: str) -> Planner:
    return Planner(world, population)


def _after_reply(world: World, state: State | None, act: Act | None, turn: Turn) -> State:
    reply = world.hear_loosely(turn.text)
    return world.begin(reply) if state is None else world.advance(state, act, reply)
