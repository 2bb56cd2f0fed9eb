"""SHA-256 digests of a dataset's files. They tie calibration tables and cached stages to their data.

Touches: reads the given files.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from trtopt.errors import DataError

_CHUNK = 1 << 20


class Span(NamedTuple):
    """Bytes `start` to `start + size` of a file, with their expected CRC-32; error messages call them `name`."""

    name: str
    start: int
    size: int
    crc: int


def of_file(path: Path, *more: str, spans: Sequence[Span] = ()) -> str:
    """Return the digest, in hexadecimal, of the file's bytes and of `more` (for example a recipe's digest).

    The checksums of `spans` are verified in the same pass over the file.

    Raises:
        DataError: a span does not match its checksum.
    """
    whole = hashlib.sha256()
    sums = [0] * len(spans)
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            for i, span in enumerate(spans):
                # The part of this span that is in the chunk, as offsets into the chunk.
                first, last = max(span.start - position, 0), span.start + span.size - position
                if first < min(last, len(chunk)):
                    sums[i] = zlib.crc32(memoryview(chunk)[first:last], sums[i])
            position += len(chunk)
    for span, crc in zip(spans, sums, strict=True):
        if crc != span.crc:
            raise DataError(
                f"{path}: {span.name} is damaged",
                why="its values do not match the checksum that was saved with them",
                fix="Copy the file again, or save it again with numpy.savez",
            )
    if not more:
        return whole.hexdigest()
    return hashlib.sha256("\n".join((whole.hexdigest(), *more)).encode()).hexdigest()


def of_files(folder: Path, names: Iterable[str], *more: str) -> str:
    """Return the digest of the files' names and bytes, in the order given, and of `more`."""
    return of_named(((name, of_file(folder / name)) for name in names), *more)


def of_named(digests: Iterable[tuple[str, str]], *more: str) -> str:
    """Return the digest of (name, digest) pairs, in the order given, and of `more`."""
    lines = [f"{digest} {name}" for name, digest in digests]
    return hashlib.sha256("\n".join((*lines, *more)).encode()).hexdigest()
