"""Calibration: one scale per tensor, derived from observed activations.

- `methods/` holds the calibration methods, one file each;
- `histogram` counts the values of a tensor, and `kernels` holds its compiled loops;
- `observe` fills histograms from samples; `gpu_observe` and `gpu_histogram` do the same on a GPU, and `source` decides;
- `ranges` collects statistics of all activations over a small subset of samples;
- `table` derives the scales, and reads and writes their files;
- `auto` chooses the method that suits a network;
- `noisiest` selects the tensors that a report shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from trtopt import plugins

if TYPE_CHECKING:
    from trtopt.calibrate.histogram import Histogram
    from trtopt.formats import Format

AUTO = "auto"
NATIVE = "native"
"""TensorRT's own calibrator. It is not one of the methods that `auto` tries, as it needs a GPU."""
_METHODS = "trtopt.calibrate.methods"


def method_names() -> tuple[str, ...]:
    """Return the names that `--method` accepts besides `AUTO`."""
    return plugins.names(_METHODS)


def check_name(name: str) -> None:
    """Raise unless `name` is a method or `AUTO`.

    Raises:
        UsageError: the method is unknown; the message suggests the closest name.
    """
    plugins.check(_METHODS, name, "calibration method", also=(AUTO, NATIVE))


def method(name: str) -> Callable[[Histogram, Format], float]:
    """Return the `amax` function of a method.

    Raises:
        UsageError: the method is unknown; the message suggests the closest name.
    """
    return cast("Callable[[Histogram, Format], float]", plugins.load(_METHODS, name, "calibration method").amax)
