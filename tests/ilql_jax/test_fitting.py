"""`fit`: one call from episodes to a policy, with its choices kept and bad input told first."""

import dataclasses
import math

import numpy as np
import pytest
from short_training import compiled_step

import ilql_jax.train as training
from ilql_jax import Policy, TrainConfig, Trajectory, TrajectoryError, fitting
from ilql_jax.checkpoint import read_metadata
from ilql_jax.errors import UserError
from ilql_jax.fitting import FitError, fit, small_network
from ilql_jax.methods import METHODS, MethodConfig, MethodError
from ilql_jax.models import init_params, with_params
from ilql_jax.models.hugging_face.write import save_pretrained
from ilql_jax.settings import SettingError

STOP, VOCAB = 9, 12
BEST_OF_4 = "sampled, best of 4"


def episode(turns, seed):
    """Observation 1, action (2 or 3, stop); 3 costs twice as much."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(2, 4, turns)
    tokens = np.concatenate([[1, move, STOP] for move in moves]).astype(np.int32)
    is_action = np.tile([False, True, True], turns)
    rewards = np.zeros(3 * turns, np.float32)
    rewards[2::3] = 1 - moves
    return Trajectory(tokens, is_action, rewards, name=f"walk {seed}")


DATA = [episode(2 + seed % 3, seed) for seed in range(24)]
NETWORK = small_network(VOCAB, max_positions=16, hidden_size=8, num_layers=1, value_inner_size=8)


def fit_small(data=DATA, **fields):
    defaults = {
        "vocab_size": VOCAB,
        "stop_token": STOP,
        "steps": 3,
        "network": NETWORK,
        "decoding": BEST_OF_4,
        "batch_rows": 2,
        "progress": False,
    }
    return fit(data, **(defaults | fields))


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """Fits of the same settings share a step: compiling is most of what these tests cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", compiled_step)
        yield


class Stopped(Exception):
    """Raised in the place of a training."""


@pytest.fixture
def handed_over(monkeypatch):
    """Arguments of the training that a fit would start."""
    given = {}

    def train(data, model, method, config, packing, seed, folder, **fields):
        given.update(data=data, model=model, method=method, config=config, packing=packing)
        raise Stopped

    monkeypatch.setattr(fitting, "train", train)

    def call(*arguments, **fields):
        with pytest.raises(Stopped):
            fit_small(*arguments, **fields)
        return given

    return call


@pytest.mark.parametrize(("length", "rows"), [(16, 64), (256, 4), (512, 4)])
def test_a_batch_holds_as_much_of_short_episodes_as_of_long_ones(length, rows, handed_over):
    network = small_network(VOCAB, max_positions=length, hidden_size=8, num_layers=1)
    assert handed_over(batch_rows=None, network=network)["packing"].batch_rows == rows


def test_steps_read_the_data_eight_times_within_bounds(handed_over):
    tokens = sum(len(each.tokens) for each in DATA)

    def steps(copies: int) -> int:
        return handed_over(DATA * copies, steps=None)["config"].steps

    few, middle, many = (round(each * 2 * 16 / 8 / tokens) for each in (100, 5000, 20_000))
    assert (steps(max(few, 1)), steps(many)) == (3000, 9000)
    assert steps(middle) == math.ceil(8 * middle * tokens / (2 * 16))


def responses(policy):
    contexts = [np.int32([1]), np.int32([1, 2, STOP, 1])]
    return [(r.tokens.tolist(), r.q, r.v, r.log_prob) for r in policy.respond(contexts, [3, 4])]


def test_a_policy_is_kept_in_the_folder_and_a_finished_fit_is_not_done_again(tmp_path):
    seen = []
    as_numpy_has_them = {"stop_token": np.int64(STOP), "max_utterance": np.int32(2)}
    saved = {"folder": tmp_path, **as_numpy_has_them}
    expected = responses(fit_small(**saved, on_metrics=lambda step, _: seen.append(step)))
    assert seen[-1] == 3
    assert responses(Policy.load(tmp_path)) == expected
    seen.clear()
    again = fit_small(**saved, on_metrics=lambda step, _: seen.append(step))
    assert responses(again) == expected and not seen


