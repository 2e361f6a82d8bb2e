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
_ADVICE = {
    errno.ENOSPC: f"the disk is full (of bytes, or of files). Free some space. {_KEPT}",
    errno.EDQUOT: f"your quota on this disk is used up. Free some space. {_KEPT}",
    errno.EROFS: f"the disk is read-only. Make it writable, or give another folder. {_KEPT}",
    errno.EACCES: f"you may not read or write there. Change its rights, or its place. {_KEPT}",
    errno.EPERM: f"you may not do this there. Change its rights, or its place. {_KEPT}",
    errno.ENAMETOOLONG: "the name is too long for the file system. Give a shorter one.",
    errno.ENOTDIR: "a file stands where a folder is needed. Move it away, or give another place.",
    errno.EEXIST: "a file stands where a folder is needed. Move it away, or give another place.",
    errno.EISDIR: "a folder stands where a file is needed. Move it away, or give another place.",
    errno.EIO: f"the disk does not answer as it should. Look after it. {_KEPT}",
    errno.EMFILE: f"too many files are open. Raise the limit (ulimit -n). {_KEPT}",
    errno.ENFILE: f"too many files are open on this machine. {_KEPT}",
    errno.EFBIG: f"the file is larger than is allowed there. {_KEPT}",
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
            return DiskError(f"{path or place}: {_ADVICE[number]}")
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
        left = f"{free / 1e6:,.1f} MB" if has_files else f"{found.f_favail} files"
        raise DiskError(
            f"{os.fspath(folder)}: {_ADVICE[errno.ENOSPC]} {left} are left, and up to "
            f"{size / 1e6:,.1f} MB are needed."
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
