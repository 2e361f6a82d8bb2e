"""The result of a run as a table: in the terminal (rich), in Markdown, and as cells for HTML.

All three are laid out from the same rows (`result_table`, `heldout_table`), so they cannot say
different things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.report import wording

WIDTH = 100
MISSING = "–"
TERMINAL_HEADERS = {"not understood": "not\nunderst."}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value and, in a quieter voice, what belongs to it (its interval)."""

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table. `kind` is `method` or `reference`, `key` the method's key."""

    key: str
    kind: str
    cells: tuple[Cell, ...]
    best: bool = False


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Rows under headers, with the notes that stand below them."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


HEADERS = (
    "method",
    "normalized score",
    "mean reward",
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
OF_THE_WORLD = ("normalized score", "not understood")


def result_tables(evaluation: Mapping[str, Any]) -> list[ResultTable]:
    """One table for each population of an evaluation."""
    task = evaluation.get("task") or "evaluation"
    return [
        result_table(population, f"{task}, {name} population")
        for name, population in wording.populations(evaluation).items()
    ]


def result_table(population: Mapping[str, Any], title: str) -> ResultTable:
    """The methods by score, best first, and the references under them."""
    methods = population["methods"]
    best = wording.best_method(population) if len(methods) > 1 else None
    ranked = sorted(
        wording.ordered_methods(methods),
        key=lambda key: -value if (value := wording.score(methods[key])[0]) is not None else 1e9,
    )
    headers = _headers(population)
    rows = [
        Row(key, "method", _chosen(headers, _method_cells(key, methods[key])), key == best)
        for key in ranked
    ]
    references = population.get("references") or {}
    rows += [
        Row(key, "reference", _chosen(headers, _reference_cells(name, references[key], references)))
        for key, name in wording.REFERENCE_NAMES.items()
        if wording.is_number(references.get(key))
    ]
    notes = [
        wording.describe_tests(population),
        wording.training_note(population),
        wording.seeds_note(population),
        wording.calls_note(population),
        wording.missing_note(population),
        wording.human_note(population),
    ]
    return ResultTable(title, headers, tuple(rows), tuple(filter(None, notes)))


def _headers(population: Mapping[str, Any]) -> tuple[str, ...]:
    hidden: tuple[str, ...] = ()
    if not wording.takes_calls(population):
        hidden += OF_PROMPTED_AGENTS
    if wording.is_played(population.get("human") or {}):
        hidden += OF_THE_WORLD
    return tuple(header for header in HEADERS if header not in hidden)


def _chosen(headers: tuple[str, ...], cells: Mapping[str, Cell]) -> tuple[Cell, ...]:
    return tuple(cells.get(header, Cell("")) for header in headers)


def _method_cells(key: str, method: Mapping[str, Any]) -> dict[str, Cell]:
    success = method.get("success_rate")
    cells = (
        Cell(wording.method_name(key)),
        Cell(
            wording.number(method.get("normalized")),
            wording.interval(method.get("normalized_ci95")),
        ),
        Cell(wording.number(method.get("mean_reward")), wording.interval(method.get("ci95"))),
        Cell(f"{100 * success:.0f} %" if wording.is_number(success) else MISSING),
        Cell(wording.number(method.get("turns"), 1)),
        Cell(wording.number(method.get("not_understood"))),
        Cell(wording.number(method.get("train_seconds"), 0)),
        Cell(wording.number(method.get("calls"), 1)),
        Cell(wording.dollars(method.get("cost"))),
        Cell(str(method.get("decoding") or MISSING)),
    )
    return dict(zip(HEADERS, cells, strict=True))


def _reference_cells(name: str, reward: float, references: Mapping[str, Any]) -> dict[str, Cell]:
    normalized = wording.normalize(reward, references)
    cells = (Cell(name), Cell(wording.number(normalized)), Cell(wording.number(reward)))
    return dict(zip(HEADERS, cells, strict=False))


HELDOUT_NAMES = {"auroc_v": "AUROC of V", "auroc_q": "AUROC of Q"}


def heldout_tables(heldout: Mapping[str, Any]) -> list[ResultTable]:
    """Tables of a run on real dialogues: the policies, and how well values foretell outcomes."""
    tables = [_policy_table(heldout), _prediction_table(heldout)]
    return [table for table in tables if table.rows]


def _policy_table(heldout: Mapping[str, Any]) -> ResultTable:
    methods = {key: method for key, method in (heldout.get("methods") or {}).items() if method}
    keys = dict.fromkeys(
        key for method in methods.values() for key, x in method.items() if wording.is_number(x)
    )
    rows = tuple(
        Row(
            name,
            "method",
            (
                Cell(wording.method_name(name)),
                *(
                    Cell(
                        wording.number(methods[name].get(key)),
                        wording.interval(methods[name].get(f"{key}_ci95")),
                    )
                    for key in keys
                ),
            ),
        )
        for name in wording.ordered_methods(methods)
    )
    title = f"{heldout.get('task') or 'task'}, held-out dialogues: policy"
    headers = ("method", *(key.replace("_", " ") for key in keys))
    return ResultTable(title, headers, rows, tuple(filter(None, [sizes_note(heldout)])))


def _prediction_table(heldout: Mapping[str, Any]) -> ResultTable:
    rows = [
        Row(
            name,
            "method",
            (
                Cell(wording.method_name(name)),
                Cell(percent(point.get("point"))),
                *(
                    Cell(wording.number(point.get(key)), wording.interval(point.get(f"{key}_ci95")))
                    for key in HELDOUT_NAMES
                ),
            ),
        )
        for name, points in predictions(heldout).items()
        for point in points
    ]
    title = f"{heldout.get('task') or 'task'}, held-out dialogues: values against the outcome"
    note = "AUROC 0.5 is guessing, 1 is a perfect ranking of the dialogues by outcome."
    notes = tuple(filter(None, [note, success_note(heldout)]))
    return ResultTable(
        title, ("method", "dialogue seen", *HELDOUT_NAMES.values()), tuple(rows), notes
    )


def predictions(heldout: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """`value_prediction` in the methods' order, its points in the dialogue's."""
    found = heldout.get("value_prediction") or {}
    return {
        key: sorted(
            (p for p in found[key] if wording.is_number(p.get("point"))), key=lambda p: p["point"]
        )
        for key in wording.ordered_methods(found)
        if found[key]
    }


def percent(fraction: Any) -> str:
    """0.25 as `25 %`."""
    return f"{100 * fraction:.0f} %" if wording.is_number(fraction) else MISSING


def sizes_note(heldout: Mapping[str, Any]) -> str:
    """How many dialogues each part of the data has."""
    sizes = heldout.get("sizes") or {}
    return ", ".join(f"{count} {name}" for name, count in sizes.items()) + (
        " dialogues" if sizes else ""
    )


def success_note(heldout: Mapping[str, Any]) -> str:
    """Which outcomes are told from the others."""
    success = heldout.get("success") or {}
    if not wording.is_number(success.get("reward")):
        return ""
    words = f": {success['words'].rstrip('.')}" if success.get("words") else ""
    share = f"{percent(success.get('share'))} of the test dialogues"
    return f"Success{words} (a reward of {success['reward']:g} or more; {share})."


def print_results(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Prints one table for each population, with its tests in words below."""
    for table in result_tables(evaluation):
        _print(console, table)


def print_heldout(console: Console, heldout: Mapping[str, Any]) -> None:
    """Prints the tables of a run on real dialogues."""
    for table in heldout_tables(heldout):
        _print(console, table)


def _print(console: Console, table: ResultTable) -> None:
    """Decoding settings are long: in a terminal they stand under the table, not in it."""
    width = min(WIDTH, console.width)
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
            no_wrap=index > 0,  # names may be long
        )
    for row, following in zip(table.rows, (*table.rows[1:], None), strict=True):
        cells = [_rich_cell(row.cells[index], row) for index in shown]
        grid.add_row(*cells, end_section=following is not None and following.kind != row.kind)
    console.print()
    console.print(Text(table.title, style="bold"), width=width)
    console.print()
    console.print(grid, width=width)
    console.print()
    for note in filter(None, (_decoding_note(table), *table.notes)):
        console.print(Text(note), width=width)


def _decoding_note(table: ResultTable) -> str:
    if "decoding" not in table.headers:
        return ""
    column = table.headers.index("decoding")
    settings: dict[str, list[str]] = {}
    for row in table.rows:
        if row.kind == "method" and row.cells[column].text != MISSING:
            settings.setdefault(row.cells[column].text, []).append(row.cells[0].text)
    parts = [f"{' and '.join(names)}: {setting}" for setting, names in settings.items()]
    return f"Decoding: {'; '.join(parts)}." if parts else ""


def _rich_cell(cell: Cell, row: Row) -> Text:
    style = "bold" if row.best else "dim" if row.kind == "reference" else ""
    text = Text(cell.text, style=style)
    if cell.detail:
        text.append(f" {cell.detail}", style="dim")
    return text


def markdown(evaluation: Mapping[str, Any]) -> str:
    """The tables of `print_results` as GitHub Markdown, for a README."""
    return "\n\n".join(_markdown(table) for table in result_tables(evaluation)) + "\n"


def _markdown(table: ResultTable) -> str:
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


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
