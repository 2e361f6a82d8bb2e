"""Evaluations and conversations made up for tests, through the types that runs write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.evaluation.returns import Discount
from experiments.evaluation.summary import (
    CalibrationBin,
    Comparison,
    Estimate,
    Evaluation,
    Heldout,
    HeldoutPolicy,
    Moment,
    Population,
    PredictionPoint,
    References,
    Reply,
    Scores,
    Success,
    Training,
    TurnPrediction,
)
from experiments.looks import look_of
from imagination.dialogue import Dialogue, Turn

REFERENCES = References(behaviour=1.9, best_behaviour=3.1, optimum=4.7, uniform=1.2)
SUCCESS_REWARD = 4.0


def normalized(reward: float | None) -> float | None:
    return None if reward is None else REFERENCES.normalized(reward)


def scores(name: str, reward: float | None, **changes) -> Scores:
    """A trained method of three seeds around this mean reward."""
    bounds = None if reward is None else (reward - 0.13, reward + 0.14)
    seeds = changes.pop("seeds", 3)
    decoding = changes.pop("decoding", "sampled at 0.6, best of 16")
    seconds = changes.pop("seconds", 87.0)
    values = {
        "look": look_of(name),
        "episodes": 40,
        "unrated": 0,
        "broken_off": 0,
        "mean_reward": reward,
        "ci95": bounds,
        "normalized": normalized(reward),
        "normalized_ci95": bounds and (normalized(bounds[0]), normalized(bounds[1])),
        "success_rate": 0.37,
        "turns": 5.8,
        "not_understood": 0.29,
        "trainings": tuple(
            Training(
                seed,
                None if reward is None else reward + 0.1 * seed - 0.1,
                normalized(None if reward is None else reward + 0.1 * seed - 0.1),
                decoding,
                seconds,
            )
            for seed in range(seeds)
        ),
        "prompted_agent": None,
        "played_human": None,
    }
    return Scores(**{**values, **changes})


def comparison(
    a: str, b: str, difference: float | None, p_holm: float | None, p_training: float | None = None
) -> Comparison:
    """A test; the p before Holm's correction is half of that behind it."""
    p = None if p_holm is None else p_holm / 2
    before = None if p_training is None else p_training / 2
    return Comparison(a, b, 40, difference, p, p_holm, before, p_training)


def population(
    rewards: Mapping[str, float] | None = None, tests: Sequence[Comparison] | None = None
) -> Population:
    """A population in which ILQL is ahead, or methods of these mean rewards."""
    if tests is None:
        tests = (
            comparison("fbc", "ilql", -0.79, 0.002),
            comparison("ilql", "bc", 2.47, 0.0004),
            comparison("bc", "fbc", -1.68, 0.0006),
        )
    rewards = rewards or {"bc": 1.7, "fbc": 3.38, "ilql": 4.17}
    methods = {name: scores(name, reward) for name, reward in rewards.items()}
    return Population(REFERENCES, methods, tuple(tests))


def evaluation(
    average: Population | None = None, difficult: Population | None = None
) -> Evaluation:
    """Both populations, each as given or as in `population()`."""
    both = {"average": average or population(), "difficult": difficult or population()}
    return Evaluation("teaching", SUCCESS_REWARD, None, both)


def heldout(
    auroc: tuple[float | None, tuple[float, float] | None] = (0.61, (0.52, 0.69)),
) -> Heldout:
    """Held-out dialogues, whose AUROC of V is as given throughout."""
    bins = (CalibrationBin(0.2, 0.3, 9, 0.1, 0.5), CalibrationBin(0.7, 0.6, 5, 0.4, 0.8))
    return Heldout(
        task="persuasion",
        sizes={"train": 813, "test": 103},
        success=Success("The <persuadee> gives.", 0.01, 0.54),
        methods={
            name: HeldoutPolicy(look_of(name), perplexity, (perplexity,))
            for name, perplexity in (("bc", 21.37), ("ilql", 23.91))
        },
        pretrained_perplexity=48.05,
        discounts={"ilql": Discount(0.98, by_token=True)},
        value_prediction={
            "ilql": tuple(
                PredictionPoint(point, *auroc, 0.58, (0.47, 0.68), bins)
                for point in (0.25, 0.5, 1.0)
            )
        },
        by_turn={
            "ilql": (
                TurnPrediction(
                    *(1, False, 103, None, Estimate(0.31, (0.12, 0.48))),
                    *(Estimate(-0.05, None), 0.44),
                ),
                TurnPrediction(
                    *(4, True, 57, Estimate(0.43, (0.19, 0.62)), Estimate(0.46, (0.22, 0.65))),
                    *(Estimate(0.02, (-0.03, 0.07)), 0.47),
                ),
            )
        },
        sample_replies=4,
        moments=(
            Moment(
                "0",
                1,
                {
                    "bc": Reply("Would <you> give?", "sampled", None, None),
                    "ilql": Reply("What do you care for?", "sampled, best of 8", 0.71, 0.52),
                },
            ),
        ),
    )


def conversation(
    name: str,
    episode: int,
    reward: float | None,
    where: str = "average",
    seed: int = 0,
    text: str = "a slope is how steep it is",
) -> Dialogue:
    """Three turns of a method that notes its values."""
    turns = [Turn("human", "hi", annotations={"understood_as": None})]
    for turn in range(3):
        q = (reward or 0.0) - 0.3 * (2 - turn) + 0.01 * episode
        notes = {"q": q, "v": q - 0.1, "candidates": [{"text": text, "q": q}]}
        turns.append(Turn("agent", text, annotations=notes))
        turns.append(Turn("human", "ok", annotations={"understood_as": None if turn else "ask"}))
    source = {
        "kind": "simulated",
        "method": name,
        "seed": seed,
        "population": where,
        "episode": episode,
    }
    persona = {"level": ("novice", "expert")[episode % 2], "cost in $x_{": f"$^{episode % 3}"}
    identifier = f"{name}-seed{seed}-{where}-{episode}"
    return Dialogue(identifier, "teaching", tuple(turns), reward, persona, source)
