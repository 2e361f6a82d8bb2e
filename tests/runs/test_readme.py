"""The README's Python example does what it says."""

import itertools
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_on_own_data_reaches_the_optimum(capsys):
    (source,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(source, "README.md", "exec"), {})
    digits = [int(word) for word in re.findall(r"\d+", capsys.readouterr().out)]
    assert digits[-1] == 9 and len(digits) == 6
    assert all(b > a for a, b in itertools.pairwise(digits[:-1]))
