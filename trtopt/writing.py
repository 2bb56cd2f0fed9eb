"""Files that are written completely or not at all, and errors of the operating system while they are written.

Touches: the files that it is asked to write.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trtopt.errors import DataError, StoreError

# Errors of the operating system that concern the run directory itself, with the reason that the user reads.
_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "it is a file",
}


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn errors of the operating system about the run directory into a `StoreError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        raise cannot_write(root, error) from error


@contextlib.contextmanager
def own_errors(root: Path) -> Iterator[None]:
    """Turn errors of the operating system about files outside the run directory into a `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or not isinstance(error.filename, str | bytes):
            raise
        path = Path(os.fsdecode(error.filename))
        if path.resolve().is_relative_to(root.resolve()):
            raise
        raise DataError(f"{path}: {error.strerror}") from error


def write_whole(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file, completely and on the disk, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cannot_write(root: Path, error: OSError) -> StoreError:
    """Return the error for a run directory that cannot be written."""
    reason = _WRITE_ERRORS.get(error.errno or 0, error.strerror or str(error))
    more = ", or free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return StoreError(f"cannot write to {root}", why=reason, fix=f"Choose another directory with -o{more}")
