"""What an evaluation says, in words: names, order, who is above whom and how surely.

The terminal table, the README's table and the report all take their wording from here, so that
a loss reads as a loss in every one of them. `tables.py` lays the numbers out, `report.py` draws
the page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imagination.simulation import normalized_score

METHOD_NAMES = {
    "ilql": "ILQL",
    "mc": "MC",
    "fbc": "filtered BC",
    "bc": "BC",
    "dpo": "DPO",
    "plain": "plain prompt",
    "reasoning": "reasoning prompt",
    "clam": "CLAM",
    "gdp_zero": "GDP-ZERO",
    "prompted": "prompted LLM",
}
SLIP_NAMES = {
    "speaks_for_agent": "speaks for the agent",
    "reveals_persona": "gives its persona away at once",
    "goes_on_after_end": "goes on after the end",
}
REFERENCE_NAMES = {
    "optimum": "optimum",
    "best_behaviour": "best behaviour",
    "behaviour": "behaviour",
    "uniform": "uniform",
}
FOCUS = ("ilql_hindsight1", "ilql")
SIGNIFICANT = 0.05
_TEST_NUMBERS = ("difference", "p", "p_holm", "p_training_holm")
_CLAUSES = {
    "below": "below",
    "above": "above",
    "open": "not distinguishable from",
    "untested": "untested against",
}


def method_name(key: str) -> str:
    """How a method is called in tables and figures."""
    base, rounds = _without_hindsight(key)
    name = METHOD_NAMES.get(base, str(base).replace("_", " "))
    return f"{name} + {rounds} round{'s' * (rounds > 1)} of hindsight" if rounds else name


def _without_hindsight(key: Any) -> tuple[str, int]:
    """`ilql_hindsight2` as `ilql`, 2."""
    base, _, rounds = str(key).partition("_hindsight")
    return (base, int(rounds)) if base in METHOD_NAMES and rounds.isdecimal() else (str(key), 0)


def ordered_methods(keys: Any) -> list[str]:
    """Known methods in their fixed order, then the others by name."""
    known = list(METHOD_NAMES)

    def place(key: str) -> tuple[int, int, str]:
        base, rounds = _without_hindsight(key)
        return (known.index(base) if base in known else len(known), rounds, key)

    return sorted(keys, key=place)


def populations(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The populations that have methods, average first, difficult second."""
    found = {}
    for name, population in (evaluation.get("population") or {}).items():
        methods = {k: m for k, m in ((population or {}).get("methods") or {}).items() if m}
        if methods:
            human = evaluation.get("human") or {}
            found[name] = {**population, "methods": methods, "human": human}
    order = ["average", "difficult"]
    return dict(
        sorted(found.items(), key=lambda kv: order.index(kv[0]) if kv[0] in order else len(order))
    )


def number(value: Any, digits: int = 2) -> str:
    """A number as text; an en dash where it is missing or not finite."""
    if not is_number(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def dollars(value: Any) -> str:
    """A cost as text: to the cent from a dollar on, below it finer."""
    return f"${value:.{2 if value >= 1 else 4}f}" if is_number(value) else "–"


def is_number(value: Any) -> bool:
    """True for a finite number that is not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def interval(bounds: Any, digits: int = 2) -> str:
    """`[low, high]`, or nothing where either end is missing."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2 or not all(map(is_number, bounds)):
        return ""
    return f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]"


def normalize(reward: Any, references: Mapping[str, Any]) -> float | None:
    """The normalized score of a mean reward; None where a number is missing."""
    low, high = references.get("behaviour"), references.get("optimum")
    if not (is_number(reward) and is_number(low) and is_number(high)) or high <= low:
        return None
    return normalized_score(reward, references)


def score(method: Mapping[str, Any]) -> tuple[float | None, Any, str]:
    """What methods are ranked by: value, interval and its name (normalized score if known)."""
    if is_number(method.get("normalized")):
        return method["normalized"], method.get("normalized_ci95"), "normalized score"
    reward = method.get("mean_reward")
    return (reward if is_number(reward) else None), method.get("ci95"), "mean reward"


