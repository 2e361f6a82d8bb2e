"""Hindsight without an LLM: an embedded world plays controller, forward model and reward model.

Each part has the words of a dialogue and what everybody may know of the world: its prior, its
language and its rules. The persona and the reward that are stored with a dialogue are never read.
From the human's replies follows a posterior over personas; under it, the planner says what each
decision of the agent was worth and what the best one would have been.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from imagination.dialogue import Dialogue, Turn
from imagination.hindsight.regeneration import Branch, Continuation, HindsightError, Proposal
from imagination.simulation.course import Course, follow
from imagination.simulation.dice import AGENT, CONTROLLER, PERSONA, SEED, Dice
from imagination.simulation.planning import Belief, Planner
from imagination.simulation.speakers import BehaviourAgent, SimulatedHuman
from imagination.simulation.world import Act, World
from imagination.speakers import Conversation, converse

# A decision is a mistake where another act was worth more by this fraction of the rating scale.
_TOLERANCE = 0.01
# Planning over all the personas of a wide posterior takes seconds; it is thinned to this many.
_PARTICLES = 8
# Nodes that the planner may remember, at about a kilobyte each.
_MOST_NODES = 1_000_000


class WorldHindsight:
    """Plays the three parts of hindsight by the rules of an embedded world.

    The *controller* looks for the decisions that fell shortest of the best act, both with the
    best continuation, under the posterior of the finished dialogue. What it proposes depends on
    `belief`:

    - `"finished"`: the act that is best under the posterior of the finished dialogue. That knows
      more than the agent could at the time, so it may be a lucky guess (explain at expert level,
      before anything was asked). Offline RL sees such a guess only with the humans whom it suits,
      and takes it for good with all: persona and action are confounded.
    - `"prefix"`: the act that is best under what could be known at that turn (a question,
      perhaps), where it is better in hindsight as well. Which turns are looked at is still told
      by the finished dialogue.

    The *forward model* is the world's human, with a persona drawn from the posterior of the
    finished dialogue, talking with one of the world's behaviours. The *reward model* is the
    expected rating under the posterior that the dialogue's own words leave.

    Args:
        world: The world whose dialogues are looked back on.
        belief: `"finished"` or `"prefix"`, see above.
        error_rate: Probability, for each change, that the controller proposes any other act at any
            turn instead, and says so with the same conviction.
        seed: Source of all its random choices, together with the dialogue's id.

    Raises:
        HindsightError: An unknown belief, or an error rate that is no probability.
    """

    def __init__(
        self,
        world: World,
        *,
        belief: Literal["finished", "prefix"] = "prefix",
        error_rate: float = 0.0,
        seed: int = 0,
    ):
        if belief not in ("finished", "prefix"):
            raise HindsightError(f"belief must be 'finished' or 'prefix', got {belief!r}.")
        if not 0.0 <= error_rate <= 1.0:
            raise HindsightError(f"error_rate is a probability from 0 to 1, got {error_rate}.")
        self.world = world
        self.belief = belief
        self.error_rate = error_rate
        self.seed = seed
        self._planner = Planner(world, "average")
        low, high = world.task.reward_range
        self._tolerance = _TOLERANCE * (high - low)

    # Controller

    def propose(
        self, dialogues: Sequence[Dialogue], max_changes: int
    ) -> list[list[Proposal] | None]:
        """Better utterances for the worst decisions; None for a dialogue of another form.

        The form is that of the world: the human opens, and the sides alternate.
        """
        return [self._propose(dialogue, max_changes) for dialogue in dialogues]

    def posterior(self, turns: Sequence[Turn]) -> dict[tuple[str, ...], float]:
        """Posterior over the human's persona given the words of a dialogue: persona -> probability.

        Raises:
            HindsightError: The human doesn't open, or the sides don't alternate.
        """
        course = follow(self._planner, turns)
        if course is None:
            raise HindsightError(
                f"not a dialogue of world {self.world.name!r}, in which the human opens and the "
                f"sides alternate: {[turn.speaker for turn in turns]}"
            )
        return self._personas(course)

    def _propose(self, dialogue: Dialogue, max_changes: int) -> list[Proposal] | None:
        course = follow(self._planner, dialogue.turns)
        if course is None:
            return None
        self._planner.forget(more_than=_MOST_NODES)
        dice = Dice(CONTROLLER, self.seed, _number_of(dialogue))
        is_wrong = [dice.uniform() < self.error_rate for _ in range(max_changes)]
        mistakes = self._mistakes(course)
        changes: dict[int, _Change] = {}
        for wrong in is_wrong:
            if wrong:
                change = self._misjudged(course, changes, dice)
            else:
                change = next((found for found in mistakes if found.turn not in changes), None)
            if change is not None:
                changes[change.turn] = change
        return [self._worded(dialogue, course.slots, change) for change in changes.values()]

    def _mistakes(self, course: Course) -> Iterator[_Change]:
        """Decisions for which there is a better act, the largest shortfall first."""
        planner, hindsight = self._planner, _thinned(course.belief)
        shortfalls = []
        for decision in course.decisions:
            place = decision.turns_left, decision.state
            taken = planner.act_value(*place, hindsight, decision.act)
            # Rounded, so that of equally bad decisions the first is named first.
            shortfall = round(planner.state_value(*place, hindsight) - taken, 9)
            shortfalls.append((shortfall, taken, decision))
        shortfalls.sort(key=lambda each: each[0], reverse=True)
        for shortfall, taken, decision in shortfalls:
            if shortfall <= self._tolerance:
                return
            place = decision.turns_left, decision.state
            known = hindsight if self.belief == "finished" else _thinned(decision.belief)
            act = planner.best_act(*place, known)
            promised = planner.act_value(*place, hindsight, act)
            if promised - taken > self._tolerance:
                yield _Change(decision.turn, act, promised, taken)

    def _misjudged(self, course: Course, changed: Collection[int], dice: Dice) -> _Change | None:
        """Any other act at any turn, mistaken for the best one, and the best one for it."""
        left = [decision for decision in course.decisions if decision.turn not in changed]
        if not left:
            return None
        decision = left[dice.below(len(left))]
        others = [act for act in self.world.acts if act != decision.act]
        act = others[dice.below(len(others))]
        place, hindsight = (decision.turns_left, decision.state), _thinned(course.belief)
        worth = self._planner.act_value(*place, hindsight, act)
        return _Change(decision.turn, act, self._planner.state_value(*place, hindsight), worth)

    def _worded(self, dialogue: Dialogue, slots: Mapping[str, str], change: _Change) -> Proposal:
        dice = Dice(AGENT, self.seed, _number_of(dialogue), change.turn)
        slots = {**self.world.draw_slots(0), **slots}  # what the human named, or anything
        return Proposal(
            turn=change.turn,
            utterance=self.world.acts[change.act].expand(dice, slots),
            reason=(
                f"{change.act}: expected rating {change.promised:.2f} instead of {change.taken:.2f}"
            ),
        )

    # Forward model

    def play(self, branches: Sequence[Branch]) -> list[Continuation | None]:
        """The rest of each conversation; None where the parent is of another form."""
        courses = [follow(self._planner, branch.parent.turns) for branch in branches]
        conversations = {
            index: self._resumed(branch, course)
            for index, (branch, course) in enumerate(zip(branches, courses, strict=True))
            if course is not None
        }
        agent, human = BehaviourAgent(self.world), SimulatedHuman(self.world)
        converse(agent, human, list(conversations.values()), self.world.task)
        return [
            self._rest(branch, conversations[index]) if index in conversations else None
            for index, branch in enumerate(branches)
        ]

    def _resumed(self, branch: Branch, course: Course) -> Conversation:
        stream = (self.seed, _number_of(branch.parent), branch.proposal.turn)
        persona = Dice(PERSONA, *stream).choose(self._personas(course))
        return Conversation(
            id=branch.parent.id,
            persona=self.world.persona_values(persona),
            seed=Dice(SEED, *stream).integer() >> 1,
            turns=list(branch.prefix),
        )

    @staticmethod
    def _rest(branch: Branch, conversation: Conversation) -> Continuation:
        # Only words: which act an utterance was stays with the world.
        said = conversation.turns[len(branch.prefix) :]
        turns = tuple(Turn(turn.speaker, turn.text) for turn in said)
        return Continuation(turns, conversation.persona)

    # Reward model

    def rate(self, dialogues: Sequence[Dialogue]) -> list[float | None]:
        """The expected rating given the words; None for a dialogue of another form."""
        return [self._rate(follow(self._planner, dialogue.turns)) for dialogue in dialogues]

    def _rate(self, course: Course | None) -> float | None:
        if course is None:
            return None
        if course.unanswered:  # an agent that ended it is heard to the end
            rating = self._planner.act_value(1, course.state, course.belief, course.act)
        else:
            rating = self._planner.state_value(0, course.state, course.belief)
        return round(rating, 9)  # equal ones stay equal, whatever they were summed up from

    # From words to what happened

    def _personas(self, course: Course) -> dict[tuple[str, ...], float]:
        indices, probabilities = course.belief
        personas = (self._planner.personas[index] for index in indices)
        return dict(zip(personas, probabilities, strict=True))


@dataclasses.dataclass(frozen=True)
class _Change:
    """Another act at a turn, and the ratings that are expected with it and without."""

    turn: int
    act: Act
    promised: float
    taken: float


def _thinned(belief: Belief) -> Belief:
    """At most `_PARTICLES` personas, by systematic resampling; the same ones every time."""
    indices, probabilities = belief
    if len(indices) <= _PARTICLES:
        return belief
    drawn: dict[int, int] = {}
    cumulated = 0.0
    for index, probability in zip(indices, probabilities, strict=True):
        before, cumulated = cumulated, cumulated + probability
        copies = round(cumulated * _PARTICLES) - round(before * _PARTICLES)
        if copies:
            drawn[index] = copies
    total = sum(drawn.values())
    return tuple(drawn), tuple(round(copies / total, 12) for copies in drawn.values())


def _number_of(dialogue: Dialogue) -> int:
    return zlib.crc32(dialogue.id.encode())
