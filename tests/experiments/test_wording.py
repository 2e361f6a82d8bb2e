"""Sentences about results: wins, losses, and what is not known."""

from __future__ import annotations

import dataclasses

import evaluations
import pytest
from evaluations import comparison, population

from experiments.evaluation.summary import HumanPlayer, PlayedHuman, PromptedAgent
from experiments.report import wording

REWARDS = {"bc": 1.7, "fbc": 3.38, "ilql": 4.17}


def test_a_win_names_the_next_best_and_its_evidence():
    verdict, sentence = wording.headline(population(), "average")
    assert verdict == "above"
    assert sentence == (
        "ILQL beats BC and filtered BC on the average population: normalized score 0.81 [0.76, "
        "0.86] against 0.53 [0.48, 0.58] for filtered BC, the next best (difference 0.28, "
        "p_holm = 0.002 over other humans)."
    )


def test_a_loss_reads_as_a_loss():
    losing = population({**REWARDS, "ilql": 2.77}, [comparison("fbc", "ilql", 0.61, 0.003)])
    verdict, sentence = wording.headline(losing, "average")
    assert verdict == "below"
    assert sentence.startswith("ILQL loses to filtered BC on the average population")
    assert "difference -0.22, p_holm = 0.003 over other humans" in sentence
    assert wording.describe_tests(losing).startswith("ILQL is below filtered BC by 0.22")


def test_a_difference_without_significance_is_no_win():
    tests = [comparison("ilql", "fbc", 0.79, 0.3), comparison("ilql", "bc", 2.47, 0.001)]
    verdict, sentence = wording.headline(population(REWARDS, tests), "average")
    assert verdict == "open" and "ILQL is not distinguishable from filtered BC" in sentence
    assert sentence.endswith("over other humans); it beats BC.")
    verdict, sentence = wording.headline(population(REWARDS, []), "average")
    assert verdict == "untested" and "was not tested against filtered BC" in sentence


@pytest.mark.parametrize(
    ("p_holm", "p_training", "verdict", "words"),
    [
        (0.01, 0.47, "open", "is not distinguishable from filtered BC"),
        (0.01, 0.04, "below", "loses to filtered BC"),
        (0.01, None, "below", "loses to filtered BC"),  # one training
        (0.30, 0.04, "open", "is not distinguishable from filtered BC"),
    ],
)
def test_ahead_and_behind_need_the_test_over_trainings_where_there_is_one(
    p_holm, p_training, verdict, words
):
    losing = population(
        {"fbc": 3.38, "ilql": 3.35}, [comparison("fbc", "ilql", 0.03, p_holm, p_training)]
    )
    found, sentence = wording.headline(losing, "average")
    assert found == verdict and f"ILQL {words} on the average population" in sentence
    over = f", p_training_holm = {p_training:.3f} over trainings" if p_training else ""
    assert f"p_holm = {p_holm:.3f} over other humans{over})." in sentence
    winning = population(
        {"fbc": 3.35, "ilql": 3.38}, [comparison("ilql", "fbc", 0.03, p_holm, p_training)]
    )
    assert wording.headline(winning, "average")[0] == {"below": "above"}.get(verdict, verdict)


def test_a_significantly_better_method_is_named_even_if_another_scores_higher():
    tests = [comparison("ilql", "mc", -0.09, 0.4), comparison("ilql", "fbc", -0.1, 0.01)]
    content = population({**REWARDS, "mc": 4.4}, tests)
    assert "loses to filtered BC" in wording.headline(content, "average")[1]


