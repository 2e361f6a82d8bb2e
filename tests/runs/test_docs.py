"""The documentation tells the truth: snippets and commands run, names and links exist.

Recipes run at tiny size in one folder for all pages, so that `runs/teaching` is the same run
everywhere. `PARSED` lists the commands that are not run, each with its reason; their flags and
settings are checked like those of a run that begins. `-m slow` runs those experiments among them
that need no device, model or data that is not here.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import itertools
import os
import re
import runpy
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pages
import pytest
import warm_start
import yaml
from launching import ROOT, TINY, write_corpus
from messages_server import MessagesServer
from world_llm import WorldLLM

from experiments import stamps
from experiments.build import build
from experiments.checks import checked
from experiments.command_line import CommandLine, parse
from experiments.config import add_method, base_config, keys_of
from experiments.run_folder import STAGES, RunFolder

# Words of other programs -> why they are not run.
ELSEWHERE = {
    "pip": "installs packages",
    "export": "sets a key",
    "gcloud": "needs a TPU pod",
    "pytest": "the tests themselves",
    "bash": "the tests themselves, in a fresh environment",
    "ruff": "checks style",
    "curl": "asks a server: tests/experiments/test_serving_app.py",
    "cd": "needs another machine",
    "experiments/local_llm.sh": "runs in tests/runs/test_local_llm.py",
    "FETCH_ONLY=1": "fetches 160 MB",
}
# Part of a command -> why it is not run; its flags are parsed and its settings checked.
PARSED = {
    "--help": "prints only",
    "config.seeds=": "one training, several times",
    "config.imagination.personas": "drawn in tests/imagination/test_persona_sampling.py",
    "config.methods=bc,fbc,mc,ilql": "methods as in the runs of the tests of each",
    "config.model.pretrained": "needs a model",
    "config.model.value_": "runs in tests/runs/test_experiments.py",
    "config.method.ilql.credit=token": "runs in tests/runs/test_stitching.py",
    "config.mesh": "needs several devices",
    "config.machine": "needs several machines",
    "/shared/": "needs several machines",
    "counseling.py": "the same code as persuasion.py",
    "persuasion.py": "runs in tests/runs/test_hindsight_runs.py and test_experiments.py",
    "travel.py": "the same code as teaching.py",
    "config.evaluation.human=prompted": "runs in tests/runs/test_evaluation_llm.py",
    "runs/with": "runs in tests/runs/test_own_task.py",
    "--stage=evaluate": "a stage of the run that is there already",
    "config.train.steps=2000": "the default run, shorter",
    "runs/teaching-long": "the default run, longer",
    "runs/short": "likewise",
    "own_data.py": "runs in tests/runs/test_own_data.py",
    "_imagination1": "runs in tests/experiments/test_imagination_rounds.py",
    "runs/sarsa": "runs in the snippets, and one like it in test_own_method_run.py",
    "hindsight_errors.py": "runs in tests/runs/test_hindsight_runs.py",
    "benchmarks/": "takes minutes; runs in tests/experiments/test_benchmarks.py",
    "ilql_jax.plan": "runs in tests/ilql_jax/test_plan.py",
    "fuzz_counts.py": "the tests themselves",
    "drinks.py": "asks a model on this machine, as tests/runs/test_local_llm.py does",
    "local_llm/": "needs the model of experiments/local_llm.sh",
    "maze.py": "runs in tests/experiments/test_maze.py",
    "wordle.py": "runs in tests/experiments/test_wordle.py",
    "sweeps.py": "runs in tests/experiments/test_variants.py",
    "study.py": "runs in tests/experiments/test_human_study_command.py",
    "serve.py": "serves until it is stopped; runs in tests/experiments/test_serve.py",
    "imagination.simulation": "runs in tests/imagination/test_simulation.py",
}
LLM = ("--config.imagination.dialogues=24",)
# Part of a command -> words that are added to it when it runs.
ADDED = {
    "coffee.py": ("--config.methods=bc", "--stage=evaluate"),
    "coffee_bar.py": ("--stage=imagine",),
    "trips.py": LLM,
    "sarsa.py": ("--config.methods=sarsa.py", "--stage=train"),
    "config.imagination.engine=anthropic": LLM,
}
PAGE_COMMANDS = [(page, words) for page in pages.PAGES for words in pages.commands(page)]


def by_page(page: Path) -> str:
    return pages.name_of(page)


def by_words(value) -> str:
    return pages.name_of(value) if isinstance(value, Path) else " ".join(value)[:80]


# --- runs ---------------------------------------------------------------------------------------


class Workspace:
    """The folder in which all commands and snippets run, as a reader's checkout would be."""

    def __init__(self, folder: Path, server: MessagesServer):
        self.folder = folder
        self._server = server
        self._done: set[tuple[str, ...]] = set()
        for name in ("experiments", "ilql_jax", "imagination"):
            (folder / name).symlink_to(ROOT / name)
        for name, text in pages.files().items():
            (folder / name).write_text(text, "utf-8")
        write_corpus(folder / "FOLDER")

    def run(self, words: tuple[str, ...], text: str = "") -> str:
        """Runs a command at tiny size, once however many pages have it; returns its output."""
        if words in self._done:
            return ""
        added = next((more for part, more in ADDED.items() if part in " ".join(words)), ())
        output = self.execute([*words[1:], *TINY, *added], text)
        self._done.add(words)
        return output

    def execute(self, arguments: list[str], text: str = "") -> str:
        result = warm_start.run(
            [sys.executable, *arguments],
            input=text,
            cwd=self.folder,
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
            | {"ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": self._server.url},
            timeout=600,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """With the run of the first command of the README, which other pages use."""
    with MessagesServer(WorldLLM("travel")) as server:
        workspace = Workspace(tmp_path_factory.mktemp("docs"), server)
        workspace.run(("python", "experiments/teaching.py"))
        # The page's first block writes the file that its commands read.
        own_data = (block for block in pages.blocks(ROOT / "docs" / "own_data.md"))
        first = next(block for block in own_data if block.language == "python")
        workspace.execute(["-c", first.text])
        yield workspace


RUN = [
    (page, words)
    for page, words in PAGE_COMMANDS
    if words[0] == "python" and not any(part in " ".join(words) for part in PARSED)
]


@pytest.mark.parametrize(("page", "words"), RUN, ids=by_words)
def test_commands_run(page: Path, words: tuple[str, ...], workspace: Workspace):
    workspace.run(words, text="/values\nHi!\n/quit\n")


# Parts of commands that need what is not here: devices, machines, a real model, an LLM, a corpus,
# conversations of people.
NOT_HERE = (
    *("config.mesh", "config.machine", "/shared/"),
    *("MODEL", "drinks.py", "local_llm", "PATH_OR_NAME", "ESConv", "from-people"),
)
SIZES = tuple(flag for flag in TINY if "--config.methods" not in flag)
SMALL_ROUNDS = ("--config.imagination.round_dialogues=40",)


def has_recipe(words: tuple[str, ...]) -> bool:
    return words[0] == "python" and is_recipe(words[1]) and "--help" not in words


def is_recipe(file: str) -> bool:
    """True for a file that defines an experiment, one that a page shows included."""
    return file in pages.files() or bool(
        re.fullmatch(r"experiments/\w+\.py", file)
        and "def get_config(" in (ROOT / file).read_text("utf-8")
    )


LONG_RUN = {
    words: page
    for page, words in PAGE_COMMANDS
    if has_recipe(words)
    and (page, words) not in RUN
    and not any(part in " ".join(words) for part in NOT_HERE)
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "page"), LONG_RUN.items(), ids=by_words)
def test_the_other_recipes_run(words: tuple[str, ...], page: Path, workspace: Workspace):
    with contextlib.chdir(workspace.folder):
        sizes = sizes_of(words[1:])
    workspace.execute([*words[1:], *sizes])


