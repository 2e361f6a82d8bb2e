"""Pairs of utterances: packed whole, learned from by DPO, resumed to the bit."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ilql_jax.train as training
from ilql_jax import PackingConfig, PreferencePair, Trajectory, TrajectoryError
from ilql_jax.checkpoint import CheckpointError, restore_params
from ilql_jax.methods import METHODS
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.models import Decoder, DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.preferences import (
    Preferences,
    make_preference_batches,
    packing_for_pairs,
    split_pairs,
)
from ilql_jax.scoring import pair_log_probs
from ilql_jax.train import train
from ilql_jax.train_step import (
    TrainConfig,
    init_state,
    make_train_step,
    make_train_steps,
    stack_batches,
)

VOCAB = 67
MODEL = ModelConfig(DecoderConfig(VOCAB, 8, 1, 2, 16, 32, initializer_range=0.08), 8)
DPO = METHODS["dpo"].configured(kl_weight=0.5)
SHORT = TrainConfig(
    steps=9, learning_rate=1e-2, optimizer="adamw", warmup_steps=2, checkpoint_every=3, log_every=1
)


def make(before, utterance, name="dialogue 7"):
    tokens = np.int32([*before, *utterance])
    is_action = np.arange(len(tokens)) >= len(before)
    return Trajectory(tokens, is_action, np.zeros(len(tokens), np.float32), name=name)


def pair(before, chosen, rejected):
    return PreferencePair(make(before, chosen), make(before, rejected, "dialogue 8"))


def dataset(count=14, seed=0):
    """Pairs whose first token is their number; the better utterance ends in 60, the other in 61."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        before, chosen, rejected = (
            rng.integers(30, 60, rng.integers(low, high)) for low, high in ((4, 9), (1, 4), (1, 4))
        )
        result.append(pair([number, *before], [*chosen, 60], [*rejected, 61]))
    return result


DATA = dataset()
LOG_PROBS = -np.arange(1, 2 * len(DATA) + 1, dtype=np.float32).reshape(-1, 2)
PACKING = packing_for_pairs(DATA, batch_rows=2, row_length=64)


def halves_of(batch):
    """Row, tokens and columns of every segment of a batch, in order."""
    rows = batch.dialogues
    for row in range(len(rows.tokens)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            columns = np.flatnonzero(rows.segment_ids[row] == segment)
            assert (np.diff(columns) == 1).all()
            assert (rows.positions[row, columns] == np.arange(len(columns))).all()
            yield row, rows.tokens[row, columns], columns


# --- packing ------------------------------------------------------------------------------------


def test_the_halves_of_a_pair_stand_side_by_side_with_their_reference():
    batches = make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1)
    seen = []
    for batch in (next(batches) for _ in range(10)):
        found = list(halves_of(batch))
        slots = dict.fromkeys(range(PACKING.batch_rows), 0)
        for (row, chosen, _), (other, rejected, _) in zip(found[::2], found[1::2], strict=True):
            number = chosen[0]
            assert row == other
            np.testing.assert_array_equal(chosen, DATA[number].chosen.tokens)
            np.testing.assert_array_equal(rejected, DATA[number].rejected.tokens)
            slot = slots[row]
            better, worse = (half[row, slot] for half in split_pairs(batch.reference_log_prob))
            assert (better, worse) == tuple(LOG_PROBS[number])
            actions = batch.dialogues.by_utterance.action[row, 2 * slot : 2 * slot + 2]
            assert actions.tolist() == [60, 61]
            slots[row] += 1
            seen.append(number)
        assert batch.dialogues.by_utterance.weight.sum() == len(found)
        assert max(slots.values()) > 1  # several pairs in a row
    counts = np.bincount(seen, minlength=len(DATA))
    assert counts.min() > 0 and counts.max() - counts.min() <= 2


def test_only_the_contested_tokens_are_decisions():
    batch = next(make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1))
    decisions = batch.dialogues.by_token
    for row, tokens, columns in halves_of(batch):
        mine = (decisions.weight[row] > 0) & np.isin(decisions.state[row], columns)
        number, is_rejected = tokens[0], tokens[-1] == 61
        half = DATA[number].rejected if is_rejected else DATA[number].chosen
        np.testing.assert_array_equal(decisions.action[row, mine], tokens[half.is_action])
        states = np.flatnonzero(half.is_action) - 1 + columns[0]
        np.testing.assert_array_equal(decisions.state[row, mine], states)


def test_the_iterator_goes_on_where_its_saved_position_was():
    batches = make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1)
    for _ in range(5):
        next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(8)]
    resumed = make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1)
    resumed.set_state(position)
    for one in expected:
        jax.tree.map(np.testing.assert_array_equal, one, next(resumed))


# --- the objective ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, 0)


