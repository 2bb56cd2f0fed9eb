"""Values that flow through the pipeline: frozen dataclasses that depend on the standard library only.

    Source --export--> OnnxModel --prepare--> OnnxModel --calibrate--> CalibrationTable
    OnnxModel + CalibrationTable --precision--> TypedModel --build--> Engine
    OnnxModel + TypedModel/Engine --compare--> Comparison --report--> Report

Touches: nothing. The run store (`trtopt.store`) reads and writes these values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["pass", "fail", "inconclusive", "unchecked"]
"""Outcome of a gate or of a run.

`inconclusive` means that the measurements do not settle it. `unchecked` means that the user turned off the comparison
or set no gate. Neither counts as a pass; `trtopt.verdict` defines the consequences of each.
"""

Cache = Literal["use", "ignore", "show"]
"""Treatment of the results of earlier runs.

A run uses them, ignores them, or shows which it would use, without running or writing anything.
"""

Dim = int | str
"""A fixed size, or the name of a dynamic dimension (`?` for an unnamed one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output.

    `dtype` is a numpy name (`float32`, `int64`, ...) or `bfloat16`.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Minimum, optimum and maximum shape of a dynamic input: one entry of a TensorRT optimization profile."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX file. `digest` is the SHA-256 of the file and its external data; `notes` are remarks for the user."""

    path: Path
    digest: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()


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
class Rejection:
    """A node that TensorRT does not support: its name and operator, and TensorRT's error code and message."""

    node: str
    op: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Result of TensorRT's parser for a model. `rejections` is empty if it supports every node."""

    rejections: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Nodes to keep in higher precision: a `pattern` (see `trtopt.precision.passes.wanted`), and their precision.

    The precision is `fp32`, or "" for the fallback precision beside quantized nodes.
    """

    pattern: str
    precision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The precision in which a node of the typed graph computes, and the reason."""

    node: str
    op: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedModel:
    """An ONNX graph with its precision written into it (Q/DQ nodes, casts), and the decision about every node.

    `precision` is the requested one and `rest` the fallback precision of nodes that were not quantized. `decisions`
    lists every node that computes on floating-point numbers, in graph order.
    """

    onnx: OnnxModel
    precision: str
    rest: str
    decisions: tuple[Decision, ...]

    def kept(self) -> tuple[Decision, ...]:
        """Return the nodes that stay in FP32 although a lower precision was requested."""
        return tuple(d for d in self.decisions if d.precision == "fp32" and self.precision != "fp32")

    def counts(self) -> dict[str, int]:
        """Return the number of nodes by precision."""
        counts: dict[str, int] = {}
        for decision in self.decisions:
            counts[decision.precision] = counts.get(decision.precision, 0) + 1
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The deployable result: a serialized TensorRT engine (`backend` tensorrt), or the typed ONNX file (onnxruntime).

    `builder` is the library and its version, and `device` the device that the engine was built for. `audit` is the
    number of layers by precision, *read back* after the build, and `audited` the source that it was read from.
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
    """A histogram: `counts[i]` values lie in [`edges[i]`, `edges[i + 1]`), so there is one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSample:
    """A sample with a large error: its name, its index in the dataset, its SQNR, and a note.

    `sqnr` is in dB. It is NaN for an output whose values are not subtracted, such as boxes.
    """

    sample: str
    index: int
    sqnr: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """Difference between one output of the candidate and the same output of the baseline.

    Attributes:
        output: the output's name; for a custom metric, the function's name.
        kind: how the output was read: a module of `trtopt.compare.kinds`, or `own` for a custom metric.
        values: metric values by name.
        counts: the numbers of samples that statistics are based on: `samples`; for classes `agree` (both models chose
            the same class), `top5` and `chosen` (distinct classes that FP32 chose); with labels `both`, `only_fp32` and
            `only_candidate` (the model that was right); with labels of other classes `unfit` (the samples on which FP32
            is right, which is not better than guessing) and `contradicted` (1 if there are enough of them to tell). For
            integers `same` (samples that agree in most elements), for detections `boxes` (those of FP32), and for
            probabilities whose errors are `harmless` 1. For the class with the clearest loss `class` (its index; absent
            for all classes but the most frequent one together), FP32's `decisions` for it, those that the candidate
            `kept`, the samples `having` one, and the number of `groups` of decisions that were examined.
        first_bad: the first sample with a NaN or Inf.
        spread: histogram of the SQNR per sample in dB, without identical samples.
        worst: the samples with the lowest SQNR, the worst first.
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
    """Result of one gate.

    Attributes:
        output: the output that was judged.
        metric: the metric's name.
        value: the measured value, in the metric's unit. NaN if it could not be evaluated.
        limit: the threshold, in the metric's unit.
        verdict: the outcome.
        reason: a sentence that explains the verdict.
        default: true for a default gate.
        low: lower confidence bound of `value`. NaN for a metric without sampling error.
        high: upper confidence bound of `value`. NaN for a metric without sampling error.
        needed: the number of samples that would settle an inconclusive verdict. 0 if unknown.
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
        """True if the samples show that the threshold holds."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """Quantization error at the output of one node, compared with FP32.

    `sqnr` is that of the output `tensor` and `sqnr_in` the lowest of the node's inputs, both in dB. `added` is the
    error energy that this node adds, relative to the signal energy of its output.
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
    """Drift layer by layer, in graph order.

    `jump` is the first divergent node, or empty if there is none, and `reason` explains the choice. `data` and
    `samples` are the source and the number of the samples.
    """

    layers: tuple[LayerDrift, ...]
    jump: str
    reason: str
    samples: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDrift:
    """One output of an engine beside the same output of its typed graph in onnxruntime.

    Attributes:
        output: the output's name.
        metric: `sqnr` in dB, or `equal` in percent for integers.
        engine: the metric of the engine compared with FP32.
        graph: the metric of the graph compared with FP32.
        between: the metric of the engine compared with the graph.
    """

    output: str
    metric: str
    engine: float
    graph: float
    between: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFault:
    """The nodes that make an engine differ from its graph.

    Attributes:
        nodes: the nodes; the engine is right when they are kept in higher precision. Empty if none were found.
        builds: the number of engines that were built to find them.
        reason: a sentence on what was found.
    """

    nodes: tuple[str, ...]
    builds: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Drift of a candidate compared with the FP32 baseline, and the verdict.

    `baseline` and `candidate` are the models' names; `baseline_ran` and `candidate_ran` describe what actually ran, and
    where. The stage `compare` returns no `gates` and the verdict `unchecked`; `trtopt.compare.gate.judged` adds both,
    and `remarks` about outputs without a gate and the samples to look at first. `calibrated_on` is the number of
    samples on which the candidate was calibrated: they are not evidence for unseen data. If the candidate is an engine,
    `engine` compares it with its graph, and `graph_ran` says where that ran.
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
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    calibrated_on: int = 0
    engine: tuple[EngineDrift, ...] = ()
    graph_ran: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Confidence interval of a measured value, in the value's unit."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency and throughput of one target at one batch size.

    Attributes:
        target: the target's name.
        batch: the batch size.
        copies: true if copies between host and device are included.
        iterations: the number of timed runs.
        mean, p50, p90, p95, p99: latency in milliseconds.
        noise: half the width of the mean's 95 % confidence interval, relative to the mean.
        throughput: samples per second.
        readings: system measurements during the runs; `trtopt.bench` defines their names and units. Unavailable ones
            are absent.
        bounds: one-sided 95 % bounds of `mean`, the percentiles and `speedup`. Infinite with too few runs.
        speedup: compared with the first target at the same batch size. NaN for the first target itself.
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
    """A timed target: its name in tables, its file, and a description of what actually ran, and where.

    `device` is the kind of device. It is empty in a report of an earlier version, which did not record it.
    """

    name: str
    path: Path
    ran: str
    device: Literal["cpu", "cuda", ""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbe:
    """One batch size, tried in a process of its own.

    Attributes:
        batch: the batch size.
        memory: memory used, in bytes. 0 if unknown.
        latency: median latency in milliseconds. NaN if the probe did not finish.
        failed: why the batch does not fit. Empty if it fits.
    """

    batch: int
    memory: int
    latency: float
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """The largest batch of a target that fits.

    Attributes:
        target: the target's name.
        device: `cpu` or `cuda`.
        batch: the largest batch that fits. 0 if not even one sample does.
        limited_by: the limit that the next larger batch exceeds: `memory`, `latency`, the engine's `profile`, the
            `time` that one probe may take, the largest batch that is tried (`search`), or `refused` if the model or its
            runtime does not support the batch.
        why: the same as a sentence.
        memory_limit: in bytes.
        latency_limit: in milliseconds. NaN if there is none.
        total: memory used at `batch`, in bytes. Beyond the three parts below it is activations and workspace.
        base: memory used before the model was loaded, in bytes.
        weights: size of the weights by their shapes, in bytes.
        inputs_outputs: size of inputs and outputs by their shapes, in bytes.
        bytes_fixed: with `bytes_per_sample`, an estimate for other batches: `bytes_fixed + batch * bytes_per_sample`.
        bytes_per_sample: see `bytes_fixed`.
        probes: the batch sizes that were tried.
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
    """Timings of one or more targets. `speedup` gates compare the last target with the first.

    `complete` is false if the sweep was interrupted or ran out of memory; `timings` are those measured until then.
    `limit` is the result of a search for the largest batch, which has only one target.
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

    `size_bytes` is the size of the engine if all candidates have one, and of the typed ONNX file otherwise. `latency`
    is the median in milliseconds at batch size `latency_batch`; they are NaN and 0 if it was not measured. `pareto` is
    true for a Pareto-optimal candidate: no other is better in one of size, drift and latency without being worse in
    another.
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
    """Outcome of one stage: its status (`ran`, `cached`, `skipped`, `unavailable`), wall time and one-line summary.

    `runs` is how often a network ran, each time on one sample or one batch.
    """

    name: str
    status: str
    seconds: float
    summary: str
    runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Error that ended a run: `message` is one line that says what, why, and what to do next."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of one run, as written to `report.json`. Paths are those in the run directory.

    `parity` compares the exported ONNX model with its source, run by its framework. `fault` names the nodes that make
    the engine differ from its graph. `calibration` lists the tensors
    with the largest quantization error. When several candidates were compared, `candidates` replaces `comparison`.
    `allow_inconclusive` is true if the user accepts an inconclusive verdict. `list_worst` is the number of worst
    samples to list. `written` is false for new gates on an earlier run, whose directory keeps the report of its own.
    `warnings` say why the result may not be what the user wants; `notes` are facts, such as what was assumed.
    `error` is what ended the run early, or prevented an engine.
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
    fault: EngineFault | None = None
    calibration: tuple[CalibratedTensor, ...] = ()
    benchmark: Benchmark | None = None
    candidates: tuple[CandidateReport, ...] = ()
    allow_inconclusive: bool = False
    list_worst: int = 0
    written: bool = True
    notes: tuple[str, ...] = ()
    error: Failure | None = None
