"""Sentences about results: which method is above which, by how much and how surely.

The terminal tables, the README's tables and the report take their sentences from here, so that a
loss reads as a loss in every one of them. `tables.py` lays the numbers out, `page.py` makes the
page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from experiments.evaluation.returns import Discount
from experiments.evaluation.statistics import SIGNIFICANT
from experiments.evaluation.summary import (
    Bounds,
    Comparison,
    HumanPlayer,
    Population,
    PromptedAgent,
    Scores,
)
from experiments.looks import Look, ordered, split_rounds

SLIP_NAMES = {
    "speaks_for_agent": "speaks for the agent",
    "reveals_persona": "gives its persona away at once",
    "goes_on_after_end": "goes on after the end",
}
# What statements are about: ILQL with the most rounds of the first kind here that took part. Fixed
# beforehand, not by who won.
FOCUS, KINDS_OF_ROUNDS = "ilql", ("hindsight", "imagination", "")
MOST_NAMED = 5  # methods in a sentence
NORMALIZED, REWARD = "normalized score", "mean reward"
_CLAUSES = {
    "below": "below",
    "above": "above",
    "open": "not distinguishable from",
    "untested": "untested against",
}


def titles(population: Population) -> dict[str, str]:
    """Name -> title of the methods, in the order of legends."""
    return {name: population.methods[name].look.title for name in ordered(population.methods)}


# --- numbers ------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2) -> str:
    """A number as text; an en dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def dollars(value: float | None) -> str:
    """A cost as text: to the cent from a dollar on, below it finer."""
    return "–" if value is None else f"${value:.{2 if value >= 1 else 4}f}"


def percent(fraction: float | None) -> str:
    """0.25 as `25 %`."""
    return "–" if fraction is None else f"{100 * fraction:.0f} %"


def interval(bounds: Bounds | None, digits: int = 2) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    return f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]" if bounds else ""


# --- scores -------------------------------------------------------------------------------------


def score(scores: Scores) -> tuple[float | None, Bounds | None, str]:
    """The score that methods are ranked by: value, interval and unit (normalized if there is)."""
    if scores.normalized is not None:
        return scores.normalized, scores.normalized_ci95, NORMALIZED
    return scores.mean_reward, scores.ci95, REWARD


def unit_of(population: Population) -> str:
    """The unit of the scores that methods are ranked by, and of their differences."""
    scored = map(score, population.methods.values())
    return next((unit for value, _, unit in scored if value is not None), REWARD)


def best_method(methods: Mapping[str, Scores]) -> str | None:
    """The method of the highest score; None where no method has one."""
    values = {name: score(scores)[0] for name, scores in methods.items()}
    scored = {name: value for name, value in values.items() if value is not None}
    return max(scored, key=scored.__getitem__) if scored else None


def main_method(names: Collection[str]) -> str | None:
    """`FOCUS` with the most rounds among these, of hindsight if there are any; None without it."""
    parts = {name: split_rounds(name) for name in names}
    own = {name: kind for name, (base, kind, _) in parts.items() if base == FOCUS}

    def place(name: str) -> tuple[int, int]:
        return -KINDS_OF_ROUNDS.index(own[name]), parts[name][2]

    return max(own, key=place, default=None)


def focus_method(population: Population) -> str | None:
    """The method that statements are about: the main one, else the best."""
    return main_method(population.methods) or best_method(population.methods)


# --- tests --------------------------------------------------------------------------------------


def comparisons(population: Population) -> list[Comparison]:
    """All tests, those of the focus method first and seen from it."""
    focus = focus_method(population)
    tests = [_seen_from(test, focus) for test in population.tests]
    return sorted(tests, key=lambda test: test.a != focus)


def _seen_from(test: Comparison, method: str | None) -> Comparison:
    """The same test with `method` as `a`, if it is one of the two."""
    if test.b != method:
        return test
    difference = None if test.difference is None else -test.difference
    return dataclasses.replace(test, a=test.b, b=test.a, difference=difference)


