"""Types of `evaluation.json` and `heldout.json`, which the evaluation writes and the report reads.

A run in conversation leaves a `UnitResult` for each network and an `Evaluation` of them all (made
by `comparison.py`); a run on dialogues that were set apart leaves a `Heldout` (by `heldout.py`).
The field names are the keys of the files. A value that does not exist is None: a prompted agent has
no trainings, a human who is played by an LLM no optimum. Rewards are on the task's scale;
**normalized** scores put the mean of the behaviours that write the data at 0 and the optimum at 1,
both exact for the humans of the population. Intervals are 95 % bootstrap intervals
(`statistics.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.evaluation import typed_json
from experiments.evaluation.returns import Discount
from experiments.looks import Look
from imagination.simulation import normalized_score

EVALUATION_SCHEMA = 2  # raised when fields of the classes below are added, removed or redefined
HELDOUT_SCHEMA = 3
UNIT_SCHEMA = 1

Bounds = tuple[float, float]  # low, high

STAGE = "--stage=evaluate"


@dataclasses.dataclass(frozen=True)
class References:
    """Exact mean rewards of a population of an embedded world.

    Attributes:
        behaviour: Mean reward of the mixture of behaviours that wrote the data.
        best_behaviour: Mean reward of the best of these.
        optimum: Mean reward of the optimal policy.
        uniform: Mean reward of an agent that acts at random.
    """

    behaviour: float
    best_behaviour: float
    optimum: float
    uniform: float

    def normalized(self, reward: float) -> float | None:
        """A reward as a normalized score; None in a world whose data is optimal already."""
        if not self.optimum > self.behaviour:
            return None
        return normalized_score(reward, dataclasses.asdict(self))

    def normalized_difference(self, difference: float) -> float | None:
        """A difference of rewards as one of normalized scores; None as of `normalized`."""
        if not self.optimum > self.behaviour:
            return None
        return difference / (self.optimum - self.behaviour)


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a method.

    Attributes:
        seed: Number of the training, from 0.
        mean_reward: Over the episodes that were rated with every seed; None where there are none.
        normalized: The same as a normalized score; None without references.
        decoding: Chosen on validation episodes.
        seconds: The training took, over all its sessions.
    """

    seed: int
    mean_reward: float | None
    normalized: float | None
    decoding: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class PromptedAgent:
    """An agent that is an LLM with a prompt.

    Attributes:
        model: Name of the LLM.
        prompt: Versions of the prompts.
        calls: Mean number of calls a conversation.
        cost: Mean dollars a conversation; None where no prices are set.
        setup_calls: Calls before the first conversation; None where the agent needs no setup.
        setup_cost: Dollars of these; None without setup or prices.
        search: Settings of the tree search; None for the other agents.
    """

    model: str
    prompt: str
    calls: float
    cost: float | None
    setup_calls: int | None
    setup_cost: float | None
    search: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class PlayedHuman:
    """Humans who were played by an LLM in the conversations of one method.

    Attributes:
        calls: Mean number of calls a conversation.
        cost: Mean dollars a conversation; None where no prices are set.
        slips: Kind of slip -> how often, over all conversations.
    """

    calls: float
    cost: float | None
    slips: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A method with the humans of one population.

    Attributes:
        look: Title, colour and marker.
        episodes: Humans it talked with, the same for each seed.
        unrated: Conversations without a rating, left out of means and tests.
        broken_off: Conversations in which the agent gave no answer, rated the worst.
        mean_reward: Over seeds and the episodes rated with every seed; None where there are none.
        ci95: Interval of the mean reward.
        normalized: Mean reward as a normalized score; None without references.
        normalized_ci95: Its interval.
        success_rate: Share of the rated conversations that reach the task's bar for success.
        turns: Mean number of the agent's utterances.
        not_understood: Mean number of the agent's utterances that the human could not follow; None
            where the human is played by an LLM.
        trainings: One for each seed; empty for a prompted agent.
        prompted_agent: None for a trained method.
        played_human: None where the human is that of the embedded world.
    """

    look: Look
    episodes: int
    unrated: int
    broken_off: int
    mean_reward: float | None
    ci95: Bounds | None
    normalized: float | None
    normalized_ci95: Bounds | None
    success_rate: float | None
    turns: float
    not_understood: float | None
    trainings: tuple[Training, ...]
    prompted_agent: PromptedAgent | None
    played_human: PlayedHuman | None

    @property
    def conversations(self) -> int:
        """Conversations in all: episodes with each training, or with the one prompted agent."""
        return self.episodes * max(1, len(self.trainings))

    @property
    def train_seconds(self) -> float | None:
        """Mean seconds of a training."""
        if not self.trainings:
            return None
        return sum(training.seconds for training in self.trainings) / len(self.trainings)

    @property
    def decoding(self) -> str | None:
        """The decoding setting chosen; all of them, where seeds differ."""
        chosen = dict.fromkeys(training.decoding for training in self.trainings)
        return " / ".join(chosen) or None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pairwise test of two methods on the episodes that both have a rating of.

    Attributes:
        a: Name of one method.
        b: Name of the other.
        episodes: That both have.
        difference: Mean reward of a minus that of b; None where there are no such episodes.
        p: For the agents as trained, on other humans (`statistics.compare`).
        p_holm: The same after Holm's correction for the number of pairs.
        p_training: For training the methods again (`statistics.compare_trainings`); None where a
            method has one seed.
        p_training_holm: The same after Holm's correction.
    """

    a: str
    b: str
    episodes: int
    difference: float | None
    p: float | None
    p_holm: float | None
    p_training: float | None
    p_training_holm: float | None