def test_values_are_in_the_unit_of_the_rewards_whatever_it_is():
    tenfold = [dataclasses.replace(each, rewards=each.rewards * 10) for each in DATA]
    ones, tens = responses(fit_small()), responses(fit_small(tenfold))
    for one, ten in zip(ones, tens, strict=True):
        assert one[0] == ten[0]
        np.testing.assert_allclose(ten[1:3], 10 * np.array(one[1:3]), rtol=1e-3)


def lowest_by_hand(data, discount):
    returns = []
    for each in data:
        following = 0.0
        for reward in each.rewards[2::3][::-1]:
            following = reward + discount * following
            returns.append(following)
    return min(returns)


def test_untrained_values_are_the_lowest_return_of_the_data():
    still = TrainConfig(steps=1, learning_rate=1e-9, muon_learning_rate=1e-9)
    lowest = lowest_by_hand(DATA, 0.9)
    for fields, expected in (({}, lowest), ({"baseline": 2.5}, 2.5)):
        policy = fit_small(steps=None, training=still, utterance_discount=0.9, **fields)
        for _, q, v, _ in responses(policy):
            assert q == pytest.approx(expected, abs=1e-3)
            assert v == pytest.approx(expected, abs=1e-3)


def test_rewards_have_unit_spread_and_the_baseline_is_scaled_with_them(handed_over):
    given = handed_over()
    assert np.std([each.total_reward for each in given["data"]]) == pytest.approx(1, rel=1e-5)
    scale = 1 / np.std([each.total_reward for each in DATA])
    assert given["packing"].baseline == pytest.approx(scale * lowest_by_hand(DATA, 0.99), rel=1e-5)
    given = handed_over(reward_scale=0.5, baseline=0.0)
    np.testing.assert_array_equal(given["data"][0].rewards, DATA[0].rewards * 0.5)
    assert given["packing"].baseline == 0


def test_long_episodes_are_cut_and_filtered_as_a_whole(handed_over):
    long = [episode(12, seed) for seed in range(8)]
    given = handed_over(long, method="fbc", decoding="sampled", context=7)
    best = sorted(long, key=lambda each: -each.total_reward)[:2]
    assert {each.episode.name for each in given["data"]} == {each.name for each in best}
    assert len(given["data"]) > 2 * 2
    assert max(len(each.tokens) for each in given["data"]) <= 16
    assert sum(each.credited.sum() for each in given["data"]) == 2 * 12 * 2
    assert given["method"].select is None  # not applied to the windows again


def test_what_the_agent_writes_in_the_data_is_allowed(tmp_path):
    fit_small(folder=tmp_path)
    policy = Policy.load(tmp_path)
    for seed in range(5):
        (response,) = policy.respond([np.int32([1])], [seed])
        assert set(response.tokens) <= {2, 3, STOP} and len(response.tokens) <= 2


def test_a_judge_watches_without_changing_the_training():
    seen = {}

    def judge(policy):
        return float(responses(policy)[0][1])

    watched = fit_small(validate=judge, validate_every=2, on_metrics=seen.__setitem__)
    judged = {step: each for step, each in seen.items() if "validation/return" in each}
    assert list(judged) == [2, 3]
    assert responses(watched) == responses(fit_small())
    assert judged[3]["validation/return"] == pytest.approx(responses(watched)[0][1])


def test_a_judge_sees_the_policy_alone_until_values_are_learned():
    seen = []

    def judge(policy):
        seen.append(str(policy.decoding))
        return 0.0

    fit_small(validate=judge, validate_every=1)  # the first step has a learning rate of 0
    assert seen == ["sampled", BEST_OF_4, BEST_OF_4]


@pytest.mark.parametrize("result", [None, {"return": 1.0}, "good", float("nan")])
def test_a_judge_that_gives_no_number_is_told(result):
    with pytest.raises(FitError, match=r"validate returned .* must return an `Evaluation`"):
        fit_small(validate=lambda policy: result)


def judge_that_likes(*liked):
    return lambda policy: float(str(policy.decoding) in liked)


@pytest.mark.parametrize(
    ("method", "liked", "chosen"),
    [
        ("ilql", ["sampled at 0.6"], "sampled at 0.6"),  # the policy that is re-ranked
        ("ilql", [], "sampled at 0.6, best of 16"),  # level: the default
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("ilql", ["sampled at 0.4, best of 8"], "sampled at 0.4, best of 8"),
                ("mc", ["sampled at 0.4"], "sampled at 0.4"),
                ("bc", ["greedy"], "greedy"),
            )
        ),
    ],
)
def test_a_judge_chooses_the_decoding_where_none_is_given(method, liked, chosen, tmp_path):
    policy = fit_small(
        method=method, decoding=None, validate=judge_that_likes(*liked), folder=tmp_path
    )
    assert str(policy.decoding) == str(Policy.load(tmp_path).decoding) == chosen


