"""The tensors with the largest relative quantization error, with their histograms, as a report shows them.

Touches: the file that it is asked to write or read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.table import LEVELS
from trtopt.codec import decode, encode
from trtopt.formats import INT8, Format
from trtopt.types import CalibratedTensor, CalibrationTable, Spread

FILE = "histograms.json"
COUNT = 6
"""Number of tensors to describe."""
_BINS = 128


def noisiest(
    table: CalibrationTable, histograms: Mapping[str, Histogram], format: Format = INT8
) -> tuple[CalibratedTensor, ...]:
    """Return the `COUNT` tensors with the largest expected quantization error relative to their energy, worst first.

    Tensors that were always zero have no relative error and are left out.
    """
    errors = {
        name: _relative_error(table.scales[name], histogram, format)
        for name, histogram in histograms.items()
        if histogram.amax
    }
    worst = sorted(errors, key=lambda name: -errors[name])[:COUNT]
    return tuple(_describe(name, table, histograms[name], format, errors[name]) for name in worst)


def write(tensors: tuple[CalibratedTensor, ...], folder: Path) -> None:
    """Write `histograms.json` into a folder."""
    (folder / FILE).write_text(json.dumps([encode(tensor) for tensor in tensors]), encoding="utf-8")


def read(folder: Path) -> tuple[CalibratedTensor, ...]:
    """Return the tensors that `write` stored in the folder, or none if the file is missing or cannot be read."""
    try:
        entries = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return tuple(decode(CalibratedTensor, entry) for entry in entries)
    except (OSError, ValueError, TypeError):
        return ()


def _relative_error(scale: float, histogram: Histogram, format: Format) -> float:
    """Return the expected squared error of rounding and clipping (see `calibrate.methods.mse`) over the energy."""
    from trtopt.calibrate import kernels

    lower, upper, counts = histogram.bins()
    # The mean of x**2 over a bin with uniform values is (u**2 + u l + l**2) / 3.
    energy = float((counts * (upper * upper + upper * lower + lower * lower)).sum() / 3)
    return (
        float(kernels.squared_error((lower, upper, counts), scale * LEVELS / format.max, math.inf, format.numbers))
        / energy
    )


def _describe(
    name: str, table: CalibrationTable, histogram: Histogram, format: Format, error: float
) -> CalibratedTensor:
    """Return what a report shows of one tensor."""
    counts, width = histogram.linear(_BINS)
    scale = table.scales[name]
    return CalibratedTensor(
        tensor=name,
        method=table.method,
        amax=LEVELS * scale,
        largest=histogram.amax,
        # Values more than half a step above the range lose more than rounding would cost.
        clipped=histogram.share_above(scale * LEVELS / format.max * format.clips_from),
        noise=error,
        spread=Spread(
            edges=tuple((np.arange(_BINS + 1) * width).tolist()),
            counts=tuple(np.rint(counts).astype(int).tolist()),
        ),
    )
