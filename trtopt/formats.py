"""Number types: everything that a type knows, from its largest number to the error of rounding to it.

Every precision names its own, `FORMAT` in `precision/NAME.py`. Only INT8 is defined here: the scales in a calibration
table are for it, whatever the table is used for.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number type.

    The numbers from 2**`exponent` on have `mantissa` bits after the first. Those below it are evenly spaced, with the
    distance `tiny`. All numbers of an integer type are below it.

    Attributes:
        name: its `--precision` name.
        ir_name: its name in ONNX and onnx-ir.
        bits: its size.
        mantissa: the number of stored bits of the mantissa.
        exponent: the exponent of the smallest normal number.
        max: its largest number.
        min: its lowest number.
        opset: the lowest opset of ONNX that can express a graph of it.
        per_channel: whether weights have one scale per output channel, and not one per tensor. Of 8-bit types only.
    """

    name: str
    ir_name: str
    bits: int
    mantissa: int
    exponent: int
    max: float
    min: float
    opset: int
    per_channel: bool = False

    @property
    def tiny(self) -> float:
        """The smallest positive number, which is 1 for an integer type."""
        return float(2.0 ** (self.exponent - self.mantissa))

    @property
    def numbers(self) -> tuple[int, int, float]:
        """`mantissa`, `exponent` and `max`, as `calibrate.kernels` takes them."""
        return self.mantissa, self.exponent, self.max

    @property
    def scaled(self) -> bool:
        """Whether values need a scale to be represented, and so a calibration table."""
        return self.bits == 8

    @property
    def clips_from(self) -> float:
        """The magnitude from which clipping to `max` is a larger error than rounding: half a step above it."""
        step = self.tiny
        while self.max >= 2 ** (self.mantissa + 1) * step:
            step *= 2
        return self.max + step / 2

    @property
    def dtype(self) -> ir.DataType:
        """The onnx-ir data type."""
        import onnx_ir as ir

        return ir.DataType[self.ir_name]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy data type."""
        return self.dtype.numpy()


INT8 = Format(
    name="int8",
    ir_name="INT8",
    bits=8,
    mantissa=7,
    exponent=7,
    max=127.0,
    min=-128.0,
    opset=19,  # the first in which DequantizeLinear supports FP16 scales
    per_channel=True,
)