def sizes_of(arguments: tuple[str, ...]) -> list[str]:
    """Flags that make a command small, and leave its methods and decodings as they are."""
    line, sizes = parsed_recipe(arguments), [*SIZES]
    if line is not None and any("_imagination" in name for name in line.config.methods):
        sizes += SMALL_ROUNDS
    for word in arguments:
        key, _, value = word.partition("=")
        if key.startswith("--config.decoding."):
            sizes = [flag for flag in sizes if not flag.startswith(f"{key}=")]
        elif key == "--config.seeds":
            sizes.append("--config.seeds=2")
        elif key == "--config.evaluation.diagnosed_episodes" and value != "0":
            sizes.append(f"{key}=2")
    return sizes


# One example from top to bottom, held to its results in test_own_environment_page.py.
RUN_THERE = ("own_environment.md",)
WITH_SNIPPETS = [p for p in pages.PAGES if pages.snippets(p) and p.name not in RUN_THERE]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=by_page)
def test_snippets_run(page: Path, workspace: Workspace):
    workspace.execute(["-c", pages.shorter(pages.snippets(page))])


@pytest.mark.slow
def test_the_example_of_the_main_page_finds_all_points(workspace: Workspace):
    snippets = pages.snippets(ROOT / "README.md")
    assert pages.shorter(snippets) != snippets
    digits = [int(word) for word in re.findall(r"\d+", workspace.execute(["-c", snippets]))]
    # As its comment says: rising digits, and the stop token.
    assert digits[-1] == 9 and len(digits) == 6
    assert all(b > a for a, b in itertools.pairwise(digits[:-1]))


