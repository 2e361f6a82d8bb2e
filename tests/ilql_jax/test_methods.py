"""Losses of the methods against their formulas, written out dialogue by dialogue in plain numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import logits, loss_of, random_params

from ilql_jax import METHODS, PackingConfig, Trajectory, TrajectoryError, make_batches
from ilql_jax.methods.loss_terms import Normalizers, normalizers_of
from ilql_jax.models import DecoderConfig, ModelConfig, with_params
from ilql_jax.preferences import PreferencePair, make_preference_batches, packing_for_pairs
from ilql_jax.settings import SettingError

VOCAB = 13
SUM = ModelConfig(DecoderConfig(VOCAB, 8, 1, 2, 16, 24, initializer_range=0.3), 8)
LAST = dataclasses.replace(SUM, utterance_q="last")
PACKING = PackingConfig(2, 40, 24, 12, token_discount=0.9, utterance_discount=0.8)
# Which decisions are valued, and how the network reads Q of an utterance.
KINDS = pytest.mark.parametrize(
    ("credit", "model_config"), [("token", LAST), ("utterance", LAST), ("utterance", SUM)]
)
PROGRESS = 0.4
VALUES = {
    "cql_weight": 0.3,
    "value_loss_weight": 0.7,
    "awac_temperature": 0.8,
    "awac_max_weight": 1.5,
}
ILQL = METHODS["ilql"].configured(
    **VALUES, expectile=0.8, token_trace=0.6, utterance_trace=0.2, trace_fade=(0.2, 0.6)
)
MC = METHODS["mc"].configured(**VALUES)
# Halfway through the fade: λ lies between 1 and its setting.
LAMBDAS = {"ilql": (0.8, 0.6), "mc": (1.0, 1.0)}
EXPECTILE = {"ilql": 0.8, "mc": 0.5}


def dialogues():
    """Dialogues of one to three utterances of one to four tokens, each with a reward."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(8):
        runs = [
            (False, int(rng.integers(1, 4))) if turn % 2 == 0 else (True, int(rng.integers(1, 5)))
            for turn in range(2 * int(rng.integers(1, 4)) + number % 2)
        ]
        is_action = np.concatenate([np.full(length, agent) for agent, length in runs])
        rewards = np.where(is_action, rng.normal(size=len(is_action)), 0).astype(np.float32)
        tokens = rng.integers(1, VOCAB, len(is_action)).astype(np.int32)
        clone = credit = None
        if number % 3 == 1:  # not all that is cloned is credited, and the other way round
            clone = np.where(is_action, rng.choice([0.0, 0.5, 1.0], len(is_action)), 0)
            clone = clone.astype(np.float32)
            credit = is_action & (np.arange(len(is_action)) > np.flatnonzero(is_action)[0])
            credit[np.flatnonzero(is_action)[-1]] = True
        made.append(
            Trajectory(tokens, is_action, rewards, number % 4 != 2, clone=clone, credit=credit)
        )
    return made


DATA = dialogues()
BATCH = next(make_batches(DATA, PACKING, 0))
PARAMS = random_params(SUM, 0.3, 0)
TARGET_PARAMS = PARAMS | {"q": random_params(SUM, 0.3, 1)["q"]}


@functools.lru_cache
def outputs():
    """logits, Q of the network and of its target, V: at every position; none reads utterance_q."""

    @jax.jit
    def compute(params, target_params):
        model, target = with_params(SUM, params), with_params(SUM, target_params)
        hidden = model.trunk(BATCH.tokens, BATCH.segment_ids, BATCH.positions)
        logits = jax.nn.log_softmax(model.trunk.logits(hidden))
        return logits, model.q(hidden), target.q(hidden), model.v(hidden)

    return [np.asarray(x, np.float64) for x in compute(PARAMS, TARGET_PARAMS)]


