"""What can be wrong with a plan before anything is run or written: misspelt names, missing files, flags at odds.

Touches: looks whether files exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trtopt.config import BACKENDS, RESTS, ConvertPlan, DataPlan, MeasurePlan, output_kinds
from trtopt.data.dataset import Dataset
from trtopt.errors import DataError, ModelError, UsageError
from trtopt.types import Comparison, OnnxModel, ShapeRange, TensorSpec

FEW = 32
"""Calibration samples below which a user is told: ranges and means of so few say little of others."""


def names(plan: ConvertPlan) -> None:
    """Refuse a misspelt name now, not after an hour of calibration."""
    from trtopt.calibrate import check_name
    from trtopt.compare.limits import parse_gates

    parse_gates(plan.gates)
    measure(plan.measure)
    check_name(plan.method)
    for flag, name, known in (("--backend", plan.build.backend, BACKENDS), ("--rest", plan.rest, RESTS)):
        if name not in known:
            raise UsageError(f"{flag} {name} is unknown", fix=f"Choose one of {', '.join(known)}")


def compared(plan: ConvertPlan) -> None:
    """Refuse what only a comparison looks at, where there is to be none: a gate that is not evaluated never passes."""
    if plan.compare:
        return
    for flag, given in (
        ("--gate", plan.gates.strip()),
        ("--kind", plan.measure.kinds),
        ("--metric", plan.measure.metrics),
        ("--allow-inconclusive", plan.allow_inconclusive),
    ):
        if given:
            raise UsageError(
                f"{flag} needs a comparison", why="--no-compare leaves it out", fix="Leave out one of the two"
            )


def outputs(gates: str, plan: MeasurePlan, model: OnnxModel) -> None:
    """Refuse a gate that does not parse, and a gate or a kind that names no output or no metric, now.

    A metric of the user's own is an output with the name of its function.
    """
    from trtopt.compare.catalog import METRICS
    from trtopt.compare.limits import parse_gates

    outputs = [spec.name for spec in model.outputs]
    own = [metric.rpartition(":")[2] for metric in plan.metrics]
    named = [("--gate", gate.output, [*outputs, *own]) for gate in parse_gates(gates) if gate.output]
    named += [("--kind", output, outputs) for output in output_kinds(plan.kinds)]
    for flag, name, known in named:
        if name not in known:
            raise UsageError(
                f"{flag} names {name}, which is no output of {model.path.name}",
                fix=f"Its outputs are: {', '.join(known)}",
            )
    unknown = [gate.metric for gate in parse_gates(gates) if gate.metric not in METRICS]
    if unknown and not plan.metrics:
        raise UsageError(
            f"--gate names {unknown[0]}, which nothing measures",
            why="a metric of your own comes with the function that measures it",
            fix="Add --metric package.module:function",
        )


def measure(plan: MeasurePlan) -> None:
    """Refuse a kind of output that there is not, and a metric that cannot be imported, before anything is run."""
    if plan.kinds or plan.metrics:
        from trtopt.compare.kinds import check_name
        from trtopt.compare.own import load

        for kind in output_kinds(plan.kinds).values():
            check_name(kind)
        for source in plan.metrics:
            load(source)


def measured(run: Path, plan: MeasurePlan, comparison: Comparison) -> None:
    """Refuse to judge what an earlier run measured in another way than is asked for."""
    kinds = {output.output: output.kind for output in comparison.outputs}
    asked = [("--kind", f"{output}={kind}", (output, kind)) for output, kind in output_kinds(plan.kinds).items()]
    asked += [("--metric", metric, (metric.rpartition(":")[2], "own")) for metric in plan.metrics]
    for flag, value, entry in asked:
        if entry not in kinds.items():
            raise UsageError(
                f"{flag} {value} is not how {run} was measured",
                why=f"its outputs are {', '.join(f'{output}={kind}' for output, kind in kinds.items())}",
                fix="Run trtopt compare without --from",
            )


def pair(baseline: OnnxModel, candidate: OnnxModel) -> None:
    """Refuse a candidate that takes other inputs than the baseline."""
    ours, theirs = ({spec.name for spec in model.inputs} for model in (baseline, candidate))
    if ours != theirs:
        raise ModelError(
            f"{candidate.path} is no candidate for {baseline.path}",
            why=f"its inputs are {', '.join(sorted(theirs))}, those of the baseline {', '.join(sorted(ours))}",
            fix="Compare a model with what was made from it",
        )


def exists(plan: DataPlan | None) -> None:
    """Refuse data that is not there, and files of class names or labels that are not."""
    if plan is None:
        return
    for flag, path in (("--classes", plan.classes), ("--labels", plan.labels)):
        if path is not None and not path.is_file():
            raise UsageError(f"{flag} {path}: no such file")
    if ":" not in plan.source and not Path(plan.source).exists():
        raise DataError(f"{plan.source}: no such file or folder", fix="Name a folder of pictures, .npy, .npz or .jsonl")


def within(dataset: Dataset, inputs: tuple[TensorSpec, ...], ranges: Iterable[ShapeRange]) -> None:
    """Refuse samples that the engine's profile does not take; how many are joined is not theirs to say."""
    profiles = {entry.name: entry for entry in ranges}
    for fed in dataset.shapes:
        for spec, shape in zip(inputs, fed, strict=True):
            entry = profiles.get(spec.name)
            if entry is None:
                continue
            low = (0, *entry.min[1:])
            if not all(least <= size <= most for least, size, most in zip(low, shape, entry.max, strict=True)):
                least, size, most = ("x".join(map(str, each)) for each in (entry.min, shape, entry.max))
                raise DataError(
                    f"{dataset.source}: a sample gives {spec.name} the shape {size}",
                    why=f"the engine's profile goes from {least} to {most}",
                    fix=f"Widen it with --shape {spec.name}=smallest:usual:largest, or give samples like production's",
                )


