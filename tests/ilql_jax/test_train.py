"""Trainings: compilations, resuming to the bit, and what goes wrong said in time."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from short_training import (
    BC,
    DATA,
    FBC,
    ILQL,
    MODEL,
    PACKING,
    SHORT,
    VOCAB,
    compiled_step,
    compiled_steps,
)

import ilql_jax.train as training
from ilql_jax import TrajectoryError
from ilql_jax.checkpoint import CheckpointError, read_metadata, restore_params
from ilql_jax.methods import METHODS, MethodError
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.partition import ParamsError
from ilql_jax.train import NotFiniteError, train
from ilql_jax.train_step import make_train_step


def run(folder, method=ILQL, config=SHORT, data=DATA, model=MODEL, seed=0, **options):
    options = {"progress": False} | options
    return train(data, model, method, config, PACKING, seed, folder, **options)


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """Runs of the same configs share a step: compiling is most of what these tests cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", compiled_step)
        yield


# --- gradient accumulation ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_accumulation_learns_what_one_without_learns(tmp_path):
    short = dataclasses.replace(SHORT, steps=3)
    found = {}
    for parts in (1, 2):
        config = dataclasses.replace(short, gradient_accumulation=parts)
        run(tmp_path / str(parts), config=config, on_metrics=lambda s, m: found.update({s: m}))
        if parts == 1:
            expected = dict(found)
    for step, metrics in expected.items():
        assert found[step] == pytest.approx(metrics, rel=1e-3, abs=1e-5)


def test_parts_that_do_not_divide_the_rows_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match="gradient_accumulation is 3, but must divide the 2 rows"):
        run(tmp_path, config=dataclasses.replace(SHORT, gradient_accumulation=3))
    assert not steps


# --- several steps at one call -----------------------------------------------------------------


TOGETHER = dataclasses.replace(SHORT, steps_per_dispatch=2)


@pytest.fixture
def calls(monkeypatch):
    """Steps taken before each call, with the shape of its tokens."""
    made = []

    def noted(make):
        def program_of(*arguments):
            program = make(*arguments)

            def call(state, batch):
                made.append((int(state.step), batch.tokens.shape))
                return program(state, batch)

            return call

        return program_of

    monkeypatch.setattr(training, "make_train_step", noted(compiled_step))
    monkeypatch.setattr(training, "make_train_steps", noted(compiled_steps))
    return made


def test_steps_taken_at_once_are_the_steps_taken_one_by_one(uninterrupted, tmp_path, calls):
    params, expected = uninterrupted
    metrics, validated = {}, []
    together = run(
        tmp_path,
        config=TOGETHER,
        on_metrics=lambda step, values: metrics.setdefault(step, values),
        validate=lambda step, params: validated.append(step) or {},
        validate_every=6,
    )
    assert calls == [(at, (2, 2, 32)) for at in range(0, 12, 2)] and validated == [6, 12]
    assert list(metrics) == list(expected)
    for step, values in metrics.items():
        assert values == pytest.approx(expected[step], rel=1e-3, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, together)


@pytest.mark.slow
def test_an_interrupted_run_of_several_steps_at_once_ends_with_the_same_bits(tmp_path, calls):
    odd = dataclasses.replace(TOGETHER, steps=11)
    whole = run(tmp_path / "whole", config=odd)
    assert calls[-2:] == [(8, (2, 2, 32)), (10, (2, 32))]  # the last one alone
    with pytest.raises(Killed):
        run(tmp_path / "killed", config=odd, on_metrics=kill_at(6))
    starts = []
    resumed = run(tmp_path / "killed", config=odd, on_start=starts.append)
    assert starts == [4]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_steps_at_once_end_where_a_run_has_to_stop(tmp_path):
    with pytest.raises(ValueError, match=r"steps_per_dispatch is 3, but must divide check.* \(4\)"):
        dataclasses.replace(SHORT, steps_per_dispatch=3)
    with pytest.raises(ValueError, match=r"validate_every is 3, but must be a multiple .* \(2"):
        run(tmp_path, config=TOGETHER, validate=lambda step, params: {}, validate_every=3)


