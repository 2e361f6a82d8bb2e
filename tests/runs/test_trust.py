"""Files of somebody else are data, and secrets stay secret: run folders, YAML, keys, passwords."""

from __future__ import annotations

import io
import operator
import os
import shlex
import time
from pathlib import Path

import in_process
import pytest
import yaml
from rich.console import Console

from experiments import launch
from experiments.build import build
from experiments.command_line import parse, with_saved
from experiments.config import base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stamps import stamp_of
from ilql_jax.models.hugging_face.families import PretrainedError
from ilql_jax.models.hugging_face.read import read_config
from imagination.dialogue import DialogueError
from imagination.llm import LLMConfig, LLMError
from imagination.llm.secrets import without_secrets
from imagination.task import Task, TaskError
from imagination.tokenization import DialogueTokenizer

KEY = "sk-" + "k" * 40
SECRET = "https://me:hidden-password@host/v1"


def saved_with(path: Path, **changes) -> RunFolder:
    """A run folder as somebody else could send it."""
    config = base_config()
    config.task.world = "teaching"
    config.update_from_flattened_dict(changes)
    folder = RunFolder(path)
    folder.save_config("teaching", config)
    return folder


def gone_on(folder: RunFolder, *arguments: str, **own):
    config = base_config()
    config.task.world = "teaching"
    config.update_from_flattened_dict(own)
    line = parse("teaching", config, ["teaching.py", *arguments])
    return with_saved(line.config, folder, line.overrides)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task.world", "w.py"),
        ("task.world", "/that folder/w.py"),
        ("task.world", "package.module"),
        ("llm.base_url", "https://elsewhere"),
        ("imagination.base_url", "http://127.0.0.1:8000"),
        ("imagination.critic.base_url", "https://elsewhere"),
        ("hindsight.base_url", "https://elsewhere"),
        ("evaluation.base_url", "https://elsewhere"),
        ("methods", ("bc", "x.py")),
        ("methods", ("x.py_hindsight1",)),
    ],
)
def test_code_and_addresses_that_a_folder_alone_names_are_refused(tmp_path: Path, key, value):
    folder = saved_with(tmp_path / "run", **{key: value})
    given = value if isinstance(value, str) else ",".join(value)
    option = f"--config.{key}={shlex.quote(given)}"
    with pytest.raises(RunError) as caught:
        gone_on(folder)
    assert str(caught.value).endswith(f"Add {option}")
    if key != "methods":
        value_of = operator.attrgetter(key)
        assert value_of(gone_on(folder, *shlex.split(option))) == value
        assert value_of(gone_on(folder, **{key: value})) == value
        other = "travel" if key == "task.world" else "https://mine"
        assert value_of(gone_on(folder, f"--config.{key}={other}")) == other


def test_all_that_is_refused_is_told_at_once(tmp_path: Path):
    folder = saved_with(tmp_path / "run", **{"task.world": "w.py", "llm.base_url": SECRET})
    with pytest.raises(RunError, match=r"Add --config.task.world=w.py --config.llm.base_url=https"):
        gone_on(folder)


def test_a_coordinator_is_never_taken_from_a_folder(tmp_path: Path):
    folder = saved_with(tmp_path / "run")
    settings = yaml.safe_load(folder.config_file.read_text())
    settings["machine"] = {"coordinator": "elsewhere:1"}
    folder.config_file.write_text(yaml.safe_dump(settings))
    with pytest.raises(RunError, match=r"machine\.coordinator"):
        gone_on(folder)


def test_a_password_in_an_address_is_written_nowhere_and_kept(tmp_path: Path):
    folder = saved_with(tmp_path / "run", **{"llm.base_url": SECRET})
    assert "hidden-pass" not in folder.config_file.read_text()
    assert "https://host/v1" in folder.config_file.read_text()
    config = gone_on(folder, **{"llm.base_url": SECRET})
    assert config.llm.base_url == SECRET  # of the experiment's own file
    config.imagination.engine = "anthropic"
    config.llm.model = "m"
    values = stamp_of(folder, "evaluate", build(config)).values
    assert values["imagination.llm.base_url"] == "https://host/v1"
    with pytest.raises(ValueError) as caught:
        LLMConfig("m", base_url="https://me:hidden/password@host")
    assert "hidden" not in str(caught.value) and "password@" not in str(caught.value)


