"""The command line: variants, names, help, and what a folder was run with before."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from ml_collections import ConfigDict
from rich.console import Console

from experiments import command_line
from experiments.checks import checked
from experiments.command_line import parse, with_saved
from experiments.config import ConfigError, add_method, base_config
from experiments.run_folder import RunError, RunFolder

METHOD = """
import dataclasses

from ilql_jax.methods import METHODS, MethodConfig
from ilql_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class MineConfig(MethodConfig):
    sharpness: float = setting("Sharpness of mine.", 2.0, above=0)


def loss(*arguments, **settings):
    return METHODS["bc"].loss(*arguments, **settings)


METHOD = dataclasses.replace(
    METHODS["bc"], name="mine", title="Mine", config=MineConfig(), loss=loss, decodings=("greedy",)
)
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(METHOD)
    return path


def parsed(*arguments: str, variants=()):
    config = base_config()
    config.task.world = "teaching"
    return parse("teaching", config, ["teaching.py", *arguments], variants)


def test_names_have_commas_between():
    line = parsed("--config.methods=bc, ilql", "--config.evaluation.prompted=plain,clam")
    assert line.config.methods == ("bc", "ilql")
    assert line.config.evaluation.prompted == ("plain", "clam")


def test_a_setting_that_is_given_twice_has_the_last_value():
    twice = ["--config.methods=bc,ilql", "--config.seeds=2", "--config.methods=mc"]
    line = parse("teaching", base_config(), ["teaching.py", *twice, "--config.seeds=3"])
    assert line.config.methods == ("mc",) and line.config.seeds == 3


def test_variants_change_defaults_and_the_command_line_goes_before_them():
    variants = (
        ({"data.source": "esconv"}, {"train.steps": 7, "seeds": 2}),
        ({"data.source": "esconv", "hindsight.engine": "anthropic"}, {"seeds": 3}),
    )
    assert parsed(variants=variants).config.train.steps == 6000
    corpus = parsed("--config.data.source=esconv", variants=variants).config
    assert (corpus.train.steps, corpus.seeds) == (7, 2)
    given = ("--config.data.source=esconv", "--config.train.steps=9")
    by_llm = parsed(*given, "--config.hindsight.engine=anthropic", variants=variants).config
    assert (by_llm.train.steps, by_llm.seeds) == (9, 3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.stepz=5", "Did you mean config.train.steps?"),
        ("--config.objective.expectile=0.9", "Did you mean config.method.ilql.expectile?"),
        ("--config.dpo.kl_weight=1.0", "Did you mean config.method.dpo.kl_weight?"),
        ("--config.imagination.rounds=2", "--config.methods=ilql,ilql_imagination1"),
        ("--config.hindsight.rounds=2", "--config.methods=ilql,ilql_hindsight1"),
        ("--config.imagination.max_cost=3", "Did you mean config.llm.max_cost?"),
        ("--config.train.steps=many", "'many' is not of the right type; expected int"),
        ("surprise", "unexpected argument 'surprise'"),
    ],
)
def test_what_was_probably_meant_is_told(argument: str, message: str):
    with pytest.raises(ConfigError) as caught:
        parsed(argument)
    assert message in str(caught.value)


# --- methods of one's own -----------------------------------------------------------------------


def test_the_settings_of_an_own_method_are_on_the_command_line(own_file: Path):
    line = parsed(
        f"--config.methods=bc,{own_file},mine_hindsight1",
        "--config.method.mine.sharpness=3",
        "--config.decoding.mine=('sampled',)",
    )
    experiment = checked(line.config)
    assert [each.name for each in experiment.methods] == ["bc", "mine", "mine_hindsight1"]
    assert experiment.method("mine").method.config.sharpness == 3.0
    assert [str(each) for each in experiment.method("mine").decodings] == ["sampled"]
    with pytest.raises(ConfigError, match=r"config\.method\.mine\.sharpness is -1\.0, but must be"):
        checked(parsed(f"--config.methods={own_file}", "--config.method.mine.sharpness=-1").config)


EXPERIMENT = """
from ml_collections import ConfigDict

from experiments.config import add_method, base_config


def get_config():
    config = base_config()
    config.task.world = "teaching"
    config.methods = ("bc", {file!r})
    {settings}
    config.decoding.mine = ("sampled at 0.5",)
    return config
"""


@pytest.mark.parametrize(
    "settings",
    [
        "add_method(config, {file!r}); config.method.mine.sharpness = 3.0",
        pytest.param('config.method.mine = ConfigDict({{"sharpness": 3}})', marks=pytest.mark.slow),
    ],
)
def test_an_experiments_file_sets_up_its_own_method(settings: str, own_file: Path):
    file = str(own_file)
    module: dict = {}
    exec(EXPERIMENT.format(file=file, settings=settings.format(file=file)), module)

    def own(*arguments: str):
        line = parse("teaching", module["get_config"](), ["teaching.py", *arguments])
        return checked(line.config).method("mine")

    assert own().method.config.sharpness == 3.0 and own().method.config.action_chunk == 1024
    assert [str(each) for each in own().decodings] == ["sampled at 0.5"]
    assert own("--config.method.mine.sharpness=0.5").method.config.sharpness == 0.5
    console = Console(file=io.StringIO(), width=100)
    command_line.print_help("x", "", module["get_config"](), ["x", "--help=mine"], console)
    assert "Sharpness of mine." in console.file.getvalue() and "3.0" in console.file.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpnes": 3.0}, r"config\.method\.mine\.sharpnes is no setting; there are"),
        ({"sharpness": "no"}, r"config\.method\.mine\.sharpness is 'no', .* expected float"),
    ],
)
def test_settings_that_an_own_method_does_not_have_are_told(settings, message, own_file: Path):
    config = base_config()
    config.method.mine = ConfigDict(settings)
    with pytest.raises(ConfigError, match=message):
        add_method(config, str(own_file))


