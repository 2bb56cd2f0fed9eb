"""Result of offline inference.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Rows that `trtopt predict` wrote, one per sample.

    Attributes:
        out: the file: the rows, or the partial result of a shard.
        rows: the number of rows.
        failed: how many of them hold an error instead of an answer.
        answers: the kind of answer: `top5`, `boxes` or `raw`.
        ran: the runtime and the device.
        batch: the largest batch.
        rate: samples per second; 0 if all rows had been written before.
        resumed: rows that earlier processes had written.
    """

    out: Path
    rows: int
    failed: int
    answers: str
    ran: str
    batch: int
    rate: float = 0.0
    resumed: int = 0
