"""Rollouts: what is played becomes data; seeds determine it; protocols are held to."""

import dataclasses

import numpy as np
import pytest
from small_networks import random_params

from ilql_jax import DecoderConfig, DecodingConfig, ModelConfig, Policy
from ilql_jax.environment import (
    PlayError,
    ScriptedPlayer,
    Step,
    evaluate,
    rollout,
    summarize,
)
from ilql_jax.trajectory import Trajectory

STOP = 9


@dataclasses.dataclass
class Countdown:
    """Shows a number to count down from; each action costs as many points as it has tokens."""

    time_limit: int = 100
    left: int = 0
    turns: int = 0

    def reset(self, seed):
        self.left, self.turns = int(np.random.default_rng(seed).integers(2, 6)), 0
        return [0, self.left]

    def step(self, action):
        self.left -= 1
        self.turns += 1
        is_over = self.left == 0
        return Step(
            [self.left] * (not is_over), -len(action), is_over, self.turns >= self.time_limit
        )


PLAYER = ScriptedPlayer(lambda context, rng: [7] * rng.integers(1, 4) + [STOP])


def play(seeds, player=PLAYER, make=Countdown, **fields):
    return rollout(player, make, seeds, **{"max_turns": 20, "progress": False, **fields})


def same(one, other):
    for field in ("tokens", "is_action", "rewards"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert one.terminal == other.terminal


def test_an_episode_is_the_tokens_as_they_came_with_rewards_at_the_ends_of_actions():
    always_two = ScriptedPlayer(lambda context, rng: [7, STOP])
    (episode,) = play([3], always_two)
    start = np.random.default_rng(3).integers(2, 6)
    expected = [0, start]
    for left in range(start - 1, 0, -1):
        expected += [7, STOP, left]
    assert episode.tokens.tolist() == [*expected, 7, STOP]
    assert (episode.is_action == np.isin(episode.tokens, [7, STOP])).all()
    assert (episode.rewards == np.where(episode.tokens == STOP, -2, 0)).all()
    assert episode.terminal and episode.name == "episode 3"
    episode.validate()


def test_seeds_alone_determine_episodes_whoever_is_in_play_beside():
    together = play(range(12))
    for parallel in (1, 5):
        for one, other in zip(together, play(range(12), parallel=parallel), strict=True):
            same(one, other)
    same(together[7], play([7])[0])
    assert len({tuple(episode.tokens) for episode in together}) > 6


def test_ended_episodes_make_room_and_environments_are_used_again():
    sizes, made = [], []

    class Watching:
        max_context = None

        def respond(self, contexts, seeds):
            sizes.append(len(contexts))
            return PLAYER.respond(contexts, seeds)

    def make():
        made.append(Countdown())
        return made[-1]

    episodes = play(range(20), Watching(), make, parallel=4)
    assert len(made) == 4 and max(sizes) == 4
    turns = [(episode.rewards != 0).sum() for episode in episodes]
    assert sum(sizes) == sum(turns)
    assert len(sizes) < sum(turns) / 3  # lanes are kept full


def test_episodes_that_are_cut_off_are_not_terminal_and_keep_the_last_observation():
    for limits in ({"max_turns": 2}, {"make": lambda: Countdown(time_limit=2)}):
        episodes = play(range(20), **limits)
        starts = [episode.tokens[1] for episode in episodes]
        for episode, start in zip(episodes, starts, strict=True):
            assert (episode.rewards != 0).sum() == min(2, start)
            assert episode.terminal == (start <= 2)
            if not episode.terminal:
                assert episode.tokens[-1] == start - 2 and not episode.is_action[-1]
        assert {e.terminal for e in episodes} == {True, False}


def test_a_context_too_long_begins_anew_at_a_later_turn():
    seen = []

    def choose(context, rng):
        seen.append(context.tolist())
        return [7, STOP]

    long = type(
        "Long", (Countdown,), {"reset": lambda self, seed: [0, setattr(self, "left", 9) or 9]}
    )
    (episode,) = play([0], ScriptedPlayer(choose, max_context=10), long)
    assert len(episode.tokens) == 2 + 9 * 2 + 8
    assert all(len(context) <= 10 for context in seen)
    assert seen[2] == [0, 9, 7, STOP, 8, 7, STOP, 7]
    assert seen[3] == [7, 7, STOP, 6]  # the last turns within half of it
    assert seen[4] == [7, 7, STOP, 6, 7, STOP, 5]  # and then it grows again


@pytest.fixture(scope="module")
def policy():
    shape = ModelConfig(DecoderConfig(10, 16, 1, 2, 32, 24, initializer_range=0.3), 16)
    return Policy(
        shape,
        random_params(shape, 0.3),
        DecodingConfig(candidates=2),
        stop_token=STOP,
        allowed=np.arange(10) > 0,
        max_utterance=4,
        batch_size=4,
    )


def test_a_policy_plays_the_same_episodes_for_the_same_seeds(policy):
    first = play(range(10), policy)
    for one, other in zip(first, play(range(10), policy), strict=True):
        same(one, other)
    for episode in first:
        ends = episode.is_action & ~np.append(episode.is_action[1:], False)
        assert (episode.tokens[ends] == STOP).all()
    assert len({tuple(episode.tokens[2:4]) for episode in first}) > 3


@dataclasses.dataclass
class Answering:
    """A player that answers as told."""

    respond_with: object
    max_context: object = None

    def respond(self, contexts, seeds):
        return self.respond_with(contexts)


class Broken(Countdown):
    """Answers as told."""

    first: tuple = (0, 3)
    answer: tuple = ([1], -1.0, False)

    def reset(self, seed):
        return self.first

    def step(self, action):
        return self.answer


@pytest.mark.parametrize(
    ("environment", "player", "message"),
    [
        ({"first": ()}, PLAYER, "turn 0: reset showed no tokens"),
        ({"first": (0.5,)}, PLAYER, r"turn 0: observation is \(0.5,\), but must be a vector"),
        ({"answer": ([], -1.0, False)}, PLAYER, "turn 1: step showed no tokens, but the episode"),
        ({"answer": ([1], float("nan"), False)}, PLAYER, "turn 0: reward is nan"),
        (
            {"answer": ([1], None, False)},
            PLAYER,
            "turn 0: reward is None, but must be a finite num",
        ),
        (
            {"answer": None},
            PLAYER,
            r"turn 0: step returned None, but must return \(observation, re",
        ),
        ({}, ScriptedPlayer(lambda context, rng: []), "turn 0: the player's action has no tokens"),
        ({"first": ([1, 2], {})}, PLAYER, "turn 0: reset returned a pair, as Gymnasium's does"),
        ({"first": (np.int32([1, 2]), None)}, PLAYER, "turn 0: reset returned a pair"),
        ({"first": [[1, 2], [3]]}, PLAYER, "turn 0: observation is .*a vector of token ids"),
        ({}, Answering(lambda contexts: [[2, STOP]]), "answered .2, 9.* have .* its `tokens`"),
        ({"first": [1] * 9}, ScriptedPlayer(None, max_context=8), "9 tokens is longer than the 8"),
    ],
)
def test_broken_protocols_are_named_with_episode_and_turn(environment, player, message):
    with pytest.raises(PlayError, match=f"episode 5.*{message}"):
        play([5], player, lambda: type("B", (Broken,), environment)())


@pytest.mark.parametrize(
    ("player", "message"),
    [
        (Answering(lambda contexts: []), "was shown 1 contexts, but respond returned 0"),
        (Answering(lambda contexts: None), "was shown 1 contexts, but respond returned None"),
        (Answering(None, max_context=0), r"max_context of the player \(Answering\) is 0"),
        (Answering(None, max_context="8"), r"max_context of the player \(Answering\) is '8'"),
        (object(), r"max_context of the player \(object\) is missing"),
    ],
)
def test_a_player_that_breaks_the_protocol_is_told(player, message):
    with pytest.raises(PlayError, match=message):
        play([5], player, Countdown)


def test_a_first_observation_may_be_a_tuple_of_two_tokens():
    (episode,) = play([5], PLAYER, lambda: type("T", (Broken,), {"first": (1, 2)})(), max_turns=1)
    assert episode.tokens[:2].tolist() == [1, 2]


def test_evaluation_sums_up_returns_with_an_interval():
    result = evaluate(PLAYER, Countdown, episodes=50, seed=10, max_turns=20, progress=False)
    assert [e.name for e in result.episodes] == [f"episode {seed}" for seed in range(10, 60)]
    assert result.mean_return == pytest.approx(result.returns.mean())
    low, high = result.interval
    error = result.returns.std() / np.sqrt(50)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < result.mean_return < high
    narrower = summarize(result.episodes, confidence=0.5)
    assert low < narrower.interval[0] < narrower.interval[1] < high
    assert str(result).endswith("(95% interval, 50 episodes)")


def test_equal_returns_leave_no_doubt():
    zero = Trajectory(np.int32([0, 1]), np.array([False, True]), np.float32([0, 2]))
    assert summarize([zero] * 3).interval == (2, 2)