# --- commands that are not run ------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_a_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Works in a folder that has the files which the pages show."""
    folder = tmp_path_factory.mktemp("parsed")
    for name, text in pages.files().items():
        (folder / name).write_text(text, "utf-8")
    with contextlib.chdir(folder):
        yield


@pytest.mark.parametrize(("page", "words"), PAGE_COMMANDS, ids=by_words)
def test_flags_and_settings_of_commands_are_understood(
    page: Path, words: tuple[str, ...], in_a_checkout: None
):
    program, *arguments = words
    if program != "python":
        assert program in ELSEWHERE, f"no reason is given why {program} is not run"
        for word in arguments:
            assert not word.startswith("tests/") or (ROOT / word).exists(), word
        return
    if is_recipe(arguments[0]):
        check_recipe(arguments)
        return
    flags = [word for word in arguments if word.startswith("--") and "--config." not in word]
    help_text = help_of(arguments) if flags else ""
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        assert re.search(rf"--(\[no\])?{name}\b", help_text), f"{flag} is no flag of {arguments[0]}"
    of_config = [word for word in arguments if word.startswith("--config.")]
    check_recipe(["experiments/teaching.py", *of_config])


def check_recipe(arguments: list[str]) -> None:
    """Parses the command line of a recipe and checks its settings, as a run does first."""
    line = parsed_recipe(arguments)
    if line is not None and not line.config.model.pretrained:
        judged = not line.dry_run and line.stage in STAGES[STAGES.index("evaluate") :]
        checked(line.config, judged=judged)


def parsed_recipe(arguments: Sequence[str]) -> CommandLine | None:
    """Command line of a recipe; None where it asks for help."""
    file, *flags = arguments
    source = pages.files().get(file)
    module: dict = {"__name__": "recipe"}
    if source is None:
        module = runpy.run_path(str(ROOT / file), run_name="recipe")
    else:
        exec(compile(source, file, "exec"), module)
    if "--help" in flags:
        return None
    name = Path(file).stem
    return parse(name, module["get_config"](), [file, *flags], module.get("VARIANTS", ()))


