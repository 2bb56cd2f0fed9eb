"""Python functions that measure or read something: `compare`, `bench` and `inspect`.

Touches: the run directory, as the command of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trtopt.api.arguments import (
    PathText,
    asked_shapes,
    data_plan,
    gate_text,
    gate_values,
    measure_plan,
    path_of,
    to_path,
)
from trtopt.events import Emit, silent
from trtopt.types import Failure, Report

if TYPE_CHECKING:
    from trtopt.inspection import Inspection


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
    samples_of = data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples)
    if samples_of is None:
        raise UsageError("no data to compare on", fix="Give data")
    paths = tuple(to_path("a candidate", each) for each in candidates)
    plan = ComparePlan(
        baseline=to_path("baseline", baseline),
        candidates=paths,
        run_dir=to_path("out", out) if out is not None else of_comparison(to_path("baseline", baseline), paths),
        data=replace(samples_of, classes=path_of("classes", classes), labels=path_of("labels", labels)),
        measure=measure_plan(kind, metric),
        gates=gate_values(gate),
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

    paths = tuple(to_path("a target", each) for each in targets)
    plan = BenchPlan(
        targets=paths,
        run_dir=to_path("out", out) if out is not None else of_bench(paths),
        batches=tuple(sorted(set(batch))),
        seconds=seconds,
        data=data_plan("data", data, recipe, skip_bad=skip_bad, samples=samples),
        gates=parse_gates(gate_text(gate)),
        allow_inconclusive=allow_inconclusive,
        speed=SpeedPlan(device=device, shapes=asked_shapes(shape)),
    )
    report, stopped = run(plan, progress)
    return replace(report, error=Failure(message=str(stopped), exit_code=stopped.exit_code)) if stopped else report


def inspect(
    path: PathText,
    *,
    tensorrt: bool = False,
    precision: str | None = None,
    rest: str = "fp16",
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Inspection:
    """Return the contents of an ONNX file or a run directory, with each node's precision; as `trtopt inspect`.

    The precisions of an FP32 model are those of a conversion to `precision`, INT8 by default.

    >>> from trtopt import inspect
    >>> found = inspect("samples/digits/model.onnx")
    >>> (found.operators["Conv"], found.onnx.inputs[0].shape)
    (7, ('batch', 1, 28, 28))

    Raises:
        TrtoptError: the file cannot be read, or a flag names no node.
    """
    from trtopt.commands.inspect import INT8, look
    from trtopt.flags import keeps, lowered_only
    from trtopt.stages.target import Target

    wanted = precision or INT8.precision
    target = Target(
        precision=wanted,
        rest=rest,
        bias_correction=False,
        keep=keeps(keep, wanted, rest),
        only=lowered_only(only, wanted),
    )
    asked = precision or rest != INT8.rest or keep or only
    return look(to_path("path", path), tensorrt=tensorrt, target=target if asked else None)
