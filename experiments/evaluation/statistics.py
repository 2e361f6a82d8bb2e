"""Uncertainty of a number: intervals, tests, and the fit of predictions to outcomes.

Pure functions on arrays of scores; the evaluation and the report print what they return. Scores
come as [seeds, episodes]: row = one training seed, column = one episode. **Episodes are paired**:
the same column is the same simulated human (persona and seed) for every training seed and every
method. So the two sources of chance are crossed: a hard human is hard for all agents, a lucky
training is lucky with all humans. Treating seeds × episodes as that many independent numbers would
count each human once per training seed and give intervals that are too narrow.

Two questions are kept apart, since three trainings can answer the first well and the second badly:

- would *these trained agents* differ on other humans? (`compare`; `p` in `pairwise_tests`)
- would the *methods* differ if trained again, too? (`compare_trainings`; `p_training`)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Num

SIGNIFICANT = 0.05  # p below which a difference counts as more than chance

# Elements in the largest temporary array (8 bytes each).
_CHUNK_ELEMENTS = 2_000_000


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Its ends; None where they are not known."""
        return None if np.isnan(self.low) else (self.low, self.high)


def bootstrap_mean(
    scores: Float[np.ndarray, "seeds episodes"],
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean score with a percentile bootstrap interval over training seeds and episodes.

    Each resample draws seeds with replacement, and episodes with replacement; the drawn episodes
    are the same for all drawn seeds, because a column is one human (the "pigeonhole" bootstrap of
    Owen, 2007, for crossed factors). For the difference of two methods pass `a - b`.

    A plain bootstrap of three seeds covers far less than it says (it never leaves the range of the
    three means). So the seeds' deviations are first stretched by √(n/(n−1)) · t/z, which turns the
    spread of n means into that of a t interval over seeds: about 2.7 at three seeds, 1.3 at ten.

    Args:
        scores: Any unit; finite.
        seed: Seed of the resampling; the same one gives the same interval.
        resamples: Number of resamples.
        confidence: Probability in (0, 1) that the interval should cover.

    Returns:
        Mean, low and high in the unit of the scores; may reach beyond the scale of the reward.
        **With one training seed** only episodes are resampled: the interval then says how this one
        trained agent fares with other humans, and nothing about training it again.

    Raises:
        ValueError: Scores that are not a finite, non-empty [seeds, episodes] array.
    """
    scores = _check_scores(scores)
    seeds = len(scores)
    mean = scores.mean()
    if seeds > 1:
        tail = (1 + confidence) / 2
        small_sample = scipy.stats.t.ppf(tail, seeds - 1) / scipy.stats.norm.ppf(tail)
        stretch = np.sqrt(seeds / (seeds - 1)) * small_sample
        scores = scores + (stretch - 1) * (scores.mean(1, keepdims=True) - mean)
    means = []
    rng = np.random.default_rng(seed)
    for size in _chunks(resamples, scores.size):
        drawn_seeds = rng.integers(seeds, size=(size, seeds))
        drawn_episodes = rng.integers(scores.shape[1], size=(size, scores.shape[1]))
        by_seed = scores[:, drawn_episodes].mean(-1)
        means.append(np.take_along_axis(by_seed.T, drawn_seeds, axis=1).mean(1))
    return _percentile_interval(mean, np.concatenate(means), confidence)


def crossed_mean(
    values: Float[np.ndarray, " n"],
    trainings: Sequence[Hashable],
    humans: Sequence[Hashable],
    confidence: float = 0.95,
) -> Interval:
    """Mean with an interval for other trainings and other humans, of values in any arrangement.

    For parts of an evaluation, which need not hold each human once for each training: successes,
    turns that some conversations reach. Two-way cluster-robust: the variance is the sum of that of
    the trainings' and that of the humans' deviations (on the safe side, as in `compare_trainings`,
    with degrees of freedom by Welch and Satterthwaite). Where `bootstrap_mean` can be used, it
    gives nearly the same.

    Args:
        values: Any unit; finite, at least one.
        trainings: The training of each value. With a single one, the interval speaks of humans.
        humans: The human of each value.
        confidence: Probability in (0, 1) that the interval should cover.

    Returns:
        Mean, low and high; nan for the latter two where there is a single human.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    parts = []
    for labels in (trainings, humans):
        _, places = np.unique([str(label) for label in labels], return_inverse=True)
        sums = np.bincount(places, values - mean)
        if (degrees := len(sums) - 1) > 0:
            variance = np.sum(sums**2) / values.size**2 * len(sums) / degrees
            parts.append((variance, degrees))
    if len(set(humans)) < 2:  # however many trainings: nothing is known of others
        return Interval(mean, np.nan, np.nan)
    variances, degrees = np.array(parts).T
    total = variances.sum()
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / np.sum(variances**2 / degrees)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(total))
    return Interval(mean, mean - half, mean + half)


