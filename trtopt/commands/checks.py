"""Checks of a plan before anything is run or written: misspelt names, missing files, conflicting flags.

Touches: checks whether files exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trtopt.compare.gates import Gate
from trtopt.data.dataset import Dataset
from trtopt.errors import DataError, EnvironmentUnableError, ModelError, UsageError
from trtopt.plan import ConvertPlan, DataPlan, MeasurePlan
from trtopt.precision import fallbacks
from trtopt.types import Comparison, OnnxModel, ShapeRange, TensorSpec

FEW = 32
"""Number of calibration samples below which there is a warning, as ranges and means of so few are unreliable."""


def names(plan: ConvertPlan) -> None:
    """Reject misspelt names now, not after an hour of calibration."""
    from trtopt.calibrate import NATIVE, check_name

    measure(plan.measure)
    check_name(plan.method)
    if plan.method == NATIVE:
        native(plan)
    if plan.rest not in fallbacks():
        raise UsageError(f"--rest {plan.rest} is unknown", fix=f"Choose one of {', '.join(fallbacks())}")


def native(plan: ConvertPlan) -> None:
    """Refuse TensorRT's own calibrator where there is none.

    Raises:
        UsageError: the precision is not INT8.
        EnvironmentUnableError: this machine has no GPU, or another TensorRT.
    """
    from trtopt.engine.cuda.driver import has_gpu
    from trtopt.engine.trt.locate import find
    from trtopt.engine.trt.native import check_native

    if plan.precision != "int8":
        raise UsageError(f"--method native does not calibrate {plan.precision}", fix="Use --precision int8")
    check_native(find(plan.build.tensorrt))
    if not has_gpu():
        raise EnvironmentUnableError(
            "--method native needs an NVIDIA GPU",
            why="TensorRT's own calibrator runs on it",
            fix="Choose another --method",
        )


def compared(plan: ConvertPlan) -> None:
    """Reject flags of the comparison if there is none, as a gate that is not evaluated never passes."""
    if plan.compare:
        return
    for flag, given in (
        ("--gate", plan.gates),
        ("--kind", plan.measure.kinds),
        ("--metric", plan.measure.metrics),
        ("--allow-inconclusive", plan.allow_inconclusive),
    ):
        if given:
            raise UsageError(
                f"{flag} cannot be combined with --no-compare",
                why="it applies to the comparison",
                fix="Leave out one of them",
            )


def outputs(gates: Sequence[Gate], plan: MeasurePlan, model: OnnxModel) -> None:
    """Reject an invalid gate, and a gate or kind with an unknown output or metric, before anything is run.

    A custom metric is an output named after its function.
    """
    outputs = [spec.name for spec in model.outputs]
    own = [metric.rpartition(":")[2] for metric in plan.metrics]
    named = [("--gate", gate.output, [*outputs, *own]) for gate in gates if gate.output]
    named += [("--kind", output, outputs) for output in plan.kinds]
    for flag, name, known in named:
        if name not in known:
            raise UsageError(
                f"{flag}: {model.path.name} has no output {name}",
                fix=f"Choose one of {', '.join(known)}",
            )
    measures(gates, plan.kinds, all_known=set(plan.kinds) >= set(outputs))
    custom(gates, measured=bool(plan.metrics))


def custom(gates: Sequence[Gate], *, measured: bool) -> None:
    """Refuse a gate on a metric that trtopt does not know, unless custom metrics are `measured`.

    Raises:
        UsageError: there is one.
    """
    from trtopt.compare.catalog import METRICS

    unknown = [gate.metric for gate in gates if gate.metric not in METRICS]
    if unknown and not measured:
        raise UsageError(
            f"--gate: unknown metric {unknown[0]}",
            why="a custom metric needs the function that computes it",
            fix="Add --metric package.module:function",
        )


def measures(gates: Sequence[Gate], kinds: Mapping[str, str], *, all_known: bool = True) -> None:
    """Refuse a gate on a metric that outputs of these kinds do not have.

    `all_known` is false if the kinds of other outputs are not known yet.

    Raises:
        UsageError: there is one; the message lists the metrics of the kind.
    """
    from trtopt.compare.catalog import METRICS
    from trtopt.compare.kinds import kind as module
    from trtopt.compare.kinds import kinds as known_kinds

    known = {output: kind for output, kind in kinds.items() if kind in known_kinds()}
    for gate in gates:
        judged = {output: kind for output, kind in known.items() if gate.output in ("", output)}
        certain = bool(judged) and (bool(gate.output) or all_known)
        if not certain or gate.metric not in METRICS or gate.metric == "engine":
            continue
        if any(gate.metric in module(kind).METRICS for kind in judged.values()):
            continue
        output, kind = next(iter(judged.items()))
        metrics = ", ".join(name for name in module(kind).METRICS if name != "nonfinite")
        raise UsageError(
            f"--gate {gate.metric}: {output} is of kind {kind}",
            why=f"its metrics are {metrics}",
            fix="Choose one of these, or name another kind with --kind",
        )


def gated(gates: Sequence[Gate], outputs: Sequence[str]) -> None:
    """Refuse a gate on an output that was not measured.

    Raises:
        UsageError: there is one.
    """
    for gate in gates:
        if gate.output and gate.output not in outputs:
            raise UsageError(
                f"--gate names an unknown output {gate.output!r}", fix=f"The measured outputs are {', '.join(outputs)}"
            )


def measure(plan: MeasurePlan) -> None:
    """Reject an unknown kind of output, and a metric that cannot be imported, before anything is run."""
    if plan.kinds or plan.metrics:
        from trtopt.compare.custom import load
        from trtopt.compare.kinds import check_name

        for kind in plan.kinds.values():
            check_name(kind)
        for source in plan.metrics:
            load(source)


def measured(run: Path, plan: MeasurePlan, comparison: Comparison) -> None:
    """Reject flags that differ from how an earlier run was measured."""
    kinds = {output.output: output.kind for output in comparison.outputs}
    asked = [("--kind", f"{output}={kind}", (output, kind)) for output, kind in plan.kinds.items()]
    asked += [("--metric", metric, (metric.rpartition(":")[2], "own")) for metric in plan.metrics]
    for flag, value, entry in asked:
        if entry not in kinds.items():
            raise UsageError(
                f"{flag} {value} differs from how {run} was measured",
                why=f"its outputs are {', '.join(f'{output}={kind}' for output, kind in kinds.items())}",
                fix="Run trtopt compare without --from",
            )


def pair(baseline: OnnxModel, candidate: OnnxModel) -> None:
    """Reject a candidate with inputs that the baseline does not have. Preparation may have dropped some of its own."""
    ours, theirs = ({spec.name for spec in model.inputs} for model in (baseline, candidate))
    if not theirs <= ours:
        raise ModelError(
            f"{candidate.path} and {baseline.path} have different inputs",
            why=f"the candidate has {', '.join(sorted(theirs))}, the baseline {', '.join(sorted(ours))}",
            fix="Compare a model with candidates made from it",
        )


def exists(plan: DataPlan | None) -> None:
    """Reject data and files of class names or labels that do not exist."""
    if plan is None:
        return
    for flag, path in (("--classes", plan.classes), ("--labels", plan.labels)):
        if path is not None and not path.is_file():
            raise UsageError(f"{flag} {path}: no such file")
    if isinstance(plan.source, str) and ":" not in plan.source and not Path(plan.source).exists():
        raise DataError(f"{plan.source}: no such file or folder", fix="Give a folder of images, .npy, .npz or .jsonl")


def within(dataset: Dataset, inputs: tuple[TensorSpec, ...], ranges: Iterable[ShapeRange]) -> None:
    """Reject samples outside the engine's profile, apart from the batch size, which may be smaller but not 0."""
    profiles = {entry.name: entry for entry in ranges}
    for fed in dataset.shapes:
        for spec, shape in zip(inputs, fed, strict=True):
            entry = profiles.get(spec.name)
            if entry is None:
                continue
            low = (min(1, *entry.min[:1]), *entry.min[1:]) if entry.min else ()
            if not all(least <= size <= most for least, size, most in zip(low, shape, entry.max, strict=True)):
                least, size, most = ("x".join(map(str, each)) for each in (entry.min, shape, entry.max))
                raise DataError(
                    f"{dataset.source}: a sample has the shape {size} for {spec.name}",
                    why=f"the engine's profile covers {least} to {most}",
                    fix=f"Widen it with --shape {spec.name}=smallest:usual:largest, or use samples as in production",
                )


