"""The commands as Python functions: `from trtopt import convert`.

Data (`calib`, `data`) is a path as on the command line, an array, a dict of arrays, an iterable of samples, a function
that returns one, or a `torch.utils.data.DataLoader`: `trtopt.data.given` describes each. `progress` is called with each
event of `trtopt.events`. Every function raises a `TrtoptError` where its command would exit with 2 or 3.

Touches: the run directory, as the command of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.events import Emit, silent
from trtopt.types import CalibrationTable, Failure, OnnxModel, Report

if TYPE_CHECKING:
    from trtopt.compare.gates import Gate
    from trtopt.inspection import Inspection
    from trtopt.plan import DataPlan, ExportPlan, MeasurePlan
    from trtopt.shapes import AskedShape

PathText = str | PathLike[str]
"""A path, as text or as a `Path`."""


def convert(
    model: PathText,
    *,
    precision: str = "fp16",
    calib: object = None,
    data: object = None,
    out: PathText | None = None,
    gate: str | Sequence[str] = "",
    shape: Mapping[str, str] | None = None,
    recipe: PathText | None = None,
    classes: PathText | None = None,
    labels: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    method: str = "auto",
    calib_table: PathText | None = None,
    baseline: PathText | None = None,
    rest: str = "fp16",
    keep: Sequence[str] = (),
    kind: Mapping[str, str] | None = None,
    metric: Sequence[str] = (),
    compare: bool = True,
    equalization: bool = True,
    bias_correction: bool = True,
    guard: bool = True,
    allow_inconclusive: bool = False,
    dtype: Mapping[str, str] | None = None,
    weights: PathText | None = None,
    signature: str | None = None,
    allow_export_drift: bool = False,
    backend: str = "tensorrt",
    tensorrt: str | None = None,
    workspace: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> Report:
    """Convert a network to an engine, and compare it with FP32; the arguments are the flags of `trtopt convert`.

    Returns the report. Where this machine cannot build an engine, `report.engine` is None and `report.error` says why.

    >>> from trtopt import convert
    >>> report = convert("samples/digits/model.onnx", precision="int8", backend="onnxruntime", out="run",
    ...                  calib="calibration/digits", data="samples/digits/eval.npz")
    >>> report.verdict
    'pass'
    >>> round(report.comparison.outputs[0].values["accuracy"])
    99

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.bench.units import BYTES, quantity
    from trtopt.commands.convert import convert as run
    from trtopt.export.source import identify
    from trtopt.plan import BuildPlan, ConvertPlan, keeps
    from trtopt.rundir import of_source

    judged_on = _data("data", data, recipe, skip_bad=skip_bad, samples=samples)
    calibrated_on = _data("calib", calib, recipe, skip_bad=skip_bad, samples=samples)
    labelled = judged_on or calibrated_on
    if labelled is not None:
        labelled = replace(labelled, classes=_path(classes), labels=_path(labels))
    plan = ConvertPlan(
        source=Path(model),
        precision=precision,
        run_dir=Path(out) if out is not None else of_source(identify(str(model)), precision),
        rest=rest,
        baseline=_path(baseline),
        calib=calibrated_on if judged_on else labelled,
        method=method,
        table=_path(calib_table),
        data=labelled if judged_on else None,
        equalization=equalization,
        bias_correction=bias_correction,
        guard=guard,
        keep=keeps(keep, precision, rest),
        compare=compare,
        measure=_measure(kind, metric),
        gates=_gates(gate),
        allow_inconclusive=allow_inconclusive,
        shapes=_shapes(shape),
        device=device,
        export=_export(dtype, weights, signature, allow_drift=allow_export_drift),
        build=BuildPlan(
            backend=backend,
            tensorrt=tensorrt,
            workspace_bytes=int(quantity(workspace, BYTES, "workspace", "workspace='4GiB'")) if workspace else None,
        ),
        cache="ignore" if force else "use",
    )
    report, unable = run(plan, progress)
    return replace(report, error=Failure(message=str(unable), exit_code=unable.exit_code)) if unable else report