@dataclasses.dataclass(frozen=True)
class Population:
    """All methods with the same humans.

    Attributes:
        references: None where the humans are not those of an embedded world.
        methods: Name -> scores.
        tests: One for each pair of methods.
    """

    references: References | None
    methods: Mapping[str, Scores]
    tests: tuple[Comparison, ...]


@dataclasses.dataclass(frozen=True)
class HumanPlayer:
    """The LLM that played the humans.

    Attributes:
        model: Its name.
        prompt: Version of the prompt that it talks with.
        rating_prompt: Version of the prompt that it rates with.
        guidance: Remarks on such people that were added to the prompt.
    """

    model: str
    prompt: str
    rating_prompt: str
    guidance: str


@dataclasses.dataclass(frozen=True)
class AgentPlayer:
    """The LLM behind a prompted agent.

    Attributes:
        model: Its name.
        prompt: Versions of the prompts.
        search: Settings of the tree search; None for the other agents.
    """

    model: str
    prompt: str
    search: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class UnitResult:
    """Content of `evaluation/<unit>.json`: how a unit was made to talk, and with whom.

    Attributes:
        decoding: Chosen on validation episodes; None for a prompted agent.
        validation: Decoding setting -> mean reward on validation episodes; None where none of them
            was rated. Empty where there was nothing to choose.
        agent: None for a trained network.
        human: None where the humans are those of an embedded world.
        setup_calls: Calls of a prompted agent before the first conversation; None without setup.
        setup_cost: Dollars of these.
    """

    decoding: str | None
    validation: Mapping[str, float | None]
    agent: AgentPlayer | None
    human: HumanPlayer | None
    setup_calls: int | None
    setup_cost: float | None
    schema: int = UNIT_SCHEMA

    def write(self, path: Path) -> None:
        typed_json.write(path, self)

    @classmethod
    def read(cls, path: Path) -> UnitResult:
        """Raises `ResultsError` for a file that `write` has not written."""
        return typed_json.read(path, cls, STAGE)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Content of `evaluation.json`.

    Attributes:
        task: Name of the task.
        success_reward: Reward from which a conversation is a success.
        human: None where the humans are those of an embedded world.
        population: Name -> results; "average" comes first.
    """

    task: str
    success_reward: float
    human: HumanPlayer | None
    population: Mapping[str, Population]
    schema: int = EVALUATION_SCHEMA

    def write(self, path: Path) -> None:
        typed_json.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Raises `ResultsError` for a file that `write` has not written."""
        return typed_json.read(path, cls, STAGE)


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Dialogues of similar predictions (`statistics.calibration_bins`).

    Attributes:
        predicted: Mean prediction.
        observed: Mean outcome, in the same unit.
        count: Dialogues in the bin.
        low: Lower end of the interval of `observed`.
        high: Upper end.
    """

    predicted: float
    observed: float
    count: int
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PredictionPoint:
    """Values at one point of held-out dialogues against their outcomes.

    Attributes:
        point: Share of the dialogue seen, in [0, 1].
        auroc_v: AUROC of success, by V; None where all dialogues succeed or all fail.
        auroc_v_ci95: Its interval; None where resampling gives none (`bootstrap_auroc`).
        auroc_q: AUROC of success, by Q of the agent's utterance at this point.
        auroc_q_ci95: Its interval.
        calibration: Q against the discounted return from this utterance on.
    """

    point: float
    auroc_v: float | None
    auroc_v_ci95: Bounds | None
    auroc_q: float | None
    auroc_q_ci95: Bounds | None
    calibration: tuple[CalibrationBin, ...]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval; None for the latter where it is not known."""

    value: float
    ci95: Bounds | None