def test_commands_that_share_a_folder_do_not_refuse_each_other(in_a_checkout: None, tmp_path: Path):
    """So that a reader may run one after the other; what a command leaves out, the folder says."""
    made: dict[str, tuple[str, dict[str, object]]] = {}
    refused = []
    for _, (program, *arguments) in PAGE_COMMANDS:
        line = parsed_recipe(arguments) if program == "python" and is_recipe(arguments[0]) else None
        if line is None or line.dry_run or line.config.model.pretrained:
            continue
        experiment = build(line.config)
        stage = "imagine" if line.stage == "imagine" else "train"
        values = stamps.stamp_of(RunFolder(tmp_path), stage, experiment).values
        command = " ".join(arguments)
        before, expected = made.get(line.workdir, (command, {}))
        made[line.workdir] = before, values | expected
        given = values.keys() & expected.keys() & line.overrides.keys()
        differing = sorted(key for key in given if values[key] != expected[key])
        if differing:
            refused.append(f"{command} after {before}: {differing}")
    assert not refused, "\n".join(refused)


def help_of(arguments: list[str]) -> str:
    """Output of `--help` of a module or script."""
    file, output = arguments[0], io.StringIO()
    name = arguments[1] if file == "-m" else file.removesuffix(".py").replace("/", ".")
    name = f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [name, "--help"])
        with contextlib.suppress(SystemExit):
            takes_arguments = module.main.__code__.co_argcount > 0
            module.main(sys.argv) if takes_arguments else module.main()
    return output.getvalue()


@pytest.mark.parametrize("part", PARSED)
def test_every_exception_is_of_use(part: str):
    assert any(part in " ".join(words) for _, words in PAGE_COMMANDS)


# --- names, links, form -------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages.PAGES, ids=by_page)
def test_links_lead_somewhere(page: Path):
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link


@pytest.mark.parametrize("page", pages.PAGES, ids=by_page)
def test_settings_exist(page: Path):
    for name in pages.settings(page):
        assert exists(name), f"config.{name}"


def exists(name: str) -> bool:
    """True for a key or section of the default settings, or of a method that a page shows."""
    return any(f"{key}.".startswith(f"{name}.") for key in known_keys())


@functools.cache
def known_keys() -> list[str]:
    config = base_config()
    for file, text in pages.files().items():
        if "\nMETHOD = " in text:
            module = types.ModuleType(file)
            sys.modules[file] = module  # dataclasses look their module up
            exec(compile(text, file, "exec"), module.__dict__)
            add_method(config, module.METHOD)
    return keys_of(config)


@pytest.mark.parametrize("page", pages.PAGES, ids=by_page)
def test_paths_and_names_exist(page: Path):
    for mentioned in pages.paths(page):
        path, _, test = mentioned.partition("::")
        assert (ROOT / path).exists(), mentioned
        if test:
            names = {
                n.name
                for n in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
                if isinstance(n, ast.FunctionDef | ast.ClassDef)
            }
            assert test in names, mentioned
    for name in pages.dotted_names(page):
        resolve(name)


def resolve(name: str) -> object:
    """The object of a dotted name; raises where there is nothing of that name."""
    first, *rest = name.split(".")
    value, path = importlib.import_module(first), first
    for part in rest:
        path = f"{path}.{part}"
        if not hasattr(value, part):
            importlib.import_module(path)
        value = getattr(value, part)
    return value


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 140


@pytest.mark.parametrize("page", pages.PAGES, ids=by_page)
def test_pages_begin_with_an_example(page: Path):
    assert any(block.language in ("sh", "python") for block in pages.blocks(page))
    before_sections = page.read_text("utf-8").partition("\n## ")[0]
    assert "```" in before_sections or page.name == "README.md"


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in pages.links(index)}
    assert set(pages.PAGES) - {index} <= linked


def test_citation_and_changelog_are_of_this_version():
    version = re.search(r"^version = (\S+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_renamed_settings_are_gone_and_their_new_names_exist():
    rows = re.findall(r"^\| `(config\.\S+)` \| (.+) \|$", changelog(), re.MULTILINE)
    assert rows
    for old, new in rows:
        assert not exists(old.removeprefix("config.")), f"{old} still exists"
        for name in re.findall(r"`config\.([\w.]+)`", new):
            assert exists(name), f"config.{name} does not exist"


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text("utf-8")