def compare(
    scores_a: Float[np.ndarray, "seeds_a episodes"],
    scores_b: Float[np.ndarray, "seeds_b episodes"],
    seed: int,
    resamples: int = 9999,
) -> tuple[float, float]:
    """Two-sided paired permutation test of the mean difference between trained agents.

    Scores are averaged over training seeds, which leaves one difference per human. If the two
    methods' agents were interchangeable, each of these could as well have the other sign; p is the
    share of random sign assignments whose mean is at least as far from zero as the one observed,
    the observed one counted among them (so p is at least 1 / (resamples + 1), never zero). No
    distribution is assumed, which matters because ratings are skewed and lumpy, and it tests the
    mean that the table shows (a Wilcoxon test would test ranks).

    Its limit: episodes are the units, so it holds for the agents as trained, on other humans. Two
    trainings of one method also differ by this test, given enough episodes: in simulations with 3
    seeds, 60 humans and a spread between trainings of 0.3 of that between humans, two equal methods
    came out as different in 4 cases of 10. `compare_trainings` answers the other question.

    Args:
        scores_a: Any unit; the same column is the same human as in `scores_b`.
        scores_b: May have another number of seeds.
        seed: Seed of the sign assignments.
        resamples: Number of sign assignments.

    Returns:
        mean(a) − mean(b), and p in (0, 1].

    Raises:
        ValueError: Scores that are not finite, or other numbers of episodes.
    """
    differences = _episode_differences(scores_a, scores_b)
    observed = differences.mean()
    # Sums of the same numbers in another order differ in the last bits and still are ties.
    threshold = abs(observed) - 1e-12 * np.abs(differences).mean()
    rng = np.random.default_rng(seed)
    extreme = 0
    for size in _chunks(resamples, differences.size):
        signs = rng.integers(2, size=(size, differences.size), dtype=np.int8) * 2.0 - 1.0
        extreme += np.count_nonzero(np.abs(signs @ differences) / differences.size >= threshold)
    return float(observed), float((extreme + 1) / (resamples + 1))


def compare_trainings(
    scores_a: Float[np.ndarray, "seeds_a episodes"],
    scores_b: Float[np.ndarray, "seeds_b episodes"],
) -> float | None:
    """Two-sided p for a difference between methods that would hold if both were trained again.

    A t test whose variance is the sum of three parts: between the seeds of a, between the seeds of
    b, between humans (paired); degrees of freedom by Welch and Satterthwaite. Chance within an
    episode is contained in each part, so the test is on the safe side. With three seeds it has two
    to four degrees of freedom where training matters, and only large differences pass: that is
    what three trainings can show. Permuting seeds could not help: three against three leave no p
    below 0.1.

    Args:
        scores_a: Any unit; the same column is the same human as in `scores_b`.
        scores_b: May have another number of seeds.

    Returns:
        p in (0, 1], or None where a method has a single training seed.

    Raises:
        ValueError: Scores that are not finite, or other numbers of episodes.
    """
    differences = _episode_differences(scores_a, scores_b)
    if min(len(scores_a), len(scores_b), differences.size) < 2:
        return None
    means = (np.mean(scores_a, axis=1), np.mean(scores_b, axis=1), differences)
    variances = np.array([part.var(ddof=1) / part.size for part in means])
    total = variances.sum()
    if total == 0:
        return 1.0 if differences.mean() == 0 else float(np.finfo(float).tiny)
    degrees = np.array([part.size - 1 for part in means])
    freedom = total**2 / np.sum(variances**2 / degrees)
    p = 2 * scipy.stats.t.sf(abs(differences.mean()) / np.sqrt(total), freedom)
    return float(max(p, np.finfo(float).tiny))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values, in the order given.

    Rejecting where the adjusted p is below α keeps the chance of even one false rejection below α,
    whatever the dependence between the tests (Holm, 1979).

    Raises:
        ValueError: A p value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p values must lie in [0, 1], got {list(p_values)}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def pairwise_tests(
    scores_by_method: Mapping[str, Float[np.ndarray, "_ episodes"]], seed: int
) -> list[dict[str, Any]]:
    """Every pair of methods, compared on the episodes that both have a score of.

    Args:
        scores_by_method: Method -> scores [seeds, episodes], paired by episode. Where one method
            has fewer episodes, they are the first ones of the other; nan where there is no score.
        seed: Seed of the permutations.

    Returns:
        A record per pair, plain JSON values: `a`, `b`; `episodes` that both have; `difference` =
        mean(a) − mean(b) of these (null where there are none, and all that follows); `p` and
        `p_holm`, for the agents as trained (`compare`); `p_training` and `p_training_holm`, for
        training them again (`compare_trainings`; null where a method has one seed). Holm's
        correction is over all pairs that have the p in question.

    Raises:
        ValueError: Scores that are infinite.
    """
    records: list[dict[str, Any]] = []
    for a, b in combinations(scores_by_method, 2):
        scores_a, scores_b = paired(scores_by_method[a], scores_by_method[b])
        record = {"a": a, "b": b, "episodes": scores_a.shape[1]}
        record |= dict.fromkeys(("difference", "p", "p_training"))
        if record["episodes"]:
            record["difference"], record["p"] = compare(scores_a, scores_b, seed)
            record["p_training"] = compare_trainings(scores_a, scores_b)
        records.append(record)
    for name in ("p", "p_training"):
        tested = [record for record in records if record[name] is not None]
        adjusted = iter(holm([record[name] for record in tested]))
        for record in records:
            record[f"{name}_holm"] = None if record[name] is None else next(adjusted)
    return records


