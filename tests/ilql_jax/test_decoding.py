"""Answering many conversations: what is remembered of them, and lanes that are refilled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilql_jax import decode, policy
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.policy import DecodingConfig, Policy

VOCAB, STOP, LONGEST = 11, 3, 7
MODEL = ModelConfig(DecoderConfig(VOCAB, 16, 2, 2, 32, 96, initializer_range=0.2), 16)


@pytest.fixture(scope="module")
def params():
    """Random everywhere: fresh value heads are zero."""
    leaves, structure = jax.tree.flatten(init_params(MODEL, 0))
    rng = np.random.default_rng(0)
    noise = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])


def make_policy(params, decoding="sampled, best of 2", **fields) -> Policy:
    options = {"stop_token": STOP, "max_utterance": LONGEST, "batch_size": 4} | fields
    allowed = np.ones(VOCAB, bool)
    return Policy(MODEL, params, DecodingConfig.parse(decoding), allowed=allowed, **options)


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


def same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    for name in ("q", "v", "log_prob"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)


def fresh(params, contexts, seeds):
    """Each answered by somebody who has never heard of it."""
    answers = make_policy(params)
    for context, seed in zip(contexts, seeds, strict=True):
        answers._memory = policy._Memory(answers._memory.slots)
        yield answers.respond([context], [seed])[0]


@pytest.fixture
def spied(monkeypatch):
    """Where each reading began and how wide it was."""
    seen = []

    def read(config, params, store, slots, tokens, start, last, *, columns):
        real = slots < store.keys[0].shape[0]
        seen.append((start[real].tolist(), tokens.shape[1]))
        return decode.read(config, params, store, slots, tokens, start, last, columns=columns)

    monkeypatch.setattr(policy, "read", read)
    return seen


def test_a_conversation_that_goes_on_is_read_from_where_it_stood(params, spied):
    agent = make_policy(params)
    contexts = [words(i, 5 + 3 * i) for i in range(3)]
    agent.respond(contexts, [0, 1, 2])
    assert [start for start, _ in spied] == [[0], [0], [0]]
    for turn in range(1, 4):
        spied.clear()
        before = [len(context) for context in contexts]
        contexts = [np.append(c, words(10 * turn + i, 6)) for i, c in enumerate(contexts)]
        seeds = [3 * turn + i for i in range(3)]
        answers = agent.respond(contexts, seeds)
        assert sorted(start[0] for start, _ in spied) == before
        assert {width for _, width in spied} == {16}  # the narrowest
        for answer, alone in zip(answers, fresh(params, contexts, seeds), strict=True):
            same(answer, alone)


def test_what_is_forgotten_is_read_again(params):
    agent = make_policy(params, store_megabytes=0)
    assert agent._memory.slots == agent.batch_size
    contexts = [words(i, 4 + i) for i in range(9)]
    for turn in range(3):
        answers = agent.respond(contexts, range(9))
        for answer, alone in zip(answers, fresh(params, contexts, range(9)), strict=True):
            same(answer, alone)
        contexts = [np.append(c, words(100 * turn + i, 5)) for i, c in enumerate(contexts)]
    assert len(set(agent._memory._slot_of.values())) == agent.batch_size


def test_the_same_words_in_several_conversations(params):
    start = words(0, 6)
    contexts = [start, start, np.append(start, 5), np.append(start, [5, 6]), start]
    agent = make_policy(params, batch_size=16)
    for _ in range(2):  # unknown, then known
        answers = agent.respond(contexts, range(5))
        for answer, alone in zip(answers, fresh(params, contexts, range(5)), strict=True):
            same(answer, alone)
    slots = [*agent._memory._slot_of.values(), *agent._memory._free]
    assert sorted(slots) == list(range(agent._memory.slots))  # none lost, none given twice


def test_long_conversations_are_read_in_pieces(params, spied, monkeypatch):
    contexts = [words(0, 80), words(1, 3), words(2, 41)]
    whole = make_policy(params).respond(contexts, [0, 1, 2])
    spied.clear()
    monkeypatch.setattr(Policy, "WIDTHS", (4, 8))
    pieces = make_policy(params, batch_size=12).respond(contexts, [0, 1, 2])
    assert max(width for _, width in spied) == 8 and len(spied) == 10
    for one, other in zip(pieces, whole, strict=True):
        same(one, other)


def test_a_lane_that_has_finished_is_refilled(params, monkeypatch):
    clocks = []

    def write(*arguments, **options):
        lanes = decode.write(*arguments, **options)
        clocks.append(int(lanes.clock))
        return lanes

    monkeypatch.setattr(policy, "write", write)
    contexts = [words(i, 5) for i in range(40)]
    agent = make_policy(params, "sampled", max_utterance=30)
    answers = agent.respond(contexts, range(40))
    lengths = [len(answer.tokens) for answer in answers]
    in_turns = sum(max(lengths[i : i + 4]) for i in range(0, 40, 4))
    assert sum(lengths) / 4 <= clocks[-1] < 0.8 * in_turns
    for context, seed, answer in zip(contexts[:8], range(8), answers, strict=False):
        same(answer, agent.respond([context], [seed])[0])


def test_nothing_is_compiled_again_however_many_and_long(params):
    agent = make_policy(params, "sampled")
    agent.respond([words(0, 3)], [0])
    compiled = decode.write._cache_size(), decode.admit._cache_size()
    for turn in range(1, 5):
        agent.respond([words(i, 3 + 9 * turn) for i in range(3 * turn)], range(3 * turn))
    assert (decode.write._cache_size(), decode.admit._cache_size()) == compiled


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 1000])
def test_draws_follow_the_probabilities(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 2, vocab)
    logits[rng.random(vocab) < 0.3] = -np.inf
    logits[0] = 1.0
    keys = jax.random.split(jax.random.key(0), (1, 20_000))
    drawn = decode._sample(
        keys, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (1, 20_000, vocab))
    )
    observed = np.bincount(np.asarray(drawn)[0], minlength=vocab) / 20_000
    expected = np.exp(logits) / np.exp(logits).sum()
    assert len(observed) == vocab and not observed[expected == 0].any()
    assert np.abs(observed - expected).max() < 0.015
