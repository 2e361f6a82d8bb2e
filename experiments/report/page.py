"""The report of a run: `report.html`, one file that needs no network, and `figures/*.png`.

`write_report` reads what the earlier stages left in the run's folder (`run.py`). Files that are
missing are left out; only the results themselves (`evaluation.json`, or `heldout.json` for a run on
real dialogues) must be there. Sentences about results are in `wording.py`, tables in `tables.py`,
conversations in `examples.py`, the page in `templates/report.html.j2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from experiments import provenance
from experiments.evaluation.statistics import SIGNIFICANT
from experiments.evaluation.summary import Evaluation, Heldout, HumanPlayer, PredictionPoint
from experiments.files import write_atomically
from experiments.looks import ordered
from experiments.report import diagnosis, examples, hindsight, tables, wording
from experiments.report.figures import style
from experiments.report.figures.drawn import Drawn, draw
from experiments.report.run import Run, Trained, read_run

NO_BREAK = "\N{NO-BREAK SPACE}"
VERDICT_WORDS = {
    "above": "ahead",
    "below": "behind",
    "open": "not distinguishable",
    "untested": "not tested",
}


def write_report(path: Path, trained: Mapping[str, Trained] | None = None) -> Path:
    """Writes `figures/*.png` and `report.html`, each whole or not at all.

    Arguments are those of `read_run`.

    Raises:
        FileNotFoundError: The run has no results yet; the message says which stage to run.
        ResultsError: A file of results that cannot be read, with its name and field.
    """
    path = Path(path)
    run = read_run(path, trained)
    drawn = list(draw(run))
    for each in drawn:
        write_atomically(path / "figures" / f"{each.name}.png", style.to_png(each.figure))
    report = path / "report.html"
    page = render(run, drawn, path.resolve().name)
    write_atomically(report, page.encode("utf-8", errors="replace"))
    return report


def render(run: Run, drawn: Sequence[Drawn], run_name: str) -> str:
    """The page as text. Every text of the run is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"typeset": _typeset, "words": _words, "capital": _capital}
    looks = run.looks
    colors = style.palette(looks)
    rule, shown, shown_tables, pair, replies = "", [], [], None, []
    if run.evaluation is not None:
        bar = run.evaluation.success_reward
        rule, shown = examples.pick_examples(run.conversations, bar, looks)
        pair = examples.pick_pair(run.conversations, run.dialogues, bar, looks)
        shown_tables += tables.result_tables(run.evaluation)
        if run.diagnosis is not None:
            shown_tables += diagnosis.diagnosis_tables(run.diagnosis, run.evaluation)
        shown_tables += tables.values_tables(run)
        shown_tables += tables.decodings_tables(run.choices, looks)
    shown_tables += tables.rounds_tables(run.held, run.dialogues, looks)
    if run.heldout is not None:
        shown_tables += tables.heldout_tables(run.heldout)
        replies = examples.replies(run.heldout.moments, run.dialogues, looks)
    return environment.get_template("report.html.j2").render(
        run_name=run_name,
        task=run.task,
        colors=colors,
        css=style.css_names(looks),
        statements=_statements(run),
        verdict_words=VERDICT_WORDS,
        tables=shown_tables,
        figures=[(each, _svg(each, colors)) for each in drawn],
        pair=pair,
        rule=rule,
        examples=shown,
        replies=replies,
        hindsight=hindsight.section(run.hindsight),
        behaviours=examples.behaviours(run.dialogues),
        dialogue_count=len(run.dialogues),
        tests=_tests(run.evaluation),
        number=wording.number,
        facts=_facts(run),
        sessions=provenance.together(run.sessions),
        config=run.config,
    )


def _svg(drawn: Drawn, colors: style.Palette) -> dict[str, Markup]:
    """CSS class of a screen -> the figure for it."""
    figures = {"wide": drawn.figure, "narrow": drawn.narrow}
    return {
        screen: Markup(style.to_svg(figure, colors, f"{drawn.name}-{screen}"))
        for screen, figure in figures.items()
    }


