"""Training: work done, compilations, resuming to the bit, and what goes wrong said in time."""

import collections
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ilql_jax.train as training
from ilql_jax import Trajectory, TrajectoryError, make_batches, packing_for
from ilql_jax.checkpoint import CheckpointError, read_metadata, restore_params
from ilql_jax.losses import END, NEXT_UTTERANCE, SAME_UTTERANCE
from ilql_jax.methods import METHODS, loss_terms
from ilql_jax.methods.ilql import ILQLConfig, traces
from ilql_jax.methods.loss_terms import awac_token_weights, normalizers_of
from ilql_jax.models import Decoder, DecoderConfig, ModelConfig, QHeads, with_params
from ilql_jax.train import NotFiniteError, train
from ilql_jax.train_step import TrainConfig, accumulated, init_state, make_train_step

VOCAB = 101  # a number that nothing else here has
MODEL = ModelConfig(DecoderConfig(VOCAB, 8, 1, 2, 16, 32, initializer_range=0.08), 8)
LAST = dataclasses.replace(MODEL, utterance_q="last")
# Decisions, how an utterance's Q is read, and the tokens that Q looks at.
WAYS = [("token", LAST, "token"), ("utterance", LAST, "utterance"), ("utterance", MODEL, "token")]
ILQL = METHODS["ilql"].configured(
    cql_weight=0.1,
    value_loss_weight=1.0,
    utterance_trace=0.5,
    trace_fade=(0.0, 0.0),
    awac_temperature=1.0,
)
MC = METHODS["mc"].configured(cql_weight=0.1, value_loss_weight=1.0, awac_temperature=1.0)
BC, FBC = METHODS["bc"], METHODS["fbc"]
SHORT = TrainConfig(
    steps=12,
    learning_rate=1e-2,
    optimizer="adamw",
    warmup_steps=2,
    polyak_rate=0.25,
    checkpoint_every=4,
    log_every=1,
)


def dataset(count=40, seed=0):
    """Mostly the human's words: one or two utterances of the agent in dialogues of 10 to 30."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        length = int(rng.integers(10, 31))
        is_action = np.zeros(length, bool)
        is_action[3:6] = is_action[length - 3 :] = True
        tokens = rng.integers(1, VOCAB, length).astype(np.int32)
        tokens[is_action] = 1 + np.arange(is_action.sum()) % 5
        rewards = np.zeros(length, np.float32)
        rewards[-1] = rng.normal() + 1
        result.append(Trajectory(tokens, is_action, rewards, name=f"dialogue {number}"))
    return result


DATA = dataset()
PACKING = packing_for(DATA, batch_rows=2, row_length=32)


def run(folder, method=ILQL, config=SHORT, data=DATA, model=MODEL, seed=0, **options):
    options = {"progress": False} | options
    return train(data, model, method, config, PACKING, seed, folder, **options)


@functools.cache
def _compiled_step(*arguments):
    return make_train_step(*arguments)


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """Runs of the same configs share a step: compiling is most of what these tests cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", _compiled_step)
        yield


# --- work ---------------------------------------------------------------------------------------


def traced_step(method, packing, model=MODEL):
    """Abstract state, batch and step: nothing is computed."""
    state = jax.eval_shape(lambda: init_state(model, method, SHORT, 0))
    batch = next(make_batches(DATA, packing, 0))
    return make_train_step(model, method, SHORT), state, batch


