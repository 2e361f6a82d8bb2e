"""Weights of cloning by advantage, and traces that fade, each by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from short_training import DATA, PACKING

from ilql_jax import make_batches, packing_for
from ilql_jax.losses import END, NEXT_UTTERANCE, SAME_UTTERANCE
from ilql_jax.methods.ilql import ILQLConfig, traces
from ilql_jax.methods.loss_terms import awac_token_weights


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
