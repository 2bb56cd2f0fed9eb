"""The tensors that quantization hurts most, with their histograms: what a report shows of a calibration.

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
from trtopt.types import CalibratedTensor, CalibrationTable, Spread

FILE = "histograms.json"
COUNT = 6
_BINS = 128


def noisiest(table: CalibrationTable, histograms: Mapping[str, Histogram]) -> tuple[CalibratedTensor, ...]:
    """The `COUNT` tensors with the most expected quantization noise relative to their energy, the worst first."""
    noise = {name: _noise(table.scales[name], histogram) for name, histogram in histograms.items() if histogram.amax}
    worst = sorted(noise, key=lambda name: -noise[name])[:COUNT]
    return tuple(_described(name, table, histograms[name], noise[name]) for name in worst)


def write(tensors: tuple[CalibratedTensor, ...], folder: Path) -> None:
    """Write `histograms.json` into a folder."""
    (folder / FILE).write_text(json.dumps([encode(tensor) for tensor in tensors]), encoding="utf-8")


def read(folder: Path) -> tuple[CalibratedTensor, ...]:
    """What `write` wrote there; nothing when it is not there or cannot be read."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return tuple(decode(CalibratedTensor, each) for each in data)
    except (OSError, ValueError, TypeError):
        return ()


def _noise(scale: float, histogram: Histogram) -> float:
    """Expected squared error of rounding and clipping (see `trtopt.calibrate.mse`) over the sum of squares."""
    from trtopt.calibrate import kernels

    lower, upper, counts = histogram.bins()
    energy = float((counts * (upper * upper + upper * lower + lower * lower)).sum() / 3)
    return float(kernels.squared_error((lower, upper, counts), scale, math.inf)) / energy


def _described(name: str, table: CalibrationTable, histogram: Histogram, noise: float) -> CalibratedTensor:
    counts, width = histogram.linear(_BINS)
    return CalibratedTensor(
        tensor=name,
        method=table.method,
        amax=LEVELS * table.scales[name],
        largest=histogram.amax,
        clipped=histogram.share_above((LEVELS + 0.5) * table.scales[name]),
        noise=noise,
        spread=Spread(
            edges=tuple((np.arange(_BINS + 1) * width).tolist()),
            counts=tuple(np.rint(counts).astype(int).tolist()),
        ),
    )
