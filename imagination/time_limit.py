"""`time_limit`: ends work on data of somebody else's that would never end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_AGAIN = 0.05  # for code that catches what it is interrupted with


class TimeLimitError(Exception):
    """The work took longer than it may; for callers to say what the work was."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeLimitError` in the block once it took so much of the processor's time.

    Processor time, so that a busy machine raises nothing. A system's timer interrupts the main
    thread alone: in others nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeLimitError(f"it takes longer than {seconds:g} s")

    with contextlib.ExitStack() as undone:
        undone.callback(signal.signal, signal.SIGVTALRM, signal.signal(signal.SIGVTALRM, stop))
        undone.callback(signal.setitimer, signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
        yield
