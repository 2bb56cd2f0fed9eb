"""JSON lines: one object per sample. Infinities and NaN, which JSON lacks, are the texts `inf`, `-inf` and `nan`.

Touches: nothing itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from trtopt.codec import encode
from trtopt.predict.answers import Array, Field
from trtopt.predict.block import Block
from trtopt.predict.formats import ERROR, SAMPLE, Part

_TOGETHER = 1 << 16
"""Values that are converted at once, which is faster than row by row. As Python objects they take many times the
memory."""


def write(block: Block, fields: Sequence[Field], file: IO[bytes]) -> None:
    """Write one line per row."""
    columns = {field.name: _by_row(block.column(field.name)) for field in fields}
    for row, sample in enumerate(block.ids):
        error = block.errors.get(row)
        values = {name: next(column) for name, column in columns.items()}
        line = {SAMPLE: sample, ERROR: error, **(values if error is None else {})}
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def join(parts: Sequence[Part], fields: Sequence[Field], file: IO[bytes]) -> None:  # noqa: ARG001
    """Copy the lines of all blocks."""
    for part in parts:
        with part() as lines:
            shutil.copyfileobj(lines, file, 1 << 20)


def _by_row(rows: Sequence[Array | None]) -> Iterator[Any]:
    """Yield the values of each row, None for a row without an answer."""
    present = [row for row in rows if row is not None]
    alike = len({(row.shape, row.dtype) for row in present}) == 1
    together = alike and sum(row.size for row in present) <= _TOGETHER
    found = iter(_values(np.stack(present))) if together else map(_values, present)
    for row in rows:
        yield None if row is None else next(found)


def _values(array: Array) -> Any:
    # float32 as the shortest decimal that is the same float32, not as the float64 that it equals.
    narrow = array.dtype.kind == "f" and array.dtype.itemsize < 8
    values = _shortest(array) if narrow else np.asarray(array).tolist()
    finite = array.dtype.kind != "f" or np.isfinite(array).all()
    return values if finite else encode(values)


def _shortest(array: Array) -> Any:
    if array.ndim == 0:
        return float(str(array))
    flat = [float(text) for text in array.astype(str).reshape(-1).tolist()]
    return np.array(flat, np.float64).reshape(array.shape).tolist()
