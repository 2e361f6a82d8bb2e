"""Ctrl-C and SIGTERM: one line, and an exit status that tells which it was.

While an experiment imports its libraries (`end_at_once`), and while it runs (`noticed`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CTRL_C, TERMINATED = (128 + number for number in _SIGNALS)  # exit statuses
_A_MOMENT = 0.05  # seconds, after which a garbage collection is over or has the next chance
# How a program begins: its source is looked at, since it has not run so far.
_BEGINS = re.compile(
    rb"^    .*\b(launch|in_environment)\.(main|program|told_errors)\(", re.MULTILINE
)
_TOLD = "Stopped. The same command goes on from here."


class Stop:
    """Cause of the end of this process, if it was stopped.

    Attributes:
        status: Exit status: `CTRL_C` or `TERMINATED`.
        told: The line was printed.
    """

    status = CTRL_C
    told = False


def is_experiment() -> bool:
    """True in a program that is an experiment; false where one is imported from."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        program = Path(file).read_bytes() if file else b""
    except OSError:
        return False
    return _BEGINS.search(program) is not None


def end_at_once() -> None:
    """Lets both signals end this process with the line: for the seconds in which it imports."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def _end(number: int, _) -> None:
    if not Stop.told:
        os.write(1, f"\n{_TOLD}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def noticed() -> Iterator[type[Stop]]:
    """Raises `KeyboardInterrupt` in the block on both signals, which `asyncio` understands too."""
    if threading.current_thread() is not threading.main_thread():
        yield Stop
        return

    def terminate(*_) -> None:
        Stop.status = TERMINATED
        signal.raise_signal(signal.SIGINT)

    before = [signal.getsignal(number) for number in _SIGNALS]
    hook = sys.unraisablehook

    def once_more(lost) -> None:
        # Python drops what is raised in a finalizer or while the garbage collector runs.
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        again = threading.Timer(_A_MOMENT, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    Stop.status, Stop.told = CTRL_C, False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = once_more
    try:
        yield Stop
    finally:
        sys.unraisablehook = hook
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def line(stop: type[Stop]) -> str:
    """The line, which is then printed once."""
    stop.told = True
    return f"\n{_TOLD}"


@contextlib.contextmanager
def not_passed_on() -> Iterator[None]:
    """Processes that are started in the block do not hear Ctrl-C: the one that started them ends
    them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
