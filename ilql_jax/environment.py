"""Environments of tokens: playing many episodes at once, and what they bring on average.

An `Environment` shows observations and takes actions, both as tokens. A `Player` answers contexts:
a trained `Policy`, or a rule (`ScriptedPlayer`). `rollout` lets one play the other and gives
trajectories, which can be learned from (`fitting.fit`); `evaluate` sums them up. Nothing here knows
of dialogues, tokenizers or tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from ilql_jax.errors import UserError, shown
from ilql_jax.progress import progress_bar
from ilql_jax.trajectory import Trajectory
from ilql_jax.windows import context_start

Tokens = Int[np.ndarray, " time"]


class Step(NamedTuple):
    """An environment's answer to an action; the fields are Gymnasium's.

    Attributes:
        observation: int [T], tokens shown next; may be empty only at the end.
        reward: For the action just taken; finite. In the trajectory it stands at its last token.
        terminated: The episode is over, and nothing more could have been earned.
        truncated: The environment stops here, though more could have been earned (a time limit):
            values bootstrap from the last observation.
    """

    observation: Tokens | Sequence[int]
    reward: float
    terminated: bool = False
    truncated: bool = False


class Environment(Protocol):
    """A partially observed decision process in tokens. One object plays one episode at a time."""

    def reset(self, seed: int) -> Tokens | Sequence[int]:
        """Begins an episode, which the seed determines, and returns the first observation.

        At least one token: the first decision needs a state before it.
        """
        ...

    def step(self, action: Tokens) -> Step | tuple:
        """Takes the tokens of an action, as the player wrote them (with its stop token).

        Returns a `Step`, or a plain tuple of its fields.
        """
        ...


class Player(Protocol):
    """Someone who acts; `Policy` is one.

    Attributes:
        max_context: Most tokens of a context that `respond` takes; None = any number.
    """

    max_context: int | None

    def respond(self, contexts: Sequence[Tokens], seeds: Sequence[int]) -> Sequence[Any]:
        """Answers every context with an object whose `tokens`, int32 [S], are the action.

        A context and its seed determine the answer.
        """
        ...


class Action(NamedTuple):
    """A player's answer.

    Attributes:
        tokens: int32 [S], the stop token included.
    """

    tokens: Tokens


@dataclasses.dataclass(frozen=True)
class ScriptedPlayer:
    """A player by a rule, e.g. at random: for behaviour data, and to compare with.

    Attributes:
        choose: `choose(context, rng)` gives the tokens of the next action, the stop token included.
            All its chance must come from `rng`, a NumPy generator made from the seed.
        max_context: Most tokens that it is shown; None = the whole episode so far.
    """

    choose: Callable[[Tokens, np.random.Generator], Tokens | Sequence[int]]
    max_context: int | None = None

    def respond(self, contexts: Sequence[Tokens], seeds: Sequence[int]) -> list[Action]:
        """The rule's action in each context."""
        return [
            Action(np.asarray(self.choose(context, np.random.default_rng(seed)), np.int32))
            for context, seed in zip(contexts, seeds, strict=True)
        ]


class PlayError(UserError, ValueError):
    """An environment or a player that breaks its protocol; names the episode and the turn."""