@jax.jit
def dpo_of(params, batch):
    def loss(params):
        model = with_params(MODEL, params)
        return DPO.loss(
            model,
            model,
            batch,
            DPO.config,
            progress=jnp.float32(0.0),
            normalizers=normalizers_of(batch),
        )

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_a_policy_that_is_its_reference_has_a_loss_of_log_two(params):
    log_probs = pair_log_probs(DATA, MODEL, params, batch_rows=4)
    batch = next(make_preference_batches(DATA, log_probs, PACKING, seed=1))
    (loss, metrics), _ = dpo_of(params, batch)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["margin"] == pytest.approx(0, abs=1e-5)


def test_loss_and_metrics_are_those_of_the_pairs_one_by_one(params):
    """Packed rows against each utterance's own log-probability: nothing leaks in or is lost."""
    batch = next(make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1))
    numbers = [tokens[0] for _, tokens, _ in halves_of(batch)][::2]
    ratio = (pair_log_probs(DATA, MODEL, params, batch_rows=4) - LOG_PROBS)[numbers]
    better, worse = DPO.config.kl_weight * ratio.T
    (loss, metrics), _ = dpo_of(params, batch)
    expected = {
        "loss": np.log1p(np.exp(worse - better)).mean(),
        "accuracy": (better > worse).mean(),
        "margin": (better - worse).mean(),
        "chosen_reward": better.mean(),
        "rejected_reward": worse.mean(),
    }
    assert loss == metrics["loss"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        expected, rel=1e-4
    )


def test_one_pair_does_not_see_what_another_says(params):
    batch = next(make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1))
    rows = batch.dialogues
    # All words of the first pair of row 0 are others; its weight is zero before and after.
    changed = np.isin(rows.segment_ids, (1, 2)) & (np.arange(2)[:, None] == 0)
    tokens = np.where(changed, (rows.tokens + 7) % VOCAB, rows.tokens)
    weight = rows.by_utterance.weight.copy()
    weight[0, :2] = 0
    rows = rows._replace(by_utterance=rows.by_utterance._replace(weight=weight))
    before, after = (
        dpo_of(params, batch._replace(dialogues=each))
        for each in (rows, rows._replace(tokens=tokens))
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert any(leaf.any() for leaf in jax.tree.leaves(before[1]))


def test_only_contested_tokens_cost_vocabulary_work(monkeypatch):
    rows = set()
    logits = Decoder.logits

    def counting(self, hidden):
        rows.add(math.prod(hidden.shape[:-1]))
        return logits(self, hidden)

    monkeypatch.setattr(Decoder, "logits", counting)
    state = jax.eval_shape(lambda: init_state(MODEL, DPO, SHORT, 0))
    batch = next(make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1))
    jax.eval_shape(make_train_step(MODEL, DPO, SHORT), state, batch)
    assert rows == {PACKING.batch_rows * PACKING.actions_per_row}
    assert PACKING.actions_per_row < 0.5 * PACKING.row_length


# --- training -----------------------------------------------------------------------------------


