"""The loops that numpy cannot do fast enough, compiled by numba when this module is imported.

Import it inside the function that needs it: it imports numba, and the first import on a machine compiles (about two
seconds, then cached on disk beside this file, or in the user's cache folder when that is read-only).

Touches: numba's cache files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from trtopt.calibrate.histogram import ZERO_BINS

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SHIFT = np.uint32(14)
_BLOCK = 1024
_LINE = 16  # float32 values of a cache line


def _compile(signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled = numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:
        # numba finds no folder that it may write to: compile for this process only.
        compiled = numba.njit(signature, nogil=True)(function)
    return compiled  # type: ignore[no-any-return]


def _typed_prefetch(_context: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data  # type: ignore[no-untyped-call]
        word = llvm.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), llvm.IntType(8).as_pointer())
        kind = llvm.FunctionType(llvm.VoidType(), [address.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        # For reading, into the nearest cache, of data.
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


_prefetch: Callable[..., None] = intrinsic(_typed_prefetch)
"""_prefetch(array, index): begin to bring an element into the cache. It may lie behind the array's end."""


def _count(words: Any, counters: Any) -> Any:
    # A block at a time: first its bins, in vector registers, then one increment after the other. The next block is
    # fetched meanwhile, since the processor does not see such reading in bursts coming.
    bins = np.empty(_BLOCK, np.uint32)
    top = np.uint32(0)
    end = words.size - words.size % _BLOCK
    for start in range(0, end, _BLOCK):
        block = words[start : start + _BLOCK]
        for i in range(_BLOCK):
            magnitude = np.uint32(block[i] & _MAGNITUDE)
            top = magnitude if magnitude > top else top
            # An increment waits for the one before it if that was of the same counter, and half of what a ReLU gives
            # is zero: zeros go to eight counters in turn. All eight mean zero.
            exact = np.uint32(magnitude >> _SHIFT)
            turn = np.uint32(i % ZERO_BINS)
            bins[i] = exact if exact > turn else turn
        for line in range(0, _BLOCK, _LINE):
            _prefetch(words, start + _BLOCK + line)
            for i in range(line, line + _LINE):
                counters[bins[i]] += np.uint32(1)
    for i in range(end, words.size):
        magnitude = np.uint32(words[i] & _MAGNITUDE)
        top = magnitude if magnitude > top else top
        counters[magnitude >> _SHIFT] += np.uint32(1)
    return top


def _least_divergent(counts: Any, levels: int, narrowest: int, rounding: float) -> Any:
    size = counts.size
    mass = np.zeros(size + 1)
    filled = np.zeros(size + 1)
    own = np.zeros(size + 1)
    for j in range(size):
        c = counts[j]
        mass[j + 1] = mass[j] + c
        filled[j + 1] = filled[j] + (c > 0)
        own[j + 1] = own[j] + (c * math.log(c) if c > 0 else 0.0)
    total = mass[size]
    best = size
    least = np.inf
    for i in range(size, narrowest - 1, -1):
        outliers = total - mass[i]
        last = counts[i - 1]
        if mass[i] == 0 or (last == 0 and outliers > 0):
            continue
        # The divergence times `total`. What the outliers and the normalisation cost comes first; then each level adds
        # sum of c log(c / height), which is never negative: a sum above the least so far cannot fall below it again.
        stop = i
        start = ((levels - 1) * i + levels - 1) // levels
        cost = total * math.log(mass[i] / total)
        if outliers > 0:
            height = (mass[stop] - mass[start]) / (filled[stop] - filled[start])
            cost += (last + outliers) * math.log(last + outliers) - last * math.log(last) - outliers * math.log(height)
        enough = least - rounding * total
        for level in range(levels - 1, -1, -1):
            start = (level * i + levels - 1) // levels
            width = filled[stop] - filled[start]
            if width > 1:
                content = mass[stop] - mass[start]
                cost += own[stop] - own[start] - content * math.log(content / width)
                if cost >= enough:
                    break
            stop = start
        if cost < enough:
            least = cost
            best = i
    return best


def _squared_error(bins: Any, scale: float, limit: float) -> float:
    lower, upper, counts = bins
    step = scale**3
    total = 0.0
    for i in range(lower.size - 1, -1, -1):
        low = lower[i] / scale
        high = upper[i] / scale
        if high <= 0.5:
            # the rest rounds to 0: the integral of x squared
            total += counts[i] * (upper[i] ** 2 + upper[i] * lower[i] + lower[i] ** 2) / 3
            continue
        n = min(math.floor(low + 0.5), 127.0)
        if high <= low:
            total += counts[i] * ((low - n) * scale) ** 2
            continue
        at_low = n / 12 + (low - n) ** 3 / 3
        n = min(math.floor(high + 0.5), 127.0)
        at_high = n / 12 + (high - n) ** 3 / 3
        total += counts[i] * (at_high - at_low) * step / (upper[i] - lower[i])
        if total > limit:
            return math.inf
    return total


_u32 = types.Array(types.uint32, 1, "C", readonly=True)
_f64 = types.Array(types.float64, 1, "C", readonly=True)

_bins = types.Tuple((_f64, _f64, _f64))  # type: ignore[no-untyped-call]

count = _compile(types.uint32(_u32, types.uint32[::1]), _count)
"""count(words, counters) -> the largest magnitude's bits.

`words` are the bits of float32 values; `counters`, uint32[2**17], are added to in place. They are indexed by the top 17
bits of the magnitude, but what belongs to any of the first `ZERO_BINS` may be in any other of them.
"""

least_divergent = _compile(types.int64(_f64, types.int64, types.int64, types.float64), _least_divergent)
"""least_divergent(counts, levels, narrowest, rounding) -> how many bins the best candidate range has.

Candidates have `narrowest` bins or more; the published search begins at `levels`."""

squared_error = _compile(types.float64(_bins, types.float64, types.float64), _squared_error)
"""squared_error((lower, upper, counts), scale, limit) -> summed squared error, or infinity once it is above `limit`."""