def test_each_decoding_of_the_finished_network_is_judged_once(tmp_path):
    judged = []

    def judge(policy):
        judged.append(str(policy.decoding))
        return 0.0

    given = {"decoding": None, "validate": judge, "validate_every": 2, "folder": tmp_path}
    fit_small(**given)
    default, *others = ["sampled at 0.6, best of 16", "sampled at 0.4, best of 8"]
    others += ["sampled at 0.6", "sampled at 0.4"]
    assert judged == [default, default, *others]  # at steps 2 and 3
    judged.clear()
    fit_small(**given)  # what is finished has no validation
    assert judged == [default, *others]


def test_a_decoding_that_is_given_or_not_judged_is_kept():
    given = fit_small(validate=judge_that_likes("greedy"))
    assert str(given.decoding) == BEST_OF_4
    assert str(fit_small(decoding=None).decoding) == "sampled at 0.6, best of 16"


def changed(**fields):
    return [dataclasses.replace(DATA[0], name="walk", **fields)]


@pytest.mark.parametrize(
    ("data", "fields", "error", "message"),
    [
        ([], {}, TrajectoryError, "no trajectories to learn from"),
        (changed(tokens=np.int32([1, 2, 9, 1, 40, 9])), {}, TrajectoryError, r"tokens\[4\] is 40"),
        (DATA, {"stop_token": 4}, TrajectoryError, "stop_token is 4, but no action .* ends with 9"),
        (DATA, {"stop_token": 12}, FitError, "stop_token is 12, but tokens go from 0 to 11"),
        (
            changed(
                tokens=np.int32([1, 9, 2, 9, 1, 9]),
                is_action=np.array([0, 1, 1, 1, 0, 1], bool),
                rewards=np.zeros(6, np.float32),
            ),
            {},
            TrajectoryError,
            "walk: the stop token 9 stands in the middle",
        ),
        (
            changed(rewards=np.zeros(6, np.float32)),
            {},
            TrajectoryError,
            "all rewards of 1 episodes",
        ),
        (
            changed(rewards=np.array([0, 0, 1e300, 0, 0, 0])),
            {},
            TrajectoryError,
            r"walk: a reward is 1e\+300 in size, but may be at most 1e\+30",
        ),
        ([{"tokens": [1]}], {}, TrajectoryError, r"trajectories\[0\] is of type dict"),
        (DATA, {"seed": -1}, FitError, "seed is -1"),
        (DATA, {"max_utterance": 16}, FitError, "max_positions is 16, .* Raise it to 17"),
        ([episode(12, 0)], {"network": small_network(VOCAB, 3)}, TrajectoryError, "does not|holds"),
        (DATA, {"allowed": np.ones(5, bool)}, FitError, r"allowed has shape \(5,\).* 12"),
        (DATA, {"allowed": np.arange(VOCAB)}, FitError, "allowed has .* type int64, .* by True or"),
        (DATA, {"validate": 0.5}, FitError, "validate is 0.5, but must be a function"),
        (DATA, {"on_metrics": "print"}, FitError, "on_metrics is 'print', but must be a function"),
        (DATA, {"method": "dpo"}, FitError, "dpo.* learns from pairs"),
        (DATA, {"method": "iql"}, MethodError, "there is no method 'iql'; there are bc, fbc"),
        (DATA, {"method": "iql.py"}, MethodError, "iql.py: no such file"),
        (DATA, {"method": 3}, MethodError, "method is 3, but must be a `Method`"),
        (DATA, {"allowed": np.zeros(VOCAB, bool)}, FitError, "allowed is false for all tokens"),
        (DATA, {"max_utterance": 0}, FitError, "max_utterance is 0, but must be .* at least 1"),
        (DATA, {"stop_token": "9"}, FitError, "stop_token is '9', but must be a whole number"),
        (DATA, {"vocab_size": 12.5}, FitError, "vocab_size is 12.5, but must be a whole"),
        (DATA, {"batch_rows": 2.5}, FitError, "batch_rows is 2.5"),
        (DATA, {"utterance_discount": "1"}, FitError, r"utterance_discount is '1', .* \[0, 1\]"),
        (DATA, {"reward_scale": None}, FitError, "reward_scale is None"),
        (DATA, {"baseline": None}, FitError, "baseline is None"),
        (DATA, {"network": 3}, FitError, "network is 3, but must be a `ModelConfig`"),
        (DATA, {"decoding": 3}, FitError, "decoding is 3"),
        (DATA, {"training": {"steps": 3}}, FitError, r"training is {'steps': 3}"),
        (DATA, {"method": "bc"}, UserError, "needs values"),
        (DATA, {"reward_scale": "big"}, FitError, "reward_scale is 'big'"),
        (DATA, {"reward_scale": 0.0}, FitError, "reward_scale is 0.0"),
        (DATA, {"baseline": "low"}, FitError, "baseline is 'low'"),
        (DATA, {"training": TrainConfig(steps=5)}, FitError, "steps is 3 and training has 5"),
        (DATA, {"vocab_size": 13}, FitError, "vocab_size is 13, but the network has 12"),
    ],
)
def test_what_does_not_belong_together_is_told_before_anything_starts(
    data, fields, error, message, monkeypatch
):
    monkeypatch.setattr(fitting, "train", None)
    with pytest.raises(error, match=message):
        fit_small(data, **fields)