def test_several_steps_on_pairs_are_one_program():
    state = jax.eval_shape(lambda: init_state(MODEL, DPO, SHORT, 0))
    batches = make_preference_batches(DATA, LOG_PROBS, PACKING, seed=1)
    steps = make_train_steps(MODEL, DPO, SHORT)
    after, metrics = jax.eval_shape(steps, state, stack_batches([next(batches), next(batches)]))
    assert after == state and {each.shape for each in metrics.values()} == {(2,)}


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A network that has cloned utterances of which three in four are the worse ones."""
    halves = [half for p in DATA for half in (p.chosen, p.rejected, p.rejected, p.rejected)]
    config = TrainConfig(150, 1e-2, optimizer="adamw", warmup_steps=5, checkpoint_every=150)
    folder = tmp_path_factory.mktemp("bc")
    train(halves, MODEL, METHODS["bc"], config, PACKING, 0, folder)
    return restore_params(folder, MODEL)


def run(folder, reference, config=SHORT, **callbacks):
    preferences = Preferences(DATA, reference)
    return train(preferences, MODEL, DPO, config, PACKING, 0, folder, **callbacks)


def test_what_cloning_prefers_wrongly_is_turned(cloned, tmp_path):
    better, worse = pair_log_probs(DATA, MODEL, cloned, batch_rows=4).T
    assert (better < worse).mean() > 0.7
    kept = jax.tree.map(np.array, cloned)
    config = TrainConfig(
        60, 3e-3, optimizer="adamw", warmup_steps=5, checkpoint_every=60, log_every=1
    )
    metrics = {}
    params = run(tmp_path, cloned, config, on_metrics=metrics.__setitem__)
    assert metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[60]["loss"] < 0.3 and metrics[60]["accuracy"] == 1.0
    better, worse = pair_log_probs(DATA, MODEL, params, batch_rows=4).T
    assert (better > worse).mean() > 0.85
    # Steps give up their state, but the reference is left as it was.
    jax.tree.map(np.testing.assert_array_equal, kept, cloned)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits_and_compiles_once(
    cloned, tmp_path, monkeypatch
):
    steps = []

    def remember(*arguments):
        steps.append(make_train_step(*arguments))
        return steps[-1]

    def kill(step, _):
        if step == 5:
            raise Killed

    monkeypatch.setattr(training, "make_train_step", remember)
    seen, again = {}, {}
    whole = run(tmp_path / "whole", cloned, on_metrics=seen.__setitem__)
    with pytest.raises(Killed):
        run(tmp_path / "parts", cloned, on_metrics=kill)
    resumed = run(tmp_path / "parts", cloned, on_metrics=again.__setitem__)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert again == {step: seen[step] for step in range(4, 10)}
    assert [step._cache_size() for step in steps] == [1, 1, 1]
    other = jax.tree.map(lambda x: x + 1e-3, cloned)
    with pytest.raises(CheckpointError, match=r"reference was '[0-9a-f]+', now '"):
        run(tmp_path / "parts", other)


# --- bad input ----------------------------------------------------------------------------------

GOOD = pair([1, 2], [3, 4], [5])
GAPS = dataclasses.replace(make([1, 2], [3, 4, 5]), is_action=np.array([0, 1, 0, 1, 1], bool))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (PreferencePair(GAPS, GOOD.rejected), "dialogue 7: is_action marks more than one"),
        (
            PreferencePair(GOOD.chosen, make([2, 2], [5], "dialogue 8")),
            r"7 and dialogue 8: .* before the utterances differ \(2 and 2",
        ),
        (
            PreferencePair(GOOD.chosen, make([1], [2, 5], "dialogue 8")),
            r"differ \(2 and 1 of them\)",
        ),
        (
            PreferencePair(dataclasses.replace(GOOD.chosen, weight=2.0), GOOD.rejected),
            "dialogue 7: clone, credit or weight is given",
        ),
        (pair([1, 2], [3, 4], [3, 4]), "both utterances have the same tokens"),
        (pair([], [3, 4], [5]), "first token is the agent's"),
        (pair(range(40), [3], [5]), "41 tokens do not fit in the context of 16"),
    ],
)
def test_what_is_no_pair_is_refused_before_anything_is_computed(bad, message, tmp_path):
    packing = PackingConfig(1, 32, 8, 8)
    shape = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, max_positions=16))
    with pytest.raises(TrajectoryError, match=message):
        train(Preferences([GOOD, bad], {}), shape, DPO, SHORT, packing, 0, tmp_path)


def test_packing_that_tears_a_pair_apart_is_refused():
    batches = [PackingConfig(1, 6, 8, 8), PackingConfig(1, 8, 2, 8), PackingConfig(1, 8, 8, 1)]
    for packing in batches:
        with pytest.raises(TrajectoryError, match=r"dialogue 7 with dialogue 8: .* do not fit"):
            make_preference_batches([GOOD], LOG_PROBS[:1], packing, 0)
    with pytest.raises(ValueError, match="utterances_per_row is 3, but must be even"):
        make_preference_batches([GOOD], LOG_PROBS[:1], PackingConfig(1, 8, 8, 3), 0)
    with pytest.raises(ValueError, match=r"shape \(14, 2\), but must be \(1, 2\)"):
        make_preference_batches([GOOD], LOG_PROBS, PackingConfig(1, 8, 8, 2), 0)


def test_a_row_too_short_for_both_halves_is_told_what_would_do():
    with pytest.raises(TrajectoryError, match=r"8: 7 tokens together .* row of 6. Rows of twice"):
        packing_for_pairs([GOOD], batch_rows=1, row_length=6)


def test_a_reference_of_another_shape_is_refused(tmp_path):
    wider = init_params(dataclasses.replace(MODEL, value_inner_size=16), 0)
    with pytest.raises(ValueError, match=r"reference\['q'\].* has shape .*16.* has .*8"):
        run(tmp_path, wider)


def test_pairs_are_for_methods_on_pairs_alone(tmp_path):
    with pytest.raises(ValueError, match="'dpo' learns from pairs, but got no `Preferences`"):
        train([GOOD.chosen], MODEL, DPO, SHORT, PACKING, 0, tmp_path)
    with pytest.raises(ValueError, match="'bc' learns from dialogues, but got `Preferences`"):
        preferences = Preferences([GOOD], {})
        train(preferences, MODEL, METHODS["bc"], SHORT, PACKING, 0, tmp_path)
