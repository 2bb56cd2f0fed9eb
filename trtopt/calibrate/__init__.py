"""Calibration: one scale per tensor, derived from observed activations. `--method NAME` is the module of that name.

A method's module has one function, `amax(histogram) -> float`. It returns the largest magnitude that the scale must
represent, positive and finite, from the histogram alone.

The other modules are shared by the methods:

- `histogram` counts the values of a tensor, and `kernels` holds its compiled loops;
- `observe` fills histograms from samples; `gpu_observe` and `gpu_histogram` do the same on a GPU;
- `ranges` collects statistics of all activations over a small subset of samples;
- `table` derives the scales, and reads and writes their files;
- `auto` chooses the method that suits a network;
- `noisiest` selects the tensors that a report shows.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from trtopt.errors import UsageError

if TYPE_CHECKING:
    from trtopt.calibrate.histogram import Histogram

AUTO = "auto"
_SHARED = {AUTO, "gpu_histogram", "gpu_observe", "histogram", "kernels", "noisiest", "observe", "ranges", "table"}


def methods() -> tuple[str, ...]:
    """Return the names that `--method` accepts besides `AUTO`: the modules of this folder that are not shared."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def check_name(name: str) -> None:
    """Raise unless `name` is a method or `AUTO`.

    Raises:
        UsageError: the method is unknown; the message suggests the closest name.
    """
    known = (*methods(), AUTO)
    if name not in known:
        closest = difflib.get_close_matches(name.lower(), known, 1)
        raise UsageError(
            f"unknown calibration method {name!r}",
            fix=f"Did you mean {closest[0]}?" if closest else f"Choose one of {', '.join(known)}",
        )


def method(name: str) -> Callable[[Histogram], float]:
    """Return the `amax` function of a method.

    Raises:
        UsageError: the method is unknown; the message suggests the closest name.
    """
    check_name(name)
    module = importlib.import_module(f"{__name__}.{name}")
    return cast("Callable[[Histogram], float]", module.amax)