def test_what_is_not_a_number_in_one_of_several_steps_is_not_saved(tmp_path, monkeypatch):
    """In the last step of the call that a checkpoint follows."""

    def broken_at_step_eight(*arguments):
        program = compiled_steps(*arguments)

        def steps(state, batches):
            state, metrics = program(state, batches)
            if int(state.step) == 8:
                metrics |= {"loss": metrics["loss"].at[1].set(jnp.inf)}
            return state, metrics

        return steps

    monkeypatch.setattr(training, "make_train_steps", broken_at_step_eight)
    seen = {}
    with pytest.raises(NotFiniteError, match=r"ilql: loss became inf at step 8\..* is step 4"):
        run(tmp_path, config=TOGETHER, on_metrics=seen.__setitem__)
    assert max(seen) == 7


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    def loss(*arguments, **options):
        value, metrics = BC.loss(*arguments, **options)
        return value, metrics | {"of_heads": jnp.array([1.0, jnp.nan])}

    with pytest.raises(TypeError):
        run(tmp_path, dataclasses.replace(BC, loss=loss))


# --- compilation --------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """The jitted steps that runs make, each a fresh one."""
    made = []

    def remember(*arguments):
        made.append(make_train_step(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "make_train_step", remember)
    return made


class Killed(Exception):
    pass


def kill_at(step):
    def on_metrics(now, metrics):
        if now == step:
            raise Killed

    return on_metrics


def test_the_step_is_compiled_once_in_a_run_and_once_more_in_the_resumed_one(steps, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, BC, on_metrics=kill_at(6))
    run(tmp_path, BC)
    assert [step._cache_size() for step in steps] == [1, 1]


# --- resuming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def uninterrupted(whole_folder):
    metrics = {}
    params = run(whole_folder, on_metrics=metrics.__setitem__)
    return jax.device_get(params), metrics


@pytest.mark.parametrize("stops", [pytest.param((2,), marks=pytest.mark.slow), (5, 9)])
def test_an_interrupted_run_ends_with_the_same_bits(uninterrupted, tmp_path, stops):
    params, metrics = uninterrupted
    starts, again = [], {}
    for stop in stops:
        with pytest.raises(Killed):
            run(tmp_path, on_start=starts.append, on_metrics=kill_at(stop))
    resumed = run(tmp_path, on_start=starts.append, on_metrics=again.__setitem__)
    assert starts == {(2,): [0, 0], (5, 9): [0, 4, 8]}[stops]
    jax.tree.map(np.testing.assert_array_equal, params, resumed)
    assert list(again) == list(range(starts[-1] + 1, SHORT.steps + 1))
    assert again == {step: metrics[step] for step in again}


def test_settings_that_shape_no_result_may_change_when_a_run_goes_on(uninterrupted, tmp_path):
    """After an out-of-memory the mend (chunk, remat, accumulation) does not cost the run."""
    params, metrics = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, on_metrics=kill_at(6))
    remat = dataclasses.replace(MODEL.decoder, remat=True)
    changed = dataclasses.replace(SHORT, gradient_accumulation=2, log_every=3, checkpoint_every=5)
    again, starts = {}, []
    resumed = run(
        tmp_path,
        ILQL.configured(action_chunk=3),
        changed,
        model=dataclasses.replace(MODEL, decoder=remat),
        on_start=starts.append,
        on_metrics=again.__setitem__,
    )
    assert starts == [4] and list(again) == [6, 9, 12]
    for step, values in again.items():
        assert values == pytest.approx(metrics[step], rel=1e-2, abs=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), params, resumed)
    # The newest settings are the ones that are kept.
    assert read_metadata(tmp_path)["train"]["log_every"] == 3
    with pytest.raises(CheckpointError, match=r"method\.cql_weight was 0\.1, now 0\.2; train\.pol"):
        run(tmp_path, ILQL.configured(cql_weight=0.2), dataclasses.replace(SHORT, polyak_rate=0.5))


def test_a_finished_run_is_only_read(uninterrupted, whole_folder):
    starts, seen = [], {}
    params = run(whole_folder, on_start=starts.append, on_metrics=seen.__setitem__)
    assert starts == [12] and not seen
    jax.tree.map(np.testing.assert_array_equal, uninterrupted[0], params)
    saved = restore_params(whole_folder, MODEL)
    jax.tree.map(np.testing.assert_array_equal, uninterrupted[0], saved)


