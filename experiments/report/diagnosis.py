"""Tables of the diagnosis: where the score is lost, by candidates and by choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console

from experiments.evaluation.diagnosis import Diagnosis, Loss
from experiments.evaluation.summary import Bounds, Evaluation, Population
from experiments.looks import ordered
from experiments.report import wording
from experiments.report.tables import Cell, ResultTable, Row, print_table
from experiments.report.wording import interval, number

_WORTH_TELLING = 0.05  # of the normalized score


def diagnosis_tables(diagnosis: Diagnosis, evaluation: Evaluation) -> list[ResultTable]:
    """Loss of each method from the optimum, a table for each population, and by persona."""
    made = []
    for name, losses in diagnosis.population.items():
        if name in evaluation.population:
            population = evaluation.population[name]
            made.append(_diagnosis_table(name, losses, population, evaluation.task))
            made.append(_decisions_table(name, losses, population, evaluation.task))
            made.append(_persona_table(name, losses, population, evaluation.task))
    return [table for table in made if table.rows]


def _diagnosis_table(
    name: str, losses: Mapping[str, Loss], population: Population, task: str
) -> ResultTable:
    references, methods = population.references, population.methods
    scaled, cell = _scaled(population), _loss_cell(population)
    unit = wording.unit_of(population)
    rows = []
    totals = {key: loss.candidates + loss.choice for key, loss in losses.items() if key in methods}
    for key in sorted(ordered(totals), key=totals.__getitem__):  # the best first, as with scores
        loss, total = losses[key], totals[key]
        cells = (
            Cell(methods[key].look.title),
            Cell(number(scaled(total))),
            cell(loss.candidates, loss.candidates_ci95),
            cell(loss.choice, loss.choice_ci95),
            cell(loss.a_turn, loss.a_turn_ci95, 3),
            Cell(str(loss.episodes)),
        )
        rows.append(Row(key, "method", cells))
    notes = [
        f"By the exact values of the world, in {unit}: by candidates, where nothing that was "
        "considered is as good as the best act; by choice, where something better was "
        "considered than was said. An agent that considers one utterance has no choice. What "
        "is lost and the score add up to 1, but for chance: losses are expectations, and of fewer "
        "conversations than the score."
    ]
    if totals:
        best = rows[0].key
        lost = references.normalized_difference(totals[best])
        if losses[best].choice > 0 and lost is not None and lost > _WORTH_TELLING:
            notes.append(_what_may_help(methods[best].look.title, losses[best]))
    return ResultTable(
        f"{name}_lost",
        f"{task}, {name} population: what is lost from the optimum",
        ("method", "lost", "by candidates", "by choice", "a turn", "conversations"),
        tuple(rows),
        tuple(notes),
    )


def _scaled(population: Population) -> Callable[[float], float | None]:
    """A loss in the unit of the population's scores."""
    if wording.unit_of(population) == wording.NORMALIZED:
        return population.references.normalized_difference
    return lambda loss: loss


def _loss_cell(population: Population) -> Callable[..., Cell]:
    """A loss with its interval in the unit of the population's scores."""
    scaled = _scaled(population)

    def cell(loss: float, bounds: Bounds | None, digits: int = 2) -> Cell:
        shown = interval(bounds and tuple(map(scaled, bounds)), digits)
        return Cell(number(scaled(loss), digits), shown)

    return cell


def _decisions_table(
    name: str, losses: Mapping[str, Loss], population: Population, task: str
) -> ResultTable:
    """Decisions of the focus method that lose most; no rows where it was not looked at."""
    focus = wording.focus_method(population)
    scaled = _scaled(population)
    decisions = losses[focus].decisions if focus in losses else ()
    rows = [
        Row(
            focus,
            "method",
            (
                Cell(str(decision.turn)),
                Cell(_act(decision.best)),
                Cell(_act(decision.instead)),
                Cell(decision.by),
                Cell(f"{decision.times} of {losses[focus].episodes}"),
                Cell(number(scaled(decision.loss), 3)),
            ),
        )
        for decision in decisions
    ]
    title = population.methods[focus].look.title if rows else ""
    return ResultTable(
        f"{name}_lost_decisions",
        f"{task}, {name} population: the decisions by which {title} loses most",
        ("utterance", "best", "taken instead", "lost by", "times", "lost"),
        tuple(rows),
        (
            "Lost by candidates: the best act was not among those considered; taken instead is the "
            "best that was. Lost by choice: it was considered; taken instead is what was said. The "
            "first utterance of the agent is 1; the loss is a mean over all conversations. Words "
            "without meaning are those that the world does not understand: they cost a turn.",
        ),
    )


def _act(act: str | None) -> str:
    return "words without meaning" if act is None else act.replace("_", " ")


def _persona_table(
    name: str, losses: Mapping[str, Loss], population: Population, task: str
) -> ResultTable:
    """Loss of the focus method by persona; no rows where it was not looked at."""
    focus = wording.focus_method(population)
    cell, scaled = _loss_cell(population), _scaled(population)
    personas = losses[focus].persona if focus in losses else {}
    rows = [
        Row(
            focus,
            "method",
            (
                Cell(f"{axis}: {value}".replace("_", " ")),
                Cell(number(scaled(loss.candidates + loss.choice))),
                cell(loss.candidates, loss.candidates_ci95),
                cell(loss.choice, loss.choice_ci95),
                Cell(number(scaled(loss.a_turn), 3)),
                Cell(str(loss.conversations)),
            ),
        )
        for axis, values in personas.items()
        for value, loss in values.items()
    ]
    title = population.methods[focus].look.title if rows else ""
    return ResultTable(
        f"{name}_lost_by_persona",
        f"{task}, {name} population: what {title} loses, by persona",
        ("persona", "lost", "by candidates", "by choice", "a turn", "conversations"),
        tuple(rows),
        (
            "The same losses with humans of each kind. Intervals are t intervals over humans and, "
            "if there are several, trainings; with few conversations they are wide.",
        ),
    )


def _what_may_help(title: str, loss: Loss) -> str:
    """Advice by the larger of the two losses of a method that chooses by values."""
    if loss.choice > loss.candidates:
        return (
            f"Most of what {title} loses is lost by choice: its values are wrong where it goes. A "
            "longer training may help (config.train.steps), or a round of imagination, in which it "
            "meets what its choices lead to (config.methods, e.g. ilql_imagination1)."
        )
    return (
        f"Most of what {title} loses is lost by candidates: the best is not among what it thinks "
        "of saying. More dialogues with such people may help (config.imagination.personas), or "
        "more candidates at a higher temperature (config.decoding)."
    )


def print_diagnosis(console: Console, diagnosis: Diagnosis, evaluation: Evaluation) -> None:
    """Prints the losses of each method."""
    for table in diagnosis_tables(diagnosis, evaluation):
        print_table(console, table)
