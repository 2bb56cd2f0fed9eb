"""The stages: what goes into each one's key, which files it writes, and the line that sums it up.

A stage's key holds everything that can change its result: digests of its inputs, its options, and the versions of the
libraries that do the work.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.codec import encode
from trtopt.config import BuildPlan, DataPlan
from trtopt.data.dataset import Dataset
from trtopt.errors import EnvironmentUnableError
from trtopt.events import Emit, Warned
from trtopt.store import RunStore, file_digest
from trtopt.types import CalibrationTable, Comparison, Engine, Observation, OnnxModel, ShapeRange, Support, TypedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENGINE_NOT_RUN = " (the typed graph of the engine: TensorRT itself was not run)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every stage is given: the store, where events go, and where onnxruntime runs (`cpu`, `cuda`, `auto`)."""

    store: RunStore
    emit: Emit
    device: str


def check_operators(context: Context, model: OnnxModel, plan: BuildPlan) -> None:
    """Ask the real parser, before any calibration, whether it takes every node. Says nothing where there is none.

    Raises:
        BuildError: it refuses some; the first is named.
    """
    if plan.backend != "tensorrt":
        return
    from trtopt.engine import tensorrt

    try:
        trt = tensorrt.find(plan.tensorrt)
    except EnvironmentUnableError:
        return

    def make(_: Path) -> Support:
        return Support(rejections=tensorrt.check(trt, model.path))

    key = {"model": model.digest, "tensorrt": f"{trt.name} {trt.version}"}
    found = context.store.stage("check", key, Support, make, lambda made: _support_line(made, trt.name))
    if found.rejections:
        raise tensorrt.rejected(found.rejections)


def open_data(plan: DataPlan, model: OnnxModel) -> Dataset:
    """Open the samples of a plan for a model."""
    from trtopt.data import load_recipe, open_dataset

    recipe = load_recipe(plan.recipe) if plan.recipe else None
    return open_dataset(plan.source, model.inputs, recipe=recipe, skip_bad=plan.skip_bad)


def prepare(context: Context, source: OnnxModel, ranges: Sequence[ShapeRange], min_opset: int) -> OnnxModel:
    """FP32 ONNX as given -> FP32 ONNX, simplified, at a sufficient opset (`fp32.onnx`)."""

    def make(folder: Path) -> OnnxModel:
        from trtopt.export.prepare import prepare

        return prepare(source.path, folder, min_opset=min_opset, profile=ranges)

    key = {
        "source": source.digest,
        "profile": [asdict(entry) for entry in ranges],
        "opset": min_opset,
        **versions("onnx", "onnx-ir", "onnxscript", "onnxslim"),
    }
    return context.store.stage("prepare", key, OnnxModel, make, lambda model: "; ".join(model.notes))


def equalize(context: Context, model: OnnxModel, dataset: Dataset) -> OnnxModel:
    """FP32 ONNX + a few samples -> the same function with channels of similar range (`equalized.onnx`)."""

    def make(folder: Path) -> OnnxModel:
        from trtopt.calibrate.ranges import channel_peaks
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import describe, load_ir
        from trtopt.export.prepare import save
        from trtopt.precision.equalize import equalize, links

        graph = load_ir(model.path)
        chosen = links(graph.graph)
        axes = {link.tensor: link.axis for link in chosen}
        with _tapped(context, model, list(axes)) as path:
            peaks = channel_peaks(open_runner(path, device=context.device).run, dataset, axes) if axes else {}
        done = equalize(graph, chosen, peaks)
        save(graph, folder / "equalized.onnx")
        return describe(folder / "equalized.onnx", (f"channels of {len(done)} activations brought to similar ranges",))

    key = {"model": model.digest, "data": dataset.digest, "device": context.device}
    key |= versions("onnxruntime", "onnxruntime-gpu", "onnx-ir")
    return context.store.stage("equalize", key, OnnxModel, make, lambda made: "; ".join(made.notes))


def calibrate(context: Context, model: OnnxModel, dataset: Dataset, method: str) -> CalibrationTable:
    """FP32 ONNX + samples -> one scale a tensor (`calibration.json`, and `calibration.cache` as TensorRT writes it)."""

    def make(folder: Path) -> CalibrationTable:
        from trtopt.calibrate import AUTO, auto, methods, observe, table
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.placement import place

        tensors = place(load_ir(model.path)).tensors()
        seen: set[str] = set()
        with _tapped(context, model, tensors) as path:
            run = open_runner(path, device=context.device).run
            watched = fingerprinted(dataset, seen)
            histograms = observe.observe(run, tensors, watched, stage="calibrate", emit=context.emit)
        if method == AUTO:
            candidates = {n: table.make_table(n, histograms, model=model, dataset=dataset) for n in methods()}
            made, line = auto.choose(candidates, _output_error(context, model, dataset))
            context.emit(Warned(f"--method auto chose {line}"))
        else:
            made = table.make_table(method, histograms, model=model, dataset=dataset)
        table.write_json(made, folder / "calibration.json", histograms)
        table.write_cache(made, folder / "calibration.cache")
        return replace(made, fingerprints=tuple(sorted(seen)))

    key = {"model": model.digest, "data": dataset.digest, "method": method, "device": context.device}
    return context.store.stage(
        "calibrate",
        key | versions("onnxruntime", "onnxruntime-gpu", "numba"),
        CalibrationTable,
        make,
        lambda made: f"{made.method} over {made.samples} samples: {len(made.scales)} scales",
    )


