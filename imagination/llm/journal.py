"""`Journal`: a JSON Lines file that only grows and survives being killed in the middle of a line.

The cache, the list of failures and the list of batches are journals. A line is written by one
system call, so that a killed process leaves at most one broken line, at the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagination.llm.requests import LLMError
from imagination.plain_data import parse_json

# A killed process loses nothing that was written; only a power cut does, at most this long.
SYNC_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Journal:
    """One JSON object a line. Several processes may append; each sees its own lines."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None
        self._torn = False
        self._synced = 0.0

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (bytes of the line, object); broken lines are left out.

        A line cut in half at the end is cut off the file, one in the middle is reported.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = parse_json(line, "", ValueError)
                    if not isinstance(record, dict):
                        raise ValueError("not an object")
                except ValueError:
                    if not line.endswith(b"\n"):
                        self._cut_off(len(line))
                    elif line.strip():
                        logger.warning("%s, line %d is broken and ignored", self.path, number)
                    continue
                if not line.endswith(b"\n"):
                    self._torn = True
                yield len(line), record

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line; it is with the operating system when this returns.

        Raises:
            LLMError: The disk is full, or the file cannot be written.
        """
        data = self.line(record)
        try:
            if self._file is None:
                self._open()
            # A half-written line before this one must not swallow it.
            data = b"\n" * self._torn + data
            self._torn = True
            while data:
                data = data[os.write(self._file, data) :]
            self._torn = False
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise _disk_error(self.path, error) from None

    @staticmethod
    def line(record: dict[str, Any]) -> bytes:
        """One line, newline included."""
        try:
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            return text.encode() + b"\n"
        except UnicodeEncodeError:  # half a surrogate pair, as a cut answer may end in
            return json.dumps(record, separators=(",", ":")).encode() + b"\n"

    def rewrite(self, lines: list[bytes]) -> bool:
        """Replaces the file, whole or not at all. False if another process is using it."""
        if not self._alone():
            return False
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            with partial.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            raise _disk_error(self.path, error) from None
        self._torn = False
        return True

    def sync(self) -> None:
        """Makes what was written survive a power cut."""
        if self._file is not None:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            try:
                self.sync()
            except OSError as error:
                raise _disk_error(self.path, error) from None
            finally:
                os.close(self._file)
                self._file = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._synced = time.monotonic()

    def _alone(self) -> bool:
        """True where nobody has the file open for writing."""
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    def _cut_off(self, length: int) -> None:
        # With another writer at work the half line may be about to become whole.
        if not self._alone():
            self._torn = True
            return
        logger.warning("%s ended in half a line, which is cut off", self.path)
        try:
            os.truncate(self.path, self.path.stat().st_size - length)
        except OSError as error:
            raise _disk_error(self.path, error) from None


def _disk_error(path: Path, error: OSError) -> LLMError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LLMError(
            f"The disk is full: {path} could not be written. What it holds is safe. Free some "
            "space and run again; the run goes on where it was."
        )
    return LLMError(f"{path} could not be written: {error.strerror or error}. Check the folder.")
