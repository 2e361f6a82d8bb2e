"""The report of a study: tables in the terminal, `study.json`, and `study_report.html`.

The page is one file that needs no network, in the style of a run's report. Every text of a
participant or an agent is escaped by the template.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console

from experiments.files import write_atomically
from experiments.human_study.analysis import Results, Score, Test
from experiments.human_study.power import ENOUGH, Power
from experiments.human_study.questionnaire import Questionnaire
from experiments.human_study.records import Rating, Talk
from experiments.looks import Look, look_of
from experiments.report import tables as run_tables
from experiments.report.figures import style
from experiments.report.figures.style import Screen
from experiments.report.tables import Cell, ResultTable, Row, print_table
from experiments.report.wording import interval, number
from ilql_jax.methods import METHODS

HTML, JSON = "study_report.html", "study.json"
MOST_SHOWN = 3  # participants whose conversations stand side by side
_TEMPLATES = (Path(__file__).with_name("templates"), Path(run_tables.__file__).parent / "templates")


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that a report is about.

    Attributes:
        name: Name of the folder.
        task: Name of the task.
        questionnaire: Questions that were asked.
        agents: Their names.
        results: Results of the analysis.
        talks: All conversations.
        ratings: All ratings.
        simulated: True where nobody took part but humans of a world.
    """

    name: str
    task: str
    questionnaire: Questionnaire
    agents: Sequence[str]
    results: Results
    talks: Sequence[Talk]
    ratings: Sequence[Rating]
    simulated: bool = False


def write_report(study: Study, folder: Path, console: Console) -> list[Path]:
    """Prints the tables, and writes `study.json` and `study_report.html`, each whole or not."""
    for statement in statements(study):
        console.print(f"\n{statement}", markup=False, highlight=False)
    for table in result_tables(study):
        print_table(console, table)
    record = dataclasses.asdict(study.results)
    record |= {"task": study.task, "agents": list(study.agents), "simulated": study.simulated}
    write_atomically(folder / JSON, json.dumps(record, indent=2) + "\n")
    write_atomically(folder / HTML, render(study).encode("utf-8", errors="replace"))
    return [folder / JSON, folder / HTML]


# --- words --------------------------------------------------------------------------------------


def looks_of(agents: Sequence[str]) -> dict[str, Look]:
    """Look of each agent: of its method, where its name begins with one."""
    return {agent: dataclasses.replace(look_of(_method(agent)), title=agent) for agent in agents}


def _method(agent: str) -> str:
    """Method in the name of an agent, such as `ilql` of `runs/teaching:ilql:greedy`."""
    return next((part for part in agent.split(":") if part in METHODS), agent)


def statements(study: Study) -> list[str]:
    """The results in sentences: who is above whom, how surely, and over what."""
    results = study.results
    people = results.people
    if not people["counted"]:
        return ["Nobody has rated an agent yet."]
    ranked = _by_score(study)
    sentences = []
    tests = [test for test in results.tests if test.question == results.reward]
    if len(ranked) > 1:
        best = ranked[0]
        own = [_seen_from(test, best) for test in tests if best in (test.a, test.b)]
        above = [test for test in own if test.verdict == "above"]
        open_ones = [test for test in own if test.verdict != "above"]
        question = study.questionnaire.question(results.reward)
        value = _mean(results.scores[results.reward][best])
        text = f"{best} has the highest mean of “{question.text}”: {value}."
        if above:
            text += f" It is above {_listed([_versus(test) for test in above])}."
        if open_ones:
            text += f" It is not distinguishable from {_listed([_versus(t) for t in open_ones])}."
        sentences.append(text)
    if study.simulated:
        sentences.append("The participants were humans of the embedded world, not people.")
    sentences.append(
        f"{people['begun']} took part, {people['finished']} finished, {people['withdrawn']} "
        f"withdrew, {people['inattentive']} failed the attention check; the ratings of "
        f"{people['counted']} are counted."
    )
    return sentences


def _by_score(study: Study) -> list[str]:
    """The agents by mean of the question that ranks them, best first."""
    scores = study.results.scores[study.results.reward]
    known = [agent for agent in study.agents if scores[agent].mean is not None]
    return sorted(known, key=lambda agent: -scores[agent].mean)


def _seen_from(test: Test, agent: str) -> Test:
    if test.a == agent:
        return test
    turned = {"a": test.b, "b": test.a}
    for name in ("difference", "effect"):
        value = getattr(test, name)
        turned[name] = None if value is None else -value
    turned["preferred"] = None if test.preferred is None else 1 - test.preferred
    return dataclasses.replace(test, **turned)


