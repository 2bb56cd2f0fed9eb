"""Samples from a Python function, `package.module:function`, that yields (or returns) dicts of arrays by input name.

The function is run once, to its end. Its samples go to a temporary file, which is removed with the dataset, so that
memory does not grow with their number; the digest is that of what it produced.

Touches: imports and runs the user's code, with the current folder importable; writes a temporary file.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from trtopt.data.arrays import label_key
from trtopt.data.dataset import Array, Feed
from trtopt.data.sample import Header, Samples, single_labels
from trtopt.errors import DataError
from trtopt.types import TensorSpec

MAX_SAMPLES = 100_000
"""A function that yields more is taken for an endless one."""

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# Samples up to here stay in memory; more go to disk.
_IN_MEMORY = 64 << 20

_Place = tuple[str, np.dtype[np.generic], tuple[int, ...], int]


def is_function(source: str) -> bool:
    """Say whether the source is written like `package.module:function`."""
    return _NAME.fullmatch(source) is not None


def read_function(source: str, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Run the function and return its samples; a class index may stand under `label`.

    Raises:
        DataError: it cannot be found, fails, or yields something else than dicts of arrays.
    """
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the dataset
    lock = threading.Lock()
    digest = hashlib.sha256()
    places: list[list[_Place]] = []
    labels: list[Array | None] = []

    def read(i: int) -> Feed:
        return {name: _get(spool, lock, dtype, shape, offset) for name, dtype, shape, offset in places[i]}

    weakref.finalize(read, spool.close)
    for sample in _run(source):
        key = label_key(tuple(sample), inputs)
        labels.append(sample.get(key))
        places.append([(name, x.dtype, x.shape, _put(spool, x)) for name, x in sorted(sample.items()) if name != key])
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    ids = tuple(f"{source}[{i}]" for i in range(len(places)))
    return Samples(
        source=source,
        digest=digest.hexdigest(),
        ids=ids,
        peek=lambda i: {name: Header(dtype.name, shape) for name, dtype, shape, _ in places[i]},
        read=read,
        labels=single_labels(labels, ids, source),
        notes=(f"the code of {source} was run to make {len(ids)} samples",),
    )


def _run(source: str) -> Iterator[dict[str, Array]]:
    module, _, function = source.partition(":")
    with current_folder_importable():
        made = _call(source, module, function)
        count = 0
        while True:
            where = f"{source}[{count}]"
            try:
                sample = next(made)
            except StopIteration:
                return
            except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
                raise _failed(where, error) from error
            if count == MAX_SAMPLES:
                raise DataError(
                    f"{source}: still yields after {MAX_SAMPLES} samples", why="it may be endless", fix="Let it end"
                )
            count += 1
            yield _arrays(sample, where)


def _call(source: str, module: str, function: str) -> Iterator[Any]:
    try:
        found = getattr(importlib.import_module(module), function)
        made = found()
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
        raise _failed(source, error) from error
    if not isinstance(made, Iterable) or isinstance(made, Mapping | str | bytes):
        raise DataError(f"{source}: returned {type(made).__name__}", why="it must yield or return dicts of arrays")
    return iter(made)


def _arrays(sample: Any, where: str) -> dict[str, Array]:
    if not isinstance(sample, Mapping):
        raise DataError(f"{where}: is {type(sample).__name__}", why="a sample is a dict of arrays by input name")
    arrays = {}
    for name, value in sample.items():
        try:
            array = np.asarray(value)
        except Exception as error:  # whatever the user's type raises on conversion
            raise _failed(where, error) from error
        if array.dtype.hasobject:
            raise DataError(f"{where}: {name} holds Python objects", why="a sample is a dict of numeric arrays")
        arrays[str(name)] = array
    return arrays


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let modules in the current folder be found, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _put(spool: IO[bytes], array: Array) -> int:
    offset = spool.tell()
    spool.write(np.ascontiguousarray(array).tobytes())
    return offset


def _get(
    spool: IO[bytes], lock: threading.Lock, dtype: np.dtype[np.generic], shape: tuple[int, ...], offset: int
) -> Array:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with lock:
        spool.seek(offset)
        data = spool.read(size)
    return np.frombuffer(data, dtype).reshape(shape)


def _failed(where: str, error: BaseException) -> DataError:
    return DataError(
        f"{where}: the function failed", why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    )
