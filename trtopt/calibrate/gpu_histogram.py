"""Histograms of tensors that are in the memory of a GPU, counted there: the tensors never travel to the host.

The bins are those of `histogram.Histogram`, and so are the counts, exactly, for the same tensors. `gpu_histogram.cu`
beside this file does the counting, at close to the speed at which the memory can be read.

Touches: the memory of the GPU, through the `Gpu` that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.histogram import BINS, Histogram, largest_of
from trtopt.errors import CalibrationError

BLOCKS = 1024
"""A few for each multiprocessor of the largest GPUs; smaller ones work them off in turns."""
THREADS = 512
"""Of a block, as the kernel's source has it."""
SMALLEST_SHARE = 1 << 14
"""Elements of a block at least: clearing and emptying its bins must cost less than counting."""

_SHIFT = 14
"""A magnitude's bits without these, its lowest, are its bin."""
_TYPES = {"float32": 0, "float16": 1, "float64": 2}
"""As the enumeration `Type` in the kernel's source."""


class Gpu(Protocol):
    """What counting asks of a GPU; what `allocate` and `compile` return belongs to it and is released with it."""

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory, all zero."""
        ...

    def clear(self, pointer: int, size: int) -> None:
        """Set `size` bytes of device memory to zero."""
        ...

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copy an array into device memory."""
        ...

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copy device memory into an array, when all that was launched before is done."""
        ...

    def compile(self, source: str, name: str) -> Any:
        """Compile CUDA C++ and return the kernel of that name."""
        ...

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: np.generic) -> None:
        """Run a kernel on one-dimensional blocks, after all that was launched before."""
        ...


class GpuTensor(Protocol):
    """A dense tensor in the memory of a GPU: its address, its shape, and numpy's name of its type."""

    @property
    def pointer(self) -> int:
        """Address of its first element."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> str:
        """Numpy's name of its type."""
        ...


class Counters:
    """One histogram for each of `names`, in the memory of a GPU: 1 MB each, whatever is counted.

    One thread at a time.
    """

    def __init__(self, gpu: Gpu, names: Sequence[str]) -> None:
        self._gpu = gpu
        self._slots = {name: slot for slot, name in enumerate(dict.fromkeys(names))}
        source = files("trtopt.calibrate").joinpath("gpu_histogram.cu").read_text(encoding="utf-8")
        self._kernel = gpu.compile(source, "count")
        self._totals = dict.fromkeys(self._slots, 0)
        slots = max(len(self._slots), 1)
        self._counts = gpu.allocate(slots * BINS * 8)
        self._extents = gpu.allocate(slots * 2 * 4)
        self._table = gpu.allocate(slots * 5 * 8)

    def add(self, tensors: Mapping[str, GpuTensor]) -> dict[str, float]:
        """Count every element of the tensors, as float32, and return the largest magnitude of each histogram so far.

        It is NaN or infinity, as with `Histogram.amax`, if any element counted ever was. Returns when the counting is
        done, so that the tensors may be overwritten.

        Raises:
            CalibrationError: a tensor is not of floating-point type.
        """
        table, total = pack(tensors, self._slots)
        if total:
            share = max(math.ceil(total / BLOCKS / 4) * 4, SMALLEST_SHARE)
            self._gpu.upload(self._table, table)
            self._gpu.launch(
                self._kernel,
                math.ceil(total / share),
                THREADS,
                np.uint64(self._table),
                np.uint32(len(table)),
                np.uint64(total),
                np.uint64(share),
                np.uint64(self._counts),
                np.uint64(self._extents),
            )
            for name, tensor in tensors.items():
                self._totals[name] += math.prod(tensor.shape)
        extents = self._read_extents()
        return {name: largest_of(int(extents[self._slots[name], 0])) for name in tensors}

    def clear(self) -> None:
        """Forget what was counted."""
        slots = max(len(self._slots), 1)
        self._gpu.clear(self._counts, slots * BINS * 8)
        self._gpu.clear(self._extents, slots * 2 * 4)
        self._totals = dict.fromkeys(self._slots, 0)

    def histograms(self) -> dict[str, Histogram]:
        """Copy what was counted to the host: bin 0, and those between the smallest and the largest other one."""
        extents = self._read_extents()
        made = {}
        for name, slot in self._slots.items():
            top, complement = map(int, extents[slot])
            counts = np.zeros(BINS, np.int64)
            parts = [counts[:1]]
            if top:
                parts.append(counts[(complement ^ 0xFFFFFFFF) >> _SHIFT : (top >> _SHIFT) + 1])
            for part in parts:
                start = (part.ctypes.data - counts.ctypes.data) // 8
                self._gpu.download(part, self._counts + (slot * BINS + start) * 8)
            made[name] = Histogram.of(counts, top, self._totals[name])
        return made

    def _read_extents(self) -> npt.NDArray[np.uint32]:
        """For each slot the bits of the largest magnitude, and the complement of those of the smallest."""
        extents = np.zeros((len(self._slots), 2), np.uint32)
        if extents.size:
            self._gpu.download(extents, self._extents)
        return extents


def pack(tensors: Mapping[str, GpuTensor], slots: Mapping[str, int]) -> tuple[npt.NDArray[np.uint64], int]:
    """The kernel's table of tensors, and how many elements its blocks share out.

    A row is address, size, place among all elements, type and slot: which histogram the tensor is counted in. Empty
    tensors have none. Sizes are rounded up to multiples of 4 there, so that every block begins where four numbers can
    be read at once.

    Raises:
        CalibrationError: a tensor is not of floating-point type.
    """
    rows, first = [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise CalibrationError(
                f"tensor {name!r} cannot be calibrated",
                why=f"it holds {tensor.dtype}, and only floating-point tensors have a scale",
            )
        if size := math.prod(tensor.shape):
            rows.append((tensor.pointer, size, first, _TYPES[tensor.dtype], slots[name]))
            first += math.ceil(size / 4) * 4
    return np.array(rows, np.uint64).reshape(-1, 5), first
