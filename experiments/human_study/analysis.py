"""Numbers of a study: means with intervals, tests, rankings, agreement. No pages, no files.

The unit is the person. Intervals resample participants, tests permute within participants, and
Holm's correction is over all pairs of agents and all questions together.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy
from jaxtyping import Float

from experiments.evaluation.statistics import bootstrap_mean, compare, holm, pairwise_tests
from experiments.human_study.agreement import ordinal_alpha, ranked_strengths
from experiments.human_study.questionnaire import Questionnaire
from experiments.human_study.records import FAILED, TALKER, TOO_SHORT, Rating, Talk
from experiments.human_study.store import Store

RESAMPLES = 2000
Triple = tuple[float, float, float]  # estimate, and its 95 % interval


@dataclasses.dataclass(frozen=True)
class Score:
    """Ratings of one agent on one question: mean and 95 % interval over participants.

    Without two participants there is no interval; without any there is no mean.
    """

    participants: int
    mean: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Test:
    """Comparison of two agents on one question, over those who rated both.

    Attributes:
        a, b: The agents.
        question: The question.
        participants: Participants who rated both.
        difference: Mean of a − b.
        p, p_holm: p-values of the paired permutation test, and after Holm's correction over all.
        effect: Cohen's d of the paired differences: their mean over their standard deviation.
        preferred: Share of participants who rated a higher, those who rated both alike half.
    """

    __test__ = False  # for pytest, which would collect it

    a: str
    b: str
    question: str
    participants: int
    difference: float | None
    p: float | None
    p_holm: float | None
    effect: float | None
    preferred: float | None

    @property
    def verdict(self) -> str:
        """`above`, `below`, `open` or `untested`, seen from a."""
        if self.p_holm is None:
            return "untested"
        if self.p_holm >= 0.05 or not self.difference:
            return "open"
        return "above" if self.difference > 0 else "below"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha of one question.

    Attributes:
        alpha: Krippendorff's α of raters of the same conversation; None = no two read one.
        transcripts: Conversations that two or more raters have read.
        with_talker: Alpha with the participants' own ratings.
    """

    alpha: float | None
    transcripts: int
    with_talker: float | None


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Ratings of people against others of the same words, by Spearman's rank correlation."""

    correlation: float | None
    low: float | None
    high: float | None
    conversations: int


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that a study says.

    Attributes:
        people: State -> participants who talked (begun, finished, withdrawn, inattentive, counted).
        conversations: Agent -> state -> conversations (begun, rated, failed, too short).
        scores: Question -> agent -> score.
        tests: All pairs of agents on all questions.
        ranking: Agent -> chance to be preferred to an average one.
        rankings: Participants who ranked.
        agreement: Question -> agreement.
        against: Other raters of the conversations (the world's human, a judge) -> correlation.
        reward: The question that ranks the agents.
    """

    people: Mapping[str, int]
    conversations: Mapping[str, Mapping[str, int]]
    scores: Mapping[str, Mapping[str, Score]]
    tests: tuple[Test, ...]
    ranking: Mapping[str, Triple]
    rankings: int
    agreement: Mapping[str, Agreement]
    against: Mapping[str, Correlation]
    reward: str


def analyse(
    store: Store,
    questionnaire: Questionnaire,
    agents: Sequence[str],
    reward: str,
    seed: int,
    keep_inattentive: bool = False,
    others: Mapping[str, Callable[[Talk], float | None]] | None = None,
) -> Results:
    """Reads a study and works out what it says.

    Args:
        store: The study's file.
        questionnaire: Its questions.
        agents: Its agents.
        reward: Question that ranks the agents.
        seed: Seed of the resampling.
        keep_inattentive: Also counts those who failed the attention check.
        others: Name of somebody else -> their rating of a conversation, None where they have none.
    """
    people = [p for p in store.participants() if p.kind == TALKER]
    inattentive = {number for number, passed in store.attention().items() if not passed}
    counted = {
        p.number
        for p in people
        if p.withdrawn_at is None and (keep_inattentive or p.number not in inattentive)
    }
    talks = {talk.number: talk for talk in store.talks()}
    ratings = store.ratings()
    names = [question.name for question in questionnaire.questions]
    own = [r for r in ratings if talks[r.talk].participant == r.rater and r.rater in counted]
    tables = {
        name: table_of([r for r in own if r.question == name], talks, agents) for name in names
    }
    rankings = [p.ranking for p in people if p.ranking and p.number in counted]
    return Results(
        people={
            "begun": len(people),
            "finished": sum(p.finished_at is not None for p in people),
            "withdrawn": sum(p.withdrawn_at is not None for p in people),
            "inattentive": len(inattentive & {p.number for p in people}),
            "counted": len({r.rater for r in own}),
        },
        conversations={
            agent: _states([talk for talk in talks.values() if talk.agent == agent])
            for agent in agents
        },
        scores={name: scores_of(table, agents, seed) for name, table in tables.items()},
        tests=tuple(compare_agents(tables, agents, seed)),
        ranking=ranked_strengths(rankings, agents, seed),
        rankings=len(rankings),
        agreement={name: _agreement(ratings, talks, name) for name in names},
        against={
            name: _correlation(own, talks, reward, seed, rate)
            for name, rate in (others or {}).items()
        },
        reward=reward,
    )


def _states(talks: Sequence[Talk]) -> dict[str, int]:
    return {
        "begun": len(talks),
        "rated": sum(talk.rated_at is not None for talk in talks),
        FAILED: sum(talk.aside == FAILED for talk in talks),
        TOO_SHORT: sum(talk.aside == TOO_SHORT for talk in talks),
    }


def table_of(
    ratings: Sequence[Rating], talks: Mapping[int, Talk], agents: Sequence[str]
) -> Float[np.ndarray, "agents participants"]:
    """Ratings of one question; nan where a participant has not rated an agent."""
    raters = sorted({rating.rater for rating in ratings})
    table = np.full((len(agents), len(raters)), np.nan)
    for rating in ratings:
        agent = talks[rating.talk].agent
        table[agents.index(agent), raters.index(rating.rater)] = rating.value
    return table


def scores_of(
    table: Float[np.ndarray, "agents participants"], agents: Sequence[str], seed: int
) -> dict[str, Score]:
    """Mean of each agent with a bootstrap interval over participants."""
    scores = {}
    for agent, row in zip(agents, table, strict=True):
        values = row[~np.isnan(row)]
        if values.size < 2:
            mean = float(values.mean()) if values.size else None
            scores[agent] = Score(values.size, mean, None, None)
            continue
        mean, low, high = bootstrap_mean(values[None], seed, RESAMPLES)
        scores[agent] = Score(values.size, float(mean), float(low), float(high))
    return scores


def compare_agents(
    tables: Mapping[str, Float[np.ndarray, "agents participants"]],
    agents: Sequence[str],
    seed: int,
    resamples: int | None = None,
) -> list[Test]:
    """Paired permutation tests of all pairs on all questions, corrected for all of them together.

    Args:
        tables: Question -> ratings, nan where there is none.
        agents: The agents of the rows.
        seed: Seed of the permutations.
        resamples: Permutations of each test; None = those of `compare`.
    """
    found: list[Test] = []
    for question, table in tables.items():
        if resamples is None:
            records = pairwise_tests(dict(zip(agents, table[:, None], strict=True)), seed)
        else:
            records = _quick_tests(table, agents, seed, resamples)
        for record in records:
            first, second = agents.index(record["a"]), agents.index(record["b"])
            differences = table[first] - table[second]
            differences = differences[~np.isnan(differences)]
            found.append(
                Test(
                    record["a"],
                    record["b"],
                    question,
                    differences.size,
                    record["difference"],
                    record["p"],
                    None,
                    _effect(differences),
                    _preferred(differences),
                )
            )
    tested = [test for test in found if test.p is not None]
    corrected = iter(holm([test.p for test in tested]))
    return [
        test if test.p is None else dataclasses.replace(test, p_holm=next(corrected))
        for test in found
    ]


def _quick_tests(table: np.ndarray, agents: Sequence[str], seed: int, resamples: int) -> list[dict]:
    records = []
    for i in range(len(agents)):
        for j in range(i + 1, len(agents)):
            both = ~np.isnan(table[i] - table[j])
            difference, p = compare(table[i, both][None], table[j, both][None], seed, resamples)
            records.append({"a": agents[i], "b": agents[j], "difference": difference, "p": p})
    return records


def _effect(differences: Float[np.ndarray, " n"]) -> float | None:
    if differences.size < 2 or (spread := differences.std(ddof=1)) == 0:
        return None
    return float(differences.mean() / spread)


def _preferred(differences: Float[np.ndarray, " n"]) -> float | None:
    if not differences.size:
        return None
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def _agreement(ratings: Sequence[Rating], talks: Mapping[int, Talk], question: str) -> Agreement:
    of_raters, of_all = defaultdict(list), defaultdict(list)
    for rating in ratings:
        if rating.question == question:
            of_all[rating.talk].append(rating.value)
            if talks[rating.talk].participant != rating.rater:
                of_raters[rating.talk].append(rating.value)
    return Agreement(
        ordinal_alpha(list(of_raters.values())),
        sum(len(values) >= 2 for values in of_raters.values()),
        ordinal_alpha(list(of_all.values())) if of_raters else None,
    )


def _correlation(
    own: Sequence[Rating],
    talks: Mapping[int, Talk],
    reward: str,
    seed: int,
    rate: Callable[[Talk], float | None],
) -> Correlation:
    """Rank correlation over conversations; its interval resamples participants."""
    pairs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for rating in own:
        if rating.question == reward and (known := rate(talks[rating.talk])) is not None:
            pairs[rating.rater].append((rating.value, known))
    each = [np.array(of_one) for of_one in pairs.values()]
    if len(each) < 3:
        return Correlation(None, None, None, sum(map(len, each)))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(500):
        chosen = rng.integers(len(each), size=len(each))
        drawn.append(_spearman(np.concatenate([each[i] for i in chosen])))
    correlation = _spearman(np.concatenate(each))
    if np.isnan(correlation):
        return Correlation(None, None, None, sum(map(len, each)))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Correlation(correlation, float(low), float(high), sum(map(len, each)))


def _spearman(pairs: Float[np.ndarray, "n 2"]) -> float:
    """Spearman's rank correlation; nan where one of the two is always the same."""
    if np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
