"""Results of calibration: scales, and statistics of activations.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The number of samples that were loaded, by their use, and `warnings` about their values."""

    samples: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTable:
    """INT8 scales of the calibrated tensors: positive, finite and symmetric (zero point 0).

    Attributes:
        method: the calibration method.
        scales: `amax / 127` by tensor, where amax is the clipping threshold that the method chose.
        precision: the precision for which the model was equalized and calibrated.
        ranges: the observed absmax by tensor. A TensorRT calibration cache does not record it.
        tried: output SQNR in dB on a few samples by candidate method. Empty unless the method was chosen by it.
        samples: the number of calibration samples.
        model_digest: digest of the calibrated model. Empty in a table read from a TensorRT cache.
        data_digest: digest of the calibration data. Empty in a table read from a TensorRT cache.
        fingerprints: those of the samples (`trtopt.data.overlap`), if they are known.
    """

    method: str
    scales: Mapping[str, float]
    precision: str = "int8"
    ranges: Mapping[str, float] = field(default_factory=dict)
    tried: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    model_digest: str = ""
    data_digest: str = ""
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Statistics of the FP32 model's floating-point tensors over `samples` samples.

    Attributes:
        ranges: the absmax by tensor, without infinities and masks.
        sizes: the number of elements by tensor.
        samples: the number of samples.
        masks: the largest magnitude that means infinity, of the tensors that hold one.
        means: an .npz of float64 means per channel, for every input tensor of a weighted operator and for its
            quantization error.
        digest: SHA-256 of the content of `means`.
        correction: the quantization errors that bias correction compensates: `weights`, or `weights and inputs`. Empty
            if biases are not corrected.
        gain: increase of the output SQNR by bias correction, in dB.
        spoiled: the nodes that the 16-bit type would spoil, each with the reason.
    """

    ranges: Mapping[str, float]
    sizes: Mapping[str, int]
    samples: int
    masks: Mapping[str, float] = field(default_factory=dict)
    means: Path
    digest: str
    correction: str = ""
    gain: float = 0.0
    spoiled: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A histogram: `counts[i]` values lie in [`edges[i]`, `edges[i + 1]`), so there is one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedTensor:
    """Calibration result of one tensor.

    Attributes:
        tensor: the tensor's name.
        method: the calibration method.
        amax: the clipping threshold (127 times the scale).
        largest: the observed absmax.
        clipped: fraction of values above the threshold.
        noise: expected energy of the quantization error over the signal energy.
        spread: histogram of the non-zero magnitudes.
    """

    tensor: str
    method: str
    amax: float
    largest: float
    clipped: float
    noise: float
    spread: Spread
