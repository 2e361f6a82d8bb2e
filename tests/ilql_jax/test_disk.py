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
    ("error", "problem", "place"),
    [
        (OSError(errno.ENOSPC, "No space", "/a/b"), "the disk is full", "/a/b"),
        (OSError(errno.ENOSPC, "No space"), "the disk is full", "/place"),
        (OSError(errno.EDQUOT, "Quota"), "your quota", "/place"),
        (PermissionError(errno.EACCES, "No", b"/a/b"), "you may not read or write", "/a/b"),
        (OSError(errno.EROFS, "Read-only"), "the disk is read-only", "/place"),
        (OSError(errno.ENAMETOOLONG, "Long", "x" * 9), "the name is too long", "xxx"),
        (
            ValueError("Error writing \"/c/d\": Failed [os_error_code='28'] and more"),
            "the disk is full",
            "/c/d",
        ),
        (RuntimeError("No space left on device (os error 28)"), "the disk is full", "/place"),
        (
            RuntimeError('IoError(Os { code: 30, kind: X, message: "" })'),
            "the disk is read-only",
            "/place",
        ),
        (
            raised_from(ValueError("lost"), OSError(errno.ENOSPC, "", "/a")),
            "the disk is full",
            "/a",
        ),
    ],
)
def test_errors_of_the_file_system_are_found(error, problem, place):
    told = str(disk_error(error, "/place"))
    assert told.startswith(problem) and f"{place}. " in told


def test_other_errors_are_none():
    for error in (ValueError("code 28"), OSError(errno.ECONNREFUSED, "no"), KeyError("os error")):
        assert disk_error(error, "/place") is None
    assert disk_error(OSError(errno.ENOSPC, "No space")) is None  # nobody knows where


def test_room_is_looked_for_before_it_is_needed(tmp_path):
    check_room(tmp_path / "new", 1000)
    assert (tmp_path / "new").is_dir() and not os.listdir(tmp_path / "new")
    with pytest.raises(DiskError, match=r"MB left, and up to .* MB are needed"):
        check_room(tmp_path, 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a file stands where a folder is needed"):
        check_room(tmp_path / "file", 1)
