"""Histograms of tensors in GPU memory, counted on the GPU: the tensors are never copied to the host.

The bins and counts are exactly those of `histogram.Histogram` for the same tensors. The kernel in `gpu_histogram.cu`
counts at close to the read bandwidth of the memory.

Touches: the memory of the GPU, through the `Gpu` that is passed in.
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
"""Blocks of a launch: a few per multiprocessor of the largest GPUs. Smaller GPUs run them in several waves."""
THREADS = 512
"""Threads per block, as in the kernel's source."""
SMALLEST_SHARE = 1 << 14
"""Smallest number of elements per block, so that clearing and flushing its bins costs less than counting."""

_SHIFT = 14
"""Low bits of a magnitude that are dropped to obtain its bin."""
_TYPES = {"float32": 0, "float16": 1, "float64": 2}
"""Codes of the supported dtypes, as in the enumeration `Type` of the kernel's source."""


class Gpu(Protocol):
    """The operations of a GPU that counting needs.

    The GPU owns the results of `allocate` and `compile`, and releases them when it is closed.
    """

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of zeroed device memory."""
        ...

    def clear(self, pointer: int, size: int) -> None:
        """Set `size` bytes of device memory to zero."""
        ...

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copy an array into device memory."""
        ...

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copy device memory into an array, after all work that was launched before."""
        ...

    def compile(self, source: str, name: str) -> Any:
        """Compile CUDA C++ and return the kernel of that name."""
        ...

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: np.generic) -> None:
        """Launch a kernel on one-dimensional blocks, after all work that was launched before."""
        ...


class GpuTensor(Protocol):
    """A dense tensor in the memory of a GPU."""

    @property
    def pointer(self) -> int:
        """Address of its first element."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""
        ...

    @property
    def dtype(self) -> str:
        """Numpy's name of its dtype."""
        ...


class Counters:
    """One histogram per name, in the memory of a GPU. Each takes 1 MB, whatever is counted. Not thread-safe."""

    def __init__(self, gpu: Gpu, names: Sequence[str]) -> None:
        self._gpu = gpu
        self._slots = {name: slot for slot, name in enumerate(dict.fromkeys(names))}
        source = files("trtopt.calibrate").joinpath("gpu_histogram.cu").read_text(encoding="utf-8")
        self._kernel = gpu.compile(source, "count")
        self._totals = dict.fromkeys(self._slots, 0)
        slots = max(len(self._slots), 1)
        self._counts = gpu.allocate(slots * BINS * 8)  # uint64 [slots, BINS]
        self._extents = gpu.allocate(slots * 2 * 4)  # uint32 [slots, 2]
        self._table = gpu.allocate(slots * 5 * 8)  # uint64 [slots, 5]

    def add(self, tensors: Mapping[str, GpuTensor]) -> dict[str, float]:
        """Count every element of the tensors, as float32. Return when the tensors may be overwritten.

        Returns:
            The absmax of each of these histograms so far. As with `Histogram.amax`, it is NaN or infinity once an
            element was.

        Raises:
            CalibrationError: the dtype of a tensor is not floating-point.
        """
        table, total = pack(tensors, self._slots)
        if total:
            # A multiple of 4, so that every block starts where four numbers can be loaded at once.
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
        """Reset all counts to zero."""
        slots = max(len(self._slots), 1)
        self._gpu.clear(self._counts, slots * BINS * 8)
        self._gpu.clear(self._extents, slots * 2 * 4)
        self._totals = dict.fromkeys(self._slots, 0)

    def histograms(self) -> dict[str, Histogram]:
        """Copy the histograms to the host and return them by name."""
        extents = self._read_extents()
        histograms = {}
        for name, slot in self._slots.items():
            top, complement = map(int, extents[slot])
            counts = np.zeros(BINS, np.int64)
            # Only bins that can be non-empty are copied: bin 0, and from the smallest to the largest other magnitude.
            spans = [(0, 1)]
            if top:
                smallest = complement ^ 0xFFFFFFFF
                spans.append((smallest >> _SHIFT, (top >> _SHIFT) + 1))
            for start, stop in spans:
                self._gpu.download(counts[start:stop], self._counts + (slot * BINS + start) * 8)
            histograms[name] = Histogram.of(counts, top, self._totals[name])
        return histograms

    def _read_extents(self) -> npt.NDArray[np.uint32]:
        """Return the bits of the largest magnitude, and the complement of those of the smallest: uint32 [slots, 2]."""
        extents = np.zeros((len(self._slots), 2), np.uint32)
        if extents.size:
            self._gpu.download(extents, self._extents)
        return extents


def pack(tensors: Mapping[str, GpuTensor], slots: Mapping[str, int]) -> tuple[npt.NDArray[np.uint64], int]:
    """Build the kernel's table of tensors.

    Args:
        tensors: the tensors to count, by name.
        slots: the index of the histogram of each name.

    Returns:
        The table, and the total number of elements that the blocks divide among them. A row of the table is uint64
        [5]: address, size, index of the first element among those of all tensors, dtype, and slot. Empty tensors have
        no row. Sizes are rounded up to multiples of 4 in the index and the total, so that every block starts where
        four numbers can be loaded at once.

    Raises:
        CalibrationError: the dtype of a tensor is not floating-point.
    """
    rows, first = [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise CalibrationError(
                f"tensor {name!r} cannot be calibrated",
                why=f"its dtype is {tensor.dtype}, and only floating-point tensors have a scale",
            )
        if size := math.prod(tensor.shape):
            rows.append((tensor.pointer, size, first, _TYPES[tensor.dtype], slots[name]))
            first += math.ceil(size / 4) * 4
    return np.array(rows, np.uint64).reshape(-1, 5), first
