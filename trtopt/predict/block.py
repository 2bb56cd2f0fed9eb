"""Blocks: the rows of consecutive samples, in the order of the data set.

A block is what a kill can lose. Samples are joined into batches inside their block only, so that the batches, and with
them the last bit of every answer, do not depend on where a run was interrupted, or on how many shards there are.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trtopt.predict.answers import Answers, Array

MOST_ROWS = 256
MOST_BYTES = 64 << 20
"""Limits of a block: what is in memory at once, and what a kill may lose."""


@dataclass(slots=True, kw_only=True)
class Block:
    """The rows of some consecutive samples.

    Attributes:
        number: the number of the block in the data set.
        ids: the names of its samples.
        errors: the error of each row without an answer, by row.
        columns: the array of each row by the name of its field; None for rows without an answer.
    """

    number: int
    ids: Sequence[str]
    errors: dict[int, str] = field(default_factory=dict)
    columns: dict[str, list[Array | None]] = field(default_factory=dict)
    done: int = 0

    def fail(self, row: int, error: str) -> None:
        """Record that a row has no answer."""
        self.errors[row] = error
        self.done += 1

    def fill(self, rows: Sequence[int], answers: Answers, outputs: Mapping[str, Array]) -> None:
        """Record the answers of some rows, given the outputs of the batch that they were."""
        columns, bad = answers.columns(outputs, len(rows)), answers.bad(outputs, len(rows))
        for name, column in columns.items():
            values = self.columns.setdefault(name, [None] * len(self.ids))
            for place, row in enumerate(rows):
                if place not in bad:
                    values[row] = column[place]
        self.errors |= {rows[place]: reason for place, reason in bad.items()}
        self.done += len(rows)

    @property
    def complete(self) -> bool:
        """Whether every row is recorded."""
        return self.done == len(self.ids)

    def column(self, name: str) -> list[Array | None]:
        """Return the arrays of a field by row."""
        return self.columns.get(name) or [None] * len(self.ids)


def block_rows(row_bytes: int) -> int:
    """Return the number of rows per block for rows of about that size, at least one."""
    return max(1, min(MOST_ROWS, MOST_BYTES // max(row_bytes, 1)))
