"""Errors of file systems, as libraries pass them on."""

from __future__ import annotations

import errno
import os

import pytest

from ilql_jax.disk import DiskError, check_room, disk_error


def raised_from(outer: Exception, inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space", "/a/b"), "/a/b: the disk is full"),
        (OSError(errno.ENOSPC, "No space"), "/place: the disk is full"),
        (OSError(errno.EDQUOT, "Quota"), "/place: your quota"),
        (PermissionError(errno.EACCES, "No", b"/a/b"), "/a/b: you may not read or write"),
        (OSError(errno.EROFS, "Read-only"), "/place: the disk is read-only"),
        (OSError(errno.ENAMETOOLONG, "Long", "x" * 9), "xxx: the name is too long"),
        (
            ValueError("Error writing \"/c/d\": Failed [os_error_code='28'] and more"),
            "/c/d: the disk is full",
        ),
        (RuntimeError("No space left on device (os error 28)"), "/place: the disk is full"),
        (
            RuntimeError('IoError(Os { code: 30, kind: X, message: "" })'),
            "/place: the disk is read",
        ),
        (raised_from(ValueError("lost"), OSError(errno.ENOSPC, "", "/a")), "/a: the disk is full"),
    ],
)
def test_errors_of_the_file_system_are_found(error, told):
    assert told in str(disk_error(error, "/place"))


def test_other_errors_are_none():
    for error in (ValueError("code 28"), OSError(errno.ECONNREFUSED, "no"), KeyError("os error")):
        assert disk_error(error, "/place") is None
    assert disk_error(OSError(errno.ENOSPC, "No space")) is None  # nobody knows where


def test_room_is_looked_for_before_it_is_needed(tmp_path):
    check_room(tmp_path / "new", 1000)
    assert (tmp_path / "new").is_dir() and not os.listdir(tmp_path / "new")
    with pytest.raises(DiskError, match=r"are left, and up to .* MB are needed"):
        check_room(tmp_path, 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a file stands where a folder is needed"):
        check_room(tmp_path / "file", 1)