def paired(scores_a: np.ndarray, scores_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns in which neither lacks a score; fewer episodes are the first ones of more."""
    episodes = min(scores_a.shape[1], scores_b.shape[1])
    scores_a, scores_b = scores_a[:, :episodes], scores_b[:, :episodes]
    both = ~(np.isnan(scores_a).any(axis=0) | np.isnan(scores_b).any(axis=0))
    return scores_a[:, both], scores_b[:, both]


def auroc(
    labels: Num[np.ndarray, " n"] | Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> float:
    """Chance that a positive has a higher score than a negative, ties counted half.

    Args:
        labels: True or 1 where positive.
        scores: A higher score means "positive" more strongly.

    Returns:
        Area under the ROC curve in [0, 1], 0.5 = no better than chance; nan where one of the two
        classes is empty.

    Raises:
        ValueError: Lengths differ, labels other than 0 and 1, or scores that are not finite.
    """
    positives, negatives = _by_class(labels, scores)
    return float(_auroc(positives[None], negatives[None])[0])


def bootstrap_auroc(
    labels: Num[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """`auroc` with a percentile bootstrap interval; positives and negatives are resampled apart.

    The n cases must be independent: one point of each dialogue, not every point of all dialogues.
    Arguments and errors as for `auroc` and `bootstrap_mean`; nan throughout where one of the two
    classes is empty. Ends are nan where all resamples agree: every positive is above every
    negative, or below, or all scores are equal, and resampling can't tell how sure that is.
    """
    positives, negatives = _by_class(labels, scores)
    if not (positives.size and negatives.size):
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = []
    for size in _chunks(resamples, positives.size + negatives.size):
        rows = [
            part[rng.integers(part.size, size=(size, part.size))] for part in (positives, negatives)
        ]
        drawn.append(_auroc(*rows))
    resampled = np.concatenate(drawn)
    if np.ptp(resampled) == 0:
        return Interval(auroc(labels, scores), np.nan, np.nan)
    return _percentile_interval(auroc(labels, scores), resampled, confidence)


def rank_correlation(
    groups: Sequence[Float[np.ndarray, "n 2"]], cases: int, confidence: float = 0.95
) -> Interval:
    """Spearman's ρ of two columns, the mean over groups, with an interval for both.

    On the scale of Fisher's z the variance is the sum of that for other cases,
    (1 + ρ²/2) / (cases - 3) (Bonett & Wright, 2000), and, with several groups, that of the mean
    over them; degrees of freedom are those of Welch and Satterthwaite (as in `crossed_mean`).

    Args:
        groups: Pairs of values, e.g. of each training. One in which a column is constant has no ρ
            and is left out.
        cases: Independent ones, e.g. humans, each of whom may stand in every group.
        confidence: Probability in (0, 1) that the interval should cover.

    Returns:
        ρ in [-1, 1] and its interval; nan throughout where no group has a ρ, or there are fewer
        than four cases.
    """
    varying = [pairs for pairs in groups if len(pairs) > 1 and np.ptp(pairs, axis=0).all()]
    if not varying or cases < 4:
        return Interval(np.nan, np.nan, np.nan)
    found = [scipy.stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic for pairs in varying]
    rho = float(np.mean(found))
    center, *each = np.arctanh(np.clip([rho, *found], -1 + 1e-9, 1 - 1e-9))
    tail, variance = (1 + confidence) / 2, (1 + rho**2 / 2) / (cases - 3)
    quantile = scipy.stats.norm.ppf(tail)
    if len(each) > 1 and (of_groups := np.var(each, ddof=1) / len(each)) > 0:
        variance += of_groups
        quantile = scipy.stats.t.ppf(tail, (len(each) - 1) * (variance / of_groups) ** 2)
    half = quantile * np.sqrt(variance)
    low, high = np.tanh([center - half, center + half])
    return Interval(rho, float(low), float(high))


def calibration_bins(
    predictions: Float[np.ndarray, " n"],
    outcomes: Float[np.ndarray, " n"],
    bins: int = 10,
    confidence: float = 0.95,
) -> list[dict[str, float]]:
    """Mean prediction against mean outcome, in bins of about equally many predictions.

    Args:
        predictions: In the unit of the outcomes (for a probability, outcomes 0 and 1).
        outcomes: Observed outcomes.
        bins: Number of bins; fewer come back where predictions are equal, as equal ones are
            never torn apart.
        confidence: Probability in (0, 1) that an interval should cover.

    Returns:
        Per bin, by rising prediction: `predicted` and `observed` (means), `count`, `low` and `high`
        of the observed mean: Wilson's interval where outcomes are 0 and 1, a t interval otherwise.
        A bin of a single outcome spans the range of all outcomes.

    Raises:
        ValueError: Lengths differ, values that are not finite, nothing given, or `bins` below 1.
    """
    predictions, outcomes = _check_columns(predictions, outcomes, "predictions", "outcomes")
    if bins < 1 or not predictions.size:
        raise ValueError(f"Nothing to bin: {predictions.size} predictions in {bins} bins.")
    edges = np.unique(np.quantile(predictions, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, predictions, side="left")
    binary = bool(np.isin(outcomes, (0, 1)).all())
    records = []
    for index in np.unique(bin_of):
        inside = outcomes[bin_of == index]
        low, high = _mean_interval(inside, binary, confidence, (outcomes.min(), outcomes.max()))
        records.append(
            {
                "predicted": float(predictions[bin_of == index].mean()),
                "observed": float(inside.mean()),
                "count": int(inside.size),
                "low": float(low),
                "high": float(high),
            }
        )
    return records


def _mean_interval(
    values: np.ndarray, binary: bool, confidence: float, whole_range: tuple[float, float]
) -> tuple[float, float]:
    if binary:
        test = scipy.stats.binomtest(int(values.sum()), values.size)
        # Wilson's: unlike a normal interval it keeps a width where all outcomes are the same.
        low, high = test.proportion_ci(confidence, method="wilson")
        return low, high
    if values.size == 1:
        return whole_range
    half = scipy.stats.t.ppf((1 + confidence) / 2, values.size - 1) * scipy.stats.sem(values)
    return values.mean() - half, values.mean() + half


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """[rows, P] and [rows, N] scores -> [rows]: Mann and Whitney's U over P · N."""
    p, n = positives.shape[1], negatives.shape[1]
    if not (p and n):
        return np.full(len(positives), np.nan)
    ranks = scipy.stats.rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    return (ranks[:, :p].sum(1) - p * (p + 1) / 2) / (p * n)


def _by_class(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = _check_columns(labels, scores, "labels", "scores")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(labels)[:8]}.")
    return scores[labels == 1], scores[labels == 0]


def _percentile_interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def _chunks(resamples: int, elements: int) -> Iterator[int]:
    """Splits the resamples so that a chunk's temporary arrays stay small."""
    size = max(1, _CHUNK_ELEMENTS // elements)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _episode_differences(scores_a: np.ndarray, scores_b: np.ndarray) -> np.ndarray:
    scores_a, scores_b = _check_scores(scores_a), _check_scores(scores_b)
    if scores_a.shape[1] != scores_b.shape[1]:
        raise ValueError(
            f"Methods are compared on the same humans, got {scores_a.shape[1]} and "
            f"{scores_b.shape[1]} episodes."
        )
    return scores_a.mean(0) - scores_b.mean(0)


def _check_scores(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be a non-empty [seeds, episodes] array, got {scores.shape}.")
    if not np.isfinite(scores).all():
        seed, episode = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"scores must be finite, got {scores[seed, episode]} at seed {seed}, episode {episode}."
        )
    return scores


def _check_columns(first: Any, second: Any, *names: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must be [n] alike, got {first.shape} and {second.shape}."
        )
    for name, values in zip(names, (first, second), strict=True):
        if not np.isfinite(values).all():
            index = int(np.argmax(~np.isfinite(values)))
            raise ValueError(f"{name} must be finite, got {values[index]} at {index}.")
    return first, second
