"""Intervals, tests and measures of prediction, against hand-worked values and simulations."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from experiments.evaluation import statistics


def simulated(rng, seeds, episodes, between_seeds, between_humans, within, humans=None):
    """Scores of an agent whose mean over trainings and humans is zero."""
    if humans is None:
        humans = between_humans * rng.normal(size=episodes)
    trainings = between_seeds * rng.normal(size=(seeds, 1))
    return trainings + humans + within * rng.normal(size=(seeds, episodes))


class TestBootstrapMean:
    def test_mean_is_the_plain_mean_and_the_interval_surrounds_it(self):
        scores = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
        interval = statistics.bootstrap_mean(scores, seed=0)
        assert interval.mean == 2.0
        assert interval.low < 2.0 < interval.high

    def test_same_seed_same_interval_whatever_the_chunks(self, monkeypatch):
        scores = np.random.default_rng(0).normal(size=(3, 20))
        first = statistics.bootstrap_mean(scores, seed=4)
        assert statistics.bootstrap_mean(scores, seed=4) == first
        assert statistics.bootstrap_mean(scores, seed=5) != first
        monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 60 * 7)
        chunked = statistics.bootstrap_mean(scores, seed=4)
        np.testing.assert_allclose(chunked, first, atol=0.1)

    def test_one_seed_matches_the_normal_interval(self):
        scores = np.random.default_rng(1).normal(size=(1, 400))
        interval = statistics.bootstrap_mean(scores, seed=0)
        half = 1.96 * scores.std() / 20
        np.testing.assert_allclose(
            [interval.low, interval.high], [scores.mean() - half, scores.mean() + half], atol=0.01
        )

    def test_interval_of_the_drawn_means_after_the_seeds_were_stretched(self):
        # With one human all chance lies in the seeds: -s and s are stretched by √2 · t/z.
        scores = np.array([[-1.0], [1.0]])
        stretch = np.sqrt(2) * scipy.stats.t.ppf(0.9, 1) / scipy.stats.norm.ppf(0.9)
        interval = statistics.bootstrap_mean(scores, seed=0, confidence=0.8)
        np.testing.assert_allclose(interval, [0.0, -stretch, stretch], atol=1e-9)

    def test_two_thousand_resamples_and_95_percent_unless_told_otherwise(self):
        scores = np.random.default_rng(0).normal(size=(3, 20))
        plain = statistics.bootstrap_mean(scores, seed=1)
        assert plain == statistics.bootstrap_mean(scores, 1, resamples=2000, confidence=0.95)
        labels, predictions = np.repeat([0, 1], 10), scores.ravel()[:20]
        plain = statistics.bootstrap_auroc(labels, predictions, seed=1)
        assert plain == statistics.bootstrap_auroc(
            labels, predictions, 1, resamples=2000, confidence=0.95
        )
        few, many = scores[:1], scores[1:2]
        assert statistics.compare(few, many, 1) == statistics.compare(few, many, 1, resamples=9999)

    def test_chunks_add_up_to_the_resamples_and_keep_to_their_size(self, monkeypatch):
        monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 100)
        assert list(statistics._chunks(25, 10)) == [10, 10, 5]
        assert list(statistics._chunks(20, 10)) == [10, 10]
        assert list(statistics._chunks(3, 101)) == [1, 1, 1]

    def test_plain_lists_of_whole_numbers_are_scores_too(self):
        assert statistics.bootstrap_mean([[1, 2], [3, 4]], seed=0).mean == 2.5

    def test_equal_scores_leave_no_width(self):
        assert statistics.bootstrap_mean(np.full((3, 5), 0.5), seed=0) == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        "seeds, between_seeds, between_humans, within",
        [(1, 0.0, 1.0, 1.0), (3, 1.0, 0.2, 0.5), (3, 0.0, 1.0, 0.3), (10, 0.3, 1.0, 1.0)],
        ids=["one seed", "training dominates", "humans dominate", "ten seeds"],
    )
    def test_covers_the_true_mean(self, seeds, between_seeds, between_humans, within):
        rng = np.random.default_rng(2)
        covered = 0
        for repetition in range(200):
            scores = simulated(rng, seeds, 40, between_seeds, between_humans, within)
            interval = statistics.bootstrap_mean(scores, seed=repetition, resamples=400)
            covered += interval.low <= 0 <= interval.high
        # 0.95, less three standard errors of a share of 200.
        assert covered / 200 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)

    @pytest.mark.parametrize(
        "scores, message",
        [
            (np.zeros(3), r"\[seeds, episodes\] array, got \(3,\)"),
            (np.zeros((2, 0)), r"non-empty .* got \(2, 0\)"),
            (np.array([[0.0, 1.0], [0.0, np.nan]]), "got nan at seed 1, episode 1"),
        ],
    )
    def test_unusable_scores_are_named(self, scores, message):
        with pytest.raises(ValueError, match=message):
            statistics.bootstrap_mean(scores, seed=0)


class TestCompare:
    def test_p_is_the_share_of_sign_assignments(self):
        # Differences 1, 2, 3: of the 8 sign assignments only +++ and --- are as extreme.
        a, b = np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]])
        difference, p = statistics.compare(a, b, seed=0)
        assert difference == 2.0
        assert p == pytest.approx(2 / 8, abs=0.015)

    def test_seeds_are_averaged_per_episode(self):
        a = np.array([[1.0, 5.0, 3.0], [3.0, 3.0, 9.0]])
        b = np.zeros((1, 3))
        assert statistics.compare(a, b, 0) == statistics.compare(a.mean(0, keepdims=True), b, 0)

    def test_p_is_never_zero_and_one_without_any_difference(self):
        ones, zeros = np.ones((3, 100)), np.zeros((3, 100))
        assert statistics.compare(ones, zeros, seed=0, resamples=999) == (1.0, 1 / 1000)
        assert statistics.compare(ones, ones, seed=0) == (0.0, 1.0)

    def test_ties_count_as_extreme_despite_rounding(self):
        # Any sign assignment of 0.1s whose sum is as far from zero as the observed one is a tie.
        a = np.array([[0.1, 0.1, 0.1, -0.1]])
        _, p = statistics.compare(a, np.zeros((1, 4)), seed=0)
        assert p == pytest.approx(10 / 16, abs=0.02)

    def test_p_is_uniform_for_equally_trained_agents(self):
        rng = np.random.default_rng(3)
        p_values = []
        for repetition in range(200):
            humans = rng.normal(size=30)
            a, b = (simulated(rng, 3, 30, 0.0, 1.0, 1.0, humans) for _ in "ab")
            p_values.append(statistics.compare(a, b, repetition, resamples=199)[1])
        for level in (0.1, 0.5, 0.9):
            assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.11)

    def test_other_humans_are_refused(self):
        with pytest.raises(ValueError, match="same humans, got 3 and 4 episodes"):
            statistics.compare(np.zeros((1, 3)), np.zeros((1, 4)), seed=0)


class TestCrossedMean:
    def test_one_training_is_a_t_interval_over_humans_who_count_once(self):
        values = np.random.default_rng(0).normal(size=12)
        half = scipy.stats.t.ppf(0.975, 11) * scipy.stats.sem(values)
        expected = [values.mean(), values.mean() - half, values.mean() + half]
        once = statistics.crossed_mean(values, [0] * 12, range(12))
        np.testing.assert_allclose(once, expected)
        twice = statistics.crossed_mean(np.tile(values, 2), [0] * 24, [*range(12)] * 2)
        np.testing.assert_allclose(twice, expected)

    def test_is_that_of_the_trainings_where_humans_dont_differ(self):
        values = np.repeat([1.0, 2.0, 6.0], 5)
        half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem([1.0, 2.0, 6.0])
        found = statistics.crossed_mean(values, np.repeat([0, 1, 2], 5), [*range(5)] * 3)
        np.testing.assert_allclose(found, [3.0, 3.0 - half, 3.0 + half])

    @pytest.mark.parametrize("trainings", [1, 3])
    def test_a_single_human_says_nothing_of_others(self, trainings):
        found = statistics.crossed_mean([2.0] * trainings, range(trainings), [0] * trainings)
        assert found.mean == 2.0 and np.isnan([found.low, found.high]).all()

    @pytest.mark.parametrize("kept", [1.0, 0.4])
    def test_covers_the_true_mean_where_conversations_are_missing_too(self, kept):
        rng = np.random.default_rng(5)
        trainings, humans = (each.ravel() for each in np.indices((3, 40)))
        covered = 0
        for _ in range(200):
            values = simulated(rng, 3, 40, 0.5, 1.0, 0.5).ravel()
            there = rng.random(values.size) < kept
            found = statistics.crossed_mean(values[there], trainings[there], humans[there])
            covered += found.low <= 0 <= found.high
        assert covered / 200 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


class TestCompareTrainings:
    def test_equals_welchs_t_test_over_seeds_where_humans_dont_differ(self):
        # Means over seeds 1, 2, 3 and 5, 6, 7: t = -4 / sqrt(2/3), 4 degrees of freedom.
        a, b = np.array([[1.0], [2.0], [3.0]]), np.array([[5.0], [6.0], [7.0]])
        a, b = np.repeat(a, 4, 1), np.repeat(b, 4, 1)
        assert statistics.compare_trainings(a, b) == pytest.approx(0.008049893, abs=1e-8)

    def test_one_training_says_nothing(self):
        assert statistics.compare_trainings(np.ones((1, 9)), np.zeros((3, 9))) is None

    def test_rarely_rejects_equal_methods_whose_trainings_differ(self):
        rng = np.random.default_rng(4)
        rejected = {"agents": 0, "trainings": 0}
        for repetition in range(200):
            humans = rng.normal(size=60)
            a, b = (simulated(rng, 3, 60, 0.5, 1.0, 0.5, humans) for _ in "ab")
            rejected["agents"] += statistics.compare(a, b, repetition, resamples=99)[1] < 0.05
            rejected["trainings"] += statistics.compare_trainings(a, b) < 0.05
        assert rejected["trainings"] / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
        # What the limit in the docstring of `compare` is about.
        assert rejected["agents"] / 200 > 0.5

    def test_identical_scores_without_any_spread(self):
        assert statistics.compare_trainings(np.ones((2, 3)), np.ones((2, 3))) == 1.0
        assert 0 < statistics.compare_trainings(np.ones((2, 3)), np.zeros((2, 3))) < 1e-9


class TestHolm:
    def test_hand_worked(self):
        # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04 -> 0.06.
        adjusted = statistics.holm([0.01, 0.04, 0.03, 0.005])
        assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_capped_at_one_and_ties_stay_tied(self):
        assert statistics.holm([0.5, 0.5, 0.9]) == [1.0, 1.0, 1.0]
        assert statistics.holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])

    def test_nothing_and_nonsense(self):
        assert statistics.holm([]) == []
        assert statistics.holm([0.03]) == [0.03]
        assert statistics.holm([0.0, 1.0]) == [0.0, 1.0]
        for nonsense in (float("nan"), -0.01, 1.01):
            with pytest.raises(ValueError, match=r"\[0, 1\]"):
                statistics.holm([0.2, nonsense])


class TestPairwiseTests:
    def test_every_pair_with_its_difference_and_correction(self):
        rng = np.random.default_rng(5)
        scores = {"ilql": rng.normal(size=(3, 50)) + 1, "bc": rng.normal(size=(3, 50))}
        scores["fbc"] = scores["bc"] + 0.5
        records = statistics.pairwise_tests(scores, seed=0)
        assert [(r["a"], r["b"]) for r in records] == list(itertools.combinations(scores, 2))
        assert records[-1]["difference"] == pytest.approx(-0.5)
        for name in ("p", "p_training"):
            corrected = [record[f"{name}_holm"] for record in records]
            assert corrected == statistics.holm([record[name] for record in records])
        json.dumps(records, allow_nan=False)

    def test_one_seed_leaves_the_question_of_training_open(self):
        scores = {"a": np.eye(3)[:1], "b": np.zeros((1, 3)), "c": np.ones((1, 3))}
        for record in statistics.pairwise_tests(scores, seed=0):
            assert record["p_training"] is None and record["p_training_holm"] is None
            assert 0 < record["p"] <= record["p_holm"] <= 1

    def test_pairs_are_compared_on_the_episodes_that_both_have(self):
        nan = np.nan
        scores = {
            "a": np.array([[1.0, 2.0, nan, 4.0, 9.0], [3.0, 2.0, 1.0, 6.0, 9.0]]),
            "b": np.array([[0.0, nan, 5.0, 1.0]]),
            "c": np.array([[nan, 1.0, 7.0]]),
        }
        ab, ac, bc = statistics.pairwise_tests(scores, seed=0)
        # a and b both have episodes 0 and 3: means 2, 5 against 0, 1.
        assert (ab["episodes"], ab["difference"]) == (2, 3.0)
        assert ab["p"] == statistics.compare(np.array([[2.0, 5.0]]), np.array([[0.0, 1.0]]), 0)[1]
        assert (ac["episodes"], ac["difference"]) == (1, 1.0)
        # b and c share episode 2 alone.
        assert (bc["episodes"], bc["difference"]) == (1, -2.0)

    def test_a_pair_without_a_common_episode_has_no_numbers(self):
        scores = {
            "a": np.array([[1.0, np.nan]] * 2),
            "b": np.array([[np.nan, 2.0]] * 2),
            "c": np.array([[0.0, 1.0], [0.5, 2.0]]),
        }
        ab, ac, bc = statistics.pairwise_tests(scores, seed=0)
        assert ab["episodes"] == 0
        numbers = ("difference", "p", "p_holm", "p_training", "p_training_holm")
        assert all(ab[name] is None for name in numbers)
        assert [ac["p_holm"], bc["p_holm"]] == statistics.holm([ac["p"], bc["p"]])


class TestAuroc:
    def test_equals_counting_pairs_ties_half(self):
        rng = np.random.default_rng(6)
        labels, scores = rng.integers(0, 2, size=40), rng.integers(0, 6, size=40).astype(float)
        pairs = itertools.product(scores[labels == 1], scores[labels == 0])
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]
        assert statistics.auroc(labels, scores) == pytest.approx(np.mean(wins))

    def test_perfect_reversed_constant_and_one_class(self):
        labels = np.array([True, True, False])
        assert statistics.auroc(labels, np.array([2.0, 3.0, 1.0])) == 1.0
        assert statistics.auroc(labels, np.array([1.0, 2.0, 3.0])) == 0.0
        assert statistics.auroc(labels, np.ones(3)) == 0.5
        for one_class in (np.ones(3), np.zeros(3)):
            assert np.isnan(statistics.auroc(one_class, np.arange(3.0)))

    def test_labels_and_scores_are_checked(self):
        with pytest.raises(ValueError, match="labels must be 0 or 1"):
            statistics.auroc(np.array([0.0, 0.5]), np.zeros(2))
        with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
            statistics.auroc(np.zeros(2), np.zeros(3))
        with pytest.raises(ValueError, match="scores must be finite, got inf at 1"):
            statistics.auroc(np.array([0, 1]), np.array([0.0, np.inf]))

    def test_interval_covers_the_true_value(self):
        rng = np.random.default_rng(7)
        labels = np.repeat([0, 1], 40)
        covered = 0
        for repetition in range(100):
            # Normal scores one apart: AUROC = Φ(1/√2).
            interval = statistics.bootstrap_auroc(
                labels, rng.normal(size=80) + labels, seed=repetition, resamples=300
            )
            covered += interval.low <= 0.76025 <= interval.high
        assert covered >= 88

    @pytest.mark.parametrize(
        ("scores", "expected"),
        [([2, 3, 4, 1, 1, 0], 1.0), ([0, 1, 1, 4, 3, 2], 0.0), ([1, 1, 1, 1, 1, 1], 0.5)],
    )
    def test_classes_that_are_wholly_apart_or_equal_have_no_interval(self, scores, expected):
        labels = np.array([1, 1, 1, 0, 0, 0])
        found = statistics.bootstrap_auroc(labels, np.array(scores, float), seed=0)
        assert found.mean == expected and found.bounds is None
        assert statistics.bootstrap_auroc(labels, np.array([2.0, 3, 1, 1, 1, 0]), seed=0).bounds

    def test_interval_of_one_class_is_undefined(self):
        for one_class in (np.ones(3), np.zeros(3)):
            assert np.isnan(statistics.bootstrap_auroc(one_class, np.ones(3), seed=0)).all()


class TestCalibrationBins:
    def test_equally_many_per_bin_in_rising_order(self):
        predictions = np.array([0.9, 0.1, 0.8, 0.2])
        low, high = statistics.calibration_bins(predictions, np.array([1.0, 0.0, 1.0, 1.0]), 2)
        assert (low["predicted"], low["observed"], low["count"]) == (pytest.approx(0.15), 0.5, 2)
        assert (high["predicted"], high["observed"], high["count"]) == (pytest.approx(0.85), 1.0, 2)

    def test_wilson_interval_keeps_a_width_where_all_outcomes_agree(self):
        # All 10 of 10: Wilson's lower end is 10 / (10 + 1.96²).
        (record,) = statistics.calibration_bins(np.zeros(10), np.ones(10), bins=5)
        assert record["high"] == pytest.approx(1.0)
        assert record["low"] == pytest.approx(10 / (10 + 1.959964**2))

    def test_wilson_interval_by_hand_where_outcomes_differ(self):
        # 3 of 4 and z = 1.96: centre (p + z²/2n) / (1 + z²/n), half z/(1 + z²/n) √(pq/n + z²/4n²).
        (record,) = statistics.calibration_bins(np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]), 1)
        z = 1.959964
        centre = (0.75 + z**2 / 8) / (1 + z**2 / 4)
        half = z / (1 + z**2 / 4) * np.sqrt(0.75 * 0.25 / 4 + z**2 / 64)
        assert (record["low"], record["high"]) == pytest.approx((centre - half, centre + half))

    def test_t_interval_for_other_outcomes(self):
        # Mean 2, standard error 1/√3, t(2) = 4.30265.
        (record,) = statistics.calibration_bins(np.zeros(3), np.array([1.0, 2.0, 3.0]), bins=1)
        half = 4.30265 / np.sqrt(3)
        assert (record["low"], record["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-4)

    def test_a_single_outcome_spans_the_range(self):
        records = statistics.calibration_bins(np.array([0.0, 1.0]), np.array([0.5, 2.0]), bins=2)
        assert [(r["low"], r["high"]) for r in records] == [(0.5, 2.0)] * 2

    def test_equal_predictions_stay_together(self):
        predictions = np.array([0.0] * 8 + [1.0, 2.0])
        records = statistics.calibration_bins(predictions, np.zeros(10), bins=5)
        assert records[0]["count"] == 8
        assert sum(record["count"] for record in records) == 10

    def test_nothing_to_bin(self):
        with pytest.raises(ValueError, match="0 predictions in 10 bins"):
            statistics.calibration_bins(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("label", [True, False])
def test_auroc_of_one_class_alone_has_no_interval(label):
    found = statistics.bootstrap_auroc(np.full(5, label), np.arange(5.0), seed=0)
    assert np.isnan(found).all()


def test_nothing_is_sorted_into_no_bins():
    with pytest.raises(ValueError, match="3 predictions in 0 bins"):
        statistics.calibration_bins(np.arange(3.0), np.arange(3.0), bins=0)
