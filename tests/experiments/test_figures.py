"""Figures of a report: what is drawn, and that it is legible on wide and narrow screens."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import evaluations
import matplotlib
import pytest
from evaluations import conversation
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from experiments.evaluation.returns import Discount, returns_by_turn
from experiments.evaluation.summary import References
from experiments.hindsight_records import Hindsight, Round
from experiments.looks import look_of
from experiments.metrics import LoggingConfig, open_logger
from experiments.report.figures import conversations, drawn, hindsight, scores, style
from experiments.report.figures.heldout import heldout_auroc
from experiments.report.figures.training import learning_curves
from experiments.report.run import Trained, read_run
from imagination.dialogue import Dialogue, write_dialogues

DISCOUNT = Discount(0.9, by_token=False)


def returns_of(talks: list[Dialogue], discount: Discount = DISCOUNT) -> conversations.Returns:
    returns = returns_by_turn(talks, discount)
    return {talk.id: own for talk, own in zip(talks, returns, strict=True)}


def test_learning_curves_show_losses_and_survive_a_loss_that_is_not_finite():
    losses = [float("nan"), float("inf"), *(1.0 / step for step in range(2, 9))]
    steps = [{"step": s, "loss": loss, "q_mean": 1.0} for s, loss in enumerate(losses)]
    figure = learning_curves({("ilql", 0): steps}, {"ilql": look_of("ilql")})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss"]
    [line] = figure.axes[0].lines
    assert list(line.get_xdata()) == list(range(2, 9))
    assert learning_curves({("ilql", 0): steps[:2]}, {"ilql": look_of("ilql")}) is None


def test_learning_curves_show_the_score_first_where_it_was_measured():
    steps = [{"step": step, "loss": 2.0, "q_loss": 1.0} for step in range(0, 100, 10)]
    measured = [{"step": step, "validation/average": step / 50 - 1} for step in (0, 50, 90)]
    metrics = {("ilql", seed): [*steps, *measured] for seed in (0, 1)}
    figure = learning_curves(metrics, {"ilql": look_of("ilql")})
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in figure.axes]
    assert titles == ["mean reward, average population", "loss", "q loss"]
    *_, mean = figure.axes[0].lines
    assert list(zip(*mean.get_data(), strict=True)) == [(0, -1), (50, 0), (90, 0.8)]
    references = {"average": References(-1.0, 0.0, 1.0, -2.0)}
    figure = learning_curves(metrics, {"ilql": look_of("ilql")}, references=references)
    assert figure.axes[0].get_title(loc="left").startswith("normalized score,")
    *_, mean = figure.axes[0].lines
    assert list(mean.get_ydata()) == pytest.approx([0, 0.5, 0.9])
    assert mean.get_marker() == "o" and figure.axes[0].get_yscale() == "linear"


def test_what_was_measured_once_has_no_learning_curve():
    looks = {"ilql": look_of("ilql"), "bc": look_of("bc")}
    steps = [{"step": step, "loss": 2.0} for step in (0, 50)]
    once = {("bc", 0): [*steps, {"step": 50, "validation/average": 1.0}]}
    [axis] = learning_curves(once, looks).axes
    assert axis.get_title(loc="left") == "loss"
    assert learning_curves({("bc", 0): steps[:1], ("bc", 1): steps[:1]}, looks) is None
    twice = [{"step": step, "validation/average": 1.0} for step in (25, 50)]
    first, _ = learning_curves({**once, ("ilql", 0): twice}, looks).axes
    assert sorted(len(line.get_xdata()) for line in first.lines) == [1, 2]


def test_a_training_that_goes_on_begins_at_the_steps_of_the_one_before():
    steps = [{"step": step, "loss": 2.0, "validation/average": 1.0} for step in (1, 50, 100)]
    metrics = {("ilql", 0): steps, ("ilql_imagination1", 0): steps}
    looks = {name: look_of(name) for name, _ in metrics}
    figure = learning_curves(metrics, looks, steps_before={"ilql_imagination1": 100})
    for axis in figure.axes:
        lines = {line.get_color(): list(line.get_xdata()) for line in axis.lines}
        assert lines[looks["ilql"].color] == [1, 50, 100]
        assert lines[looks["ilql_imagination1"].color] == [101, 150, 200]


def test_an_auroc_without_an_interval_is_drawn_without_a_band():
    figure = heldout_auroc(evaluations.heldout((1.0, None)), {"ilql": look_of("ilql")})
    of_v, of_q = (axis.collections[0].get_paths() for axis in figure.axes)
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0] * 3
    assert not of_v and len(of_q) == 1


def test_scores_figure_has_a_mark_a_seed_and_the_references():
    looks = {name: look_of(name) for name in ("bc", "fbc", "ilql")}
    figure = scores.scores(evaluations.evaluation(), looks)
    axis = figure.axes[0]
    seeds = [line for line in axis.lines if line.get_marker() == "|"]
    assert len(seeds) == 3
    assert list(seeds[0].get_xdata()) == pytest.approx([0.775, 0.811, 0.846], abs=1e-3)
    assert {text.get_text() for text in axis.texts} == {
        *("optimum", "best\nbehaviour", "behaviour", "uniform")
    }


def test_values_are_split_at_the_bar_for_success_and_both_outcomes_are_in_the_legend():
    rewards = {"ilql": 5.0, "mc": 2.0}  # all succeed, all fail
    talks = [conversation(name, e, reward) for name, reward in rewards.items() for e in range(5)]
    looks = {name: look_of(name) for name in rewards}
    figure = conversations.values_along(talks, 4.0, ["average"], looks)
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["success (≥ 4)", "failure (< 4)"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 1, 1, 1]
    narrow = conversations.values_along(talks, 4.0, ["average"], looks, style.NARROW)
    tops = [axis.get_position().y1 for axis in narrow.axes]
    assert tops == sorted(set(tops), reverse=True) and narrow.get_figwidth() == style.NARROW.width
    assert conversations.values_along(talks, 4.0, ["difficult"], looks) is None


def test_what_has_too_little_to_show_gets_no_panel():
    talks = [conversation("ilql", episode, 5.0) for episode in range(12)]
    short = [dataclasses.replace(each, turns=each.turns[:1]) for each in talks]
    short = [dataclasses.replace(d, source={**d.source, "method": "mc"}) for d in short]
    looks = {name: look_of(name) for name in ("ilql", "mc")}
    figure = conversations.values_along([*talks, *short], 4.0, ["average"], looks)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["ILQL\nV before the utterance", "ILQL\nQ of the utterance"]
    assert conversations.q_calibration(short, returns_of(short), ["average"], looks) is None
    assert conversations.q_calibration(talks, {}, ["average"], looks) is None


def test_both_populations_are_drawn():
    """The difficult one as an outline, as panels of its own, and as another kind of line."""
    talks = [
        dataclasses.replace(
            conversation("ilql", episode, reward, where),
            persona={"level": levels[episode % len(levels)]},
        )
        for where, reward, levels in (
            ("average", 5.0, ("novice", "expert")),
            ("difficult", 4.5, ("lost",)),
        )
        for episode in range(12)
    ]
    looks, both = {"ilql": look_of("ilql")}, ["average", "difficult"]
    rewards = conversations.reward_distributions(talks, (), both, looks)
    [axis] = rewards.axes
    assert axis.get_ylabel() == "ILQL\naverage 5.00, n = 12\ndifficult 4.50, n = 12"
    assert [line.get_xdata()[0] for line in axis.lines] == [5.0, 4.5]
    assert len({line.get_linestyle() for line in axis.lines}) == 2
    [legend] = rewards.legends
    assert [text.get_text() for text in legend.get_texts()] == both
    personas = conversations.persona_scores(talks, both, looks)
    shown = [
        (axis.get_title(loc="left"), [each.get_text() for each in axis.get_yticklabels()])
        for axis in personas.axes
    ]
    assert shown == [
        ("level, average", ["expert  (6)", "novice  (6)"]),
        ("level, difficult", ["lost  (12)"]),
    ]
    along = conversations.values_along(talks, 4.0, both, looks)
    [legend] = along.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["success (≥ 4), average", "success (≥ 4), difficult"]
    assert {line.get_linestyle() for line in along.axes[0].lines} == {"-", "--"}
    calibration = conversations.q_calibration(talks, returns_of(talks), both, looks)
    titles = [axis.get_title(loc="left") for axis in calibration.axes]
    assert titles == [
        f"Q at the {turn} agent turn, {where}" for where in both for turn in ("first", "last")
    ]


def test_calibration_is_binned_within_trainings_and_tells_how_well_q_foretells():
    """One training hopes for 2 more than the other; both rank people rightly."""
    talks = [
        conversation("ilql", episode, reward, seed=seed)
        for seed in (0, 1)
        for episode in range(20)
        for reward in (1.0 + 0.1 * episode,)
    ]
    hopeful = [
        dataclasses.replace(
            talk,
            turns=tuple(
                dataclasses.replace(t, annotations={**t.annotations, "q": t.annotations["q"] + 2})
                if "q" in t.annotations
                else t
                for t in talk.turns
            ),
        )
        if talk.source["seed"]
        else talk
        for talk in talks
    ]
    looks, undiscounted = {"ilql": look_of("ilql")}, Discount(1.0, by_token=False)
    returns = returns_of(hopeful, undiscounted)
    first, last = conversations.q_calibration(hopeful, returns, ["average"], looks).axes
    [text] = first.get_legend().get_texts()
    assert text.get_text() == "ρ 1.00, spread 0.58, error 0.49"  # -0.6 + 0.01 · 9.5 + 2 / 2
    [container] = last.containers
    x, y = container[0].get_data()
    assert len(x) == 4  # bins of five conversations a training, of both trainings
    assert y == pytest.approx([1.2, 1.7, 2.2, 2.7])
    assert x - y == pytest.approx([1.02, 1.07, 1.12, 1.17])


def test_values_that_are_right_lie_on_the_diagonal():
    """Perfect values of discounted returns, that hope for less the farther the end is."""
    talks = []
    for episode in range(20):
        talk = conversation("ilql", episode, 1.0 + 0.1 * episode)
        notes = iter([0.81 * talk.reward, 0.9 * talk.reward, talk.reward])
        turns = (
            dataclasses.replace(t, annotations={"q": next(notes)}) if t.speaker == "agent" else t
            for t in talk.turns
        )
        talks.append(dataclasses.replace(talk, turns=tuple(turns)))
    looks = {"ilql": look_of("ilql")}
    figure = conversations.q_calibration(talks, returns_of(talks), ["average"], looks)
    for axis, spread in zip(figure.axes, ("0.47", "0.58"), strict=True):
        [text] = axis.get_legend().get_texts()
        assert text.get_text() == f"ρ 1.00, spread {spread}, error 0.00"
        x, y = axis.containers[0][0].get_data()
        assert x == pytest.approx(y)
    figure = conversations.q_calibration(
        talks, returns_of(talks, Discount(1.0, False)), ["average"], looks
    )
    [text] = figure.axes[0].get_legend().get_texts()
    assert text.get_text().endswith("error -0.37")  # 0.19 · 1.95


@pytest.fixture(scope="module")
def long_names(tmp_path_factory) -> Path:
    """A run whose methods, personas and populations have the longest names that ours have."""
    names = ("ilql_hindsight12", "ilql_imagination2", "mc", "fbc")
    content = evaluations.population(dict.fromkeys(names, 4.0), [])
    content = dataclasses.replace(
        content,
        references=dataclasses.replace(evaluations.REFERENCES, best_behaviour=4.69, uniform=1.89),
    )
    folder = tmp_path_factory.mktemp("long")
    evaluations.evaluation(content, content).write(folder / "evaluation.json")
    evaluations.heldout().write(folder / "heldout.json")
    both = ("average", "difficult")
    longest = {"temperament": ("dislikes_first_offer", "overstates"), "level": ("novice", "expert")}
    talks = [
        dataclasses.replace(
            conversation(name, episode, 3.9 + 0.03 * (episode % 7) - seed, where, seed),
            persona={axis: values[episode % 2] for axis, values in longest.items()},
        )
        for name in names
        for where in both
        for seed in range(2)
        for episode in range(24)
    ]
    write_dialogues(folder / "conversations.jsonl", talks)
    write_dialogues(folder / "dialogues.jsonl", [talks[0]])
    for name in names:
        with open_logger(LoggingConfig(backends=()), folder / f"metrics/{name}-seed0.jsonl") as log:
            log.resume(0)
            for step in range(0, 14000, 2000):
                log.log(step, {"loss": 3 / (1 + step), "policy_loss": 1e-4 * (step + 1)})
                log.log(step, {"validation/average": step / 14000})
    return folder


def words_of(figure: Figure, monkeypatch) -> list[tuple[str, Bbox]]:
    """The words that are drawn, with their boxes: axes also hold ticks that are not."""
    found: list[tuple[str, Bbox]] = []

    def draw(text: Text, canvas) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), text.get_window_extent(canvas)))

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        figure.draw_without_rendering()
    return found


def test_no_words_of_a_figure_leave_it_or_lie_over_others(long_names, monkeypatch):
    seen = set()
    trained = {name: Trained(DISCOUNT) for name in ("ilql_hindsight12", "mc")}
    trained["ilql_imagination2"] = Trained(DISCOUNT, steps_before=26000)
    for each in drawn.draw(read_run(long_names, trained)):
        seen.add(each.name)
        for figure in (each.figure, each.narrow):
            words = words_of(figure, monkeypatch)
            assert words, each.name
            width, height = figure.bbox.size
            out = [
                text
                for text, box in words
                if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height
            ]
            over = [
                (text, other)
                for (text, box), (other, its) in itertools.combinations(words, 2)
                if box.overlaps(its)
            ]
            assert (out, over) == ([], []), each.name
    assert seen == set(drawn.CAPTIONS) - {"hindsight"}


def test_a_legend_of_an_axis_covers_no_data():
    original = [conversation("ilql", episode, episode / 9) for episode in range(9)]
    parents = {each.id: each for each in original}
    records = Hindsight(
        [Round(number, parents, original, ()) for number in (1, 2)], {"ratings": ()}
    )
    for screen in (style.WIDE, style.NARROW):
        figure = hindsight.hindsight(records, screen)
        figure.draw_without_rendering()
        [axis] = [axis for axis in figure.axes if axis.get_legend()]
        assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    looks = {name: look_of(name) for name in ("bc", "fbc", "ilql")}
    assert style.to_png(scores.scores(evaluations.evaluation(), looks)).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