def in_the_batch():
    """Row, first column and dialogue of every dialogue in the batch."""
    by_tokens = {t.tokens.tobytes(): t for t in DATA}
    assert len(by_tokens) == len(DATA)
    for row, segments in enumerate(BATCH.segment_ids):
        for segment in range(1, segments.max() + 1):
            columns = np.flatnonzero(segments == segment)
            yield row, columns[0], by_tokens[BATCH.tokens[row, columns].tobytes()]


def utterances_of(dialogue):
    """Lists of token indices."""
    runs = []
    for i in np.flatnonzero(dialogue.is_action):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def reference(method, credit, utterance_q):
    """Metrics by the formulas; every mean is a sum over dialogues divided by a sum of weights."""
    log_prob, q_all, target_all, v_all = outputs()
    sums = dict.fromkeys(("q", "v", "cql", "return", "target", "value", "policy"), 0.0)
    credited = cloned = 0.0
    token_lambda, utterance_lambda = LAMBDAS[method]
    for row, start, dialogue in in_the_batch():
        runs = utterances_of(dialogue)
        decisions = runs if credit == "utterance" else [[i] for run in runs for i in run]
        gamma = PACKING.utterance_discount if credit == "utterance" else PACKING.token_discount
        clone = dialogue.clone_weight
        following = 0.0  # λ-return of the next decision
        for number in range(len(decisions))[::-1]:
            tokens = decisions[number]
            is_last = number == len(decisions) - 1
            # Q is read in front of a token, in the row of that token.
            at = [(row, start + i - 1, dialogue.tokens[i]) for i in tokens]
            read = at if utterance_q == "sum" or credit == "token" else at[-1:]
            q = sum(q_all[(slice(None), *place)] for place in read)
            target = min(sum(target_all[(slice(None), *place)] for place in read))
            v = v_all[row, start + tokens[0] - 1]
            next_state = len(dialogue.tokens) - 1 if is_last else decisions[number + 1][0] - 1
            next_v = v_all[row, start + next_state]
            if is_last:
                discount, trace = gamma * (not dialogue.terminal), 0.0
            else:
                same = decisions[number + 1][0] == tokens[-1] + 1
                discount, trace = gamma, token_lambda if same else utterance_lambda
            reward = sum(dialogue.rewards[i] for i in tokens)
            following = reward + discount * ((1 - trace) * next_v + trace * following)
            difference = target - v
            slope = EXPECTILE[method] if difference > 0 else 1 - EXPECTILE[method]
            weight = float(any(dialogue.credited[i] for i in tokens))
            credited += weight
            sums["q"] += weight * ((following - q) ** 2).sum()
            sums["v"] += weight * slope * difference**2
            # The term of an utterance as a sum is the mean over its credited tokens.
            counted = read
            if credit == "utterance" and utterance_q == "sum":
                counted = [
                    place for place, i in zip(at, tokens, strict=True) if dialogue.credited[i]
                ]
            terms = [
                np.log(np.exp(q_all[:, r, c]).sum(axis=-1)) - q_all[:, r, c, a]
                for r, c, a in counted
            ]
            conservative = np.mean(terms, axis=0) if terms else np.zeros(2)
            sums["cql"] += weight * conservative.sum()
            sums["return"] += weight * following
            sums["target"] += weight * target
            sums["value"] += weight * v
            awac = min(np.exp(difference / VALUES["awac_temperature"]), VALUES["awac_max_weight"])
            for i in tokens:
                place = row, start + i - 1, dialogue.tokens[i]
                sums["policy"] -= clone[i] * (awac if weight else 1.0) * log_prob[place]
                cloned += clone[i]
    metrics = {
        "q_loss": sums["q"] / credited,
        "v_loss": sums["v"] / credited,
        "cql_loss": sums["cql"] / credited,
        "return_mean": sums["return"] / credited,
        "q_mean": sums["target"] / credited,
        "v_mean": sums["value"] / credited,
        "policy_loss": sums["policy"] / cloned,
    }
    values = metrics["q_loss"] + metrics["v_loss"] + VALUES["cql_weight"] * metrics["cql_loss"]
    metrics["loss"] = VALUES["value_loss_weight"] * values + metrics["policy_loss"]
    return metrics


