"""A method of one's own is a .py file: loaded, trained and decoded like those of the package."""

import dataclasses

import numpy as np
import pytest

from ilql_jax import (
    METHODS,
    DecoderConfig,
    DecodingConfig,
    Method,
    ModelConfig,
    Policy,
    TrainConfig,
    Trajectory,
    load_method,
    losses,
    packing_for,
    restore_params,
)
from ilql_jax.methods import MethodError
from ilql_jax.methods.guard import guarded
from ilql_jax.rehearsal import rehearse
from ilql_jax.train import train

# Imitates the dialogues that end well, near a slowly moving average of itself.
OWN = """
import dataclasses

import jax
import jax.numpy as jnp

from ilql_jax.methods import Method, MethodConfig
from ilql_jax.methods.loss_terms import gather, policy_loss
from ilql_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class WinnersConfig(MethodConfig):
    threshold: float = setting("Least return that is imitated.", 0.5)
    pull: float = setting("Weight of the distance to the moving average.", 0.01, least=0)


def select(trajectories, config):
    return [t for t in trajectories if t.total_reward >= config.threshold]


def loss(model, target, batch, config, *, progress, normalizers):
    rows, state = (batch.tokens, batch.segment_ids, batch.positions), batch.by_token.state
    hidden = model.trunk(*rows)
    cloning = policy_loss(
        model, hidden, batch.by_token, batch.clone_weight, config.action_chunk, normalizers
    )
    slow = jax.lax.stop_gradient(gather(target.trunk(*rows), state))
    distance = jnp.mean((gather(hidden, state) - slow) ** 2, axis=-1)
    pull = jnp.sum(batch.clone_weight * distance) / normalizers.cloned
    return cloning + config.pull * pull, {"policy_loss": cloning, "pull": pull}


METHOD = Method(
    name="winners",
    title="Winners",
    config=WinnersConfig(),
    loss=loss,
    select=select,
    polyak_averaged=("trunk",),
    decodings=("greedy",),
)
"""
ASK, RIGHT, STOP, VOCAB = 1, 4, 6, 7
SHAPE = ModelConfig(DecoderConfig(VOCAB, 16, 1, 2, 32, 8, initializer_range=0.1), 8)


def dialogues():
    """One word in answer to a question. The right one, one in ten, is rewarded."""
    rng = np.random.default_rng(0)
    words = rng.choice([2, 3, RIGHT, 5], 200, p=[0.6, 0.2, 0.1, 0.1])
    return [
        Trajectory(
            tokens=np.int32([ASK, word, STOP]),
            is_action=np.array([False, True, True]),
            rewards=np.float32([0, word == RIGHT, 0]),
        )
        for word in words
    ]


def answer(params):
    policy = Policy(
        model_config=SHAPE,
        params=params,
        decoding=DecodingConfig(temperature=0.0),
        stop_token=STOP,
        allowed=np.arange(VOCAB) > ASK,
        max_utterance=2,
        batch_size=1,
    )
    return policy.respond(contexts=[np.int32([ASK])], seeds=[0])[0].tokens.tolist()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "winners.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (
            "return cloning + config.pull * pull",
            "return cloning + pul",
            r"loss raised NameError: .*'pul'",
        ),
        ("return cloning + config.pull * pull", "return distance", r"loss gives a loss of shape"),
        (', {"policy_loss": cloning, "pull": pull}', "", "loss gives .* must give a pair"),
        ('"pull": pull}', '"pull": hidden}', "loss gives a metric 'pull' of shape"),
        (
            "    distance =",
            "    distance = 1 if (slow > 0).any() else",
            "loss raised TracerBoolConversionError",
        ),
        ("t.total_reward >=", "t.total >=", "select raised AttributeError: .*'total'"),
        ("return [t for", "return tuple(t for", "select gives .* must give a list"),
    ],
)
def test_a_slip_in_a_method_is_told_with_its_line_before_any_work(tmp_path, right, wrong, told):
    assert OWN.count(right) == 1
    source = OWN.replace(right, wrong)
    if wrong.startswith("return tuple("):
        source = source.replace("config.threshold]", "config.threshold)")
    (tmp_path / "own.py").write_text(source)
    method = load_method(tmp_path / "own.py")
    with pytest.raises(MethodError, match=rf"winners: {told}.*own\.py, line \d+\)"):
        rehearse(method, method.network_for(SHAPE), TrainConfig(10, 1e-3))


def test_a_slip_in_steering_is_told_before_any_work(tmp_path):
    source = (
        OWN
        + """
def steer(policy_logits, q, v, strength):
    return policy_logits + strength * (q - v)


METHOD = dataclasses.replace(
    METHOD, values_by_token=lambda config: True, steer=steer, learns_values=True
)
"""
    )
    (tmp_path / "own.py").write_text(source)
    method = load_method(tmp_path / "own.py")
    with pytest.raises(MethodError, match=r"steer raised .*own\.py, line 45\)"):
        rehearse(method, SHAPE, TrainConfig(10, 1e-3))


def test_the_usual_steering_is_told_from_a_rule_of_the_methods_own(file, tmp_path):
    assert load_method(file).steer is losses.steer_logits
    (tmp_path / "own.py").write_text(
        OWN + "METHOD = dataclasses.replace(METHOD, steer=lambda policy_logits, *_: policy_logits)"
    )
    assert load_method(tmp_path / "own.py").steer is not losses.steer_logits


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_right_passes_its_rehearsal(name):
    method = METHODS[name]
    rehearse(method, method.network_for(SHAPE), TrainConfig(10, 1e-3, gradient_accumulation=4))