def _typeset(text: str) -> str:
    """Minus signs for numbers; no line break inside an interval or a p-value."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return re.sub(r"\[[^\]]{1,24}\]|\bp\w* [<=] \S+", lambda m: m[0].replace(" ", NO_BREAK), text)


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- statements ---------------------------------------------------------------------------------


def _statements(run: Run) -> list[dict[str, str]]:
    """The headlines: the average population first, then what must be known beside it."""
    statements = []
    populations = run.evaluation.population if run.evaluation is not None else {}
    for index, (name, population) in enumerate(populations.items()):
        verdict, text = wording.headline(population, name)
        statements.append({"verdict": verdict, "text": text})
        trained_again = wording.training_note(population)
        notes = [trained_again] if "not distinguishable" in trained_again else []
        if index == 0:
            notes.append(wording.against_data(population))
        statements += [{"verdict": "", "text": note} for note in notes if note]
    if run.heldout is not None:
        statements.append({"verdict": "", "text": _heldout_statement(run.heldout)})
    return statements


def _heldout_statement(heldout: Heldout) -> str:
    """Says how well the first method's values foretell the outcome half-way."""
    if not heldout.value_prediction:
        return f"Policies on held-out dialogues: {tables.sizes_note(heldout)}."
    method = ordered(heldout.value_prediction)[0]
    point = min(heldout.value_prediction[method], key=lambda p: (abs(p.point - 0.5), p.point))
    return (
        f"With {wording.percent(point.point)} of a held-out dialogue seen, "
        f"{heldout.methods[method].look.title}'s V {_prediction(point)}."
    )


def _prediction(point: PredictionPoint) -> str:
    if point.auroc_v is None:
        return "cannot be judged: all dialogues succeed, or all fail"
    value = wording.number(point.auroc_v)
    if point.auroc_v_ci95 is None:
        return f"has an AUROC of {value} (0.5 is guessing), and resampling gives it no interval"
    claim = "foretells the outcome"
    if point.auroc_v_ci95[0] <= 0.5:
        claim = "does not foretell the outcome better than guessing"
    return f"{claim}: AUROC {value} {wording.interval(point.auroc_v_ci95)} (0.5 is guessing)"


# --- how the numbers were made ------------------------------------------------------------------


def _tests(evaluation: Evaluation | None) -> list[dict]:
    """The pairwise tests of each population, row by row."""
    populations = evaluation.population if evaluation is not None else {}
    shown = []
    for name, population in populations.items():
        title = wording.titles(population)
        rows = [
            {
                "pair": f"{title[test.a]} − {title[test.b]}",
                "test": test,
                "difference": wording.difference(test, population),
                "verdict": wording.verdict(test),
            }
            for test in wording.comparisons(population)
        ]
        if rows:
            unit = wording.unit_of(population)
            shown.append({"population": name, "unit": unit, "rows": rows})
    return shown


def _facts(run: Run) -> list[str]:
    """Explains how the numbers were made, a sentence or two each."""
    facts = [] if run.evaluation is None else _evaluation_facts(run.evaluation)
    if run.heldout is not None:
        sizes = tables.sizes_note(run.heldout)
        facts.append(f"Real dialogues: {sizes}; what is reported comes from the test part.")
    return facts


def _evaluation_facts(evaluation: Evaluation) -> list[str]:
    populations = evaluation.population
    facts = []
    for name, population in populations.items():
        episodes = sorted(scores.episodes for scores in population.methods.values())
        count = " to ".join(str(x) for x in dict.fromkeys((episodes[0], episodes[-1])))
        seeds = wording.seeds_note(population)
        facts.append(
            f"Population {name}: {count} episodes a method." + (f" {seeds}." if seeds else "")
        )
    calls = map(wording.calls_note, populations.values())
    facts += list(dict.fromkeys(note for note in calls if note))
    return [
        *facts,
        "Every method talks with the same simulated humans, which are not those of the training "
        "data.",
        _scale_fact(evaluation.human),
        "Square brackets are 95 % intervals: of scores by a bootstrap, of parts of the "
        "conversations (a persona, a turn) t intervals, which with few of them reach beyond what "
        "can be.",
        "p_holm is the p-value of a pairwise test after Holm's correction for the number of pairs; "
        f"“above” and “below” are said where it is under {SIGNIFICANT}, “not "
        "distinguishable” elsewhere, which is no proof that two methods are equal.",
        "p_holm asks whether the agents as trained differ on other humans; p_training_holm, where "
        "several seeds were trained, whether the methods would differ if trained again on the same "
        "dialogues: what other dialogues would change, no number here says. At the top of the page "
        "a method is said to beat another, or to lose to it, only where both are under "
        f"{SIGNIFICANT}.",
        "Each method's decoding setting was chosen on validation episodes, which are not among "
        "those reported here.",
    ]


def _scale_fact(human: HumanPlayer | None) -> str:
    if human is not None:
        return (
            "The humans, with the same personas for every agent, are played and rated by "
            f"{human.model}; scores are mean ratings, on the task's scale."
        )
    return (
        "Normalized score: 0 is the exact mean of the behaviours that write the data, 1 the "
        "optimum, both with the humans of the population. Negative is worse than those behaviours."
    )