def _versus(test: Test) -> str:
    if test.p_holm is None:
        return f"{test.b} (not tested)"
    p = "p_holm < 0.001" if test.p_holm < 0.001 else f"p_holm = {test.p_holm:.3f}"
    return f"{test.b} (difference {number(test.difference)}, {p})"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _mean(score: Score) -> str:
    bounds = None if score.low is None else (score.low, score.high)
    return f"{number(score.mean)} {interval(bounds)}".strip()


# --- tables -------------------------------------------------------------------------------------


def result_tables(study: Study) -> list[ResultTable]:
    """All tables of the report, those that have something to show."""
    found = [_scores(study), _tests(study), _ranking(study), _agreement(study), _conduct(study)]
    return [table for table in found if table.rows]


def _scores(study: Study) -> ResultTable:
    questions = study.questionnaire.questions
    rows = []
    ranked = _by_score(study)
    order = [*ranked, *(agent for agent in study.agents if agent not in ranked)]
    for agent in order:
        cells = [Cell(agent)]
        for question in questions:
            score = study.results.scores[question.name][agent]
            bounds = None if score.low is None else (score.low, score.high)
            cells.append(Cell(number(score.mean), interval(bounds)))
        rated = study.results.scores[study.results.reward][agent].participants
        rows.append(Row(agent, "method", (*cells, Cell(str(rated)))))
    headers = ("agent", *(question.name for question in questions), "participants")
    low, high = study.questionnaire.question(study.results.reward).scale
    note = (
        f"Mean ratings ({low} to {high} for “{study.results.reward}”); square brackets are 95 % "
        "bootstrap intervals over participants."
    )
    return ResultTable("scores", "Ratings", headers, tuple(rows), (note,))


def _tests(study: Study) -> ResultTable:
    rows = []
    verdicts = {"open": "not distinguishable", "untested": "not tested"}
    for test in study.results.tests:
        effect = "–" if test.effect is None else number(test.effect)
        preferred = "–" if test.preferred is None else f"{100 * test.preferred:.0f} %"
        cells = (
            f"{test.a} − {test.b}",
            test.question,
            number(test.difference),
            effect,
            preferred,
            number(test.p, 4),
            number(test.p_holm, 4),
            verdicts.get(test.verdict, test.verdict),
        )
        rows.append(Row(test.question, "test", tuple(map(Cell, cells))))
    headers = ("pair", "question", "difference", "d", "preferred", "p", "p_holm", "first is")
    note = (
        "Paired permutation tests over participants; p_holm is corrected for all tests of this "
        "table. d: mean of the paired differences over their standard deviation; preferred: share "
        "of participants who rated the first higher, ties half."
    )
    return ResultTable("tests", "Pairs of agents", headers, tuple(rows), (note,))


def _ranking(study: Study) -> ResultTable:
    ranking = study.results.ranking
    rows = [
        Row(agent, "method", (Cell(agent), Cell(number(value), interval((low, high)))))
        for agent, (value, low, high) in sorted(ranking.items(), key=lambda item: -item[1][0])
    ]
    note = (
        f"By Bradley and Terry's model of {study.results.rankings} rankings: the chance to be "
        "preferred to an average agent, with a 95 % bootstrap interval over participants."
    )
    return ResultTable("ranking", "Ranking", ("agent", "preferred"), tuple(rows), (note,))


def _agreement(study: Study) -> ResultTable:
    rows, results = [], study.results
    for name, found in results.agreement.items():
        if found.transcripts:
            cells = (name, number(found.alpha), number(found.with_talker), str(found.transcripts))
            rows.append(Row(name, "question", tuple(map(Cell, cells))))
    notes = ["Krippendorff's alpha, ordinal: 1 = all agree, 0 = as by chance."]
    headers = ("question", "raters", "with talker", "conversations")
    return ResultTable("agreement", "Agreement of raters", headers, tuple(rows), tuple(notes))


def _conduct(study: Study) -> ResultTable:
    counts = study.results.conversations
    names = list(next(iter(counts.values())))
    rows = [
        Row(agent, "method", (Cell(agent), *(Cell(str(each[name])) for name in names)))
        for agent, each in counts.items()
    ]
    notes = ["Failed: the agent crashed or hung. Too short: it ended before there was enough."]
    for name, found in study.results.against.items():
        if found.correlation is not None:
            notes.append(
                f"Ratings of “{study.results.reward}” and those of {name}, from the words alone: "
                f"Spearman's ρ {number(found.correlation)} {interval((found.low, found.high))} "
                f"over {found.conversations} conversations."
            )
    headers = ("agent", *names)
    return ResultTable("conduct", "Conversations", headers, tuple(rows), tuple(notes))


