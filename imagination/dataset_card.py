"""`dataset_card`: statistics of a dataset of dialogues, as Markdown.

Sections: personas, behaviours, rewards, lengths, diversity; for dialogues of an LLM also critique,
agreement of the reward sources, models and prompts, dropped dialogues, tokens and cost. Measures
that compare dialogues with each other use a sample drawn by seed, so that the card of a large
dataset takes seconds too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from imagination.checks import is_finite
from imagination.dialogue import Dialogue
from imagination.diversity import distinct, nearest_pairs, self_bleu, words_of
from imagination.flaws import (
    FLAWS,
    MENDED,
    OTHER_LANGUAGE,
    PLANTED,
    checks_language,
    flaws,
)
from imagination.languages import spaced_words
from imagination.persona_sampling import importance_weights
from imagination.task import Task

if TYPE_CHECKING:  # a card needs no LLM client
    from imagination.llm.session import DroppedDialogue

SAMPLE = 200  # dialogues that are compared with each other
CELL_WIDTH = 90  # characters of a text in a table
UNKNOWN = "unknown"
DIFFICULT = "difficult"  # key of these personas' share
LEAST_AGREEMENT = 0.3  # Pearson correlation of two reward sources below which one is warned
FEWEST_COMPARED = 5  # dialogues

Row = Sequence[Any]


# Agreement of reward sources


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of two reward sources on the dialogues that both rated.

    Attributes:
        first, second: Names of the sources.
        dialogues: Number that both rated.
        pearson, spearman: Correlations; None where one of the two never varies.
        mean_difference: Mean absolute difference, on the task's scale.
    """

    first: str
    second: str
    dialogues: int
    pearson: float | None
    spearman: float | None
    mean_difference: float


def agreements(dialogues: Sequence[Dialogue]) -> list[Agreement]:
    """Agreement of each two reward sources that rated the same dialogues."""
    result = []
    for first, second in itertools.combinations(("outcome", "judge", "human"), 2):
        rated = [_ratings(d) for d in dialogues]
        both = [
            (r[first], r[second])
            for r in rated
            if r.get(first) is not None and r.get(second) is not None
        ]
        if not both:
            continue
        a, b = np.array(both, dtype=float).T
        varies = len(both) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
        result.append(
            Agreement(
                first,
                second,
                len(both),
                float(scipy.stats.pearsonr(a, b).statistic) if varies else None,
                float(scipy.stats.spearmanr(a, b).statistic) if varies else None,
                float(np.abs(a - b).mean()),
            )
        )
    return result


# Critique


def criterion_counts(dialogues: Sequence[Dialogue]) -> dict[str, tuple[int, int, int]]:
    """Criterion -> dialogues checked by it, that it had rewritten, that fail it in the end."""
    counts: dict[str, list[int]] = {}
    for dialogue in dialogues:
        critique = dialogue.source.get("critique") or {}
        verdicts = critique.get("verdicts") or []
        called = {name for names in critique.get("changed") or [] for name in names}
        for verdict in verdicts[-1] if verdicts else []:
            count = counts.setdefault(verdict["criterion"], [0, 0, 0])
            count[0] += 1
            count[1] += verdict["criterion"] in called
            count[2] += not verdict["fulfilled"]
    return {name: tuple(count) for name, count in counts.items()}


# The card


