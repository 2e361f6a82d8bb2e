"""Answering many conversations: the prefix cache, slots that are refilled, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import random_params

from ilql_jax import decode, policy
from ilql_jax.decoding_config import DecodingConfig, PolicyError
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models.config import VALUE_HEAD_KINDS
from ilql_jax.policy import ContextError, Policy

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
    """Answers each with an empty prefix cache."""
    answers = make_policy(params)
    for context, seed in zip(contexts, seeds, strict=True):
        answers._prefixes = policy.PrefixIndex(answers._prefixes.entries)
        yield answers.respond([context], [seed])[0]


@pytest.fixture
def spied(monkeypatch):
    """Start and width of each prefill."""
    seen = []

    def prefill(config, params, cache, sources, entries, tokens, start, last, *, columns):
        real = entries < cache.keys[0].shape[0]
        seen.append((start[real].tolist(), tokens.shape[1]))
        return decode.prefill(
            config, params, cache, sources, entries, tokens, start, last, columns=columns
        )

    monkeypatch.setattr(policy, "prefill", prefill)
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


def test_what_was_evicted_is_read_again(params):
    agent = make_policy(params, cache_megabytes=0)
    assert agent._prefixes.entries == agent.batch_size
    contexts = [words(i, 4 + i) for i in range(9)]
    for turn in range(3):
        answers = agent.respond(contexts, range(9))
        for answer, alone in zip(answers, fresh(params, contexts, range(9)), strict=True):
            same(answer, alone)
        contexts = [np.append(c, words(100 * turn + i, 5)) for i, c in enumerate(contexts)]
    assert len(set(agent._prefixes._entry_of.values())) == agent.batch_size


def test_the_same_words_in_several_conversations(params):
    start = words(0, 6)
    contexts = [start, start, np.append(start, 5), np.append(start, [5, 6]), start]
    agent = make_policy(params, batch_size=16)
    for _ in range(2):  # unknown, then known
        answers = agent.respond(contexts, range(5))
        for answer, alone in zip(answers, fresh(params, contexts, range(5)), strict=True):
            same(answer, alone)
    entries = [*agent._prefixes._entry_of.values(), *agent._prefixes._free]
    assert sorted(entries) == list(range(agent._prefixes.entries))  # none lost, none given twice


def test_long_conversations_are_read_in_pieces(params, spied, monkeypatch):
    contexts = [words(0, 80), words(1, 3), words(2, 41)]
    whole = make_policy(params).respond(contexts, [0, 1, 2])
    spied.clear()
    monkeypatch.setattr(Policy, "WIDTHS", (4, 8))
    pieces = make_policy(params, batch_size=12).respond(contexts, [0, 1, 2])
    assert max(width for _, width in spied) == 8 and len(spied) == 10
    for one, other in zip(pieces, whole, strict=True):
        same(one, other)


def test_a_cache_begins_short_and_grows_with_what_is_said(params, monkeypatch):
    """A network that could read far more takes no memory for that; answers are the same."""
    contexts = [words(0, 20), words(1, 80)]
    whole = make_policy(params).respond(contexts, [0, 1])
    for name, value in (("BUCKET", 8), ("WIDTHS", (4, 8)), ("COLUMNS", 16)):
        monkeypatch.setattr(Policy, name, value)
    grows = make_policy(params)
    columns = []
    for length in (5, 9, 20):  # one conversation, and then another that is long
        (answer,) = grows.respond([contexts[0][:length]], [0])
        columns.append(grows._cache.columns)
    same(answer, whole[0])
    known = grows.known_length(contexts[0])
    for one, other in zip(grows.respond(contexts, [0, 1]), whole, strict=True):
        same(one, other)
    columns.append(grows._cache.columns)
    assert columns == [16, 32, 32, 104] and known > 0
    full = make_policy(params, few_programs=True)
    full.respond(contexts, [0, 1])
    assert full._cache.columns == full._most_columns  # whose programs are all made beforehand


def test_a_policy_reads_no_more_than_it_is_told_to(params, monkeypatch):
    monkeypatch.setattr(Policy, "BUCKET", 64)
    contexts = [words(0, 20), words(1, 80)]
    short, whole = make_policy(params, max_context=20), make_policy(params)
    same(short.respond(contexts[:1], [0])[0], whole.respond(contexts[:1], [0])[0])
    assert short._cache.columns < whole._cache.columns
    with pytest.raises(ContextError, match="has 80 tokens; between 1 and 20 can be read"):
        short.respond(contexts, [0, 1])
    with pytest.raises(PolicyError, match="max_context is 0, but must be at least 1"):
        make_policy(params, max_context=0)


def test_the_value_of_an_answer_is_that_of_its_context(params):
    contexts = [words(i, 4 + 3 * i) for i in range(3)]
    answers = make_policy(params).respond(contexts, range(3))
    model = with_params(MODEL, params)
    for context, answer in zip(contexts, answers, strict=True):
        row = jnp.asarray(context)[None]
        _, hidden = model.hidden_states(row, jnp.ones_like(row), jnp.arange(len(context))[None])
        assert answer.v == pytest.approx(float(model.state_value(hidden[0, -1])), abs=1e-4)


BEST_OF_2 = "sum", DecodingConfig(candidates=2)
STEERED = "last", DecodingConfig(steering_strength=0.3)


@pytest.mark.parametrize(
    ("utterance_q", "how", "trunk"),
    [
        (*BEST_OF_2, "separate"),
        (*STEERED, "shared"),
        pytest.param(*BEST_OF_2, "shared", marks=pytest.mark.slow),
        pytest.param(*STEERED, "separate", marks=pytest.mark.slow),
    ],
)
def test_values_and_probabilities_are_those_of_the_words_read_at_once(
    params, utterance_q, how, trunk
):
    """In slots that are refilled, with a word that may not be said."""
    shape = dataclasses.replace(MODEL, utterance_q=utterance_q, value_trunk=trunk)
    params = params if trunk == "shared" else random_params(shape, 0.3)
    allowed = np.arange(VOCAB) != 5
    agent = Policy(shape, params, how, STOP, allowed, LONGEST, batch_size=2)
    contexts = [words(i, 4 + 2 * i) for i in range(7)]
    model = with_params(shape, params)

    @jax.jit
    def read(row):
        hidden, of_values = model.hidden_states(row, jnp.ones_like(row), jnp.arange(row.size)[None])
        return model.trunk.logits(hidden[0]), model.q(of_values[0])

    for context, answer in zip(contexts, agent.respond(contexts, range(7)), strict=True):
        row = np.zeros((1, 32), np.int32)  # what comes later is not seen
        length = len(context) + len(answer.tokens)
        row[0, :length] = np.concatenate([context, answer.tokens])
        states = np.arange(len(context) - 1, length - 1)  # before each word of the answer
        logits, q = map(np.asarray, read(row))
        logits = np.where(allowed, logits, -np.inf)
        log_prob = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = log_prob[states, answer.tokens].sum()
        assert answer.log_prob == pytest.approx(expected, abs=1e-3)
        shares = q[:, states, answer.tokens]  # of each head
        expected = np.min(shares.sum(axis=1) if utterance_q == "sum" else shares[:, -1])
        assert answer.q == pytest.approx(expected, abs=1e-3)


def test_a_slot_that_has_finished_is_refilled(params, monkeypatch):
    clocks = []

    def generate(*arguments, **options):
        slots = decode.generate(*arguments, **options)
        clocks.append(int(slots.clock))
        return slots

    def generate_zeros_behind_the_end(*arguments, **options):
        slots = generate(*arguments, **options)
        found = slots.samples
        behind = np.arange(found.tokens.shape[-1]) >= found.length[..., None]
        assert behind.any() and (found.tokens[behind] == 0).all()
        return slots

    monkeypatch.setattr(policy, "generate", generate_zeros_behind_the_end)
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
    compiled = decode.generate._cache_size(), decode.insert._cache_size()
    for turn in range(1, 5):
        agent.respond([words(i, 3 + 9 * turn) for i in range(3 * turn)], range(3 * turn))
    assert (decode.generate._cache_size(), decode.insert._cache_size()) == compiled


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 1000])
def test_draws_follow_the_probabilities(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 2, vocab)
    logits[rng.random(vocab) < 0.3] = -np.inf
    logits[0] = 1.0
    keys = jax.random.split(jax.random.key(0), (1, 20_000))
    relative = jnp.asarray(logits - logits.max(), jnp.float32)
    drawn = decode._sample(keys, jnp.broadcast_to(relative, (1, 20_000, vocab)))
    observed = np.bincount(np.asarray(drawn)[0], minlength=vocab) / 20_000
    expected = np.exp(logits) / np.exp(logits).sum()
    assert len(observed) == vocab and not observed[expected == 0].any()
    assert np.abs(observed - expected).max() < 0.015


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-3, 1.0, 1e6, 3e38, np.inf])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_any_temperature_gives_an_allowed_token(temperature, scale):
    allowed = np.arange(64) % 3 == 1
    logits = scale * np.random.default_rng(0).normal(size=(5, 400, 64))
    scores = jnp.where(allowed, jnp.asarray(logits, jnp.float32), -jnp.inf)
    keys = jax.random.split(jax.random.key(0), (5, 400))
    token = decode._choose(keys, jnp.zeros(5, jnp.int32), scores, np.float32(temperature))
    assert allowed[np.asarray(token)].all()
    if temperature < 1e-30:  # as good as greedy
        np.testing.assert_array_equal(token, np.argmax(scores, axis=-1))
    if temperature > 1e30 and scale == 1:  # as good as uniform
        assert len(np.unique(token)) == allowed.sum()


LAST = dataclasses.replace(MODEL, utterance_q="last")


@pytest.mark.parametrize("strength", [1e30, -3e38])
def test_a_strength_that_overflows_gives_an_allowed_token(params, strength):
    allowed = np.isin(np.arange(VOCAB), [STOP, 5, 8])
    how = DecodingConfig(steering_strength=strength)
    agent = Policy(LAST, params, how, STOP, allowed, LONGEST, batch_size=4)
    for answer in agent.respond([words(i, 5) for i in range(8)], range(8)):
        assert set(answer.tokens) <= {STOP, 5, 8} and np.isfinite(answer.log_prob)


def test_the_method_says_how_values_steer(params):
    def against_the_policy(logits, q, v, strength):
        return -logits + 0 * (q - v[..., None])

    allowed = np.ones(VOCAB, bool)
    how = DecodingConfig(temperature=0, steering_strength=1)
    options = {"stop_token": STOP, "allowed": allowed, "max_utterance": 2, "batch_size": 4}
    agent = Policy(LAST, params, how, steer=against_the_policy, **options)
    model = with_params(LAST, params)
    for context in (words(0, 5), words(1, 9)):
        (answer,) = agent.respond([context], [0])
        hidden = model.trunk(
            context[None], np.ones_like(context[None]), np.arange(len(context))[None]
        )
        assert answer.tokens[0] == np.argmin(model.trunk.logits(hidden[0, -1]))


def test_a_decoding_that_is_set_later_is_as_one_from_the_start():
    """With values in a trunk of their own, which the first rule leaves unread."""
    config = dataclasses.replace(LAST, value_trunk="separate")
    params = random_params(config, 0.5)
    options = {"stop_token": STOP, "allowed": np.ones(VOCAB, bool), "max_utterance": LONGEST}
    contexts = [words(seed, 6) for seed in range(4)]
    rules = [DecodingConfig.parse(text) for text in ("greedy", "greedy, steered by 3")]
    changing, steered = (Policy(config, params, each, batch_size=4, **options) for each in rules)
    unsteered = changing.respond(contexts, range(4))
    changing.decoding = rules[1]
    now, expected = (each.respond(contexts, range(4)) for each in (changing, steered))
    for one, other in zip(now, expected, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.q == pytest.approx(other.q, abs=1e-4)
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(now, unsteered, strict=True))
    with pytest.raises(PolicyError, match="steers every token"):
        make_policy(random_params(MODEL, 0.3)).decoding = rules[1]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoding", "fields", "message"),
    [
        ("greedy, steered by 2", {}, "steers every token by its value, but with utterance_q 'sum'"),
        ("sampled", {"max_utterance": 96}, "96 tokens does not fit in the network's context of 96"),
        ("sampled", {"max_utterance": 0}, "max_utterance is 0"),
        ("sampled", {"allowed": np.ones(12, bool)}, r"shape \(12,\), but must say .* 11 tokens"),
        ("sampled", {"allowed": np.zeros(11, bool)}, "allowed is false for all tokens"),
        (
            "sampled",
            {"stop_token": 11},
            "stop_token is 11, but .* 0 to 10",
        ),
        ("sampled", {"stop_token": -1}, "stop_token is -1"),
    ],
)
def test_a_decoding_that_a_network_cannot_do_is_refused(params, decoding, fields, message):
    options = {"stop_token": STOP, "allowed": np.ones(VOCAB, bool), "max_utterance": LONGEST}
    with pytest.raises(PolicyError, match=message):
        Policy(MODEL, params, DecodingConfig.parse(decoding), **options | fields)


@pytest.mark.parametrize("kind", VALUE_HEAD_KINDS)
def test_values_that_were_never_learned_choose_nothing(kind):
    config = dataclasses.replace(LAST, value_heads=kind)
    fresh = init_params(config, 0)
    options = {"stop_token": STOP, "allowed": np.ones(VOCAB, bool), "max_utterance": LONGEST}
    for decoding in ("sampled, best of 4", "sampled, steered by 1"):
        with pytest.raises(PolicyError, match="the network has learned none"):
            Policy(config, fresh, DecodingConfig.parse(decoding), **options)
    Policy(config, fresh, DecodingConfig.parse("sampled"), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"v": {"inner": {"bias": np.zeros(3)}}},
            r"params: v/inner/bias has shape \(3,\), but .* has \(16,\) there",
        ),
        ({"more": np.zeros(2)}, r"params: more has shape \(2,\), but .* has None there"),
    ],
)
def test_parameters_of_another_shape_are_named(params, change, message):
    def replaced(tree, change):
        inner = {k: replaced(tree[k], x) if isinstance(x, dict) else x for k, x in change.items()}
        return {**tree, **inner}

    with pytest.raises(PolicyError, match=message):
        make_policy(replaced(params, change))


def test_contexts_that_cannot_be_answered_are_named(params):
    agent = make_policy(params)
    with pytest.raises(PolicyError, match="there are 2 contexts and 1 seeds"):
        agent.respond([words(0, 3), words(1, 3)], [0])
    with pytest.raises(ContextError, match=r"context 1 has the token 11; .* vocabulary is 0 to 10"):
        agent.respond([words(0, 3), np.int32([1, VOCAB])], [0, 1])