def test_a_win_over_other_methods_comes_before_what_is_level_among_its_own_rounds():
    """And what is level is told, whoever it is; rounds that are surely better come first."""
    rounds = {f"ilql_hindsight{number}": 4.1 + number / 20 for number in (1, 2)}
    focus = "ilql_hindsight2"
    tests = [
        comparison(focus, "ilql_hindsight1", 0.05, 0.4),
        comparison(focus, "ilql", 0.1, 0.01),
        comparison(focus, "fbc", 0.8, 0.001),
        comparison(focus, "bc", 2.5, 0.2),
    ]
    content = population({**REWARDS, **rounds}, tests)
    verdict, sentence = wording.headline(content, "average")
    named = [content.methods[name].look.title for name in (focus, "ilql_hindsight1")]
    # ILQL without rounds is beaten, so it is a rival like others.
    assert verdict == "above" and sentence.startswith(f"{named[0]} beats ILQL on the average")
    level = f"it beats filtered BC, too; not distinguishable from {named[1]} and BC."
    assert sentence.endswith(level)
    worse = [comparison(focus, "ilql_hindsight1", -0.05, 0.01), *tests[1:]]
    verdict, sentence = wording.headline(population({**REWARDS, **rounds}, worse), "average")
    assert verdict == "below" and sentence.startswith(f"{named[0]} loses to {named[1]} on")


@pytest.mark.parametrize(
    ("difference", "p_holm", "verdict"),
    [
        (0.3, 0.0499, "above"),
        (-0.3, 0.0499, "below"),
        (0.3, 0.05, "open"),
        (0.0, 0.01, "open"),
        (None, None, "untested"),
    ],
)
def test_verdicts_turn_at_the_threshold(difference, p_holm, verdict):
    assert wording.verdict(comparison("a", "b", difference, p_holm)) == verdict


def test_tests_are_told_from_the_focus_methods_side_with_their_scale():
    assert wording.describe_tests(population()) == (
        "ILQL is above filtered BC by 0.28 (p_holm = 0.002) and BC by 0.88 (p_holm < 0.001). "
        "BC is below filtered BC by 0.60 (p_holm < 0.001). Differences are in normalized score; "
        "p_holm speaks of other humans, with the agents as trained."
    )


def test_without_an_optimum_differences_are_rewards():
    methods = {
        name: dataclasses.replace(scores, normalized=None, normalized_ci95=None)
        for name, scores in population().methods.items()
    }
    content = dataclasses.replace(population(), references=None, methods=methods)
    assert "difference 0.79, p_holm = 0.002" in wording.headline(content, "average")[1]
    assert "Differences are in mean reward;" in wording.describe_tests(content)


def test_many_beaten_methods_are_counted():
    names = [f"m{i}" for i in range(7)]
    tests = [comparison("ilql", name, 1.0, 0.001) for name in names]
    content = population({"ilql": 4.0, **dict.fromkeys(names, 3.0)}, tests)
    assert wording.headline(content, "average")[1].startswith("ILQL beats 7 other methods on")


def test_the_focus_is_fixed_beforehand_and_not_who_won():
    names = {"ilql", "ilql_hindsight1", "ilql_hindsight2"}
    assert wording.main_method(names) == "ilql_hindsight2"
    rounds = {f"ilql_imagination{number}" for number in (1, 2, 10)}
    assert wording.main_method({"ilql", "bc", "bc_imagination11", *rounds}) == "ilql_imagination10"
    assert wording.main_method({*names, *rounds}) == "ilql_hindsight2"
    assert wording.main_method({"bc", "mc"}) is None
    assert wording.focus_method(population({"ilql": 1.0, "bc": 2.0}, [])) == "ilql"
    assert wording.focus_method(population({"my_method": 1.0, "bc": 2.0}, [])) == "bc"


def test_an_advantage_of_these_trainings_only_is_said_to_be_one():
    tests = [
        comparison("fbc", "ilql", -0.79, 0.002, 0.21),
        comparison("ilql", "bc", 2.47, 0.0004, 0.014),
    ]
    assert wording.training_note(population(REWARDS, tests)) == (
        "Over training runs ILQL is not distinguishable from filtered BC (p_training_holm = 0.210) "
        "and differs from BC (p_training_holm = 0.014)."
    )
    assert wording.training_note(population()) == ""


def test_the_number_of_seeds_says_what_an_interval_covers():
    def with_seeds(*counts: int):
        methods = {f"m{n}": evaluations.scores("bc", 2.0, seeds=n) for n in counts}
        return dataclasses.replace(population(), methods=methods)

    one = wording.seeds_note(with_seeds(1))
    assert one == wording.seeds_note(with_seeds(1, 0))
    assert one.startswith("One training of each method: ") and "not how the methods would" in one
    both = "3 trainings of each method, all on the same dialogues: intervals cover"
    assert wording.seeds_note(with_seeds(3)).startswith(both)
    assert wording.seeds_note(with_seeds(2, 3)).startswith("2 to 3 trainings")
    assert wording.seeds_note(with_seeds(0)) == ""