def test_metadata_rebuilds_the_network(tmp_path):
    run(tmp_path, metadata={"reward_scale": 2.0})
    saved = read_metadata(tmp_path)
    assert saved["reward_scale"] == 2.0
    decoder = DecoderConfig(**saved["model"].pop("decoder"))
    assert ModelConfig(decoder, **saved["model"]) == MODEL


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(
    tmp_path, monkeypatch
):
    def broken_from_step_seven(*arguments):
        step_function = compiled_step(*arguments)

        def step(state, batch):
            now = int(state.step) + 1
            state, metrics = step_function(state, batch)
            return state, metrics | {"loss": metrics["loss"] * (jnp.nan if now >= 7 else 1)}

        return step

    monkeypatch.setattr(training, "make_train_step", broken_from_step_seven)
    seen = {}
    with pytest.raises(NotFiniteError, match=r"ilql: loss became nan at step 7.* is step 4"):
        run(tmp_path, on_metrics=seen.__setitem__)
    assert max(seen) == 6
    params = restore_params(tmp_path, MODEL)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_rewards_beyond_all_bounds_stop_the_first_step_and_save_nothing(tmp_path):
    data = [dataclasses.replace(t, rewards=t.rewards * np.float32(1e38)) for t in DATA]
    with pytest.raises(NotFiniteError, match=r"at step 1\. The last good checkpoint is step 0"):
        run(tmp_path, data=data)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        read_metadata(tmp_path)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(uninterrupted, whole_folder):
    wider = dataclasses.replace(MODEL, value_inner_size=16)
    other = dataclasses.replace(SHORT, learning_rate=0.5)
    with pytest.raises(CheckpointError) as caught:
        run(whole_folder, config=other, model=wider, seed=3)
    for difference in (
        "model.value_inner_size was 8, now 16",
        "train.learning_rate was 0.01, now 0.5",
        "seed was 0, now 3",
    ):
        assert difference in str(caught.value)
    assert "trace_fade" not in str(caught.value)  # a tuple that JSON made a list is the same


def test_a_checkpoint_of_a_network_of_another_shape_is_refused(uninterrupted, whole_folder):
    wider = dataclasses.replace(MODEL, value_inner_size=16)
    with pytest.raises(CheckpointError, match="network of another shape"):
        restore_params(whole_folder, wider)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        restore_params(tmp_path / "nowhere", MODEL)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        restore_params(tmp_path, MODEL)


def test_broken_data_is_refused_before_anything_is_compiled(tmp_path, steps):
    rewards = np.where(np.arange(len(DATA[3].rewards)) == 4, np.nan, 0).astype(np.float32)
    broken = [*DATA[:3], dataclasses.replace(DATA[3], rewards=rewards)]
    with pytest.raises(TrajectoryError, match=r"dialogue 3: rewards\[4\] is nan"):
        run(tmp_path, data=broken)
    assert not steps


@pytest.mark.parametrize(("token", "shown"), [(VOCAB, "101"), (-1, "-1")])
def test_tokens_beyond_the_vocabulary_are_named_before_anything_is_compiled(
    tmp_path, steps, token, shown
):
    tokens = DATA[3].tokens.copy()
    tokens[[5, 7]] = token
    broken = [*DATA[:3], dataclasses.replace(DATA[3], tokens=tokens)]
    message = rf"dialogue 3: tokens\[5\] is {shown}, .* vocabulary has 101 tokens, 0 to 100"
    with pytest.raises(TrajectoryError, match=message):
        run(tmp_path, data=broken)
    assert not steps


def test_a_name_in_the_place_of_a_method_is_told_with_what_would_do(tmp_path, steps):
    with pytest.raises(MethodError, match=r"method is 'fbc', but .* METHODS\[\"fbc\"\]"):
        run(tmp_path, "fbc")
    assert not steps


@pytest.mark.parametrize("freeze_trunk", [False, True])
def test_a_start_of_another_shape_is_named_with_both_shapes(tmp_path, steps, freeze_trunk):
    wider = dataclasses.replace(MODEL, value_inner_size=2 * MODEL.value_inner_size)
    config = dataclasses.replace(SHORT, freeze_trunk=freeze_trunk)
    with pytest.raises(ParamsError, match=r"start_from\(\)\['q'\].* has shape .* network's has"):
        run(tmp_path, config=config, start_from=lambda: init_params(wider, 0))


