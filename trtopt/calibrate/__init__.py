"""Observed activations to one scale per tensor: `--method NAME` is the module of that name.

A method's module has one function, `amax(histogram) -> float`: the largest magnitude to represent, positive and
finite, from the histogram alone. The other modules of this folder are what they share: `histogram` (what is known about
a tensor), `kernels` (its compiled loops), `observe` (fills histograms from samples) and `table` (scales, and their
files); `auto` (which of the methods suits a network), `ranges` (what a few samples tell about every tensor),
`noisiest` (what a report shows), and `gpu_histogram` and `gpu_observe` (the same counts where the tensors are).
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
    """Names that `--method` takes, besides `AUTO`: the modules of this folder that are no shared helpers."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def check_name(name: str) -> None:
    """Refuse what is neither a method nor `AUTO`.

    Raises:
        UsageError: the message suggests the nearest name.
    """
    known = (*methods(), AUTO)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 1)
        raise UsageError(
            f"unknown calibration method {name!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(known)}",
        )


def method(name: str) -> Callable[[Histogram], float]:
    """Return the `amax` function of that method.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    check_name(name)
    module = importlib.import_module(f"{__name__}.{name}")
    return cast("Callable[[Histogram], float]", module.amax)
