"""Digest of trtopt's own code, for the keys of results and pages.

Touches: reads the files of this package.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

_RENDERING = ("cli", "report")


@functools.cache
def code_digest(*, rendering: bool = False) -> str:
    """Return the SHA-256 of trtopt's code that computes results; a corrected algorithm must not return an old result.

    What only reads flags or renders reports is left out, or taken instead if `rendering`.
    """
    package = Path(__file__).parent
    sha = hashlib.sha256()
    for name in sorted(_sources(package)):
        if (name.partition("/")[0] in _RENDERING) == rendering:
            sha.update(name.encode())
            sha.update((package / name).read_bytes())
    return sha.hexdigest()


@functools.cache
def _sources(package: Path) -> list[str]:
    """Return the paths of a package's source files, relative to it."""
    return [
        Path(folder, file).relative_to(package).as_posix()
        for folder, _, files in os.walk(package)
        for file in files
        if file.endswith((".py", ".cu", ".jinja", ".css"))
    ]
