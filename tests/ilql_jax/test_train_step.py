"""The train step: work done, parts of a batch, what moves, and settings that make no sense."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_training import BC, DATA, ILQL, LAST, MC, MODEL, PACKING, SHORT, VOCAB, compiled_step

from ilql_jax import make_batches, packing_for
from ilql_jax.methods import loss_terms
from ilql_jax.methods.loss_terms import normalizers_of
from ilql_jax.models import Decoder, QHeads, with_params
from ilql_jax.train_step import TrainConfig, accumulated, init_state, make_train_step

# Decisions, how an utterance's Q is read, and the tokens that Q looks at.
WAYS = [("token", LAST, "token"), ("utterance", LAST, "utterance"), ("utterance", MODEL, "token")]


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


# --- what moves ---------------------------------------------------------------------------------


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


def test_the_target_follows_the_q_heads_at_the_polyak_rate():
    state, batches = init_state(MODEL, ILQL, SHORT, 0), make_batches(DATA, PACKING, 0)
    step = compiled_step(MODEL, ILQL, SHORT)
    state, _ = step(state, next(batches))  # the warm-up's first step has rate zero
    old = jax.device_get(state.targets["q"])
    new, _ = step(state, next(batches))
    expected = jax.tree.map(lambda q, t: 0.25 * q + 0.75 * t, new.params["q"], old)
    now = new.targets["q"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), now, expected)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), now, old))
    assert max(moved) > 1e-4


def test_a_method_without_a_target_network_carries_no_copy():
    state = jax.eval_shape(lambda: init_state(MODEL, BC, SHORT, 0))
    assert state.targets == {}
    assert set(jax.eval_shape(lambda: init_state(MODEL, MC, SHORT, 0)).targets) == {"q"}


# --- settings -----------------------------------------------------------------------------------


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


def test_credit_by_token_with_utterances_as_sums_is_refused():
    with pytest.raises(ValueError, match="utterance_q is 'sum', but must be last for credit"):
        make_train_step(MODEL, ILQL.configured(credit="token"), SHORT)