@pytest.mark.slow
def test_it_is_trained_and_decoded_like_any_other(file, tmp_path):
    data = dialogues()
    metrics = {}

    def learn(method):
        return train(
            data=data,
            model_config=method.network_for(SHAPE),
            method=method,
            config=TrainConfig(steps=60, warmup_steps=5, log_every=1, polyak_rate=0.1),
            packing=packing_for(data, batch_rows=4, row_length=24),
            seed=0,
            folder=tmp_path / method.name,
            on_metrics=metrics.__setitem__,
            progress=False,
        )

    assert answer(learn(METHODS["bc"])) == [2, STOP]
    own = load_method(file)
    assert answer(learn(own)) == [RIGHT, STOP]
    assert {"loss", "policy_loss", "pull", "gradient_norm"} <= metrics[60].keys()
    assert metrics[1]["pull"] == 0 and metrics[30]["pull"] > 0  # the average lags behind
    assert answer(restore_params(tmp_path / "winners", SHAPE)) == [RIGHT, STOP]


def test_it_is_configured_like_any_other(file):
    own = load_method(file)
    assert own.configured(threshold=2.0).select_trajectories(dialogues()) == []
    assert own.config.threshold == 0.5
    with pytest.raises(ValueError, match=r"pull is -1\.0, but must be at least 0"):
        own.configured(pull=-1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "defines no METHOD"),
        ("METHOD = 'ilql'", "METHOD is a str, but must be a `Method`"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("METHOD = (", "SyntaxError"),
        (OWN.replace('name="winners"', 'name="ilql"'), "the name 'ilql' is taken"),
        (OWN.replace('name="winners"', 'name="a/b"'), "name is 'a/b', but must name a folder"),
        (OWN.replace('("greedy",)', '("sampled, best of 4",)'), "needs values, but learns_values"),
        (OWN.replace("WinnersConfig(),", "None,"), "config is None, but must be an instance"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_path(tmp_path, source, message):
    path = tmp_path / "wrong.py"
    path.write_text(source)
    with pytest.raises(MethodError, match=message) as raised:
        load_method(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_and_a_name_that_is_taken_are_told(tmp_path, file):
    with pytest.raises(MethodError, match=r"none\.py: no such file"):
        load_method(tmp_path / "none.py")
    with pytest.raises(MethodError, match="'winners' is taken"):
        load_method(file, taken=["winners"])


def test_the_table_is_in_order():
    assert all(name == method.name for name, method in METHODS.items())
    assert len({method.color for method in METHODS.values()}) == len(METHODS)
    assert len({method.marker for method in METHODS.values()}) == len(METHODS)
    for method in METHODS.values():
        assert method.starts_from is None or method.starts_from in METHODS
        for decoding in map(DecodingConfig.parse, method.decodings):
            method.check_decoding(decoding)


@pytest.mark.parametrize("name", ["mc", "qsft"])
def test_values_are_tried_against_the_policy_that_they_re_rank_or_steer(name):
    first, *others = map(DecodingConfig.parse, METHODS[name].decodings)
    assert first.reads_values and first.without_values in others


def test_decodings_that_ask_for_values_that_are_not_learned_are_refused():
    ilql, steered = METHODS["ilql"], DecodingConfig.parse("greedy, steered by 8")
    with pytest.raises(MethodError, match="needs values, and bc learns none"):
        METHODS["bc"].check_decoding(DecodingConfig.parse("sampled, best of 4"))
    with pytest.raises(MethodError, match="needs values of every token"):
        ilql.check_decoding(steered)
    ilql.configured(credit="token").check_decoding(steered)


def test_a_method_that_learns_from_nothing_known_is_refused():
    with pytest.raises(MethodError, match="learns_from is 'images', but must be dialogues or"):
        dataclasses.replace(METHODS["bc"], learns_from="images")
    assert isinstance(METHODS["bc"], Method)


def test_a_training_that_goes_on_may_have_other_settings_of_its_method():
    ilql, mc = METHODS["ilql"], METHODS["mc"]
    assert ilql.when_going_on().config == dataclasses.replace(ilql.config, trace_fade=(0.0, 0.0))
    assert mc.when_going_on() == mc and len({*METHODS.values()}) == len(METHODS)

    def too_much(config):
        return dataclasses.replace(config, expectile=5.0)

    def another(config):
        del config
        return mc.config

    for going_on, message in (
        (too_much, r"ilql: going_on: expectile is 5\.0, but must lie in \(0, 1\)"),
        (another, r"ilql: going_on gives ValueConfig.*must give a `ILQLConfig`.*test_method\.py"),
    ):
        with pytest.raises(MethodError, match=message):
            guarded(dataclasses.replace(ilql, going_on=going_on)).when_going_on()
    # One of one's own that is derived from ILQL, without the setting that this changes.
    derived = guarded(dataclasses.replace(ilql, config=mc.config))
    with pytest.raises(MethodError, match=r"going_on raised TypeError: .*trace_fade.*ilql\.py"):
        derived.when_going_on()