@dataclasses.dataclass(frozen=True)
class TurnPrediction:
    """Values at one of the agent's turns in held-out dialogues against their outcomes.

    Attributes:
        turn: Counted from 1.
        and_later: True for this turn and all later ones together.
        dialogues: That reach it.
        v: Rank correlation of V, before the agent spoke, with the discounted return from there on;
            None where all returns or all values are the same.
        q: The same of Q, of what it said.
        error: Mean of Q minus the return.
        spread: Standard deviation of the returns.
    """

    turn: int
    and_later: bool
    dialogues: int
    v: Estimate | None
    q: Estimate | None
    error: Estimate
    spread: float


@dataclasses.dataclass(frozen=True)
class HeldoutPolicy:
    """A method's policy on the words of real agents.

    Attributes:
        look: Title, colour and marker.
        perplexity: Per agent token, mean over the seeds.
        per_seed: The same of each seed, from seed 0 on.
    """

    look: Look
    perplexity: float
    per_seed: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Success:
    """The outcome that values are to foretell.

    Attributes:
        words: Meaning of success; "" where the task does not say.
        reward: Reward from which a dialogue is a success.
        share: Share of the test dialogues that succeed.
    """

    words: str
    reward: float
    share: float


@dataclasses.dataclass(frozen=True)
class Reply:
    """Words of a method's first training at a moment of a held-out dialogue.

    Attributes:
        text: The utterance.
        decoding: By which it was chosen.
        q: Its value; None where the method learned none, or chose without them.
        v: Value of the moment before it, or None, as `q`.
    """

    text: str
    decoding: str
    q: float | None
    v: float | None


@dataclasses.dataclass(frozen=True)
class Moment:
    """A turn of an agent in a held-out dialogue, and what the methods say in its place.

    Attributes:
        dialogue: Id of the dialogue.
        turn: Number of the turn in it, from 0 on.
        replies: Name of a method -> its reply to the turns before.
    """

    dialogue: str
    turn: int
    replies: Mapping[str, Reply]


@dataclasses.dataclass(frozen=True)
class Heldout:
    """Content of `heldout.json`.

    Attributes:
        task: Name of the task.
        sizes: Part of the data ("train", "test") -> number of dialogues.
        success: The outcome that values are to foretell.
        methods: Name -> policy.
        pretrained_perplexity: Perplexity of the network that all started from, before training, on
            the same words; None where they started from fresh ones.
        discounts: Name of a method that learns values -> discount of these.
        value_prediction: Name of such a method -> points, from the start of a dialogue to its end;
            values are means over trainings.
        by_turn: Name of such a method -> turns that enough dialogues reach.
        sample_replies: Most of the moments, as the settings have it.
        moments: Turns at which the methods' replies can be set beside what was said.
    """

    task: str
    sizes: Mapping[str, int]
    success: Success
    methods: Mapping[str, HeldoutPolicy]
    pretrained_perplexity: float | None
    discounts: Mapping[str, Discount]
    value_prediction: Mapping[str, tuple[PredictionPoint, ...]]
    by_turn: Mapping[str, tuple[TurnPrediction, ...]]
    sample_replies: int
    moments: tuple[Moment, ...]
    schema: int = HELDOUT_SCHEMA

    def write(self, path: Path) -> None:
        typed_json.write(path, self)

    @classmethod
    def read(cls, path: Path) -> Heldout:
        """Raises `ResultsError` for a file that `write` has not written."""
        return typed_json.read(path, cls, STAGE)
