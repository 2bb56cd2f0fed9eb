"""How an equalized tensor of a typed graph relates to the FP32 tensor of its name, when the factors are not on record.

Equalization divides channel c of an activation by s[c] and lets the next weights multiply by it; the largest s is 1
(`trtopt.precision.equalize`). Against the FP32 graph before it, such a tensor is FP32's times a factor of at least 1 a
channel. The factor is measured: the least-squares fit of the typed channel to FP32's, over the samples. That alone
would take a weight that is 10 times too small for a property of the equalization, so factors below 1 are held to
be damage, and all are raised until the smallest is 1.

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
"""A channel says something of its factor when at least this share of its energy is explained by one."""

_DAMAGED = 0.5
"""A smallest factor below this is no noise of 8 bits: the tensor is too small as a whole."""


@dataclass(slots=True)
class _Fit:
    """What was seen of a link: by channel the energy of FP32, its product with the typed tensor, that one's energy."""

    tensor: str
    sums: Floats


@dataclass(slots=True)
class Rescaling:
    """Accumulates evidence with `add`; `apply` makes FP32's numbers comparable.

    The tensors of a link share their factors. They are fitted on its first, which has lost nothing to a Relu.
    """

    _fits: dict[Link, _Fit] = field(default_factory=dict)

    def add(self, point: Point, reference: Array, typed: Array) -> None:
        """Take one sample of an equalized tensor: FP32's numbers and the typed graph's. Call in graph order."""
        assert point.link is not None
        x, y = (_channels(array, point.link.axis) for array in (reference, typed))
        fit = self._fits.setdefault(point.link, _Fit(point.tensor, np.zeros((3, len(x)))))
        if fit.tensor == point.tensor:
            with np.errstate(invalid="ignore", over="ignore"):
                fit.sums += np.stack([(x * x).sum(axis=1), (x * y).sum(axis=1), (y * y).sum(axis=1)])

    def apply(self, point: Point, reference: Array) -> Array:
        """FP32's numbers as the typed graph would hold them if it were exact; as they are, unless it is equalized."""
        if point.link is None:
            return reference
        shape = [1] * reference.ndim
        shape[point.link.axis] = -1
        factors = _factors(*self._fits[point.link].sums).reshape(shape)
        with np.errstate(over="ignore"):  # a stand-in for infinity may become infinite
            return np.asarray(np.asarray(reference, np.float64) * factors, np.float32)


def _factors(own: Floats, product: Floats, other: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        clear = np.isfinite(product) & (product > 0) & (product * product >= _CLEAR * own * other)
        factors = np.where(clear, product / own, 1.0)
    smallest = factors[clear].min(initial=1.0)
    return np.asarray(factors / smallest if smallest < _DAMAGED else factors)


def _channels(array: Array, axis: int) -> Floats:
    """The tensor as float64 [channels, the rest]."""
    moved = np.moveaxis(np.asarray(array, np.float64), axis, 0)
    return moved.reshape(moved.shape[0], -1)