def best_method(population: Mapping[str, Any]) -> str | None:
    """The method of the highest score."""
    scores = {key: score(method)[0] for key, method in population["methods"].items()}
    scores = {key: value for key, value in scores.items() if value is not None}
    return max(scores, key=scores.__getitem__) if scores else None


def focus_method(population: Mapping[str, Any]) -> str | None:
    """The method that statements are about: the first of `FOCUS` that took part, else the best."""
    return main_method(population["methods"]) or best_method(population)


def main_method(methods: Collection[str]) -> str | None:
    """The first of `FOCUS` that is among these; fixed beforehand, not by who won."""
    return next((method for method in FOCUS if method in methods), None)


def per_seed_scores(method: Mapping[str, Any], references: Mapping[str, Any]) -> list[float]:
    """`per_seed` as normalized scores, whichever of the two scales it was written on."""
    values = [value for value in method.get("per_seed") or [] if is_number(value)]
    normalized, reward = method.get("normalized"), method.get("mean_reward")
    if not values or not is_number(normalized):
        return []
    mean = sum(values) / len(values)
    if is_number(reward) and abs(mean - reward) < abs(mean - normalized):
        return [x for x in (normalize(value, references) for value in values) if x is not None]
    return values


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One pairwise test, seen from `a`."""

    a: str
    b: str
    difference: float | None
    p: float | None
    p_holm: float | None
    p_training_holm: float | None = None

    @property
    def probability(self) -> float | None:
        return self.p_holm if is_number(self.p_holm) else self.p

    @property
    def verdict(self) -> str:
        """`above`, `below`, `open` (not distinguishable), or `untested`."""
        if not is_number(self.probability) or not is_number(self.difference):
            return "untested"
        if self.probability >= SIGNIFICANT or self.difference == 0:
            return "open"
        return "above" if self.difference > 0 else "below"

    @property
    def evidence(self) -> str:
        """`p_holm = 0.012`, with the plain p where no correction was made."""
        name = "p_holm" if is_number(self.p_holm) else "p"
        return _p_value(name, self.probability) if is_number(self.probability) else "not tested"

    @property
    def training_evidence(self) -> str:
        """The same for training the methods again; empty where one seed cannot tell."""
        if not is_number(self.p_training_holm):
            return ""
        return _p_value("p_training_holm", self.p_training_holm)

    def seen_from(self, method: str | None) -> Comparison:
        """The same test with `method` on the left, if it is one of the two."""
        if self.b != method:
            return self
        difference = -self.difference if is_number(self.difference) else None
        return dataclasses.replace(self, a=self.b, b=self.a, difference=difference)


def _p_value(name: str, p: float) -> str:
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}"


def comparisons(population: Mapping[str, Any]) -> list[Comparison]:
    """All tests, those of the focus method first and seen from it."""
    focus = focus_method(population)
    tests = []
    for test in population.get("tests") or []:
        numbers = (test.get(key) for key in _TEST_NUMBERS)
        numbers = (value if is_number(value) else None for value in numbers)
        tests.append(Comparison(str(test.get("a")), str(test.get("b")), *numbers).seen_from(focus))
    return sorted(tests, key=lambda test: test.a != focus)


def difference_scale(population: Mapping[str, Any]) -> str:
    """The scale on which the tests' differences are: `normalized score` or `reward`."""
    if population.get("difference_scale"):
        return str(population["difference_scale"])
    methods, gaps = population["methods"], {"normalized": 0.0, "mean_reward": 0.0}
    for test in comparisons(population):
        for scale in gaps:
            a, b = (methods.get(key, {}).get(scale) for key in (test.a, test.b))
            if is_number(a) and is_number(b) and is_number(test.difference):
                gaps[scale] += abs(a - b - test.difference)
            else:
                gaps[scale] = math.inf
    return "reward" if gaps["mean_reward"] < gaps["normalized"] else "normalized score"


