"""Formats of predictions: one module per suffix of `--out`.

Every module has:
    write   writes one block
    join    makes the output from all blocks, in their order

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol, cast

from trtopt import plugins
from trtopt.errors import UsageError
from trtopt.predict.answers import Field
from trtopt.predict.block import Block

Part = Callable[[], AbstractContextManager[IO[bytes]]]
"""Opens a block that `write` wrote."""

SAMPLE, ERROR = "sample", "error"
"""Names of the columns with the name of a sample, and with its error; the latter is empty for a row with an answer."""


class Format(Protocol):
    """A module of this folder."""

    def write(self, block: Block, fields: Sequence[Field], file: IO[bytes]) -> None:
        """Write a block, so that `join` can read it."""
        ...

    def join(self, parts: Sequence[Part], fields: Sequence[Field], file: IO[bytes]) -> None:
        """Write the output from blocks, in their order, in memory that does not grow with their number."""
        ...


def format_of(path: Path) -> Format:
    """Return the format of an output by its suffix.

    Raises:
        UsageError: the suffix is unknown.
    """
    names = plugins.names(__name__)
    name = path.suffix.lower().removeprefix(".")
    if name not in names:
        known = ", ".join(f".{name}" for name in names)
        what = f"{path} has the unknown suffix {path.suffix}" if path.suffix else f"{path} has no suffix"
        raise UsageError(what, why="the suffix chooses the format", fix=f"Use one of {known}")
    return cast(Format, plugins.load(__name__, name, "format of predictions"))