def classes(dataset: Dataset, plan: MeasurePlan, model: OnnxModel) -> None:
    """Refuse labels that are of other classes than the model's, where the shapes of its outputs tell."""
    from trtopt.data.classes import check_count, score_count

    kinds = output_kinds(plan.kinds)
    scores: dict[str, int] = {}
    for spec in model.outputs:
        row = [side for side in spec.shape[1:] if isinstance(side, int)]
        if len(row) + 1 != len(spec.shape):
            return  # only its values will tell
        if kinds.get(spec.name, "scores") == "scores" and spec.dtype.startswith(("float", "bfloat")):
            scores[spec.name] = score_count(row)
    check_count(dataset, scores)


def few(dataset: Dataset) -> str:
    """A remark on a dataset that is small to calibrate on; nothing for one whose samples are batches."""
    count = len(dataset.groups.ids) if dataset.groups else len(dataset)
    single = dataset.groups or all(shape[:1] == (1,) for fed in dataset.shapes for shape in fed)
    if not single or count >= FEW:
        return ""
    return f"{count} calibration samples: 100 to 500 like those of production are better"


def calibrates(plan: ConvertPlan) -> None:
    """Refuse to calibrate for a precision that has no scales."""
    from trtopt.precision import precision

    if not precision(plan.precision).NEEDS_TABLE:
        raise UsageError(f"{plan.precision} has no scales to calibrate", fix="Choose int8 or fp8")


def data_flags(plan: ConvertPlan, *, needs_table: bool) -> None:
    """Refuse a conversion without the samples that it needs."""
    exists(plan.calib)
    exists(plan.data)
    if needs_table and plan.calib is None and plan.table is None:
        raise UsageError(
            f"--precision {plan.precision} needs calibration data",
            why="scales are measured on real samples, never on random ones",
            fix="Add --calib DATA (100 to 500 samples like those of production), or --calib-table FILE",
        )
    if plan.compare and plan.calib is None and plan.data is None:
        raise UsageError(
            "nothing to compare on",
            why="an engine is called safe only after its outputs were compared with FP32 on your data",
            fix="Add --data DATA, or give up the verdict with --no-compare",
        )