def describe_tests(population: Mapping[str, Any]) -> str:
    """The tests in a sentence or two: above, below, not distinguishable, each with its p."""
    tests = comparisons(population)
    sentences = []
    for subject in dict.fromkeys(test.a for test in tests):
        own = [test for test in tests if test.a == subject]
        clauses = [
            _clause(verdict, [t for t in own if t.verdict == verdict]) for verdict in _CLAUSES
        ]
        sentence = f"{method_name(subject)} is " + "; ".join(filter(None, clauses)) + "."
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _clause(verdict: str, tests: list[Comparison]) -> str:
    if not tests:
        return ""
    if verdict in ("above", "below"):
        parts = [f"{method_name(t.b)} by {number(abs(t.difference))} ({t.evidence})" for t in tests]
    else:
        parts = [
            f"{method_name(t.b)} (difference {number(t.difference)}, {t.evidence})" for t in tests
        ]
    return f"{_CLAUSES[verdict]} " + _enumerate(parts)


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def headline(population: Mapping[str, Any], name: str = "average") -> tuple[str, str]:
    """The result of one population in a sentence, with its uncertainty.

    Returns:
        A verdict (`above`, `below`, `open`, `untested`, `alone`) and the sentence.
    """
    focus, methods = focus_method(population), population["methods"]
    if focus is None:
        return "untested", f"No method has a score on the {name} population."
    value, bounds, unit = score(methods[focus])
    mine = f"{number(value)} {interval(bounds)}".strip()
    rivals = {key: method for key, method in methods.items() if key != focus}
    if not rivals:
        return "alone", f"{method_name(focus)} has a {unit} of {mine} on the {name} population."
    tests = {t.b: t for t in comparisons(population) if t.a == focus and t.b in rivals}
    rival = _rival(rivals, tests)
    verdict = tests[rival].verdict if rival in tests else "untested"
    theirs = f"{number(score(rivals[rival])[0])} {interval(score(rivals[rival])[1])}".strip()
    everyone = len(rivals) > 1 and all(
        key in tests and tests[key].verdict == "above" for key in rivals
    )
    claim = {
        "above": f"beats {'every other method' if everyone else method_name(rival)}",
        "below": f"loses to {method_name(rival)}",
        "open": f"is not distinguishable from {method_name(rival)}",
        "untested": f"was not tested against {method_name(rival)}",
    }[verdict]
    against = f"{theirs} for {method_name(rival)}" + (", the next best" if everyone else "")
    evidence = ""
    if rival in tests:
        test = tests[rival]
        evidence = f" (difference {number(test.difference)}, {test.evidence})"
    subject = method_name(focus)
    return verdict, (
        f"{subject[0].upper()}{subject[1:]} {claim} on the {name} population: "
        f"{unit} {mine} against {against}{evidence}."
    )


def training_note(population: Mapping[str, Any]) -> str:
    """Which differences from the focus method would be there if all were trained again."""
    focus = focus_method(population)
    tests = [t for t in comparisons(population) if t.a == focus and t.training_evidence]
    if not tests:
        return ""
    parts = []
    for test in tests:
        sure = test.p_training_holm < SIGNIFICANT
        claim = "differs from" if sure else "is not distinguishable from"
        parts.append(f"{claim} {method_name(test.b)} ({test.training_evidence})")
    return f"Over training runs {method_name(focus)} {_enumerate(parts)}."


def _rival(rivals: Mapping[str, Any], tests: Mapping[str, Comparison]) -> str:
    """The strongest other method; one that is surely above us before all others."""
    return max(
        rivals,
        key=lambda key: (
            key in tests and tests[key].verdict == "below",
            score(rivals[key])[0] if score(rivals[key])[0] is not None else -math.inf,
        ),
    )


def against_data(population: Mapping[str, Any]) -> str:
    """Where the focus method stands against the best single behaviour of its data."""
    focus = focus_method(population)
    references = population.get("references") or {}
    best = normalize(references.get("best_behaviour"), references)
    bounds = population["methods"][focus].get("normalized_ci95") if focus else None
    if best is None or not interval(bounds):
        return ""
    relation = "contains"
    if bounds[0] > best:
        relation = "lies above"
    elif bounds[1] < best:
        relation = "lies below"
    return (
        f"The interval of {method_name(focus)} {relation} the score of the best single behaviour "
        f"in the data, {number(best)}."
    )