def classes(dataset: Dataset, plan: MeasurePlan, model: OnnxModel) -> None:
    """Reject labels with classes other than the model's, if the output shapes tell."""
    from trtopt.data.classes import check_count, score_count

    kinds = plan.kinds
    scores: dict[str, int] = {}
    for spec in model.outputs:
        row = [side for side in spec.shape[1:] if isinstance(side, int)]
        if len(row) + 1 != len(spec.shape):
            return  # only the values tell
        if kinds.get(spec.name, "scores") == "scores" and spec.dtype.startswith(("float", "bfloat")):
            scores[spec.name] = score_count(row)
    check_count(dataset, scores)


def few(dataset: Dataset) -> str:
    """Return a remark on a dataset too small for calibration; empty if large enough or made of batches."""
    count = dataset.samples
    single = dataset.groups or all(shape[:1] == (1,) for fed in dataset.shapes for shape in fed)
    if not single or count >= FEW:
        return ""
    counted = "1 calibration sample is" if count == 1 else f"{count} calibration samples are"
    return f"{counted} few: use 100 to 500 that are representative of production"


def calibrates(plan: ConvertPlan) -> None:
    """Reject calibration for a precision without scales."""
    from trtopt.precision import precision

    if not precision(plan.precision).FORMAT.scaled:
        raise UsageError(f"{plan.precision} has no scales to calibrate", fix="Choose int8 or fp8")


def data_flags(plan: ConvertPlan, *, needs_table: bool) -> None:
    """Reject a conversion without the samples that it needs."""
    exists(plan.calib)
    exists(plan.data)
    if plan.baseline is not None and not plan.baseline.is_file():
        raise UsageError(f"--baseline {plan.baseline}: no such file")
    if needs_table and plan.calib is None and plan.table is None:
        raise UsageError(
            f"--precision {plan.precision} needs calibration data",
            why="scales must be measured on real samples",
            fix="Add --calib DATA (100 to 500 samples representative of production), or --calib-table FILE",
        )
    if plan.compare and plan.calib is None and plan.data is None:
        raise UsageError(
            "no data to compare on",
            why="the verdict needs a comparison with FP32 on your data",
            fix="Add --data DATA, or skip the verdict with --no-compare",
        )
