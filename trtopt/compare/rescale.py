"""Channel factors between an equalized tensor of a typed graph and the FP32 tensor of its name.

Equalization divides channel c of an activation by s[c] and multiplies the weights that consume it by s[c]; the largest
s is 1 (`trtopt.precision.passes.equalize`). Relative to the FP32 graph before equalization, channel c of such a tensor
is therefore multiplied by a factor of at least 1. These factors are not recorded. They are estimated by a least-squares
fit of the typed channel to the FP32 channel, over the samples.

A fit alone would mistake a weight that is 10 times too small for a property of the equalization. If the smallest factor
is clearly below 1, the tensor is therefore assumed to be damaged, and all factors are raised until the smallest is 1.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trtopt.compare.taps import Link, Point

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

_CLEAR = 0.5
"""A channel is used for the estimate if a factor explains at least this share of its energy."""

_DAMAGED = 0.5
"""A smallest factor below this cannot be caused by 8-bit quantization errors: the whole tensor is too small."""


@dataclass(slots=True)
class _Fit:
    """Sums for the fit of one equalized activation.

    Attributes:
        tensor: the tensor that is fitted.
        sums: float64 [3, channels]: the energy of FP32, the inner product of FP32 and the typed tensor, and the energy
            of the typed tensor.
    """

    tensor: str
    sums: Floats


@dataclass(slots=True)
class Rescaling:
    """Estimated factors of equalized tensors: `add` accumulates samples, `apply` scales FP32's values.

    The tensors of a link share their factors. The factors are fitted on the first tensor, because a later one may have
    lost values in a Relu.
    """

    _fits: dict[Link, _Fit] = field(default_factory=dict)

    def add(self, point: Point, reference: Array, typed: Array) -> None:
        """Add one sample of an equalized tensor. Call this in graph order.

        Args:
            point: the equalized tensor.
            reference: its values in FP32.
            typed: its values in the typed graph, of the same shape.
        """
        assert point.link is not None
        x, y = (_channels(array, point.link.axis) for array in (reference, typed))
        fit = self._fits.setdefault(point.link, _Fit(point.tensor, np.zeros((3, len(x)))))
        if fit.tensor == point.tensor:
            with np.errstate(invalid="ignore", over="ignore"):
                fit.sums += np.stack([(x * x).sum(axis=1), (x * y).sum(axis=1), (y * y).sum(axis=1)])

    def apply(self, point: Point, reference: Array) -> Array:
        """Return FP32's values scaled as in the typed graph, float32. Tensors that are not equalized are unchanged."""
        if point.link is None:
            return reference
        shape = [1] * reference.ndim
        shape[point.link.axis] = -1
        factors = _factors(*self._fits[point.link].sums).reshape(shape)
        # A value that represents infinity in a mask may overflow to infinity.
        with np.errstate(over="ignore"):
            return np.asarray(np.asarray(reference, np.float64) * factors, np.float32)


def _factors(reference: Floats, product: Floats, typed: Floats) -> Floats:
    """Return the factor of each channel, float64 [channels], from the sums of `_Fit`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # The squared correlation coefficient is the share of the energy that the factor explains.
        clear = np.isfinite(product) & (product > 0) & (product * product >= _CLEAR * reference * typed)
        factors = np.where(clear, product / reference, 1.0)
    smallest = factors[clear].min(initial=1.0)
    return np.asarray(factors / smallest if smallest < _DAMAGED else factors)


def _channels(array: Array, axis: int) -> Floats:
    """Return the tensor as a matrix, float64 [channels, values per channel]."""
    moved = np.moveaxis(np.asarray(array, np.float64), axis, 0)
    return moved.reshape(moved.shape[0], -1)
