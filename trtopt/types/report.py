"""The report of a run.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trtopt.types.benchmark import Benchmark
from trtopt.types.calibration import CalibratedTensor
from trtopt.types.comparison import Comparison, EngineFault, Layers, Verdict
from trtopt.types.engine import Engine, TargetFiles
from trtopt.types.precision import TypedModel
from trtopt.types.tuning import Sensitivity, Tuning

REPORT_SCHEMA = 3
"""Version of the fields of `report.json`."""

UNLIKE = "the calibration samples are unlike those to compare on"
"""How a warning begins about samples that are likely preprocessed in another way."""

READABLE_SCHEMAS = (2, REPORT_SCHEMA)
"""Versions that can be read: each only adds optional fields to the one before."""

Cache = Literal["use", "ignore", "show"]
"""Treatment of the results of earlier runs.

A run uses them, ignores them, or shows which it would use, without running or writing anything.
"""


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
    `target` are the files for another platform, whose engine is not built here.
    `error` is what ended the run early, or prevented an engine. `invocation` is the command line that made the report;
    it is empty for a run from Python. `tuning` is the search of `trtopt tune`, and `sensitivity` the result of
    `trtopt sensitivity`. `tune_with` is the command of the search that a failed run suggests.
    """

    schema_version: int = REPORT_SCHEMA
    command: str
    verdict: Verdict
    model: str
    precision: str = ""
    run_dir: Path = Path()
    stages: tuple[StageOutcome, ...] = ()
    typed: TypedModel | None = None
    engine: Engine | None = None
    comparison: Comparison | None = None
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
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
    target: TargetFiles | None = None
    invocation: str = ""
    tuning: Tuning | None = None
    sensitivity: Sensitivity | None = None
    tune_with: str = ""
