"""Flags of programs whose settings are dataclasses."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from experiments.config import ConfigError
from experiments.flags import asked_help, parse, print_help
from ilql_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Place(Settings):
    """Settings of a place."""

    folder: str = setting("Folder of it.")
    port: int = setting("Port.", 80, least=0, most=65535)


@dataclasses.dataclass(frozen=True)
class Way(Settings):
    """Settings of a way."""

    seconds: float = setting("Longest time.", 1.5, above=0)
    quick: bool = setting("In haste.", True)
    kind: str = setting("Kind of way.", "road", choices=("road", "path"))
    over: tuple[str, ...] = setting("Places on it, with commas between.", ("here",))


def test_flags_become_the_settings_of_their_classes():
    words = [
        "x.py",
        "--folder=a=b",
        "--port",
        "8",
        "--seconds=2",
        "--quick=no",
        "--kind=path",
        "--over=a, b",
    ]
    parsed, overrides = parse((Place, Way), [*words, "--config.train.steps=5"])
    assert parsed[Place] == Place("a=b", 8) and parsed[Way] == Way(2.0, False, "path", ("a", "b"))
    assert overrides == ["--config.train.steps=5"]
    parsed, _ = parse((Place, Way), ["x.py", "--folder=a", "--quick", "--port=1", "--port=2"])
    assert parsed[Way] == Way() and parsed[Place].port == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--folder is missing"),
        (["--prot=1"], "no flag --prot. Did you mean --port?"),
        (["--" + "x" * 5000], "no flag --xxx"),
        (["runs"], "unexpected argument 'runs'"),
        (["-p=1"], "unexpected argument"),
        (["--port"], "--port has no value"),
        (["--port=many"], "--port='many': expected a whole number"),
        (["--seconds=long"], "expected a number"),
        (["--quick=perhaps"], "expected true or false"),
        (["--folder=a", "--port=70000"], r"--port is 70000, but must lie in"),
        (["--folder=a", "--seconds=nan"], "--seconds"),
        (["--folder=a", "--kind=river"], "--kind is 'river', but must be road or path"),
        (["--config.train.steps"], "--config.train.steps has no value"),
    ],
)
def test_flags_that_cannot_be_are_told(words, told):
    with pytest.raises(ConfigError) as caught:
        parse((Place, Way), ["x.py", *words])
    assert told in str(caught.value) and len(str(caught.value)) < 400


def test_help_names_every_flag_with_default_and_meaning():
    assert asked_help(["x.py", "--port=1", "--help"]) and not asked_help(["x.py", "--port=1"])
    output = io.StringIO()
    print_help("About it.", {"a place": Place, "a way": Way}, Console(file=output, width=120))
    for words in ("About it.", "a place", "--folder", "Longest time.", "1.5", "(road, path)"):
        assert words in output.getvalue()
