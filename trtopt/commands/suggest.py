"""Command lines to go on with: `trtopt tune` after a failure, and a conversion on the device of `--target`.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trtopt.bench import gate as speed
from trtopt.compare.gates import Gate, written
from trtopt.engine import DEFAULT
from trtopt.plan import ComparePlan, ConvertPlan, DataPlan, MeasurePlan
from trtopt.precision import formats
from trtopt.shapes import AskedShape
from trtopt.types import Comparison, TypedModel
from trtopt.verdict import drifted


def after_convert(plan: ConvertPlan, typed: TypedModel, comparison: Comparison | None) -> str:
    """Return the search with the arguments of a conversion; empty without drift, or if there is nothing to choose.

    There is nothing to choose if the gates fail with nothing quantized.
    """
    if (
        comparison is None
        or not drifted([comparison])
        or plan.tuning is not None
        or plan.precision not in formats(8)
        or plan.calib is None
        or plan.precision not in typed.counts()
    ):
        return ""
    return _joined(plan.source, _of_conversion(plan))


def after_compare(plan: ComparePlan, precision: str, found: Iterable[Comparison]) -> str:
    """Return the search with the arguments of a comparison; empty without drift, or if there is nothing to choose."""
    if not drifted(found) or precision not in formats(8):
        return ""
    return _joined(plan.baseline, _of_comparison(plan, precision))


def on_device(plan: ConvertPlan, run_dir: Path, baseline: Path, batches: tuple[int, ...]) -> tuple[str, ...]:
    """Return the commands that judge the engine of build.sh on the device of `--target`, as this conversion does.

    Args:
        plan: the conversion.
        run_dir: its run directory, where build.sh leaves the engine.
        baseline: the FP32 model that the engine is compared with.
        batches: the batch sizes at which the conversion would time the engine.
    """
    lines = [["trtopt", "adopt", str(run_dir)]]
    data = plan.data or plan.calib
    samples = [] if data is None else list(_samples(data, ""))
    last = ["--allow-inconclusive"] * plan.allow_inconclusive
    if plan.compare and samples:
        judged = _judged(plan.gates, plan.measure, ())
        lines.append(["trtopt", "compare", str(baseline), str(run_dir), *samples, *judged, *last])
    if plan.speed_gates:
        # A speedup is relative to another engine, which is built and adopted in the same way.
        other = ["FP16_RUN"] if any(gate.kind == "speedup" for gate in plan.speed_gates) else []
        sizes, limits = ",".join(map(str, batches)), speed.written(plan.speed_gates)
        lines.append(["trtopt", "bench", *other, str(run_dir), "--batch", sizes, *samples, "--gate", limits, *last])
    return tuple(map(shlex.join, lines))


def _joined(source: Path, words: Iterator[str]) -> str:
    return shlex.join(["trtopt", "tune", str(source), *words])


def _of_conversion(plan: ConvertPlan) -> Iterator[str]:
    yield from ("-p", plan.precision) if plan.precision != "int8" else ()
    yield from ("--rest", plan.rest) if plan.rest != "fp16" else ()
    yield from ("--calib", _named(plan.calib, "CALIB"))
    yield from _samples(plan.data or plan.calib, "DATA" if plan.data is None else "")
    yield from _choices(plan)
    yield from _judged(plan.gates, plan.measure, plan.shapes)
    yield from _export(plan)
    yield from ("--backend", plan.build.backend) if plan.build.backend != DEFAULT else ()
    yield from ("--device", plan.device) if plan.device != "cpu" else ()


def _choices(plan: ConvertPlan) -> Iterator[str]:
    yield from ("--method", plan.method) if plan.method != "auto" else ()
    for keep in plan.keep:
        yield from ("--keep", keep.pattern + ("=fp32" if keep.precision and plan.rest != "fp32" else ""))
    for pattern in plan.only.patterns if plan.only else ():
        yield from ("--only", pattern)
    yield from () if plan.equalization else ("--no-equalization",)
    yield from () if plan.bias_correction else ("--no-bias-correction",)


def _export(plan: ConvertPlan) -> Iterator[str]:
    for name, dtype in plan.export.dtypes.items():
        yield from ("--dtype", f"{name}={dtype}")
    yield from ("--weights", str(plan.export.weights)) if plan.export.weights else ()
    yield from ("--signature", plan.export.signature) if plan.export.signature else ()
    yield from ("--allow-export-drift",) if plan.export.allow_drift else ()


def _of_comparison(plan: ComparePlan, precision: str) -> Iterator[str]:
    yield from ("-p", precision) if precision != "int8" else ()
    yield from ("--calib", "CALIB")
    yield from _samples(plan.data, "")
    yield from _judged(plan.gates, plan.measure, ())
    yield from ("--device", plan.device) if plan.device != "cpu" else ()


def _samples(data: DataPlan | None, otherwise: str) -> Iterator[str]:
    """Yield the flags of the samples to judge on; `otherwise` replaces their source, if they are to be others."""
    assert data is not None
    yield from ("--data", otherwise or _named(data, "DATA"))
    yield from _reading(replace(data, labels=None) if otherwise else data)


def _named(data: DataPlan | None, otherwise: str) -> str:
    """Return where samples come from, or a word in its place if they are Python objects or there are none."""
    return data.source if data is not None and isinstance(data.source, str) else otherwise


def _reading(data: DataPlan) -> Iterator[str]:
    yield from ("--recipe", data.recipe) if data.recipe else ()
    yield from ("--classes", str(data.classes)) if data.classes else ()
    yield from ("--labels", str(data.labels)) if data.labels else ()
    yield from ("--samples", str(data.samples)) if data.samples else ()
    yield from ("--skip-bad",) if data.skip_bad else ()


def _judged(gates: tuple[Gate, ...], measure: MeasurePlan, shapes: tuple[AskedShape, ...]) -> Iterator[str]:
    yield from ("--gate", written(gates)) if gates else ()
    for output, kind in measure.kinds.items():
        yield from ("--kind", f"{output}={kind}")
    for metric in measure.metrics:
        yield from ("--metric", metric)
    for shape in shapes:
        yield from ("--shape", shape.text)
