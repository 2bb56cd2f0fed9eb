"""Arrays in .npy and .npz files, which are read row by row where they are not compressed.

Touches: reads the files.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from trtopt.data.dataset import Array
from trtopt.errors import DataError

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
                offset = -1 if info in packed else data_offset(path, info) + file.tell()
            arrays[name] = Stored(
                path=path, member=info.filename, dtype=dtype, shape=shape, fortran=fortran, offset=offset
            )
    return arrays


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the data of an entry of a zip file begins."""
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
