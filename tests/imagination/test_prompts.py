"""Prompt files: names, versions and installation."""

import configparser
import hashlib
from pathlib import Path

import pytest

from imagination import prompts
from imagination.prompts import PromptError, load_prompt, prompt_names, read_versioned

ROOT = Path(__file__).parents[2]


def test_a_version_is_the_prompts_name_and_a_number_so_no_two_share_one():
    versions = [read_versioned(name)[0] for name in prompt_names()]
    assert [version.rpartition("/")[0] for version in versions] == prompt_names()
    assert len(set(versions)) == len(versions) > 20


def test_every_prompt_loads():
    for name in prompt_names():
        if name != "engine/behaviours":  # a list of instructions, part of other prompts
            assert load_prompt(name).version.startswith(f"{name}/")


def test_a_changed_text_has_a_new_version():
    """Stored answers and results are known by the version. Add a line for a new one here."""
    known = dict(line.split() for line in KNOWN.split("\n") if line)
    for name in prompt_names():
        version, body = read_versioned(name)
        assert known.get(version) == hashlib.sha256(body.encode()).hexdigest()[:12], (
            f"the text of {version} changed: count up the version in its first line"
        )


def test_bad_prompts_are_named(tmp_path, monkeypatch):
    with pytest.raises(PromptError, match=r"no prompt 'oracle' in .*there are agents/clam_answer"):
        load_prompt("oracle")
    with pytest.raises(PromptError, match=r"no prompt '\.\./prompts/engine/human'"):
        load_prompt("../prompts/engine/human")
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    for name, text in (
        ("hi", "Hi\nthere"),
        ("borrowed", "version: engine/human/1\n[system]\nHi"),
        ("unnumbered", "version: unnumbered/\n[system]\nHi"),
        ("no_system", "version: no_system/1\nthere"),
    ):
        (tmp_path / f"{name}.md").write_text(text)
    with pytest.raises(PromptError, match=r"hi\.md starts with 'Hi'; .* 'version: hi/<number>'"):
        load_prompt("hi")
    for name in ("borrowed", "unnumbered"):
        with pytest.raises(PromptError, match=rf"{name}\.md starts with .*version: {name}/<number"):
            load_prompt(name)
    with pytest.raises(PromptError, match=r"no_system\.md has no line \[system\]"):
        load_prompt("no_system")


def test_every_prompt_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pattern = setup["options.package_data"]["imagination.prompts"]
    folder = ROOT / "imagination" / "prompts"
    assert set(folder.glob(pattern)) == set(folder.rglob("*.md"))


KNOWN = """
agents/clam_answer/2 6ec450c6100c
agents/clam_ask/3 77095590e627
agents/clam_check/2 cb68df0445f1
agents/gdp_zero_acts/1 c8be61f08cb7
agents/gdp_zero_human/3 ee5c48568795
agents/gdp_zero_prior/2 6d1546f5797d
agents/gdp_zero_say/3 f364536581c7
agents/gdp_zero_value/3 d93b3b0f0dd5
agents/plain/2 3e48a8c04742
agents/reasoning/2 e672493c5d7c
engine/agent/3 be0652552f37
engine/behaviours/1 aadb73f8e129
engine/critique/1 edf7471ba935
engine/human/3 391c30e1e5be
engine/personas/1 e0bea30ec69a
engine/rating/3 49c2206dd22a
engine/refine/3 31bc495ada89
engine/script/2 afad0bd0359e
engine/task/1 14c14822df22
hindsight/agent/2 06b89ba97c0f
hindsight/human/2 84f49db01fc5
hindsight/people/1 10ff7bd75755
hindsight/propose/1 d8c588eab981
hindsight/rest/1 2e7a04c5851d
human/rating/2 54bae4c24d81
human/turn/5 9951574166b1
judge/rating/2 3c33d558bdcf
"""
