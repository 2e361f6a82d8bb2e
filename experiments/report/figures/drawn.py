"""The figures of a run's report: which there are, and how to read them.

The files beside this one draw them, each file its subject; `style.py` has what they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from matplotlib.figure import Figure

from experiments.report import tables, wording
from experiments.report.figures import (
    conversations,
    heldout,
    hindsight,
    scores,
    style,
    training,
)
from experiments.report.figures.style import Screen
from experiments.report.run import Run


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure for wide screens and for narrow ones, its file name, title and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure
    narrow: Figure


# name -> title and how to read it
CAPTIONS = {
    "scores": (
        "Scores",
        "Marks are means, lines their 95 % intervals; further right is better. Small ticks below "
        "a mark are single training seeds. {references}",
    ),
    "reward_distributions": (
        "Rewards of single conversations",
        "Share of the conversations{populations} that ended with each reward, and their means. "
        "{outlined}The grey row, if there is one, is what the methods learned from: an "
        "agent that only imitates looks like it, one that improves on its data stands to the right "
        "of it.",
    ),
    "persona_scores": (
        "Score by persona",
        "Mean reward (line: 95 % interval) by what is hidden about the human{populations}. In "
        "brackets: conversations a method. An agent that finds out who it talks with scores alike "
        "on every line; one that treats all alike is good with some and bad with others.",
    ),
    "values_along": (
        "Values along a conversation",
        "What the agent expected at each of its turns{populations}: V before it spoke, Q of what "
        "it said. Conversations are split at the task's bar for success; bands are 95 % intervals "
        "of the mean. The earlier the two colours part, the earlier the agent can tell how it will "
        "end. Only long conversations reach the right side, so a line may bend there for that "
        "reason alone.",
    ),
    "q_calibration": (
        "Calibration of Q",
        "Conversations{populations}, in groups of equal size by predicted Q, made within each "
        "training, against the mean return from that turn on (line: 95 % interval). {discounts} On "
        "the dashed diagonal a prediction means what it says. Above it the agent expected less "
        "than it then "
        "earned: Q is learned from dialogues that others wrote, few of which go on as well as the "
        "agent does, and the training keeps values low where the data show little. Below it the "
        "agent hoped for more than it earned: values are those of the best that the data show, "
        "which the agent does not always reach, and of several candidates the one that is "
        "overrated most tends to be said. Over each panel: ρ, the rank correlation of Q with the "
        "return within trainings; the spread (standard deviation) of the returns; the error, mean "
        "of Q minus the return. At the first turn the agent knows nothing of the human yet, and "
        "one that serves all alike leaves little spread to foretell: ρ near 0 is then no fault.",
    ),
    "heldout_auroc": (
        "How early the values foretell the outcome",
        "AUROC on held-out dialogues after a share of the dialogue was seen, with 95 % bands. "
        "0.5 (dashed) is guessing; a band that touches it is no evidence that the values help. "
        "{success}",
    ),
    "heldout_calibration": (
        "Calibration on held-out dialogues",
        "Dialogues grouped by predicted return, against the observed one, from that utterance on; "
        "larger marks hold more dialogues, lines are 95 % intervals. {heldout_discounts} On the "
        "diagonal a prediction means what it says.",
    ),
    "hindsight": (
        "Hindsight",
        "What the reward model says of original dialogues from their words, against the "
        "reward that is known; larger marks are more dialogues, on the dashed diagonal the two "
        "agree. And the share of dialogues that have at most a reward; the lower a line lies, "
        "the better its dialogues ended.",
    ),
    "learning_curves": (
        "Learning curves",
        "Thick lines are means over seeds, thin ones single seeds. First the score of the agent "
        "at each checkpoint, with the first of its ways to choose words, over a few conversations "
        "beside those that results are of (`config.evaluation.curve_episodes`); higher is better. "
        "{going_on}"
        "Losses: the scale is logarithmic where a loss falls to a tenth, else it leaves out the "
        "wildest 2 % of steps. Methods minimise "
        "different sums, so compare a line in “loss” with itself, not with another method's.",
    ),
}
_OF_POPULATIONS = {
    False: {"populations": " on the {population} population", "outlined": ""},
    True: {
        "populations": " on each population",
        "outlined": "Filled, with a solid line at the mean: the {population} population; outlined, "
        "with a broken one: {others}. ",
    },
}
_GOING_ON = "A training that goes on from another one begins at the steps that this has taken. "
_REFERENCES = (
    "Dashed lines: the behaviours in the data and an agent that acts at random; the solid line is "
    "the exact optimum, which no agent can pass on average."
)


def draw(run: Run) -> Iterator[Drawn]:
    """Draws the figures for which the run has data."""
    words = {
        "discounts": wording.discounts_note(run.discounts, run.looks),
        "going_on": _GOING_ON if any(run.steps_before.values()) else "",
    }
    if run.evaluation is not None:
        populations = run.evaluation.population
        has_references = any(each.references is not None for each in populations.values())
        first, *others = populations
        for name, text in _OF_POPULATIONS[bool(others)].items():
            words[name] = text.format(population=first, others=", ".join(others))
        words["references"] = _REFERENCES if has_references else ""
    if run.heldout is not None:
        words["success"] = tables.success_note(run.heldout)
        discounts = wording.discounts_note(run.heldout.discounts, run.looks)
        words["heldout_discounts"] = discounts
    both = zip(_figures(run, style.WIDE), _figures(run, style.NARROW), strict=True)
    for (name, figure), (_, narrow) in both:
        if figure is not None and narrow is not None:
            title, caption = CAPTIONS[name]
            yield Drawn(name, title, caption.format(**words).strip(), figure, narrow)


def _figures(run: Run, screen: Screen) -> Iterator[tuple[str, Figure | None]]:
    """Name and figure, or None where the run has no data for it, in the order of the page."""
    looks, talks = run.looks, run.conversations
    if run.evaluation is not None:
        where, bar = tuple(run.evaluation.population), run.evaluation.success_reward
        yield "scores", scores.scores(run.evaluation, looks, screen)
        rewards = conversations.reward_distributions(talks, run.dialogues, where, looks, screen)
        yield "reward_distributions", rewards
        yield "persona_scores", conversations.persona_scores(talks, where, looks, screen)
        yield "values_along", conversations.values_along(talks, bar, where, looks, screen)
        calibration = conversations.q_calibration(talks, run.returns, where, looks, screen)
        yield "q_calibration", calibration
    if run.heldout is not None:
        yield "heldout_auroc", heldout.heldout_auroc(run.heldout, looks, screen)
        yield "heldout_calibration", heldout.heldout_calibration(run.heldout, looks, screen)
    yield "hindsight", hindsight.hindsight(run.hindsight, screen)
    references = {}
    if run.evaluation is not None:
        found = run.evaluation.population.items()
        references = {name: each.references for name, each in found if each.references}
    curves = training.learning_curves(run.metrics, looks, screen, references, run.steps_before)
    yield "learning_curves", curves
