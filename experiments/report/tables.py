"""Results as tables: in the terminal (rich), in Markdown, and as cells for HTML.

All three are laid out from the same rows (`result_tables`, `heldout_tables`), so they cannot say
different things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.evaluation.statistics import Interval
from experiments.evaluation.summary import (
    Evaluation,
    Heldout,
    HumanPlayer,
    Population,
    References,
    Scores,
    UnitResult,
)
from experiments.evaluation.values_by_turn import values_by_turn
from experiments.looks import Look, ordered
from experiments.report import wording
from experiments.report.run import HeldRound, Run, by_method
from experiments.report.wording import dollars, interval, number, percent
from ilql_jax.decoding_config import DecodingConfig
from imagination.dialogue import Dialogue

WIDTH = 100
MISSING = "–"
TERMINAL_HEADERS = {"not understood": "not\nunderst."}
REFERENCE_NAMES = {
    "optimum": "optimum",
    "best_behaviour": "best behaviour",
    "behaviour": "behaviour",
    "uniform": "uniform",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value and, in a quieter voice, a detail of it (its interval)."""

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table. `kind` is `method` or `reference`, `key` the method's name."""

    key: str
    kind: str
    cells: tuple[Cell, ...]
    best: bool = False


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Rows under headers, with the notes that stand below them. `name` is short, for files."""

    name: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


# --- conversations ------------------------------------------------------------------------------

HEADERS = (
    "method",
    wording.NORMALIZED,
    wording.REWARD,
    "success",
    "turns",
    "not understood",
    "train s",
    "calls",
    "cost",
    "decoding",
)
# Shown only where an agent talks with an LLM; not shown where the human is played by one.
OF_PROMPTED_AGENTS = ("calls", "cost")
OF_THE_WORLD = (wording.NORMALIZED, "not understood")


def result_tables(evaluation: Evaluation) -> list[ResultTable]:
    """One table for each population of an evaluation."""
    return [
        result_table(name, population, evaluation.human, evaluation.task)
        for name, population in evaluation.population.items()
    ]


def _best_first(population: Population) -> list[str]:
    """Names of the methods by score; those without one come last."""

    def place(key: str) -> tuple[bool, float]:
        value = wording.score(population.methods[key])[0]
        return value is None, 0.0 if value is None else -value

    return sorted(ordered(population.methods), key=place)


def result_table(
    name: str, population: Population, human: HumanPlayer | None, task: str
) -> ResultTable:
    """The methods by score, best first, and the references under them."""
    methods = population.methods
    values = [value for each in methods.values() if (value := wording.score(each)[0]) is not None]
    best = wording.best_method(methods) if values.count(max(values, default=0.0)) == 1 else None
    if len(methods) == 1:
        best = None  # nothing to be better than
    headers = _headers(population, human)
    rows = [
        Row(key, "method", _chosen(headers, _method_cells(methods[key])), key == best)
        for key in _best_first(population)
    ]
    if population.references is not None:
        rows += [
            Row(key, "reference", _chosen(headers, _reference_cells(key, population.references)))
            for key in REFERENCE_NAMES
        ]
    notes = [
        wording.describe_tests(population),
        wording.training_note(population),
        wording.seeds_note(population),
        wording.calls_note(population),
        wording.missing_note(population),
        wording.human_note(population, human),
    ]
    title = f"{task}, {name} population"
    return ResultTable(name, title, headers, tuple(rows), tuple(filter(None, notes)))


def _headers(population: Population, human: HumanPlayer | None) -> tuple[str, ...]:
    hidden: tuple[str, ...] = ()
    if not wording.prompted_agents(population):
        hidden += OF_PROMPTED_AGENTS
    if human is not None:
        hidden += OF_THE_WORLD
    return tuple(header for header in HEADERS if header not in hidden)


def _chosen(headers: Sequence[str], cells: Mapping[str, Cell]) -> tuple[Cell, ...]:
    return tuple(cells.get(header, Cell("")) for header in headers)


def _method_cells(scores: Scores) -> dict[str, Cell]:
    agent = scores.prompted_agent
    cells = (
        Cell(scores.look.title),
        Cell(number(scores.normalized), interval(scores.normalized_ci95)),
        Cell(number(scores.mean_reward), interval(scores.ci95)),
        Cell(percent(scores.success_rate)),
        Cell(number(scores.turns, 1)),
        Cell(number(scores.not_understood)),
        Cell(number(scores.train_seconds, 0)),
        Cell(number(agent.calls if agent else None, 1)),
        Cell(dollars(agent.cost if agent else None)),
        Cell(scores.decoding or MISSING),
    )
    return dict(zip(HEADERS, cells, strict=True))


def _reference_cells(key: str, references: References) -> dict[str, Cell]:
    reward = getattr(references, key)
    return {
        "method": Cell(REFERENCE_NAMES[key]),
        wording.NORMALIZED: Cell(number(references.normalized(reward))),
        wording.REWARD: Cell(number(reward)),
    }


# --- values, and rounds of imagination ----------------------------------------------------------


def values_tables(run: Run) -> list[ResultTable]:
    """Values against outcomes by turn, a table for each population; none without values."""
    made = []
    for name, population in run.evaluation.population.items():
        spoken = by_method(run.conversations, name)
        rows = [
            Row(
                key,
                "method",
                (
                    Cell(population.methods[key].look.title),
                    Cell(str(found.turn)),
                    *map(_estimate, (found.v, found.q, found.error)),
                    Cell(number(found.spread)),
                    Cell(f"{found.conversations:,}"),
                ),
            )
            for key in _best_first(population)
            for found in values_by_turn(spoken.get(key, ()), run.returns)
        ]
        table = ResultTable(
            f"{name}_values",
            f"{run.task}, {name} population: how early the values tell the outcome",
            ("method", "turn", "ρ of V", "ρ of Q", "error of Q", "spread", "conversations"),
            tuple(rows),
            (
                f"{_VALUES_NOTE} {wording.discounts_note(run.discounts, run.looks)} Spread: "
                "standard deviation of the returns; where it is small, nearly all end alike, and "
                "small errors of the values hide a correlation.",
            ),
        )
        made += [table] if rows else []
    return made


_VALUES_NOTE = (
    "ρ: Spearman's rank correlation with the return from each of the agent's turns on, over what "
    "reaches it; returns differ by how soon they come, too. Error: mean of Q minus the return."
)


def _estimate(found: Interval) -> Cell:
    if np.isnan(found.mean):  # a correlation where all ended alike
        return Cell(MISSING)
    return Cell(number(found.mean), interval(found.bounds))


def rounds_tables(
    held: Sequence[HeldRound], dialogues: Sequence[Dialogue], looks: Mapping[str, Look]
) -> list[ResultTable]:
    """Rounds of imagination: how conversations ended that were learned from; none without rounds.

    Args:
        held: The rounds.
        dialogues: The original ones.
        looks: Looks of all methods.
    """

    def mean(rewards: Sequence[float]) -> Cell:
        return Cell(number(sum(rewards) / len(rewards)) if rewards else MISSING)

    by_llm = any(each.calls is not None for each in held)
    of_data = mean([each.total_reward for each in dialogues if each.reward is not None])
    rows = [
        Row(
            each.method,
            "method",
            (
                Cell(looks[each.method].title),
                Cell(looks[each.agent].title if each.agent in looks else each.agent),
                Cell(f"{len(each.rewards):,}"),
                mean(each.rewards),
                of_data,
                *((Cell(number(each.calls, 1)), Cell(dollars(each.cost))) if by_llm else ()),
            ),
        )
        for key in ordered(each.method for each in held if each.method in looks)
        for each in held
        if each.method == key
    ]
    table = ResultTable(
        "rounds",
        "Rounds of imagination: conversations that were learned from beside the data",
        (
            *("method", "held by", "conversations", wording.REWARD, "of the data"),
            *(("calls", "cost") if by_llm else ()),
        ),
        tuple(rows),
        (
            "Of the last round of each method; it learns from those before, too. The humans are "
            "drawn like those of the data. A method's time to train is its own, without that of "
            "the agents before it.",
            *(
                ["Calls and cost are those of the LLM that plays the humans, a conversation."]
                * by_llm
            ),
        ),
    )
    return [table] if rows else []


# --- decodings ----------------------------------------------------------------------------------


def decodings_tables(
    choices: Mapping[str, Sequence[UnitResult]], looks: Mapping[str, Look]
) -> list[ResultTable]:
    """Decodings that were tried on validation episodes, and what each costs; none without a choice.

    Args:
        choices: Method -> choices of a decoding, one of each training.
        looks: Looks of all methods.
    """
    rows = []
    for method in ordered(name for name in choices if name in looks):
        own = choices[method]
        for text in dict.fromkeys(text for result in own for text in result.validation):
            rewards = [result.validation.get(text) for result in own]
            rated = [reward for reward in rewards if reward is not None]
            chosen = sum(result.decoding == text for result in own)
            rows.append(
                Row(
                    method,
                    "method",
                    (
                        Cell(looks[method].title),
                        Cell(text),
                        Cell(f"{DecodingConfig.parse(text).utterances:,}"),
                        Cell(number(sum(rated) / len(rated)) if rated else MISSING),
                        Cell(f"{chosen} of {len(own)}"),
                    ),
                )
            )
    table = ResultTable(
        "decodings",
        "Decodings that were tried, with the humans of the validation",
        ("method", "decoding", "utterances a turn", wording.REWARD, "chosen by trainings"),
        tuple(rows),
        (
            "Utterances a turn: as many are written at most for one that is said; where an agent "
            "looks ahead, with the replies and answers that it imagines. Rewards are means over "
            "the trainings that tried it. Where all others read values, the policy alone is tried, "
            "too, and taken if it is better by more than chance.",
        ),
    )
    return [table] if rows else []


# --- held-out dialogues -------------------------------------------------------------------------


def heldout_tables(heldout: Heldout) -> list[ResultTable]:
    """Tables of a run on real dialogues: the policies, and how well values foretell outcomes."""
    tables = [_policy_table(heldout), _prediction_table(heldout), _turn_table(heldout)]
    return [table for table in tables if table.rows]


def _policy_table(heldout: Heldout) -> ResultTable:
    rows = []
    for name in ordered(heldout.methods):
        policy = heldout.methods[name]
        cells = (policy.look.title, number(policy.perplexity), str(len(policy.per_seed)))
        rows.append(Row(name, "method", tuple(map(Cell, cells))))
    if heldout.pretrained_perplexity is not None:
        cells = ("before training", number(heldout.pretrained_perplexity), "")
        rows.append(Row("pretrained", "reference", tuple(map(Cell, cells))))
    title = f"{heldout.task}, held-out dialogues: policy"
    headers = ("method", "perplexity", "seeds")
    return ResultTable("policy", title, headers, tuple(rows), (sizes_note(heldout),))


def _prediction_table(heldout: Heldout) -> ResultTable:
    rows = [
        Row(
            name,
            "method",
            (
                Cell(heldout.methods[name].look.title),
                Cell(percent(point.point)),
                Cell(number(point.auroc_v), interval(point.auroc_v_ci95)),
                Cell(number(point.auroc_q), interval(point.auroc_q_ci95)),
            ),
        )
        for name in ordered(heldout.value_prediction)
        for point in heldout.value_prediction[name]
    ]
    title = f"{heldout.task}, held-out dialogues: values against the outcome"
    headers = ("method", "dialogue seen", "AUROC of V", "AUROC of Q")
    notes = (
        "AUROC 0.5 is guessing, 1 is a perfect ranking of the dialogues by outcome. Values are "
        "means over trainings.",
        *_without_interval_note(heldout),
        success_note(heldout),
    )
    return ResultTable("values", title, headers, tuple(rows), notes)


def _without_interval_note(heldout: Heldout) -> tuple[str, ...]:
    points = [point for each in heldout.value_prediction.values() for point in each]
    found = [(p.auroc_v, p.auroc_v_ci95) for p in points]
    found += [(p.auroc_q, p.auroc_q_ci95) for p in points]
    if all(auroc is None or bounds is not None for auroc, bounds in found):
        return ()
    return (
        "An AUROC without an interval is the same in every resample: every success is above every "
        "failure (1), or below (0), or all values are equal (0.5). Resampling cannot tell if that "
        "is chance; with few dialogues it may well be.",
    )


def _turn_table(heldout: Heldout) -> ResultTable:
    looks = {name: each.look for name, each in heldout.methods.items()}
    rows = [
        Row(
            name,
            "method",
            (
                Cell(looks[name].title),
                Cell(f"{each.turn} and later" if each.and_later else str(each.turn)),
                *(
                    Cell(number(found.value), interval(found.ci95)) if found else Cell(MISSING)
                    for found in (each.v, each.q, each.error)
                ),
                Cell(number(each.spread)),
                Cell(f"{each.dialogues:,}"),
            ),
        )
        for name in ordered(heldout.by_turn)
        for each in heldout.by_turn[name]
    ]
    title = f"{heldout.task}, held-out dialogues: values at the agent's turns"
    headers = ("method", "turn", "ρ of V", "ρ of Q", "error of Q", "spread", "dialogues")
    notes = (
        f"{_VALUES_NOTE} {wording.discounts_note(heldout.discounts, looks)} Spread: standard "
        "deviation of the returns. Intervals are over dialogues and, if there are several, "
        "trainings on the same dialogues.",
    )
    return ResultTable("values_by_turn", title, headers, tuple(rows), notes)


def sizes_note(heldout: Heldout) -> str:
    """Number of dialogues in each part of the data."""
    return ", ".join(f"{count} {part}" for part, count in heldout.sizes.items()) + " dialogues"


def success_note(heldout: Heldout) -> str:
    """Defines the outcome that values are to foretell."""
    success = heldout.success
    words = f": {success.words.rstrip('.')}" if success.words else ""
    share = f"{percent(success.share)} of the test dialogues"
    return f"Success{words} (a reward of {success.reward:g} or more; {share})."


# --- terminal -----------------------------------------------------------------------------------


def print_results(console: Console, evaluation: Evaluation) -> None:
    """Prints one table for each population, with its tests in words below."""
    for table in result_tables(evaluation):
        print_table(console, table)


def print_heldout(console: Console, heldout: Heldout) -> None:
    """Prints the tables of a run on real dialogues."""
    for table in heldout_tables(heldout):
        print_table(console, table)


def print_table(console: Console, table: ResultTable) -> None:
    """Prints a table; decoding settings, which are long, stand under it."""
    width = min(WIDTH, console.width)
    grid = _grid(table)
    unbounded = console.options.update_width(10 * WIDTH)
    if Measurement.get(console, unbounded, grid).maximum > width:
        grid = _grid(table, is_narrow=True)
    console.print()
    console.print(Text(table.title, style="bold"), width=width)
    console.print()
    console.print(grid, width=width)
    console.print()
    for note in filter(None, (_decoding_note(table), *table.notes)):
        console.print(Text(note), width=width)


def _grid(table: ResultTable, is_narrow: bool = False) -> Table:
    """The cells; in a narrow terminal intervals stand below their numbers, and words may wrap."""
    shown = [i for i, header in enumerate(table.headers) if header != "decoding"]
    grid = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if "calls" in table.headers else 1, 0, 0),  # closer where there are more
        header_style="dim",
    )
    for index in shown:
        header = table.headers[index]
        grid.add_column(
            Text(header if index == 0 else TERMINAL_HEADERS.get(header, header.replace(" ", "\n"))),
            justify="left" if index == 0 else "right",
            no_wrap=index > 0 and not is_narrow,  # names may be long
            min_width=max(
                (len(word) for row in table.rows for word in row.cells[index].text.split()),
                default=1,
            ),
        )
    for row, following in zip(table.rows, (*table.rows[1:], None), strict=True):
        cells = [_rich_cell(row.cells[index], row, is_narrow) for index in shown]
        grid.add_row(*cells, end_section=following is not None and following.kind != row.kind)
    return grid


def _decoding_note(table: ResultTable) -> str:
    if "decoding" not in table.headers:
        return ""
    column = table.headers.index("decoding")
    methods: dict[str, list[str]] = {}
    for row in table.rows:
        if row.kind == "method" and row.cells[column].text != MISSING:
            methods.setdefault(row.cells[column].text, []).append(row.cells[0].text)
    parts = [f"{' and '.join(names)}: {setting}" for setting, names in methods.items()]
    return f"Decoding: {'; '.join(parts)}." if parts else ""


def _rich_cell(cell: Cell, row: Row, is_narrow: bool) -> Text:
    style = "bold" if row.best else "dim" if row.kind == "reference" else ""
    text = Text(cell.text, style=style)
    if cell.detail:
        text.append(("\n" if is_narrow else " ") + cell.detail, style="dim")
    return text


# --- Markdown -----------------------------------------------------------------------------------


def markdown(evaluation: Evaluation) -> str:
    """The tables of `print_results` as GitHub Markdown, for a README."""
    return "\n\n".join(to_markdown(table) for table in result_tables(evaluation)) + "\n"


def to_markdown(table: ResultTable) -> str:
    """One table with its title and notes."""
    lines = [
        _line(table.headers),
        _line(["---"] + ["---" if h == "decoding" else "---:" for h in table.headers[1:]]),
    ]
    for row in table.rows:
        cells = [_escape(str(cell)) for cell in row.cells]
        if row.best:
            cells[:2] = [f"**{cell}**" for cell in cells[:2]]
        elif row.kind == "reference":
            cells[0] = f"*{cells[0]}*"
        lines.append(_line(cells))
    return "\n\n".join([f"**{_escape(table.title)}**", "\n".join(lines), *table.notes])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
