"""A GPU for tests on machines without one: its memory is the host's, and numpy replaces its kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from trtopt.calibrate.histogram import BINS

TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64))


class HostGpu:
    def __init__(self) -> None:
        self.memory: list[np.ndarray] = []
        self.launched: list[tuple[str, int, int]] = []

    def allocate(self, size: int) -> int:
        self.memory.append(np.zeros(size, np.uint8))
        return self.memory[-1].ctypes.data

    def clear(self, pointer: int, size: int) -> None:
        ctypes.memset(pointer, 0, size)

    def upload(self, pointer: int, array: np.ndarray) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, pointer: int) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def compile(self, source: str, name: str) -> str:
        assert f" {name}(const Tensor* tensors" in source
        return name

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: np.generic) -> None:
        self.launched.append((kernel, blocks, threads))
        count(blocks, *map(int, arguments))


def count(blocks: int, table: int, n: int, total: int, share: int, counts: int, extents: int) -> None:
    """Count as the kernel `count` does, block by block."""
    rows = [tuple(map(int, row)) for row in view(table, n * 5, np.uint64).reshape(n, 5)]
    for block in range(blocks):
        low, high = block * share, min((block + 1) * share, total)
        assert low < high, "a block without work"
        for address, size, first, code, slot in rows:
            start, stop = max(low - first, 0), min(high - first, size)
            if start < stop:
                dtype = TYPES[code]
                with np.errstate(over="ignore"):
                    part = view(address, size, dtype)[start:stop].astype(np.float32)
                bits = part.view(np.uint32) & 0x7FFFFFFF
                mine = view(counts + slot * BINS * 8, BINS, np.uint64)
                mine += np.bincount(bits >> 14, minlength=BINS).astype(np.uint64)
                if (bits >> 14).any():
                    extent = view(extents + slot * 8, 2, np.uint32)
                    least = bits[bits >> 14 > 0].min()
                    extent[:] = np.maximum(extent, [bits.max(), least ^ 0xFFFFFFFF])


def view(address: int, size: int, dtype: Any) -> np.ndarray:
    """Return an array over the memory at an address."""
    element = np.dtype(dtype)
    return np.frombuffer((ctypes.c_uint8 * (size * element.itemsize)).from_address(address), element)
