"""Mutation testing: do the tests of a module notice a fault in it?

    python tests/mutants.py --count 200 --seed 0
    python tests/mutants.py --module ilql_jax.losses --count 50 --seed 1

Draws faults (`support/mutation.py`), runs the tests of the module that each is in (`TESTS`), and
prints the survivors as diffs and a table. The same seed draws the same faults, as long as the
files are the same. The working tree is never touched: each fault is tried in a forked process that
imports the mutated source in the file's place. Tests that run the faulty statement go first, the
fastest of them at the head, and the first failure ends it, so most faults take about a second.

Some faults change nothing that can be seen (a bound that no caller reaches, a shape that
broadcasts to the same). `equivalent_mutants.toml` lists those that somebody has looked at, with
the reason; they are counted apart.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

import conftest  # noqa: E402, F401  (sets the environment before jax is imported)
from children import exit_status  # noqa: E402
from mutation import Mutant, candidates  # noqa: E402

EQUIVALENT = ROOT / "tests/equivalent_mutants.toml"
# Module -> the fast tests of it.
TESTS = {
    "ilql_jax.losses": ["ilql_jax/test_losses.py"],
    "ilql_jax.chunked_cross_entropy": ["ilql_jax/test_chunked_cross_entropy.py"],
    "ilql_jax.methods.bc": ["ilql_jax/test_methods.py"],
    "ilql_jax.methods.fbc": ["ilql_jax/test_methods.py"],
    "ilql_jax.methods.mc": ["ilql_jax/test_methods.py"],
    "ilql_jax.methods.ilql": ["ilql_jax/test_methods.py"],
    "ilql_jax.methods.dpo": ["ilql_jax/test_methods.py"],
    "ilql_jax.methods.qsft": ["ilql_jax/test_qsft.py"],
    "ilql_jax.methods.rwft": ["ilql_jax/test_rwft.py"],
    "ilql_jax.methods.loss_terms": ["ilql_jax/test_methods.py"],
    "ilql_jax.batching": ["ilql_jax/test_batching.py", "ilql_jax/test_windows.py"],
    "ilql_jax.windows": ["ilql_jax/test_windows.py"],
    "ilql_jax.decode": ["ilql_jax/test_decode.py"],
    "ilql_jax.policy": ["ilql_jax/test_decode.py", "ilql_jax/test_policy_folder.py"],
    "experiments.evaluation.statistics": [
        "experiments/test_statistics.py",
        "experiments/test_values_by_turn.py",
    ],
    "experiments.evaluation.values_by_turn": ["experiments/test_values_by_turn.py"],
    "experiments.evaluation.returns": ["experiments/test_values_by_turn.py"],
    "imagination.simulation.planning": ["imagination/test_planning.py"],
}
# Imported once, before the processes fork; nothing here starts threads or a backend.
WARM = ("jax.numpy", "flax.nnx", "optax", "grain", "orbax.checkpoint", "scipy.stats", "pytest")
# No plugins and no rewritten assertions: a verdict takes no explanation.
PYTEST = ("-x", "-q", "-o", "addopts=", "--import-mode=importlib", "--assert=plain", "--tb=line")
LEAST_SECONDS = 20.0  # a mutant's time limit, or ten times what the tests took
KILLED, SURVIVED, EQUIVALENT_ = "killed", "survived", "equivalent"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Outcome of the tests without a fault.

    Attributes:
        seconds: Test -> duration.
        tests_by_line: Statement's line -> tests that ran it first in their process.
    """

    seconds: dict[str, float]
    tests_by_line: dict[int, list[str]]

    def in_order_for(self, line: int) -> list[str]:
        """All tests; those that ran the line first, then the others, the fastest ahead."""
        running = set(self.tests_by_line.get(line, ()))
        return sorted(self.seconds, key=lambda test: (test not in running, self.seconds[test]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", action="append", choices=sorted(TESTS), help="default: all")
    parser.add_argument("--count", type=int, default=200, help="mutants to draw from all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="draw and print, run nothing")
    options = parser.parse_args(arguments)
    modules = [name for name in options.module or TESTS if path_of(name).exists()]
    mutants = draw(modules, options.count, options.seed)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.fault}\n{mutant.diff}\n")
        return 0
    verdicts = judge(mutants)
    print_table(verdicts)
    return 0 if all(verdict != SURVIVED for _, verdict, _ in verdicts) else 1


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def draw(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """A random sample of all mutants of these modules, without replacement, by module."""
    everything = [m for name in modules for m in candidates(name, path_of(name).read_text())]
    drawn = random.Random(seed).sample(everything, min(count, len(everything)))
    drawn = [mutant for mutant in drawn if mutant.parses]
    return sorted(drawn, key=lambda m: (modules.index(m.module), m.start, m.end, m.new))


def known_equivalents() -> set[tuple[str, str, str]]:
    """Module, line before and after of the mutants in `equivalent_mutants.toml`."""
    entries = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    assert all(entry["reason"] for entry in entries)
    return {(entry["module"], entry["before"], entry["after"]) for entry in entries}


# --- running ------------------------------------------------------------------------------------


def judge(mutants: Sequence[Mutant]) -> list[tuple[Mutant, str, str]]:
    """Mutant, verdict, and what killed it or its diff; tells of each as it goes."""
    with tempfile.TemporaryDirectory() as cache:
        # Mutants share all that was compiled for what they left as it was.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for name in WARM:
            importlib.import_module(name)
        equivalents = known_equivalents()
        baselines: dict[str, Baseline] = {}
        verdicts = []
        for mutant in mutants:
            if (mutant.module, mutant.before, mutant.after) in equivalents:
                verdicts.append((mutant, EQUIVALENT_, ""))
                continue
            if mutant.module not in baselines:
                baselines[mutant.module] = measure_baseline(mutant.module)
            verdict, why = attempt(mutant, baselines[mutant.module])
            verdicts.append((mutant, verdict, why))
            print(f"{verdict:8} {mutant.module}:{mutant.line} {mutant.fault}: {why}", flush=True)
            if verdict == SURVIVED:
                print(mutant.diff + "\n", flush=True)
    return verdicts


def measure_baseline(module: str) -> Baseline:
    """Runs the tests once without a fault, noting who runs which line.

    Raises:
        RuntimeError: A test fails.
    """
    source = instrumented(path_of(module).read_text())
    status, record = in_child(lambda note: run_tests(module, source, None, note), limit=900)
    if status != 0:
        raise RuntimeError(f"{module}: the tests fail without a fault: {record}")
    tests_by_line = collections.defaultdict(list)
    for test, lines in record["lines"].items():
        for line in lines:
            tests_by_line[line].append(test)
    total = sum(record["seconds"].values())
    print(f"{module}: {len(record['seconds'])} tests in {total:.0f} s without a fault", flush=True)
    return Baseline(record["seconds"], dict(tests_by_line))


def attempt(mutant: Mutant, baseline: Baseline) -> tuple[str, str]:
    """Verdict on one mutant, and the test that noticed it."""
    order = baseline.in_order_for(mutant.line)
    limit = LEAST_SECONDS + 10 * sum(baseline.seconds.values())
    status, record = in_child(
        lambda note: run_tests(mutant.module, mutant.source, order, note), limit
    )
    if status is None:
        return KILLED, f"no end within {limit:.0f} s"
    if status == 0:
        return SURVIVED, f"{len(order)} tests pass"
    return KILLED, record.get("failed") or f"pytest ends with {status}"


def in_child(work: Callable[[Callable], int], limit: float) -> tuple[int | None, dict]:
    """Exit status and record of `work` in a forked process; None if it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        note, output = Path(folder) / "record.json", Path(folder) / "output.txt"
        child = os.fork()
        if child == 0:
            os.setsid()
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                status = 70
                try:
                    status = int(work(lambda record: note.write_text(json.dumps(record))))
                finally:
                    sys.stdout.flush()
                    os._exit(status)
        status = exit_status(child, limit, os.killpg)
        record = json.loads(note.read_text()) if note.exists() else {}
        if status and "failed" not in record:
            record["failed"] = " ".join(output.read_text()[-300:].split())
        return status, record


def run_tests(module: str, source: str, order: Sequence[str] | None, note: Callable) -> int:
    """Runs the module's tests in this process with `source` in its place; notes what happened."""
    import pytest

    sys.meta_path.insert(0, _Replacing(module, source))
    recorder = _Recorder(order)
    _Recorder.current = recorder
    files = [str(ROOT / "tests" / name) for name in TESTS[module]]
    quiet = [*PYTEST, "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    status = pytest.main([*quiet, *files], plugins=[recorder])
    lines = {test: sorted(found) for test, found in recorder.lines.items()}
    record = {"seconds": recorder.seconds, "lines": lines}
    note(record | ({"failed": recorder.failed} if recorder.failed else {}))
    return int(status)


class _Replacing(importlib.abc.MetaPathFinder):
    """Imports one module from a text instead of its file."""

    def __init__(self, module: str, source: str):
        self._module, self._source = module, source

    def find_spec(self, name, path=None, target=None):
        if name != self._module:
            return None
        file, source = path_of(name), self._source

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(source, str(file), "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(name, file, loader=Loader(name, str(file)))


class _Recorder:
    """A pytest plugin: the order of the tests, how long each takes and which lines it runs."""

    current: _Recorder | None = None

    def __init__(self, order: Sequence[str] | None):
        self._rank = None if order is None else {test: i for i, test in enumerate(order)}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, set[int]] = collections.defaultdict(set)
        self.failed = ""
        self._test = ""

    def pytest_collection_modifyitems(self, items):
        if self._rank is not None:
            items.sort(key=lambda item: self._rank.get(item.nodeid, len(self._rank)))

    def pytest_runtest_logstart(self, nodeid):
        self._test = nodeid

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = report.nodeid.split("/")[-1]
        if not report.skipped:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def hit(self, line: int) -> None:
        self.lines[self._test].add(line)


def hit(line: int) -> None:
    """Called by instrumented source."""
    _Recorder.current.hit(line)


def instrumented(source: str) -> str:
    """The source, telling of each statement in a function before it runs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(node, ast.Module | ast.ClassDef) or not isinstance(block, list):
                continue
            with_calls = []
            for statement in block:
                if not isinstance(statement, ast.stmt) or _is_docstring(statement):
                    with_calls.append(statement)
                    continue
                call = ast.parse(f"__import__('mutants').hit({statement.lineno})").body[0]
                with_calls += [call, statement]
            setattr(node, name, with_calls)
    return ast.unparse(ast.fix_missing_locations(tree))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def print_table(verdicts: Sequence[tuple[Mutant, str, str]]) -> None:
    counts = collections.defaultdict(collections.Counter)
    for mutant, verdict, _ in verdicts:
        for row in (mutant.module, "all"):
            counts[row][verdict] += 1
    print(f"{'module':36}{'mutants':>9}{'equivalent':>12}{'killed':>8}{'survived':>10}{'':>8}")
    for module in [*dict.fromkeys(m.module for m, *_ in verdicts), "all"]:
        row = counts[module]
        mutants, judged = row.total(), row[KILLED] + row[SURVIVED]
        share = f"{row[KILLED] / judged:.0%}" if judged else "-"
        print(
            f"{module:36}{mutants:9}{row[EQUIVALENT_]:12}{row[KILLED]:8}{row[SURVIVED]:10}{share:>8}"
        )


if __name__ == "__main__":
    sys.modules["mutants"] = sys.modules["__main__"]
    sys.exit(main())
