"""Python functions that make something: `convert`, `calibrate` and `export`.

Touches: the run directory, as the command of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtopt.api.arguments import (
    PathText,
    asked_shapes,
    data_plan,
    export_plan,
    gate_text,
    measure_plan,
    path_of,
    to_path,
)
from trtopt.events import Emit, silent
from trtopt.types import CalibrationTable, Failure, OnnxModel, Report


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
    only: Sequence[str] = (),
    kind: Mapping[str, str] | None = None,
    metric: Sequence[str] = (),
    compare: bool = True,
    speed: bool = True,
    equalization: bool = True,
    bias_correction: bool = True,
    guard: bool = True,
    if_faster: bool = False,
    allow_inconclusive: bool = False,
    dtype: Mapping[str, str] | None = None,
    weights: PathText | None = None,
    signature: str | None = None,
    allow_export_drift: bool = False,
    backend: str = "tensorrt",
    tensorrt: str | None = None,
    target: str | None = None,
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
    from trtopt.engine.trt.platforms import platform
    from trtopt.export.source import identify
    from trtopt.flags import gates, keeps, lowered_only
    from trtopt.plan import BuildPlan, ConvertPlan
    from trtopt.rundir import of_source

    judged_on = data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples)
    calibrated_on = data_plan("calib", calib, recipe, skip_bad=skip_bad, samples=samples)
    labelled = judged_on or calibrated_on
    if labelled is not None:
        labelled = replace(labelled, classes=path_of("classes", classes), labels=path_of("labels", labels))
    drift, timed = gates(gate_text(gate))
    plan = ConvertPlan(
        source=to_path("model", model),
        precision=precision,
        run_dir=to_path("out", out) if out is not None else of_source(identify(str(model)), precision),
        rest=rest,
        baseline=path_of("baseline", baseline),
        calib=calibrated_on if judged_on else labelled,
        method=method,
        table=path_of("calib_table", calib_table),
        data=labelled if judged_on else None,
        equalization=equalization,
        bias_correction=bias_correction,
        guard=guard,
        if_faster=if_faster,
        keep=keeps(keep, precision, rest),
        only=lowered_only(only, precision),
        compare=compare,
        measure=measure_plan(kind, metric),
        gates=drift,
        speed=speed,
        speed_gates=timed,
        allow_inconclusive=allow_inconclusive,
        shapes=asked_shapes(shape),
        device=device,
        export=export_plan(dtype, weights, signature, allow_drift=allow_export_drift),
        build=BuildPlan(
            backend=backend,
            tensorrt=tensorrt,
            workspace_bytes=int(quantity(workspace, BYTES, "workspace", "workspace='4GiB'")) if workspace else None,
        ),
        target=platform(target) if target else None,
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
    only: Sequence[str] = (),
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
    from trtopt.flags import lowered_only
    from trtopt.plan import ConvertPlan
    from trtopt.rundir import of_source

    plan = ConvertPlan(
        source=to_path("model", model),
        precision=precision,
        run_dir=to_path("out", out) if out is not None else of_source(identify(str(model)), precision),
        calib=data_plan("calib", calib, recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        only=lowered_only(only, precision),
        equalization=equalization,
        shapes=asked_shapes(shape),
        device=device,
        cache="ignore" if force else "use",
    )
    return run(plan, progress)


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
        source=to_path("source", source),
        out=to_path("out", out),
        run_dir=of_export(to_path("out", out)),
        shapes=asked_shapes(shape),
        data=data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples),
        export=export_plan(dtype, weights, signature, allow_drift=allow_export_drift),
        cache="ignore" if force else "use",
    )
    run(plan, progress)
    return describe(to_path("out", out))
