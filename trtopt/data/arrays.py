"""Arrays in NumPy's formats: one .npy or .npz whose first axis counts samples, or a folder with one sample per file.

Nothing is unpickled.
Uncompressed arrays (.npy, and .npz made by `numpy.savez`) are read one sample at a time, so memory does not grow with
the file. A compressed array cannot be read in part: it is unpacked once and kept in memory.
The checksums in a .npz are verified: those of uncompressed arrays when it is opened, those of compressed ones when they
are unpacked.

Touches: reads .npy and .npz files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trtopt.data.checks import Header
from trtopt.data.dataset import Array, Feed
from trtopt.data.digest import Span, of_file, of_named
from trtopt.data.sample import LABEL_KEYS, Samples, class_indices, single_labels
from trtopt.data.stored import Stored, data_offset, open_file
from trtopt.errors import DataError
from trtopt.types import TensorSpec

SUFFIXES = frozenset({".npy", ".npz"})


def read_file(path: Path, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Return the samples of one .npy or .npz, one per index of the first axis of its arrays.

    Raises:
        DataError: the file cannot be read, an array is damaged, or the arrays differ in length.
    """
    single = _single(path, inputs)
    stored = open_file(path, single)
    digest = _digest(path)
    scalar = next((name for name, array in stored.items() if not array.shape), None)
    if scalar is not None:
        raise DataError(f"{path}: {scalar} is a scalar", why="the first axis of an array is the sample axis")
    key = label_key(tuple(stored), inputs)
    arrays = {name: array for name, array in stored.items() if name != key}
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{path}: the arrays have different numbers of samples", why=lengths)
    count = next(iter(counts.values()), 0)
    headers = {name: Header(array.dtype.name, array.shape[1:]) for name, array in arrays.items()}
    rows = {name: _rows(array) for name, array in arrays.items()}

    def peek(_: int) -> Mapping[str, Header]:
        return headers

    def read(i: int) -> Feed:
        return {name: row(i) for name, row in rows.items()}

    return Samples(
        source=str(path),
        digest=digest,
        ids=tuple(f"{path.name}[{i}]" for i in range(count)),
        peek=peek,
        read=read,
        labels=class_indices(stored[key].read(), count, str(path)) if key else None,
    )


def find(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the .npy and .npz files directly in the folder, without hidden files."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path.name for path in files if not path.name.startswith(".")))


def read_folder(folder: Path, names: tuple[str, ...], inputs: tuple[TensorSpec, ...], *, skip_bad: bool) -> Samples:
    """Return one sample per file.

    With `skip_bad`, an unreadable file becomes a sample that fails when it is read; the labels of the other files are
    kept.

    Raises:
        DataError: only some of the files have a label, or (unless `skip_bad`) one cannot be read or is damaged.
    """
    bad: dict[int, DataError] = {}

    def arrays(i: int) -> dict[str, Stored]:
        if i in bad:
            raise bad[i]
        return open_file(folder / names[i], _single(folder / names[i], inputs))

    def peek(i: int) -> Mapping[str, Header]:
        stored = arrays(i)
        key = label_key(tuple(stored), inputs)
        return {name: Header(array.dtype.name, array.shape) for name, array in stored.items() if name != key}

    def read(i: int) -> Feed:
        stored = arrays(i)
        return {spec.name: np.array(stored[spec.name].read()) for spec in inputs}

    def label(i: int) -> Array | None:
        stored = arrays(i)
        key = label_key(tuple(stored), inputs)
        return np.array(stored[key].read()) if key else None

    digests: list[str] = []
    file_labels: dict[int, Array | None] = {}
    for i, name in enumerate(names):
        try:
            file_labels[i] = label(i)
            digests.append(_digest(folder / name))
        except DataError as error:
            if not skip_bad:
                raise
            bad[i] = error
            digests.append(of_file(folder / name))
    readable = [i for i in range(len(names)) if i not in bad]
    indices = single_labels([file_labels[i] for i in readable], tuple(names[i] for i in readable), str(folder))
    labels = None
    if indices is not None:
        index_of = dict(zip(readable, indices, strict=True))
        # -1 is a placeholder: a bad file is left out of the dataset together with it.
        labels = tuple(index_of.get(i, -1) for i in range(len(names)))
    return Samples(
        source=str(folder),
        digest=of_named(zip(names, digests, strict=True)),
        ids=names,
        peek=peek,
        read=read,
        labels=labels,
    )


def label_key(names: tuple[str, ...], inputs: tuple[TensorSpec, ...]) -> str:
    """Return the name of the array that contains labels, or an empty string.

    A name that the model has an input for is that input, not labels.
    """
    taken = {spec.name for spec in inputs}
    return next((name for name in names if name in LABEL_KEYS and name not in taken), "")


def _digest(path: Path) -> str:
    """Return the SHA-256 of the file's bytes; for a .npz, verify the checksums of its uncompressed arrays as well."""
    if path.suffix.lower() != ".npz":
        return of_file(path)
    with zipfile.ZipFile(path) as archive:
        stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
    spans = [Span(info.filename, data_offset(path, info), info.file_size, info.CRC) for info in stored]
    return of_file(path, spans=spans)


def _single(path: Path, inputs: tuple[TensorSpec, ...]) -> str:
    """Return the name of the input that a .npy file feeds."""
    if path.suffix.lower() == ".npy" and len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{path}: a .npy feeds one input", why=f"the model has {len(inputs)}: {names}", fix="Give a .npz"
        )
    return inputs[0].name


def _rows(array: Stored) -> Callable[[int], Array]:
    """Return a function that reads row i; a compressed array is unpacked now."""
    if array.offset < 0:
        whole = array.read()
        return lambda i: whole[i]
    return array.row