@functools.partial(jax.jit, static_argnames=("method", "model_config"))
def metrics_of(method, model_config, params, target_params, progress, normalizers=None):
    loss, metrics = method.loss(
        with_params(model_config, params),
        with_params(model_config, target_params),
        BATCH,
        method.config,
        progress=progress,
        normalizers=normalizers or normalizers_of(BATCH),
    )
    return loss, metrics


def test_the_batch_has_all_that_the_formulas_tell_apart():
    placed = list(in_the_batch())
    assert len(placed) > len(BATCH.tokens)  # several dialogues in a row
    assert (BATCH.by_token.weight == 0).any() and (BATCH.by_utterance.weight == 0).any()
    assert {dialogue.terminal for *_, dialogue in placed} == {True, False}
    assert {dialogue.credit is None for *_, dialogue in placed} == {True, False}
    lengths = {len(run) for *_, dialogue in placed for run in utterances_of(dialogue)}
    assert len(lengths) > 2
    # Bootstrapping from V(h) in the place of V(h') gives other losses.
    *_, v = outputs()
    decisions = BATCH.by_utterance
    rows = np.arange(2)[:, None]
    gap = v[rows, decisions.value_state] - v[rows, decisions.next_state]
    assert np.abs(gap[decisions.weight > 0]).max() > 0.1


@KINDS
@pytest.mark.parametrize("method", [ILQL, MC], ids=["ilql", "mc"])
def test_loss_and_metrics_are_those_of_the_formulas(method, credit, model_config):
    expected = reference(method.name, credit, model_config.utterance_q)
    learned = method.configured(credit=credit)
    progress = jnp.float32(PROGRESS)
    loss, metrics = metrics_of(learned, model_config, PARAMS, TARGET_PARAMS, progress)
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("method", [ILQL, MC], ids=["ilql", "mc"])
def test_no_gradient_reaches_the_target_and_one_reaches_all_that_learns(method):
    def loss(params, target_params):
        return metrics_of(method, SUM, params, target_params, jnp.float32(PROGRESS))[0]

    learned, target = jax.grad(loss, (0, 1))(PARAMS, TARGET_PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(target))
    assert all(np.any(leaf) for name in "qv" for leaf in jax.tree.leaves(learned[name]))