def rollout(
    player: Player,
    make_environment: Callable[[], Environment],
    seeds: Sequence[int],
    *,
    max_turns: int,
    parallel: int = 64,
    context: int | None = None,
    progress: bool = True,
) -> list[Trajectory]:
    """Plays one episode for each seed; all that are in play are answered in one batch.

    An episode that has ended makes room for the next. What is drawn in an episode depends on its
    seed alone: the environment's chance, and with the turn the player's.

    A context that has become longer than the player reads begins anew at a later turn, as windows
    of training data do (see `windows.py`).

    Args:
        player: Player whose actions are taken.
        make_environment: Makes an environment; called at most `parallel` times, each is used for
            one episode after the other.
        seeds: One an episode, at least 0.
        max_turns: Actions after which an episode is cut off (`terminal` is false then).
        parallel: Episodes in play at the same time.
        context: Tokens that are kept of a context that has become too long; half of
            `max_context` by default.
        progress: Show a bar in the terminal.

    Returns:
        The whole episodes, in the order of the seeds, named "episode <seed>".

    Raises:
        PlayError: An environment or player that breaks its protocol; an observation longer than
            the player reads.
    """
    if max_turns < 1 or parallel < 1:
        raise ValueError(f"max_turns is {max_turns}, parallel {parallel}; both must be at least 1.")
    seeds = [int(seed) for seed in seeds]
    if min(seeds, default=0) < 0:
        raise ValueError(f"seeds has {min(seeds)}, but seeds must be at least 0.")
    longest = _max_context(player)
    waiting = list(enumerate(seeds))[::-1]
    environments = [make_environment() for _ in range(min(parallel, len(seeds)))]
    playing: list[_Episode] = []
    finished: dict[int, Trajectory] = {}
    bar = progress_bar("episodes", len(seeds), "episodes") if progress else contextlib.nullcontext()
    with bar as update:
        while waiting or playing:
            while waiting and environments:
                playing.append(_Episode(*waiting.pop(), environments.pop()))
            answers = player.respond(
                [each.context(longest, context) for each in playing],
                [each.turn_seed() for each in playing],
            )
            is_list = hasattr(answers, "__len__")
            if not is_list or len(answers) != len(playing):
                given = len(answers) if is_list else shown(answers, 80, repr)
                raise PlayError(
                    f"the player was shown {len(playing)} contexts, but respond returned {given}. "
                    "Return a list with one answer for each, in their order."
                )
            for episode, answer in zip(playing, answers, strict=True):
                episode.act(answer, max_turns)
            for episode in [each for each in playing if each.ended]:
                playing.remove(episode)
                environments.append(episode.environment)
                finished[episode.number] = episode.trajectory()
            if update:
                update(len(finished), "")
    return [finished[number] for number in range(len(seeds))]


def _max_context(player: Player) -> int | None:
    """Most tokens that a player reads; raises `PlayError` for one that does not tell."""
    longest = getattr(player, "max_context", 0)
    is_whole = isinstance(longest, numbers.Integral)
    if longest is not None and not (is_whole and longest >= 1):
        has = f"is {shown(longest, 80, repr)}" if hasattr(player, "max_context") else "is missing"
        raise PlayError(
            f"max_context of the player ({type(player).__name__}) {has}. Give it the most tokens "
            "that respond takes, or None for any number."
        )
    return longest