def test_methods_are_values_too(handed_over):
    method = METHODS["ilql"].configured(credit="token")
    given = handed_over(method=method, network=None, max_positions=32)
    assert given["model"].utterance_q == "last"
    assert given["model"].decoder.max_positions == 32
    assert given["method"].config.credit == "token"


def test_observations_are_predicted_unless_told_otherwise(handed_over):
    def weight_in(**fields):
        return handed_over(**fields)["method"].config.observation_loss_weight

    own = METHODS["mc"].configured(observation_loss_weight=0.3)
    assert weight_in() == weight_in(method=METHODS["ilql"].configured(expectile=0.9)) == 1
    assert weight_in(method=own) == 0.3
    assert weight_in(method=own, observation_loss_weight=0) == 0
    assert weight_in(method="mc", observation_loss_weight=2) == 2
    without = dataclasses.replace(METHODS["bc"], name="own", config=MethodConfig())
    assert handed_over(method=without, decoding="sampled")["method"] == without
    with pytest.raises(FitError, match=r"observation_loss_weight is 0, but own has no such loss"):
        fit_small(method=without, decoding="sampled", observation_loss_weight=0)
    with pytest.raises(SettingError, match=r"observation_loss_weight is -1"):
        fit_small(observation_loss_weight=-1)


def test_a_method_of_probabilities_scales_returns_itself(handed_over):
    fields = {"method": "qsft", "network": None, "max_positions": 32, "decoding": None}
    given = handed_over(**fields)
    assert given["model"].value_heads == "probabilities"
    assert given["packing"].baseline == 0
    returns = [each.total_reward for each in given["data"]]
    assert min(returns) == pytest.approx(0, abs=1e-6) and max(returns) == pytest.approx(1)
    with pytest.raises(FitError, match=r"reward_scale is 2.0, but qsft learns probabilities"):
        fit_small(**fields, reward_scale=2.0)


@pytest.mark.slow
def test_a_pretrained_network_is_where_it_starts(tmp_path):
    shape = small_network(VOCAB, max_positions=64, hidden_size=8, num_layers=1, value_inner_size=8)
    params = init_params(shape, 7)
    save_pretrained(tmp_path / "base", shape, params, card="")
    policy = fit_small(
        network=tmp_path / "base",
        method=METHODS["ilql"].configured(credit="token"),
        max_positions=16,
        training=TrainConfig(steps=1, learning_rate=1e-9),
        steps=None,
        decoding="greedy",
        allowed=np.ones(VOCAB, bool),
        folder=tmp_path / "fitted",
    )
    model = with_params(shape, params)
    hidden = model.trunk(*np.int32([[[1]], [[1]], [[0]]]))  # token, segment, position
    (response,) = policy.respond([np.int32([1])], [0])
    assert response.tokens[0] == np.argmax(model.trunk.logits(hidden)[0, 0])
    learned = read_metadata(tmp_path / "fitted" / "checkpoints")["model"]
    assert learned["utterance_q"] == "last"