def test_gradients_do_not_flow_through_returns_and_advantages():
    """V is moved by its own loss alone: that of Q and of the policy are constants to it."""

    def v_loss_and_loss(v_params):
        params = PARAMS | {"v": v_params}
        loss, metrics = metrics_of(ILQL, SUM, params, TARGET_PARAMS, jnp.float32(PROGRESS))
        return VALUES["value_loss_weight"] * metrics["v_loss"], loss

    of_v_loss, of_loss = jax.jacrev(v_loss_and_loss)(PARAMS["v"])
    for a, b in zip(*map(jax.tree.leaves, (of_v_loss, of_loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_conservative_term_is_left_out_at_weight_zero_and_awac_at_temperature_zero():
    plain = ILQL.configured(cql_weight=0.0, awac_temperature=0.0)
    _, metrics = metrics_of(plain, SUM, PARAMS, TARGET_PARAMS, jnp.float32(PROGRESS))
    assert "cql_loss" not in metrics
    _, cloning = metrics_of(METHODS["bc"], SUM, PARAMS, TARGET_PARAMS, jnp.float32(0))
    assert float(metrics["policy_loss"]) == pytest.approx(float(cloning["loss"]), rel=1e-6)


@pytest.mark.parametrize("method", ["bc", "fbc"])
def test_cloning_is_the_mean_log_probability_weighted_by_clone(method):
    log_prob, *_ = outputs()
    total = cloned = 0.0
    for row, start, dialogue in in_the_batch():
        for i in np.flatnonzero(dialogue.is_action):
            weight = dialogue.clone_weight[i]
            total -= weight * log_prob[row, start + i - 1, dialogue.tokens[i]]
            cloned += weight
    loss, metrics = metrics_of(METHODS[method], SUM, PARAMS, TARGET_PARAMS, jnp.float32(0))
    assert float(loss) == float(metrics["loss"]) == float(metrics["policy_loss"])
    assert float(loss) == pytest.approx(total / cloned, rel=1e-5)


def observation_loss():
    """Mean of −log p over what the agent reads, but for the first token of a dialogue."""
    log_prob, *_ = outputs()
    terms = [
        -log_prob[row, start + i - 1, dialogue.tokens[i]]
        for row, start, dialogue in in_the_batch()
        for i in np.flatnonzero(~dialogue.is_action)
        if i > 0
    ]
    return np.mean(terms)


@pytest.mark.parametrize("name", ["bc", "fbc", "rwft", "mc", "ilql"])
def test_observations_are_predicted_beside_what_the_method_learns(name):
    method = {"ilql": ILQL, "mc": MC}.get(name, METHODS[name])
    inputs = SUM, PARAMS, TARGET_PARAMS, jnp.float32(PROGRESS)
    plain, without = metrics_of(method, *inputs)
    loss, metrics = metrics_of(method.configured(observation_loss_weight=0.3), *inputs)
    assert metrics.keys() - without.keys() == {"observation_loss"}
    assert float(metrics["observation_loss"]) == pytest.approx(observation_loss(), rel=1e-5)
    expected = float(plain) + 0.3 * observation_loss()
    assert float(loss) == float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    for name in without.keys() - {"loss"}:
        assert float(metrics[name]) == pytest.approx(float(without[name]), rel=1e-6)


def test_observations_are_predicted_by_the_trunk_of_the_values_too():
    """Here a copy of the policy's: each of the two has the same loss."""
    two = METHODS["qsft"].configured(observation_loss_weight=0.3)
    shape = two.network(SUM, two.config)
    params = random_params(shape, 0.3, 0)
    params["trunk"] = params["value_trunk"] = PARAMS["trunk"]
    loss, metrics = metrics_of(two, shape, params, params, jnp.float32(0))
    assert float(metrics["observation_loss"]) == pytest.approx(2 * observation_loss(), rel=1e-5)
    plain, _ = metrics_of(METHODS["qsft"], shape, params, params, jnp.float32(0))
    assert float(loss - plain) == pytest.approx(0.6 * observation_loss(), rel=1e-4)


@KINDS
def test_terms_are_divided_by_the_normalizers_they_are_given(credit, model_config):
    """With gradient accumulation those of the whole batch, of which a loss sees a part.

    They may lie below 1, where little is cloned or credited.
    """
    learned = ILQL.configured(credit=credit, observation_loss_weight=0.5)
    progress = jnp.float32(PROGRESS)
    tokens, utterances, cloned, observed = normalizers_of(BATCH)
    _, metrics = metrics_of(learned, model_config, PARAMS, TARGET_PARAMS, progress)
    for factor in (2.0, 1e-3):
        given = Normalizers(
            factor * tokens, factor * utterances, 2 * factor * cloned, 3 * factor * observed
        )
        _, divided = metrics_of(learned, model_config, PARAMS, TARGET_PARAMS, progress, given)
        for name in metrics.keys() - {"loss"}:
            times = factor * {"policy_loss": 2, "observation_loss": 3}.get(name, 1)
            assert times * float(divided[name]) == pytest.approx(float(metrics[name]), rel=1e-5)


def test_filtered_cloning_keeps_the_best_in_order():
    fbc = METHODS["fbc"].configured(fraction=0.5)
    kept = fbc.select_trajectories(DATA)
    returns = sorted((t.total_reward for t in DATA), reverse=True)
    assert kept == [t for t in DATA if t.total_reward >= returns[3]] and len(kept) == 4
    with pytest.raises(TrajectoryError, match=r"fraction 0\.1 of 8 dialogues keeps none"):
        fbc.configured(fraction=0.1).select_trajectories(DATA)
    as_good = [dataclasses.replace(t, rewards=t.rewards * 0) for t in DATA]
    assert len(fbc.select_trajectories(as_good)) == 4
    for name in ("bc", "ilql"):
        assert METHODS[name].select_trajectories(DATA) == DATA


# --- pairs --------------------------------------------------------------------------------------


def test_dpo_by_hand():
    rng = np.random.default_rng(0)

    def half(before, utterance):
        tokens = np.int32([*before, *utterance])
        return Trajectory(
            tokens, np.arange(len(tokens)) >= len(before), np.zeros(len(tokens), np.float32)
        )

    pairs = []
    for number in range(4):
        before = rng.integers(1, VOCAB, 2 + number)
        pairs.append(
            PreferencePair(half(before, [1 + number, 6]), half(before, [1 + number, 7, 8]))
        )
    reference_log_prob = rng.normal(-4, 1, (4, 2)).astype(np.float32)
    packing = packing_for_pairs(pairs, 1, 80)
    batch = next(make_preference_batches(pairs, reference_log_prob, packing, 0))

    def log_prob(dialogue):
        # One length for all, so that operations are compiled once; nothing looks ahead.
        tokens = np.pad(dialogue.tokens, (0, 16 - len(dialogue.tokens)))[None]
        row = tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None]
        scores = np.asarray(jax.nn.log_softmax(logits(SUM, PARAMS, row)))[0]
        return sum(scores[i - 1, dialogue.tokens[i]] for i in np.flatnonzero(dialogue.is_action))

    beta = 0.4
    numbers = [
        int(batch.dialogues.tokens[0, batch.dialogues.by_utterance.value_state[0, slot] + 1]) - 1
        for slot in np.flatnonzero(batch.dialogues.by_utterance.weight[0])[::2]
    ]
    better = np.array(
        [beta * (log_prob(pairs[n].chosen) - reference_log_prob[n, 0]) for n in numbers]
    )
    worse = np.array(
        [beta * (log_prob(pairs[n].rejected) - reference_log_prob[n, 1]) for n in numbers]
    )
    expected = {
        "loss": np.mean(np.log1p(np.exp(worse - better))),
        "accuracy": np.mean(better > worse),
        "margin": np.mean(better - worse),
        "chosen_reward": np.mean(better),
        "rejected_reward": np.mean(worse),
    }
    dpo = METHODS["dpo"].configured(kl_weight=beta)
    of_batch = jnp.float32(0), normalizers_of(batch)
    loss, metrics = loss_of(SUM, dpo, PARAMS, PARAMS, batch, *of_batch)
    assert len(numbers) >= 2
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-4)


def test_values_of_tokens_need_heads_that_give_them():
    by_token = METHODS["ilql"].configured(credit="token")
    with pytest.raises(SettingError, match="utterance_q is 'sum', but must be last"):
        by_token.network_for(SUM)
    last = dataclasses.replace(SUM, utterance_q="last")
    assert by_token.network_for(last) == last


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
        METHODS["ilql"].configured(**fields)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("dpo", {"kl_weight": 0.0}, "kl_weight is 0.0"),
        ("fbc", {"fraction": 0.0}, "fraction is 0.0"),
        ("fbc", {"fraction": 1.1}, "fraction is 1.1"),
        ("bc", {"action_chunk": 0}, "action_chunk is 0"),
        (
            "mc",
            {"expectile": 0.9},
            "mc has no setting 'expectile'; there are action_chunk, .*, credit",
        ),
    ],
)
def test_settings_of_the_other_methods_are_checked_too(method, fields, message):
    with pytest.raises(ValueError, match=message):
        METHODS[method].configured(**fields)