def verdict(test: Comparison) -> str:
    """`above`, `below`, `open` (not distinguishable) or `untested`, seen from `a`."""
    if test.p_holm is None or test.difference is None:
        return "untested"
    if test.p_holm >= SIGNIFICANT or test.difference == 0:
        return "open"
    return "above" if test.difference > 0 else "below"


def lasting_verdict(test: Comparison) -> str:
    """`verdict`, and `open` where methods of several trainings might differ by these alone."""
    lasts = test.p_training_holm is None or test.p_training_holm < SIGNIFICANT
    found = verdict(test)
    return found if lasts or found == "untested" else "open"


def difference(test: Comparison, population: Population) -> float | None:
    """The difference of a test in the unit of the scores beside it."""
    if test.difference is None or unit_of(population) == REWARD:
        return test.difference
    return population.references.normalized_difference(test.difference)


def evidence(test: Comparison) -> str:
    """`p_holm = 0.012`, of the agents as trained."""
    return "not tested" if test.p_holm is None else _p_value("p_holm", test.p_holm)


def p_value(p: float) -> str:
    """A p-value with three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _p_value(name: str, p: float) -> str:
    text = p_value(p)
    return f"{name} {text}" if text.startswith("<") else f"{name} = {text}"


def describe_tests(population: Population) -> str:
    """The tests in a sentence or two: above, below, not distinguishable, each with its p."""
    tests, title = comparisons(population), titles(population)
    sentences = []
    for subject in dict.fromkeys(test.a for test in tests):
        own = [test for test in tests if test.a == subject]
        sentences.append(_verdicts(own, title, [difference(test, population) for test in own]))
    if sentences:
        sentences.append(
            f"Differences are in {unit_of(population)}; p_holm speaks of other humans, with the "
            "agents as trained."
        )
    return " ".join(sentences)


def describe_method(method: str, tests: Sequence[Comparison], title: Mapping[str, str]) -> str:
    """Tests of one method, over episodes and over trainings; differences are in their own unit."""
    own = [_seen_from(test, method) for test in tests if method in (test.a, test.b)]
    if not own:
        return ""
    said = _verdicts(own, title, [test.difference for test in own])
    return f"{said} {_over_trainings(own, title)}".strip()


def _verdicts(
    tests: Sequence[Comparison], title: Mapping[str, str], differences: Sequence[float | None]
) -> str:
    """One sentence on tests that are all seen from the same method."""
    clauses = []
    for kind, name in _CLAUSES.items():
        parts = [
            f"{title[test.b]} by {number(abs(value))} ({evidence(test)})"
            if kind in ("above", "below")
            else f"{title[test.b]} (difference {number(value)}, {evidence(test)})"
            for test, value in zip(tests, differences, strict=True)
            if verdict(test) == kind
        ]
        clauses += [f"{name} {_enumerate(parts)}"] if parts else []
    return _sentence(f"{title[tests[0].a]} is {'; '.join(clauses)}")


def _enumerate(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def training_note(population: Population) -> str:
    """Differences from the focus method that there would be after trainings on the same data."""
    focus = focus_method(population)
    own = [test for test in comparisons(population) if test.a == focus]
    return _over_trainings(own, titles(population))


def _over_trainings(tests: Sequence[Comparison], title: Mapping[str, str]) -> str:
    """One sentence on tests that are all seen from the same method; empty with one training."""
    parts = []
    for test in tests:
        if test.p_training_holm is None:
            continue
        sure = test.p_training_holm < SIGNIFICANT
        claim = "differs from" if sure else "is not distinguishable from"
        p = _p_value("p_training_holm", test.p_training_holm)
        parts.append(f"{claim} {title[test.b]} ({p})")
    return f"Over training runs {title[tests[0].a]} {_enumerate(parts)}." if parts else ""


# --- headline -----------------------------------------------------------------------------------


def headline(population: Population, name: str) -> tuple[str, str]:
    """The result of one population in a sentence, with its uncertainty.

    Returns:
        A verdict (`above`, `below`, `open`, `untested`, `alone`) and the sentence.
    """
    focus, methods = focus_method(population), population.methods
    if focus is None:
        return "untested", f"No method has a score on the {name} population."
    unit = score(methods[focus])[2]
    mine = _with_interval(methods[focus])
    rivals = {key: method for key, method in methods.items() if key != focus}
    title = titles(population)
    subject = title[focus]
    if not rivals:
        return "alone", _sentence(f"{subject} has a {unit} of {mine} on the {name} population")
    tests = {t.b: t for t in comparisons(population) if t.a == focus}
    verdicts = {key: lasting_verdict(tests[key]) if key in tests else "untested" for key in rivals}
    level = [key for key in ordered(rivals) if _is_variant(key, focus) and verdicts[key] == "open"]
    rival = _rival(rivals, verdicts, level)
    beaten = [title[key] for key in ordered(rivals) if verdicts[key] == "above"]
    beats_all = len(beaten) == len(rivals) > 1
    claim = {
        "above": f"beats {_all_of(beaten) if beats_all else title[rival]}",
        "below": f"loses to {title[rival]}",
        "open": f"is not distinguishable from {title[rival]}",
        "untested": f"was not tested against {title[rival]}",
    }[verdicts[rival]]
    against = f"{_with_interval(rivals[rival])} for {title[rival]}"
    against += ", the next best" if beats_all else ""
    if rival in tests:
        gap = number(difference(tests[rival], population))
        again = tests[rival].p_training_holm
        over = "" if again is None else f", {_p_value('p_training_holm', again)} over trainings"
        against += f" (difference {gap}, {evidence(tests[rival])} over other humans{over})"
    others = [name for name in beaten if name != title[rival]]
    if others and not beats_all:
        against += f"; it beats {_all_of(others)}"
        against += ", too" if verdicts[rival] == "above" else ""
    unsure = [title[key] for key in ordered(rivals) if verdicts[key] == "open" and key != rival]
    if unsure:
        against += f"; not distinguishable from {_all_of(unsure)}"
    return verdicts[rival], _sentence(
        f"{subject} {claim} on the {name} population: {unit} {mine} against {against}"
    )


def _all_of(beaten: Sequence[str]) -> str:
    """Names the methods, or counts them where they are many."""
    return _enumerate(beaten) if len(beaten) <= MOST_NAMED else f"{len(beaten)} other methods"


def _with_interval(scores: Scores) -> str:
    value, bounds, _ = score(scores)
    return f"{number(value)} {interval(bounds)}".strip()


def _is_variant(name: str, focus: str) -> bool:
    """True for the same method with other rounds."""
    return split_rounds(name)[0] == split_rounds(focus)[0]


def _rival(
    rivals: Mapping[str, Scores], verdicts: Mapping[str, str], level: Collection[str]
) -> str:
    """The strongest other method; one that is surely above the focus before all others.

    Variants of the focus that are level with it come last: of other methods more is to be told.
    """

    def strength(key: str) -> tuple[bool, bool, float]:
        value = score(rivals[key])[0]
        return verdicts[key] == "below", key not in level, -math.inf if value is None else value

    return max(rivals, key=strength)


def against_data(population: Population) -> str:
    """Compares the focus method with the best single behaviour of its data."""
    focus, references = focus_method(population), population.references
    bounds = population.methods[focus].normalized_ci95 if focus else None
    if references is None or bounds is None:
        return ""
    best = references.normalized(references.best_behaviour)
    title = population.methods[focus].look.title
    relation = "contains"
    if bounds[0] > best:
        relation = "lies above"
    elif bounds[1] < best:
        relation = "lies below"
    return (
        f"The interval of {title} {relation} the score of the best single behaviour "
        f"in the data, {number(best)}."
    )


# --- notes --------------------------------------------------------------------------------------


def discounts_note(discounts: Mapping[str, Discount], looks: Mapping[str, Look]) -> str:
    """Says by how much the returns are discounted that values of each method are held against."""
    owners: dict[Discount, list[str]] = {}
    for name in ordered(discounts):
        owners.setdefault(discounts[name], []).append(looks[name].title)
    parts = [
        f"by {discount}" if len(owners) == 1 else f"by {discount} for {_enumerate(titles)}"
        for discount, titles in owners.items()
    ]
    return f"Returns are discounted as in the training, {_enumerate(parts)}." if parts else ""


def seeds_note(population: Population) -> str:
    """Says what the intervals cover, which depends on the number of training seeds."""
    seeds = {len(scores.trainings) for scores in population.methods.values()} - {0}
    if not seeds:
        return ""
    if seeds == {1}:
        return (
            "One training of each method: intervals and p_holm say how these agents fare with "
            "other humans, not how the methods would if trained again on the same dialogues"
        )
    count = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return (
        f"{count} trainings of each method, all on the same dialogues: intervals cover other "
        "humans and other trainings on these dialogues, p_holm other humans alone, "
        "p_training_holm such trainings; none covers other dialogues"
    )


def prompted_agents(population: Population) -> dict[str, PromptedAgent]:
    """The prompted agents among the methods, in order."""
    agents = {name: population.methods[name].prompted_agent for name in ordered(population.methods)}
    return {name: agent for name, agent in agents.items() if agent is not None}


def human_note(population: Population, human: HumanPlayer | None) -> str:
    """Names the LLM that played the human, its cost and its slips; empty for a world's human."""
    if human is None:
        return ""
    methods = [m for m in population.methods.values() if m.played_human is not None]
    total = sum(m.conversations for m in methods)
    slips = ", ".join(
        f"{name} {sum(m.played_human.slips.get(kind, 0) for m in methods)}"
        for kind, name in SLIP_NAMES.items()
    )
    calls = _mean([(m.played_human.calls, m.conversations) for m in methods])
    cost = _mean([(m.played_human.cost, m.conversations) for m in methods])
    return (
        f"The human is played by {human.model} (prompts {human.prompt} and "
        f"{human.rating_prompt}), so there is no optimum to compare with; it takes "
        f"{number(calls, 1)} calls ({dollars(cost)}) a conversation. Its slips in {total} "
        f"conversations: {slips}."
    )


