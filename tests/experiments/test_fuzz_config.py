"""Damaged config.yaml and odd values on the command line: a message before any work."""

import random

import pytest
import yaml
from fuzzing import damaged_bytes, held, with_odd_yaml

from experiments import checks
from experiments.build import build
from experiments.command_line import parse, with_saved
from experiments.config import base_config, keys_of
from experiments.run_folder import RunFolder
from ilql_jax.errors import UserError


def own_config():
    config = base_config()
    config.task.world = "teaching"
    return config


def built(folder: RunFolder, *arguments: str, name: str = "teaching"):
    """Reads settings as `launch` does before the first stage."""
    line = parse(name, own_config(), ["teaching.py", *arguments])
    folder.check_experiment(name)
    config = with_saved(line.config, folder, line.overrides)
    experiment = build(config)
    checks.check(experiment, config, trained=False)
    return experiment


@pytest.fixture
def saved(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_config("teaching", own_config())
    return folder


@pytest.mark.parametrize("part", range(2))
def test_an_odd_value_in_config_yaml_is_told_or_harmless(part, saved):
    text = saved.config_file.read_text()
    for seed in range(60 * part, 60 * part + 60):
        saved.config_file.write_text(with_odd_yaml(random.Random(seed), text), encoding="utf-8")
        with held("config.yaml", seed, names=("config.yaml", "config.", str(saved.path))):
            built(saved)


def test_a_damaged_config_yaml_is_told_or_harmless(saved):
    content = saved.config_file.read_bytes()
    for seed in range(40):
        saved.config_file.write_bytes(damaged_bytes(random.Random(seed), content))
        with held("config.yaml", f"file {seed}", names=("config.yaml", "config.", str(saved.path))):
            built(saved)


VALUES = (
    *("(1,2)", "1", "0", "-1", "1.5", "1e999", "-1e999", "nan", "inf", "1e12", "1" + "0" * 30),
    *("9" * 5000, "", "''", "None", "True", "()", "('a',)", "[1]", "{}", "{'a': 1}", ",", "a,b"),
    *("..", ".", "a..b", ".py", "x.py", "a b", "\ud800", "é", "(", "'", "((((((", "=", "a=b", "@x"),
    *(
        "[" * 2000,
        "long " * 5000,
        "long" * 5000 + ".py",
        "a\0b.py",
        "__import__('os')",
        "1_000",
        "0x10",
        "1:2",
        "*",
        "[1,",
        "\x1b[2J",
    ),
)


@pytest.mark.parametrize("part", range(2))
def test_an_odd_value_on_the_command_line_is_told_or_harmless(part, tmp_path):
    keys = keys_of(own_config())
    for seed in range(70 * part, 70 * part + 70):
        rng = random.Random(seed)
        key, value = rng.choice(keys), rng.choice(VALUES)
        named = (f"config.{key}", f"config.{key.rpartition('.')[0]}: {key.rpartition('.')[2]}")
        with held("command line", (key, value[:40]), names=named):
            built(RunFolder(tmp_path / "none"), f"--config.{key}={value}")


@pytest.mark.slow
def test_every_setting_tells_every_odd_value_or_takes_it(tmp_path):
    folder = RunFolder(tmp_path / "none")
    for key in keys_of(own_config()):
        section, _, name = key.rpartition(".")
        for value in VALUES:
            where = (f"config.{key}", f"config.{section}: {name}")
            with held("command line", (key, value[:40]), names=where):
                built(folder, f"--config.{key}={value}")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("decoding.bc=(1,2)", r"config\.decoding\.bc is \(1, 2\); name .*as text, e\.g\. \('"),
        ("decoding.ilql=5", r"config\.decoding\.ilql"),
        ("decoding.bc=('best of 1000000',)", "config.decoding.bc.*must lie in .1, 1000"),
        ("imagination.dialogues=1000000000000", r"dialogues is 1000000000000, but .*at most"),
        ("imagination.dialogues=2000000000", r"dialogues is 2000000000, but .*10000000"),
        ("train.steps=1" + "0" * 30, r"config\.train\.steps is 10*, but must be a whole number"),
        ("seed=4294967296", r"config\.seed is 4294967296, but .*at most 2,147,483,647"),
        ("seeds=1000000", r"config\.seeds is 1000000, but must lie in \[1, 10000\]"),
        ("evaluation.average_episodes=1000000000", r"average_episodes is 1000000000, but"),
        (
            "imagination.dialogues=" + "9" * 5000,
            r"config\.imagination\.dialogues=.* not of the right",
        ),
        ("evaluation.prompted=" + "long " * 5000, r"config\.evaluation\.prompted is \('long long"),
        ("decoding.bc=" + "[" * 5000, r"config\.decoding\.bc"),
    ],
)
def test_what_cannot_be_is_told_with_key_and_value(option, message, tmp_path):
    with pytest.raises(UserError, match=message):
        built(RunFolder(tmp_path / "none"), f"--config.{option}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 2024-01-01", r"config\.yaml cannot be read: field 'seed': a date"),
        ("seed: .inf", r"field 'seed': expected a finite number"),
        ("seed: 1\nseed: 2", r"the key 'seed' stands twice, in line \d+ and in line \d+"),
        ("1: 2", r"the key '1' is no text"),
        ("methods: 5", r"config\.yaml, key methods: 5 is of the wrong type"),
        ("data: [a]", r"config\.data, which is no setting here"),
    ],
)
def test_yaml_that_means_something_else_is_told(line, message, saved):
    key = line.partition(":")[0]
    text = yaml.safe_load(saved.config_file.read_text())
    text.pop(key, None)
    saved.config_file.write_text(yaml.safe_dump(text) + line + "\n")
    with pytest.raises(UserError, match=message):
        built(saved)
