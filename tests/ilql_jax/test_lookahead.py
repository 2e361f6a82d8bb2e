"""Looking ahead: values of candidates by what follows, exactly and by a network."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import random_params

from ilql_jax.decoding_config import DecodingConfig, PolicyError
from ilql_jax.lookahead import Best, Imagination, Replies, Said, look_ahead
from ilql_jax.methods import METHODS, MethodError
from ilql_jax.models import DecoderConfig, ModelConfig, with_params
from ilql_jax.policy import Policy

VOCAB, STOP, HUMAN, AGENT = 11, 3, 1, 2
MODEL = ModelConfig(DecoderConfig(VOCAB, 16, 2, 2, 32, 128, initializer_range=0.2), 16)
LAYOUT = Replies((HUMAN,), AGENT, (), over=STOP, allowed=(4, 5, 6, 7), max_length=4)
AHEAD = "sampled, best of 6, looking ahead by 2, replies 3"


def tokens(*ids):
    return np.array(ids, np.int32)


# --- the rule -----------------------------------------------------------------------------------


GAIN = {8: 0.3, 9: 0.0, 10: 5.0}


class Chain:
    """Utterance 8 leads to states with a gain of 0.3, utterance 9 to none, 10 to the end."""

    def __init__(self):
        self.asked = []

    def ends(self, contexts):
        return [float(context[-2] == 10) for context in contexts]

    def replies(self, contexts, seeds, count):
        assert all(context[-1] == HUMAN for context in contexts)
        return [[tokens(4 + n % 2, AGENT) for n in range(count)] for _ in contexts]

    def best(self, contexts, seeds):
        self.asked += [context.tolist() for context in contexts]
        return [Best(tokens(9, STOP), 0.5 + GAIN[int(context[2])], 0.5) for context in contexts]

    @property
    def answers(self):
        return Imagination(self.ends, self.replies, self.best)


def looked(chain, said, **options):
    options = {"turns": 1, "replies": 2, "discount": 0.9, "longest": 60} | options
    context = tokens(HUMAN, AGENT)
    return look_ahead(chain.answers, LAYOUT, [context], [said], [7], **options)[0]


def test_a_candidate_gains_what_choosing_brings_after_it():
    said = [Said(tokens(a, STOP), q) for a, q in ((9, 0.6), (8, 0.5), (10, 0.4))]
    assert looked(Chain(), said) == pytest.approx([0.6, 0.5 + 0.9 * 0.3, 0.4])  # 10 ends it
    two = looked(Chain(), said, turns=2)
    assert two == pytest.approx([0.6, 0.5 + (0.9 + 0.81) * 0.3, 0.4])


def test_a_state_that_several_replies_lead_to_is_asked_for_once():
    chain = Chain()
    looked(chain, [Said(tokens(8, STOP), 0.5), Said(tokens(9, STOP), 0.4)], replies=6)
    assert len(chain.asked) == 4 == len({*map(tuple, chain.asked)})  # two replies each


@pytest.mark.parametrize(("longest", "is_looked_at"), [(9, True), (8, False)])
def test_candidates_are_compared_on_equal_terms_where_room_is_short(longest, is_looked_at):
    said = [Said(tokens(8, STOP), 0.5), Said(tokens(9, STOP), 0.6)]  # 2 + 2 + 1 + 4 tokens
    chain = Chain()
    values = looked(chain, said, longest=longest)
    assert (values != [0.5, 0.6]) == is_looked_at == bool(chain.asked)


def test_a_single_candidate_costs_nothing():
    chain = Chain()
    assert looked(chain, [Said(tokens(8, STOP), 0.5)]) == [0.5] and not chain.asked


# --- by a network -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL, 0.5)


def policy(params, decoding, **options):
    allowed = ~np.isin(np.arange(VOCAB), [0, HUMAN, AGENT])
    options = {"batch_size": 4, "replies": LAYOUT} | options
    return Policy(MODEL, params, DecodingConfig.parse(decoding), STOP, allowed, 5, **options)


def contexts(count):
    rng = np.random.default_rng(0)
    return [
        np.array([HUMAN, *rng.integers(4, 8, 3 + i % 4), AGENT], np.int32) for i in range(count)
    ]


def test_the_candidates_are_those_without_and_only_their_values_differ(params):
    plain, ahead = policy(params, "sampled, best of 6"), policy(params, AHEAD)
    asked = contexts(9)
    moved = False
    for one, other in zip(plain.respond(asked, range(9)), ahead.respond(asked, range(9)), strict=1):
        assert {a.tobytes() for a, *_ in one.written} == {a.tobytes() for a, *_ in other.written}
        q = [said.q for said in other.written]
        assert q == sorted(q, reverse=True) and other.q == q[0] and other.v == pytest.approx(one.v)
        assert other.tokens.tolist() == other.written[0].tokens.tolist()
        known = {said.tokens.tobytes(): said.log_prob for said in one.written}
        assert other.log_prob == pytest.approx(known[other.tokens.tobytes()], abs=1e-5)
        moved |= one.tokens.tolist() != other.tokens.tolist()
    assert moved


@pytest.mark.parametrize("cache_megabytes", [256.0, 0.0])
def test_the_answer_depends_on_context_and_seed_alone(params, cache_megabytes):
    """However much of what was imagined is still in the cache."""
    together = policy(params, AHEAD, cache_megabytes=cache_megabytes)
    asked = contexts(7)
    answers = together.respond(asked, range(7))
    entries = [*together._prefixes._entry_of.values(), *together._prefixes._free]
    assert sorted(entries) == list(range(together._prefixes.entries))  # none lost
    for index in (6, 2, 0):
        (alone,) = policy(params, AHEAD).respond([asked[index]], [index])
        assert alone.tokens.tolist() == answers[index].tokens.tolist()
        assert alone.q == pytest.approx(answers[index].q, abs=1e-4)
    (again,) = together.respond([asked[3]], [3])  # with another history
    assert again.q == pytest.approx(answers[3].q, abs=1e-4)


def test_the_end_is_as_probable_as_the_network_says(params):
    agent, model = policy(params, AHEAD), with_params(MODEL, params)
    said = [np.append(context, [5, STOP]).astype(np.int32) for context in contexts(5)]
    for context, found in zip(said, agent._imagination.ends(said), strict=True):
        row = jnp.asarray(context)[None]
        states, _ = model.hidden_states(row, jnp.ones_like(row), jnp.arange(len(context))[None])
        logits = np.asarray(model.trunk.logits(states[0, -1]))
        expected = 1 / (1 + np.exp(logits[HUMAN] - logits[STOP]))
        assert found == pytest.approx(expected, abs=1e-4)


def test_replies_have_words_of_the_human_and_end(params):
    agent = policy(params, AHEAD)
    opened = [np.append(c, [5, STOP, HUMAN]).astype(np.int32) for c in contexts(3)]
    for replies in agent._imagination.replies(opened, [0, 1, 2], 8):
        assert len(replies) == 8
        for reply in replies:
            assert reply[-1] == AGENT and set(reply[:-1].tolist()) <= {*LAYOUT.allowed}


def test_what_is_imagined_is_of_the_unit_of_the_rewards(params):
    (one,) = policy(params, AHEAD).respond(contexts(1), [0])
    (other,) = policy(params, AHEAD, reward_scale=0.5, baseline=-3.0).respond(contexts(1), [0])
    assert other.q == pytest.approx(2 * one.q - 3, abs=1e-4)


# --- what is refused, and text ------------------------------------------------------------------


@pytest.mark.parametrize("text", ["sampled at 0.4, best of 8, looking ahead by 1", AHEAD])
def test_a_decoding_is_its_text(text):
    assert str(DecodingConfig.parse(text)) == text
    assert DecodingConfig.parse(text).without_values == DecodingConfig.parse(text.split(",")[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampled, looking ahead by 1", "lookahead is 1, but must be 0 with one candidate"),
        ("sampled, best of 4, looking ahead by 11", "lookahead is 11"),
        ("sampled, best of 4, looking ahead", "'looking ahead' is not understood"),
        ("sampled, best of 4, replies 3", "replies is 3, but is for looking ahead"),
    ],
)
def test_decodings_that_cannot_be_are_told(text, message):
    with pytest.raises(PolicyError, match=message):
        DecodingConfig.parse(text)


def test_who_cannot_look_ahead_says_so(params):
    with pytest.raises(PolicyError, match="not known how its turns are laid out"):
        policy(params, AHEAD, replies=None)
    plain = policy(params, "sampled", replies=None)
    with pytest.raises(PolicyError, match="not known how its turns are laid out"):
        plain.decoding = DecodingConfig.parse(AHEAD)
    ilql, how = METHODS["ilql"], DecodingConfig.parse(AHEAD)
    with pytest.raises(MethodError, match="set its observation_loss_weight above 0"):
        ilql.check_decoding(how)
    predicts = ilql.configured(observation_loss_weight=0.5)
    predicts.check_decoding(how)
    with pytest.raises(MethodError, match="set its credit to 'utterance'"):
        predicts.configured(credit="token").check_decoding(how)
