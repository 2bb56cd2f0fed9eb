"""What a run was asked to do: immutable plans, and the parsing of flags that need more than a type.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import UsageError
from trtopt.rundir import DefaultDir

BACKENDS = ("tensorrt", "onnxruntime")
RESTS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Where samples come from. `recipe` is a name or a path; without one the data's own or the assumed one is used.

    `classes` is a file of class names and `labels` a CSV file of images and their classes, both for images.
    """

    source: str
    recipe: str | None = None
    classes: Path | None = None
    labels: Path | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """How outputs are compared where their kind is not to be guessed: `kinds` are flags `OUTPUT=KIND`; `metrics` are
    functions of the user's own, `package.module:function`.
    """

    kinds: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """How the engine is built. `tensorrt` forces `tensorrt` or `tensorrt_rtx`; sizes are in bytes."""

    backend: str = "tensorrt"
    tensorrt: str | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """How a framework's model becomes ONNX. `dtypes` are flags `NAME=DTYPE`; `timeout` is in seconds.

    `weights` goes with a factory, `signature` with a SavedModel. `allow_drift` lets an export pass whose outputs are
    not the framework's.
    """

    dtypes: tuple[str, ...] = ()
    weights: Path | None = None
    signature: str | None = None
    timeout: float = 1800.0
    allow_drift: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan:
    """One conversion, from a source (an ONNX file, or what `trtopt.export.source` knows) to a judged engine."""

    source: Path
    precision: str
    run_dir: Path | DefaultDir
    rest: str = "fp16"
    calib: DataPlan | None = None
    method: str = "auto"
    table: Path | None = None
    data: DataPlan | None = None
    equalization: bool = True
    bias_correction: bool = True
    compare: bool = True
    measure: MeasurePlan = MeasurePlan()
    gates: str = ""
    allow_inconclusive: bool = False
    shapes: tuple[str, ...] = ()
    device: str = "cpu"
    build: BuildPlan = BuildPlan()
    export: ExportPlan = ExportPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOnlyPlan:
    """One export, of a source that is no ONNX file, to the ONNX file `out`; `data` is what it is checked on."""

    source: Path
    out: Path
    run_dir: Path | DefaultDir
    shapes: tuple[str, ...] = ()
    data: DataPlan | None = None
    device: str = "cpu"
    export: ExportPlan = ExportPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan:
    """A comparison of candidates (engines, ONNX files or run directories) with an FP32 ONNX file.

    `layers` looks for where the drift comes from, also when the gates hold; `worst` is how many of the worst
    samples are listed.
    """

    baseline: Path
    candidates: tuple[Path, ...]
    run_dir: Path | DefaultDir
    data: DataPlan
    measure: MeasurePlan = MeasurePlan()
    gates: str = ""
    allow_inconclusive: bool = False
    layers: bool = False
    worst: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """New thresholds for what an earlier run measured, in the run directory `run`; `measure` is how it must have been
    measured (empty: in any way).
    """

    run: Path
    measure: MeasurePlan = MeasurePlan()
    gates: str = ""
    allow_inconclusive: bool = False
    worst: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPlan:
    """How targets are run for speed: where (`auto`: CUDA where it works), the shapes of their inputs, and what
    onnxruntime may do on a GPU (round FP32 products to TF32, capture CUDA graphs).
    """

    device: str = "auto"
    shapes: tuple[str, ...] = ()
    tf32: bool = False
    graphs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A sweep of targets (engines, ONNX files or run directories) over batch sizes (empty: the default ones), side by
    side, about `seconds` for each target at each batch size. Inputs are random without `data`.
    """

    targets: tuple[Path, ...]
    run_dir: Path | DefaultDir
    batches: tuple[int, ...] = ()
    seconds: float = 2.0
    data: DataPlan | None = None
    gates: str = ""
    allow_inconclusive: bool = False
    speed: SpeedPlan = SpeedPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxBatchPlan:
    """A search for the largest batch of a target: memory in bytes (0: what is free), latency in ms (infinite: any)."""

    target: Path
    run_dir: Path | DefaultDir
    memory_limit: int = 0
    latency_limit: float = math.inf
    allow_inconclusive: bool = False
    speed: SpeedPlan = SpeedPlan()


def output_kinds(flags: Sequence[str]) -> dict[str, str]:
    """The kind of each output that `--kind OUTPUT=KIND` flags name.

    Raises:
        UsageError: a flag does not parse, or an output is named twice.
    """
    kinds: dict[str, str] = {}
    for flag in flags:
        output, _, kind = flag.rpartition("=")
        if not output:
            raise UsageError(f"--kind {flag!r} does not parse", fix="Write OUTPUT=KIND, such as logits=scores")
        if output in kinds:
            raise UsageError(f"--kind is given twice for output {output}", fix="Keep one of the two")
        kinds[output] = kind
    return kinds
