"""Prints how many damaged inputs each door was tried with, and what became of them.

    python tests/fuzz_counts.py

Runs every test_fuzz_*.py in this process; docs/reliability.md has the table.
"""

import sys
from pathlib import Path

import pytest


def main() -> int:
    """Runs the tests; returns pytest's exit status."""
    files = sorted(map(str, Path(__file__).parent.glob("*/test_fuzz_*.py")))
    status = pytest.main(["-q", "-n", "0", *files])
    from fuzzing import COUNTS, table  # tests/support, where pytest has looked by now

    print(table(COUNTS))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
