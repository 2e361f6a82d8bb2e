"""Packing: nothing leaks, nothing is lost, and the position in the data can be saved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from ilql_jax import PackingConfig, Trajectory, TrajectoryError, make_batches, packing_for
from ilql_jax.batching import (
    abstract_batch,
    one_per_row,
    token_transitions,
    utterance_transitions,
)
from ilql_jax.losses import END, NEXT_UTTERANCE, SAME_UTTERANCE
from ilql_jax.methods import METHODS
from ilql_jax.methods.loss_terms import gather, normalizers_of, q_of_utterances
from ilql_jax.models import DecoderConfig, ModelConfig, with_params

MODEL = ModelConfig(DecoderConfig(64, 8, 2, 2, 16, 32, initializer_range=0.08), 16)


def make(is_action, tokens=None, rewards=None, **fields):
    is_action = np.array(is_action, bool)
    tokens = np.arange(len(is_action)) if tokens is None else tokens
    rewards = np.zeros(len(is_action)) if rewards is None else rewards
    return Trajectory(np.int32(tokens), is_action, np.float32(rewards), **fields)


# human 0, agent 1 2, human 3, agent 4 5 6
TALK = [0, 1, 1, 0, 1, 1, 1]


def dataset(count=12, seed=0):
    """Trajectories whose first token is their number, every fourth one cut off."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        length = int(rng.integers(4, 14))
        is_action = rng.random(length) < 0.6
        is_action[0], is_action[1] = False, True
        tokens = rng.integers(32, 64, length)
        tokens[0] = number
        rewards = np.where(is_action, rng.normal(size=length), 0)
        result.append(make(is_action, tokens, rewards, terminal=number % 4 != 0))
    return result


