"""`World`: a task with hidden humans, written as data.

A world says who may come (personas and their prior), what the agent can do (acts) and the human
answer (replies), both with many phrasings, how a reply follows from persona and conversation,
and how a finished conversation is rated. What has been heard so far is kept in a small public
`state`; together with a belief over personas it is all that an agent can use, which is why the
optimum can be computed exactly (`planning.py`). Nothing but words passes between the speakers.

Each task of `WORLDS` is a file beside it, `docs/own_task.md` shows how to write one, `speakers.py`
makes them talk.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

from ilql_jax.errors import UserError
from imagination.simulation import grammar
from imagination.simulation.dice import SLOTS, Dice
from imagination.simulation.grammar import Phrasing
from imagination.simulation.plain_words import plainly
from imagination.simulation.understanding import Understanding
from imagination.task import Task

Persona = tuple[str, ...]
State = Hashable
Act = str
Reply = str

POPULATIONS = ("average", "difficult")


class WorldError(UserError, ValueError):
    """A world that cannot be used. The message names the place, the value and the way out."""


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A sub-optimal way to act that writes part of the data.

    Attributes:
        share: Its share of the conversations.
        choose: State -> probabilities of the agent's acts. It sees what was heard, no persona.
        listens: False for one that is shown the situation instead, not what was heard. (Its
            exact value is found much faster.)
    """

    share: float
    choose: Callable[[State], Mapping[Act, float]]
    listens: bool = True