class _Episode:
    """An episode in play."""

    def __init__(self, number: int, seed: int, environment: Environment):
        self.number, self.seed, self.environment = number, seed, environment
        self.terminated = self.ended = False
        self.pieces: list[np.ndarray] = []  # observation, action, observation, ...
        self.rewards: list[float] = []  # one an action
        self.turn_starts = [0]
        self.first_seen = 0  # where the player's context begins
        observation = environment.reset(seed)
        if isinstance(observation, tuple) and len(observation) == 2:
            first, about = observation
            if isinstance(about, Mapping) or isinstance(first, list | tuple | np.ndarray):
                self._fail(
                    "reset returned a pair, as Gymnasium's does, but must return the tokens of the "
                    "first observation alone: leave out the second"
                )
        observation = self._tokens(observation, "observation")
        if not len(observation):
            self._fail("reset showed no tokens; a decision needs a state before it")
        self.pieces.append(observation)

    def turn_seed(self) -> int:
        """Seed of the player's next action."""
        mixed = np.random.SeedSequence([self.seed, len(self.rewards)])
        return int(mixed.generate_state(1)[0])

    def context(self, longest: int | None, kept: int | None) -> np.ndarray:
        """Returns the tokens shown to the player: all so far, or from a later turn on."""
        tokens = np.concatenate(self.pieces)
        if longest is not None and len(tokens) - self.first_seen > longest:
            kept = longest // 2 if kept is None else min(kept, longest)
            self.first_seen = context_start(np.array(self.turn_starts), len(tokens), kept)
            if len(tokens) - self.first_seen > longest:
                self._fail(
                    f"an observation of {len(tokens) - self.first_seen} tokens is longer than the "
                    f"{longest} that the player reads. Shorten it, or raise max_positions"
                )
        return tokens[self.first_seen :]

    def act(self, answer: Any, max_turns: int) -> None:
        """Gives the environment the action of a player's answer."""
        if not hasattr(answer, "tokens"):
            self._fail(
                f"the player answered {shown(answer, 80, repr)}, but each answer must have the "
                "action as its `tokens`, e.g. Action(tokens)"
            )
        action = self._tokens(answer.tokens, "action")
        if not len(action):
            self._fail("the player's action has no tokens")
        answer = self.environment.step(action)
        if not isinstance(answer, tuple | list) or not 2 <= len(answer) <= len(Step._fields):
            self._fail(
                f"step returned {shown(answer, 80, repr)}, but must return "
                f"({', '.join(Step._fields)})"
            )
        answer = Step(*answer)
        observation = self._tokens(answer.observation, "observation")
        try:
            reward = float(answer.reward)
        except (TypeError, ValueError, OverflowError):
            reward = math.nan
        if not math.isfinite(reward):
            self._fail(f"reward is {shown(answer.reward)}, but must be a finite number")
        self.pieces += [action, observation]
        self.rewards.append(reward)
        self.turn_starts.append(sum(map(len, self.pieces)) - len(observation))
        self.terminated = bool(answer.terminated)
        out_of_time = bool(answer.truncated) or len(self.rewards) >= max_turns
        self.ended = self.terminated or out_of_time
        if not self.ended and not len(observation):
            self._fail("step showed no tokens, but the episode goes on")

    def trajectory(self) -> Trajectory:
        """The episode as data; each reward stands at its action's last token."""
        is_action = np.concatenate(
            [np.full(len(piece), index % 2 == 1) for index, piece in enumerate(self.pieces)]
        )
        rewards = np.zeros(len(is_action), np.float32)
        ends = np.cumsum([len(piece) for piece in self.pieces])
        rewards[ends[1::2] - 1] = self.rewards
        return Trajectory(
            tokens=np.concatenate(self.pieces),
            is_action=is_action,
            rewards=rewards,
            terminal=self.terminated,
            name=f"episode {self.seed}",
        )

    def _tokens(self, tokens: Any, of: str) -> np.ndarray:
        try:
            array = np.asarray(tokens)
        except ValueError:  # lists of several lengths
            array = np.empty((0, 0))
        if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
            self._fail(f"{of} is {shown(tokens, 80, repr)}, but must be a vector of token ids")
        return array.astype(np.int32)

    def _fail(self, problem: str) -> None:
        raise PlayError(f"episode {self.seed}, turn {len(self.rewards)}: {problem}.")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Returns of a player in an environment.

    Attributes:
        episodes: Episodes that were played, whole.
        mean_return: Mean of their undiscounted returns.
        interval: Bounds of its confidence interval, by the bootstrap over episodes.
        confidence: Confidence of that interval.
    """

    episodes: list[Trajectory] = dataclasses.field(repr=False)
    mean_return: float
    interval: tuple[float, float]
    confidence: float

    @property
    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Undiscounted return of each episode."""
        return np.array([episode.total_reward for episode in self.episodes])

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.mean_return:.3g} [{low:.3g}, {high:.3g}] ({self.confidence:.0%} interval, "
            f"{len(self.episodes)} episodes)"
        )


def evaluate(
    player: Player,
    make_environment: Callable[[], Environment],
    *,
    episodes: int = 100,
    seed: int = 0,
    max_turns: int,
    parallel: int = 64,
    context: int | None = None,
    confidence: float = 0.95,
    progress: bool = True,
) -> Evaluation:
    """Plays episodes seed, seed + 1, ... and sums up their returns.

    Players that are compared with the same seeds meet the same episodes.

    Args:
        player: Player whose actions are taken.
        make_environment: As in `rollout`, as are `max_turns`, `parallel`, `context`, `progress`.
        episodes: Number of them, at least 1.
        seed: Seed of the first.
        confidence: Confidence of the interval, in (0, 1).
    """
    if episodes < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"episodes is {episodes} and confidence {confidence}, but must be at least 1 and lie "
            "in (0, 1)."
        )
    played = rollout(
        player,
        make_environment,
        range(seed, seed + episodes),
        max_turns=max_turns,
        parallel=parallel,
        context=context,
        progress=progress,
    )
    return summarize(played, confidence)


RESAMPLES, AT_ONCE = 10_000, 100


def summarize(episodes: Sequence[Trajectory], confidence: float = 0.95) -> Evaluation:
    """Mean return of episodes with its percentile bootstrap interval."""
    returns = np.array([episode.total_reward for episode in episodes])
    rng = np.random.default_rng(0)
    means = [
        returns[rng.integers(len(returns), size=(AT_ONCE, len(returns)))].mean(axis=1)
        for _ in range(RESAMPLES // AT_ONCE)
    ]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Evaluation(list(episodes), float(returns.mean()), (float(low), float(high)), confidence)