def unpack(batch):
    """Every dialogue of a batch as (tokens, its token transitions, its utterance transitions)."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            inside = np.flatnonzero(batch.segment_ids[row] == segment)
            start = inside[0]
            assert (batch.positions[row, inside] == np.arange(len(inside))).all()
            levels = []
            for level in (batch.by_token, batch.by_utterance):
                mine = (level.weight[row] > 0) & np.isin(level.state[row], inside)
                columns = {name: array[row, mine] for name, array in level._asdict().items()}
                for name in ("state", "value_state", "next_state"):
                    columns[name] = columns[name] - start
                levels.append(columns)
            yield batch.tokens[row, inside], *levels


# --- transitions of one dialogue ----------------------------------------------------------------


def test_token_transitions_by_hand():
    result = token_transitions(make(TALK, rewards=[0, 0, 0.5, 0, 0, 0, 2]), discount=0.9)
    assert result.state.tolist() == result.value_state.tolist() == [0, 1, 3, 4, 5]
    assert result.action.tolist() == [1, 2, 4, 5, 6]
    assert result.next_state.tolist() == [1, 3, 4, 5, 6]
    same, other = SAME_UTTERANCE, NEXT_UTTERANCE
    assert result.boundary.tolist() == [same, other, same, same, END]
    np.testing.assert_allclose(result.reward, [0, 0.5, 0, 0, 2])
    np.testing.assert_allclose(result.discount, [0.9, 0.9, 0.9, 0.9, 0])


def test_utterance_transitions_by_hand():
    rewards = [0, 0.25, 0.5, 0, 0, 1, 2]
    result = utterance_transitions(make(TALK, rewards=rewards), discount=0.9)
    assert result.value_state.tolist() == [0, 3]  # V before the first token
    assert result.state.tolist() == [1, 5]  # Q at the last
    assert result.action.tolist() == [2, 6]
    assert result.next_state.tolist() == [3, 6]
    assert result.boundary.tolist() == [NEXT_UTTERANCE, END]
    np.testing.assert_allclose(result.reward, [0.75, 3])
    np.testing.assert_allclose(result.discount, [0.9, 0])


@pytest.mark.parametrize("transitions", [token_transitions, utterance_transitions])
def test_a_truncated_end_bootstraps_from_the_last_token(transitions):
    result = transitions(make([*TALK, 0, 0], terminal=False), discount=0.9)
    assert result.discount[-1] == np.float32(0.9)
    assert result.next_state[-1] == 8
    assert result.boundary[-1] == END


@pytest.mark.parametrize("trajectory", dataset())
def test_transitions_hold_action_reward_and_end_of_any_trajectory(trajectory):
    by_token, by_utterance = (
        token_transitions(trajectory, 0.9),
        utterance_transitions(trajectory, 1),
    )
    assert len(by_token.action) == trajectory.is_action.sum()
    for level in (by_token, by_utterance):
        assert (level.action == trajectory.tokens[level.state + 1]).all()
        assert level.reward.sum() == pytest.approx(trajectory.total_reward, abs=1e-5)
        assert (level.discount[-1] == 0) == trajectory.terminal
        assert (level.discount[:-1] > 0).all()
        assert (level.value_state <= level.state).all()
        assert (level.next_state > level.state).all()
        np.testing.assert_array_equal(level.next_state[:-1], level.value_state[1:])


# --- packing ------------------------------------------------------------------------------------


def test_packed_dialogues_keep_their_exact_transitions():
    data = dataset()
    batches = make_batches(data, packing_for(data, 2, 32, 0.9, 0.8), seed=1)
    dialogues = [dialogue for _ in range(10) for dialogue in unpack(next(batches))]
    assert len(dialogues) > 3 * len(data)
    for tokens, by_token, by_utterance in dialogues:
        source = data[tokens[0]]
        np.testing.assert_array_equal(tokens, source.tokens)
        for packed, expected in (
            (by_token, token_transitions(source, 0.9)),
            (by_utterance, utterance_transitions(source, 0.8)),
        ):
            for name, array in expected._asdict().items():
                np.testing.assert_array_equal(packed[name], array, err_msg=name)


def test_no_decision_and_no_reward_is_lost_or_added_by_packing():
    data = dataset()
    batches = make_batches(data, packing_for(data, 2, 32), seed=1)
    for batch in (next(batches) for _ in range(5)):
        sources = [data[tokens[0]] for tokens, *_ in unpack(batch)]
        assert batch.by_token.weight.sum() == sum(t.is_action.sum() for t in sources)
        total = sum(t.total_reward for t in sources)
        for level in (batch.by_token, batch.by_utterance):
            assert level.reward.sum() == pytest.approx(total, abs=1e-4)
            assert level.reward[level.weight == 0].sum() == 0


def test_every_trajectory_appears_once_per_epoch():
    # Rows hold one dialogue each, so that epochs end with batches.
    data = [make([0, 1, 1, 1], tokens=[n, 1, 2, 3]) for n in range(12)]
    batches = make_batches(data, PackingConfig(2, 4, 3, 1), seed=3)
    seen = [tokens[0] for _ in range(30) for tokens, *_ in unpack(next(batches))]
    counts = np.bincount(seen, minlength=12)
    assert len(seen) == 60
    assert counts.max() - counts.min() <= 1


def test_no_trajectory_is_dropped_in_the_long_run():
    data = dataset(30)
    batches = make_batches(data, packing_for(data, 2, 32), seed=3)
    seen = [tokens[0] for _ in range(150) for tokens, *_ in unpack(next(batches))]
    counts = np.bincount(seen, minlength=30)
    assert counts.min() > 20
    assert counts.max() - counts.min() <= 2  # at most the open rows lie between epochs


def test_epochs_and_seeds_differ_in_order():
    data = [make([0, 1], tokens=[n, 1]) for n in range(32)]

    def order(seed):
        batches = make_batches(data, PackingConfig(2, 2, 1, 1), seed)
        return [tokens[0] for _ in range(32) for tokens, *_ in unpack(next(batches))]

    first = order(0)
    assert first == order(0)
    assert first != order(1)
    assert first[:32] != first[32:]


def test_one_per_row_keeps_order_and_fills_up_with_empty_rows():
    data = dataset(5)
    batches = list(one_per_row(data, packing_for(data, 2, 16)))
    assert len(batches) == 3
    assert [tokens[0] for batch in batches for tokens, *_ in unpack(batch)] == [0, 1, 2, 3, 4]
    for batch in batches:
        counted = np.arange(16) * (batch.segment_ids > 0)
        np.testing.assert_array_equal(batch.positions, counted)
    assert batches[-1].segment_ids[1].sum() == 0
    assert batches[-1].by_token.weight[1].sum() == 0


def test_rows_have_slots_for_a_tenth_more_than_the_mean_in_eights():
    """Here 64 · 5 / 7 = 45.7 agent tokens of a full row, and 64 · 2 / 7 = 18.3 utterances."""
    packing = packing_for([make(TALK)] * 3, batch_rows=2, row_length=64)
    assert (packing.actions_per_row, packing.utterances_per_row) == (56, 24)  # of 50 and 20


def test_packing_leaves_little_room_unused():
    data = dataset(200)
    batches = make_batches(data, packing_for(data, 8, 128), seed=0)
    some = [next(batches) for _ in range(10)]
    assert np.mean([batch.segment_ids > 0 for batch in some]) > 0.8
    assert np.mean([batch.by_token.weight for batch in some]) > 0.7


# --- leaks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed():
    """A batch of several dialogues a row, another where one of them says something else."""
    data = dataset()
    batch = next(make_batches(data, packing_for(data, 2, 32), seed=1))
    assert batch.segment_ids.max(axis=1).min() >= 2
    changed = (batch.segment_ids == 1) & (np.arange(2)[:, None] == 0)
    tokens = np.where(changed, (batch.tokens + 7) % 64, batch.tokens)
    return batch, batch._replace(tokens=tokens), changed


@pytest.fixture(scope="module")
def params():
    """Random everywhere, so that no head hides a leak behind a zero."""
    return small_networks.random_params(MODEL, 0.2)


@jax.jit
def states_of(params, tokens, segment_ids, positions):
    return with_params(MODEL, params).trunk(tokens, segment_ids, positions)


def test_hidden_states_do_not_see_the_other_dialogues_of_the_row(packed, params):
    batch, perturbed, changed = packed
    before, after = (
        np.asarray(states_of(params, b.tokens, b.segment_ids, b.positions))
        for b in (batch, perturbed)
    )
    np.testing.assert_array_equal(before[~changed], after[~changed])
    assert (before[changed] != after[changed]).any(axis=-1).mean() > 0.9


def test_hidden_states_are_those_of_a_row_of_its_own(packed, params):
    batch, *_ = packed
    hidden = np.asarray(states_of(params, batch.tokens, batch.segment_ids, batch.positions))
    inside = batch.segment_ids[0] == 2
    tokens = batch.tokens[:1, inside]
    alone = states_of(params, tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None])
    np.testing.assert_allclose(hidden[0, inside], alone[0], atol=1e-5)


def without(transitions, changed):
    """Transitions with weight zero where they belong to what was changed."""
    theirs = np.take_along_axis(changed, transitions.state, axis=1)
    return transitions._replace(weight=np.where(theirs, 0, transitions.weight).astype(np.float32))


@pytest.mark.parametrize(
    ("method", "credit", "how"),
    [
        ("bc", "token", "last"),
        ("ilql", "token", "last"),
        ("ilql", "utterance", "last"),
        ("ilql", "utterance", "sum"),
    ],
)
def test_losses_and_gradients_do_not_see_the_other_dialogues(packed, params, method, credit, how):
    batch, perturbed, changed = packed
    shape = dataclasses.replace(MODEL, utterance_q=how)
    learned = METHODS[method]
    if method == "ilql":
        learned = learned.configured(
            credit=credit,
            cql_weight=0.1,
            token_trace=0.9,
            utterance_trace=0.9,
            trace_fade=(0.0, 0.0),
            awac_temperature=1.0,
        )

    @jax.jit
    def loss_and_gradients(batch):
        def loss(params):
            model = with_params(shape, params)
            return learned.loss(
                model,
                model,
                batch,
                learned.config,
                progress=jnp.float32(1.0),
                normalizers=normalizers_of(batch),
            )

        return jax.value_and_grad(loss, has_aux=True)(params)

    masks = {
        level: without(getattr(batch, level), changed) for level in ("by_token", "by_utterance")
    }
    masks["clone_weight"] = masks["by_token"].weight
    jax.tree.map(
        np.testing.assert_array_equal,
        loss_and_gradients(batch._replace(**masks)),
        loss_and_gradients(perturbed._replace(**masks)),
    )
    assert loss_and_gradients(batch)[0][0] != loss_and_gradients(perturbed)[0][0]


def test_an_utterances_q_is_the_sum_over_its_own_tokens(packed, params):
    batch, *_ = packed
    model = with_params(MODEL, params)
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    found = q_of_utterances(model.q, "sum", hidden, batch)
    every = np.asarray(model.q(hidden))
    utterances = batch.by_utterance
    for row, slot in np.argwhere(utterances.weight > 0):
        # From V's state, in front of the first token, to Q's, in front of the last.
        states = np.arange(utterances.value_state[row, slot], utterances.state[row, slot] + 1)
        expected = every[:, row, states, batch.tokens[row, states + 1]].sum(axis=1)
        np.testing.assert_allclose(found[:, row, slot], expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(found)[:, utterances.weight == 0].any()


# --- what is cloned, what is credited ------------------------------------------------------------

CLONE = np.float32([0, 1, 0.5, 0, 0, 0, 0])
CREDIT = np.array([False, False, False, False, False, True, True])


def test_weights_count_credited_decisions_and_cloning_has_its_own():
    talk = make(TALK, rewards=[0, 1, 0, 0, 0, 0, 2], clone=CLONE, credit=CREDIT)
    by_token, by_utterance = token_transitions(talk, 0.9), utterance_transitions(talk, 0.9)
    assert by_token.weight.tolist() == [0, 0, 0, 1, 1]
    assert by_utterance.weight.tolist() == [0, 1]  # credited as soon as one of its tokens is
    plain = make(TALK, rewards=[0, 1, 0, 0, 0, 0, 2])
    for level, whole in (
        (by_token, token_transitions(plain, 0.9)),
        (by_utterance, utterance_transitions(plain, 0.9)),
    ):
        for name in set(level._fields) - {"weight"}:  # states, rewards and ends stay: returns pass
            np.testing.assert_array_equal(getattr(level, name), getattr(whole, name), name)
    batch = next(make_batches([talk], PackingConfig(1, 8, 8, 4), seed=0))
    assert batch.clone_weight.tolist() == [[1, 0.5, 0, 0, 0, 0, 0, 0]]
    assert batch.by_token.is_real.tolist() == [[True] * 5 + [False] * 3]
    assert batch.by_utterance.is_real.tolist() == [[True] * 2 + [False] * 2]


def losses_of(talk, params, method, **fields):
    """Metrics of one trajectory, or of several in a row each, under a method."""
    talks = talk if isinstance(talk, list) else [talk]
    batch = next(one_per_row(talks, PackingConfig(len(talks), 8, 8, 4)))
    shape = dataclasses.replace(MODEL, utterance_q="sum" if method == "ilql" else "last")
    learned = METHODS[method].configured(**fields)
    _, metrics = small_networks.loss_of(
        shape, learned, params, params, batch, jnp.float32(1.0), normalizers_of(batch)
    )
    metrics = {name: float(value) for name, value in metrics.items()}
    return metrics, batch, with_params(shape, params)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        pytest.param("bc", {}, marks=pytest.mark.slow),
        pytest.param("mc", {"cql_weight": 0.3}, marks=pytest.mark.slow),
        ("rwft", {}),
        pytest.param(
            "ilql",
            {"credit": "token", "cql_weight": 0.3, "awac_temperature": 0.5},
            marks=pytest.mark.slow,
        ),
        ("ilql", {"credit": "utterance", "cql_weight": 0.3, "awac_temperature": 0.5}),
    ],
)
def test_a_dialogue_of_weight_two_counts_as_if_it_were_there_twice(params, method, fields):
    rewards = [0, 1, 0, 0, 0, 0, 0.5]
    talk = make(TALK, rewards=rewards, clone=CLONE, credit=CREDIT)
    other = make([0, 1, 1, 1, 0, 0, 0], rewards=[0, 0, 0, 1, 0, 0, 0])
    heavy = dataclasses.replace(talk, weight=2.0)
    (twice, *_), (once, *_) = (
        losses_of(data, params, method, **fields) for data in ([talk, other, talk], [heavy, other])
    )
    assert once == pytest.approx(twice, rel=1e-5)
    plain, *_ = losses_of([talk, other], params, method, **fields)
    assert plain["loss"] != pytest.approx(twice["loss"], rel=1e-3)


def test_the_policys_loss_is_a_mean_weighted_by_clone(params):
    talk = make(TALK, clone=CLONE, credit=CREDIT)
    metrics, batch, model = losses_of(talk, params, "bc")
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)[0]
    log_prob = jax.nn.log_softmax(model.trunk.logits(hidden))
    expected = -(log_prob[0, 1] + 0.5 * log_prob[1, 2]) / 1.5
    assert metrics["policy_loss"] == pytest.approx(float(expected), rel=1e-5)
    for fields in ({}, {"awac_temperature": 0.5}):  # not credited: no advantage is known
        metrics, *_ = losses_of(talk, params, "ilql", **fields)
        assert metrics["policy_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_values_learn_from_credited_decisions_alone_but_returns_pass_all(params):
    rewards = [0, 1, 0, 0, 0, 0, 2]
    both, batch, model = losses_of(make(TALK, rewards=rewards), params, "ilql", utterance_trace=1.0)
    one, _, _ = losses_of(
        make(TALK, rewards=rewards, credit=CREDIT), params, "ilql", utterance_trace=1.0
    )
    assert both["return_mean"] == pytest.approx((1 + 0.99 * 2 + 2) / 2)
    assert one["return_mean"] == pytest.approx(2)
    first = np.array([False, True, True, False, False, False, False])
    one, _, _ = losses_of(
        make(TALK, rewards=rewards, credit=first), params, "ilql", utterance_trace=1.0
    )
    assert one["return_mean"] == pytest.approx(1 + 0.99 * 2)
    hidden = model.trunk(batch.tokens, batch.segment_ids, batch.positions)
    q = q_of_utterances(model.q, "sum", hidden, batch)[:, 0, 0]
    assert one["q_loss"] == pytest.approx(float(((q - one["return_mean"]) ** 2).sum()), rel=1e-5)


def test_gather_picks_each_rows_own_hidden_states():
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    assert gather(hidden, jnp.array([[2, 0], [1, 1]])).tolist() == [
        [[4, 5], [0, 1]],
        [[8, 9], [8, 9]],
    ]


# --- position -----------------------------------------------------------------------------------


def test_the_iterator_goes_on_where_its_saved_position_was():
    data = dataset(30)
    packing = packing_for(data, 2, 32)
    batches = make_batches(data, packing, seed=1)
    for _ in range(7):
        next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(12)]
    resumed = make_batches(data, packing, seed=1)
    resumed.set_state(position)
    for one in expected:
        jax.tree.map(np.testing.assert_array_equal, one, next(resumed))


# --- bad input ----------------------------------------------------------------------------------

GOOD = make(TALK, name="dialogue 7")


def with_field(**fields):
    return dataclasses.replace(GOOD, **fields)


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (with_field(is_action=np.zeros(7, bool)), "no token was written by the agent"),
        (with_field(is_action=np.ones(7, bool)), "first token is the agent's"),
        (with_field(rewards=np.float32([0, 0, np.nan, 0, 0, 0, 0])), r"rewards\[2\] is nan"),
        (with_field(rewards=np.float32([0, 0, 0, 0, 0, 0, np.inf])), r"rewards\[6\] is inf"),
        (
            with_field(rewards=np.float32([0, 0, 0, 2.5, 0, 0, 0])),
            r"rewards\[3\] is 2.5, but token 3",
        ),
        (with_field(weight=0.0), "weight is 0.0, but must be finite and above 0"),
        (with_field(weight=float("nan")), "weight is nan"),
        (with_field(rewards=np.zeros(6, np.float32)), r"\(7,\), \(7,\), \(6,\)"),
        (with_field(tokens=np.zeros(7, np.float32)), "tokens must be integers.*float32"),
        (with_field(is_action=np.ones(7, np.int32)), "is_action bool, got int32 and int32"),
    ],
)
def test_a_broken_trajectory_is_named_with_field_and_value(trajectory, message):
    for use in (lambda t: make_batches([t], PackingConfig(1, 8, 8, 8), 0), lambda t: t.validate()):
        with pytest.raises(TrajectoryError, match=f"dialogue 7: .*{message}"):
            use(trajectory)


def test_a_dialogue_longer_than_the_context_is_named_with_both_lengths():
    with pytest.raises(TrajectoryError, match=r"dialogue 7: 7 tokens .* context of 6.*Raise"):
        packing_for([GOOD], batch_rows=1, row_length=6)


def test_no_data_at_all_is_said():
    with pytest.raises(TrajectoryError, match="no trajectories"):
        packing_for([], batch_rows=1, row_length=8)


def test_packing_that_a_dialogues_decisions_do_not_fit_in_is_refused():
    with pytest.raises(TrajectoryError, match=r"dialogue 7: 5 agent tokens .* 4"):
        make_batches([GOOD], PackingConfig(1, 8, actions_per_row=4, utterances_per_row=2), 0)
    with pytest.raises(TrajectoryError, match=r"dialogue 7: 2 agent utterances .* 1"):
        make_batches([GOOD], PackingConfig(1, 8, actions_per_row=5, utterances_per_row=1), 0)


# --- shapes -------------------------------------------------------------------------------------


def test_slots_follow_the_share_of_decisions_and_a_tenth_more():
    # 7 tokens, 5 of the agent in 2 utterances: a row of 70 holds 50 and 20, and a tenth more is
    # 55 and 22, rounded up to eights.
    packing = packing_for([make(TALK)], batch_rows=3, row_length=70)
    assert (packing.batch_rows, packing.row_length) == (3, 70)
    assert (packing.actions_per_row, packing.utterances_per_row) == (56, 24)
    assert (packing.token_discount, packing.utterance_discount) == (0.99, 0.99)
    # A dialogue with more decisions than usual has to fit all the same.
    quiet = [make([0, 1, *[0] * 18]) for _ in range(9)]
    packing = packing_for([*quiet, make([0, *[1] * 19])], 1, 20, 0.5, 0.25)
    assert (packing.actions_per_row, packing.utterances_per_row) == (19, 8)
    assert (packing.token_discount, packing.utterance_discount) == (0.5, 0.25)


def test_one_per_row_refuses_what_does_not_fit():
    packing = PackingConfig(batch_rows=1, row_length=9, actions_per_row=4, utterances_per_row=2)
    with pytest.raises(TrajectoryError, match="5 agent tokens do not fit in a row's 4 slots"):
        next(one_per_row([make(TALK)], packing))


def test_an_abstract_batch_has_the_shapes_of_a_real_one():
    packing = packing_for(dataset(), batch_rows=2, row_length=24)
    real, abstract = next(make_batches(dataset(), packing, 0)), abstract_batch(packing)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