def arrays_of(jaxpr):
    """Shapes of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        inner = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns"))
        for program in inner:
            if hasattr(program, "eqns"):
                yield from arrays_of(program)


@pytest.mark.parametrize(("credit", "model", "looked_at"), WAYS)
@pytest.mark.parametrize("method", ["bc", "mc", "ilql"])
def test_padding_and_human_tokens_cost_no_vocabulary_work(
    monkeypatch, method, credit, model, looked_at
):
    packing = packing_for(DATA, batch_rows=4, row_length=128)
    decisions = {"token": packing.actions_per_row, "utterance": packing.utterances_per_row}
    rows = collections.defaultdict(set)

    original = loss_terms.chunked_cross_entropy

    def counting(features, *others):
        heads, *decisions, _ = features.shape
        rows["values" if heads == 2 else "policy"].add(math.prod(decisions))
        return original(features, *others)

    def forbidden(*_):
        raise AssertionError("scores of the whole vocabulary outside of `chunked_cross_entropy`")

    monkeypatch.setattr(loss_terms, "chunked_cross_entropy", counting)
    monkeypatch.setattr(Decoder, "logits", forbidden)
    monkeypatch.setattr(QHeads, "__call__", forbidden)
    learned = {"bc": BC, "mc": MC, "ilql": ILQL}[method]
    learned = learned if method == "bc" else learned.configured(credit=credit)
    step, state, batch = traced_step(learned, packing, model)
    jax.eval_shape(step, state, batch)
    expected = {"policy": {4 * packing.actions_per_row}}
    if method != "bc":
        expected["values"] = {4 * decisions[looked_at]}
    assert rows == expected
    assert packing.actions_per_row < 0.5 * 128


@pytest.mark.parametrize(("credit", "model", "looked_at"), WAYS)
def test_no_array_of_the_step_is_wider_than_decisions_by_vocabulary(credit, model, looked_at):
    packing = packing_for(DATA, batch_rows=4, row_length=128)
    step, state, batch = traced_step(ILQL.configured(credit=credit), packing, model)
    shapes = list(arrays_of(jax.make_jaxpr(step)(state, batch).jaxpr))
    slots = 4 * packing.actions_per_row
    rows = {math.prod(shape) // VOCAB for shape in shapes if VOCAB in shape}
    assert slots in rows
    assert max(rows) <= 2 * slots < 4 * 128  # the twin heads
    if looked_at == "utterance":
        assert max(rows) == slots


def test_the_slots_for_agent_tokens_are_nearly_filled():
    packing = packing_for(DATA, batch_rows=4, row_length=256)
    batches = make_batches(DATA, packing, 0)
    filled = np.mean([next(batches).by_token.weight for _ in range(10)])
    assert filled > 0.75


# --- gradient accumulation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "model"),
    [
        pytest.param(BC, MODEL, marks=pytest.mark.slow),
        pytest.param(
            ILQL.configured(credit="token", awac_temperature=0.5), LAST, marks=pytest.mark.slow
        ),
        (ILQL, MODEL),
    ],
    ids=["bc", "ilql by token", "ilql by utterance"],
)
def test_parts_of_a_batch_add_up_to_its_gradient_and_metrics(method, model):
    packing = packing_for(DATA, batch_rows=4, row_length=64)
    batch = next(make_batches(DATA, packing, 0))
    # Rows that are filled unevenly: a mean over the parts' means would be another.
    emptied = jax.tree.map(lambda x: x.copy(), batch)
    for decisions in (emptied.by_token, emptied.by_utterance):
        decisions.weight[1:3] = 0
    state = init_state(model, method, SHORT, 0)
    target = with_params(model, state.params)
    normalizers = normalizers_of(emptied)

    def gradient(part):
        def loss(params):
            network = with_params(model, params)
            progress = jnp.float32(0.5)
            return method.loss(
                network, target, part, method.config, progress=progress, normalizers=normalizers
            )

        return jax.grad(loss, has_aux=True)(state.params)

    whole, found = (
        jax.jit(lambda batch, parts=parts: accumulated(gradient, batch, parts))(emptied)
        for parts in (1, 4)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, whole)


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


def test_a_step_of_cloning_gives_up_its_state_and_moves_the_trunk_alone():
    undecayed = dataclasses.replace(SHORT, warmup_steps=0, weight_decay=0.0)
    state = init_state(MODEL, BC, undecayed, 0)
    before = jax.tree.map(np.array, state.params)  # copies: a view would forbid the donation
    step = make_train_step(MODEL, BC, undecayed)
    new, _ = step(state, next(make_batches(DATA, PACKING, 0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    for part in ("q", "v"):
        jax.tree.map(np.testing.assert_array_equal, before[part], new.params[part])
    old, now = (p["trunk"]["final_norm"]["scale"] for p in (before, new.params))
    assert (old != now).any()


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
        step_function = _compiled_step(*arguments)

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
    assert re.search(r"BC .*3/3 .*elapsed 0:\d\d, left 0:00.* loss \d\.\d{3}", shown.err)
    assert not shown.out
    run(tmp_path / "hidden", BC, config, progress=False)
    assert capsys.readouterr() == ("", "")


def test_metrics_of_a_step_are_read_after_the_next_has_been_started(tmp_path, monkeypatch):
    order = []

    def noted(*arguments):
        step_function = _compiled_step(*arguments)

        def step(state, batch):
            order.append("start")
            return step_function(state, batch)

        return step

    monkeypatch.setattr(training, "make_train_step", noted)
    config = dataclasses.replace(SHORT, steps=3)
    run(tmp_path, BC, config, on_metrics=lambda step, _: order.append(step))
    assert order == ["start", "start", 1, "start", 2, 3]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"credit": "word"}, "credit is 'word', but must be utterance or token"),
        ({"expectile": 1.0}, "expectile is 1.0"),
        ({"expectile": 0.0}, "expectile is 0.0"),
        ({"token_trace": 1.5}, "token_trace is 1.5"),
        ({"cql_weight": -0.1}, "cql_weight is -0.1"),
        ({"awac_temperature": float("nan")}, "awac_temperature is nan"),
        ({"trace_fade": (0.5, 0.2)}, r"trace_fade is \(0.5, 0.2\), but must be two rising"),
    ],
)
def test_settings_of_ilql_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ILQL.configured(**fields)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("dpo", {"kl_weight": 0.0}, "kl_weight is 0.0"),
        ("fbc", {"fraction": 0.0}, "fraction is 0.0"),
        ("fbc", {"fraction": 1.1}, "fraction is 1.1"),
        ("bc", {"action_chunk": 0}, "action_chunk is 0"),
        ("mc", {"expectile": 0.9}, "mc has no setting 'expectile'; there are action_chunk, credit"),
    ],
)
def test_settings_of_the_other_methods_are_checked_too(method, fields, message):
    with pytest.raises(ValueError, match=message):
        METHODS[method].configured(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 0}, "steps is 0"), ({"log_every": 0}, "log_every is 0"),
     ({"polyak_rate": 0.0}, "polyak_rate is 0.0"), ({"polyak_rate": 1.5}, "polyak_rate is 1.5"),
     ({"optimizer": "sgd"}, "optimizer is 'sgd', but must be adamw or muon"),
     ({"muon_learning_rate": 0.0}, "muon_learning_rate is 0.0")],
)  # fmt: skip
def test_training_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**({"steps": 1, "learning_rate": 1e-3} | fields))


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bc", "mc", "ilql"])  # fbc is bc on the best of the data
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


def test_muon_moves_the_trunks_matrices_along_orthogonal_directions_and_nothing_else():
    adamw = dataclasses.replace(SHORT, warmup_steps=0, weight_decay=0.0)
    muon = dataclasses.replace(adamw, optimizer="muon", muon_learning_rate=0.02)
    moved = {}
    for config in (adamw, muon):
        state = init_state(MODEL, ILQL, config, 0)
        before = jax.device_get(state.params)
        after = make_train_step(MODEL, ILQL, config)(state, next(make_batches(DATA, PACKING, 0)))
        difference = jax.tree.map(np.subtract, jax.device_get(after[0].params), before)
        moved[config.optimizer] = dict(jax.tree_util.tree_leaves_with_path(difference))
    for path, by_adamw in moved["adamw"].items():
        by_muon = moved["muon"][path]
        if path[1].key == "blocks" and path[-1].key == "kernel":
            # Newton and Schulz's five steps bring singular values near one, times √(out/in).
            spread = np.linalg.svd(by_muon, compute_uv=False)
            shape = by_muon.shape
            spread /= 0.02 * max(1, shape[1] / shape[0]) ** 0.5
            assert spread[len(spread) // 2] > 0.3 and spread[0] < 1.5, path
        else:
            # Two programs, which may round apart: where gradients cancel, AdamW enlarges noise.
            np.testing.assert_allclose(by_muon, by_adamw, rtol=1e-3, atol=5e-4, err_msg=str(path))


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


def test_credit_by_token_with_utterances_as_sums_is_refused():
    with pytest.raises(ValueError, match="utterance_q is 'sum', but must be last for credit"):
        make_train_step(MODEL, ILQL.configured(credit="token"), SHORT)


def test_the_target_follows_the_q_heads_at_the_polyak_rate():
    state, batches = init_state(MODEL, ILQL, SHORT, 0), make_batches(DATA, PACKING, 0)
    step = _compiled_step(MODEL, ILQL, SHORT)
    state, _ = step(state, next(batches))  # the warm-up's first step has rate zero
    old = jax.device_get(state.targets["q"])
    new, _ = step(state, next(batches))
    expected = jax.tree.map(lambda q, t: 0.25 * q + 0.75 * t, new.params["q"], old)
    now = new.targets["q"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), now, expected)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), now, old))
    assert max(moved) > 1e-4


def test_filtered_cloning_keeps_exactly_the_best_share():
    best = FBC.configured(fraction=0.25).select_trajectories(DATA)
    worst_kept = min(t.total_reward for t in best)
    assert len(best) == 10
    assert sum(t.total_reward > worst_kept for t in DATA) == 9
    assert ILQL.select_trajectories(DATA) == DATA
    same = [dataclasses.replace(t, rewards=t.rewards * 0) for t in DATA]
    assert len(FBC.select_trajectories(same)) == 10
    with pytest.raises(TrajectoryError, match=r"fraction 0.25 of 3 dialogues keeps none"):
        FBC.select_trajectories(DATA[:3])


def test_filtered_cloning_is_cloning_of_the_best_share(tmp_path):
    config = dataclasses.replace(SHORT, steps=4)
    best = FBC.select_trajectories(DATA)
    filtered = run(tmp_path / "filtered", FBC, config)
    cloned = run(tmp_path / "cloned", BC, config, data=best)
    jax.tree.map(np.testing.assert_array_equal, filtered, cloned)
    of_all = run(tmp_path / "all", BC, config)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), filtered["trunk"], of_all["trunk"])
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_a_method_without_a_target_network_carries_no_copy():
    state = jax.eval_shape(lambda: init_state(MODEL, BC, SHORT, 0))
    assert state.targets == {}
    assert set(jax.eval_shape(lambda: init_state(MODEL, MC, SHORT, 0)).targets) == {"q"}


def test_awac_weights_tokens_by_their_own_advantage():
    batch = next(make_batches(DATA, PACKING, 0))
    advantage = jnp.asarray(np.random.default_rng(0).normal(0, 4, batch.by_token.weight.shape))
    expected = np.minimum(np.exp(advantage / 2), 5)
    weights = awac_token_weights(advantage, batch, False, 2.0, 5.0)
    is_real = batch.by_token.weight > 0
    np.testing.assert_allclose(weights[is_real], expected[is_real], rtol=1e-5)
    assert (weights[~is_real] == 1).all()  # no advantage is known there


def test_awac_weights_all_tokens_of_an_utterance_by_its_advantage():
    packing = packing_for(DATA, batch_rows=2, row_length=128)  # several dialogues a row
    batch = next(make_batches(DATA, packing, 0))
    # An utterance's advantage is its last token's column: so each token tells its owner.
    advantage = jnp.log(batch.by_utterance.state.astype(jnp.float32) + 1)
    owners = np.asarray(awac_token_weights(advantage, batch, True, 1.0, 1e6)) - 1
    for row, slot in zip(*np.nonzero(batch.by_token.weight), strict=True):
        end = slot
        while batch.by_token.boundary[row, end] == SAME_UTTERANCE:
            end += 1
        assert owners[row, slot] == pytest.approx(batch.by_token.state[row, end], abs=1e-2)


def test_no_awac_temperature_is_plain_cloning():
    batch = next(make_batches(DATA, PACKING, 0))
    ones = awac_token_weights(batch.by_token.reward + 9, batch, False, 0.0, 20.0)
    assert (ones == 1).all()


def test_traces_fade_from_monte_carlo_to_their_settings():
    decisions = next(make_batches(DATA, PACKING, 0)).by_token
    decisions = decisions._replace(boundary=np.int32([[SAME_UTTERANCE, NEXT_UTTERANCE, END]]))
    config = ILQLConfig(token_trace=0.9, utterance_trace=0.5, trace_fade=(0.2, 0.6))
    for progress, expected in [(0.0, [1, 1, 0]), (0.4, [0.95, 0.75, 0]), (0.9, [0.9, 0.5, 0])]:
        lambdas = traces(decisions, config, jnp.float32(progress))
        np.testing.assert_allclose(lambdas[0], expected, rtol=1e-5)
    unfaded = dataclasses.replace(config, trace_fade=(0.0, 0.0))
    np.testing.assert_allclose(traces(decisions, unfaded, jnp.float32(0))[0], [0.9, 0.5, 0])


def test_a_frozen_trunk_leaves_nothing_to_clone(tmp_path):
    config = dataclasses.replace(SHORT, freeze_trunk=True)
    with pytest.raises(ValueError, match="freeze_trunk is True, but bc learns the policy alone"):
        run(tmp_path, BC, config)