def _same(state: State) -> State:
    return state


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A task with simulated humans. Act `None` stands for an utterance that isn't understood.

    Attributes:
        task: Name, description, persona axes, rating scale and turn limit.
        prior: Persona (its values in the order of `task.persona_axes`) -> probability.
        is_difficult: Tells whether a persona belongs to the difficult population.
        acts: Act of the agent -> its phrasings.
        replies: Reply of the human -> its phrasings. No text may stand for two replies.
        slots: Public things the human names when opening (a topic) -> possible values.
        opening: Persona -> probabilities of the first reply.
        begin: First reply -> state.
        reply: Persona, state, act (or None) -> probabilities of the reply.
        advance: State, act (or None), reply -> next state.
        is_over: Tells whether the conversation has ended in this state.
        rating: Persona, last state -> rating on the task's scale.
        behaviours: Name -> behaviour; their shares sum to 1.
        situation: State -> the state with what was merely heard blanked out: all that replies,
            rating and the next situation depend on beside the persona. Optional; it lets the
            planner see when two conversations have come to the same point.
        mood: State, act -> the state with all blanked out that the reply to this act does not
            depend on. Optional; replies are then worked out less often.
        ceiling: Persona, state -> a bound on the rating that can still be reached. Optional; the
            tighter it is, the less the planner has to look at.
        plain_words: Reply -> templates of short words that people say for it, and the humans of
            the world never do. Optional; one text may stand for several replies, of which the
            first that can be given is heard.
    """

    task: Task
    prior: Mapping[Persona, float]
    is_difficult: Callable[[Persona], bool]
    acts: Mapping[Act, Phrasing]
    replies: Mapping[Reply, Phrasing]
    slots: Mapping[str, Sequence[str]]
    opening: Callable[[Persona], Mapping[Reply, float]]
    begin: Callable[[Reply], State]
    reply: Callable[[Persona, State, Act | None], Mapping[Reply, float]]
    advance: Callable[[State, Act | None, Reply], State]
    is_over: Callable[[State], bool]
    rating: Callable[[Persona, State], float]
    behaviours: Mapping[str, Behaviour]
    situation: Callable[[State], State] = _same
    mood: Callable[[State, Act | None], State] | None = None
    ceiling: Callable[[Persona, State], float] | None = None
    plain_words: Mapping[Reply, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.task.name

    def population(self, name: str) -> dict[Persona, float]:
        """Personas of positive probability in the `"average"` or `"difficult"` population.

        Raises:
            WorldError: Another name, or a world without difficult personas.
        """
        if name not in POPULATIONS:
            raise WorldError(f"unknown population {name!r}; there are {', '.join(POPULATIONS)}")
        chosen = {
            persona: probability
            for persona, probability in self.prior.items()
            if probability > 0 and (name == "average" or self.is_difficult(persona))
        }
        total = sum(chosen.values())
        if not total > 0:
            raise WorldError(
                f"world {self.name!r}: no persona of the {name} population is possible"
            )
        return {persona: probability / total for persona, probability in chosen.items()}

    def persona(self, values: Mapping[str, str]) -> Persona:
        """The persona with these values, axis -> value.

        Raises:
            WorldError: Unknown or missing axis or value.
        """
        key = tuple(values.get(axis, "") for axis in self.task.persona_axes)
        if key not in self._personas or set(values) != set(self.task.persona_axes):
            axes = "; ".join(f"{a}: {', '.join(v)}" for a, v in self.task.persona_axes.items())
            raise WorldError(
                f"world {self.name!r} has no persona {dict(values)}; one value for each of: {axes}"
            )
        return self._personas[key]

    @functools.cached_property
    def _personas(self) -> dict[tuple[str, ...], Persona]:
        # Worlds may use named tuples; what comes in from a dialogue are plain values.
        return {tuple(persona): persona for persona in self.prior}

    def persona_values(self, persona: Persona) -> dict[str, str]:
        """Axis -> value, as it stands in a dialogue."""
        return dict(zip(self.task.persona_axes, persona, strict=True))

    def mood_for(self, state: State, act: Act | None) -> State:
        """Part of the state that the reply to this act depends on."""
        return self.situation(state) if self.mood is None else self.mood(state, act)

    def choice_of(self, behaviour: str, state: State) -> Mapping[Act, float]:
        """Choice of a behaviour in this state: act -> probability."""
        chosen = self.behaviours[behaviour]
        return chosen.choose(state if chosen.listens else self.situation(state))

    def replies_to(self, persona: Persona, state: State, act: Act | None) -> Mapping[Reply, float]:
        """`reply`, remembered by mood."""
        return self.replies_in(persona, self.mood_for(state, act), act)

    def replies_in(self, persona: Persona, mood: State, act: Act | None) -> Mapping[Reply, float]:
        """`reply` in a mood, remembered."""
        by_persona = self._reply_cache.setdefault((mood, act), {})
        replies = by_persona.get(persona)
        if replies is None:
            replies = by_persona[persona] = self.reply(persona, mood, act)
        return replies

    @functools.cached_property
    def _reply_cache(self) -> dict[tuple[State, Act | None], dict[Persona, Mapping[Reply, float]]]:
        return {}

    # Words

    def draw_slots(self, seed: int) -> dict[str, str]:
        """The public slots of the conversation with this seed."""
        dice = Dice(seed, SLOTS)
        return {slot: values[dice.below(len(values))] for slot, values in self.slots.items()}

    def find_slots(self, text: str) -> dict[str, str]:
        """Slots that the text names; where it names two values of one slot, the first."""
        slots = {}
        for slot, pattern in self._slot_patterns.items():
            if match := pattern.search(text):
                slots[slot] = self._slot_values[slot][match.group().lower()]
        return slots

    def names_other_slots(self, text: str, slots: Mapping[str, str]) -> bool:
        """True where the text names another value of a slot than the conversation's."""
        for slot, pattern in self._slot_patterns.items():
            named = {self._slot_values[slot][value.lower()] for value in pattern.findall(text)}
            if named and slots.get(slot) not in named:
                return True
        return False

    def understand(self, texts: Sequence[str]) -> list[Act | None]:
        """The act of each of the agent's utterances; None where it is not understood."""
        return self.agent_understanding.understand(texts)

    def understand_about(self, slots: Mapping[str, str], text: str) -> Act | None:
        """The act of an utterance in the conversation with these slots.

        None where it is not understood or speaks of another value of a slot.
        """
        (act,) = self.understand([text])
        return None if self.names_other_slots(text, slots) else act

    def hear(self, text: str) -> Reply | None:
        """The reply that these words of the simulated human stand for.

        The exact inverse of the phrasings; None for words that no reply has.
        """
        return self._reply_of_form.get(self._masked(text))

    def hear_loosely(self, text: str) -> Reply:
        """Like `hear`, and for a person's words the reply that comes closest."""
        if exact := self.hear(text):
            return exact
        return next(iter(self.hear_plainly(text)), None) or self.human_understanding.nearest(text)

    def hear_plainly(self, text: str) -> Sequence[Reply]:
        """Replies that a person's plain words may stand for, in the world's order.

        Empty for words that the simulated human says, too: these are exact.
        """
        return self._replies_of_plain.get(plainly(text), ()) if self.hear(text) is None else ()

    @functools.cached_property
    def _replies_of_plain(self) -> dict[str, list[Reply]]:
        found: dict[str, list[Reply]] = {}
        for reply, templates in self.plain_words.items():
            texts = (plainly(form) for each in templates for form in grammar.forms(each))
            for text in filter(None, dict.fromkeys(texts)):
                found.setdefault(text, []).append(reply)
        return found

    @functools.cached_property
    def agent_understanding(self) -> Understanding:
        return Understanding(self.acts, self.slots)

    @functools.cached_property
    def human_understanding(self) -> Understanding:
        return Understanding(self.replies, self.slots)

    @functools.cached_property
    def _slot_values(self) -> dict[str, dict[str, str]]:
        return {s: {value.lower(): value for value in values} for s, values in self.slots.items()}

    @functools.cached_property
    def _slot_patterns(self) -> dict[str, re.Pattern[str]]:
        patterns = {}
        for slot, values in self.slots.items():
            longest_first = sorted(map(re.escape, values), key=len, reverse=True)
            patterns[slot] = re.compile(rf"\b(?:{'|'.join(longest_first)})\b", re.IGNORECASE)
        return patterns

    def _masked(self, text: str) -> str:
        text = " ".join(text.split())
        for slot, pattern in self._slot_patterns.items():
            text = pattern.sub(f"{{{slot}}}", text)
        return text.lower()

    @functools.cached_property
    def _reply_of_form(self) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        for reply, phrasing in self.replies.items():
            for form in phrasing.forms():
                other = found.setdefault(form.lower(), reply)
                if other != reply:
                    raise WorldError(
                        f"world {self.name!r}: {form!r} is a phrasing of reply {other!r} and of "
                        f"reply {reply!r}; who hears it could not tell them apart. Reword one."
                    )
        return found

    def check_replies_differ(self) -> None:
        """Raises `WorldError` if some text stands for two replies."""
        _ = self._reply_of_form

    # Size of the language

    def surface_forms(self) -> int:
        """Different utterances of agent and human, slots left open."""
        phrasings = (*self.acts.values(), *self.replies.values())
        return len({form for phrasing in phrasings for form in phrasing.forms()})

    def vocabulary(self) -> set[str]:
        """Lower-cased words that agent and human use, slot values included."""
        words = set()
        for phrasing in (*self.acts.values(), *self.replies.values()):
            for template in phrasing.templates:
                words |= _words_of(grammar.slots_removed(template))
        for values in self.slots.values():
            words |= {word for value in values for word in _words_of(value)}
        return words


def _words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def mix(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """Mixes distributions over acts, each given with its weight; for behaviours."""
    mixed: dict[str, float] = {}
    for weight, part in parts:
        for option, probability in part.items():
            mixed[option] = mixed.get(option, 0.0) + weight * probability
    return mixed


def any_of(*options: str) -> dict[str, float]:
    """Distributes probability evenly over the options."""
    return dict.fromkeys(options, 1.0 / len(options))