def print_power(power: Power, console: Console) -> None:
    """Says how many participants would show a difference."""
    rows = tuple(
        Row(str(size), "size", (Cell(str(size)), Cell(f"{100 * share:.0f} %")))
        for size, share in power.shares.items()
    )
    needed = (
        f"{power.needed} participants find it in {100 * ENOUGH:.0f} % of studies or more."
        if power.needed
        else f"More than {max(power.shares)} participants would be needed."
    )
    note = (
        f"Simulated: two of {power.agents} agents differ by {power.effect:g}; a participant's "
        f"rating of an agent has a standard deviation of {power.spread:g} (--spread). {needed}"
    )
    title = f"Studies that would find a difference of {power.effect:g}"
    print_table(console, ResultTable("power", title, ("participants", "found"), rows, (note,)))


# --- the page -----------------------------------------------------------------------------------


def render(study: Study) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    looks = looks_of(study.agents)
    colors = style.palette(looks)
    return environment.get_template("report_of_study.html.j2").render(
        study=study,
        colors=colors,
        css=style.css_names(looks),
        statements=statements(study),
        tables=result_tables(study),
        figures={
            name: Markup(style.to_svg(figure, colors, f"scores-{name}"))
            for name, figure in (
                ("wide", _figure(study, looks, style.WIDE)),
                ("narrow", _figure(study, looks, style.NARROW)),
            )
        },
        questions=study.questionnaire.questions,
        shown=side_by_side(study),
    )


def _figure(study: Study, looks: Mapping[str, Look], screen: Screen) -> Figure:
    """Means and intervals of all agents, a panel a question."""
    questions, agents = study.questionnaire.questions, list(study.agents)
    names = [style.lines(agent, screen.label_line) for agent in agents]
    with style.styled():
        height = 0.9 + style.row_height(names) * len(agents)
        panels = screen.panels(len(questions), 2, height, margin=0.2, sharey=True)
        for axis, question in zip(panels.all, questions, strict=True):
            for row, agent in enumerate(agents):
                score = study.results.scores[question.name][agent]
                look = looks[agent]
                if score.low is not None:
                    bounds = [score.low, score.high]
                    axis.plot(bounds, [row, row], color=look.color, linewidth=2.4, zorder=3)
                if score.mean is not None:
                    axis.plot(score.mean, row, look.marker, color=look.color, markersize=7)
            axis.set_xlim(question.scale[0] - 0.15, question.scale[1] + 0.15)
            axis.set_xticks(range(question.scale[0], question.scale[1] + 1))
            axis.set_title(style.lines(question.name, screen.title_line(2, labels=1.6)))
            axis.grid(axis="y", visible=False)
        panels.all[0].set_yticks(range(len(agents)), names)
        panels.all[0].set_ylim(len(agents) - 0.4, -0.6)
        for axis in panels.first:
            style.ink_labels(axis.get_yticklabels())
    return panels.figure


def side_by_side(study: Study) -> list[dict[str, Any]]:
    """Conversations of a few participants with all agents: the first, and where ratings differ.

    Returns:
        Why it is shown, the participant's number, and for each agent its name, messages and
        ratings, in the order of the agents.
    """
    own: dict[int, dict[str, int]] = {}
    talked = {talk.number: talk.participant for talk in study.talks}
    for rating in study.ratings:
        if rating.rater == talked[rating.talk]:
            own.setdefault(rating.talk, {})[rating.question] = rating.value
    asked = [question.name for question in study.questionnaire.questions]
    for talk, values in own.items():
        own[talk] = {name: values[name] for name in asked if name in values}
    people: dict[int, list[Talk]] = {}
    for talk in study.talks:
        if own.get(talk.number):
            people.setdefault(talk.participant, []).append(talk)
    whole = {number: talks for number, talks in people.items() if len(talks) == len(study.agents)}
    if not whole:
        return []

    def spread(person: int) -> int:
        values = [own[talk.number][study.results.reward] for talk in whole[person]]
        return max(values) - min(values)

    why = {min(whole): "the first who rated all agents"}
    why.setdefault(max(whole, key=spread), "whose ratings of the agents differ most")
    why.setdefault(min(whole, key=spread), "whose ratings of the agents differ least")
    return [
        {
            "why": reason,
            "participant": person,
            "talks": [
                {"agent": t.agent, "messages": t.messages, "ratings": own[t.number]}
                for t in sorted(whole[person], key=lambda t: list(study.agents).index(t.agent))
            ],
        }
        for person, reason in list(why.items())[:MOST_SHOWN]
    ]