@pytest.mark.parametrize("broken", ["\n", "\r\n ", " ", "\u2028", "é", "\x00", "\t"])
def test_a_key_that_cannot_be_is_told_at_the_start_and_not_shown(monkeypatch, broken):
    if broken != "\x00":
        monkeypatch.setenv("ANTHROPIC_API_KEY", f"{KEY}{broken}{KEY}")
    else:
        monkeypatch.setattr("os.environ", {"ANTHROPIC_API_KEY": f"{KEY}\x00{KEY}"})
    console = Console(file=io.StringIO())
    with pytest.raises(LLMError, match="ANTHROPIC_API_KEY") as caught:
        launch.check_llms([LLMConfig("m")], console)
    assert "kkkk" not in str(caught.value)
    launch.check_llms([], console)  # where no LLM takes part, no key is looked at


def test_no_error_shows_a_key_in_any_form(monkeypatch, capsys):
    key = f"{KEY}\n{'m' * 20}"
    monkeypatch.setenv("HF_TOKEN", key)
    said = f"{key} {key!r} {key.encode()} {KEY} {SECRET}"
    assert without_secrets(said).count("[key]") >= 4
    with pytest.raises(SystemExit), launch.told_errors():
        raise RunError(said)
    shown = capsys.readouterr().out
    assert "Error" in shown and "kkk" not in shown and "mmm" not in shown and "hidden" not in shown


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("http://gpu-box:8000/v1", True),
        ("http://me:hidden-password@10.0.0.7", True),
        ("http://127.0.0.1:8000", False),
        ("http://localhost", False),
        ("http://[::1]:80", False),
        ("https://gpu-box", False),
        ("http://localhost.evil.org", True),
    ],
)
def test_a_key_sent_by_plain_http_is_warned_of_once(monkeypatch, address, warned):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    console = Console(file=io.StringIO(), width=200)
    launch.check_llms([LLMConfig("m", base_url=address)] * 3, console)
    said = console.file.getvalue()
    assert said.count("Warning") == warned and "hidden" not in said
    if warned:
        assert address.rpartition("@")[2] in said


BOMBS = {
    "aliases": "\n".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" if a else f"{b}: &{b} [x, x, x]"
        for a, b in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
    ),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "itself": "a: &a [*a]",
    "nesting": "a: " + "[" * 5000,
    "blocks": "\n".join(" " * i + "a:" for i in range(200)),
    "size": "a: " + "x" * 10_000_000,
    "items": "- a\n" * 60_000,
    "digits": "a: " + "9" * 5000,
    "tag": "a: !!python/object/apply:os.system [true]",
    "bytes": "\xff\xfe",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_stands_for_too_much_is_told_within_a_second(tmp_path: Path, name):
    for path in (tmp_path / "config.yaml", tmp_path / "task.yaml"):
        path.write_bytes(BOMBS[name].encode("latin1"))
        before = time.process_time()
        with pytest.raises((RunError, TaskError), match=path.name):
            if path.name == "task.yaml":
                Task.load(path)
            else:
                RunFolder(tmp_path).saved_config()
        assert time.process_time() - before < 1


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("\ufeffa: &a [1, 2]\nb: *a\n")
    assert RunFolder(tmp_path).saved_config().b == (1, 2)


# --- files that are none ------------------------------------------------------------------------


def entries(folder: Path, outside: Path) -> dict[str, Path]:
    """Entries of a run's folder that lead elsewhere, or wait for ever."""
    made = {
        "a file outside": folder / "config.yaml.partial",
        "a folder outside": folder / "checkpoints" / "bc-seed0",
        "nothing outside": folder / "report.html",
        "a device": folder / "dialogues.jsonl",
    }
    (folder / "checkpoints").mkdir(parents=True)
    made["a file outside"].symlink_to(outside / "notes.txt")
    made["a folder outside"].symlink_to(outside)
    made["nothing outside"].symlink_to("../../nobody")
    made["a device"].symlink_to("/dev/zero")
    os.mkfifo(folder / "evaluation.json")
    return made | {"a pipe": folder / "evaluation.json"}


def test_links_that_lead_out_of_a_run_folder_and_pipes_are_refused(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.txt").write_text("mine")
    left = entries(folder, outside)
    while left:
        ended = in_process.run(folder, *in_process.SMALLEST, "--stage=imagine")
        assert (ended.status, ended.traceback) == (1, ""), ended
        [found] = [name for name, path in left.items() if f"{path} is" in ended.output]
        left.pop(found).unlink()
    assert (outside / "notes.txt").read_text() == "mine" and len(list(outside.iterdir())) == 1
    # Links inside, and a link to the whole folder, are the user's own affair.
    (folder / "figures").symlink_to("checkpoints")
    (tmp_path / "link").symlink_to(folder)
    RunFolder(tmp_path / "link").check_path()


def test_devices_in_the_place_of_a_models_files_are_told(tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(PretrainedError, match=r"config\.json is no file"):
        read_config(tmp_path)
    with pytest.raises(DialogueError, match="is neither a file nor a folder"):
        DialogueTokenizer.load(tmp_path)
