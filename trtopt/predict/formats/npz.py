"""NumPy archives: one array per field, whose first axis is that of the samples.

Rows without an answer are NaN, 0 or an empty text; `error` names their error. If a field differs in shape between
samples, `FIELD` is one long vector, and `FIELD_shape` has the shape of each sample, zeros for a row without an answer.

Touches: nothing itself.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from trtopt.predict.answers import TEXT, Array, Field
from trtopt.predict.block import Block
from trtopt.predict.formats import ERROR, SAMPLE, Part

_EPOCH = (1980, 1, 1, 0, 0, 0)
_SHAPE = "_shape"


def write(block: Block, fields: Sequence[Field], file: IO[bytes]) -> None:
    """Write a block as an archive: the values of each field as one vector, and the shape in each row."""
    errors = [block.errors.get(row) or "" for row in range(len(block.ids))]
    arrays: dict[str, Array] = {SAMPLE: np.array(block.ids, np.str_), ERROR: np.array(errors, np.str_)}
    for place, field in enumerate(fields):
        rows = block.column(field.name)
        present = [np.asarray(row) for row in rows if row is not None]
        dtype: Any = np.str_ if field.dtype == TEXT else np.dtype(field.dtype)
        flat = [array.reshape(-1).astype(dtype) for array in present]
        arrays[str(place)] = np.concatenate(flat) if flat else np.zeros(0, dtype)
        shapes = [(-1,) * field.rank if row is None else np.shape(row) for row in rows]
        arrays[f"{place}{_SHAPE}"] = np.array(shapes, np.int64).reshape(len(rows), field.rank)
    np.savez(file, allow_pickle=False, **arrays)


def join(parts: Sequence[Part], fields: Sequence[Field], file: IO[bytes]) -> None:
    """Write one array per field, block by block."""
    with zipfile.ZipFile(file, "w") as archive:

        def add(name: str, values: Callable[[], Iterator[Array]], row: tuple[int, ...]) -> None:
            # The first pass finds the number of rows and the widest text, the second one copies.
            found = [(len(array), array.dtype) for array in values()]
            count, dtype = sum(length for length, _ in found), np.result_type(*(kind for _, kind in found))
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *row)}
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                for array in values():
                    member.write(np.ascontiguousarray(array, dtype).tobytes())

        add(SAMPLE, lambda: _each(parts, SAMPLE), ())
        add(ERROR, lambda: _each(parts, ERROR), ())
        for place, field in enumerate(fields):
            values, shapes = str(place), f"{place}{_SHAPE}"
            shape = _one_shape(parts, shapes)
            if shape is not None:
                add(field.name, lambda key=values, shape=shape: _filled(parts, key, shape), shape)  # type: ignore[misc]
            else:
                add(field.name, lambda key=values: _each(parts, key), ())  # type: ignore[misc]
                add(f"{field.name}{_SHAPE}", lambda key=shapes: _known(parts, key), (field.rank,))  # type: ignore[misc]


def _each(parts: Sequence[Part], key: str) -> Iterator[Array]:
    for part in parts:
        with part() as file:
            yield _load(file)[key]


def _load(file: IO[bytes]) -> Any:
    return np.load(io.BytesIO(file.read()), allow_pickle=False)


def _one_shape(parts: Sequence[Part], key: str) -> tuple[int, ...] | None:
    """Return the shape that all rows have, or None if they differ."""
    found: set[tuple[int, ...]] = set()
    for shapes in _each(parts, key):
        if not shapes.shape[1]:
            return ()
        found |= {tuple(row) for row in np.unique(shapes, axis=0).tolist() if -1 not in row}
        if len(found) > 1:
            return None
    return found.pop() if found else ()


def _filled(parts: Sequence[Part], key: str, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield the rows of each block, with filling for rows without an answer."""
    for part in parts:
        with part() as file:
            arrays = _load(file)
        values, missing = arrays[key], arrays[ERROR] != ""
        filling: Any = np.nan if values.dtype.kind == "f" else values.dtype.type()
        rows = np.full((len(missing), *shape), filling, values.dtype)
        rows[~missing] = values.reshape(-1, *shape) if values.size else rows[~missing]
        yield rows.reshape(len(missing), *shape)


def _known(parts: Sequence[Part], key: str) -> Iterator[Array]:
    for shapes in _each(parts, key):
        yield np.maximum(shapes, 0)
