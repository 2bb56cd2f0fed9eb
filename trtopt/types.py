"""The values that flow through the pipeline: frozen dataclasses, standard library only.

    Source --export--> OnnxModel --prepare--> OnnxModel --calibrate--> CalibrationTable
    OnnxModel + CalibrationTable --precision--> TypedModel --build--> Engine
    OnnxModel + TypedModel/Engine --compare--> Comparison --report--> Report

Touches: nothing. Reading and writing these values is the run store's work (`trtopt.store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["pass", "fail", "unchecked"]
"""`unchecked` is said only when the user asked for no comparison; it is never a pass."""

Dim = int | str
"""A fixed size, or the name of a dynamic dimension (an unnamed one is called `?`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output.

    `dtype` is numpy's name of it (`float32`, `int64`, ..., `bfloat16`); a dynamic dimension in `shape` is a name.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """The shapes one dynamic input may take: one entry of a TensorRT optimization profile."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX file. `digest` is the SHA-256 of the file and of the external data that it names."""

    path: Path
    digest: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTable:
    """One positive, finite, symmetric INT8 scale (zero point 0) for each calibrated tensor.

    `scales[t]` is `amax[t] / 127`, where `amax[t]` is the largest magnitude that method chose to represent. `ranges[t]`
    is the largest magnitude seen, where that is known (a TensorRT calibration cache does not say). `model_digest` and
    `data_digest` tie the table to what it was made from; they are empty in a table read from a TensorRT cache.
    `fingerprints` are those of the samples (`trtopt.data.overlap`), where they are known.
    """

    method: str
    scales: Mapping[str, float]
    ranges: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0
    model_digest: str = ""
    data_digest: str = ""
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen while `samples` samples ran through the FP32 model.

    `ranges[t]` is the largest magnitude of each floating-point tensor, `sizes[t]` how many elements it had. `means` is
    an .npz with the mean of each channel, float64, of every tensor that a weighted operator reads; `digest` is the
    SHA-256 of its content.
    """

    ranges: Mapping[str, float]
    sizes: Mapping[str, int]
    samples: int
    means: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A node that TensorRT does not take: its name, operator, TensorRT's error code, and what it said."""

    node: str
    op: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What TensorRT's parser said of a model: nothing, when it takes every node."""

    rejections: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which precision a node of the typed graph computes in, and why."""

    node: str
    op: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedModel:
    """An ONNX graph that carries its precision in itself (Q/DQ pairs, casts), and the decision about every node.

    `precision` is the one asked for; `rest` is the type of what was not quantized. `decisions` lists every node that
    computes on floating-point numbers, in graph order.
    """

    onnx: OnnxModel
    precision: str
    rest: str
    decisions: tuple[Decision, ...]

    def kept(self) -> tuple[Decision, ...]:
        """Nodes that stay in FP32 although a lower precision was asked for."""
        return tuple(d for d in self.decisions if d.precision == "fp32" and self.precision != "fp32")

    def counts(self) -> dict[str, int]:
        """Number of computing nodes by precision."""
        counts: dict[str, int] = {}
        for decision in self.decisions:
            counts[decision.precision] = counts.get(decision.precision, 0) + 1
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What was built: a serialized TensorRT engine (`backend` tensorrt), or the typed ONNX itself (onnxruntime).

    `builder` names the library and its version; `device` what the engine was built for; `audit` counts layers by the
    precision that was *read back* after the build, and `audited` says from where it was read.
    """

    path: Path
    digest: str
    backend: str
    builder: str
    device: str
    size_bytes: int
    audit: Mapping[str, int] = field(default_factory=dict)
    audited: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """How far one output of the candidate is from the baseline's.

    `kind` is how the output was read: `scores` (class scores on the last axis), `values` (any other floating-point
    output) or `exact` (integers and booleans). `values` maps a metric's name to its value.
    """

    output: str
    kind: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One threshold and what became of it. `limit` is in the metric's own unit; `reason` is a sentence."""

    output: str
    metric: str
    value: float
    limit: float
    passed: bool
    reason: str
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Drift of a candidate against the FP32 baseline, and the gate's verdict.

    `baseline` and `candidate` name the models; `baseline_ran` and `candidate_ran` say where each one really ran.
    """

    baseline: str
    candidate: str
    baseline_ran: str
    candidate_ran: str
    data: str
    samples: int
    labelled: bool
    outputs: tuple[OutputDrift, ...]
    gates: tuple[GateResult, ...]
    verdict: Verdict
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """What one stage did: `ran`, `cached`, `skipped` or `unavailable`; its wall time in seconds; a line about it."""

    name: str
    status: str
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of one run, as it is written to `report.json`. Paths are those of the run directory.

    `parity` compares an exported source, run by its framework, with the ONNX model that came out.
    """

    schema_version: int
    command: str
    verdict: Verdict
    model: str
    precision: str
    run_dir: Path
    stages: tuple[StageOutcome, ...]
    typed: TypedModel | None
    engine: Engine | None
    comparison: Comparison | None
    warnings: tuple[str, ...]
    environment: Mapping[str, str]
    parity: Comparison | None = None
