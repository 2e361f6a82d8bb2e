"""`time_limit`, `memory_limit`: end work on data of somebody else's that would never end itself."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_AGAIN = 0.05  # for code that catches what it is interrupted with
_STATUS = Path("/proc/self/statm")  # sizes of this process in pages, Linux alone


class TimeLimitError(Exception):
    """The work took longer than it may; for callers to say what the work was."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeLimitError` in the block once it took so much of the processor's time.

    Processor time, so that a busy machine raises nothing. A system's timer interrupts the main
    thread alone: in others nothing is limited.
    """
    if not _is_main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeLimitError(f"it takes longer than {seconds:g} s")

    with contextlib.ExitStack() as undone:
        undone.callback(signal.signal, signal.SIGVTALRM, signal.signal(signal.SIGVTALRM, stop))
        undone.callback(signal.setitimer, signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
        yield


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets the block raise `MemoryError` instead of taking so many bytes more than there are now.

    The system counts for the whole process: choose a size that nothing else takes meanwhile. Not
    limited are other threads than the main one, and other systems than Linux.
    """
    if not (_is_main_thread() and _STATUS.exists()):
        yield
        return
    data_pages = int(_STATUS.read_text().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data_pages * resource.getpagesize() + size
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