def test_data_of_which_the_method_selects_nothing_is_refused(tmp_path, steps):
    with pytest.raises(TrajectoryError, match=r"fraction 0\.25 of 3 dialogues keeps none"):
        run(tmp_path, FBC, data=DATA[:3])
    assert not steps


# --- what is told on the way ----------------------------------------------------------------------


def test_validation_is_told_beside_the_metrics_and_changes_nothing(uninterrupted, tmp_path):
    params, metrics = uninterrupted
    told, norms = [], []

    def validate(step, params):
        assert set(params) == {"trunk", "q", "v"}
        norms.append(float(optax.tree.norm(params)))
        return {"return": 10 * step}

    validated = run(
        tmp_path,
        validate=validate,
        validate_every=5,
        on_metrics=lambda step, values: told.append((step, values)),
    )
    jax.tree.map(np.testing.assert_array_equal, params, validated)
    assert [each for each in told if "loss" in each[1]] == list(metrics.items())
    validations = [each for each in told if "loss" not in each[1]]
    assert validations == [(n, {"validation/return": 10.0 * n}) for n in (5, 10, 12)]
    # Parameters are those after the step.
    expected = [metrics[n]["parameter_norm"] for n in (5, 10, 12)]
    assert norms == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="validate_every is 0, but must be at least 1"):
        run(tmp_path, validate=validate, validate_every=0)


def test_progress_is_shown_in_the_terminal_unless_switched_off(tmp_path, capsys):
    config = dataclasses.replace(SHORT, steps=3)
    run(tmp_path / "shown", BC, config, progress=True)
    shown = capsys.readouterr()
    assert re.search(r"BC .*3/3 .*elapsed 0:\d\d.* loss \d\.\d{3}", shown.err)
    assert not shown.out
    run(tmp_path / "hidden", BC, config, progress=False)
    assert capsys.readouterr() == ("", "")


def test_metrics_of_a_step_are_read_after_the_next_has_been_started(tmp_path, monkeypatch):
    order = []

    def noted(*arguments):
        step_function = compiled_step(*arguments)

        def step(state, batch):
            order.append("start")
            return step_function(state, batch)

        return step

    monkeypatch.setattr(training, "make_train_step", noted)
    config = dataclasses.replace(SHORT, steps=3)
    run(tmp_path, BC, config, on_metrics=lambda step, _: order.append(step))
    assert order == ["start", "start", 1, "start", 2, 3]


# --- methods ------------------------------------------------------------------------------------


# fbc is bc on the best of the data, and mc has no loss that ilql has not
@pytest.mark.parametrize("method", ["bc", pytest.param("mc", marks=pytest.mark.slow), "ilql"])
def test_each_method_lowers_its_losses(method, tmp_path):
    config = dataclasses.replace(SHORT, steps=60, warmup_steps=5, checkpoint_every=60)
    metrics = {}
    run(tmp_path, METHODS[method], config, on_metrics=metrics.__setitem__)

    def mean(name, steps):
        return np.mean([metrics[step][name] for step in steps])

    names = ["policy_loss"] if method == "bc" else ["policy_loss", "q_loss"]
    for name in names:
        first, last = mean(name, range(1, 6)), mean(name, range(56, 61))
        assert last < 0.8 * first, name


@pytest.mark.slow
def test_an_interrupted_run_with_muon_ends_with_the_same_bits(tmp_path):
    config = dataclasses.replace(SHORT, optimizer="muon")
    whole = run(tmp_path / "whole", config=config)

    class Stopped(Exception):
        pass

    def stop(step, _):
        if step == 6:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "parts", config=config, on_metrics=stop)
    resumed = run(tmp_path / "parts", config=config)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_filtered_cloning_is_cloning_of_the_best_share(tmp_path):
    config = dataclasses.replace(SHORT, steps=4)
    best = FBC.select_trajectories(DATA)
    filtered = run(tmp_path / "filtered", FBC, config)
    cloned = run(tmp_path / "cloned", BC, config, data=best)
    jax.tree.map(np.testing.assert_array_equal, filtered, cloned)
    of_all = run(tmp_path / "all", BC, config)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), filtered["trunk"], of_all["trunk"])
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_a_frozen_trunk_leaves_nothing_to_clone(tmp_path):
    config = dataclasses.replace(SHORT, freeze_trunk=True)
    with pytest.raises(ValueError, match="freeze_trunk is True, but bc learns the policy alone"):
        run(tmp_path, BC, config)