def calibrate(
    model: PathText,
    calib: object,
    *,
    precision: str = "int8",
    out: PathText | None = None,
    method: str = "auto",
    shape: Mapping[str, str] | None = None,
    recipe: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    equalization: bool = True,
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> CalibrationTable:
    """Measure one scale per tensor, and return the table; the arguments are the flags of `trtopt calibrate`.

    >>> import numpy as np
    >>> from trtopt import calibrate
    >>> images = np.load("samples/digits/eval.npz")["input"][:64]
    >>> table = calibrate("samples/digits/model.onnx", images, method="minmax", out="table")
    >>> (table.method, table.samples, len(table.scales))
    ('minmax', 64, 6)

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.commands.calibrate import calibrate as run
    from trtopt.export.source import identify
    from trtopt.plan import ConvertPlan
    from trtopt.rundir import of_source

    plan = ConvertPlan(
        source=Path(model),
        precision=precision,
        run_dir=Path(out) if out is not None else of_source(identify(str(model)), precision),
        calib=_data("calib", calib, recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        equalization=equalization,
        shapes=_shapes(shape),
        device=device,
        cache="ignore" if force else "use",
    )
    return run(plan, progress)


def compare(
    baseline: PathText,
    *candidates: PathText,
    data: object,
    gate: str | Sequence[str] = "",
    out: PathText | None = None,
    recipe: PathText | None = None,
    classes: PathText | None = None,
    labels: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    kind: Mapping[str, str] | None = None,
    metric: Sequence[str] = (),
    allow_inconclusive: bool = False,
    layers: bool = False,
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> Report:
    """Compare candidates with FP32, and return the report; the arguments are the flags of `trtopt compare`.

    >>> import numpy as np
    >>> from trtopt import compare
    >>> eval = np.load("samples/digits/eval.npz")
    >>> report = compare("samples/digits/model.onnx", "samples/digits/model.onnx", gate="cosine=0.99", out="compared",
    ...                  data={"input": eval["input"], "labels": eval["labels"]})
    >>> [(gate.metric, gate.verdict) for gate in report.comparison.gates if not gate.default]
    [('cosine', 'pass')]

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.commands.compare import compare as run
    from trtopt.errors import UsageError
    from trtopt.plan import ComparePlan
    from trtopt.rundir import of_comparison

    if not candidates:
        raise UsageError("nothing to compare", fix="Give the FP32 ONNX file, then one or more candidates")
    samples_of = _data("data", data, recipe, skip_bad=skip_bad, samples=samples)
    if samples_of is None:
        raise UsageError("no data to compare on", fix="Give data")
    paths = tuple(map(Path, candidates))
    plan = ComparePlan(
        baseline=Path(baseline),
        candidates=paths,
        run_dir=Path(out) if out is not None else of_comparison(Path(baseline), paths),
        data=replace(samples_of, classes=_path(classes), labels=_path(labels)),
        measure=_measure(kind, metric),
        gates=_gates(gate),
        allow_inconclusive=allow_inconclusive,
        layers=layers,
        device=device,
        cache="ignore" if force else "use",
    )
    return run(plan, progress)


def bench(
    *targets: PathText,
    batch: Sequence[int] = (),
    seconds: float = 2.0,
    data: object = None,
    gate: str | Sequence[str] = "",
    out: PathText | None = None,
    shape: Mapping[str, str] | None = None,
    recipe: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    allow_inconclusive: bool = False,
    device: str = "auto",
    progress: Emit = silent,
) -> Report:
    """Time targets side by side, and return the report; the arguments are the flags of `trtopt bench`.

    Returns the report. `report.error` says what ended the sweep early; the timings until then are in the report.

    >>> from trtopt import bench
    >>> report = bench("samples/digits/model.onnx", batch=[1, 8], seconds=0.05, device="cpu", out="timed")
    >>> [(timing.batch, timing.p50 > 0) for timing in report.benchmark.timings]
    [(1, True), (8, True)]

    Raises:
        TrtoptError: the input cannot be used, or nothing could be measured.
    """
    from trtopt.bench.gate import parse_gates
    from trtopt.commands.bench import bench as run
    from trtopt.plan import BenchPlan, SpeedPlan
    from trtopt.rundir import of_bench

    paths = tuple(map(Path, targets))
    plan = BenchPlan(
        targets=paths,
        run_dir=Path(out) if out is not None else of_bench(paths),
        batches=tuple(sorted(set(batch))),
        seconds=seconds,
        data=_data("data", data, recipe, skip_bad=skip_bad, samples=samples),
        gates=parse_gates(_text(gate)),
        allow_inconclusive=allow_inconclusive,
        speed=SpeedPlan(device=device, shapes=_shapes(shape)),
    )
    report, stopped = run(plan, progress)
    return replace(report, error=Failure(message=str(stopped), exit_code=stopped.exit_code)) if stopped else report


def export(
    source: PathText,
    out: PathText,
    *,
    shape: Mapping[str, str] | None = None,
    dtype: Mapping[str, str] | None = None,
    data: object = None,
    recipe: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    weights: PathText | None = None,
    signature: str | None = None,
    allow_export_drift: bool = False,
    force: bool = False,
    progress: Emit = silent,
) -> OnnxModel:
    """Write a framework's network as ONNX, verify it, and return its description; as `trtopt export`.

    >>> from trtopt import export
    >>> model = export("package.module:factory", "model.onnx", shape={"x": "1x3"})  # doctest: +SKIP
    >>> model.inputs[0].shape  # doctest: +SKIP
    (1, 3)

    Raises:
        TrtoptError: the network cannot be exported, or the export drifted.
    """
    from trtopt.commands.export import export as run
    from trtopt.graph.file import describe
    from trtopt.plan import ExportOnlyPlan
    from trtopt.rundir import of_export

    plan = ExportOnlyPlan(
        source=Path(source),
        out=Path(out),
        run_dir=of_export(Path(out)),
        shapes=_shapes(shape),
        data=_data("data", data, recipe, skip_bad=skip_bad, samples=samples),
        export=_export(dtype, weights, signature, allow_drift=allow_export_drift),
        cache="ignore" if force else "use",
    )
    run(plan, progress)
    return describe(Path(out))


def inspect(path: PathText, *, tensorrt: bool = False) -> Inspection:
    """Return the contents of an ONNX file or a run directory, with each node's precision; as `trtopt inspect`.

    >>> from trtopt import inspect
    >>> found = inspect("samples/digits/model.onnx")
    >>> (found.operators["Conv"], found.onnx.inputs[0].shape)
    (7, ('batch', 1, 28, 28))

    Raises:
        TrtoptError: the file cannot be read.
    """
    from trtopt.commands.inspect import look

    return look(Path(path), tensorrt=tensorrt)


def _data(name: str, data: object, recipe: PathText | None, *, skip_bad: bool, samples: int | None) -> DataPlan | None:
    """Return the source of samples: text or a path as on the command line, anything else as Python objects."""
    from trtopt.data.given import given
    from trtopt.plan import DataPlan

    if data is None:
        return None
    source = str(data) if isinstance(data, str | PathLike) else given(name, data)
    return DataPlan(source=source, recipe=None if recipe is None else str(recipe), skip_bad=skip_bad, samples=samples)


def _measure(kind: Mapping[str, str] | None, metric: Sequence[str]) -> MeasurePlan:
    from trtopt.plan import MeasurePlan

    return MeasurePlan(kinds=dict(kind or {}), metrics=tuple(metric))


def _export(
    dtype: Mapping[str, str] | None, weights: PathText | None, signature: str | None, *, allow_drift: bool
) -> ExportPlan:
    from trtopt.plan import ExportPlan, input_dtypes

    dtypes = input_dtypes([f"{name}={value}" for name, value in (dtype or {}).items()])
    return ExportPlan(dtypes=dtypes, weights=_path(weights), signature=signature, allow_drift=allow_drift)


def _shapes(shape: Mapping[str, str] | None) -> tuple[AskedShape, ...]:
    from trtopt.shapes import parse_shapes

    return parse_shapes(f"{name}={value}" for name, value in (shape or {}).items())


def _gates(gate: str | Sequence[str]) -> tuple[Gate, ...]:
    from trtopt.compare.gates import parse_gates

    return parse_gates(_text(gate))


def _text(gate: str | Sequence[str]) -> str:
    return gate if isinstance(gate, str) else ",".join(gate)


def _path(path: PathText | None) -> Path | None:
    return None if path is None else Path(path)
