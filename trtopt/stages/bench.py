"""Preparation of `trtopt bench`: which file of a target runs and where, with which inputs, at which batch sizes.

Touches: reads targets, their manifests and the samples; loads the targets on the device where they will run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt.bench import gpu, inputs, probe, targets
from trtopt.candidate import ENGINE_NOT_RUN, resolve
from trtopt.codec import decode
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.engine.cuda.driver import has_gpu
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.engine.ort.crash import check_loads
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError, UsageError
from trtopt.events import Emit, Warned
from trtopt.plan import BenchPlan, SpeedPlan
from trtopt.shapes import DEFAULT_BATCH, AskedShape, profile
from trtopt.stages.compare import compiled
from trtopt.stages.samples import open_data
from trtopt.types import Engine, OnnxModel, ShapeRange, TensorSpec

BATCHES = (1, 8, 16, 32, 64)
"""Batch sizes of the sweep without `--batch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A target on the command line, before it is loaded.

    Attributes:
        name: the name to report it by.
        onnx: its ONNX graph.
        engine: its engine, if it has one.
        graph: whether the ONNX graph may run in place of the engine; False if the target is the engine itself.
        run_dir: its run directory, or the one that it is in; None for an ONNX file.
        profile: the shapes that it was made for; empty if they are not known.
        unrecorded: what to tell about an engine that is there, but not recorded; else empty.
    """

    name: str
    onnx: OnnxModel
    engine: Engine | None
    graph: bool
    run_dir: Path | None
    profile: tuple[ShapeRange, ...]
    unrecorded: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A loaded target, the file that was loaded, and the batch sizes that its engine supports (None: any)."""

    target: targets.Target
    path: Path
    run_dir: Path | None
    takes: range | None


def wanted(path: Path, name: str) -> Wanted:
    """Resolve a target without loading it.

    Raises:
        UsageError: the path does not exist.
        ModelError: the file is not a model, or is an engine that is not in the manifest of its folder.
    """
    candidate = resolve(path)
    run_dir: Path | None
    if path.is_dir():
        run_dir = path
    elif path.suffix == ".onnx":
        run_dir = None
    else:
        run_dir = path.parent
    return Wanted(
        name=name,
        onnx=candidate.onnx,
        engine=compiled(candidate.engine),
        graph=path.is_dir() or path.suffix == ".onnx",
        run_dir=run_dir,
        profile=_profile(run_dir) if run_dir else (),
        unrecorded=candidate.unrecorded,
    )


def _profile(run_dir: Path) -> tuple[ShapeRange, ...]:
    """Return the shapes that the graph of a run directory was prepared for."""
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    entries = manifest["stages"].get("prepare", {}).get("inputs", {}).get("profile", [])
    return tuple(decode(ShapeRange, entry) for entry in entries)


def cuda_options(speed: SpeedPlan) -> CudaOptions:
    """Return the options of onnxruntime on a GPU."""
    return CudaOptions(tf32=speed.tf32, graphs=speed.graphs)


def opened(target: Wanted, plan: BenchPlan, dataset: Dataset | None, emit: Emit) -> Opened:
    """Load a target: its engine if it runs on this machine, otherwise its graph in onnxruntime, with a warning.

    Raises:
        EnvironmentUnableError: this machine cannot run the target.
        TrtoptError: the target cannot be loaded, or its shapes are not known.
    """
    sizes = inputs.Sizes(inputs=target.onnx.inputs, ranges=ranges(target, plan.speed.shapes, dataset))
    if not target.graph and plan.speed.device == "cpu":
        raise only_on_gpu(target)
    if target.engine is not None and plan.speed.device != "cpu":
        try:
            engine = targets.open_engine(target.engine)
        except (EnvironmentUnableError, MissingDependencyError) as error:
            # Out of memory does not mean that the engine cannot run here: timing the graph instead would hide it.
            if isinstance(error, OutOfMemoryError) or not target.graph:
                raise
            why = (error.why or error.what) if has_gpu() else "this machine has no NVIDIA driver"
            emit(Warned(f"{target.name}: its graph is timed, because its engine does not run on this machine ({why})"))
        else:
            loaded = targets.Target(name=target.name, sizes=sizes, session=engine)
            takes = engine_batches(target, sizes)
            return Opened(target=loaded, path=target.engine.path, run_dir=target.run_dir, takes=takes)
    if plan.speed.device != "cuda":
        check_loads(target.onnx.path)
    if target.unrecorded:
        emit(Warned(target.unrecorded))
    session = targets.open_onnx(target.onnx.path, plan.speed.device, cuda_options(plan.speed))
    if target.engine is not None:
        session.where += ENGINE_NOT_RUN
    loaded = targets.Target(name=target.name, sizes=sizes, session=session)
    return Opened(target=loaded, path=target.onnx.path, run_dir=target.run_dir, takes=None)


def questions(target: Wanted, sizes: inputs.Sizes, speed: SpeedPlan) -> list[probe.Question]:
    """Return the ways to try a batch of a target, best first: its engine, its graph on a GPU, its graph on the CPU.

    Raises:
        UsageError: the target is an engine, and `--device cpu` is set.
    """
    if not target.graph and speed.device == "cpu":
        raise only_on_gpu(target)
    on_gpu = probe.Question(
        path=target.onnx.path, engine=None, sizes=sizes, device="cuda", batch=1, limit=0, cuda=cuda_options(speed)
    )
    ways = []
    if target.engine is not None and speed.device != "cpu":
        # An engine may not support batch 1.
        smallest = (engine_batches(target, sizes) or range(1, 2))[0]
        ways.append(replace(on_gpu, path=target.engine.path, engine=target.engine, batch=smallest))
    if target.graph and speed.device != "cpu":
        ways.append(on_gpu)
    if target.graph and speed.device != "cuda":
        ways.append(replace(on_gpu, device="cpu"))
    return ways


def only_on_gpu(target: Wanted) -> UsageError:
    """Return the error for an engine that should run on the CPU."""
    return UsageError(
        f"{target.name} is an engine and cannot run on a CPU",
        fix=f"Remove --device cpu, or give {target.run_dir}: its typed graph runs in onnxruntime",
    )


def engine_batches(target: Wanted, sizes: inputs.Sizes) -> range | None:
    """Return the batch sizes of the profile that an engine was built with; None if the batch is fixed."""
    for spec in sizes.inputs:
        for entry in target.profile:
            if entry.name == spec.name and sizes.is_free(spec):
                return range(entry.min[0], entry.max[0] + 1)
    return None


def ranges(target: Wanted, shapes: Sequence[AskedShape], dataset: Dataset | None) -> tuple[ShapeRange, ...]:
    """Return the shape ranges of dynamic inputs.

    They are taken from the first of these that exists: the flags, the run directory, the samples, a default. Samples
    that cannot be joined fix all dimensions.

    Raises:
        UsageError: a flag does not fit the model, or a dynamic dimension other than the batch has no size.
    """
    from trtopt.graph.unread import unread

    # Samples that cannot be joined: their own batch is the only one.
    if dataset is not None and not dataset.batched:
        return tuple(_range(spec, array.shape, (array.shape[0],) * 3) for spec, array in _first(target, dataset))
    if shapes or (dataset is None and not target.profile):
        return profile(target.onnx.inputs, shapes, unread=lambda: unread(target.onnx.path))[0]
    if target.profile or dataset is None:
        return target.profile
    return tuple(
        _range(spec, array.shape, DEFAULT_BATCH)
        for spec, array in _first(target, dataset)
        if any(isinstance(dim, str) for dim in spec.shape)
    )


def _first(target: Wanted, dataset: Dataset) -> list[tuple[TensorSpec, Array]]:
    """Return the inputs that have dimensions, with their arrays in the first sample."""
    sample = dataset.load(0)
    return [(spec, sample[spec.name]) for spec in target.onnx.inputs if spec.shape]


def _range(spec: TensorSpec, shape: tuple[int, ...], batches: tuple[int, int, int]) -> ShapeRange:
    """Return the range of an input whose batch is `batches` (min, opt, max), unless the model fixes its batch."""
    fixed = isinstance(spec.shape[0], int)
    low, best, high = ((shape[0] if fixed else batch, *shape[1:]) for batch in batches)
    return ShapeRange(name=spec.name, min=low, opt=best, max=high)


def datasets(wanted: Sequence[Wanted], plan: BenchPlan) -> dict[str, Dataset]:
    """Return the samples of `--data` for each target, by its name. The mapping is empty without `--data`."""
    if plan.data is None:
        return {}
    return {target.name: open_data(plan.data, target.onnx) for target in wanted}


def feed(samples: Mapping[str, Dataset], target: targets.Target, batch: int) -> Feed:
    """Return the inputs of a target at a batch size: its samples, or random values if it has none."""
    if target.name in samples:
        return inputs.from_data(samples[target.name], batch)
    return inputs.random(target.sizes, batch)


def batches(loaded: Sequence[Opened], requested: tuple[int, ...]) -> tuple[tuple[int, ...], list[str]]:
    """Return the batch sizes to sweep, and remarks on those that are left out.

    If the batch of one target is fixed, all targets run at that size, so that they can be compared.

    Args:
        loaded: the targets.
        requested: the sizes of `--batch`; empty without it.

    Raises:
        UsageError: a target does not support a requested size, or targets are fixed at different sizes.
    """
    fixed = {opened.target.sizes.batch: opened.target.name for opened in loaded if opened.target.sizes.batch}
    if len(fixed) > 1:
        described = ", ".join(f"{name} at {batch}" for batch, name in fixed.items())
        raise UsageError("the targets have no batch size in common", why=f"they are fixed: {described}")
    for batch, name in fixed.items():
        if requested and requested != (batch,):
            raise UsageError(
                f"{name} does not support --batch {','.join(map(str, requested))}",
                why=f"its batch size is fixed at {batch}",
                fix="Remove --batch, or export the model with a dynamic batch",
            )
    chosen = tuple(fixed) or requested or BATCHES
    remarks: list[str] = []
    for opened in loaded:
        supported = opened.takes
        if supported is None:
            continue
        outside = [batch for batch in chosen if batch not in supported]
        if not outside:
            continue
        sizes = ", ".join(map(str, outside))
        remark = f"{opened.target.name} supports batch {supported[0]} to {supported[-1]}"
        # Only default sizes may be left out, and not all of them.
        if requested or fixed or len(outside) == len(chosen):
            raise UsageError(f"batch {sizes} is not supported", why=remark, fix="Give other sizes with --batch")
        remarks.append(f"batch {sizes} skipped: {remark}")
        chosen = tuple(batch for batch in chosen if batch in supported)
    return chosen, remarks


@contextlib.contextmanager
def gpu_readings(loaded: Sequence[Opened], emit: Emit) -> Iterator[gpu.Gpu | None]:
    """Yield the GPU to read utilisation, memory and power from.

    Yield None if no target runs on a GPU, or, with a warning, if NVML is not available.
    """
    if all(opened.target.session.device == "cpu" for opened in loaded):
        yield None
        return
    try:
        device = gpu.open_gpu()
    except (EnvironmentUnableError, MissingDependencyError) as error:
        emit(Warned(f"GPU utilisation, memory and power are not measured: {error}"))
        yield None
        return
    try:
        yield device
    finally:
        device.close()


def remarks(loaded: Sequence[Opened]) -> list[str]:
    """Return a remark if the targets run on different kinds of devices, because their speedup compares devices too."""
    on_cpu = ", ".join(opened.target.name for opened in loaded if opened.target.session.device == "cpu")
    on_gpu = ", ".join(opened.target.name for opened in loaded if opened.target.session.device == "cuda")
    if not on_cpu or not on_gpu:
        return []
    return [f"{on_cpu} on the CPU, {on_gpu} on the GPU: a speedup between them includes that of the device"]


def where(session: targets.Session, device: gpu.Gpu | None) -> str:
    """Return the runtime and device of a target, with the GPU's name if only NVML knows it."""
    # The name of a session often contains the GPU already.
    name = device.name if device is not None and session.device == "cuda" else ""
    return session.where if name in session.where else f"{session.where}, {name}"