def _output_error(context: Context, model: OnnxModel, dataset: Dataset) -> Callable[[CalibrationTable], float]:
    """A function that quantizes the network with a table, and returns noise over signal energy, summed over outputs."""
    import numpy as np

    from trtopt.calibrate.auto import SAMPLES
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import save
    from trtopt.precision import Request, precision

    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int))
    feeds = [dataset.load(int(index)) for index in indices]
    run = open_runner(model.path, device=context.device).run
    wanted = [run(feed) for feed in feeds]

    def error(table: CalibrationTable) -> float:
        graph = load_ir(model.path)
        precision("int8").apply(graph, Request(rest="fp32", table=table))
        path = context.store.root / ".tmp-candidate.onnx"
        save(graph, path)
        quantized = open_runner(path, device=context.device).run
        found = [quantized(feed) for feed in feeds]
        total = 0.0
        for name in wanted[0]:
            pairs = [(np.float64(w[name]), np.float64(f[name])) for w, f in zip(wanted, found, strict=True)]
            signal = sum(float((w * w).sum()) for w, _ in pairs)
            total += sum(float(((w - f) ** 2).sum()) for w, f in pairs) / max(signal, 1e-30)
        return total

    return error


def observe(context: Context, model: OnnxModel, dataset: Dataset) -> Observation:
    """FP32 ONNX + a few samples -> magnitudes of all tensors, and the means that correct biases (`observed.npz`)."""

    def make(folder: Path) -> Observation:
        import numpy as np

        from trtopt.calibrate.ranges import look
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export.onnx import load_ir
        from trtopt.precision.graph import float_nodes, is_float
        from trtopt.precision.placement import channel_axes

        nodes = list(float_nodes(load_ir(model.path).graph))
        tensors = [value.name or "" for node in nodes for value in node.outputs if is_float(value)]
        with _tapped(context, model, tensors) as path:
            run = open_runner(path, device=context.device).run
            seen = look(run, dataset, channel_axes(nodes), stage="observe", emit=context.emit)
        path = folder / "observed.npz"
        # Under numbers, beside their names: a tensor's name may hold what a file's name may not.
        names = np.array(list(seen.means), dtype=np.str_)
        np.savez(path, allow_pickle=False, names=names, **{str(i): mean for i, mean in enumerate(seen.means.values())})
        return Observation(
            ranges=seen.ranges, sizes=seen.sizes, samples=seen.samples, means=path, digest=file_digest(path)
        )

    key = {"model": model.digest, "data": dataset.digest, "device": context.device}
    return context.store.stage(
        "observe",
        key | versions("onnxruntime", "onnxruntime-gpu"),
        Observation,
        make,
        lambda made: f"magnitudes of {len(made.ranges)} tensors over {made.samples} samples",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The precision asked for, the type of the unquantized rest, and whether biases are corrected."""

    precision: str
    rest: str
    bias_correction: bool


def set_precision(
    context: Context, model: OnnxModel, target: Target, table: CalibrationTable | None, seen: Observation | None
) -> TypedModel:
    """FP32 ONNX (+ table, + what was seen) -> an ONNX graph that carries its precision in itself (`typed.onnx`)."""

    def make(folder: Path) -> TypedModel:
        from trtopt.export.onnx import describe, load_ir
        from trtopt.export.prepare import check_types, save
        from trtopt.precision import Request, precision

        graph = load_ir(model.path)
        means = _read_means(seen.means) if seen and target.bias_correction else {}
        request = Request(
            rest=target.rest,
            table=table,
            ranges=seen.ranges if seen else {},
            sizes=seen.sizes if seen else {},
            means=means,
        )
        decisions = precision(target.precision).apply(graph, request)
        path = folder / "typed.onnx"
        save(graph, path)
        check_types(path)
        return TypedModel(onnx=describe(path), precision=target.precision, rest=target.rest, decisions=decisions)

    key = {
        "model": model.digest,
        "target": asdict(target),
        "table": dict(sorted(table.scales.items())) if table else None,
        "seen": [dict(sorted(seen.ranges.items())), dict(sorted(seen.sizes.items())), seen.digest] if seen else None,
        **versions("onnx", "onnx-ir"),
    }
    return context.store.stage("precision", key, TypedModel, make, _count_line)


def _read_means(path: Path) -> dict[str, NDArray[np.float64]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {str(name): archive[str(index)] for index, name in enumerate(archive["names"])}


def build(context: Context, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan) -> Engine:
    """Typed ONNX -> engine (`model.engine`), audited; for the backend `onnxruntime` the typed ONNX is the engine.

    Raises:
        EnvironmentUnableError: there is no TensorRT here.
        BuildError: TensorRT refuses the network, or builds it in another precision.
    """
    if plan.backend == "onnxruntime":
        return Engine(
            path=typed.onnx.path,
            digest=typed.onnx.digest,
            backend="onnxruntime",
            builder="the typed ONNX graph itself",
            device=context.device,
            size_bytes=typed.onnx.path.stat().st_size,
            audit=typed.counts(),
            audited="typed graph",
        )
    from trtopt.engine import tensorrt

    trt = tensorrt.find(plan.tensorrt)
    options = tensorrt.BuildOptions(
        workspace_bytes=plan.workspace_bytes,
        optimization_level=plan.optimization_level,
        version_compatible=plan.version_compatible,
        hardware_compatible=plan.hardware_compatible,
        timing_cache=plan.timing_cache,
    )

    def make(folder: Path) -> Engine:
        return tensorrt.build(trt, typed, tuple(ranges), options, folder / "model.engine", emit=context.emit)

    key = {
        "typed": typed.onnx.digest,
        "profile": [asdict(entry) for entry in ranges],
        "options": encode(options),
        "tensorrt": f"{trt.name} {trt.version}",
    }
    return context.store.stage("build", key, Engine, make, engine_line)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to compare on: samples, gates as the user wrote them, a remark on where the candidate ran (empty: none), and
    the fingerprints of the samples that it was calibrated on.
    """

    dataset: Dataset
    gates: str
    ran: str = ""
    calibrated_on: tuple[str, ...] = ()


def compare(context: Context, baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation) -> Comparison:
    """Baseline, candidate and samples -> drift and verdict."""

    def make(_: Path) -> Comparison:
        from trtopt.compare.run import Pair, compare
        from trtopt.data.overlap import fingerprinted
        from trtopt.engine.onnxruntime import open_runner

        pair = Pair(
            baseline=open_runner(baseline.path, device=context.device),
            candidate=open_runner(candidate.path, device=context.device),
            names=(baseline.path.name, candidate.path.name),
        )
        seen: set[str] = set()
        dataset = fingerprinted(evaluation.dataset, seen)
        made = compare(pair, dataset, evaluation.gates, emit=context.emit)
        shared = len(seen & set(evaluation.calibrated_on))
        note = (f"{shared} of {made.samples} evaluation samples were calibrated on: no evidence for unseen data",)
        return replace(
            made,
            candidate_ran=made.candidate_ran + evaluation.ran,
            warnings=made.warnings + (note if shared else ()),
        )

    key = {
        "baseline": baseline.digest,
        "candidate": candidate.digest,
        "data": evaluation.dataset.digest,
        "gates": evaluation.gates,
        "calibrated_on": hashlib.sha256("".join(evaluation.calibrated_on).encode()).hexdigest(),
        "ran": evaluation.ran,
        "device": context.device,
        **versions("onnxruntime", "onnxruntime-gpu"),
    }
    return context.store.stage("compare", key, Comparison, make, lambda made: f"{made.samples} samples: {made.verdict}")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, those that are not installed left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def environment() -> dict[str, str]:
    """What a report must say of the machine: operating system, Python, and the versions of what did the work."""
    packages = ("trtopt", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx")
    return {"platform": platform.platform(), "python": platform.python_version(), **versions(*packages)}


def engine_line(engine: Engine) -> str:
    """One line about an engine: file, size, builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"


def _support_line(support: Support, name: str) -> str:
    if not support.rejections:
        return f"{name} takes every operator"
    return f"{name} refuses {len(support.rejections)} nodes"


def _count_line(typed: TypedModel) -> str:
    return ", ".join(f"{count} nodes {name}" for name, count in sorted(typed.counts().items()))


@contextlib.contextmanager
def _tapped(context: Context, model: OnnxModel, tensors: Sequence[str]) -> Iterator[Path]:
    """A copy of the model, beside it so that external data is found, that gives these tensors as its outputs."""
    from trtopt.calibrate.observe import tap

    path = context.store.root / ".tmp-tapped.onnx"
    try:
        tap(model, tensors, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