def test_a_file_that_a_folder_alone_names_is_not_executed(own_file: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    line = parsed(f"--config.methods=bc,{own_file}", "--config.method.mine.sharpness=3")
    folder.save_config("teaching", line.config)
    own_file.write_text("raise SystemExit('executed')")
    again = parsed()
    with pytest.raises(RunError) as caught:
        with_saved(again.config, folder, again.overrides)
    assert f"Add --config.methods=bc,{own_file}" in str(caught.value)
    # Without it, the rest of the folder can be used.
    others = parsed("--config.methods=bc")
    assert with_saved(others.config, folder, others.overrides).methods == ("bc",)
    own_file.write_text(METHOD)
    named = parsed(f"--config.methods=bc,{own_file}")
    merged = with_saved(named.config, folder, named.overrides)
    assert merged.method.mine.sharpness == 3.0


def test_a_logger_that_a_folder_alone_names_is_not_executed(tmp_path: Path):
    folder, file = RunFolder(tmp_path / "run"), tmp_path / "logger.py"
    line = parsed(f"--config.logging.backends=tensorboard,{file}")
    assert line.config.logging.backends == ("tensorboard", str(file))
    folder.save_config("teaching", line.config)
    with pytest.raises(RunError, match=rf"Add --config\.logging\.backends=tensorboard,{file}"):
        with_saved(parsed().config, folder, {})
    others = parsed("--config.logging.backends=tensorboard")
    merged = with_saved(others.config, folder, others.overrides)
    assert merged.logging.backends == ("tensorboard",)


# --- a folder that was run before ---------------------------------------------------------------


def test_a_folder_of_another_version_is_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump({"seed": 1, "objective": {"expectile": 0.8}}))
    line = parsed()
    with pytest.raises(RunError, match=r"another version .* config\.objective\.expectile"):
        with_saved(line.config, folder, line.overrides)


def test_saved_settings_come_back_unless_the_command_line_says_otherwise(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.save_config("teaching", parsed("--config.seeds=3", "--config.train.steps=7").config)
    line = parsed("--config.train.steps=9")
    merged = with_saved(line.config, folder, line.overrides)
    assert (merged.seeds, merged.train.steps) == (3, 9)
    assert "machine" not in yaml.safe_load(folder.config_file.read_text())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--seed=5",
            r"no flag --seed; settings begin with --config\. Did you mean .*config\.seed\?",
        ),
        ("--frobnicate", r"no flag --frobnicate; .* There are: chat, data"),
        ("--workdir=", r"--workdir is empty\. Give a folder, or leave it out for runs/teaching"),
        ("--workdir= ", r"--workdir is empty"),
        (f"--config.methods=bc_hindsight{'9' * 5000}", r"there is no method 'bc_hindsight99"),
        ("--config.methods=bc_hindsight100", r"no method .* rounds of hindsight .* \(up to 99\)"),
    ],
)
def test_a_slip_of_the_hand_is_told_with_what_was_meant(argument, message):
    with pytest.raises(ConfigError, match=message):
        checked(parsed(argument).config)


def test_a_folder_in_the_home_is_found_where_the_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed("--workdir=~/runs/a").workdir == "/home/me/runs/a"
    assert parsed("--workdir=runs/~").workdir == "runs/~"


# --- help ---------------------------------------------------------------------------------------


def help_of(*arguments: str) -> str:
    console = Console(file=io.StringIO(), width=100)
    config = base_config()
    arguments = ("teaching.py", *arguments)
    command_line.print_help("teaching", "About teaching.", config, arguments, console)
    return console.file.getvalue()


def test_help_shows_every_setting_with_default_and_meaning(own_file: Path):
    text = help_of("--help", f"--config.methods=bc,{own_file}")
    assert "About teaching." in text and "--stage=STAGE" in text
    assert "config.method.ilql" in text and "expectile" in text and "0.8" in text
    assert "config.method.mine" in text and "Sharpness of mine." in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_a_section_shows_that_section():
    text = help_of("--help=train")
    assert "gradient_accumulation*" in text and "config.tokenizer" not in text
    assert "config.method.ilql" in help_of("--help", "method") and "About" not in text
    assert "config.llm" in help_of("--help=price")
    with pytest.raises(ConfigError, match="no setting has that name"):
        help_of("--help=nonsense")


def test_help_is_asked_for_in_the_usual_ways():
    assert command_line.asked_help(["x", "--help"]) == ""
    assert command_line.asked_help(["x", "-h", "--config.seeds=1"]) == ""
    assert command_line.asked_help(["x", "--help", "train"]) == "train"
    assert command_line.asked_help(["x", "--help=config.train"]) == "train"
    assert command_line.asked_help(["x", "--config.seeds=1"]) is None
