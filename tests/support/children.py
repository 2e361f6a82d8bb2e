"""Waits for forked processes, which must not keep a test run from ending."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def exit_status(
    child: int, seconds: float, kill: Callable[[int, int], None] = os.kill
) -> int | None:
    """Exit status of a child as subprocess gives it; None: it took too long, and was killed.

    Args:
        child: Its process id.
        seconds: Time that it may take.
        kill: `os.killpg` for a child that leads a group of its own.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