def seeds_note(population: Mapping[str, Any]) -> str:
    """What the intervals cover, as far as the number of training seeds tells."""
    seeds = {m.get("seeds") for m in population["methods"].values() if is_number(m.get("seeds"))}
    if not seeds:
        return ""
    if seeds == {1}:
        return "1 seed: the interval covers episodes, not training runs"
    count = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"{count} seeds: the interval covers episodes and training runs"


def takes_calls(population: Mapping[str, Any]) -> bool:
    """Whether an agent talks with an LLM, so that there are calls to show."""
    return any(is_number(method.get("calls")) for method in population["methods"].values())


def is_played(human: Mapping[str, Any]) -> bool:
    """Whether the human is played by an LLM, which leaves no optimum to compare with."""
    return human.get("kind") == "prompted"


def human_note(population: Mapping[str, Any]) -> str:
    """Who played the human, what it took and how often it slipped; empty for the world's."""
    human = population.get("human") or {}
    if not is_played(human):
        return ""
    methods = population["methods"].values()
    sizes = [(m.get("episodes") or 0) * (m.get("seeds") or 1) for m in methods]
    slips = {kind: sum((m.get("slips") or {}).get(kind, 0) for m in methods) for kind in SLIP_NAMES}
    counted = ", ".join(f"{SLIP_NAMES[kind]} {count}" for kind, count in slips.items())
    calls, cost = (_pooled(methods, sizes, f"human_{what}") for what in ("calls", "cost"))
    return (
        f"The human is played by {human.get('model')} (prompts {human.get('prompt')} and "
        f"{human.get('rating_prompt')}), so there is no optimum to compare with; it takes "
        f"{number(calls, 1)} calls ({dollars(cost)}) a conversation. Its slips in {sum(sizes)} "
        f"conversations: {counted}."
    )


def _pooled(methods: Collection[Mapping[str, Any]], sizes: Sequence[int], key: str) -> float | None:
    """Mean over the conversations of all methods."""
    values = [method.get(key) for method in methods]
    if not sum(sizes) or not all(map(is_number, values)):
        return None
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def calls_note(population: Mapping[str, Any]) -> str:
    """What the columns of calls and cost count, and the models behind them."""
    if not takes_calls(population):
        return ""
    methods = population["methods"]
    asked = [key for key in ordered_methods(methods) if is_number(methods[key].get("calls"))]
    parts = [
        f"{method_name(key)} is {methods[key].get('model')} ({methods[key].get('prompt')}"
        f"{_setup(methods[key])})"
        for key in asked
    ]
    unpriced = not any(is_number(methods[key].get("cost")) for key in asked)
    note = f"Calls and cost are the agent's, a conversation: {_enumerate(parts)}."
    return note + (" No prices are set, so the cost is not known." if unpriced else "")


def _setup(method: Mapping[str, Any]) -> str:
    calls, cost = method.get("setup_calls"), method.get("setup_cost")
    if not is_number(calls):
        return ""
    counted = f"; beforehand {calls} call{'' if calls == 1 else 's'}"
    return counted + (f", {dollars(cost)}" if is_number(cost) else "")


def missing_note(population: Mapping[str, Any]) -> str:
    """Conversations that are fewer than they should be, or came to no good end."""
    methods = {key: population["methods"][key] for key in ordered_methods(population["methods"])}
    most = max((m.get("episodes") or 0 for m in methods.values()), default=0)
    shorter: dict[int, list[str]] = {}
    sentences = []
    for key, method in methods.items():
        episodes, seeds = method.get("episodes") or 0, method.get("seeds") or 1
        if 0 < episodes < most:
            shorter.setdefault(episodes, []).append(method_name(key))
        if method.get("unrated"):
            sentences.append(
                f"{method_name(key)}: {method['unrated']} of {episodes * seeds} conversations have "
                "no rating and are left out of means and tests."
            )
        if method.get("broken_off"):
            sentences.append(
                f"{method_name(key)}: in {method['broken_off']} of {episodes} conversations the "
                "model gave no answer and the agent broke off."
            )
    sentences += [
        f"{_enumerate(names)} had the first {episodes} of {most} episodes; tests pair these."
        for episodes, names in shorter.items()
    ]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
