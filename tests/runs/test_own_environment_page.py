"""The page about own environments does what it says: ILQL finds the way better than the data."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/own_environment.md"


def test_the_page_runs_and_the_policy_beats_the_data_clearly(capsys):
    names = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for number, source in enumerate(snippets):
        exec(compile(source, f"{PAGE.name}, snippet {number}", "exec"), names)
    data_mean, result = names["data_mean"], names["result"]
    assert result.interval[0] > data_mean + 5  # the whole interval lies above it
    printed = capsys.readouterr().out
    assert f"the data: {data_mean:.1f} on average" in printed
    assert f"the policy: {result}" in printed
