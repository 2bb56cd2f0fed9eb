"""The stage `calibrate`: one scale per tensor, from samples.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt import __version__
from trtopt.calibrate import AUTO, NATIVE
from trtopt.calibrate.ranges import subset_size
from trtopt.data.dataset import Dataset
from trtopt.plan import BuildPlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.shards.partial import Partial
from trtopt.shards.shard import WHOLE, Shard
from trtopt.stages.native import native
from trtopt.stages.trial import output_error, rough, tapped
from trtopt.types import CalibrationTable, Only, OnnxModel
from trtopt.wording import counted

if TYPE_CHECKING:
    from trtopt.calibrate.counted import Counted

COUNTS = "counts.npz"
"""Member of a partial result with the counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """How scales are chosen: the calibration `method`, and the `precision` that the network will be quantized to.

    `plan` are the build options, for TensorRT's own calibrator. If `only` names nodes, there are scales for what these
    read.
    """

    method: str
    precision: str
    plan: BuildPlan = field(default_factory=BuildPlan)
    only: Only | None = None


def calibrate(
    run: Run, model: OnnxModel, dataset: Dataset, scales: Scales, partials: Sequence[Partial] = ()
) -> CalibrationTable:
    """Return a table with one scale per tensor (`calibration.json`; for INT8 also TensorRT's `calibration.cache`).

    With `auto`, each method's network is evaluated in the requested precision, with bias correction for the weights and
    with FP32 as the fallback precision. Of the flags, `--only` alone changes this: there are scales for what its nodes
    read, and a trial quantizes these nodes. With partial results, no sample is counted again.

    Raises:
        UsageError: the partial results are of another model or data set.
        StoreError: one is damaged.
    """
    method, precision, only = scales.method, scales.precision, scales.only

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import auto, method_names, noisiest, table
        from trtopt.graph.file import load_ir
        from trtopt.precision import precision as precision_of
        from trtopt.precision.passes.wanted import resolve

        keep = resolve(load_ir(model.path), (), only)
        format = precision_of(precision).FORMAT
        counted = _merged(partials, key_of(run, model, dataset, scales)) if partials else None
        counted = counted or count(run, model, dataset, scales)
        histograms = counted.unmasked()
        names = method_names() if method == AUTO else ["minmax" if method == NATIVE else method]
        tables = {
            name: table.make_table(name, histograms, model=model, dataset=dataset, format=format) for name in names
        }
        if method == AUTO:
            error = output_error(run, model, dataset, precision)
            request = replace(rough(run, model, dataset, precision, tables[auto.FALLBACK]), keep=keep)
            chosen = auto.choose(tables, lambda table: error(model, replace(request, table=table)))
        elif method == NATIVE:
            chosen = native(run, tables["minmax"], model, dataset, scales.plan)
        else:
            chosen = tables[method]
        chosen = replace(chosen, precision=precision, fingerprints=counted.fingerprints)
        table.write_json(chosen, folder / "calibration.json", histograms, format)
        if precision == table.CACHED:
            table.write_cache(chosen, folder / "calibration.cache")
        noisiest.write(noisiest.noisiest(chosen, histograms, format), folder)
        return chosen

    key: dict[str, Any] = {"model": model.digest, "data": dataset.digest, "method": method, "device": run.place}
    key |= {"for": precision, **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir", "numba")}
    if only is not None:
        key["only"] = asdict(only)
    tried_on = subset_size(dataset)
    return run.store.stage("calibrate", key, CalibrationTable, make, lambda table: _calibrated_line(table, tried_on))


def count(run: Run, model: OnnxModel, dataset: Dataset, scales: Scales, shard: Shard = WHOLE) -> Counted:
    """Return the counts of the tensors to quantize over a shard of the samples.

    The session and its memory are released on return.
    """
    from trtopt.calibrate.counted import Counted
    from trtopt.calibrate.histogram import Histogram
    from trtopt.calibrate.observe import callers
    from trtopt.calibrate.source import observe_where_it_runs
    from trtopt.data.dataset import part
    from trtopt.data.overlap import fingerprinted
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.graph.file import load_ir
    from trtopt.precision.passes.placement import place
    from trtopt.precision.passes.wanted import resolve

    graph = load_ir(model.path)
    tensors = place(graph, resolve(graph, (), scales.only)).tensors()
    fingerprints: dict[int, str] = {}
    samples = part(fingerprinted(dataset, fingerprints), shard.of(len(dataset)))
    if not len(samples) and len(dataset):  # there are more shards than samples
        return Counted(histograms={name: Histogram() for name in tensors}, fingerprints=())
    # TF32 is off for entropy only: its divergence is flat around the minimum, so small errors move its choice.
    cuda = CudaOptions(tf32=scales.method not in ("entropy", AUTO))
    with tapped(run, model, tensors) as path:
        runner = open_runner(path, device=run.device, cuda=cuda, callers=callers())
        if runner.place.kind == "cuda":
            run.note(f"calibrated in {runner.where}")
        histograms = observe_where_it_runs(runner, tensors, samples, stage="calibrate", emit=run.emit)
    return Counted(histograms=histograms, fingerprints=tuple(sorted(set(fingerprints.values()))))


def key_of(run: Run, model: OnnxModel, dataset: Dataset, scales: Scales) -> dict[str, Any]:
    """Return what the partial results of one calibration have in common."""
    return {
        "trtopt": __version__,
        "model": model.digest,
        "data": dataset.digest,
        "method": scales.method,
        "precision": scales.precision,
        "only": asdict(scales.only) if scales.only else None,
        "device": run.place.partition(":")[0],
    }


def _merged(partials: Sequence[Partial], key: Mapping[str, Any]) -> Counted:
    from trtopt.calibrate.counted import merged, read
    from trtopt.shards.partial import check_key, damaged

    check_key(partials, key)
    parts = []
    for each in partials:
        try:
            parts.append(read(each.read(COUNTS)))
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise damaged(each.path, str(error)) from error
    return merged(parts)


def _calibrated_line(table: CalibrationTable, tried_on: int) -> str:
    """Return the summary line, with the output SQNR of each candidate method, best first, and its number of samples."""
    line = f"{counted(len(table.scales), 'scale')} from {counted(table.samples, 'sample')} by {table.method}"
    if not table.tried:
        return line
    best_first = sorted(table.tried.items(), key=lambda item: -item[1])
    candidates = ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in best_first)
    return f"{line} (output SQNR on {counted(tried_on, 'sample')}: {candidates})"