def dataset_card(
    dialogues: Sequence[Dialogue],
    task: Task,
    *,
    origin: Sequence[str] = (),
    meter: Sequence[Mapping[str, Any]] = (),
    dropped: Sequence[DroppedDialogue] = (),
    rejected: Sequence[Dialogue] = (),
    unpaid: int = 0,
    costs: str = "",
    seed: int = 0,
) -> str:
    """Describes a dataset in Markdown.

    Args:
        dialogues: The dataset, one dialogue at least.
        task: Its task.
        origin: Facts about where the dialogues come from, one sentence or two each.
        meter: `client.meter.summary()`: a flat record for each step.
        dropped: Dialogues that could not be finished.
        rejected: Dialogues that are kept apart; `source["rejected"]` says why.
        unpaid: Dialogues that the limit on cost left unfinished.
        costs: The cost beside its forecast, in a sentence.
        seed: Seed of the sample that is compared pair by pair.
    """
    sample = list(dialogues)
    if len(sample) > SAMPLE:
        chosen = sorted(random.Random(f"{seed}/quality").sample(range(len(sample)), SAMPLE))
        sample = [sample[i] for i in chosen]
    sections = [
        f"# {task.name}: {len(dialogues):,} dialogues",
        "",
        *(line for warning in warnings_of([*dialogues, *rejected]) for line in (warning, "")),
        *_origin(origin),
        *_personas(dialogues, task),
        *_behaviours(dialogues),
        *_outcomes(dialogues, task),
        *_lengths(dialogues),
        *_diversity(dialogues, sample),
        *_flaws(dialogues, task),
        *_planted(dialogues),
        *_critique(dialogues),
        *_agreement(dialogues),
        *_provenance(dialogues),
        *_rejected(dialogues, rejected),
        *_dropped([*dialogues, *rejected], dropped, unpaid),
        *_cost(meter, costs),
    ]
    return "\n".join(sections).rstrip() + "\n"


def warnings_of(dialogues: Sequence[Dialogue]) -> list[str]:
    """Sentences about what makes the rewards of these dialogues doubtful; often none."""
    return [
        f"**Warning: {each.first} and {each.second} disagree** about what the dialogues came to: "
        f"their ratings correlate at {each.pearson:.2f} (Pearson, {each.dialogues:,} dialogues), "
        f"and {LEAST_AGREEMENT:g} is the least to go by. Read some dialogues before learning "
        "from these rewards."
        for each in agreements(dialogues)
        if each.dialogues >= FEWEST_COMPARED
        and each.pearson is not None
        and each.pearson < LEAST_AGREEMENT
    ]


def _origin(facts: Sequence[str]) -> list[str]:
    return ["## Origin", "", *(f"- {fact}" for fact in facts), ""] if facts else []


