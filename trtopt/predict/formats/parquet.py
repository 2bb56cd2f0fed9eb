"""Parquet: one row per sample; arrays are nested lists.

Touches: nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from trtopt.predict.answers import TEXT, Array, Field
from trtopt.predict.block import Block
from trtopt.predict.formats import ERROR, SAMPLE, Part
from trtopt.requires import require

_GROUP_ROWS = 1 << 14
_GROUP_BYTES = 64 << 20
"""Limits of a row group: blocks are joined up to them, because readers are slow on small groups."""


def write(block: Block, fields: Sequence[Field], file: IO[bytes]) -> None:
    """Write a block as a stream of Arrow's IPC format."""
    pa = require("pyarrow")
    errors = [block.errors.get(row) for row in range(len(block.ids))]
    arrays = [pa.array(list(block.ids), pa.string()), pa.array(errors, pa.string())]
    arrays += [_column(pa, block.column(field.name), field) for field in fields]
    table = pa.table(arrays, schema=_schema(pa, fields))
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def join(parts: Sequence[Part], fields: Sequence[Field], file: IO[bytes]) -> None:
    """Write all blocks as row groups."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    with parquet.ParquetWriter(file, _schema(pa, fields), compression="zstd") as writer:
        for tables in _groups(pa, parts):
            writer.write_table(pa.concat_tables(tables))


def _groups(pa: Any, parts: Sequence[Part]) -> Iterator[list[Any]]:
    tables: list[Any] = []
    for part in parts:
        with part() as stream:
            tables.append(pa.ipc.open_stream(stream.read()).read_all())
        full = sum(len(table) for table in tables) >= _GROUP_ROWS
        if full or sum(table.nbytes for table in tables) >= _GROUP_BYTES:
            yield tables
            tables = []
    if tables:
        yield tables


def _schema(pa: Any, fields: Sequence[Field]) -> Any:
    columns = [pa.field(SAMPLE, pa.string(), nullable=False), pa.field(ERROR, pa.string())]
    return pa.schema([*columns, *(pa.field(field.name, _type(pa, field)) for field in fields)])


def _scalar(pa: Any, field: Field) -> Any:
    return pa.string() if field.dtype == TEXT else pa.from_numpy_dtype(np.dtype(field.dtype))


def _type(pa: Any, field: Field) -> Any:
    kind = _scalar(pa, field)
    for _ in range(field.rank):
        kind = pa.list_(kind)
    return kind


def _column(pa: Any, rows: Sequence[Array | None], field: Field) -> Any:
    """Return a column of nested lists, null where a row has no array."""
    missing = np.array([row is None for row in rows], np.bool_)
    present = [np.asarray(row) for row in rows if row is not None]
    flat = [array.reshape(-1) for array in present]
    dtype = object if field.dtype == TEXT else np.dtype(field.dtype)
    values = np.concatenate(flat).astype(dtype, copy=False) if flat else np.zeros(0, dtype)
    if field.rank == 0:
        scattered = np.zeros(len(rows), dtype)
        scattered[~missing] = values
        return pa.array(scattered, _scalar(pa, field), mask=missing)
    column = pa.array(values, _scalar(pa, field))
    shapes = np.array([array.shape for array in present], np.int64).reshape(len(present), field.rank)
    # From the innermost axis to the first: how many lists there are at each depth, and how long each is.
    for axis in reversed(range(1, field.rank)):
        lengths = np.repeat(shapes[:, axis], shapes[:, :axis].prod(axis=1))
        column = pa.ListArray.from_arrays(_offsets(lengths), column)
    lengths = np.zeros(len(rows), np.int64)
    lengths[~missing] = shapes[:, 0]
    return pa.ListArray.from_arrays(_offsets(lengths), column, mask=pa.array(missing))


def _offsets(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
