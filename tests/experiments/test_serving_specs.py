from __future__ import annotations

from pathlib import Path

import pytest

from experiments.serving.specs import SpecError, parse_spec, split_specs
from ilql_jax.decoding_config import DecodingConfig


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A folder with a colon in its name."""
    (tmp_path / "of:may").mkdir()
    return str(tmp_path / "of:may")


def test_runs_are_named_with_method_training_and_decoding(run: str):
    assert (parse_spec(run).choice, parse_spec(run).decoding) == ("", None)
    assert parse_spec(f"{run}:ilql").place == run
    other = parse_spec(f"{run}:ilql_hindsight1-seed2:sampled at 0.6, best of 16")
    assert (other.place, other.choice, other.seed) == (run, "ilql_hindsight1", 2)
    assert other.decoding == DecodingConfig(temperature=0.6, candidates=16)


def test_worlds_prompted_agents_and_servers_are_named():
    world = parse_spec("world:teaching:optimum")
    assert (world.kind, world.place, world.choice) == ("world", "teaching", "optimum")
    prompted = parse_spec("prompted:runs/a:b:plain")
    assert (prompted.kind, prompted.place, prompted.choice) == ("prompted", "runs/a:b", "plain")
    chat = parse_spec("chat:https://me:secret@host:1/v1#Qwen/a:b")
    assert (chat.place, chat.choice) == ("https://me:secret@host:1/v1", "Qwen/a:b")
    assert "secret" not in chat.text


def test_commas_of_a_decoding_separate_no_agents():
    text = "runs/a:ilql:sampled at 0.6, best of 16,world:teaching:optimum, runs/b ,"
    expected = ("runs/a:ilql:sampled at 0.6, best of 16", "world:teaching:optimum", "runs/b")
    assert split_specs(text) == expected
    assert split_specs("runs/a:ilql:sampled, best of many")[0].endswith("best of many")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "no such folder"),
        ("runs/nowhere:ilql", "no such folder.*FOLDER:METHOD"),
        ("a\0b", "no such folder"),
        ("x" * 5000, "no such folder"),
        (".:ilql:loudly", "'loudly' is not understood"),
        (".:ilql:best of 4, greedy", "temperature 0"),
        ("world:teaching", "world:NAME:BEHAVIOUR"),
        ("prompted:runs/a", "prompted:FOLDER:AGENT"),
        ("chat:http://host/v1", "chat:URL#MODEL"),
        ("chat:ftp://me:secret@host/v1#m", "http://"),
    ],
)
def test_words_that_name_no_agent_are_told(spec: str, told: str):
    with pytest.raises(SpecError, match=told) as caught:
        parse_spec(spec)
    assert "secret" not in str(caught.value) and len(str(caught.value)) < 700
