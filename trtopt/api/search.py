"""Python functions that look into mixed precision: `tune` and `sensitivity`.

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
    gate_values,
    measure_plan,
    path_of,
    to_path,
)
from trtopt.events import Emit, silent
from trtopt.types import Failure, Report


def tune(
    model: PathText,
    *,
    calib: object,
    data: object,
    precision: str = "int8",
    out: PathText | None = None,
    gate: str | Sequence[str] = "",
    speed: str = "macs",
    budget: str = "",
    shape: Mapping[str, str] | None = None,
    recipe: PathText | None = None,
    classes: PathText | None = None,
    labels: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    method: str = "auto",
    rest: str = "fp16",
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    kind: Mapping[str, str] | None = None,
    metric: Sequence[str] = (),
    equalization: bool = True,
    bias_correction: bool = True,
    allow_inconclusive: bool = False,
    dtype: Mapping[str, str] | None = None,
    weights: PathText | None = None,
    signature: str | None = None,
    allow_export_drift: bool = False,
    backend: str = "tensorrt",
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> Report:
    """Convert with the cheapest mixed precision that passes the gates; the arguments are the flags of `trtopt tune`.

    Returns the report, in which `tuning` is the search. Where this machine cannot build an engine, `report.engine` is
    None and `report.error` says why.

    >>> from trtopt import tune
    >>> report = tune("samples/digits/model.onnx", calib="calibration/digits", data="samples/digits/eval.npz",
    ...               backend="onnxruntime", out="tuned")
    >>> (report.verdict, all(group.quantized for group in report.tuning.groups))
    ('pass', True)

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.commands.tune import tune as run
    from trtopt.export.source import identify
    from trtopt.flags import keeps, lowered_only
    from trtopt.plan import BuildPlan, ConvertPlan, TunePlan
    from trtopt.rundir import of_source
    from trtopt.tune.budget import parse_budget

    judged_on = data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples)
    if judged_on is not None:
        judged_on = replace(judged_on, classes=path_of("classes", classes), labels=path_of("labels", labels))
    plan = ConvertPlan(
        source=to_path("model", model),
        precision=precision,
        run_dir=to_path("out", out) if out is not None else of_source(identify(str(model)), "tuned"),
        rest=rest,
        calib=data_plan("calib", calib, recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        data=judged_on,
        equalization=equalization,
        bias_correction=bias_correction,
        keep=keeps(keep, precision, rest),
        only=lowered_only(only, precision),
        measure=measure_plan(kind, metric),
        gates=gate_values(gate),
        allow_inconclusive=allow_inconclusive,
        shapes=asked_shapes(shape),
        device=device,
        export=export_plan(dtype, weights, signature, allow_drift=allow_export_drift),
        build=BuildPlan(backend=backend),
        cache="ignore" if force else "use",
        if_faster=speed == "engine",
        tuning=TunePlan(speed=speed, budget=parse_budget(budget)),
    )
    report, unable = run(plan, progress)
    return replace(report, error=Failure(message=str(unable), exit_code=unable.exit_code)) if unable else report


def sensitivity(
    model: PathText,
    *,
    calib: object,
    data: object = None,
    precision: str = "int8",
    out: PathText | None = None,
    shape: Mapping[str, str] | None = None,
    recipe: PathText | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    method: str = "auto",
    rest: str = "fp16",
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    equalization: bool = True,
    bias_correction: bool = True,
    dtype: Mapping[str, str] | None = None,
    weights: PathText | None = None,
    signature: str | None = None,
    allow_export_drift: bool = False,
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> Report:
    """Measure what quantizing each group of nodes costs; the arguments are the flags of `trtopt sensitivity`.

    Returns the report, in which `sensitivity` has the groups, the worst first.

    >>> from trtopt import sensitivity
    >>> report = sensitivity("samples/digits/model.onnx", calib="calibration/digits", out="sensitive")
    >>> errors = [group.alone for group in report.sensitivity.groups]
    >>> (len(errors), errors == sorted(errors, reverse=True))
    (7, True)

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.commands.sensitivity import sensitivity as run
    from trtopt.export.source import identify
    from trtopt.flags import keeps, lowered_only
    from trtopt.plan import ConvertPlan
    from trtopt.rundir import of_source

    plan = ConvertPlan(
        source=to_path("model", model),
        precision=precision,
        run_dir=to_path("out", out) if out is not None else of_source(identify(str(model)), "sensitivity"),
        rest=rest,
        calib=data_plan("calib", calib, recipe, skip_bad=skip_bad, samples=samples),
        method=method,
        data=data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples),
        equalization=equalization,
        bias_correction=bias_correction,
        keep=keeps(keep, precision, rest),
        only=lowered_only(only, precision),
        shapes=asked_shapes(shape),
        device=device,
        export=export_plan(dtype, weights, signature, allow_drift=allow_export_drift),
        cache="ignore" if force else "use",
    )
    return run(plan, progress)
