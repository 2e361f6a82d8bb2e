"""Mutants are faults of the kinds that happen, and nothing that cannot be seen."""

import textwrap

import mutants
from mutation import candidates

SOURCE = '''
    """A docstring, 3 + 4."""

    from typing import Any


    def mean(values: list[int + 1], weight, axis=0):
        """Not 1 + 1 either."""
        if len(values) < 2:
            raise ValueError(f"{len(values) + 1} are too few")
        weight = weight * np.where(values > 0, values, 1.5)
        return stop_gradient(weight).sum(axis=-1, where=weight) / max(len(values), 1)
'''


def all_of(source: str = SOURCE) -> dict[str, str]:
    return {m.after: m.fault for m in candidates("some.module", textwrap.dedent(source))}


def test_the_faults_that_happen_are_among_them():
    start, end = "weight = weight * np.where", "return stop_gradient(weight).sum"
    for line in (
        "if len(values) <= 2:",
        "if len(values) < 3:",
        "if (not (len(values) < 2)):",
        f"{start}(values >= 0, values, 1.5)",
        f"{start}(values > 0, 1.5, values)",
        f"{start}(values > 0, values, 2.5)",
        "pass",
        "weight = weight / np.where(values > 0, values, 1.5)",
        "weight = (weight)",
        "return (weight).sum(axis=-1, where=weight) / max(len(values), 1)",
        f"{end}(axis=-1, where=weight) * max(len(values), 1)",
        f"{end}(axis=-1, where=weight) / min(len(values), 1)",
        f"{end}(axis=(1), where=weight) / max(len(values), 1)",
        f"{end}(axis=-1) / max(len(values), 1)",
        "return stop_gradient(weight).mean(axis=-1, where=weight) / max(len(values), 1)",
    ):
        assert line in all_of(), line


def test_words_types_and_messages_are_left_alone():
    for mutant in candidates("some.module", textwrap.dedent(SOURCE)):
        assert "int + 1" in mutant.source and "3 + 4" in mutant.source
        assert "{len(values) + 1} are too few" in mutant.source


def test_every_mutant_is_another_program_and_tells_its_place():
    found = candidates("some.module", textwrap.dedent(SOURCE))
    assert len({mutant.source for mutant in found}) == len(found) > 20
    for mutant in found:
        lines = mutant.source.splitlines()
        assert mutant.after in lines[mutant.line - 1] or mutant.after in "".join(lines)
        assert mutant.diff.startswith("--- some/module.py")


def test_the_same_seed_draws_the_same_mutants():
    modules = ["ilql_jax.losses", "ilql_jax.batching"]
    first = mutants.draw(modules, 20, seed=3)
    assert first == mutants.draw(modules, 20, seed=3)
    assert first != mutants.draw(modules, 20, seed=4)
    assert {mutant.module for mutant in first} == set(modules)


def test_reviewed_mutants_still_exist_and_have_a_reason():
    """A line that was changed since takes its entry along, or the entry goes."""
    existing = {
        (m.module, m.before, m.after)
        for name in mutants.TESTS
        for m in candidates(name, mutants.path_of(name).read_text())
    }
    assert not mutants.known_equivalents() - existing


def test_instrumented_source_still_does_the_same(monkeypatch):
    source = "def f(x):\n    '''Doc.'''\n    if x > 1:\n        x += 1\n    return x\n"
    recorder = mutants._Recorder(None)
    monkeypatch.setattr(mutants._Recorder, "current", recorder)
    space = {}
    exec(mutants.instrumented(source), space)
    assert (space["f"](1), space["f"](2), space["f"].__doc__) == (1, 3, "Doc.")
    assert recorder.lines[""] == {3, 4, 5}


def test_every_module_of_the_table_has_its_tests():
    for module, files in mutants.TESTS.items():
        assert mutants.path_of(module).exists(), module
        for file in files:
            assert (mutants.ROOT / "tests" / file).exists(), file
