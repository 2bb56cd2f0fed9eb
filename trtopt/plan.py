"""Plans: the immutable request of each command, and the parsing of flags that need more than a type.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# All of them are imported for real, not for type checkers only: `trtopt merge` decodes plans by these annotations.
from trtopt.bench.gate import Gate as SpeedGate
from trtopt.compare.gates import Gate
from trtopt.data.given import Given
from trtopt.engine import BuildPlan as BuildPlan
from trtopt.engine.trt.platforms import Platform
from trtopt.predict.pauses import YieldLimit
from trtopt.rundir import DefaultDir
from trtopt.shapes import AskedShape
from trtopt.shards.shard import WHOLE, Shard
from trtopt.tune.budget import Budget
from trtopt.types import Cache, Keep, Only


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Source of samples: a path, `package.module:function`, or Python objects.

    `recipe` is a name or a path; by default it is the recipe in the folder of images, or an assumed one. `classes` is a
    file of class names and `labels` a CSV file with the classes of images. At most `samples` of them are used, spread
    evenly (None: all).
    """

    source: str | Given
    recipe: str | None = None
    classes: Path | None = None
    labels: Path | None = None
    skip_bad: bool = False
    samples: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """Metrics of a comparison.

    `kinds` holds the kind of each output that is not to be recognized. `metrics` are custom metrics, as
    `package.module:function`.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Options of an export to ONNX.

    `dtypes` holds the type of inputs that are not float32. `weights` is for a factory, `signature` for a SavedModel.
    `timeout` is in seconds. `allow_drift` accepts an export whose outputs differ from the framework's.
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    weights: Path | None = None
    signature: str | None = None
    timeout: float = 1800.0
    allow_drift: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TunePlan:
    """A search for the cheapest mixed precision: the measure of cost (`trtopt.tune.costs`), and its limits."""

    speed: str = "macs"
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan:
    """One conversion, from an ONNX file or another source of `trtopt.export.source` to a judged engine.

    `baseline` is the FP32 model of a source that is quantized already. `speed` times the engine where it runs, beside
    those of higher precisions; `speed_gates` are limits on that. With a `target` no engine is built here. With
    `tuning`, a search decides which nodes are quantized. With `if_faster`, engines are timed, and what quantization
    does not make faster is not quantized.
    """

    source: Path
    precision: str
    run_dir: Path | DefaultDir
    rest: str = "fp16"
    baseline: Path | None = None
    calib: DataPlan | None = None
    method: str = "auto"
    table: Path | None = None
    data: DataPlan | None = None
    equalization: bool = True
    bias_correction: bool = True
    guard: bool = True
    if_faster: bool = False
    keep: tuple[Keep, ...] = ()
    only: Only | None = None
    compare: bool = True
    measure: MeasurePlan = MeasurePlan()
    gates: tuple[Gate, ...] = ()
    speed: bool = True
    speed_gates: tuple[SpeedGate, ...] = ()
    allow_inconclusive: bool = False
    shapes: tuple[AskedShape, ...] = ()
    device: str = "cpu"
    build: BuildPlan = field(default_factory=BuildPlan)
    target: Platform | None = None
    export: ExportPlan = ExportPlan()
    cache: Cache = "use"
    tuning: TunePlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOnlyPlan:
    """One export of a framework's model to the ONNX file `out`, checked on the samples of `data`."""

    source: Path
    out: Path
    run_dir: Path | DefaultDir
    shapes: tuple[AskedShape, ...] = ()
    data: DataPlan | None = None
    device: str = "cpu"
    export: ExportPlan = ExportPlan()
    cache: Cache = "use"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan:
    """A comparison of candidates (engines, ONNX files or run directories) with an FP32 ONNX file.

    `layers` looks for the source of the drift even if the gates pass. `worst` is the number of worst samples to list.
    """

    baseline: Path
    candidates: tuple[Path, ...]
    run_dir: Path | DefaultDir
    data: DataPlan
    measure: MeasurePlan = MeasurePlan()
    gates: tuple[Gate, ...] = ()
    allow_inconclusive: bool = False
    layers: bool = False
    worst: int = 0
    device: str = "cpu"
    cache: Cache = "use"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """New gates for the measurements in an earlier run directory, `run`.

    If `measure` is not empty, the measurements must have been made with it.
    """

    run: Path
    measure: MeasurePlan = MeasurePlan()
    gates: tuple[Gate, ...] = ()
    allow_inconclusive: bool = False
    worst: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPlan:
    """Execution of timed targets.

    `device` is `auto` (CUDA if it works), `cpu` or `cuda`. `shapes` are flags for dynamic inputs. On a GPU, onnxruntime
    may use TF32 for FP32 products (`tf32`) and capture CUDA graphs (`graphs`).
    """

    device: str = "auto"
    shapes: tuple[AskedShape, ...] = ()
    tf32: bool = False
    graphs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A benchmark of targets (engines, ONNX files or run directories) over batch sizes.

    An empty `batches` means the default sizes. Each target takes about `seconds` per batch size. Inputs are random
    without `data`.
    """

    targets: tuple[Path, ...]
    run_dir: Path | DefaultDir
    batches: tuple[int, ...] = ()
    seconds: float = 2.0
    data: DataPlan | None = None
    gates: tuple[SpeedGate, ...] = ()
    allow_inconclusive: bool = False
    speed: SpeedPlan = SpeedPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxBatchPlan:
    """A search for the largest batch of a target.

    `memory_limit` is in bytes; 0 means the free memory. `latency_limit` is in milliseconds; infinity means no limit.
    """

    target: Path
    run_dir: Path | DefaultDir
    memory_limit: int = 0
    latency_limit: float = math.inf
    allow_inconclusive: bool = False
    speed: SpeedPlan = SpeedPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictPlan:
    """Offline inference of `run` (a run directory, an engine in one, or an ONNX file) on the samples of `data`.

    `out` is the file of the rows; its suffix chooses the format. `answers` is `auto`, `top5`, `boxes` or `raw`. `batch`
    is the largest batch (None: chosen for the device), `streams` the number of batches that an engine runs at a time.
    `yield_to` pauses the run while another service needs the GPU. `force` replaces an earlier output.
    """

    run: Path
    out: Path
    data: DataPlan
    answers: str = "auto"
    batch: int | None = None
    streams: int = 2
    device: str = "cpu"
    shard: Shard = WHOLE
    yield_to: YieldLimit | None = None
    force: bool = False
