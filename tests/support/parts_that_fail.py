"""Parts of a benchmark that end badly; they import little, since each process does it."""

from __future__ import annotations

import subprocess
import time


def parts_of(size: str) -> dict:
    """A part that hangs with a process that it has started, and one that breaks."""

    def hangs(size: str):
        yield {"figure": 1, "started": subprocess.Popen(["sleep", "600"]).pid}
        time.sleep(600)

    def breaks(size: str):
        yield {"figure": 2}
        raise ValueError("broken")

    return {"hangs": hangs, "breaks": breaks}
