"""The values that flow through the pipeline: frozen dataclasses, standard library only.

    Source --export--> OnnxModel --prepare--> OnnxModel --calibrate--> CalibrationTable
    OnnxModel + CalibrationTable --precision--> TypedModel --build--> Engine
    OnnxModel + TypedModel/Engine --compare--> Comparison --report--> Report

Touches: nothing. Reading and writing these values is the run store's work (`trtopt.store`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["pass", "fail", "inconclusive", "unchecked"]
"""`inconclusive`: what was measured does not settle it. `unchecked`: the user asked for no comparison, or for no gate.
Neither is a pass; `trtopt.verdict` says what follows from each."""

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
    is the largest magnitude seen, where that is known (a TensorRT calibration cache does not say). `precision` is what
    the network was to be quantized to when it was equalized and calibrated. `tried` is how near to FP32 the outputs
    were on a few samples, in dB, by method, where the method was chosen by it. `model_digest` and `data_digest` tie the
    table to what it was made from; they are empty in a table read from a TensorRT cache. `fingerprints` are those of
    the samples (`trtopt.data.overlap`), where they are known.
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
    """What was seen while `samples` samples ran through the FP32 model.

    `ranges[t]` is the largest magnitude of each floating-point tensor, `sizes[t]` how many elements it had. `means` is
    an .npz with the mean of each channel, float64, of every tensor that a weighted operator reads, and of what rounding
    adds to it; `digest` is the SHA-256 of its content. `correction` says of whose errors biases are corrected: of
    nothing's (empty), of the `weights`', or of the `weights and inputs`'; `gain` by how many dB the outputs are nearer
    to FP32 for it.
    """

    ranges: Mapping[str, float]
    sizes: Mapping[str, int]
    samples: int
    means: Path
    digest: str
    correction: str = ""
    gain: float = 0.0


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
class Spread:
    """A histogram: `counts[i]` values lie in [`edges[i]`, `edges[i + 1]`); there is one edge more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSample:
    """A sample far from FP32: its name, its place in the dataset, its SQNR in dB (NaN: none), and a remark."""

    sample: str
    index: int
    sqnr: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """How far one output of the candidate is from the baseline's.

    `kind` is how the output was read: the name of a module of `trtopt.compare.kinds`, or `own` for what a metric of the
    user's own returned (`output` is its name then). `values` maps a metric's name to its value. `counts` are the whole
    numbers of samples that statistics rest on: `samples`; with classes `agree` (both chose the same) and `top5`; with
    labels `both`, `only_fp32`, `only_candidate` (who was right), or `unfit`: how many FP32 is right on where that is no
    better than guessing. `first_bad` names the first sample with a NaN or Inf.
    `spread` is the histogram of the SQNR of single samples in dB, identical ones left out; `worst` are the samples with
    the lowest, the worst first.
    """

    output: str
    kind: str
    values: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    first_bad: str = ""
    spread: Spread | None = None
    worst: tuple[WorstSample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One threshold and what became of it. `limit` is in the metric's own unit; `reason` is a sentence.

    `low` and `high` bound `value` with the confidence that the reason states (NaN where the metric has no sampling
    error). `needed` is how many samples would settle an inconclusive one (0: not known).
    """

    output: str
    metric: str
    value: float
    limit: float
    verdict: Verdict
    reason: str
    default: bool = False
    low: float = math.nan
    high: float = math.nan
    needed: int = 0

    @property
    def passed(self) -> bool:
        """Whether the threshold is shown to hold."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """How far the result of one node is from FP32's: SQNR in dB at its output, and at the worst of its inputs.

    `added` is the noise, relative to the output's own energy, that came in at this node.
    """

    node: str
    op: str
    tensor: str
    precision: str
    sqnr: float
    sqnr_in: float
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Drift layer by layer, in graph order. `jump` is the node where it first jumps (empty: nowhere); `reason` says why
    that one, and `data` on which samples it was seen.
    """

    layers: tuple[LayerDrift, ...]
    jump: str
    reason: str
    samples: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Drift of a candidate against the FP32 baseline, and the gate's verdict.

    `baseline` and `candidate` name the models; `baseline_ran` and `candidate_ran` say where each one really ran. As the
    stage `compare` leaves it there are no `gates` and the verdict is `unchecked`; `trtopt.compare.gate.judged` gives it
    both, and `remarks` on what the gates did not look at and where to look first. `calibrated_on` is how many of the
    samples the candidate was calibrated on: they are no evidence for unseen data.
    """

    baseline: str
    candidate: str
    baseline_ran: str
    candidate_ran: str
    data: str
    samples: int
    labelled: bool
    outputs: tuple[OutputDrift, ...]
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = "unchecked"
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    calibrated_on: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedTensor:
    """The magnitudes of one tensor over the calibration samples, and the threshold that was chosen for it.

    `amax` is that threshold (127 times the scale), `largest` the largest magnitude seen, `clipped` the share of values
    above the threshold. `spread` counts non-zero magnitudes. `noise` is the expected quantization noise over signal.
    """

    tensor: str
    method: str
    amax: float
    largest: float
    clipped: float
    noise: float
    spread: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where a measured value lies, in its own unit."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one target at one batch size over `iterations` runs, in milliseconds, and its throughput in samples a
    second.

    `copies` says whether copies between host and device are in it. `noise` is half the 95 % confidence interval of the
    mean, relative to it. `readings` are what the system said meanwhile (`trtopt.bench` names them and their units):
    what could not be read is absent. `bounds` are the 95 % bounds, each one-sided, of `mean` and of the percentiles
    (infinite where the runs were too few), and of `speedup`, which is against the first target of the same batch (NaN:
    it is the first).
    """

    target: str
    batch: int
    copies: bool
    iterations: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    noise: float
    throughput: float
    readings: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, Interval] = field(default_factory=dict)
    speedup: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTarget:
    """One timed target: its name in the table, its file, what ran it and where, and on which kind of device (empty: an
    earlier version did not record it).
    """

    name: str
    path: Path
    ran: str
    device: Literal["cpu", "cuda", ""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbe:
    """One batch size, tried in a process of its own: the memory that it took in bytes (0: not known), its median
    latency in milliseconds (NaN: not run to its end), and in `failed` why it does not fit (empty: it does).
    """

    batch: int
    memory: int
    latency: float
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """The largest batch that fits (0: none) on `device` (`cpu`, `cuda`), what the next larger one exceeds, and in `why`
    the same as a sentence. `profile` is that of the engine; `time` is how long one probe may take, `search` the largest
    batch that is tried; `refused` is a batch that the model, or what runs it, cannot do.

    `memory_limit` is in bytes, `latency_limit` in milliseconds (NaN: none). At `batch` the target takes `total` bytes:
    `weights` and `inputs_outputs` by their shapes, `base` before the model was loaded, the rest activations and work
    space. With other batches it takes about `bytes_fixed + batch * bytes_per_sample`.
    """

    target: str
    device: str
    batch: int
    limited_by: Literal["memory", "latency", "profile", "time", "search", "refused"]
    why: str
    memory_limit: int
    latency_limit: float
    total: int
    base: int
    weights: int
    inputs_outputs: int
    bytes_fixed: int
    bytes_per_sample: float
    probes: tuple[BatchProbe, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Timings of one or more targets, side by side; `speedup` gates hold the last target against the first.

    `complete` is false when the sweep was interrupted or ran out of memory: what had been measured is here. `limit` is
    the largest batch of the (one) target, where it was searched.
    """

    targets: tuple[BenchTarget, ...]
    timings: tuple[Timing, ...]
    complete: bool = True
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = "unchecked"
    warnings: tuple[str, ...] = ()
    limit: BatchLimit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """One of several candidates that were compared with the same baseline.

    `size_bytes` is that of the engine where all of them have one, else that of the typed ONNX file.
    `latency` is the median in milliseconds at `latency_batch`, where it was measured (else NaN and 0); `pareto` says
    that no other candidate is better in one of size, drift and latency and no worse in the others.
    """

    name: str
    precision: str
    size_bytes: int
    comparison: Comparison
    latency: float
    latency_batch: int
    pareto: bool


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

    `parity` compares an exported source, run by its framework, with the ONNX model that came out. `calibration` holds
    the tensors with the most quantization noise. `candidates` are there, and `comparison` is not, when several were
    compared. `allow_inconclusive` says that the user takes an inconclusive verdict for enough, `list_worst` how many of
    the worst samples he wants listed.
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
    layers: Layers | None = None
    calibration: tuple[CalibratedTensor, ...] = ()
    benchmark: Benchmark | None = None
    candidates: tuple[CandidateReport, ...] = ()
    allow_inconclusive: bool = False
    list_worst: int = 0
