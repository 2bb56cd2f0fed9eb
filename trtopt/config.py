"""What a run was asked to do: immutable plans, and the parsing of flags that need more than a type.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import UsageError
from trtopt.types import ShapeRange, TensorSpec

DEFAULT_BATCH = (1, 8, 32)
"""Smallest, best-tuned and largest batch of a dynamic batch dimension that `--shape` says nothing about."""

BACKENDS = ("tensorrt", "onnxruntime")
RESTS = ("fp16", "bf16", "fp32")

_EXAMPLE_SIZE = 224
"""Stands for a dynamic size other than the batch in the examples that messages give: a usual picture's side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Where samples come from. `recipe` is a name or a path; without one the data's own or the assumed one is used."""

    source: str
    recipe: str | None = None
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
    run_dir: Path
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
    run_dir: Path
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
    run_dir: Path
    data: DataPlan
    measure: MeasurePlan = MeasurePlan()
    gates: str = ""
    allow_inconclusive: bool = False
    layers: bool = False
    worst: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """New thresholds for what an earlier run measured, in the run directory `run`."""

    run: Path
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
    run_dir: Path
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
    run_dir: Path
    memory_limit: int = 0
    latency_limit: float = math.inf
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


def profile(inputs: Sequence[TensorSpec], shapes: Sequence[str]) -> tuple[tuple[ShapeRange, ...], str]:
    """Return the shape range of every dynamic input, and a line that states what was assumed (empty: nothing).

    `shapes` are flags `NAME=MIN:OPT:MAX` or `NAME=SHAPE`, each shape written 1x3x224x224. A dynamic first dimension
    without a flag gets `DEFAULT_BATCH`.

    Raises:
        UsageError: a flag does not parse, does not fit the model or is given twice, or another dynamic dimension has
            no flag.
    """
    given: dict[str, ShapeRange] = {}
    for flag in shapes:
        entry = _parse_shape(flag, inputs)
        if entry.name in given:
            raise UsageError(f"--shape is given twice for input {entry.name}", fix="Keep one of the two")
        given[entry.name] = entry
    _check_missing([spec for spec in inputs if spec.name not in given and set(_dynamic(spec)) - {0}])
    low, best, high = DEFAULT_BATCH
    assumed = False
    ranges = []
    for spec in inputs:
        if spec.name in given:
            ranges.append(given[spec.name])
        elif _dynamic(spec):
            ranges.append(
                ShapeRange(name=spec.name, min=_sizes(spec, low), opt=_sizes(spec, best), max=_sizes(spec, high))
            )
            assumed = True
    return tuple(ranges), f"batch {low} to {high}, tuned for {best}: --shape was not given" if assumed else ""


def _check_missing(missing: Sequence[TensorSpec]) -> None:
    if missing:
        shapes = ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in missing)
        flags = " ".join(f"--shape {shlex.quote(_example(spec))}" for spec in missing)
        raise UsageError(
            f"dynamic dimensions without sizes: {shapes}",
            why="TensorRT must know how small and how large they get",
            fix=f"Add {flags} (smallest:usual:largest, with your sizes)",
        )


def _dynamic(spec: TensorSpec) -> list[int]:
    """Axes of unknown size."""
    return [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """A shape that fits the input: `batch` for a dynamic first dimension, `_EXAMPLE_SIZE` for other dynamic ones."""
    guesses = (batch if axis == 0 else _EXAMPLE_SIZE for axis in range(len(spec.shape)))
    return tuple(dim if isinstance(dim, int) else guess for dim, guess in zip(spec.shape, guesses, strict=True))


def _example(spec: TensorSpec) -> str:
    return f"{spec.name}=" + ":".join("x".join(map(str, _sizes(spec, batch))) for batch in DEFAULT_BATCH)


def free_shape(flag: str) -> ShapeRange:
    """Parse a `--shape` flag of a source that does not say what its inputs are.

    Raises:
        UsageError: it does not parse.
    """
    name, _, text = flag.rpartition("=")
    rank = text.partition(":")[0].count("x") + 1
    return _parse_shape(flag, [TensorSpec(name=name, dtype="float32", shape=("?",) * rank)])


def _parse_shape(flag: str, inputs: Sequence[TensorSpec]) -> ShapeRange:
    name, _, text = flag.rpartition("=")
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"--shape {flag} names no input of the model", fix=f"Its inputs are: {names}")
    example = f"Write it like --shape {shlex.quote(_example(spec))}"
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", part) for part in parts):
        raise UsageError(f"--shape {flag} does not parse", fix=example)
    low, best, high = (tuple(map(int, part.split("x"))) for part in (parts * 3 if len(parts) == 1 else parts))
    for shape in (low, best, high):
        if len(shape) != len(spec.shape):
            raise UsageError(
                f"--shape {flag} has rank {len(shape)}", why=f"{name} has rank {len(spec.shape)}", fix=example
            )
        if min(shape) < 1:
            raise UsageError(f"--shape {flag} has a size of 0", why="TensorRT needs at least 1", fix=example)
        if any(isinstance(dim, int) and size != dim for size, dim in zip(shape, spec.shape, strict=True)):
            wanted = ", ".join(map(str, spec.shape))
            raise UsageError(f"--shape {flag} does not fit {name}", why=f"the model wants [{wanted}]", fix=example)
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        why = "it must be smallest:usual:largest in every dimension"
        raise UsageError(f"--shape {flag} is not ordered", why=why, fix=example)
    return ShapeRange(name=name, min=low, opt=best, max=high)
