"""SHA-256 of what a dataset was read from, so that a table or a cached stage can be tied to it.

Touches: reads the files that it is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 20


def of_file(path: Path, *more: str) -> str:
    """Return the digest of the file's bytes and of `more` (a recipe's digest, say), in hexadecimal."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
    if not more:
        return whole.hexdigest()
    return hashlib.sha256("\n".join((whole.hexdigest(), *more)).encode()).hexdigest()


def of_files(folder: Path, names: Iterable[str], *more: str) -> str:
    """Return the digest of the files' names and bytes, in the order given, and of `more`."""
    lines = [f"{of_file(folder / name)} {name}" for name in names]
    return hashlib.sha256("\n".join((*lines, *more)).encode()).hexdigest()
