"""Results for the loggers: the scores of each unit beside its training, and the final tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.build import Experiment
from experiments.evaluation.summary import Evaluation, Heldout, Scores
from experiments.metrics import Value, open_logger
from experiments.report import tables
from experiments.run_folder import RunFolder, Unit

RESULTS = "results"  # name of the log that holds the tables of the whole run


def log_evaluation(experiment: Experiment, folder: RunFolder, evaluation: Evaluation) -> None:
    """Logs the scores of every unit, of every method, and the tables of a run in conversation."""
    by_unit: dict[Unit, dict[str, Value]] = {}
    by_method: dict[str, Value] = {}
    for population, part in evaluation.population.items():
        for method, scores in part.methods.items():
            for unit, name, value in _of_units(method, scores):
                if value is not None:
                    by_unit.setdefault(unit, {})[f"{population}/{name}"] = value
            for name, value in _of_method(scores):
                if value is not None:
                    by_method[f"{population}/{method}/{name}"] = value
    _log(experiment, folder, by_unit, by_method, tables.result_tables(evaluation))


def log_heldout(experiment: Experiment, folder: RunFolder, heldout: Heldout) -> None:
    """Logs perplexities and the tables of a run on dialogues that were set apart."""
    by_unit: dict[Unit, dict[str, Value]] = {
        Unit(method, seed): {"heldout/perplexity": perplexity}
        for method, policy in heldout.methods.items()
        for seed, perplexity in enumerate(policy.per_seed)
    }
    by_method: dict[str, Value] = {
        f"heldout/{method}/perplexity": policy.perplexity
        for method, policy in heldout.methods.items()
    }
    _log(experiment, folder, by_unit, by_method, tables.heldout_tables(heldout))


def _of_units(method: str, scores: Scores) -> Iterator[tuple[Unit, str, Value | None]]:
    for training in scores.trainings:
        unit = Unit(method, training.seed)
        yield unit, "mean_reward", training.mean_reward
        yield unit, "normalized", training.normalized
        yield unit, "decoding", training.decoding
    if scores.prompted_agent is not None:
        unit = Unit(method, 0)
        yield unit, "mean_reward", scores.mean_reward
        yield unit, "normalized", scores.normalized
        yield unit, "calls", scores.prompted_agent.calls
        yield unit, "cost", scores.prompted_agent.cost


def _of_method(scores: Scores) -> Iterator[tuple[str, Value | None]]:
    for name in ("mean_reward", "normalized", "success_rate", "turns", "not_understood"):
        yield name, getattr(scores, name)


def _log(
    experiment: Experiment,
    folder: RunFolder,
    by_unit: dict[Unit, dict[str, Value]],
    by_method: dict[str, Value],
    result_tables: Sequence[tables.ResultTable],
) -> None:
    logging, shown = experiment.logging, experiment.settings
    for unit, values in by_unit.items():
        with open_logger(logging, folder.metrics(unit), shown) as logger:
            logger.summary(values)
    with open_logger(logging, folder.path / "metrics" / f"{RESULTS}.jsonl", shown) as logger:
        logger.summary(by_method)
        for table in result_tables:
            rows = [[str(cell) for cell in row.cells] for row in table.rows]
            logger.table(table.name, table.headers, rows, table.title)
