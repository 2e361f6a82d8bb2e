"""The house's own rules: floors, circles, one place for each name, docstrings (DESIGN.md)."""

from __future__ import annotations

import ast
import collections
import configparser
import fnmatch
import functools
import importlib
import re
from pathlib import Path

import pytest

from experiments.config import base_config, keys_of

ROOT = Path(__file__).parents[1]
FLOORS = ("ilql_jax", "imagination", "experiments")  # each imports from those before it
STAGES = {"imagine", "regenerate", "train", "evaluate", "report", "chat", "export"}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Module -> its tree, of all three floors."""
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/") / "__init__.py").exists()


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the house that it imports: in functions and for types, too.

    A package that a name comes through counts only where the name is not a module below it.
    """
    known = sources()
    arrows = {}
    for module, tree in known.items():
        arrows[module] = set()
        package = module if is_package(module) else module.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, *([base] if base else [])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                target = name if name in known else name.rpartition(".")[0]
                if target in known and target != module:
                    arrows[module].add(target)
    return arrows


def floor_of(module: str) -> int:
    return FLOORS.index(module.partition(".")[0])


def test_no_floor_imports_from_one_above_it():
    upward = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in sorted(others)
        if floor_of(other) > floor_of(module)
    ]
    assert not upward


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan, 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(arrows[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in arrows:
        if module not in number:
            visit(module)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("floor", FLOORS)
def test_no_modules_import_each_other_in_a_circle(floor: str):
    own = {module for module in imports() if module.split(".")[0] == floor}
    assert not circles({module: imports()[module] & own for module in own})


def test_stages_are_stages_and_nothing_else():
    files = {path.stem for path in (ROOT / "experiments/stages").glob("*.py")} - {"__init__"}
    assert files == STAGES


def test_a_prompts_version_names_one_prompt():
    files = collections.defaultdict(list)
    for path in ROOT.rglob("prompts/**/*.md"):
        if path.is_relative_to(ROOT / "imagination"):
            files[path.read_text("utf-8").splitlines()[0].strip()].append(path.name)
    assert files
    assert not {version: names for version, names in files.items() if len(names) > 1}


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 140


QUESTIONS = re.compile(r"(What|Whether|Where|How|Who|Whose|Whom|Likewise|Of)\b")


def test_docstrings_begin_with_a_verb_or_a_noun():
    vague = []
    of_tests = {
        str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in (ROOT / "tests").rglob("*.py")
    }
    for module, tree in (sources() | of_tests).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if QUESTIONS.match(text):
                    where = getattr(node, "lineno", 1)
                    vague.append(f"{module}:{where}: {text.splitlines()[0]}")
    assert not vague, "\n".join(vague)


def test_arguments_and_settings_are_described_by_a_noun():
    """Not by the rest of a sentence, as in "seed: Of the data"."""
    vague = []
    for module, tree in sources().items():
        for line, text in texts(tree):
            described = re.findall(r"^ +\*{0,2}[a-z_0-9, ]+: (.*)", text, re.MULTILINE)
            vague += [f"{module}:{line}: {each}" for each in described if QUESTIONS.match(each)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting":
                text = getattr(node.args[0], "value", "") if node.args else ""
                if QUESTIONS.match(str(text)):
                    vague.append(f"{module}:{node.lineno}: {text}")
    assert not vague, "\n".join(vague)


def test_every_module_says_what_it_is_for():
    silent = [m for m, tree in sources().items() if tree.body and not ast.get_docstring(tree)]
    assert not silent


# Experiments choose what they train; each of these has one tuple of names.
CHOICES = {
    f"experiments.{name}"
    for name in (
        "config",
        "counseling",
        "persuasion",
        "in_environment",
        "benchmarks.hindsight_errors",
    )
}


def test_methods_are_listed_in_their_table_alone():
    """No list, set or dictionary of their names elsewhere: a new method is one file."""
    methods = importlib.import_module("ilql_jax.methods").METHODS
    assert len(methods) > 1
    lists, chosen = [], []
    for module, tree in sources().items():
        if module.startswith("ilql_jax.methods"):
            continue
        for node in ast.walk(tree):
            items = {
                ast.Dict: lambda node: node.keys,
                ast.List: lambda node: node.elts,
                ast.Set: lambda node: node.elts,
                ast.Tuple: lambda node: node.elts,
            }.get(type(node), lambda node: [])(node)
            names = {x.value for x in items if isinstance(x, ast.Constant)} & set(methods)
            if len(names) > 1 and module in CHOICES and isinstance(node, ast.Tuple):
                chosen.append(module)
            elif len(names) > 1:
                lists.append(f"{module}:{node.lineno}: {', '.join(sorted(names))}")
    assert not lists, "\n".join(lists)
    assert sorted(chosen) == sorted(CHOICES)


def test_every_test_file_is_named_after_a_module_or_is_a_whole_run():
    """So that the tests of a module are found by its name; fuzzing is named after its door."""
    names = {module.split(".")[-1] for module in sources()}
    names |= {"_".join(module.split(".")[-2:]) for module in sources()}
    # Of several modules together:
    names |= {"house", "mutation", "accelerators", "padding", "human_study_attackers"}
    odd = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "runs" not in path.parts
        and not path.stem.startswith("test_fuzz_")
        and path.stem.removeprefix("test_") not in names
    ]
    assert not odd


# --- what messages name -------------------------------------------------------------------------


def texts(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and words of all strings, what is filled in as `*`."""
    found, parts = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            words = (p.value if isinstance(p, ast.Constant) else "*" for p in node.values)
            found.append((node.lineno, "".join(words)))
        elif isinstance(node, ast.Constant) and id(node) not in parts:
            found.append((node.lineno, str(node.value)))
    return found


def test_settings_and_stages_that_strings_name_exist():
    """`config.train.steps` in a message is a setting or a section, `--stage=train` a stage."""
    keys = keys_of(base_config())
    known = {key.rsplit(".", n)[0] for key in keys for n in range(key.count(".") + 1)}
    of_files = {"json", "yaml", "py"}
    wrong = []
    for module, tree in sources().items():
        if module.startswith("ilql_jax."):
            continue  # knows no section: `config` is a dataclass there
        for line, text in texts(tree):
            names = re.findall(r"(?<![\w.])config\.([a-z_*]+(?:\.[a-z_*0-9]+)*)", text)
            wrong += [
                f"{module}:{line}: config.{name}"
                for name in set(names) - known - of_files
                if not fnmatch.filter(known, name)
            ]
            stages = re.findall(r"--stage=([a-z]+)", text)
            wrong += [
                f"{module}:{line}: --stage={s}" for s in stages if s not in STAGES | {"derive"}
            ]
    assert not wrong


def test_extras_that_messages_and_pages_name_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name for name in setup["options.extras_require"] if not name.startswith("#")}
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / ".ci").glob("*")]
    files += [path for floor in (*FLOORS, "tests") for path in (ROOT / floor).rglob("*.py")]
    named = {
        extra.strip(): path
        for path in files
        for several in re.findall(r"(?:ilql-jax|-e '?\.)\[([a-z, ]+)\]", path.read_text("utf-8"))
        for extra in several.split(",")
    }
    assert named.keys() >= {"datasets", "parity"}
    assert named.keys() <= extras, {name: named[name] for name in named.keys() - extras}


def test_the_lowest_versions_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pinned = [line.split(" == ") for line in lines if line and not line.startswith("#")]
    bounds = [line.split(" >= ") for line in setup["options"]["install_requires"].splitlines()]
    bounds = [bound for bound in bounds if len(bound) == 2]
    for (name, version), (of_setup, lowest) in zip(pinned, bounds, strict=True):
        assert name == of_setup and f"{version}.".startswith(f"{lowest}.")
