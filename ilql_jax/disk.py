"""Errors of file systems in words: which path, and what to do.

Libraries wrap them, or pass on their text alone (Orbax, safetensors, tokenizers): `disk_error`
finds them in whatever was raised.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile

from ilql_jax.errors import UserError

_KEPT = "What was written before is kept: run the same command again, and it goes on from there."
_MOVE = "Move it away, or give another place."
# Number -> what is wrong, and what to do.
_ADVICE = {
    errno.ENOSPC: ("the disk is full (of bytes, or of files)", f"Free some space. {_KEPT}"),
    errno.EDQUOT: ("your quota on this disk is used up", f"Free some space. {_KEPT}"),
    errno.EROFS: ("the disk is read-only", f"Make it writable, or give another folder. {_KEPT}"),
    errno.EACCES: ("you may not read or write there", f"Change its rights, or its place. {_KEPT}"),
    errno.EPERM: ("you may not do this there", f"Change its rights, or its place. {_KEPT}"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Give a shorter one."),
    errno.ENOTDIR: ("a file stands where a folder is needed", _MOVE),
    errno.EEXIST: ("a file stands where a folder is needed", _MOVE),
    errno.EISDIR: ("a folder stands where a file is needed", _MOVE),
    errno.EIO: ("the disk does not answer as it should", f"Look after it. {_KEPT}"),
    errno.EMFILE: ("too many files are open", f"Raise the limit (ulimit -n). {_KEPT}"),
    errno.ENFILE: ("too many files are open on this machine", _KEPT),
    errno.EFBIG: ("the file is larger than is allowed there", _KEPT),
}
# [os_error_code='28'] (tensorstore), (os error 28) and Os { code: 28, kind: ... } (Rust)
_NUMBER = re.compile(r"(?:os_error_code='|[Oo][Ss] error |\bcode: )(\d+)")
_PATH = re.compile(r"""["'](/[^"']+)["']""")


class DiskError(UserError, RuntimeError):
    """A file or folder that the file system refuses. The message names it, and what to do."""


def disk_error(error: BaseException, place: str | os.PathLike[str] = "") -> DiskError | None:
    """The `DiskError` that an exception is about; None where it is about something else.

    Args:
        error: Any; what it was raised from is looked at too.
        place: Named where the exception names no path.
    """
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        if isinstance(each, DiskError):
            return each
        number, path = _of(each)
        if number in _ADVICE and (path or place):
            problem, advice = _ADVICE[number]
            return DiskError(f"{problem}: {path or place}. {advice}")
        each = each.__cause__ or each.__context__
    return None


def check_room(folder: str | os.PathLike[str], size: int) -> None:
    """Raises `DiskError` unless so many bytes can be written to a folder, which is made.

    Asked before a library writes them in threads of its own, which tell of a full disk a line each.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
        found = os.statvfs(folder)
    except OSError as error:
        raise disk_error(error, folder) or error from None
    free, has_files = found.f_bavail * found.f_frsize, found.f_favail >= 100 or not found.f_files
    if free < size or not has_files:
        problem, advice = _ADVICE[errno.ENOSPC]
        left = f"{free / 1e6:,.1f} MB" if has_files else f"{found.f_favail} files"
        raise DiskError(
            f"{problem}: {os.fspath(folder)} has {left} left, and up to {size / 1e6:,.1f} MB are "
            f"needed. {advice}"
        )


def _of(error: BaseException) -> tuple[int | None, str]:
    """Number of the system's error, and the path, as far as they are known."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        return error.errno, os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if isinstance(error, UserError):
        return None, ""
    text = str(error)
    number, path = _NUMBER.search(text), _PATH.search(text)
    return int(number[1]) if number else None, path[1] if path else ""
