"""Loops that numpy cannot run fast enough, compiled by numba when this module is imported.

Import this module inside the function that needs it. It imports numba, and the first import on a machine compiles the
loops, which takes about two seconds. The result is cached on disk beside this file, or in the user's cache folder if
this folder is read-only.

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
"""Mask that clears the sign of a float32."""
_SHIFT = np.uint32(14)
_BLOCK = 1024
_NUMBERS = types.Tuple((types.int64, types.int64, types.float64))  # type: ignore[no-untyped-call]
"""A number type: the bits of its mantissa, the exponent of its smallest normal number, its largest number."""
_LINE = 16
"""Number of float32 values in a cache line."""


def _compile(signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled = numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:
        # numba found no writable cache folder: compile for this process only.
        compiled = numba.njit(signature, nogil=True)(function)
    return compiled  # type: ignore[no-any-return]


def _typed_prefetch(_context: Any, array: Any, _index: Any) -> Any:
    """Return the signature of `_prefetch`, and the function that generates its code, as numba's `intrinsic` asks."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data  # type: ignore[no-untyped-call]
        word = llvm.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), llvm.IntType(8).as_pointer())
        prototype = llvm.FunctionType(llvm.VoidType(), [address.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], prototype)
        # Arguments of llvm.prefetch: 0 = for reading, 3 = keep in all cache levels, 1 = data cache.
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


_prefetch: Callable[..., None] = intrinsic(_typed_prefetch)
"""_prefetch(array, index): start to load an element into the cache. The index may be beyond the end of the array."""


def _count(words: Any, counters: Any) -> Any:
    # Each block takes two passes: its bins are computed in vector registers, then the counters are incremented one by
    # one. The next block is prefetched meanwhile, because the hardware does not predict reads in bursts.
    bins = np.empty(_BLOCK, np.uint32)
    top = np.uint32(0)
    end = words.size - words.size % _BLOCK
    for start in range(0, end, _BLOCK):
        block = words[start : start + _BLOCK]
        for i in range(_BLOCK):
            magnitude = np.uint32(block[i] & _MAGNITUDE)
            top = magnitude if magnitude > top else top
            # An increment of the same counter must wait for the one before it, and half of a ReLU's outputs are zero.
            # Zeros therefore alternate between the first eight counters, which all mean zero.
            exact = np.uint32(magnitude >> _SHIFT)
            turn = np.uint32(i % ZERO_BINS)
            bins[i] = exact if exact > turn else turn
        for line in range(0, _BLOCK, _LINE):
            _prefetch(words, start + _BLOCK + line)
            for i in range(line, line + _LINE):
                counters[bins[i]] += np.uint32(1)
    # The elements after the last full block.
    for i in range(end, words.size):
        magnitude = np.uint32(words[i] & _MAGNITUDE)
        top = magnitude if magnitude > top else top
        counters[magnitude >> _SHIFT] += np.uint32(1)
    return top


def _least_divergent(counts: Any, levels: int, narrowest: int, rounding: float) -> Any:
    # Prefix sums over the bins, so that the sum over any range of bins is one subtraction:
    # of the counts, of the number of non-empty bins, and of c log(c).
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
        # An empty last bin that receives the outliers has an infinite divergence.
        if mass[i] == 0 or (last == 0 and outliers > 0):
            continue
        # `cost` is the divergence times `total`. It starts with the cost of the normalisation and of the outliers.
        # Then each level adds the sum of c log(c / height), which is never negative.
        # A candidate can therefore be abandoned as soon as its cost exceeds the smallest one so far.
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


def _integral(t: float, numbers: Any) -> Any:
    """Return the squared error integrated from 0 to t (F of `trtopt.calibrate.methods.mse`), and the error at t."""
    mantissa, exponent, largest = numbers
    cells, normal = 2.0**mantissa, 2.0**exponent
    start, step, before = 0.0, normal / cells, 0.0
    if t >= normal and largest >= normal:
        _, power = math.frexp(min(t, largest))
        start = 2.0 ** (power - 1)
        # The numbers below the normal ones, and each power of two from there on: a geometric series.
        before = cells / 12 * step**3 * (1 + (8.0 ** (power - 1 - exponent) - 1) / 7)
        step = start / cells
    offset = (t - start) / step
    n = min(math.floor(offset + 0.5), (largest - start) / step)
    return before + step**3 * (n / 12 + (offset - n) ** 3 / 3), (offset - n) * step


_pair = types.Tuple((types.float64, types.float64))  # type: ignore[no-untyped-call]
_integral = _compile(_pair(types.float64, _NUMBERS), _integral)


def _squared_error(bins: Any, scale: float, limit: float, numbers: Any) -> float:
    lower, upper, counts = bins
    half_step = 2.0 ** (numbers[1] - numbers[0] - 1)
    volume = scale**3
    total = 0.0
    # From the largest magnitudes down: clipping errors come first, so the limit is exceeded early.
    for i in range(lower.size - 1, -1, -1):
        low = lower[i] / scale
        high = upper[i] / scale
        if high <= half_step:
            # The whole bin rounds to 0: the error is the mean of x squared.
            total += counts[i] * (upper[i] ** 2 + upper[i] * lower[i] + lower[i] ** 2) / 3
            continue
        below, error = _integral(low, numbers)
        if high <= low:
            # A bin without width: all its values are equal.
            total += counts[i] * (error * scale) ** 2
            continue
        total += counts[i] * (_integral(high, numbers)[0] - below) * volume / (upper[i] - lower[i])
        if total > limit:
            return math.inf
    return total


_u32 = types.Array(types.uint32, 1, "C", readonly=True)
_f64 = types.Array(types.float64, 1, "C", readonly=True)

_bins = types.Tuple((_f64, _f64, _f64))  # type: ignore[no-untyped-call]

count = _compile(types.uint32(_u32, types.uint32[::1]), _count)
"""count(words, counters) -> the bits of the largest magnitude.

`words` are the bits of float32 values. Their counts are added to `counters`, uint32[2**17], in place. A counter is
indexed by the top 17 bits of the magnitude. Counts of the first `ZERO_BINS` bins may be in any of these bins.
"""

least_divergent = _compile(types.int64(_f64, types.int64, types.int64, types.float64), _least_divergent)
"""least_divergent(counts, levels, narrowest, rounding) -> the number of bins of the best candidate range.

Candidates have at least `narrowest` bins; the published search starts at `levels`. A narrower range is better only if
its divergence is smaller by more than `rounding`."""

squared_error = _compile(types.float64(_bins, types.float64, types.float64, _NUMBERS), _squared_error)
"""squared_error((lower, upper, counts), scale, limit, numbers) -> the squared error, infinity if above `limit`."""
