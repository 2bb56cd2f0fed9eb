"""Arrays in NumPy's formats: one .npy or .npz whose first axis counts samples, or a folder with one sample per file.

Nothing is unpickled.
Uncompressed arrays (.npy, and .npz made by `numpy.savez`) are read one sample at a time, so memory does not grow with
the file. A compressed array cannot be read in part: it is unpacked once and kept in memory.
The checksums in a .npz are verified: those of uncompressed arrays when it is opened, those of compressed ones when they
are unpacked.

Touches: reads .npy and .npz files.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from trtopt.data.dataset import Array, Feed
from trtopt.data.digest import Span, of_file, of_named
from trtopt.data.sample import LABEL_KEYS, Header, Samples, class_indices, single_labels
from trtopt.errors import DataError
from trtopt.types import TensorSpec

SUFFIXES = frozenset({".npy", ".npz"})

MAX_UNPACKED = 8 << 30
"""Limit, in bytes, on the unpacked size of all compressed arrays of one .npz."""

_LOCAL_HEADER = 30
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Location, dtype and shape of an array in a file.

    An uncompressed array starts at byte `offset` of the file. A compressed one is the zip member `member`, and its
    `offset` is -1. `fortran` means column-major order.
    """

    path: Path
    member: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def read(self) -> Array:
        """Return the array: memory-mapped, or unpacked when it is compressed.

        Raises:
            DataError: the array is corrupt.
        """
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        where = f"{self.path}: {self.member}" if self.member else str(self.path)
        try:
            if self.offset >= 0:
                raw = np.memmap(self.path, np.uint8, "r", self.offset, (self.dtype.itemsize * math.prod(self.shape),))
                values = np.asarray(raw).view(self.dtype)
                return values.reshape(self.shape[::-1]).T if self.fortran else values.reshape(self.shape)
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                values = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
                while file.read(_CHUNK):  # zipfile verifies the checksum at the end of the member
                    pass
                return values
        except Exception as error:
            raise _unreadable(where, error) from error

    def row(self, i: int) -> Array:
        """Return a copy of row i, the i-th entry along the first axis.

        Only this row is read from the file, except in Fortran order, where the rows are interleaved.

        Raises:
            DataError: the row cannot be read.
        """
        if self.fortran or 0 in self.shape:
            return np.array(self.read()[i])
        count = math.prod(self.shape[1:])
        try:
            values = np.fromfile(self.path, self.dtype, count, offset=self.offset + i * count * self.dtype.itemsize)
            return values.reshape(self.shape[1:])
        except Exception as error:
            raise _unreadable(str(self.path), error) from error


def open_file(path: Path, single: str) -> dict[str, Stored]:
    """Return the arrays of a .npz by name, or the array of a .npy under the name `single`.

    Only headers are read.

    Raises:
        DataError: the file is corrupt, contains Python objects, or unpacks to more than `MAX_UNPACKED` bytes.
    """
    try:
        if path.suffix.lower() == ".npz":
            return _open_npz(path)
        with path.open("rb") as file:
            dtype, shape, fortran = _header(file, path.name)
            offset = file.tell()
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(str(path), error) from error
    _fits(path, path.stat().st_size - offset, dtype, shape)
    return {single: Stored(path=path, member="", dtype=dtype, shape=shape, fortran=fortran, offset=offset)}


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
    spans = [Span(info.filename, _data_offset(path, info), info.file_size, info.CRC) for info in stored]
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


def _open_npz(path: Path) -> dict[str, Stored]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if sum(info.file_size for info in packed) > MAX_UNPACKED:
            raise DataError(
                f"{path}: unpacks to more than {MAX_UNPACKED >> 30} GiB",
                fix="Save the arrays without compression (numpy.savez), so that they are read one sample at a time",
            )
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise DataError(f"{path}: its member {name} is not an array")
            with archive.open(info) as file:
                dtype, shape, fortran = _header(file, f"{path.name}: {name}")
                _fits(path, info.file_size - file.tell(), dtype, shape)
                offset = -1 if info in packed else _data_offset(path, info) + file.tell()
            arrays[name] = Stored(
                path=path, member=info.filename, dtype=dtype, shape=shape, fortran=fortran, offset=offset
            )
    return arrays


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # The extra field of the local header may differ from that of the central directory, so its length is read here.
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + _LOCAL_HEADER + name + extra


def _header(file: IO[bytes], where: str) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where}: version {version[0]}.{version[1]} of the .npy format is not supported")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise DataError(
            f"{where}: contains Python objects",
            why="they would have to be unpickled, which runs code",
            fix="Save a plain array of one shape and a numeric type",
        )
    return dtype, shape, fortran


def _fits(path: Path, size: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    """Raise DataError unless the `size` bytes after the header are enough for the array."""
    wanted = dtype.itemsize * math.prod(shape)
    if size < wanted or any(side < 0 for side in shape):
        raise DataError(f"{path}: truncated", why=f"the header announces {wanted} bytes of values, the file has {size}")


def _unreadable(where: str, error: Exception) -> DataError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{where}: cannot be read as NumPy arrays", why=why, fix="Save it again with numpy.save or savez")