def _personas(dialogues: Sequence[Dialogue], task: Task) -> list[str]:
    """Number and mean reward of the dialogues by axis and value."""
    values = {axis: list(known) for axis, known in task.persona_axes.items()}
    for dialogue in dialogues:
        for axis, value in dialogue.persona.items():
            if value not in values.setdefault(axis, []):
                values[axis].append(value)
    if not any(dialogue.persona for dialogue in dialogues):
        return []
    groups: dict[tuple[str, str], list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        for axis in values:
            groups[axis, dialogue.persona.get(axis, UNKNOWN)].append(dialogue)
    prior = _prior_shares(dialogues)
    rows = [
        (_cut(axis), _cut(value), *_share_and_reward(groups[axis, value], dialogues))
        + ((f"{prior[axis, value]:.1%}",) if prior else ())
        for axis, known in values.items()
        for value in [*known, *([UNKNOWN] if groups[axis, UNKNOWN] else [])]
    ]
    lines = _combinations(dialogues, task)
    difficult = [bool(d.source["difficult"]) for d in dialogues if "difficult" in d.source]
    if difficult:
        of_prior = f", {prior[DIFFICULT]:.1%} of the prior" if prior else ""
        share = sum(difficult) / len(difficult)
        lines.append(f"Difficult personas: {share:.1%} of dialogues{of_prior}.")
    table = _table(("axis", "value", *_SHARE_AND_REWARD, *(("prior",) if prior else ())), rows)
    text = [" ".join(lines), ""] if lines else []
    return ["## Personas", "", *text, *table, ""]


def _prior_shares(dialogues: Sequence[Dialogue]) -> Counter:
    """Share of each (axis, value), and of `DIFFICULT` personas, under the prior; empty without one.

    It is the prior of the personas that occur.
    """
    weights = importance_weights(dialogues)
    shares: Counter = Counter()
    for dialogue, weight in zip(dialogues, () if weights is None else weights, strict=False):
        for trait in dialogue.persona.items():
            shares[trait] += weight / len(dialogues)
        if dialogue.source.get("difficult"):
            shares[DIFFICULT] += weight / len(dialogues)
    return shares


def _combinations(dialogues: Sequence[Dialogue], task: Task) -> list[str]:
    """Coverage of the task's combinations; empty for personas that are not of its axes."""
    axes = set(task.persona_axes)
    if not axes or any(set(dialogue.persona) != axes for dialogue in dialogues):
        return []
    possible = math.prod(map(len, task.persona_axes.values()))
    seen = Counter(tuple(sorted(d.persona.items())) for d in dialogues)
    fewest = min(seen.values()) if len(seen) >= possible else 0
    return [
        f"{len(seen):,} of {possible:,} combinations occur, {fewest:,} to "
        f"{max(seen.values()):,} times each."
    ]


def _behaviours(dialogues: Sequence[Dialogue]) -> list[str]:
    """Number and mean reward of the dialogues by the agent's behaviour."""
    groups: dict[str, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        if behaviour := dialogue.source.get("behaviour"):
            groups[behaviour].append(dialogue)
    if not groups:
        return []
    rows = [(_cut(b), *_share_and_reward(groups[b], dialogues)) for b in sorted(groups)]
    return ["## Behaviours", "", *_table(("behaviour", *_SHARE_AND_REWARD), rows), ""]


_SHARE_AND_REWARD = ("dialogues", "share", "mean reward")


def _share_and_reward(
    group: Sequence[Dialogue], dialogues: Sequence[Dialogue]
) -> tuple[str, str, str]:
    rewards = [dialogue.total_reward for dialogue in group if dialogue.reward is not None]
    mean = f"{np.mean(rewards):.3f}" if rewards else ""
    return f"{len(group):,}", f"{len(group) / len(dialogues):.1%}", mean


def _outcomes(dialogues: Sequence[Dialogue], task: Task) -> list[str]:
    rewards = [d.reward for d in dialogues if d.reward is not None]
    if not rewards:
        return ["## Outcomes and rewards", "", "Nobody rated these dialogues.", ""]
    low, high = task.reward_range
    edges = np.linspace(low, high, 6)
    counts, _ = np.histogram(rewards, edges)
    successes = sum(reward >= task.success_reward for reward in rewards)
    rows = [
        (f"{a:.3g} to {b:.3g}", f"{count:,}", f"{count / len(rewards):.1%}")
        for a, b, count in zip(edges, edges[1:], counts, strict=False)
    ]
    rated = [d for d in dialogues if d.reward is not None]
    total = [d.total_reward for d in rated]
    text = (
        f"Successes (reward of {task.success_reward:g} or more): {successes / len(rewards):.1%}. "
        f"Mean return: {np.mean(total):.3f}."
    )
    if (weights := importance_weights(rated)) is not None:
        text += f" Weighted to the prior of the personas: {np.average(total, weights=weights):.3f}."
    lines = ["## Outcomes and rewards", "", text, ""]
    lines += [*_table(("reward", "dialogues", "share"), rows), ""]
    written_for = Counter(
        d.source["outcome"] for d in dialogues if d.source.get("outcome") is not None
    )
    if written_for:
        rows = [(f"{o:g}", f"{written_for[o]:,}") for o in sorted(written_for)]
        lines += [*_table(("written for outcome", "dialogues"), rows), ""]
    ended = Counter(d.source["ended_by"] for d in dialogues if d.source.get("ended_by"))
    if ended:
        ways = ", ".join(f"{who} {count:,}" for who, count in ended.most_common())
        lines += [f"Ended by: {ways}.", ""]
    return lines


def _lengths(dialogues: Sequence[Dialogue]) -> list[str]:
    numbers = {
        "turns": [len(d.turns) for d in dialogues],
        "agent turns": [len(d.agent_turns) for d in dialogues],
        "words a dialogue": [sum(len(spaced_words(t.text)) for t in d.turns) for d in dialogues],
        "words an agent turn": [
            len(spaced_words(t.text)) for d in dialogues for t in d.agent_turns
        ],
        "words a human turn": [
            len(spaced_words(t.text)) for d in dialogues for t in d.turns if t.speaker == "human"
        ],
    }
    rows = [
        (name, f"{np.mean(v):.3g}", *(f"{q:.3g}" for q in np.quantile(v, (0, 0.1, 0.5, 0.9, 1))))
        for name, v in numbers.items()
        if v
    ]
    header = ("", "mean", "least", "10 %", "median", "90 %", "most")
    return ["## Lengths", "", *_table(header, rows), ""]


def _diversity(dialogues: Sequence[Dialogue], sample: Sequence[Dialogue]) -> list[str]:
    texts = [words_of(d) for d in dialogues]
    exact = len(texts) - len({tuple(words) for words in texts})
    utterances = Counter(turn.text for d in dialogues for turn in d.agent_turns)
    rows = [(f"distinct-{n}", f"{distinct(texts, n):.3f}") for n in (1, 2, 3)]
    rows.append((f"self-BLEU-4 ({len(sample):,} dialogues)", f"{self_bleu_of(sample):.3f}"))
    rows.append(("dialogues that repeat another word for word", f"{exact:,}"))
    rows.append(("different agent utterances", f"{len(utterances):,} of {utterances.total():,}"))
    lines = ["## Diversity", "", *_table(("measure", "value"), rows), ""]
    pairs = nearest_pairs(sample)
    if pairs:
        shown = [
            (f"{score:.2f}", _opening(first), _opening(second)) for score, first, second in pairs
        ]
        lines += [
            f"Most alike among {len(sample):,} dialogues (Jaccard similarity of 5 characters in a "
            "row; 1 = the same):",
            "",
            *_table(("similarity", "dialogue", "dialogue"), shown),
            "",
        ]
    return lines


def self_bleu_of(dialogues: Sequence[Dialogue]) -> float:
    """`self_bleu` of dialogues."""
    return self_bleu([words_of(d) for d in dialogues])


def _flaws(dialogues: Sequence[Dialogue], task: Task) -> list[str]:
    """Flaws of the dialogues that an LLM wrote."""
    written = [d for d in dialogues if d.source.get("kind") in ("imagined", "critiqued")]
    if not written:
        return []
    each = [flaws(dialogue, task) for dialogue in written]
    counts = Counter(flaw for found in each for flaw in found)
    clean = sum(not found for found in each)
    checked = dict.fromkeys(FLAWS, len(written))
    checked[OTHER_LANGUAGE] = sum(checks_language(dialogue, task) for dialogue in written)
    rows = [_flaw_row(flaw, counts[flaw], checked[flaw], len(written)) for flaw in FLAWS]
    rows.append(_flaw_row("none of these", clean, len(written), len(written)))
    table = _table(("flaw, by the words alone", "dialogues", "share"), rows)
    return ["## Flaws", "", *table, ""]


def _flaw_row(flaw: str, found: int, checked: int, number: int) -> Row:
    if not checked:
        return flaw, "not checked", ""
    among = f" of {checked:,} checked" if checked < number else ""
    return flaw, f"{found:,}{among}", f"{found / checked:.1%}"


def _planted(dialogues: Sequence[Dialogue]) -> list[str]:
    """Flaws that were planted into the dialogues of a world."""
    left = Counter(d.source[PLANTED] for d in dialogues if PLANTED in d.source)
    mended = Counter(d.source[MENDED] for d in dialogues if MENDED in d.source)
    if not left and not mended:
        return []
    rows = [
        (kind, f"{left[kind] + mended[kind]:,}", f"{mended[kind]:,}", f"{left[kind]:,}")
        for kind in sorted(left | mended)
    ]
    table = _table(("planted flaw", "dialogues", "mended", "left"), rows)
    return ["## Planted flaws", "", *table, ""]


def _critique(dialogues: Sequence[Dialogue]) -> list[str]:
    counts = criterion_counts(dialogues)
    if not counts:
        return []
    rewritten = sum(bool((d.source.get("critique") or {}).get("rounds")) for d in dialogues)
    rows = [
        (_cut(name), f"{checked:,}", f"{changed / checked:.1%}", f"{failing / checked:.1%}")
        for name, (checked, changed, failing) in counts.items()
    ]
    text = f"{rewritten:,} of {len(dialogues):,} dialogues were rewritten ("
    text += f"{rewritten / len(dialogues):.1%})."
    header = ("criterion", "checked", "had it rewritten", "fails in the end")
    return ["## Critique", "", text, "", *_table(header, rows), ""]


def _agreement(dialogues: Sequence[Dialogue]) -> list[str]:
    pairs = agreements(dialogues)
    spreads = [_ratings(d).get("judge_spread") for d in dialogues]
    spreads = [spread for spread in spreads if spread is not None]
    if not pairs and not spreads:
        return []
    lines = ["## Agreement of the reward sources", ""]
    rows = [
        (
            f"{a.first}, {a.second}",
            f"{a.dialogues:,}",
            _number(a.pearson),
            _number(a.spearman),
            f"{a.mean_difference:.3f}",
        )
        for a in pairs
    ]
    header = ("sources", "dialogues", "Pearson", "Spearman", "mean difference")
    lines += [*_table(header, rows), ""] if rows else []
    if spreads:
        lines += [
            f"The judge's votes on one dialogue differ by {np.mean(spreads):.1%} of the scale on "
            "average.",
            "",
        ]
    return lines


def _provenance(dialogues: Sequence[Dialogue]) -> list[str]:
    rows = []
    for key, what in (("models", "model"), ("prompts", "prompt version")):
        counts = Counter(
            (step, name)
            for d in dialogues
            for step, name in (d.source.get(key) or {}).items()
            if name is not None
        )
        rows += [(what, step, _cut(name), f"{n:,}") for (step, name), n in sorted(counts.items())]
    if not rows:
        return []
    header = ("", "step", "name", "dialogues")
    return ["## Models and prompt versions", "", *_table(header, rows), ""]


def _rejected(dialogues: Sequence[Dialogue], rejected: Sequence[Dialogue]) -> list[str]:
    if not rejected:
        return []
    reasons = Counter(reason for d in rejected for reason in d.source.get("rejected", ()))
    rows = [(_cut(reason), f"{count:,}") for reason, count in reasons.most_common()]
    text = (
        f"{len(rejected):,} of {len(dialogues) + len(rejected):,} dialogues are in rejected.jsonl "
        "and are not learned from. The rest of this card is about the others."
    )
    table = _table(("fails a criterion, or has a flaw", "dialogues"), rows)
    return ["## Kept apart", "", text, "", *table, ""]


def _dropped(
    finished: Sequence[Dialogue], dropped: Sequence[DroppedDialogue], unpaid: int
) -> list[str]:
    if not dropped and not unpaid:
        return []
    reasons = Counter((each.step, each.reason) for each in dropped)
    rows = [(step, _cut(reason), f"{count:,}") for (step, reason), count in reasons.most_common(10)]
    number = len(finished) + len(dropped) + unpaid
    text = f"{len(dropped) + unpaid:,} of {number:,} could not be finished"
    text += f", {unpaid:,} of them at config.llm.max_cost." if unpaid else "."
    return [
        "## Dropped dialogues",
        "",
        text,
        "",
        *(_table(("step", "reason", "dialogues"), rows) if rows else ()),
        "",
    ]


def _cost(meter: Sequence[Mapping[str, Any]], costs: str) -> list[str]:
    if not meter:
        return []
    columns = list(
        dict.fromkeys(
            column for row in meter for column in row if not isinstance(row[column], Mapping)
        )
    )
    rows = [[_cell(row.get(column, "")) for column in columns] for row in meter]
    totals = [
        _cell(sum(row.get(c, 0) for row in meter)) if is_finite(meter[0].get(c)) else ""
        for c in columns
    ]
    totals[0] = "all"
    header = [column.replace("_", " ") for column in columns]
    text = [costs, ""] if costs else []
    return ["## Tokens and cost", "", *text, *_table(header, [*rows, totals]), ""]


def _ratings(dialogue: Dialogue) -> Mapping[str, Any]:
    return dialogue.source.get("rewards") or {}


def _opening(dialogue: Dialogue) -> str:
    return f"{dialogue.id}: {_cut(' / '.join(turn.text for turn in dialogue.turns))}"


def _table(header: Sequence[str], rows: Iterable[Row]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _cut(text: str) -> str:
    """Shortens a text to a table's cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


def _number(value: float | None) -> str:
    return "no variation" if value is None else f"{value:.2f}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
