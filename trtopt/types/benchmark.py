"""Benchmarks: latency, and the largest batch.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trtopt.types.comparison import GateResult, Verdict


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
        parts: with copies, the median time in milliseconds of `copy_in`, `compute` and `copy_out` on their own. Empty
            without copies.
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
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Median times of the layers of an engine in milliseconds, by the names in `Engine.layers`, at one batch size.

    The layers ran one after the other, each timed on its own: their sum is more than the latency of the engine.
    """

    batch: int
    ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTarget:
    """A timed target: its name in tables, its file, and a description of what actually ran, and where.

    `device` is the kind of device. It is empty in a report of an earlier version, which did not record it. `load` is
    the time that loading took, in seconds; NaN if it was not measured.
    """

    name: str
    path: Path
    ran: str
    device: Literal["cpu", "cuda", ""] = ""
    load: float = math.nan


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
class Table:
    """Table as every format shows it: a title, a head, and rows of text; the first column is the name of a row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Timings of one or more targets. `speedup` gates compare the last target with the first.

    `complete` is false if the sweep was interrupted or ran out of memory; `timings` are those measured until then.
    `limit` is the result of a search for the largest batch, which has only one target. `tables` are the results of a
    command that measures something else, such as a served model. `layers` are the times of the last target's layers.
    """

    targets: tuple[BenchTarget, ...]
    timings: tuple[Timing, ...]
    complete: bool = True
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = "unchecked"
    warnings: tuple[str, ...] = ()
    limit: BatchLimit | None = None
    tables: tuple[Table, ...] = ()
    layers: LayerTimes | None = None
