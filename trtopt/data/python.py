"""Samples from a Python function, `package.module:function`, that yields (or returns) dicts of arrays by input name.

The function runs once, to its end. Its samples are written to a temporary file, so that memory does not grow with
their number; the file is removed with the dataset. The digest is that of the samples.

If it returns an object with `__len__`, `__getitem__` and `digest`, nothing is written. A sample is made by index, where
and when it is needed, so that a shard makes its own samples only. `digest` is a text that changes whenever the samples
do. `labels`, if there are any, are one class index per sample. All samples have the shapes of the first one.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard

import numpy as np

from trtopt.data.arrays import label_key
from trtopt.data.checks import Header, shape_text
from trtopt.data.dataset import Array, Feed
from trtopt.data.sample import Samples, class_indices, single_labels
from trtopt.errors import DataError
from trtopt.types import TensorSpec

MAX_SAMPLES = 100_000
"""Limit on the number of samples; a function that yields more is assumed to be endless."""

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# Bytes of samples that are kept in memory before the rest is written to disk.
_IN_MEMORY = 64 << 20

_Place = tuple[str, np.dtype[np.generic], tuple[int, ...], int]
"""An array in the temporary file: input name, dtype, shape, and offset in bytes."""


class Indexed(Protocol):
    """Samples by index, as dicts of arrays by input name; several threads call `__getitem__` at once."""

    digest: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def is_function(source: str) -> bool:
    """Return whether the source is written as `package.module:function`."""
    return _NAME.fullmatch(source) is not None


def read_function(source: str, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Run the function and return its samples. A sample may have a class index under the key `label`.

    Raises:
        DataError: the function cannot be found, fails, or yields anything but dicts of arrays.
    """
    with current_folder_importable():
        made = _call(source)
    if _is_indexed(made):
        return _indexed(source, made)
    note = f"the code of {source} was run and returned {{count}} samples"
    return spooled(source, lambda: iter(made), inputs, notes=(note,))


def spooled(
    source: str, samples: Callable[[], Iterator[Any]], inputs: tuple[TensorSpec, ...], *, notes: tuple[str, ...]
) -> Samples:
    """Return the samples that an iterator yields as dicts of arrays; `{count}` in a note is their number.

    Raises:
        DataError: the iterator fails, does not end, or yields anything else.
    """
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the dataset
    lock = threading.Lock()
    digest = hashlib.sha256()
    places: list[list[_Place]] = []
    labels: list[Array | None] = []

    def read(i: int) -> Feed:
        return {name: _get(spool, lock, dtype, shape, offset) for name, dtype, shape, offset in places[i]}

    weakref.finalize(read, spool.close)
    for sample in _run(source, samples):
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
        notes=tuple(note.replace("{count}", str(len(ids))) for note in notes),
    )


def _is_indexed(made: object) -> TypeGuard[Indexed]:
    return all(hasattr(made, name) for name in ("__len__", "__getitem__", "digest"))


def _indexed(source: str, made: Indexed) -> Samples:
    """Return the samples that an object makes by index; the first one is made now."""
    count, labels = len(made), getattr(made, "labels", None)

    def get(i: int) -> tuple[Feed, Mapping[str, Header]]:
        where = f"{source}[{i}]"
        try:
            sample = made[i]
        except DataError:
            raise
        except (Exception, SystemExit) as error:  # as in `_run`
            raise _failed(where, error) from error
        feed = _arrays(sample, where)
        return feed, {name: Header(array.dtype.name, array.shape) for name, array in feed.items()}

    first = get(0)[1] if count else {}

    def read(i: int) -> Feed:
        feed, headers = get(i)
        if headers != first:
            texts = (
                ", ".join(f"{name} {dtype} {shape_text(shape)}" for name, (dtype, shape) in each.items())
                for each in (headers, first)
            )
            raise DataError(
                f"{source}[{i}]: its arrays differ from those of {source}[0]",
                why=" is not ".join(texts),
                fix="Yield samples of several shapes instead of returning them by index",
            )
        return feed

    return Samples(
        source=source,
        digest=hashlib.sha256(f"{source} {count} {made.digest}".encode()).hexdigest(),
        ids=tuple(f"{source}[{i}]" for i in range(count)),
        peek=lambda _: first,
        read=read,
        labels=None if labels is None else class_indices(np.asarray(labels), count, source),
        on_demand=True,
        notes=(f"the code of {source} makes each of its {count} samples when it is needed",),
    )


def _run(source: str, start: Callable[[], Iterator[Any]]) -> Iterator[dict[str, Array]]:
    """Yield the samples as dicts of arrays."""
    with current_folder_importable():
        samples = start()
        count = 0
        while True:
            where = f"{source}[{count}]"
            try:
                sample = next(samples)
            except StopIteration:
                return
            except DataError:
                raise
            except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
                raise _failed(where, error) from error
            if count == MAX_SAMPLES:
                raise DataError(
                    f"{source}: yields more than {MAX_SAMPLES} samples",
                    why="it may be endless",
                    fix="Make the function stop after the samples that you need",
                )
            count += 1
            yield _arrays(sample, where)


def _call(source: str) -> Iterable[Any] | Indexed:
    module, _, function = source.partition(":")
    try:
        samples = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
        raise _failed(source, error) from error
    if _is_indexed(samples):
        return samples
    if not isinstance(samples, Iterable) or isinstance(samples, Mapping | str | bytes):
        raise DataError(f"{source}: returned {type(samples).__name__}", why="it must yield or return dicts of arrays")
    return samples


def _arrays(sample: Any, where: str) -> dict[str, Array]:
    if not isinstance(sample, Mapping):
        raise DataError(f"{where}: is {type(sample).__name__}", why="a sample must be a dict of arrays by input name")
    arrays = {}
    for name, value in sample.items():
        try:
            array = np.asarray(value)
        except Exception as error:  # the conversion of a user's type may raise anything
            raise _failed(where, error) from error
        if array.dtype.hasobject:
            raise DataError(f"{where}: {name} contains Python objects", why="a sample must be a dict of numeric arrays")
        arrays[str(name)] = array
    return arrays


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Make modules in the current folder importable, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _put(spool: IO[bytes], array: Array) -> int:
    """Append the array's bytes to the file and return their offset."""
    offset = spool.tell()
    spool.write(np.ascontiguousarray(array).tobytes())
    return offset


def _get(
    spool: IO[bytes], lock: threading.Lock, dtype: np.dtype[np.generic], shape: tuple[int, ...], offset: int
) -> Array:
    """Read an array back from the file; the lock keeps other threads from moving the file's position."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with lock:
        spool.seek(offset)
        data = spool.read(size)
    return np.frombuffer(data, dtype).reshape(shape)


def _failed(where: str, error: BaseException) -> DataError:
    return DataError(
        f"{where}: the function failed", why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    )