@pytest.mark.parametrize(
    ("best", "relation"), [(2.0, "lies above"), (3.3, "contains"), (4.0, "lies below")]
)
def test_the_best_behaviour_is_compared_with_the_interval(best, relation):
    references = dataclasses.replace(evaluations.REFERENCES, best_behaviour=best)
    content = dataclasses.replace(population({"ilql": 3.3}, []), references=references)
    assert f"interval of ILQL {relation} the score" in wording.against_data(content)
    assert wording.against_data(dataclasses.replace(content, references=None)) == ""


def prompted(episodes: int, **changes):
    agent = PromptedAgent("m-1", "plain/2", 2.0, 0.5, None, None, None)
    agent = dataclasses.replace(agent, **changes)
    return evaluations.scores("plain", 2.0, seeds=0, episodes=episodes, prompted_agent=agent)


def test_failures_are_told():
    methods = {
        "ilql": evaluations.scores("ilql", 2.0, seeds=2, episodes=4, unrated=1, broken_off=2),
        "plain": dataclasses.replace(prompted(3), broken_off=2),
    }
    note = wording.missing_note(dataclasses.replace(population(), methods=methods))
    assert "ILQL: 1 of 8 conversations have no rating and are left out of means and tests." in note
    assert "ILQL: in 2 of 8 conversations the agent gave no answer" in note
    assert "Plain prompt: in 2 of 3 conversations the agent gave no answer" in note
    assert "Plain prompt had the first 3 of 4 episodes; tests pair these." in note
    assert wording.missing_note(population()) == ""


def test_calls_and_their_models_are_explained():
    def note(**changes) -> str:
        methods = {"bc": evaluations.scores("bc", 1.0), "plain": prompted(40, **changes)}
        return wording.calls_note(dataclasses.replace(population(), methods=methods))

    assert note() == (
        "Calls and cost are the agent's, a conversation: plain prompt is m-1 (plain/2)."
    )
    assert note(setup_calls=1, setup_cost=0.25).endswith("(plain/2; beforehand 1 call, $0.2500).")
    assert note(cost=None).endswith("No prices are set, so the cost is not known.")
    assert wording.calls_note(population()) == ""


def test_the_player_of_the_human_is_named_with_its_slips():
    human = HumanPlayer("m-2", "human/3", "rate/1", "")
    methods = {
        name: evaluations.scores(name, 2.0, seeds=n, episodes=10, played_human=played)
        for name, n, played in (
            ("bc", 3, PlayedHuman(4.0, 0.2, {"reveals_persona": 2})),
            ("ilql", 1, PlayedHuman(8.0, 0.6, {"reveals_persona": 1, "speaks_for_agent": 5})),
        )
    }
    content = dataclasses.replace(population(), methods=methods)
    note = wording.human_note(content, human)
    assert "played by m-2 (prompts human/3 and rate/1)" in note
    assert "5.0 calls ($0.3000) a conversation. Its slips in 40 conversations" in note
    assert (
        "speaks for the agent 5, gives its persona away at once 3, goes on after the end 0" in note
    )
    assert wording.human_note(population(), None) == ""


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 2, "–"), (1.005, 1, "1.0"), (-0.001, 2, "0.00"), (-0.006, 2, "-0.01"), (87.4, 0, "87")],
)
def test_numbers_as_text(value, digits, text):
    assert wording.number(value, digits) == text


def test_costs_intervals_and_shares_as_text():
    assert [wording.dollars(x) for x in (None, 0.0123, 12.345)] == ["–", "$0.0123", "$12.35"]
    assert wording.interval(None) == "" and wording.interval((-0.1, 2.0), 1) == "[-0.1, 2.0]"
    assert [wording.percent(x) for x in (None, 0.25)] == ["–", "25 %"]
