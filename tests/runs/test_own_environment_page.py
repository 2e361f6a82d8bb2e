"""The page about own environments does what it says: ILQL finds the way better than the data."""

import re
from pathlib import Path

import pages
import pytest

PAGE = Path(__file__).parents[2] / "docs/own_environment.md"


def test_the_page_runs(capsys):
    names = run(pages.shorter(PAGE.read_text()))
    assert_printed(names, capsys.readouterr().out)


@pytest.mark.slow
def test_the_policy_beats_the_data_clearly(capsys):
    names = run(PAGE.read_text())
    assert names["result"].interval[0] > names["data_mean"] + 5  # the whole interval lies above it
    assert_printed(names, capsys.readouterr().out)


def run(page):
    """The names that the page's snippets leave, run one after the other."""
    names = {}
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for number, source in enumerate(snippets):
        exec(compile(source, f"{PAGE.name}, snippet {number}", "exec"), names)
    return names


def assert_printed(names, printed):
    assert f"the data: {names['data_mean']:.1f} on average" in printed
    assert f"the policy: {names['result']}" in printed