def _mean(weighted: Sequence[tuple[float | None, int]]) -> float | None:
    """Mean over all conversations of (mean of a method, its conversations)."""
    total = sum(weight for _, weight in weighted)
    if not total or any(value is None for value, _ in weighted):
        return None
    return sum(value * weight for value, weight in weighted) / total


def calls_note(population: Population) -> str:
    """Explains the columns of calls and cost, and names the models behind them."""
    agents = prompted_agents(population)
    if not agents:
        return ""
    title = titles(population)
    parts = [
        f"{title[name]} is {agent.model} ({agent.prompt}{_setup(agent)})"
        for name, agent in agents.items()
    ]
    note = f"Calls and cost are the agent's, a conversation: {_enumerate(parts)}."
    unpriced = all(agent.cost is None for agent in agents.values())
    return note + (" No prices are set, so the cost is not known." if unpriced else "")


def _setup(agent: PromptedAgent) -> str:
    if agent.setup_calls is None:
        return ""
    counted = f"; beforehand {agent.setup_calls} call{'' if agent.setup_calls == 1 else 's'}"
    return counted + ("" if agent.setup_cost is None else f", {dollars(agent.setup_cost)}")


def missing_note(population: Population) -> str:
    """Counts conversations that are fewer than they should be, unrated, or broken off."""
    title = titles(population)
    methods = {name: population.methods[name] for name in title}
    most = max((scores.episodes for scores in methods.values()), default=0)
    shorter: dict[int, list[str]] = {}
    sentences = []
    for name, scores in methods.items():
        if scores.episodes < most:
            shorter.setdefault(scores.episodes, []).append(title[name])
        if scores.unrated:
            sentences.append(
                f"{title[name]}: {scores.unrated} of {scores.conversations} conversations have "
                "no rating and are left out of means and tests"
            )
        if scores.broken_off:
            sentences.append(
                f"{title[name]}: in {scores.broken_off} of {scores.conversations} conversations "
                "the agent gave no answer; they count as the worst rating"
            )
    sentences += [
        f"{_enumerate(names)} had the first {episodes} of {most} episodes; tests pair these"
        for episodes, names in shorter.items()
    ]
    return " ".join(map(_sentence, sentences))
