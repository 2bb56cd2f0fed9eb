"""Plans: the immutable request of each command, and the parsing of flags that need more than a type.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# All of them are imported for real, not for type checkers only: `trtopt merge` decodes plans by these annotations.
from trtopt.bench.gate import Gate as SpeedGate
from trtopt.compare.gates import Gate
from trtopt.data.given import Given
from trtopt.engine import BuildPlan as BuildPlan
from trtopt.engine.trt.platforms import Platform
from trtopt.errors import UsageError
from trtopt.precision import fallbacks, formats
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


def gates(text: str) -> tuple[tuple[Gate, ...], tuple[SpeedGate, ...]]:
    """Return the gates on drift and those on speed in the text of `--gate`.

    Raises:
        UsageError: a part does not parse, names no metric, or has a limit that makes no sense.
    """
    from trtopt.bench import gate as speed
    from trtopt.compare import gates as drift

    parts = text.split(",")
    timed = [part for part in parts if re.split("[@=<>]", part, maxsplit=1)[0].strip() in speed.METRICS]
    others = [part for part in parts if part not in timed]
    return drift.parse_gates(",".join(others)), speed.parse_gates(",".join(timed))


def keeps(flags: Sequence[str], precision: str, rest: str) -> tuple[Keep, ...]:
    """Return the values of flags `--keep PATTERN[=PRECISION]`.

    Without a precision, a node of INT8 and FP8 is kept in the fallback precision, and one of FP16 and BF16 in FP32.

    Raises:
        UsageError: a flag has no pattern, or a precision that nodes cannot be kept in.
    """
    higher = rest if precision in formats(8) else "fp32"
    parsed = []
    for flag in flags:
        pattern, _, wanted = flag.rpartition("=")
        if wanted not in fallbacks():  # the names of nodes may contain "="
            pattern, wanted = flag, higher
        if not pattern:
            raise UsageError(
                f"--keep {flag} names no node", fix="Write --keep NODE, --keep NODE=fp32 or --keep OPERATOR"
            )
        if precision == "fp32" or wanted not in ("fp32", higher):
            why = "every node is in FP32" if precision == "fp32" else f"the other nodes are in {higher}"
            raise UsageError(f"--keep {flag}: nodes cannot be kept in {wanted}", why=why, fix="Use =fp32, or omit it")
        parsed.append(Keep(pattern=pattern, precision="fp32" if wanted == "fp32" else ""))
    return tuple(parsed)


def lowered_only(flags: Sequence[str], precision: str) -> Only | None:
    """Return the value of the flags `--only PATTERN`; None without any.

    The other nodes of INT8 and FP8 are kept in the fallback precision, and those of FP16 and BF16 in FP32.

    Raises:
        UsageError: a pattern is empty, or there is nothing to lower.
    """
    if not flags:
        return None
    if precision == "fp32":
        raise UsageError(f"--only {flags[0]} has no effect", why="every node is in FP32", fix="Leave it out")
    if not all(flag.strip() for flag in flags):
        raise UsageError("--only names no node", fix="Write --only NODE or --only OPERATOR")
    return Only(patterns=tuple(flags), precision="" if precision in formats(8) else "fp32")


def output_kinds(flags: Sequence[str]) -> dict[str, str]:
    """Return the kind of each output that a flag `--kind OUTPUT=KIND` names.

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


def input_dtypes(flags: Sequence[str]) -> dict[str, str]:
    """Return the type of each input that a flag `--dtype NAME=DTYPE` names.

    Raises:
        UsageError: a flag does not parse, its type is unknown, or an input is named twice.
    """
    from trtopt.export.request import DTYPES

    dtypes: dict[str, str] = {}
    for flag in flags:
        name, _, dtype = flag.rpartition("=")
        if not name or dtype not in DTYPES:
            raise UsageError(f"invalid --dtype {flag}", fix=f"Write NAME=DTYPE, with one of {', '.join(DTYPES)}")
        if name in dtypes:
            raise UsageError(f"--dtype is given twice for input {name}", fix="Keep one of the two")
        dtypes[name] = dtype
    return dtypes
